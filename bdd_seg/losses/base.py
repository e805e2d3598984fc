"""The base class of distillation losses."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bdd_seg.losses.divergences import check_weights
from bdd_seg.losses.pair import Pair, align


class DistillLoss(nn.Module, ABC):
    """A loss between one student map and one teacher map; a method writes :meth:`compare` alone.

    Args:
        loss_weight: Weight of the whole.
        loss_name: Name in the log, after the prefix ``distill.``. Must contain ``loss``, or mmengine leaves
            it out of the total.
        mask_ignored: Whether to leave out positions labelled ``ignore_index``. A method that compares class
            by class leaves them out in any case.
        ignore_index: The label of ignored pixels. In a :class:`~bdd_seg.distill.SegDistiller` that of the
            student's decode head by default.
        student_channels: C_s, channels of the student's map. :class:`~bdd_seg.distill.SegDistiller` finds
            them where they are not given.
        teacher_channels: C_t, channels of the teacher's map, given or found with the student's.

    Attributes:
        adapter: The layer from the student's channels to the teacher's. It is trained with the student.

    Raises:
        ValueError: ``loss_weight`` is no number, ``loss_name`` does not contain ``loss``, or one number of
            channels is given alone.
    """

    channels: Literal['any', 'equal', 'adapted'] = 'equal'
    """Relation of the two maps' numbers of channels that the method takes.

    - ``'any'``: The method takes maps of different numbers.
    - ``'equal'``: It compares channel by channel. Where the numbers differ, a 1×1 convolution adapts the
      student's map.
    - ``'adapted'``: It has layers of its own from one number to the other, which it applies itself.
    """

    over_classes = False
    """True if the method compares distributions over the channels, as class logits are.

    The one channel z of a binary head with a sigmoid then stands for two classes, with the logits 0 and z.
    """

    needs_labels = False
    """True if the method compares class by class: then positions without a label never count."""

    def __init__(
        self,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_distill',
        mask_ignored: bool = False,
        ignore_index: int = 255,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_weights(loss_weight=loss_weight)
        if not isinstance(loss_name, str) or 'loss' not in loss_name:
            raise ValueError(f"loss_name must be a name that contains 'loss', got {loss_name!r}")
        self.loss_weight = float(loss_weight)
        self.loss_name = loss_name
        self.mask_ignored = mask_ignored
        self.ignore_index = ignore_index
        self.student_channels: int | None = None
        self.teacher_channels: int | None = None
        self.adapter: nn.Module = nn.Identity()
        self.adapt_if_known(student_channels, teacher_channels)

    def adapt_if_known(self, student_channels: int | None, teacher_channels: int | None) -> None:
        """Call :meth:`adapt` if both numbers of channels are given.

        Raises:
            ValueError: One is given alone.
        """
        if (student_channels is None) != (teacher_channels is None):
            raise ValueError('give both student_channels and teacher_channels, or neither')
        if student_channels is not None and teacher_channels is not None:
            self.adapt(student_channels, teacher_channels)

    def adapt(self, student_channels: int, teacher_channels: int) -> None:
        """Make the layers that this loss trains. Called once, before the optimizer is built.

        Args:
            student_channels: C_s, channels of the student's map.
            teacher_channels: C_t, channels of the teacher's.
        """
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        if self.channels == 'equal' and student_channels != teacher_channels:
            self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        seg_label: Tensor | None = None,
        align_corners: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compare two maps on the student's grid, in float32. Arguments are those of :func:`align`.

        Returns:
            The weighted loss, a scalar of dtype float32 (float64 for float64 input).

        Raises:
            ValueError: Shapes that do not fit, or labels are needed and missing.
        """
        pair = align(student, teacher, seg_label, align_corners, mask)
        if self.mask_ignored or self.needs_labels:
            pair = pair.without(self.ignore_index)
        with torch.autocast(pair.student.device.type, enabled=False):
            pair = self._adapted(pair)
            return self.loss_weight * self.compare(pair.of_two_classes() if self.over_classes else pair)

    def _adapted(self, pair: Pair) -> Pair:
        """Return the pair with equal channels, if the method compares them one by one."""
        found = pair.student.shape[1], pair.teacher.shape[1]
        if self.student_channels is not None:
            self._check_channels(pair)
            if self.channels == 'equal' and not isinstance(self.adapter, nn.Identity):
                pair = pair.zeroed()  # a NaN that does not count would make the adapter's gradient NaN
                pair = replace(pair, student=run_in_float32(self.adapter, pair.student))
        elif self.channels == 'adapted':
            raise ValueError('give student_channels and teacher_channels, or let a SegDistiller find them')
        elif self.channels == 'equal' and found[0] != found[1]:
            raise ValueError(
                'student and teacher must have the same channels, which for logits are the classes; got '
                f'{found[0]} and {found[1]}. For features give student_channels and teacher_channels'
            )
        return pair

    def _check_channels(self, pair: Pair) -> None:
        for name, features in (('student', pair.student), ('teacher', pair.teacher)):
            expected = getattr(self, f'{name}_channels')
            if features.shape[1] != expected:
                raise ValueError(
                    f'{name} must be (N, C, H, W) = ({len(features)}, {expected}, H, W) with '
                    f'{name}_channels={expected}, got {tuple(features.shape)}'
                )

    @abstractmethod
    def compare(self, pair: Pair) -> Tensor:
        """Return the loss of a pair, a scalar without ``loss_weight``.

        Positions where ``pair.mask`` is False must leave every sum.
        """


def run_in_float32(module: nn.Module, features: Tensor) -> Tensor:
    """Return ``module(features)``, computed in float32 at least, whatever the dtype of its weights."""
    weights: dict[str, Tensor] = dict(module.named_parameters())
    dtype = torch.promote_types(features.dtype, torch.float32)
    for weight in weights.values():
        dtype = torch.promote_types(dtype, weight.dtype)
    if all(weight.dtype == dtype for weight in weights.values()):
        return module(features.to(dtype))
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    return torch.func.functional_call(module, weights, (features.to(dtype),))
