"""The base class of distillation losses, and the pair of maps that they compare."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from mmseg.models.utils import resize
from torch import Tensor, nn


@dataclass(frozen=True)
class Pair:
    """A student's and a teacher's map on the student's grid.

    Attributes:
        student: (N, C_s, H, W) float32, or float64 for float64 input. Receives the gradient.
        teacher: (N, C_t, H, W), the same dtype, a constant.
        label: (N, H, W) int64 class indices, None where the batch has no labels.
        mask: (N, H, W) bool, True where a position counts, None where all do.
    """

    student: Tensor
    teacher: Tensor
    label: Tensor | None = None
    mask: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of one value per position, (N, H, W), over those that count; 0 where none does."""
        if self.mask is None:
            return values.mean()
        # Through the values even where none counts: DDP wants a gradient from every process.
        return values.masked_fill(~self.mask, 0).sum() / self.mask.sum().clamp(min=1)

    def without(self, ignore_index: int) -> 'Pair':
        """Return the pair in which positions with this label do not count.

        Raises:
            ValueError: The pair has no labels.
        """
        if self.label is None:
            raise ValueError('mask_ignored=True needs labels, and the batch has none (seg_label)')
        labelled = self.label != ignore_index
        return replace(self, mask=labelled if self.mask is None else self.mask & labelled)


def align(
    student: Tensor,
    teacher: Tensor,
    seg_label: Tensor | None = None,
    align_corners: bool = False,
    mask: Tensor | None = None,
) -> Pair:
    """Bring a teacher's map, its mask and the labels to the student's grid and to float32.

    Maps that are on that grid and in float32 are not copied, so that aligning twice costs nothing.

    Args:
        student: (N, C_s, H, W), any floating dtype.
        teacher: (N, C_t, H', W'), resized bilinearly where H'×W' differs from H×W. Detached.
        seg_label: (N, H_label, W_label) class indices, resized by nearest neighbour.
        align_corners: That of the student's head, for the bilinear resizing.
        mask: (N, H', W') bool, True where the teacher's answer is known, resized by nearest neighbour. The
            teacher's map is set to 0 elsewhere.

    Raises:
        ValueError: A map is not (N, C, H, W), or the batch sizes differ.
    """
    for name, output in (('student', student), ('teacher', teacher)):
        if output.dim() != 4 or len(output) != len(student):
            raise ValueError(
                f'{name} must be (N, C, H, W) with N = {len(student)}, got shape {tuple(output.shape)}'
            )
    size = tuple(student.shape[2:])
    dtype = torch.promote_types(student.dtype, torch.float32)
    teacher = teacher.detach().to(dtype)
    if teacher.shape[2:] != size:
        teacher = resize(teacher, size, mode='bilinear', align_corners=align_corners, warning=False)
    if seg_label is not None:
        seg_label = resize_nearest(seg_label, size).long()
    if mask is not None:
        mask = resize_nearest(mask, size)
        teacher = teacher.masked_fill(~mask[:, None], 0)  # a NaN there would make gradients NaN
    return Pair(student.to(dtype), teacher, seg_label, mask)


def resize_nearest(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return a map (N, H', W') at another size (H, W), by nearest neighbour."""
    if values.shape[1:] == size:
        return values
    return resize(values[:, None].float(), size, mode='nearest')[:, 0].to(values.dtype)


class DistillLoss(nn.Module, ABC):
    """A loss between one student map and one teacher map; a method writes :meth:`compare` alone.

    Args:
        loss_weight: Weight of the whole.
        loss_name: Name in the log, after the prefix ``distill.``. Must contain ``loss``, or mmengine leaves
            it out of the total.
        mask_ignored: Whether to leave out positions labelled ``ignore_index``.
        ignore_index: The label of ignored pixels.

    Raises:
        ValueError: ``loss_weight`` is no number, or ``loss_name`` does not contain ``loss``.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_distill',
        mask_ignored: bool = False,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not isinstance(loss_weight, int | float):
            raise ValueError(f'loss_weight must be a number, got {loss_weight!r}')
        if not isinstance(loss_name, str) or 'loss' not in loss_name:
            raise ValueError(f"loss_name must be a name that contains 'loss', got {loss_name!r}")
        self.loss_weight = loss_weight
        self.loss_name = loss_name
        self.mask_ignored = mask_ignored
        self.ignore_index = ignore_index

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
            ValueError: Shapes that do not fit, or ``mask_ignored`` without labels.
        """
        pair = align(student, teacher, seg_label, align_corners, mask)
        if self.mask_ignored:
            pair = pair.without(self.ignore_index)
        with torch.autocast(pair.student.device.type, enabled=False):
            return self.loss_weight * self.compare(pair)

    @abstractmethod
    def compare(self, pair: Pair) -> Tensor:
        """Return the loss of a pair, a scalar without ``loss_weight``.

        Positions where ``pair.mask`` is False must leave every sum.
        """
