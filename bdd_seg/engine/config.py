"""Config files, mmseg's own included."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import mmseg
from mmengine.config import Config
from mmengine.fileio import exists
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from bdd_seg.errors import ConfigError

_MMSEG_PREFIX = 'mmseg::'


def load_config(name: str | Path) -> Config:
    """Read a config file: a path, or ``mmseg::FOLDER/NAME.py`` for one that mmseg ships.

    Raises:
        ConfigError: There is no such file, a file that it inherits from is missing, or a module that it
            names cannot be imported.
    """
    path = Path(name)
    if str(name).startswith(_MMSEG_PREFIX):
        path = Path(mmseg.__file__).parent / '.mim' / 'configs' / str(name).removeprefix(_MMSEG_PREFIX)
    if not path.is_file():
        similar = get_close_matches(path.name, [p.name for p in path.parent.glob('*.py')], n=3)
        hint = f' Did you mean {" or ".join(similar)}?' if similar else ''
        raise ConfigError(f'config {str(name)!r} does not exist.{hint}')
    try:
        return Config.fromfile(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f'config {str(name)!r} inherits from a file that does not exist: {error}'
        ) from error
    except ImportError as error:
        raise ConfigError(f'config {str(name)!r}: {_import_problem(error)}') from error


def _import_problem(error: ImportError) -> str:
    """What is wrong with an import, with mmengine's errors around those of ``custom_imports`` removed."""
    prefix, cause = 'Failed to import ', error.__cause__
    if cause is None or not str(cause).startswith(prefix):  # the config itself imports
        return str(error)
    module, original = str(cause).removeprefix(prefix), cause.__context__
    if isinstance(original, ModuleNotFoundError) and f'{module}.'.startswith(f'{original.name}.'):
        return (
            f'custom_imports names {module!r}, which is not found. If it is in the folder you run in, begin '
            'the line with PYTHONPATH=.'
        )
    return f'custom_imports: {module!r} cannot be imported: {type(original).__name__}: {original}'


def check_datasets(cfg: Config, *dataloaders: str) -> None:
    """See before anything is built that the data sets of a config are there.

    Args:
        cfg: The whole config.
        *dataloaders: Which of its keys to look at, such as ``'train_dataloader'``.

    Raises:
        ConfigError: A folder is missing, holds no image, or the first image has no label map.
    """
    for key in dataloaders:
        if cfg.get(key) is not None:
            for settings, where in leaf_datasets(cfg[key].dataset, f'{key}.dataset'):
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
    except (OSError, AssertionError, TypeError) as error:  # mmseg's data sets assert that files are there
        missing = getattr(error, 'filename', None)
        problem = f'folder {str(missing)!r} does not exist' if missing else f'cannot be read ({error!r})'
        raise ConfigError(f'{where}: {problem}; {advice}') from error
    images = dataset.data_prefix.get('img_path')
    if not samples:
        raise ConfigError(f'{where}: no image ending in {dataset.img_suffix!r} in {str(images)!r}; {advice}')
    label = samples[0].get('seg_map_path')
    if label is not None and not exists(label, backend_args=dataset.backend_args):
        raise ConfigError(f'{where}: image {samples[0]["img_path"]!r} has no label map {label!r}')
