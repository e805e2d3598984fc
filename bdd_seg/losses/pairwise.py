"""Structured knowledge distillation (SKD), its pairwise part, https://arxiv.org/abs/1903.04197."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.blocks import sum_over_blocks
from bdd_seg.losses.pair import Pair, unit

MODES = ('paper', 'code')
_ROWS = 512  # of the similarity matrices that are compared at a time


def pooled(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the unit vectors (N, P, C) of the maxima over windows of ``size``; P positions remain."""
    maxima = F.max_pool2d(features, size, stride=size, ceil_mode=True)
    return unit(maxima.masked_fill(maxima == -torch.inf, 0).flatten(2).transpose(1, 2), 2)


@MODELS.register_module()
class PairwiseLoss(DistillLoss):
    """Mean squared difference between the cosine similarities of all pairs of positions in an image.

    ``mean over N·P·P of (f̂_s f̂_sᵀ − f̂_t f̂_tᵀ)²``, with features max-pooled to P positions. SKD adds the KL of
    KDLoss with weight 1, and an adversarial part that is not here.

    The time grows with P², the memory with ``512 · P``: the matrices are compared in blocks of rows.

    Args:
        mode: ``'paper'``: windows of half the height and half the width, P = 4. ``'code'``: the 2×2 windows
            of common code, P = H·W/4.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: An unknown mode.
    """

    channels = 'any'

    def __init__(
        self,
        mode: str = 'paper',
        loss_weight: float = 10.0,
        loss_name: str = 'loss_pairwise',
        **shared: Any,
    ) -> None:
        super().__init__(loss_weight, loss_name, **shared)
        if mode not in MODES:
            raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
        self.mode = mode

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean over the pairs of positions that count; 0 where none does."""
        height, width = pair.student.shape[2:]
        size = (2, 2) if self.mode == 'code' else (-(-height // 2), -(-width // 2))
        counts = torch.ones_like(pair.teacher[:, :1])
        student, teacher = pair.student, pair.teacher
        if pair.mask is not None:
            out = ~pair.mask[:, None]
            student, teacher = student.masked_fill(out, -torch.inf), teacher.masked_fill(out, -torch.inf)
            counts = counts.masked_fill(out, 0)
        student, teacher = pooled(student, size), pooled(teacher, size)
        positions = F.max_pool2d(counts, size, stride=size, ceil_mode=True).flatten(1).sum(1)

        def squared_difference(student: Tensor, block: tuple[slice, slice]) -> Tensor:
            image, rows = block
            student, targets = student[image], teacher[image]
            similarities = student[:, rows] @ student.mT - targets[:, rows] @ targets.mT
            return similarities.square().sum()

        images, rows = student.shape[:2]
        blocks = [
            (slice(n, n + 1), slice(i, i + _ROWS)) for n in range(images) for i in range(0, rows, _ROWS)
        ]
        return sum_over_blocks(squared_difference, student, blocks) / positions.square().sum().clamp(min=1)
