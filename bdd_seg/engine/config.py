"""Config files, mmseg's own included."""

import inspect
import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import mmseg
from mmengine.config import Config
from mmengine.fileio import exists
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, OPTIMIZERS

from bdd_seg.engine.explain import naming_the_cause, similar_to
from bdd_seg.errors import ConfigError

_MMSEG_PREFIX = 'mmseg::'

# What a config may say to mmengine's Runner and to the tools: its arguments, and what they look up by name.
KNOWN_KEYS = {
    *inspect.signature(Runner).parameters,
    *inspect.signature(FlexibleRunner).parameters,
    *('activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'resource_limit', 'runner_type', 'sync_bn'),
    *('tta_model', 'tta_pipeline'),
}

_MODES = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}


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
        return Config.fromfile(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f'config {str(name)!r} inherits from a file that does not exist: {error}'
        ) from error
    except ImportError as error:
        raise ConfigError(f'config {str(name)!r}: {_import_problem(error)}') from error
    except RecursionError as error:
        raise ConfigError(f'config {str(name)!r} inherits from itself: look at its _base_') from error
    except Exception as error:  # a config is a program, in which anything can go wrong
        raise ConfigError(f'config {_origin(error, path)}: {type(error).__name__}: {_line(error)}') from error


def _origin(error: Exception, path: Path) -> str:
    """The file in which a config went wrong, itself or one that it inherits from, and the line."""
    file, line = str(path), getattr(error, 'lineno', None)
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code is Config._file2dict.__code__:
            file = str(frame.f_locals['filename'])
        elif frame.f_code.co_filename == file:
            line = number
    return repr(file) if line is None else f'{file!r}, line {line}'


def _line(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return ' '.join(text.split())


def _import_problem(error: ImportError) -> str:
    """What is wrong with an import, with mmengine's errors around those of ``custom_imports`` removed."""
    prefix, cause = 'Failed to import ', error.__cause__
    if cause is None or not str(cause).startswith(prefix):  # the config itself imports
        return str(error)
    module, original = str(cause).removeprefix(prefix), cause.__context__
    if isinstance(original, ModuleNotFoundError) and f'{module}.'.startswith(f'{original.name}.'):
        top = module.partition('.')[0]
        local = original.name != top or os.path.exists(top) or os.path.exists(f'{top}.py')
        return (
            f'custom_imports names {module!r}, which is not found. If it is in the folder you run in, begin '
            'the line with PYTHONPATH=.' + ('' if local else ' Else pip install its package')
        )
    return f'custom_imports: {module!r} cannot be imported: {type(original).__name__}: {original}'


def check_config(cfg: Config, mode: str) -> None:
    """See before anything is built that a config has what is needed, and nothing that nobody reads.

    A name like that of a key which is there, too, may be the user's own, and is warned of.

    Args:
        cfg: The whole config.
        mode: What it is to be used for, ``'train'`` or ``'test'``.

    Raises:
        ConfigError: A key is missing, misspelt, of another kind, or a number that cannot be.
    """
    for key, value in cfg.items():
        if key not in KNOWN_KEYS and isinstance(value, dict | list):
            similar = get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.9)
            if similar:
                problem = f"nobody reads the config's {key}. Did you mean {similar[0]}?"
                if cfg.get(similar[0]) is None:
                    advice = f'If it is a name of your own, take another, or pass --cfg-options {key}=None'
                    raise ConfigError(f'{problem} {advice}')
                print_log(problem, 'current', logging.WARNING)
    for key in ('model', *_MODES[mode]):
        if cfg.get(key) is None:
            hint = similar_to(key, {*cfg} - KNOWN_KEYS)
            raise ConfigError(f'the config has no {key}, needed to {mode}.{hint}')
    for keys in _MODES.values():
        lacking = [key for key in keys if cfg.get(key) is None]
        if 0 < len(lacking) < len(keys):
            raise ConfigError(
                f'the config has no {" and no ".join(lacking)}: {", ".join(keys)} belong together. Give '
                'all of them, or set all to None'
            )
    for key in ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'optim_wrapper'):
        _check_dict(cfg.get(key), key)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(key) is not None:
            if 'dataset' not in cfg[key]:
                raise ConfigError(f'{key} has no dataset')
            _check_dict(cfg[key].dataset, f'{key}.dataset')
    _check_dict(cfg.get('train_cfg'), 'train_cfg')
    for key in ('max_iters', 'max_epochs', 'val_interval'):
        value = (cfg.get('train_cfg') or {}).get(key, 1)
        if key == 'val_interval' and value == float('inf'):  # no validation before the end
            continue
        if not isinstance(value, int | float) or value < 1 or value % 1:  # 8e4 is a float
            raise ConfigError(f'train_cfg.{key} must be a whole number from 1 on, got {value!r}')
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
    if optimizer is not None:  # several have keys of their own
        _check_dict(optimizer, 'optim_wrapper.optimizer')
        name = optimizer.get('type')
        if isinstance(name, str) and OPTIMIZERS.get(name) is None:  # mmengine takes the None for a class
            hint = similar_to(name, {*OPTIMIZERS.module_dict, *OPTIMIZERS.parent.module_dict})
            raise ConfigError(f'optim_wrapper.optimizer: no optimizer is called {name!r}.{hint}')


