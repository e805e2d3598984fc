"""The base class of losses with a KL divergence in them, in whose place the balanced one can stand."""

from typing import Any

from torch import Tensor

from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.divergences import check_temperature, check_weights
from bdd_seg.losses.fused import balance_divergence


class BalancedLoss(DistillLoss):
    """A loss whose KL(teacher‖student) can be the balanced divergence ``α·FKL(τ) + β·RKL(τ_r)``.

    Args:
        tau: τ, the temperature of KL(teacher‖student), > 0.
        forward_weight: α, the weight of KL(teacher‖student).
        reverse_weight: β, the weight of KL(student‖teacher); 0 is the method as published.
        tau_reverse: τ_r, the temperature of KL(student‖teacher), by default τ, whatever that is set to.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: A temperature that is not positive, or a weight that is no number.
    """

    def __init__(
        self,
        tau: float = 1.0,
        forward_weight: float = 1.0,
        reverse_weight: float = 0.0,
        tau_reverse: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.tau = check_temperature('tau', tau)
        self.tau_reverse = None if tau_reverse is None else check_temperature('tau_reverse', tau_reverse)
        check_weights(forward_weight=forward_weight, reverse_weight=reverse_weight)
        self.forward_weight = float(forward_weight)
        self.reverse_weight = float(reverse_weight)

    @property
    def temperatures(self) -> tuple[float, float]:
        """τ and τ_r."""
        return self.tau, self.tau if self.tau_reverse is None else self.tau_reverse

    def divergence(self, student: Tensor, teacher: Tensor, domain: str, mask: Tensor | None) -> Tensor:
        """Return α·FKL(τ) + β·RKL(τ_r). Arguments as for :func:`~bdd_seg.losses.balance_divergence`."""
        tau, tau_reverse = self.temperatures
        return balance_divergence(
            student,
            teacher,
            domain=domain,
            tau_forward=tau,
            tau_reverse=tau_reverse,
            forward_weight=self.forward_weight,
            reverse_weight=self.reverse_weight,
            mask=mask,
        )

    def similarity_divergence(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over rows of α·KL(p‖q) + β·KL(q‖p), with p, q = softmax(similarities/τ).

        There is no τ² here: similarities lie between -1 and 1, and their temperature is no softening.

        Args:
            student: (N, R, K) similarities of R rows to K keys.
            teacher: (N, R, K).
            mask: (N, R, K) bool, True where a similarity counts. Rows without any leave the mean.
        """
        tau, tau_reverse = self.temperatures
        return balance_divergence(
            student.unsqueeze(2),
            teacher.unsqueeze(2),
            domain='channel',
            tau_forward=tau,
            tau_reverse=tau_reverse,
            forward_weight=self.forward_weight / tau**2,
            reverse_weight=self.reverse_weight / tau_reverse**2,
            mask=mask.unsqueeze(2),
        )
