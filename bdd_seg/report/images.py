"""The labelled images on which the networks of a report are compared."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS
from torch.utils.data import DataLoader, Subset

from bdd_seg.deploy.about import colours_of
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.guards.data import check_data, without_checks
from bdd_seg.runtime.upstream.configs import leaf_datasets


class ValidationSet:
    """The labelled images on which networks are compared.

    Args:
        cfg: The whole config. Its ``val_dataloader`` counts, else its ``test_dataloader``.
        most: Number of images at most, spread evenly over the set; all by default.

    Attributes:
        dataset: The data set.
        numbers: Positions of the images in it, M of them.
        paths: The files of the images.
        classes: Names of the C classes.
        palette: Their colours (red, green, blue).
        ignore_index: The label that does not count.

    Raises:
        ConfigError: The config has no such data set, or its images or labels are not there.
    """

    def __init__(self, cfg: Config, most: int | None = None) -> None:
        key = 'val' if cfg.get('val_dataloader') is not None else 'test'
        if cfg.get(f'{key}_dataloader') is None:
            raise ConfigError(
                f'{cfg.filename} has no val_dataloader, and networks are compared on its images. Give the '
                'config of one that has it: --config CONFIG.py'
            )
        settings = Config({'test_dataloader': cfg[f'{key}_dataloader'].to_dict()})
        settings.test_evaluator = cfg.get(f'{key}_evaluator')
        self._workers = int(settings.test_dataloader.get('num_workers') or 0)
        self._where = f'{key}_dataloader of {cfg.filename}'
        metrics = settings.test_evaluator
        first = metrics[0] if isinstance(metrics, list) and metrics else metrics
        self.ignore_index = int((first or {}).get('ignore_index', 255))
        leaves = leaf_datasets(settings.test_dataloader.dataset, '')
        self._leaves = [without_checks(leaf) for leaf, _ in leaves]
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
            check_data(settings, 'test')
            self.dataset = self._build(settings.test_dataloader.dataset)
            meta = self.dataset.metainfo
            classes = meta.get('classes')
            if not classes:
                raise ConfigError(f'{self._where}: the data set names no classes (metainfo.classes)')
            self.classes = [str(name) for name in classes]
            if len(self.classes) == 1:  # one class has a background, too
                self.classes = ['background', *self.classes]
            self.palette = [*colours_of(meta.get('palette'), len(self.classes))]
            count = min(len(self.dataset), most or len(self.dataset))
            self.numbers = [number * len(self.dataset) // count for number in range(count)]
            infos = [self.dataset.get_data_info(number) for number in self.numbers]
        self.paths = [str(info.get('img_path', number)) for number, info in enumerate(infos)]
        self._check_files(infos)

    def _build(self, settings: dict[str, Any]) -> Any:
        advice = (
            'Paths in a config begin at the folder in which its training ran: run there, or give --config '
            'CONFIG.py with the images'
        )
        try:
            dataset = DATASETS.build(settings)
        except (OSError, AssertionError) as error:  # mmseg's data sets assert that files are there
            name = getattr(error, 'filename', None) or first_line(error)
            raise ConfigError(f'{self._where}: {str(name)!r} cannot be found. {advice}') from error
        if len(dataset) == 0:
            raise ConfigError(f'{self._where}: there is no image. {advice}')
        return dataset

    def _check_files(self, infos: Sequence[dict[str, Any]]) -> None:
        for info in infos:
            if 'img_path' in info and info.get('seg_map_path') is None:
                raise ConfigError(
                    f'{self._where}: image {info["img_path"]!r} has no labels, and without them nothing '
                    'can be scored. Give a config with a labelled val_dataloader: --config CONFIG.py'
                )

    def loader(self, done: int = 0) -> DataLoader:
        """Return batches of one image each, from the ``done``-th on."""
        subset = Subset(self.dataset, self.numbers[done:])
        workers = min(self._workers, len(subset), len(os.sched_getaffinity(0)))
        return DataLoader(subset, num_workers=workers, collate_fn=pseudo_collate)

    def label(self, data: dict[str, Any]) -> np.ndarray:
        """Return the label map (H, W) of a batch of one image.

        Raises:
            ConfigError: It has none, or a class beyond those of the data set.
        """
        (sample,) = data['data_samples']
        name = sample.get('img_path', 'an image')
        if 'gt_sem_seg' not in sample:
            raise ConfigError(
                f'{self._where}: {name!r} comes without labels. Is LoadAnnotations in its pipeline?'
            )
        label = sample.gt_sem_seg.data.squeeze(0).cpu().numpy().astype(np.int64)
        highest = label[label != self.ignore_index].max(initial=0)
        if highest >= len(self.classes):
            raise ConfigError(
                f'{self._where}: {name!r} has the label {highest}, and the data set has {len(self.classes)} '
                f'classes. Is it to be ignored (ignore_index, now {self.ignore_index})?'
            )
        return label

    def stamp(self) -> list[Any]:
        """Return what tells this set from another one.

        These are the files with size and time, the classes, the ignored label, and the settings of the data
        sets: their type, pipeline, ``reduce_zero_label``, ``metainfo``.
        """
        files = []
        for number, path in zip(self.numbers, self.paths, strict=True):
            labels = str(self.dataset.get_data_info(number).get('seg_map_path'))
            files.append([path, *file_stamp(path), *file_stamp(labels)])
        return [self.classes, self.ignore_index, self._leaves, files]

    def describe(self) -> str:
        """Return a few words: how many images of which data set."""
        total = len(self.dataset)
        count = f'{total}' if len(self.numbers) == total else f'{len(self.numbers)} of {total}'
        folder = os.path.normpath(os.path.commonpath([os.path.dirname(path) for path in self.paths]))
        return f'{count} images of {type(self.dataset).__name__}, {folder}'


def file_stamp(path: str | Path) -> list[int]:
    """Return size and time of change of a file, nothing for what is no local file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def check_same_images(first: ValidationSet, other: ValidationSet, names: tuple[str, str]) -> None:
    """Check that two networks are evaluated on the same images and classes.

    Args:
        first: The images of one.
        other: The images of the other.
        names: Both networks.

    Raises:
        ConfigError: They are not.
    """
    if first.classes != other.classes:
        pairs = zip([*first.classes, ''], [*other.classes, ''], strict=False)
        one, two = next((pair for pair in pairs if pair[0] != pair[1]), ('', ''))
        raise ConfigError(
            f'{names[0]} and {names[1]} cannot be compared: their validation sets have {len(first.classes)} '
            f'and {len(other.classes)} classes, the first that differ are {one!r} and {two!r}'
        )
    if [*map(_real, first.paths)] != [*map(_real, other.paths)]:
        raise ConfigError(
            f'{names[0]} and {names[1]} cannot be compared: the one is validated on {first.describe()}, the '
            f'other on {other.describe()}. Name the images for all of them: --config CONFIG.py'
        )


def _real(path: str) -> str:
    return os.path.realpath(path)
