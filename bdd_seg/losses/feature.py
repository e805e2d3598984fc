"""Plain feature distillation, as in FitNets, https://arxiv.org/abs/1412.6550."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.losses.base import DistillLoss, run_in_float32
from bdd_seg.losses.blocks import image_by_image
from bdd_seg.losses.pair import Pair, unit


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over channels of (s − t)², (N, H, W)."""
    return (student - teacher).square().mean(dim=1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 − cos(s, t) over channels, (N, H, W)."""
    return 1 - (unit(student, 1) * unit(teacher, 1)).sum(dim=1)


DISTANCES = {'mse': squared_error, 'cosine': cosine_distance}


@MODELS.register_module()
class FeatureLoss(DistillLoss):
    """Mean distance of the teacher's features to a 1×1 convolution of the student's.

    Meant for ``student_tap='backbone.layer4', teacher_tap='backbone.layer4'``. "The Surprising Effectiveness
    of Canonical Knowledge Distillation for Semantic Segmentation" (https://arxiv.org/abs/2604.25530) says in
    its abstract that at equal wall-clock time canonical logit- and feature-based distillation outperform
    recent methods made for segmentation. Its text beyond the abstract could not be had: the layer, the
    projection and the weight are ours.

    Args:
        student_channels: C_s, channels of the student's layer; found where not given.
        teacher_channels: C_t, channels of the teacher's layer; found where not given.
        distance: ``'mse'`` or ``'cosine'``.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: An unknown distance, or as for :class:`~bdd_seg.losses.DistillLoss`.
    """

    channels = 'adapted'

    def __init__(
        self,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
        distance: str = 'mse',
        loss_weight: float = 1.0,
        loss_name: str = 'loss_feature',
        **shared: Any,
    ) -> None:
        super().__init__(
            loss_weight,
            loss_name,
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            **shared,
        )
        if distance not in DISTANCES:
            raise ValueError(f'distance must be one of {sorted(DISTANCES)}, got {distance!r}')
        self.distance = distance

    def adapt(self, student_channels: int, teacher_channels: int) -> None:
        """Make the 1×1 convolution, with a bias."""
        super().adapt(student_channels, teacher_channels)
        self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean distance over the positions that count; 0 where none does."""
        mask = () if pair.mask is None else (pair.mask,)
        return pair.mean(image_by_image(self._distance, pair.student, pair.teacher, *mask))

    def _distance(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        pair = Pair(student, teacher, mask=mask).zeroed()  # a NaN that does not count would spoil gradients
        return DISTANCES[self.distance](run_in_float32(self.adapter, pair.student), pair.teacher)
