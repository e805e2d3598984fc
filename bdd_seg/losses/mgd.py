"""Masked generative distillation (MGD), https://arxiv.org/abs/2205.01529."""

from dataclasses import replace
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.losses.base import DistillLoss, run_in_float32
from bdd_seg.losses.blocks import image_by_image
from bdd_seg.losses.draws import Draws
from bdd_seg.losses.pair import Pair


@MODELS.register_module()
class MGDLoss(DistillLoss):
    """``Σ(G(f_s · m) − f_t)²/N``: the student's features, most of them masked, generate the teacher's.

    m keeps each position with probability 1 − λ, drawn anew in each step. G is a 3×3 convolution, ReLU, and
    another 3×3 convolution, after a 1×1 convolution where the numbers of channels differ. It is trained with
    the student.

    Args:
        student_channels: C_s, channels of the student's layer; found where not given.
        teacher_channels: C_t, channels of the teacher's layer; found where not given.
        mask_ratio: λ, the share of positions that are masked.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: ``mask_ratio`` is not in [0, 1).
    """

    channels = 'adapted'

    def __init__(
        self,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
        mask_ratio: float = 0.75,
        loss_weight: float = 2e-5,
        loss_name: str = 'loss_mgd',
        **shared: Any,
    ) -> None:
        super().__init__(
            loss_weight,
            loss_name,
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            **shared,
        )
        if not isinstance(mask_ratio, int | float) or not 0 <= mask_ratio < 1:
            raise ValueError(f'mask_ratio must be a number in [0, 1), got {mask_ratio!r}')
        self.mask_ratio = float(mask_ratio)
        self.draws = Draws()

    def adapt(self, student_channels: int, teacher_channels: int) -> None:
        """Make the 1×1 convolution, where it is needed, and the generation block."""
        super().adapt(student_channels, teacher_channels)
        if student_channels != teacher_channels:
            self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def compare(self, pair: Pair) -> Tensor:
        """Return the squared error, summed over channels and positions that count, divided by N."""
        images, _, height, width = pair.student.shape
        random = torch.rand(images, 1, height, width, generator=self.draws.next()).to(pair.student.device)
        kept = random >= self.mask_ratio
        mask = () if pair.mask is None else (pair.mask,)
        errors = image_by_image(self._error, pair.student, pair.teacher, kept, *mask)
        return errors.sum() / max(1, images)

    def _error(self, student: Tensor, teacher: Tensor, kept: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the squared error, (N, H, W)."""
        pair = Pair(student, teacher, mask=mask).zeroed()
        student = run_in_float32(self.adapter, pair.student)
        student = replace(pair, student=student).zeroed().student  # the adapter has a bias
        generated = run_in_float32(self.generation, student * kept)
        return replace(pair, student=generated - pair.teacher).zeroed().student.square().sum(dim=1)
