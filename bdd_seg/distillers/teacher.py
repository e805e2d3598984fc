"""The teacher: everything about it, in one place, outside the student's modules."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MessageHub, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models import BaseSegmentor
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.distillers.tap import Tap, default_tap
from bdd_seg.engine.checkpoint import load_checkpoint
from bdd_seg.engine.config import load_config
from bdd_seg.errors import ConfigError

_UNUSED = 'auxiliary_head'
"""Serves a network's own training only, so teachers are built without it."""


@MODELS.register_module()
class FrozenTeacher:
    """A trained network that answers, and is invisible to everything else.

    Deliberately not an ``nn.Module``: an attribute of this type appears in no ``state_dict()``,
    ``parameters()``, optimizer, DDP or EMA copy. Copying or pickling copies the settings, not the network.

    Args:
        config: The teacher's config: a path, ``mmseg::FOLDER/NAME.py``, or a dict (a whole config or
            its ``model``).
        checkpoint: Its weights: a path or an http(s) URL.
        check_class_names: Whether class names in the checkpoint must be those of the student's data set.
            Switch off where the same classes merely have other names.
    """

    def __init__(
        self, config: str | Path | dict, checkpoint: str | Path, check_class_names: bool = True
    ) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.check_class_names = check_class_names
        self.model: BaseSegmentor | None = None
        self.logits_tap = ''
        self._taps: list[str] = []
        self._class_names: tuple[str, ...] | None = None
        self._data_checked = False
        self._student_preprocessor: nn.Module | None = None
        self._watch: _GuessWatch | None = None  # None again once it has seen its batches

    def __getstate__(self) -> dict[str, Any]:
        settings = FrozenTeacher(self.config, self.checkpoint, self.check_class_names)
        return vars(settings)

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Build the network, load its weights, and check that it can teach ``student``.

        Draws no random numbers, so that the student's run is the one it would be without a teacher.

        Args:
            student: The mmseg segmentor that will learn.
            taps: Dotted names of the modules whose outputs are wanted, None for the logits.

        Raises:
            ConfigError: The config or checkpoint is missing or broken, weights do not fit the network,
                a tap names no module, or teacher and student predict different numbers of classes.
        """
        with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope('mmseg'):
            model = revert_sync_batchnorm(MODELS.build(self._model_config()))
        if model.out_channels != student.out_channels:
            raise ConfigError(
                f'the teacher ({self._where()}) predicts {model.out_channels} classes, the student '
                f'{student.out_channels}. Teacher and student must be trained for the same classes'
            )
        self._class_names = _load_weights(model, self.checkpoint, self._where())
        self.model = model.eval().requires_grad_(False)
        self.logits_tap = default_tap(model)
        self._taps = sorted({tap or self.logits_tap for tap in taps})
        Tap(model, self._taps)
        if self.logits_tap in dict(model.named_modules()):  # for the accuracy, wanted or not
            self._taps = sorted({self.logits_tap, *self._taps})
        same_input = _same_input(student.data_preprocessor, model.data_preprocessor)
        self._student_preprocessor = None if same_input else student.data_preprocessor
        self._watch = _GuessWatch(self._where())
        self._data_checked = False

    def __call__(self, inputs: Tensor) -> dict[str, Tensor]:
        """Outputs of the tapped modules, and the logits.

        Args:
            inputs: (N, 3, H, W) images as the student receives them. They are normalised anew where the
                teacher was trained with another normalisation. The teacher follows them to their device
                and dtype.

        Returns:
            Name → output tensor, without gradient.
        """
        assert self.model is not None, 'build() comes first'
        weight = next(self.model.parameters())
        if (weight.device, weight.dtype) != (inputs.device, inputs.dtype):
            self.model.to(inputs.device, inputs.dtype)
        # SegNeXt's head draws random numbers even in eval mode: let them be the same ones each time,
        # and leave the student's alone.
        with torch.random.fork_rng(devices=[]), torch.no_grad(), Tap(self.model, self._taps) as outputs:
            torch.default_generator.manual_seed(0)
            if self._student_preprocessor is not None:
                inputs = renormalise(inputs, self._student_preprocessor, self.model.data_preprocessor)
            self.model(inputs, mode='tensor')
        return outputs

    def accuracy(self, logits: Tensor, seg_label: Tensor, ignore_index: int) -> Tensor:
        """Pixel accuracy at the logits' resolution; warns once where it is no better than guessing.

        Args:
            logits: (N, C, h, w), the teacher's.
            seg_label: (N, H, W) class indices.
            ignore_index: The label that does not count.

        Returns:
            The accuracy in percent, shape (1,).
        """
        label = resize(seg_label[:, None].float(), logits.shape[2:], mode='nearest')[:, 0].long()
        result = accuracy(logits, label, ignore_index=ignore_index)
        if self._watch is not None:
            self._watch.update(result, label[label != ignore_index], logits.shape[1])
            self._watch = None if self._watch.done else self._watch
        return result

    def check_data(self) -> None:
        """Compare class names with the training data's; called on each batch, does so on the first.

        Only then has the Runner told what the training data is.

        Raises:
            ConfigError: The checkpoint names other classes than the student's data set.
        """
        if self._data_checked:
            return
        self._data_checked = True
        dataset_meta = MessageHub.get_current_instance().get_info('dataset_meta') or {}
        expected = tuple(dataset_meta.get('classes') or ())
        if not expected or not self.check_class_names or self._class_names in (None, expected):
            return
        differing = [
            f'{i}: {theirs!r} against {ours!r}'
            for i, (theirs, ours) in enumerate(zip(self._class_names, expected, strict=False))
            if theirs != ours
        ]
        raise ConfigError(
            f'the teacher ({self._where()}) was trained for other classes than the data set has: '
            f'{len(self._class_names)} against {len(expected)}, first differences '
            f'{"; ".join(differing[:3])}. '
            'If they only have other names, set teacher.check_class_names=False'
        )

    def _model_config(self) -> dict[str, Any]:
        try:
            config = self.config if isinstance(self.config, dict) else load_config(self.config)
        except ConfigError as error:
            raise ConfigError(
                f'teacher: {error} Paths start at the folder you run in, or write '
                "'{{ fileDirname }}/...' for the config's own folder"
            ) from error
        model = config.get('model', config)
        if 'type' not in model:
            raise ConfigError(f'teacher config {self._where()} has no model')
        return {key: value for key, value in model.items() if key != _UNUSED}

    def _where(self) -> str:
        return 'config given as a dict' if isinstance(self.config, dict) else str(self.config)


class _GuessWatch:
    """Warns once if over the first batches the teacher is no better than guessing."""

    BATCHES = 5
    MIN_SKILL = 0.2  # share of the way from always guessing the commonest class (0) to no mistake (1)

    def __init__(self, teacher: str) -> None:
        self._teacher = teacher
        self._accuracies: list[Tensor] = []
        self._histograms: list[Tensor] = []

    @property
    def done(self) -> bool:
        return len(self._accuracies) == self.BATCHES

    def update(self, accuracy: Tensor, labels: Tensor, num_classes: int) -> None:
        self._accuracies.append(accuracy)
        self._histograms.append(torch.bincount(labels, minlength=num_classes))
        if self.done:
            self._judge()

    def _judge(self) -> None:
        accuracy = torch.cat(self._accuracies).mean().item()
        histogram = torch.stack(self._histograms).sum(0)
        guessing = 100 * (histogram.max() / histogram.sum().clamp(min=1)).item()
        if accuracy < guessing + self.MIN_SKILL * (100 - guessing):
            print_log(
                f'{"!" * 80}\nThe teacher ({self._teacher}) is hardly better than guessing: it labels '
                f'{accuracy:.1f}% of the pixels of the first {self.BATCHES} batches correctly, always '
                f'guessing the commonest class {guessing:.1f}%.\nIs it trained? Are its classes in the order '
                f'of the data set? Does its config normalise images as it was trained '
                f'(bgr_to_rgb, mean, std)?\n{"!" * 80}',
                logger='current',
                level=logging.WARNING,
            )


def renormalise(inputs: Tensor, source: nn.Module, target: nn.Module) -> Tensor:
    """Turn images normalised by one data preprocessor into images normalised by another.

    Args:
        inputs: (N, C, H, W), normalised by ``source``.
        source: An mmseg ``SegDataPreProcessor``: ``(x[bgr or rgb] - mean) / std``.
        target: The same, with other statistics or another channel order.

    Returns:
        (N, C, H, W), normalised by ``target``.
    """
    mean, std, swapped = _input_settings(source)
    target_mean, target_std, target_swapped = _input_settings(target)
    raw = inputs * std.to(inputs) + mean.to(inputs)
    if swapped != target_swapped:
        raw = raw.flip(1)
    return (raw - target_mean.to(inputs)) / target_std.to(inputs)


def _input_settings(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """Mean and standard deviation (C, 1, 1) in 0..255, and whether the loaded channels are swapped."""
    mean = getattr(preprocessor, 'mean', torch.zeros(1))
    std = getattr(preprocessor, 'std', torch.ones(1))
    return mean, std, getattr(preprocessor, '_channel_conversion', False)


def _same_input(source: nn.Module, target: nn.Module) -> bool:
    mean, std, swapped = _input_settings(source)
    target_mean, target_std, target_swapped = _input_settings(target)
    return swapped == target_swapped and all(
        a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
        for a, b in ((mean, target_mean), (std, target_std))
    )


def _load_weights(model: BaseSegmentor, checkpoint: str | Path, teacher: str) -> tuple[str, ...] | None:
    """Load strictly but for heads a teacher does not use; return the class names the checkpoint gives."""
    try:
        content = load_checkpoint(checkpoint)
    except ConfigError as error:
        raise ConfigError(f'teacher ({teacher}): {error}') from error
    weights = content.get('state_dict', content)
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise ConfigError(
            f'teacher ({teacher}): checkpoint {str(checkpoint)!r} holds no dict of named tensors'
        )
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith(f'{_UNUSED}.')}
    own = model.state_dict()
    misshapen = [
        f'{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}'
        for key in own.keys() & weights.keys()
        if weights[key].shape != own[key].shape
    ]
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        if not misshapen:
            raise ConfigError(
                f'checkpoint {str(checkpoint)!r} does not fit the teacher ({teacher}): {error}'
            ) from error
        missing = [key for key in own if key not in weights]
        unexpected = [key for key in weights if key not in own]
    problems = {'missing': missing, 'unexpected': unexpected, 'of another shape': sorted(misshapen)}
    if any(problems.values()):
        listed = '; '.join(
            f'{len(keys)} {problem}: {", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""}'
            for problem, keys in problems.items()
            if keys
        )
        raise ConfigError(
            f'checkpoint {str(checkpoint)!r} does not fit the teacher ({teacher}): {listed}. '
            'Use the config that the checkpoint was trained with'
        )
    meta = content.get('meta') or {}
    names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    return tuple(names) if names else None
