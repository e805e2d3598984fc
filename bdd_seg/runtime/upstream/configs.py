"""Read config files, mmseg's own included.

Reason: mmengine's errors do not say which file of a chain of ``_base_`` is broken, a circular ``_base_`` ends
in a recursion, and ``hub.get_config('mmseg::…')`` installs OpenMMLab's release over the maintained build.
Test: tests/runtime/upstream/test_configs.py, tests/cli/test_wrong_inputs.py.
Goes when: ``Config.fromfile`` names file and line, and resolves ``mmseg::`` from the installed package.
"""

import ast
import importlib
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmseg
from mmengine.config import Config, utils

from bdd_seg.errors import ConfigError, similar_to

_MMSEG_PREFIX = 'mmseg::'


def apply() -> None:
    """Let ``_base_ = 'mmseg::…'`` find the maintained build.

    mmengine looks for a distribution called ``mmsegmentation``, and its hub installs that one over the
    maintained build where it is absent. Under its import name mmseg is found wherever it comes from.
    """
    utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def load_config(name: str | Path) -> Config:
    """Read a config file: a path, or ``mmseg::FOLDER/NAME.py`` for one that mmseg ships.

    Raises:
        ConfigError: There is no such file, a file that it inherits from is missing, or a module that it
            names cannot be imported.
    """
    path = Path(name)
    if str(name).startswith(_MMSEG_PREFIX):
        path = Path(mmseg.__file__).parent / '.mim' / 'configs' / str(name).removeprefix(_MMSEG_PREFIX)
    if not os.path.isfile(path):  # Path.is_file() has an exception for names that are too long
        if os.path.isdir(path):
            raise ConfigError(f'config {str(name)!r} is a folder. Give the file in it')
        siblings = path.parent.glob('*.py') if os.path.isdir(path.parent) else ()
        hint = similar_to(path.name, [sibling.name for sibling in siblings])
        raise ConfigError(f'config {str(name)!r} does not exist.{hint}')
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        hint = '. The order is CONFIG CHECKPOINT' if path.suffix in ('.pth', '.pt') else ''
        raise ConfigError(f'config {str(name)!r} is no config file, which would end in .py{hint}')
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except FileNotFoundError as error:
        raise ConfigError(
            f'config {str(name)!r} inherits from a file that does not exist: {error}'
        ) from error
    except ImportError as error:
        raise ConfigError(f'config {str(name)!r}: {error}') from error
    except RecursionError as error:
        raise ConfigError(f'config {str(name)!r} inherits from itself: look at its _base_') from error
    except SyntaxError as error:
        raise ConfigError(f'config {_syntax_error(path) or _described(path, error)}') from error
    except Exception as error:  # a config is a program, in which anything can go wrong
        raise ConfigError(f'config {_described(path, error)}') from error
    _import_custom_modules(cfg, str(name))
    return cfg


def walk(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every dict within a part of a config, itself included, each with its dotted key."""
    if isinstance(value, Mapping):
        yield key, value
        for name, part in value.items():
            yield from walk(part, f'{key}.{name}')
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from walk(part, f'{key}.{i}')


def leaf_datasets(settings: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the data sets that a data set's settings wrap, or itself, each with its dotted key."""
    wrapped = [key for key in ('dataset', 'datasets') if key in settings]  # Repeat and MultiImageMix, Concat
    if not wrapped:
        yield settings, where
    for key in wrapped:
        for inner in settings[key] if isinstance(settings[key], list) else [settings[key]]:
            yield from leaf_datasets(inner, f'{where}.{key}')


def _described(path: Path, error: Exception) -> str:
    """Name the file and line of a config where an exception comes from, and what it says."""
    lines = [
        line for line in traceback.extract_tb(error.__traceback__)
        if line.filename.endswith('.py') and Path(line.filename).resolve() in _chain(path)
    ]  # fmt: skip
    file, number = (lines[-1].filename, lines[-1].lineno) if lines else (str(path), None)
    number = getattr(error, 'lineno', number)
    where = repr(file) if number is None else f'{file!r}, line {number}'
    return f'{where}: {type(error).__name__}: {" ".join(str(error).split())}'


def _syntax_error(path: Path) -> str | None:
    """Name the file and line of a config's first syntax error, which mmengine reports without them."""
    for file in _chain(path):
        try:
            ast.parse(file.read_text())
        except SyntaxError as error:
            return f'{str(file)!r}, line {error.lineno}: SyntaxError: {error.msg}'
        except (OSError, UnicodeDecodeError):
            continue
    return None


def _chain(path: Path) -> list[Path]:
    """List a config file and the files that it inherits from, as far as their ``_base_`` can be read."""
    found: list[Path] = []
    todo = [path.resolve()]
    while todo:
        file = todo.pop(0)
        if file not in found:
            found.append(file)
            todo += [(file.parent / base).resolve() for base in _bases(file)]
    return found


def _bases(file: Path) -> list[str]:
    try:
        statements = ast.parse(file.read_text()).body
        for statement in statements:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == '_base_':
                bases = ast.literal_eval(statement.value)
                return [bases] if isinstance(bases, str) else list(bases)
    except (OSError, SyntaxError, ValueError):  # not there, broken, or no literal
        pass
    return []


def _import_custom_modules(cfg: Config, name: str) -> None:
    settings = cfg.get('custom_imports') or {}
    modules = settings.get('imports') or []
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if settings.get('allow_failed_imports'):
                continue
            if error.name is None or not f'{module}.'.startswith(
                f'{error.name}.'
            ):  # a module that it imports
                raise ConfigError(f'config {name!r}: {_not_imported(module, error)}') from error
            top = module.partition('.')[0]
            local = error.name != top or os.path.exists(top) or os.path.exists(f'{top}.py')
            raise ConfigError(
                f'config {name!r}: custom_imports names {module!r}, which is not found. If it is in the '
                'folder you run in, begin the line with PYTHONPATH=.'
                + ('' if local else ' Else pip install its package')
            ) from error
        except ImportError as error:
            if not settings.get('allow_failed_imports'):
                raise ConfigError(f'config {name!r}: {_not_imported(module, error)}') from error


def _not_imported(module: str, error: ImportError) -> str:
    return f'custom_imports: {module!r} cannot be imported: {type(error).__name__}: {error}'
