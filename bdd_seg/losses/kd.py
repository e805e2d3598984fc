"""Classical knowledge distillation (KD) of logits, https://arxiv.org/abs/1503.02531."""

from typing import Any

from mmseg.registry import MODELS

from bdd_seg.losses.bdd import BDDLoss


@MODELS.register_module()
class KDLoss(BDDLoss):
    """KL between the softened class distributions of each position: ``τ² · mean over N·H·W of KL(p‖q)``.

    P is the teacher's distribution, Q the student's. ``reverse_weight`` adds KL(Q‖P), which makes it the
    balanced divergence of BDD in the pixel domain.

    Args:
        tau: τ, the temperature of KL(teacher‖student), > 0.
        forward_weight: Weight of KL(teacher‖student).
        reverse_weight: Weight of KL(student‖teacher); 0 is the method as published.
        tau_reverse: Temperature of KL(student‖teacher), τ by default.
        **shared: ``standardize`` as for :class:`~bdd_seg.losses.BDDLoss`, and the arguments of
            :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: A temperature that is not positive, or a weight that is no number.
    """

    def __init__(
        self,
        tau: float = 1.0,
        forward_weight: float = 1.0,
        reverse_weight: float = 0.0,
        tau_reverse: float | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_kd',
        **shared: Any,
    ) -> None:
        super().__init__(
            'pixel', tau, tau_reverse, forward_weight, reverse_weight, loss_weight, loss_name, **shared
        )
