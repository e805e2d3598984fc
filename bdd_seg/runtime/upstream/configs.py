"""Read config files, those that mmseg and this package ship included.

Reason: mmengine's errors do not say which file of a chain of ``_base_`` is broken, a circular ``_base_`` ends
in a recursion, and ``hub.get_config('mmseg::…')`` installs OpenMMLab's release over the maintained build.
Test: tests/runtime/upstream/test_config_files.py, tests/cli/wrong_inputs/test_wrong_configs.py.
Goes when: ``Config.fromfile`` names file and line, and resolves ``mmseg::`` from the installed package.
"""

import ast
import importlib
import importlib.util
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, utils

from bdd_seg.errors import ConfigError, similar_to

_PACKAGES = ('bdd_seg', 'mmseg')


def apply() -> None:
    """Let ``_base_ = 'mmseg::…'`` find the maintained build, and ``_base_ = 'bdd_seg::…'`` this package.

    mmengine looks for a distribution called ``mmsegmentation``, and its hub installs that one over the
    maintained build where it is absent. Under its import name a package is found wherever it comes from. The
    parts that a config inherits in this way are built in the package's scope: see ``bdd_seg.registry``.
    """
    utils.MODULE2PACKAGE.update({package: package for package in _PACKAGES})


def load_config(name: str | Path) -> Config:
    """Read a config file: a path, or ``PACKAGE::FOLDER/NAME.py`` for one that mmseg or this package ships.

    Raises:
        ConfigError: There is no such file, it or a file that it inherits from is missing or broken, or a
            module that it names cannot be imported.
    """
    path = _shipped(str(name)) or Path(name)
    if not os.path.isfile(path):  # Path.is_file() has an exception for names that are too long
        if os.path.isdir(path):
            raise ConfigError(f'config {str(name)!r} is a folder. Give the file in it')
        siblings = path.parent.glob('*.py') if os.path.isdir(path.parent) else ()
        hint = similar_to(path.name, [sibling.name for sibling in siblings])
        raise ConfigError(f'config {str(name)!r} does not exist.{hint}')
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        hint = '. A checkpoint comes after its config' if path.suffix in ('.pth', '.pt') else ''
        raise ConfigError(f'config {str(name)!r} is no config file, which would end in .py{hint}')
    for lineage in _lineages(path):
        if lineage[-1] in lineage[:-1]:
            files = ' → '.join(repr(str(file)) for file in lineage)
            raise ConfigError(f'config {str(name)!r} inherits from itself: {files}. Look at their _base_')
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is a program, in which anything can go wrong
        raise ConfigError(f'config {_problem(path, error)}') from error
    _import_custom_modules(cfg, str(name))
    if 'data_preprocessor' in cfg and 'type' in (cfg.get('model') or {}):  # as a Runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
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


