"""The pair of maps that a loss compares, brought to one grid and dtype."""

from dataclasses import dataclass, replace

import torch
from mmseg.models.utils import resize
from torch import Tensor


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
            raise ValueError('this loss needs labels, and the batch has none (seg_label)')
        labelled = (self.label != ignore_index) & (self.label >= 0)
        return replace(self, mask=labelled if self.mask is None else self.mask & labelled)

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Return label and mask, (N, H, W) each; a loss that needs labels gets both."""
        assert self.label is not None and self.mask is not None
        return self.label, self.mask

    def of_two_classes(self) -> 'Pair':
        """Return the pair in which a map of one channel z has the logits (0, z): a softmax as its sigmoid."""
        maps = (
            torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
            for logits in (self.student, self.teacher)
        )
        return replace(self, student=next(maps), teacher=next(maps))

    def zeroed(self) -> 'Pair':
        """Return the pair in which both maps are 0 where a position does not count."""
        if self.mask is None:
            return self
        out = ~self.mask[:, None]
        return replace(
            self, student=self.student.masked_fill(out, 0), teacher=self.teacher.masked_fill(out, 0)
        )

    def standardized(self, domain: str, mask: Tensor | None = None) -> 'Pair':
        """Return the pair with each distribution's logits as (z − mean)/(std + 1e-7).

        Logit standardization, https://arxiv.org/abs/2403.01427.

        Args:
            domain: ``'pixel'`` or ``'channel'``.
            mask: (N, H, W) or (N, C, H, W) bool, True where a logit counts, by default the pair's. The others
                leave mean and deviation in the channel domain.
        """
        pair = self.zeroed()  # a NaN that does not count would make the gradient NaN
        dims = (1,) if domain == 'pixel' else (2, 3)
        mask = self.mask if mask is None else mask
        if domain == 'pixel':
            mask = None
        elif mask is not None and mask.dim() == 3:
            mask = mask[:, None]
        maps = (_standardized(logits, dims, mask) for logits in (pair.student, pair.teacher))
        return replace(self, student=next(maps), teacher=next(maps))


def _standardized(logits: Tensor, dims: tuple[int, ...], mask: Tensor | None) -> Tensor:
    kept = torch.ones_like(logits[:, :1]) if mask is None else mask.to(logits.dtype)
    logits = logits if mask is None else logits.masked_fill(~mask, 0)
    count = kept.expand_as(logits).sum(dims, keepdim=True)
    centred = (logits - logits.sum(dims, keepdim=True) / count.clamp(min=1)) * kept
    variance = centred.square().sum(dims, keepdim=True) / (count - 1).clamp(min=1)
    # The clamp keeps the gradient of the root finite where all logits are equal.
    return centred / (variance.clamp(min=1e-24).sqrt() + 1e-7)


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Return vectors with norm 1 along ``dim``; those of a norm below 1e-8 become 0, with gradient 0."""
    square = vectors.square().sum(dim, keepdim=True)
    return vectors * square.clamp(min=1e-16).rsqrt().masked_fill(square < 1e-16, 0)


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
    if teacher.is_inference():  # which autograd cannot keep
        teacher = teacher.clone()
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
