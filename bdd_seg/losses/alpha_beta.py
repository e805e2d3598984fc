"""Distillation by the α-β-divergence (ABKD), https://arxiv.org/abs/2505.04560."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.divergences import check_domain, check_exponents, check_temperature
from bdd_seg.losses.fused import alpha_beta_divergence
from bdd_seg.losses.pair import Pair


@MODELS.register_module()
class AlphaBetaLoss(DistillLoss):
    """``τ² · mean of Σ p^(α+β)/(β·(α+β)) + q^(α+β)/(α·(α+β)) − p^α·q^β/(α·β)``.

    P is the teacher's distribution, Q the student's. (1, 0) is KL(P‖Q), (0, 1) is KL(Q‖P), and (½, ½) is four
    times the squared Hellinger distance; between them one divergence weighs both large and tiny
    probabilities.

    Args:
        alpha: α ≥ 0. The authors search α = β in 0.2 … 0.8.
        beta: β ≥ 0, not 0 if α is.
        tau: τ, the temperature, > 0.
        domain: ``'pixel'`` for the C classes of one position, ``'channel'`` for the H·W positions of a class.
        standardize: Whether logits are standardised along the domain's axis first,
            https://arxiv.org/abs/2403.01427.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: An unknown domain, a temperature that is not positive, or exponents as above.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        tau: float = 1.0,
        domain: str = 'pixel',
        standardize: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_alpha_beta',
        **shared: Any,
    ) -> None:
        super().__init__(loss_weight, loss_name, **shared)
        check_domain(domain)
        check_exponents(alpha, beta)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.tau = check_temperature('tau', tau)
        self.domain = domain
        self.over_classes = domain == 'pixel'
        self.standardize = standardize

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean divergence over the distributions of logits (N, C, H, W)."""
        if self.standardize:
            pair = pair.standardized(self.domain)
        return alpha_beta_divergence(
            pair.student,
            pair.teacher,
            alpha=self.alpha,
            beta=self.beta,
            tau=self.tau,
            domain=self.domain,
            mask=pair.mask,
        )
