"""Classical knowledge distillation (KD) of logits, https://arxiv.org/abs/1503.02531."""

from mmseg.registry import MODELS

from bdd_seg.losses.bdd import BDDLoss


@MODELS.register_module()
class KDLoss(BDDLoss):
    """KL between the softened class distributions of each position: ``τ² · mean over N·H·W of KL(p‖q)``.

    P is the teacher's distribution, Q the student's. ``reverse_weight`` adds KL(Q‖P), which makes it the
    balanced divergence of BDD.

    Args:
        tau: τ, the temperature of KL(teacher‖student), > 0.
        forward_weight: Weight of KL(teacher‖student).
        reverse_weight: Weight of KL(student‖teacher); 0 is the method as published.
        tau_reverse: Temperature of KL(student‖teacher), that of the forward term by default.
        loss_weight: Weight of the whole.
        loss_name: Name in the log, after the prefix ``distill.``. Must contain ``loss``.
        mask_ignored: Whether to leave out pixels labelled ``ignore_index``.
        ignore_index: The label of ignored pixels.

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
        mask_ignored: bool = False,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            domain='pixel',
            tau_forward=tau,
            tau_reverse=tau if tau_reverse is None else tau_reverse,
            forward_weight=forward_weight,
            reverse_weight=reverse_weight,
            loss_weight=loss_weight,
            loss_name=loss_name,
            mask_ignored=mask_ignored,
            ignore_index=ignore_index,
        )
