"""Teacher and student put out maps of different sizes."""

import torch
from mmseg.models.utils import resize
from torch import Tensor


def at_students_size(
    teacher: Tensor, mask: Tensor | None, size: torch.Size, align_corners: bool
) -> tuple[Tensor, Tensor | None]:
    """The teacher's output and what is known of it, at the student's resolution.

    Args:
        teacher: (N, C, H', W'), resized bilinearly where H'×W' differs from ``size``.
        mask: (N, H', W') bool, resized by nearest neighbour.
        size: (H, W) of the student's output.
        align_corners: That of the student's head.

    Returns:
        (N, C, H, W), and (N, H, W) bool or None.
    """
    if teacher.shape[2:] != size:
        teacher = resize(teacher, size, mode='bilinear', align_corners=align_corners, warning=False)
    if mask is not None and mask.shape[1:] != size:
        mask = resize(mask[:, None].float(), size, mode='nearest')[:, 0].bool()
    return teacher, mask
