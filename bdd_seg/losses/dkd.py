"""Decoupled knowledge distillation (DKD), https://arxiv.org/abs/2203.08679."""

from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.balanced import BalancedLoss
from bdd_seg.losses.divergences import MASKED, check_weights
from bdd_seg.losses.fused import balance_divergence, by_temperature
from bdd_seg.losses.pair import Pair


def target_logits(logits: Tensor, target: Tensor, tau: float) -> Tensor:
    """Return two logits whose softmax at temperature τ is (p_y, 1 − p_y).

    Args:
        logits: (N, C, H, W).
        target: (N, C, H, W) bool, True at the label's class.
        tau: τ.

    Returns:
        (N, 2, H, W): the label's logit, and τ·log Σ exp(z/τ) over the other classes.
    """
    logits = logits - logits.amax(dim=1, keepdim=True)  # large ones would cost digits
    own = logits.masked_fill(~target, 0).sum(dim=1)
    others = logits.masked_fill(target, MASKED).div(tau).logsumexp(dim=1) * tau
    return torch.stack([own, others], dim=1)


@MODELS.register_module()
class DKDLoss(BalancedLoss):
    """``α · KL of (p_y, 1 − p_y) + β · KL of the other classes' p, renormalised``, times τ².

    P is the teacher's class distribution at one position, Q the student's, y its label; the mean is over the
    labelled positions. ``reverse_weight`` balances both divergences, as in BDD.

    The defaults are the authors' for segmentation. For classification they take α 1, β 8, τ 4, and a warm-up
    over 20 epochs: ``schedule=dict(warmup=ITERATIONS)``.

    Args:
        alpha: α, the weight of the target class's divergence.
        beta: β, the weight of the other classes' divergence.
        tau: τ, the temperature of KL(teacher‖student), > 0.
        standardize: Whether logits are standardised over the classes first, https://arxiv.org/abs/2403.01427.
        **shared: ``forward_weight``, ``reverse_weight`` and ``tau_reverse`` as for
            :class:`~bdd_seg.losses.BalancedLoss`, and the arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: A temperature that is not positive, or a weight that is no number.
    """

    over_classes = True
    needs_labels = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 2.0,
        tau: float = 1.0,
        standardize: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_dkd',
        **shared: Any,
    ) -> None:
        super().__init__(tau, loss_weight=loss_weight, loss_name=loss_name, **shared)
        check_weights(alpha=alpha, beta=beta)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.standardize = standardize

    def compare(self, pair: Pair) -> Tensor:
        """Return the weighted sum of both divergences; 0 where no position is labelled."""
        label, mask = pair.labelled()
        pair = pair.standardized('pixel') if self.standardize else pair.zeroed()
        classes = torch.arange(pair.student.shape[1], device=label.device).view(1, -1, 1, 1)
        target = label[:, None] == classes
        mask = mask & target.any(dim=1)
        others = self.divergence(pair.student, pair.teacher, 'pixel', mask[:, None] & ~target)
        return self.alpha * self._target_class(pair, target, mask) + self.beta * others

    def _target_class(self, pair: Pair, target: Tensor, mask: Tensor) -> Tensor:
        """Return the divergence of (p_y, 1 − p_y), whose logits depend on the temperature."""
        total = pair.student.new_zeros(())
        terms = by_temperature(*self.temperatures, self.forward_weight, self.reverse_weight)
        for tau, forward_weight, reverse_weight in terms:
            student, teacher = (target_logits(logits, target, tau) for logits in (pair.student, pair.teacher))
            total = total + balance_divergence(
                student,
                teacher,
                domain='pixel',
                tau_forward=tau,
                tau_reverse=tau,
                forward_weight=forward_weight,
                reverse_weight=reverse_weight,
                mask=mask,
            )
        return total
