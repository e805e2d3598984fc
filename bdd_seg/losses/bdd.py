"""Balance Divergence Distillation (BDD), https://arxiv.org/abs/2501.07804."""

from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.losses.base import at_students_size
from bdd_seg.losses.divergences import balance_divergence, check_settings


@MODELS.register_module()
class BDDLoss(nn.Module):
    """``loss_weight · balance_divergence(student, teacher)`` as a loss for ``distill_losses``.

    Forward-only settings are older methods: ``reverse_weight=0`` is channel-wise distillation in the
    channel domain and classical knowledge distillation in the pixel domain.

    The temperatures are those of benchmarks/studies, on grids of 12×24 and 15×20 logits: with the same weight
    a temperature of 4, which pulls up to four times as strongly, did worse in every pair of runs there.

    Args:
        domain: What a distribution runs over, ``'channel'`` or ``'pixel'``. The latter is 0 for binary
            heads with a single output channel.
        tau_forward: Temperature of KL(teacher‖student), > 0.
        tau_reverse: Temperature of KL(student‖teacher), > 0.
        forward_weight: Weight of KL(teacher‖student).
        reverse_weight: Weight of KL(student‖teacher).
        loss_weight: Weight of the whole.
        mask_ignored: Whether to leave out pixels labelled ``ignore_index``.
        ignore_index: The label of ignored pixels.
        loss_name: Name in the log, after the prefix ``distill.``. Must contain ``loss``.

    Raises:
        ValueError: An unknown domain, or a temperature that is not positive.
    """

    def __init__(
        self,
        domain: str = 'channel',
        tau_forward: float = 1.0,
        tau_reverse: float = 1.0,
        forward_weight: float = 1.0,
        reverse_weight: float = 1.0,
        loss_weight: float = 3.0,
        mask_ignored: bool = False,
        ignore_index: int = 255,
        loss_name: str = 'loss_bdd',
    ) -> None:
        super().__init__()
        check_settings(domain, tau_forward, tau_reverse)
        self.domain = domain
        self.tau_forward = tau_forward
        self.tau_reverse = tau_reverse
        self.forward_weight = forward_weight
        self.reverse_weight = reverse_weight
        self.loss_weight = loss_weight
        self.mask_ignored = mask_ignored
        self.ignore_index = ignore_index
        self.loss_name = loss_name

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        seg_label: Tensor | None = None,
        align_corners: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compare the logits at the student's resolution.

        Args:
            student_logits: (N, C, H, W).
            teacher_logits: (N, C, H', W'), resized bilinearly where H'×W' differs from H×W.
            seg_label: (N, H_label, W_label) class indices, needed with ``mask_ignored``; resized by
                nearest neighbour.
            align_corners: That of the student's head, for resizing the teacher's logits.
            mask: (N, H', W') bool, True where the teacher's logits are known; resized by nearest
                neighbour.

        Returns:
            The weighted divergence, a float32 scalar.
        """
        size = student_logits.shape[2:]
        teacher_logits, mask = at_students_size(teacher_logits, mask, size, align_corners)
        if self.mask_ignored:
            if seg_label is None:
                raise ValueError('mask_ignored=True needs the labels: call with seg_label')
            label = resize(seg_label[:, None].float(), size, mode='nearest')[:, 0]
            counts = label != self.ignore_index
            mask = counts if mask is None else mask & counts
        return self.loss_weight * balance_divergence(
            student_logits,
            teacher_logits,
            domain=self.domain,
            tau_forward=self.tau_forward,
            tau_reverse=self.tau_reverse,
            forward_weight=self.forward_weight,
            reverse_weight=self.reverse_weight,
            mask=mask,
        )