def type_name(settings: Mapping[str, Any]) -> str:
    """Return the name of the class that settings are for, without a scope such as ``mmseg.``."""
    kind = settings.get('type')  # a name, or the class itself
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def leaf_datasets(settings: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the data sets that a data set's settings wrap, or itself, each with its dotted key.

    Images without labels get the pipeline of the labelled ones beside them written into their settings if
    they have none, since whatever changes pipelines must change both.
    """
    # Repeat, MultiImageMix and WithUnlabelled; Concat; WithUnlabelled.
    wrapped = [key for key in ('dataset', 'datasets', 'unlabelled') if key in settings]
    if not wrapped:
        yield settings, where
    for key in wrapped:
        for inner in settings[key] if isinstance(settings[key], list) else [settings[key]]:
            if key == 'unlabelled':
                labelled, _ = next(leaf_datasets(settings['dataset'], where))
                if 'pipeline' in labelled:
                    inner.setdefault('pipeline', labelled['pipeline'])
            yield from leaf_datasets(inner, f'{where}.{key}')


def _problem(path: Path, error: Exception) -> str:
    """Name the file and line of a config where an exception comes from, and what is wrong there."""
    lineages = [*_lineages(path)]
    shown = {path.resolve(): str(path)}  # the other files have no shorter name

    def show(file: Path) -> str:
        return repr(shown.get(file, str(file)))

    if isinstance(error, FileNotFoundError):
        for lineage in lineages:
            if len(lineage) > 1 and not lineage[-1].exists():
                file, absent = map(show, lineage[-2:])
                return f'{file} inherits from a file that does not exist: {absent}. Look at its _base_'
    files = {lineage[-1] for lineage in lineages}
    if isinstance(error, SyntaxError):  # mmengine parses the text without the file's name
        for broken in sorted(files):
            found = _syntax_error(broken)
            if found is not None:
                return f'{show(broken)}, line {found.lineno}: SyntaxError: {found.msg}'
    places = [
        (Path(line.filename).resolve(), line.lineno) for line in traceback.extract_tb(error.__traceback__)
    ]
    origin, number = next((place for place in reversed(places) if place[0] in files), (path.resolve(), None))
    number = getattr(error, 'lineno', number)  # a JSON file has no line of code
    where = show(origin) if number is None else f'{show(origin)}, line {number}'
    return f'{where}: {type(error).__name__}: {" ".join(str(error).split())}'


def _lineages(path: Path) -> Iterator[tuple[Path, ...]]:
    """Yield each file that a config inherits from, itself first, after the files that lead to it.

    A file that leads to itself ends its lineage. What ``_base_`` does not give as a literal is left out.
    """
    todo: list[tuple[Path, ...]] = [(path.resolve(),)]
    while todo:
        lineage = todo.pop(0)
        yield lineage
        if lineage[-1] not in lineage[:-1]:
            todo += [(*lineage, base) for base in _bases(lineage[-1])]


def _bases(file: Path) -> list[Path]:
    """List the files that a config file names in its ``_base_``."""
    try:
        statements = ast.parse(file.read_text()).body
    except (OSError, SyntaxError, ValueError):  # not there, broken, or no text
        return []
    values = [
        statement.value
        for statement in statements
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == '_base_'
    ]
    try:
        bases = [ast.literal_eval(value) for value in values]
    except ValueError:
        return []
    names = [name for base in bases for name in ([base] if isinstance(base, str) else base)]
    return [_resolve(name, file) for name in names]


def _resolve(base: str, file: Path) -> Path:
    """Return the file that a ``_base_`` names: relative to the config, or in a package as ``mmseg::…``."""
    return (_shipped(base) or file.parent / base).resolve()


def _shipped(name: str) -> Path | None:
    """Return the file that ``PACKAGE::FOLDER/NAME.py`` stands for, None where no such package is named."""
    package, colons, rest = name.partition('::')
    spec = importlib.util.find_spec(package) if colons and package.isidentifier() else None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / '.mim' / 'configs' / rest


def _syntax_error(file: Path) -> SyntaxError | None:
    try:
        ast.parse(file.read_text())
    except SyntaxError as error:
        return error
    except (OSError, ValueError):
        pass
    return None


def _import_custom_modules(cfg: Config, name: str) -> None:
    """Import the modules that a config names.

    Raises:
        ConfigError: One is not found, or cannot be imported, and is not allowed to fail.
    """
    settings = cfg.get('custom_imports') or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f'config {name!r}: custom_imports must be dict(imports=[...]), got {settings!r}')
    modules = settings.get('imports') or []
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            if not settings.get('allow_failed_imports'):
                raise ConfigError(f'config {name!r}: {_import_problem(module, error)}') from error


def _import_problem(module: str, error: ImportError) -> str:
    is_absent = isinstance(error, ModuleNotFoundError) and error.name is not None
    if not (is_absent and f'{module}.'.startswith(f'{error.name}.')):  # it is there, and imports what is not
        return f'custom_imports: {module!r} cannot be imported: {type(error).__name__}: {error}'
    top = module.partition('.')[0]
    is_local = error.name != top or os.path.exists(top) or os.path.exists(f'{top}.py')
    return (
        f'custom_imports names {module!r}, which is not found. If it is in the folder you run in, begin the '
        'line with PYTHONPATH=.' + ('' if is_local else ' Else pip install its package')
    )
