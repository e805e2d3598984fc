"""Segmentors that learn from a teacher while they train, and are plain segmentors otherwise."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor, nn

from bdd_seg.cli.explain import naming_the_cause
from bdd_seg.distill.taps import Tap, default_tap
from bdd_seg.errors import ConfigError


@MODELS.register_module()
class SegDistiller(EncoderDecoder):
    """An ``EncoderDecoder`` that also learns from a teacher.

    The modules are the student's own, so checkpoints, optimizers and tools see a plain student. The
    teacher is built when training starts (``init_weights``, or the first ``loss``), never for testing.
    Weights that a loss holds train with the student's, and stay out of ``state_dict()``.

    Args:
        teacher: Arguments of :class:`~bdd_seg.distillers.FrozenTeacher`: ``config`` and ``checkpoint``. Or,
            with ``type='CachedTeacher'``, of that: ``cache``.
        distill_losses: A loss config each, with two optional keys beside the loss's own arguments:
            ``student_tap`` and ``teacher_tap``, the dotted names of the modules whose outputs are
            compared. By default the logits of the (last) decode head, ``decode_head.conv_seg``.
            A loss is a module with a ``loss_name``, called as ``loss(student_output, teacher_output,
            seg_label=labels, align_corners=flag)``, with a cached teacher also ``mask=known``, and appears
            in the log as ``distill.<loss_name>``. One with weights wants the
            :class:`~bdd_seg.engine.LossStateHook` among the hooks, which keeps them for resuming.
        **segmentor: Arguments of the student's own class.

    Raises:
        ConfigError: No loss, two of one name, or one that cannot be built or has no ``loss_name`` that
            contains ``loss``.
    """

    def __init__(
        self,
        *args: Any,
        teacher: dict | None = None,
        distill_losses: Sequence[dict] = (),
        **segmentor: Any,
    ) -> None:
        if teacher is None:
            raise ConfigError('the model has no teacher: give it teacher=dict(config=..., checkpoint=...)')
        if 'num_stages' in segmentor and not isinstance(self, CascadeEncoderDecoder):
            raise ConfigError('the student is a cascade: distil it with type="CascadeSegDistiller"')
        super().__init__(*args, **segmentor)
        teacher = {'type': 'FrozenTeacher', **_checked(teacher, 'model.teacher')}
        if not isinstance(distill_losses, list | tuple):
            raise ConfigError(f'model.distill_losses must be a list of dicts, got {distill_losses!r}')
        losses = [
            _checked(loss, f'model.distill_losses.{i}', taps=True) for i, loss in enumerate(distill_losses)
        ]
        self._taps: list[tuple[str, str | None]] = [
            (loss.pop('student_tap', default_tap(self)), loss.pop('teacher_tap', None)) for loss in losses
        ]
        with naming_the_cause({'model': {'teacher': teacher, 'distill_losses': losses}}):
            if 'cache' in teacher and teacher['type'] == 'FrozenTeacher':
                raise ConfigError(
                    'model.teacher cannot be built. A cache needs type="CachedTeacher" beside it'
                )
            self.teacher = MODELS.build(teacher)
            with torch.random.fork_rng(devices=[]):  # the student's initial weights are those it has alone
                self.distill_losses = _Losses(MODELS.build(loss) for loss in losses)
        for i, (loss, settings) in enumerate(zip(self.distill_losses, losses, strict=True)):
            _check_weights(loss, settings, f'model.distill_losses.{i}')
        self._check_losses()

    def init_weights(self) -> None:
        """Initialise the student as it would be alone, then build the teacher."""
        # An init_cfg for the whole model, by type of layer, would find the layers of the losses, too.
        losses, self.distill_losses = self.distill_losses, _Losses()
        super().init_weights()
        self.distill_losses = losses
        self._require_teacher()

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """The student's own losses, untouched, and those against the teacher.

        Args:
            inputs: (N, 3, H, W) normalised images.
            data_samples: N samples with ``gt_sem_seg``.

        Returns:
            mmseg's losses, ``distill.<loss_name>`` for each distillation loss, and the diagnostic
            ``distill.teacher_acc``, the teacher's pixel accuracy on this batch in percent.
        """
        self._require_teacher()
        self.teacher.check_data()
        # Before the student fills the memory with what its backward pass needs.
        teacher_outputs, masks = self.teacher(inputs, data_samples)
        with Tap(self, [student_tap for student_tap, _ in self._taps]) as student_outputs:
            losses = super().loss(inputs, data_samples)
        logits = self.teacher.logits_tap
        seg_label = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).squeeze(1)
        for loss, (student_tap, teacher_tap) in zip(self.distill_losses, self._taps, strict=True):
            teacher_tap = teacher_tap or logits
            student_output, teacher_output = student_outputs[student_tap], teacher_outputs[teacher_tap]
            mask = {'mask': masks[teacher_tap]} if teacher_tap in masks else {}
            try:
                losses[f'distill.{loss.loss_name}'] = loss(
                    student_output,
                    teacher_output,
                    seg_label=seg_label,
                    align_corners=self.align_corners,
                    **mask,
                )
            except ValueError as error:
                raise ConfigError(
                    f'{loss.loss_name}: student {student_tap!r} {tuple(student_output.shape)} against '
                    f'teacher {teacher_tap!r} {tuple(teacher_output.shape)}: {error}'
                ) from error
        if self.out_channels > 1 and logits in teacher_outputs:
            ignore_index = _last(self.decode_head).ignore_index
            losses['distill.teacher_acc'] = self.teacher.accuracy(
                teacher_outputs[logits], seg_label, ignore_index
            )
        return losses

    def _check_losses(self) -> None:
        if not self.distill_losses:
            raise ConfigError(
                'distill_losses is empty: give it at least one loss, such as dict(type="BDDLoss")'
            )
        names = [getattr(loss, 'loss_name', None) for loss in self.distill_losses]
        for loss, name in zip(self.distill_losses, names, strict=True):
            kind = type(loss).__name__
            if not isinstance(name, str) or 'loss' not in name:
                raise ConfigError(
                    f"{kind} needs a loss_name that contains 'loss', or mmengine leaves it out of the total; "
                    f'got {name!r}'
                )
            parameters = inspect.signature(loss.forward).parameters.values()
            if self.teacher.gives_masks and not any(
                parameter.name == 'mask' or parameter.kind is parameter.VAR_KEYWORD
                for parameter in parameters
            ):
                raise ConfigError(
                    f'{kind}.forward takes no mask, which says where the {type(self.teacher).__name__} knows '
                    'an answer. Give it that argument, or use a live teacher'
                )
        if len(set(names)) < len(names):
            raise ConfigError(f'each of distill_losses needs a loss_name of its own, got {names}')

    def _require_teacher(self) -> None:
        if not self.teacher.is_built:
            Tap(self, [student_tap for student_tap, _ in self._taps])  # raises where a name is wrong
            self.teacher.build(self, [teacher_tap for _, teacher_tap in self._taps])


@MODELS.register_module()
class CascadeSegDistiller(SegDistiller, CascadeEncoderDecoder):
    """A :class:`SegDistiller` whose student is a ``CascadeEncoderDecoder``, such as OCRNet."""


class _Losses(nn.ModuleList):
    """Modules that train with the model and are no part of its state.

    What is saved is the student alone, and a student's checkpoint lacks nothing.
    """

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, loss in self.named_children():  # each gets what it has
            loss.state_dict(destination=state_dict, prefix=f'{prefix}{name}.')
        super()._load_from_state_dict(state_dict, prefix, *args)


def _checked(settings: Any, key: str, taps: bool = False) -> dict[str, Any]:
    """A copy of what the config gives under this key, if that is a dict, with names for taps."""
    if not isinstance(settings, dict):
        raise ConfigError(f'{key} must be a dict of settings, got {settings!r}')
    for tap in ('student_tap', 'teacher_tap') if taps else ():
        if not isinstance(settings.get(tap, ''), str | None):
            raise ConfigError(f'{key}.{tap} must be the dotted name of a module, got {settings[tap]!r}')
    return dict(settings)


def _check_weights(loss: nn.Module, settings: dict[str, Any], key: str) -> None:
    for name, parameter in inspect.signature(type(loss)).parameters.items():
        if name.endswith('weight') and isinstance(parameter.default, float):
            value = settings.get(name, parameter.default)
            if not isinstance(value, int | float):
                raise ConfigError(f'{key}.{name} must be a number, got {value!r}')


def _last(head: nn.Module) -> nn.Module:
    return head[-1] if isinstance(head, nn.ModuleList) else head
