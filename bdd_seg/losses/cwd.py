"""Channel-wise distillation (CWD), https://arxiv.org/abs/2011.13256."""

from typing import Any

from mmseg.registry import MODELS

from bdd_seg.losses.bdd import BDDLoss


@MODELS.register_module()
class CWDLoss(BDDLoss):
    """KL between the softened spatial distributions of each channel: ``τ² · mean over N·C of KL(p‖q)``.

    P is the teacher's distribution over the H·W positions, Q the student's. On logits the authors take τ 4
    and weight 3, on features weight 50 after a 1×1 convolution without bias, which is made where the numbers
    of channels differ. ``reverse_weight`` adds KL(Q‖P), which makes it the balanced divergence of BDD.

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
        tau: float = 4.0,
        forward_weight: float = 1.0,
        reverse_weight: float = 0.0,
        tau_reverse: float | None = None,
        loss_weight: float = 3.0,
        loss_name: str = 'loss_cwd',
        **shared: Any,
    ) -> None:
        super().__init__(
            'channel', tau, tau_reverse, forward_weight, reverse_weight, loss_weight, loss_name, **shared
        )
