"""Balance Divergence Distillation (BDD), https://arxiv.org/abs/2501.07804."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.balanced import BalancedLoss
from bdd_seg.losses.divergences import check_domain, check_temperature
from bdd_seg.losses.pair import Pair


@MODELS.register_module()
class BDDLoss(BalancedLoss):
    """``loss_weight · (α·FKL(τ_f) + β·RKL(τ_r))``, with the terms of :mod:`bdd_seg.losses.divergences`.

    The forward divergence KL(teacher‖student) follows the teacher's large probabilities, the reverse
    divergence KL(student‖teacher) its tiny ones.

    The default temperatures did best on grids of 12×24 logits. A temperature of 4 did worse there, with a
    quarter of the weight, too. The full-size configs use 4, as CWD's authors do, since nothing was measured
    at their size. The default weight is CWD's.

    Args:
        domain: The axis of a distribution: ``'channel'`` for the H·W positions of one class, ``'pixel'`` for
            the C classes of one position. A single output channel z, of a binary network, stands for the
            logits 0 and z there.
        tau_forward: τ_f, the temperature of KL(teacher‖student), > 0.
        tau_reverse: τ_r, the temperature of KL(student‖teacher), > 0; None for τ_f.
        forward_weight: α, the weight of KL(teacher‖student).
        reverse_weight: β, the weight of KL(student‖teacher).
        loss_weight: Weight of the whole.
        loss_name: Name in the log, after the prefix ``distill.``. Must contain ``loss``.
        standardize: Whether logits are standardised along the domain's axis first,
            https://arxiv.org/abs/2403.01427, whose authors take τ 2 and weight 9.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: An unknown domain, a temperature that is not positive, or a weight that is no number.
    """

    def __init__(
        self,
        domain: str = 'channel',
        tau_forward: float = 1.0,
        tau_reverse: float | None = 1.0,
        forward_weight: float = 1.0,
        reverse_weight: float = 1.0,
        loss_weight: float = 3.0,
        loss_name: str = 'loss_bdd',
        standardize: bool = False,
        **shared: Any,
    ) -> None:
        check_domain(domain)
        check_temperature('tau_forward', tau_forward)
        super().__init__(
            tau_forward,
            forward_weight,
            reverse_weight,
            tau_reverse,
            loss_weight=loss_weight,
            loss_name=loss_name,
            **shared,
        )
        self.domain = domain
        self.over_classes = domain == 'pixel'
        self.standardize = standardize

    @property
    def tau_forward(self) -> float:
        """τ_f; a schedule can move it by this name, or as ``tau``."""
        return self.tau

    @tau_forward.setter
    def tau_forward(self, value: float) -> None:
        self.tau = value

    def compare(self, pair: Pair) -> Tensor:
        """Return α·FKL(τ_f) + β·RKL(τ_r) of logits (N, C, H, W)."""
        if self.standardize:
            pair = pair.standardized(self.domain)
        return self.divergence(pair.student, pair.teacher, self.domain, pair.mask)
