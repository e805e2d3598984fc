"""Tell of classes that never occur in the label maps of the training data."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmseg.registry import TRANSFORMS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import build_lazily
from bdd_seg.runtime.guards.heads import heads_of
from bdd_seg.runtime.guards.settings import class_of
from bdd_seg.runtime.upstream.configs import leaf_datasets, walk

MAPS = 64
"""The number of label maps that are looked at, unless they raise a suspicion."""

_LIBRARIES = frozenset({'mmcv', 'mmseg', 'bdd_seg'})


def check_labels_occur(cfg: Config) -> None:
    """Look at some label maps of the training data, and compare what occurs with the classes.

    They are spread evenly over the data sets. Looking ends when each class was seen, or after :data:`MAPS`
    label maps, but not before a second class was seen where other values are. Where some classes were not
    seen, and pixels are ignored, a warning says which. Data sets are left out that load no label maps from
    files, that have no two classes, or whose pipeline has a transform of the user's own, which may change the
    labels.

    Args:
        cfg: The whole config.

    Raises:
        ConfigError: No class occurs, or only one, while other values do, as in masks of 0 and 255. From a
            teacher a student may learn where all pixels are ignored. Or a label map cannot be read.
    """
    distils = bool(cfg.model.get('teacher'))
    ignored = next((head.ignore_index for head in heads_of(cfg.model)), 255)
    maps = [
        (dataset, load, i)
        for settings, _ in leaf_datasets(cfg.train_dataloader.dataset, '')
        for dataset, load in _loaded(settings)
        for i in range(len(dataset))
    ]
    if not maps:
        return
    names = maps[0][0].metainfo['classes']
    unseen = {i: str(name) for i, name in enumerate(names) if i != ignored}
    number = len(unseen)
    others: dict[int, str] = {}  # a value that is no class → the file where it was first seen
    looked_at = 0

    def nothing_to_learn() -> bool:
        seen = number - len(unseen)
        only_ignored = not seen and others.keys() == {ignored}
        return bool(others) and seen < 2 <= number and not (distils and only_ignored)

    spread = np.unique(np.linspace(0, len(maps) - 1, MAPS).round().astype(int)).tolist()
    for place in dict.fromkeys([*spread, *range(len(maps))]):
        if not unseen or (looked_at >= MAPS and not nothing_to_learn()):
            break
        dataset, load, i = maps[place]
        sample = load(dataset.get_data_info(i))
        looked_at += 1
        for value in map(int, np.unique(sample['gt_seg_map'])):
            if value == ignored or not 0 <= value < len(names):
                others.setdefault(value, sample['seg_map_path'])
            unseen.pop(value, None)
    if not unseen or not others:
        return
    values = ', '.join(f'{value} (ignored)' if value == ignored else str(value) for value in sorted(others))
    listed = ', '.join(f'{name} ({i})' for i, name in [*unseen.items()][:5])
    listed += f' and {len(unseen) - 5} more' * (len(unseen) > 5)
    found = (
        f'train_dataloader.dataset: in {looked_at} of {len(maps)} label maps these classes do not occur: '
        f'{listed}. Other values do: {values}, as in {next(iter(others.values()))!r}'
    )
    if nothing_to_learn():
        raise ConfigError(
            f'{found}. There is nothing to tell apart: write the classes into the label maps as 0 to '
            f'{len(names) - 1}, or switch this check off by check_data=False'
        )
    print_log(f'{found}. Are these classes rare, or written as another value?', 'current', logging.WARNING)


def _loaded(settings: Mapping[str, Any]) -> Iterator[tuple[BaseDataset, Any]]:
    """Yield the data set of some settings with the transform that loads its label maps, if it has both."""
    kinds = [
        (part, kind)
        for _, part in walk(settings.get('pipeline', ()), '')
        if (kind := class_of(part, TRANSFORMS)) is not None
    ]
    loading = [part for part, kind in kinds if issubclass(kind, LoadAnnotations)]
    if not loading or any(kind.__module__.partition('.')[0] not in _LIBRARIES for _, kind in kinds):
        return
    dataset = build_lazily(settings)
    if dataset is None or len(dataset.metainfo.get('classes') or ()) < 2:
        return
    dataset.full_init()
    if len(dataset) and dataset.get_data_info(0).get('seg_map_path') is not None:
        yield dataset, TRANSFORMS.build({'type': 'CheckedLoading', 'transform': loading[0]})
