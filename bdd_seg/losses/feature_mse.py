"""Plain feature distillation: a linear map of the student's features regresses the teacher's."""

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.losses.base import DistillLoss, Pair


@MODELS.register_module()
class FeatureMSELoss(DistillLoss):
    """Mean squared error between the teacher's features and a 1×1 convolution of the student's.

    Meant for ``student_tap='backbone.layer4', teacher_tap='backbone.layer4'``. Regressing a teacher's
    features through a learned projection goes back to FitNets (https://arxiv.org/abs/1412.6550). "The
    Surprising Effectiveness of Canonical Knowledge Distillation for Semantic Segmentation"
    (https://arxiv.org/abs/2604.25530) says in its abstract that at equal wall-clock time canonical logit- and
    feature-based distillation outperform recent methods made for segmentation. Its text beyond the abstract
    could not be had: the layer, the projection and the weight are ours.

    The projection's weights train with the student, and :class:`~bdd_seg.distill.LossStateHook` keeps them
    for ``--resume``.

    Args:
        student_channels: C_s, channels of the student's layer.
        teacher_channels: C_t, channels of the teacher's layer.
        loss_weight: Weight of the loss.
        loss_name: Name in the log, after the prefix ``distill.``. Must contain ``loss``.

    Raises:
        ValueError: ``loss_weight`` is no number, or ``loss_name`` does not contain ``loss``.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_feature',
    ) -> None:
        super().__init__(loss_weight, loss_name)
        self.projection = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean over channels and positions that count; 0 where none does.

        Raises:
            ValueError: The channels are not those of the projection.
        """
        self._check_channels(pair)
        weight, bias = self.projection.parameters()
        dtype = torch.promote_types(weight.dtype, pair.student.dtype)
        projected = F.conv2d(pair.student.to(dtype), weight.to(dtype), bias.to(dtype))
        return pair.mean((projected - pair.teacher).square().mean(dim=1))

    def _check_channels(self, pair: Pair) -> None:
        expected = {'student': self.projection.in_channels, 'teacher': self.projection.out_channels}
        for name, features in (('student', pair.student), ('teacher', pair.teacher)):
            if features.shape[1] != expected[name]:
                raise ValueError(
                    f'{name} must be (N, C, H, W) = ({len(features)}, {expected[name]}, H, W) with '
                    f'{name}_channels={expected[name]}, got {tuple(features.shape)}'
                )
