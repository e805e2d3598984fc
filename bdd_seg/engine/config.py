"""Config files, mmseg's own included."""

from difflib import get_close_matches
from pathlib import Path

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
        ConfigError: There is no such file, or a file that it inherits from is missing.
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


def check_datasets(cfg: Config, *dataloaders: str) -> None:
    """See before anything is built that the data sets of a config are there.

    Args:
        cfg: The whole config.
        *dataloaders: Which of its keys to look at, such as ``'train_dataloader'``.

    Raises:
        ConfigError: A folder is missing, holds no image, or the first image has no label map.
    """
    for key in dataloaders:
        settings = (cfg.get(key) or {}).get('dataset')
        if settings is None or not _is_seg_dataset(settings.type):
            continue  # wrappers of data sets, and other kinds of them, check themselves
        dataset = DATASETS.build({**settings, 'lazy_init': True, 'pipeline': []})
        advice = f'put the data set there, or pass --cfg-options {key}.dataset.data_root=FOLDER'
        images = dataset.data_prefix.get('img_path')
        try:
            samples = dataset.load_data_list()
        except FileNotFoundError as error:
            raise ConfigError(f'{key}: folder {str(images)!r} does not exist; {advice}') from error
        if not samples:
            raise ConfigError(
                f'{key}: no image ending in {dataset.img_suffix!r} in {str(images)!r}; {advice}'
            )
        label = samples[0].get('seg_map_path')
        if label is not None and not exists(label, backend_args=dataset.backend_args):
            raise ConfigError(f'{key}: image {samples[0]["img_path"]!r} has no label map {label!r}')


def _is_seg_dataset(kind: str | type) -> bool:
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    return cls is not None and issubclass(cls, BaseSegDataset)
