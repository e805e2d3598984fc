"""Run one step of a distillation on random images, and tell what was compared."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from bdd_seg.cli.summary import network_text, own_parameters, weighted_kind
from bdd_seg.distill.gradients import gradient_norm
from bdd_seg.distill.segmentor import SegDistiller
from bdd_seg.distill.settings import build, checked_teacher
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import class_names
from bdd_seg.runtime.upstream.checkpoints import find_checkpoint
from bdd_seg.teachers import MMSegTeacher, NetworkTeacher
from bdd_seg.teachers.network import input_bands
from bdd_seg.teachers.segmentors import fixed_input_size

_LONGEST_SIDE = 256  # of the images


class Trial:
    """One step of a config, without its data, and without weights that are still to be downloaded.

    Args:
        folder: Where random weights can be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._absent: str | None = None

    def weighted(self, teacher: Mapping[str, Any]) -> dict[str, Any]:
        """Return a teacher's settings, with random weights for an address from which nothing is here yet."""
        settings = dict(teacher)
        built = build(checked_teacher(settings), 'model.teacher')
        address = str(settings.get('checkpoint', ''))
        if not isinstance(built, MMSegTeacher) or not address.startswith(('http://', 'https://')):
            return settings
        if find_checkpoint(address) is None:
            self._absent = address
            network = _without_pretrained(built.model_config())
            network = revert_sync_batchnorm(MODELS.build(network))
            settings['checkpoint'] = str(self._folder / 'random.pth')
            torch.save(network.state_dict(), settings['checkpoint'])
        return settings

    def run(self, cfg: Config) -> list[str]:
        """Build the model of a config, run one step, and return lines that tell what it chose.

        Raises:
            ConfigError: It cannot be built, or a loss refuses its maps.
        """
        settings = {**_without_pretrained(cfg.model), 'teacher': self.weighted(cfg.model.teacher)}
        model = revert_sync_batchnorm(MODELS.build(settings))
        model.init_weights()
        model.train()
        hub = MessageHub.get_current_instance()
        hub.update_info('dataset_meta', {'classes': class_names(cfg.train_dataloader.dataset)})  # as a Runner
        try:
            losses = _loss_facts(model, *_random_batch(model, settings))
        finally:
            hub.pop_info('dataset_meta')
        facts = [
            ('student', network_text(model)),
            ('teacher', model.teacher.summary() if self._absent is None else model.teacher.describe()),
            *_input_facts(model.teacher),
            *losses,
        ]
        if self._absent is not None:
            facts.append(('weights', f'random for this step; a training downloads {self._absent}'))
        return [f'  {name:<11} {text}' for name, text in facts]


def _input_facts(teacher: Any) -> list[tuple[str, str]]:
    """Tell how the images for the teacher differ from the student's, and how its classes do."""
    facts = []
    if teacher.class_map is not None:
        facts.append(('classes', teacher.class_map.describe()))
    if isinstance(teacher, NetworkTeacher):
        changes = ['normalised as it was trained'] if teacher.renormalises else []
        size = teacher.fixed_size
        if size is not None:
            changes.append(f'resized to {size[0]}×{size[1]}')
        if teacher.input_channels is not None:
            changes.append(f'channels {teacher.input_channels}')
        facts.append(('its images', ', '.join(changes) or "the student's"))
    return facts


def _loss_facts(model: SegDistiller, inputs: Tensor, samples: list[SegDataSample]) -> list[tuple[str, str]]:
    """Run the step; tell of each loss its maps, its adapter, its value, and the weight of its gradient."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    handles = [
        loss.register_forward_hook(partial(_note_shapes, shapes, str(loss.loss_name)))
        for loss in model.distill_losses
    ]
    losses = model.loss(inputs, samples)
    for handle in handles:
        handle.remove()
    own, _ = model.parse_losses({key: loss for key, loss in losses.items() if not key.startswith('distill.')})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        own_norm = gradient_norm(own, parameters).item()
    except ConfigError:  # the student recomputes activations, which only hides these norms
        own_norm = 0.0
    facts = []
    for loss, student_tap, teacher_tap in model.comparisons:
        name = str(loss.loss_name)
        value = losses[f'distill.{name}']
        ours, theirs = shapes[name]
        maps = f"{student_tap} {ours} and the teacher's {teacher_tap} {theirs}"
        facts.append((name, f'{weighted_kind(loss)}, of {maps}{own_parameters(loss)}'))
        text = f'{value.item():.3g} here'
        if own_norm:
            ratio = gradient_norm(value, parameters).item() / own_norm
            text += f'; its gradient is {ratio:.2g} times that of the own loss'
        facts.append(('', text))
    return facts


def _note_shapes(
    shapes: dict[str, list[tuple[int, ...]]], name: str, _loss: nn.Module, maps: tuple[Tensor, ...], _: Any
) -> None:
    shapes[name] = [tuple(output.shape) for output in maps[:2]]


def _random_batch(model: SegDistiller, settings: Mapping[str, Any]) -> tuple[Tensor, list[SegDataSample]]:
    """Return two random images and samples with random labels.

    The images are as large as the crops but for a limit, unless the student takes those of one size only.
    """
    preprocessor = settings.get('data_preprocessor') or {}
    height, width = preprocessor.get('size') or (_LONGEST_SIDE, _LONGEST_SIDE)
    shrink = min(1.0, _LONGEST_SIDE / max(height, width))
    size = fixed_input_size(model) or (max(round(height * shrink), 32), max(round(width * shrink), 32))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, input_bands(model) or 3, *size, generator=generator)
    classes = max(model.num_classes, 2)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={'img_shape': size, 'ori_shape': size, 'pad_shape': size})
        labels = torch.randint(0, classes, (1, *size), generator=generator)
        sample.gt_sem_seg = PixelData(data=labels)
        sample.gt_edge_map = PixelData(data=(labels == 0).long())  # for PIDNet
        samples.append(sample)
    return inputs, samples


def _without_pretrained(settings: Any) -> Any:
    """Return settings of a network without the weights that its initialisation would fetch."""
    if isinstance(settings, list | tuple):
        return type(settings)(map(_without_pretrained, settings))
    if not isinstance(settings, Mapping):
        return settings
    kept = {
        key: None if key == 'pretrained' else _without_pretrained(value) for key, value in settings.items()
    }
    init = kept.get('init_cfg')
    if init is not None:
        # None where nothing remains, so that modules fall back on an initialisation of their own.
        rest = [
            one for one in (init if isinstance(init, list | tuple) else [init]) if 'checkpoint' not in one
        ]
        kept['init_cfg'] = rest or None
    return kept