def _check_dict(value: Any, key: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f'{key} must be a dict, got {value!r}')


def check_datasets(cfg: Config, *dataloaders: str) -> None:
    """See before anything is built that the data sets of a config are there.

    Args:
        cfg: The whole config.
        *dataloaders: Which of its keys to look at, such as ``'train_dataloader'``.

    Raises:
        ConfigError: A folder is missing, holds no image, or an image has no label map.
    """
    for key in dataloaders:
        if cfg.get(key) is not None:
            for settings, where in leaf_datasets(cfg[key].dataset, f'{key}.dataset'):
                with naming_the_cause({}, f'{where}: '):
                    _check_dataset(settings, where)


def leaf_datasets(settings: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The data sets that a data set's settings wrap, or itself, each with where in the config it stands."""
    wrapped = [key for key in ('dataset', 'datasets') if key in settings]  # Repeat and MultiImageMix, Concat
    if not wrapped:
        yield settings, where
    for key in wrapped:
        for inner in settings[key] if isinstance(settings[key], list) else [settings[key]]:
            yield from leaf_datasets(inner, f'{where}.{key}')


def _check_dataset(settings: dict[str, Any], where: str) -> None:
    kind = DATASETS.get(settings['type']) if isinstance(settings.get('type'), str) else None
    if kind is None or not issubclass(kind, BaseSegDataset):
        return
    advice = f'put the data set there, or pass --cfg-options {where}.data_root=FOLDER'
    try:
        dataset = DATASETS.build({**settings, 'lazy_init': True, 'pipeline': []})
        samples = dataset.load_data_list()
    except FileNotFoundError as error:
        raise ConfigError(f'{where}: folder {str(error.filename)!r} does not exist; {advice}') from error
    except OSError as error:
        raise ConfigError(f'{where}: {str(error.filename)!r}: {error.strerror}; {advice}') from error
    except AssertionError as error:  # mmseg's data sets assert that files are there
        raise ConfigError(f'{where}: cannot be read ({error!r}); {advice}') from error
    images = dataset.data_prefix.get('img_path')
    if not samples:
        raise ConfigError(f'{where}: no image ending in {dataset.img_suffix!r} in {str(images)!r}; {advice}')
    if dataset.backend_args is not None:  # it may be slow to ask
        samples = samples[:1]
    lacking = [
        sample
        for sample in samples
        if sample.get('seg_map_path') is not None
        and not exists(sample['seg_map_path'], backend_args=dataset.backend_args)
    ]
    if lacking:
        raise ConfigError(
            f'{where}: image {lacking[0]["img_path"]!r} has no label map {lacking[0]["seg_map_path"]!r}'
            + (f', and so {len(lacking) - 1} others' if len(lacking) > 1 else '')
        )
