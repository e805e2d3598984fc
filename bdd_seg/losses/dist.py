"""Distillation from a stronger teacher (DIST), https://arxiv.org/abs/2205.10536."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.divergences import check_temperature, check_weights
from bdd_seg.losses.pair import Pair, unit


def inter_class_relation(p: Tensor, q: Tensor) -> Tensor:
    """Return the Pearson correlation over the C classes, (N, H, W), of probabilities (N, C, H, W)."""
    p, q = (unit(x - x.mean(dim=1, keepdim=True), 1) for x in (p, q))
    return (p * q).sum(dim=1)


def intra_class_relation(p: Tensor, q: Tensor, mask: Tensor) -> Tensor:
    """Return each class's Pearson correlation over all positions of the batch that count, (C,)."""
    kept = mask[:, None].to(p.dtype)
    p, q = (_centred(x, kept).transpose(0, 1).flatten(1) for x in (p, q))
    return (unit(p, 1) * unit(q, 1)).sum(dim=1)


def _centred(x: Tensor, kept: Tensor) -> Tensor:
    mean = (x * kept).sum((0, 2, 3), keepdim=True) / kept.sum().clamp(min=1)
    return (x - mean) * kept


@MODELS.register_module()
class DISTLoss(DistillLoss):
    """``β · mean over positions of (1 − inter) + γ · mean over classes of (1 − intra)``.

    Both relations are Pearson correlations of the softened class probabilities: *inter* of one position's
    over the classes, *intra* of one class's over all N·H·W positions. The authors also give the auxiliary
    head's logits 0.4 times this loss. A known port correlates other axes, which is wrong on maps.

    Args:
        beta: β, the weight of the inter-class relation.
        gamma: γ, the weight of the intra-class relation.
        tau: τ, the temperature, > 0.
        mode: ``'paper'``, or ``'code'`` for the factor τ² that some code has.
        standardize: Whether logits are standardised over the classes first, https://arxiv.org/abs/2403.01427.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: A temperature that is not positive, a weight that is no number, or an unknown mode.
    """

    over_classes = True

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        tau: float = 1.0,
        mode: str = 'paper',
        standardize: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_dist',
        **shared: Any,
    ) -> None:
        super().__init__(loss_weight, loss_name, **shared)
        check_weights(beta=beta, gamma=gamma)
        if mode not in ('paper', 'code'):
            raise ValueError(f"mode must be 'paper' or 'code', got {mode!r}")
        self.beta = float(beta)
        self.gamma = float(gamma)
        self.tau = check_temperature('tau', tau)
        self.mode = mode
        self.standardize = standardize

    def compare(self, pair: Pair) -> Tensor:
        """Return the weighted sum of both relations' distances; 0 where no position counts.

        Raises:
            ValueError: A schedule has led τ to 0.
        """
        check_temperature('tau', self.tau)
        if self.standardize:
            pair = pair.standardized('pixel')
        pair = pair.zeroed()
        p, q = (logits.div(self.tau).softmax(dim=1) for logits in (pair.teacher, pair.student))
        mask = p.new_ones(p[:, 0].shape).bool() if pair.mask is None else pair.mask
        inter = pair.mean(1 - inter_class_relation(p, q))
        intra = (1 - intra_class_relation(p, q, mask)).mean() * mask.any()
        return (self.beta * inter + self.gamma * intra) * (self.tau**2 if self.mode == 'code' else 1)
