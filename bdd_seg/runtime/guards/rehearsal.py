"""Try the data pipelines on a few samples before training begins."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.models.decode_heads import PIDHead, VPDDepthHead
from mmseg.registry import HOOKS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.seeding import random_state_kept
from bdd_seg.runtime.upstream.models import unwrapped

# Heads that learn from another map than the labels, the map, and the transform that makes it.
_MAPS = {PIDHead: ('gt_edge_map', 'GenerateEdge'), VPDDepthHead: ('gt_depth_map', 'LoadDepthAnnotation')}


@HOOKS.register_module()
class RehearsalHook(Hook):
    """Takes a few samples through the data pipelines and the model's ``data_preprocessor``.

    What would end the training in its first batch, or hours later in its first validation, ends it before.
    The samples are of different sizes if the image files are. They come from a copy of the data set, and the
    random state is put back afterwards, so the training is the same as without. A data set that cannot be
    copied is left out. The cost is that of loading these samples. ``default_hooks.rehearsal=None`` saves it.

    Args:
        num_samples: The number of samples of the training data, and of validation data in batches.

    Raises:
        ConfigError: Before the first iteration: images in a batch differ in size, or a head learns from a map
            that the pipeline does not make; or what transforms raise, such as an image that cannot be read.
    """

    priority = 'VERY_LOW'  # before the summary, which opens the console

    def __init__(self, num_samples: int = 4) -> None:
        self.num_samples = num_samples

    def before_train(self, runner: Runner) -> None:
        """Try the training data, and the validation data if it comes in batches."""
        model = unwrapped(runner.model)
        with random_state_kept():
            self._try(runner.train_dataloader, 'train_dataloader', model, training=True)
            if runner.val_loop is not None and (runner.val_dataloader.batch_size or 1) > 1:
                self._try(runner.val_dataloader, 'val_dataloader', model, training=False)

    def _try(self, loader: DataLoader, key: str, model: Any, training: bool) -> None:
        try:
            dataset: Any = copy.deepcopy(loader.dataset)  # transforms may count what they do
        except Exception:  # of any kind, such as one that holds an open file
            return
        if not hasattr(dataset, '__len__') or not hasattr(dataset, '__getitem__'):  # a stream
            return
        samples = [dataset[i] for i in _of_different_sizes(dataset, self.num_samples)]
        if training:
            _check_maps(model, samples)
        size = loader.batch_size or 1
        for start in range(0, len(samples), size):
            batch = samples[start : start + size]
            try:
                model.data_preprocessor(loader.collate_fn(batch), training)
            except Exception as error:
                problem = _sizes_differ(batch)
                if problem is None:
                    raise
                if training:
                    advice = (
                        "Crop them, by dict(type='RandomCrop', crop_size=...) before PackSegInputs, or pad "
                        'them, by model.data_preprocessor.size_divisor=32 with size=None'
                    )
                else:
                    advice = f'mmseg pads no images in validation: write {key}.batch_size=1'
                raise ConfigError(f'{key}: {problem} in a batch of {size}. {advice}') from error


def _of_different_sizes(dataset: Any, number: int) -> list[int]:
    """Return indices of samples spread over a data set, those whose image files differ in size first."""
    spread = np.unique(np.linspace(0, len(dataset) - 1, 16 * number).round().astype(int)).tolist()
    sizes = {i: _file_size(dataset, i) for i in spread} if hasattr(dataset, 'get_data_info') else {}
    first = {size: i for i, size in reversed(sizes.items())}  # the first sample of each size
    ordered = [first[size] for size in sorted(first, key=math.prod)]
    chosen = dict.fromkeys([*ordered[:1], *ordered[:0:-1], *spread])  # the smallest and the largest first
    return [*chosen][:number]


def _file_size(dataset: Any, index: int) -> tuple[int, int]:
    """Return width and height of an image by its file's header, (0, 0) where Pillow finds none."""
    try:
        with Image.open(dataset.get_data_info(index)['img_path']) as image:
            return image.size
    except (OSError, LookupError, ValueError, AttributeError, Image.DecompressionBombError):
        return 0, 0


def _check_maps(model: nn.Module, samples: Sequence[Any]) -> None:
    for name, head in model.named_modules():
        for field, transform in [needed for kind, needed in _MAPS.items() if isinstance(head, kind)]:
            for sample in (one['data_samples'] for one in samples if 'data_samples' in one):
                if 'gt_sem_seg' in sample and field not in sample:
                    raise ConfigError(
                        f'model.{name} ({type(head).__name__}) learns from {field}, which the data pipeline '
                        f"of train_dataloader does not make. Add dict(type='{transform}') to it, before "
                        'PackSegInputs'
                    )


def _sizes_differ(batch: Sequence[Any]) -> str | None:
    """Return a text on two samples whose images differ in size, None if there are none."""
    shapes: dict[str, str | None] = {}  # height×width → image
    for sample in batch:
        if isinstance(sample, Mapping) and isinstance(sample.get('inputs'), torch.Tensor):
            path = getattr(sample.get('data_samples'), 'img_path', None)
            shapes.setdefault('×'.join(map(str, sample['inputs'].shape[-2:])), path)
    if len(shapes) < 2:
        return None
    listed = ' and '.join(f'{shape} ({path})' for shape, path in [*shapes.items()][:2])
    return f'the data pipeline makes images of different sizes, such as {listed},'
