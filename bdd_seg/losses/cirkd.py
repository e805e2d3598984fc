"""Cross-image relational distillation (CIRKD) within a mini-batch, https://arxiv.org/abs/2204.06986."""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.balanced import BalancedLoss
from bdd_seg.losses.blocks import sum_over_blocks
from bdd_seg.losses.pair import Pair, unit

POSITIONS = 1024
"""Approximate number of positions per image after the default pooling."""


def averaged(features: Tensor, size: int) -> Tensor:
    """Return the unit vectors (N, P, C) of the means over windows; features that are 0 do not matter."""
    return unit(F.avg_pool2d(features, size, ceil_mode=True).flatten(2).transpose(1, 2), 2)


@MODELS.register_module()
class CIRKDLoss(BalancedLoss):
    """KL between the similarities of one image's positions to those of another, over all pairs of images.

    ``mean over the N² pairs of images (i, j) and the positions of i of KL(softmax(f̂_t,i f̂_t,jᵀ/τ) ‖
    softmax(f̂_s,i f̂_s,jᵀ/τ))``, with the softmax over the positions of j. CIRKD adds the KL of KDLoss with
    weight 1, and the queues of :class:`~bdd_seg.losses.CIRKDMemoryLoss`. The batch is that of one process.

    Features are average-pooled first. The authors pool large maps 4×4; by default the window is the smallest
    that leaves about 1,024 positions, 3×3 for 64×128. The time grows with the square of the positions that
    are left, and so does the memory, of which N·P² similarities are kept at a time.

    Args:
        tau: τ, which divides the similarities.
        pool: Side of the window of the average pooling, 1 for none.
        **shared: ``forward_weight``, ``reverse_weight`` and ``tau_reverse`` as for
            :class:`~bdd_seg.losses.BalancedLoss`, and the arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: A temperature that is not positive, a weight that is no number, or a window without size.
    """

    channels = 'any'

    def __init__(
        self,
        tau: float = 0.1,
        pool: int | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_cirkd',
        **shared: Any,
    ) -> None:
        super().__init__(tau, loss_weight=loss_weight, loss_name=loss_name, **shared)
        if pool is not None and (not isinstance(pool, int) or pool < 1):
            raise ValueError(f'pool must be a whole number from 1 on, got {pool!r}')
        self.pool = pool

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean divergence over the rows that count; 0 where none does."""
        pair = pair.zeroed()
        size = self.pool or math.ceil(math.sqrt(pair.student[0, 0].numel() / POSITIONS))
        counts = torch.ones_like(pair.teacher[:, :1]) if pair.mask is None else pair.mask[:, None].float()
        student, teacher = averaged(pair.student, size), averaged(pair.teacher, size)
        kept = F.max_pool2d(counts, size, stride=size, ceil_mode=True).flatten(1) > 0  # (N, P)
        share = kept.sum(1, dtype=student.dtype) / kept.sum().clamp(min=1)  # of the rows, by image

        def divergence(student: Tensor, i: int) -> Tensor:
            mask = kept[i, :, None] & kept[:, None, :]  # (N, P, P)
            return share[i] * self.similarity_divergence(
                student[i] @ student.mT, teacher[i] @ teacher.mT, mask
            )

        return sum_over_blocks(divergence, student, range(len(student)))
