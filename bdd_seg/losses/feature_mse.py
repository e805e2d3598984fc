"""Plain feature distillation: the student's features, projected linearly, are to be the teacher's."""

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.losses.base import at_students_size


@MODELS.register_module()
class FeatureMSELoss(nn.Module):
    """Mean squared error between the teacher's features and a 1×1 convolution of the student's.

    Meant for ``student_tap='backbone.layer4', teacher_tap='backbone.layer4'``. Regressing a teacher's
    features through a learned projection goes back to FitNets (https://arxiv.org/abs/1412.6550).
    "The Surprising Effectiveness of Canonical Knowledge Distillation for Semantic Segmentation"
    (https://arxiv.org/abs/2604.25530) says in its abstract that at equal wall-clock time canonical logit- and
    feature-based distillation outperform recent methods made for segmentation. Its text beyond the abstract
    could not be had when this was written: the layer, the projection and the weight are ours.

    The projection's weights train with the student, and :class:`~bdd_seg.engine.LossStateHook` keeps them
    for ``--resume``.

    Args:
        student_channels: C_s, channels of the student's layer.
        teacher_channels: C_t, channels of the teacher's layer.
        loss_weight: Weight of the loss.
        loss_name: Name in the log, after the prefix ``distill.``. Must contain ``loss``.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_feature',
    ) -> None:
        super().__init__()
        self.projection = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        seg_label: Tensor | None = None,
        align_corners: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compare the features at the student's resolution, in float32 whatever comes in.

        Args:
            student: (N, C_s, H, W). Receives a gradient, as does the projection.
            teacher: (N, C_t, H', W'), resized bilinearly where H'×W' differs from H×W. Treated as a
                constant.
            seg_label: Not needed.
            align_corners: That of the student's head, for resizing the teacher's features.
            mask: (N, H', W') bool, True where the teacher's features are known; resized by nearest
                neighbour. Other positions leave the mean.

        Returns:
            ``loss_weight`` times the mean over channels and known positions, a float32 scalar; 0 where
            nothing is known.

        Raises:
            ValueError: Shapes other than these.
        """
        self._check(student, teacher)
        weight, bias = self.projection.parameters()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        teacher, mask = at_students_size(teacher.detach().to(dtype), mask, student.shape[2:], align_corners)
        with torch.autocast(student.device.type, enabled=False):
            difference = F.conv2d(student.to(dtype), weight.to(dtype), bias.to(dtype)) - teacher
        if mask is None:
            return self.loss_weight * difference.square().mean()
        # Always through the difference: DDP wants a gradient from every process, if only one of zeros.
        difference = difference.masked_fill(~mask[:, None], 0)
        count = difference.shape[1] * mask.sum()
        return self.loss_weight * difference.square().sum() / count.clamp(min=1)

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        channels = {'student': self.projection.in_channels, 'teacher': self.projection.out_channels}
        for name, features in (('student', student), ('teacher', teacher)):
            expected = (len(student), channels[name])
            if features.dim() != 4 or features.shape[:2] != expected:
                raise ValueError(
                    f'{name} must be (N, C, H, W) = ({expected[0]}, {expected[1]}, H, W) with '
                    f'{name}_channels={channels[name]}, got {tuple(features.shape)}'
                )
