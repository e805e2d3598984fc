"""Attention transfer (AT), https://arxiv.org/abs/1612.03928."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.pair import Pair, unit


def attention(features: Tensor) -> Tensor:
    """Return the attention map (N, H, W) of features (N, C, H, W): the mean over C of f², of norm 1."""
    energy = features.square().mean(dim=1)
    return unit(energy.flatten(1), 1).view_as(energy)


@MODELS.register_module()
class AttentionLoss(DistillLoss):
    """Mean squared difference of the attention maps: ``mean over N·H·W of (a(f_s) − a(f_t))²``.

    The paper sums over positions where this is the mean, as its code does; hence the large weight.

    Args:
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.
    """

    channels = 'any'

    def __init__(
        self, loss_weight: float = 10_000.0, loss_name: str = 'loss_attention', **shared: Any
    ) -> None:
        super().__init__(loss_weight, loss_name, **shared)

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean over the positions that count; they alone make up the norm."""
        pair = pair.zeroed()
        return pair.mean((attention(pair.student) - attention(pair.teacher)).square())
