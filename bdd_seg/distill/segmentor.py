"""Segmentors that learn from a teacher while they train, and are plain segmentors otherwise."""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.structures import PixelData
from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor, nn

from bdd_seg.distill.channels import map_channels
from bdd_seg.distill.diagnostics import logit_diagnostics, without_padding
from bdd_seg.distill.gradients import GradientBalance
from bdd_seg.distill.schedule import Schedule
from bdd_seg.distill.settings import build, check_losses, checked_losses, checked_teacher
from bdd_seg.distill.taps import LOGITS, Tap, check_map, check_taps, default_tap, last_head, named_tap
from bdd_seg.errors import ConfigError
from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.pair import Pair, align, resize_nearest


@MODELS.register_module()
class SegDistiller(EncoderDecoder):
    """An ``EncoderDecoder`` that also learns from a teacher.

    The modules are the student's own, so checkpoints, optimizers and tools see a plain student. The teacher
    is built when training starts (``init_weights``, or the first ``loss``), never for testing. Weights that a
    loss holds train with the student's, and stay out of ``state_dict()``.

    Args:
        teacher: Settings of a :class:`~bdd_seg.teachers.Teacher`. Without a ``type`` those of an
            :class:`~bdd_seg.teachers.MMSegTeacher`: ``config`` and ``checkpoint``. A list of several makes an
            :class:`~bdd_seg.teachers.EnsembleTeacher`.
        distill_losses: Settings of a loss each, with three optional keys beside its own arguments.
            ``student_tap`` and ``teacher_tap`` say which maps are compared, by default the final class
            logits of each network. Else the dotted name of a module, or a function that finds the map: see
            :class:`~bdd_seg.distill.taps.Tap`.
            ``schedule`` moves its numbers while training, see :class:`~bdd_seg.distill.schedule.Schedule`.
            A loss is a :class:`~bdd_seg.losses.DistillLoss`, or any module with a ``loss_name`` that is
            called as ``loss(student_map, teacher_map, seg_label=labels, align_corners=flag)``, with a cached
            teacher also ``mask=known``. It appears in the log as ``distill.<loss_name>``.
        balance_gradients: If given, each loss is multiplied by a factor that is chosen once, in the first
            step, such that the norm of its gradient, in the student's parameters and in those of the loss's
            own layers, is this multiple of the norm of the student's own loss's. The log says which.
        **segmentor: Arguments of the student's own class.

    Attributes:
        diagnose: Whether :meth:`loss` returns diagnostics of the logits, too. The
            :class:`~bdd_seg.distill.DiagnosticsHook` sets it for the iterations that are logged.

    Raises:
        ConfigError: No teacher, no loss, two losses of one name, or settings that a loss refuses.
    """

    def __init__(
        self,
        *args: Any,
        teacher: dict | None = None,
        distill_losses: Sequence[dict] = (),
        balance_gradients: float | None = None,
        **segmentor: Any,
    ) -> None:
        teacher = checked_teacher(teacher)
        losses = checked_losses(distill_losses)
        if balance_gradients is not None and not (
            isinstance(balance_gradients, int | float) and balance_gradients > 0
        ):
            raise ConfigError(f'model.balance_gradients must be a positive number, got {balance_gradients!r}')
        if 'num_stages' in segmentor and not isinstance(self, CascadeEncoderDecoder):
            raise ConfigError('the student is a cascade: distil it with type="CascadeSegDistiller"')
        if 'image_encoder' in segmentor:
            raise ConfigError(
                'the student is a MultimodalEncoderDecoder (SAN), which cannot be distilled: only an '
                'EncoderDecoder or CascadeEncoderDecoder can. As a teacher it can be used'
            )
        super().__init__(*args, **segmentor)
        taps = [(loss.pop('student_tap', None), loss.pop('teacher_tap', None)) for loss in losses]
        self._logits_tap = default_tap(self) if any(tap is None for tap, _ in taps) else None
        self._taps: list[tuple[str, str | None]] = [
            (student_tap or self._logits_tap or LOGITS, teacher_tap) for student_tap, teacher_tap in taps
        ]
        schedules = [loss.pop('schedule', None) for loss in losses]
        self.teacher = build(teacher, 'model.teacher')
        with torch.random.fork_rng(devices=[]):  # the student's initial weights are those it has alone
            self.distill_losses = _Losses(
                build(loss, f'model.distill_losses.{i}') for i, loss in enumerate(losses)
            )
            check_losses(self.distill_losses, self.teacher)
            for loss, settings in zip(self.distill_losses, losses, strict=True):
                if isinstance(loss, DistillLoss) and 'ignore_index' not in settings:
                    loss.ignore_index = self._ignore_index
            self._cannot_adapt = self._adapt_losses()
        self.schedules = {
            loss.loss_name: Schedule.of(loss, schedule, f'model.distill_losses.{i}.schedule')
            for i, (loss, schedule) in enumerate(zip(self.distill_losses, schedules, strict=True))
            if schedule is not None
        }
        from_zero = {
            f'distill.{name}'
            for name, schedule in self.schedules.items()
            if any(first == 0 for first, _ in schedule.settings.values())
        }
        self.gradient_balance = (
            None if balance_gradients is None else GradientBalance(balance_gradients, from_zero)
        )
        self.diagnose = False

    def init_weights(self) -> None:
        """Initialise the student as it would be alone, then build the teacher."""
        # An init_cfg for the whole model, by type of layer, would find the layers of the losses, too.
        losses, self.distill_losses = self.distill_losses, _Losses()
        super().init_weights()
        self.distill_losses = losses
        self._require_teacher()

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """Return the student's own losses, untouched, and those against the teacher.

        Args:
            inputs: (N, C, H, W) normalised images.
            data_samples: N samples. To one without ``gt_sem_seg`` a label map of ignored pixels is added, so
                that the student learns from the teacher alone there.

        Returns:
            ``distill.<loss_name>`` for each distillation loss, the diagnostic ``distill.teacher_acc``, which
            is the teacher's pixel accuracy on this batch in percent, and then mmseg's losses. The log has
            them in this order. If :attr:`diagnose` is set and a loss compares class logits, the diagnostics
            of :func:`~bdd_seg.distill.diagnostics.logit_diagnostics` follow the accuracy. They change
            nothing else.

        Raises:
            ConfigError: A map of the student carries no gradient while it trains, or is no map of the images.
        """
        self._require_teacher()
        self.teacher.check_data()
        self._follow_schedules()
        self._ignore_where_unlabelled(inputs, data_samples)
        # Before the student fills the memory with what its backward pass needs.
        answer = self.teacher(inputs, data_samples)
        with Tap(self, [student_tap for student_tap, _ in self._taps]) as student_maps:
            own_losses = super().loss(inputs, data_samples)
        self._check_maps(student_maps, inputs)
        batch = _Batch(
            student_maps, answer, data_samples, self.align_corners, self.teacher, self._ignore_index
        )
        losses = {
            f'distill.{loss.loss_name}': batch.compare(loss, student_tap, teacher_tap)
            for loss, student_tap, teacher_tap in self.comparisons
        }
        if self.gradient_balance is not None:
            losses = self._balanced(self.gradient_balance, own_losses, losses)
        for name, schedule in self.schedules.items():
            losses[f'distill.{name}'] = losses[f'distill.{name}'] * schedule.warmup_factor(self._iteration)
        logits_tap = self.teacher.logits_tap
        if self.out_channels > 1 and logits_tap in answer.maps:
            logits, label = batch.teacher_logits_and_labels(logits_tap)
            losses['distill.teacher_acc'] = self.teacher.accuracy(logits, label, self._ignore_index)
        if self.diagnose:
            losses |= self._diagnostics(batch, inputs, data_samples)
        return {**losses, **own_losses}

    @property
    def comparisons(self) -> list[tuple[nn.Module, str, str]]:
        """Each distillation loss with its student and teacher tap, once the teacher is built."""
        return [
            (loss, student_tap, named_tap(teacher_tap, self.teacher.logits_tap))
            for loss, (student_tap, teacher_tap) in zip(self.distill_losses, self._taps, strict=True)
        ]

    def _adapt_losses(self) -> dict[str, str]:
        """Tell losses that have layers of their own how many channels their maps have.

        Returns:
            ``loss_name`` → reason, where that cannot be found out. The teacher's files may be missing, which
            testing does not need, or a network may compute with the values of tensors.
        """
        student, teacher = cache(partial(map_channels, self)), cache(self.teacher.map_channels)
        reasons = {}
        for loss, taps in zip(self.distill_losses, self._taps, strict=True):
            if not isinstance(loss, DistillLoss) or loss.student_channels is not None:
                continue
            # Class logits have as many channels as there are classes, the same number for both.
            are_logits = taps == (self._logits_tap, None)
            if loss.channels == 'adapted' or (loss.channels == 'equal' and not are_logits):
                try:
                    numbers = student(taps[0]), teacher(taps[1])
                    # With a class map class logits are cut to the same classes, wherever they are tapped.
                    are_cut = self.teacher.maps_classes and numbers == (self.out_channels, teacher(None))
                    if loss.channels == 'adapted' or not are_cut:
                        loss.adapt(*numbers)
                except Exception as error:  # of any kind: networks fail on meta tensors in all ways
                    if loss.channels == 'adapted':  # others may do without
                        reasons[loss.loss_name] = f'{type(error).__name__}: {error}'
        return reasons

    @property
    def _ignore_index(self) -> int:
        return last_head(self).ignore_index

    def _ignore_where_unlabelled(self, inputs: Tensor, data_samples: SampleList) -> None:
        for sample in data_samples:
            if 'gt_sem_seg' not in sample:
                label = inputs.new_full((1, *inputs.shape[2:]), self._ignore_index, dtype=torch.long)
                sample.gt_sem_seg = PixelData(data=label)

    def _check_maps(self, maps: dict[str, Tensor], inputs: Tensor) -> None:
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        for tap, student_map in maps.items():
            check_map(student_map, inputs, self, tap, 'student')
            if trains and not student_map.requires_grad:
                raise ConfigError(
                    f'student: the output of tap {tap!r} carries no gradient, so that the student would not '
                    'learn from the teacher. Is that part frozen (frozen_stages, requires_grad), detached, '
                    'or checkpointed with use_reentrant=True? Tap a layer that trains'
                )

    @property
    def _iteration(self) -> int:
        """The Runner's iteration, counted from 0; 0 without a Runner."""
        return MessageHub.get_current_instance().get_info('iter') or 0

    def _follow_schedules(self) -> None:
        max_iters = MessageHub.get_current_instance().get_info('max_iters')
        for loss in self.distill_losses:
            if loss.loss_name in self.schedules:
                values = self.schedules[loss.loss_name].values(self._iteration, max_iters)
                for name, value in values.items():
                    setattr(loss, name, value)

    def _diagnostics(self, batch: '_Batch', inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """Return the diagnostics of the first class logits that a loss compares; empty where none does."""
        for _, student_tap, teacher_tap in self.comparisons:
            pair = batch.class_logits(student_tap, teacher_tap, self.out_channels)
            if pair is not None:
                return logit_diagnostics(without_padding(pair, data_samples, inputs.shape[2:]))
        return {}

    def _balanced(
        self, balance: GradientBalance, own_losses: dict[str, Tensor], losses: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        own_loss, _ = self.parse_losses(own_losses)
        layers = {f'distill.{loss.loss_name}': [*loss.parameters()] for loss in self.distill_losses}
        of_losses = {id(parameter) for parameters in layers.values() for parameter in parameters}
        student = [parameter for parameter in self.parameters() if id(parameter) not in of_losses]
        return balance.balance(own_loss, losses, student, layers)

    def _require_teacher(self) -> None:
        if not self.teacher.is_built:
            for i, (student_tap, _) in enumerate(self._taps):
                check_taps(self, [student_tap], f'model.distill_losses.{i}.student_tap')
            self.teacher.build(self, [teacher_tap for _, teacher_tap in self._taps])
            for name, reason in self._cannot_adapt.items():
                raise ConfigError(
                    f'{name}: the channels of its maps cannot be found out ({reason}). Give it '
                    'student_channels and teacher_channels'
                )


@MODELS.register_module()
class CascadeSegDistiller(SegDistiller, CascadeEncoderDecoder):
    """A :class:`SegDistiller` whose student is a ``CascadeEncoderDecoder``, such as OCRNet."""


class _Batch:
    """The maps of one batch; each is aligned, and the labels are resized, once for all losses.

    Where the teacher has other classes, class logits of both sides and their labels are cut to the classes
    that both know. Maps with as many channels as either side has classes are class logits.
    """

    def __init__(
        self,
        student_maps: dict[str, Tensor],
        answer: Any,
        data_samples: SampleList,
        align_corners: bool,
        teacher: Any,
        ignore_index: int,
    ) -> None:
        self.student_maps = student_maps
        self.teacher_maps: dict[str, Tensor] = answer.maps
        self.known: dict[str, Tensor] = answer.known
        self.align_corners = align_corners
        self._class_map = teacher.class_map
        self._logits_tap = teacher.logits_tap
        self._ignore_index = ignore_index
        self.seg_label = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).squeeze(1)
        self._labels: dict[tuple[int, ...], Tensor] = {}  # (H, W) → (N, H, W)
        self._pairs: dict[tuple[str, str, bool], Pair] = {}  # names of both taps, cut or not → pair

    def teacher_logits_and_labels(self, tap: str) -> tuple[Tensor, Tensor]:
        """Return the teacher's class logits (N, C, h, w) and the labels (N, h, w) on their grid."""
        logits, is_cut = self.teacher_maps[tap], self._class_map is not None
        if self._class_map is not None:
            logits = self._class_map.teacher_logits(logits)
        return logits, self._label(tuple(logits.shape[2:]), is_cut)

    def class_logits(self, student_tap: str, teacher_tap: str, student_classes: int) -> Pair | None:
        """Return two maps, aligned and cut to the same classes, None if they are no class logits.

        Args:
            student_tap: Of the student's map.
            teacher_tap: Of the teacher's map.
            student_classes: Channels of the student's class logits.
        """
        if teacher_tap != self._logits_tap or self.student_maps[student_tap].shape[1] != student_classes:
            return None
        pair = self._aligned(student_tap, teacher_tap, self._are_logits(student_tap, teacher_tap))
        return pair if pair.student.shape == pair.teacher.shape else None

    def compare(self, loss: nn.Module, student_tap: str, teacher_tap: str) -> Tensor:
        """Return the value of a loss, a scalar.

        Raises:
            ConfigError: The loss refuses the maps with a ``ValueError``.
        """
        known = self.known.get(teacher_tap)
        # A loss with layers of its own from one number of channels to the other takes the maps as they are.
        is_cut = getattr(loss, 'channels', 'any') != 'adapted' and self._are_logits(student_tap, teacher_tap)
        label: Tensor | None
        try:
            if isinstance(loss, DistillLoss):
                pair = self._aligned(student_tap, teacher_tap, is_cut)
                student, teacher, label, known = pair.student, pair.teacher, pair.label, pair.mask
            else:  # other modules get the maps at their own sizes
                student, teacher = self._maps(student_tap, teacher_tap, is_cut)
                label = self._label(tuple(self.seg_label.shape[1:]), is_cut)
            mask = {} if known is None else {'mask': known}
            return loss(student, teacher, seg_label=label, align_corners=self.align_corners, **mask)
        except ConfigError:
            raise
        except ValueError as error:
            shapes = tuple(self.student_maps[student_tap].shape), tuple(self.teacher_maps[teacher_tap].shape)
            raise ConfigError(
                f'{loss.loss_name}: student {student_tap!r} {shapes[0]} against '
                f'teacher {teacher_tap!r} {shapes[1]}: {error}'
            ) from error

    def _are_logits(self, student_tap: str, teacher_tap: str) -> bool:
        """Return whether two maps are class logits that a class map cuts."""
        channels = self.student_maps[student_tap].shape[1], self.teacher_maps[teacher_tap].shape[1]
        return self._class_map is not None and channels == self._class_map.sizes

    def _aligned(self, student_tap: str, teacher_tap: str, is_cut: bool) -> Pair:
        key = student_tap, teacher_tap, is_cut
        if key not in self._pairs:
            student, teacher = self._maps(*key)
            label = self._label(tuple(student.shape[2:]), is_cut)
            known = self.known.get(teacher_tap)
            self._pairs[key] = align(student, teacher, label, self.align_corners, known)
        return self._pairs[key]

    def _maps(self, student_tap: str, teacher_tap: str, is_cut: bool) -> tuple[Tensor, Tensor]:
        student, teacher = self.student_maps[student_tap], self.teacher_maps[teacher_tap]
        if is_cut:
            return self._class_map.student_logits(student), self._class_map.teacher_logits(teacher)
        return student, teacher

    def _label(self, size: tuple[int, ...], is_cut: bool) -> Tensor:
        """Return the labels at this size, (N, H, W), of all classes or of those that both sides know."""
        if size not in self._labels:
            self._labels[size] = resize_nearest(self.seg_label, size)
        label = self._labels[size]
        return self._class_map.labels(label, self._ignore_index) if is_cut else label


class _Losses(nn.ModuleList):
    """Modules that train with the model and are no part of its state.

    Only the student is saved, and a student's checkpoint loads strictly: to ``load_state_dict`` each loss
    reports its own current weights as those of the checkpoint.
    """

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, loss in self.named_children():
            loss.state_dict(destination=state_dict, prefix=f'{prefix}{name}.')
        super()._load_from_state_dict(state_dict, prefix, *args)
