"""Cross-image relational distillation (CIRKD) with queues of the teacher's features."""

import math
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.losses.balanced import BalancedLoss
from bdd_seg.losses.base import run_in_float32
from bdd_seg.losses.blocks import sum_over_blocks
from bdd_seg.losses.divergences import check_weights
from bdd_seg.losses.draws import Draws
from bdd_seg.losses.pair import Pair, unit
from bdd_seg.losses.queues import ClassQueues

MODES = ('paper', 'code')
_SIMILARITIES = 2**22  # worked on at a time


@MODELS.register_module()
class CIRKDMemoryLoss(BalancedLoss):
    """KL between the similarities of positions to pixels and regions of earlier images.

    From https://arxiv.org/abs/2204.06986. Queues keep, for each class, normalised features of the teacher: of
    single positions, and their means over a class in an image. From each step's batch up to 16 positions a
    class and image are added, from all processes. Then keys are drawn, equally many of each class. The loss
    is ``w · mean over positions of KL(softmax(f̂_t·keysᵀ/τ) ‖ softmax(f̂_s·keysᵀ/τ))``, with w_p for keys that
    are positions, plus the same with w_r for keys that are regions. f̂_s is a projection of the student's
    features, 1×1 convolution, BatchNorm, ReLU, 1×1 convolution, trained with the student.

    The queues take ``4·K·C_t·(pixel_memory + region_memory)`` bytes, 856 MB for 19 classes and 512 channels,
    and as much in each checkpoint.

    Args:
        num_classes: K. Labels are below it.
        tau: τ, which divides the similarities. The authors' code divides by 0.1, and then by 1.0.
        student_channels: C_s; found where not given.
        teacher_channels: C_t; found where not given.
        pixel_weight: w_p.
        region_weight: w_r.
        pixel_memory: Positions that each class's queue holds.
        region_memory: Regions that each class's queue holds.
        pixel_keys: Positions drawn in each step, of all classes together, with repetition.
        region_keys: Regions drawn in each step.
        positions: Labelled positions of the batch that are compared, drawn in each step; None for all, as
            in the authors' code.
        mode: ``'paper'`` adds positions of the class to its queue; ``'code'`` adds as many positions of the
            whole image, as common code does.
        **shared: ``forward_weight``, ``reverse_weight`` and ``tau_reverse`` as for
            :class:`~bdd_seg.losses.BalancedLoss`, and the arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: A temperature that is not positive, a weight that is no number, an unknown mode, or a
            label that is no class.
    """

    channels = 'adapted'
    needs_labels = True
    added = 16  # positions of a class and image that are added to its queue in each step

    def __init__(
        self,
        num_classes: int,
        tau: float = 0.1,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
        pixel_weight: float = 0.1,
        region_weight: float = 0.1,
        pixel_memory: int = 20_000,
        region_memory: int = 2_000,
        pixel_keys: int = 4096,
        region_keys: int = 1024,
        positions: int | None = 2048,
        mode: str = 'paper',
        loss_weight: float = 1.0,
        loss_name: str = 'loss_cirkd_memory',
        **shared: Any,
    ) -> None:
        super().__init__(tau, loss_weight=loss_weight, loss_name=loss_name, **shared)
        check_weights(pixel_weight=pixel_weight, region_weight=region_weight)
        sizes = {
            'num_classes': num_classes,
            'pixel_memory': pixel_memory,
            'region_memory': region_memory,
            'pixel_keys': pixel_keys,
            'region_keys': region_keys,
            'positions': 2 if positions is None else positions,
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f'{name} must be a whole number from 1 on, got {size!r}')
        if mode not in MODES:
            raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
        self.num_classes = num_classes
        self.pixel_weight = float(pixel_weight)
        self.region_weight = float(region_weight)
        self.pixel_memory = pixel_memory
        self.region_memory = region_memory
        self.pixel_keys = pixel_keys
        self.region_keys = region_keys
        self.positions = positions
        self.mode = mode
        self.draws = Draws()
        self.adapt_if_known(student_channels, teacher_channels)

    def adapt(self, student_channels: int, teacher_channels: int) -> None:
        """Make the projection and the queues."""
        super().adapt(student_channels, teacher_channels)
        self.projection = nn.Sequential(
            nn.Linear(student_channels, teacher_channels, bias=False),
            nn.BatchNorm1d(teacher_channels, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(teacher_channels, teacher_channels, bias=False),
        )
        self.pixels = ClassQueues(self.num_classes, self.pixel_memory, teacher_channels)
        self.regions = ClassQueues(self.num_classes, self.region_memory, teacher_channels)

    def compare(self, pair: Pair) -> Tensor:
        """Return the weighted sum of both mean divergences; 0 where fewer than two positions are labelled."""
        label, mask = pair.labelled()
        generator = self.draws.next()
        teacher = torch.empty_like(pair.teacher)
        for out, features, counts in zip(teacher, pair.teacher, mask, strict=True):
            out.copy_(unit(features.masked_fill(~counts, 0), 0))
        self._remember(teacher, label, mask, generator)
        rows = mask.flatten().nonzero().flatten()
        if self.positions is not None and len(rows) > self.positions:
            rows = rows[torch.randperm(len(rows), generator=generator)[: self.positions].to(rows.device)]
        if len(rows) < 2:  # of which BatchNorm can make no statistics; DDP wants a gradient all the same
            student = pair.zeroed().student
            return 0 * sum((weight.sum() for weight in self.projection.parameters()), student.sum())
        image, at = rows // mask[0].numel(), rows % mask[0].numel()
        student, teacher = (x.flatten(2)[image, :, at] for x in (pair.student, teacher))
        student = unit(run_in_float32(self.projection, student), 1)
        pixels = self.pixels.draw(math.ceil(self.pixel_keys / self.num_classes), generator)
        regions = self.regions.draw(math.ceil(self.region_keys / self.num_classes), generator)
        against_pixels = self._against(student, teacher, *pixels)
        against_regions = self._against(student, teacher, *regions)
        return self.pixel_weight * against_pixels + self.region_weight * against_regions

    def _against(self, student: Tensor, teacher: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
        """Return the mean divergence of M rows' similarities to the keys that are valid."""
        keys = keys.to(teacher.dtype)

        def divergence(student: Tensor, rows: slice) -> Tensor:
            students, teachers = (student[rows] @ keys.T)[None], (teacher[rows] @ keys.T)[None]
            value = self.similarity_divergence(students, teachers, valid.expand_as(students))
            return len(teacher[rows]) / len(teacher) * value

        step = max(1, _SIMILARITIES // len(keys))
        return sum_over_blocks(
            divergence, student, [slice(i, i + step) for i in range(0, len(teacher), step)]
        )

    def _remember(self, teacher: Tensor, label: Tensor, mask: Tensor, generator: torch.Generator) -> None:
        """Add positions and regions of the teacher's normalised features (N, C, H, W) to the queues."""
        highest = int(label.masked_fill(~mask, 0).max()) if label.numel() else 0
        if highest >= self.num_classes:
            raise ValueError(f'label {highest} is none of num_classes={self.num_classes} classes')
        label, mask, features = label.flatten(1), mask.flatten(1), teacher.flatten(2).mT  # (N, H·W, C)
        classes = torch.arange(self.num_classes, device=label.device)[:, None]
        members = (label[:, None] == classes) & mask[:, None]  # (N, K, H·W)
        count = members.sum(2, keepdim=True)
        means = unit(members.to(features.dtype) @ features / count.clamp(min=1), 2)
        self.regions.put(means[:, :, None], count > 0)
        random = torch.rand(members.shape, generator=generator).to(mask.device)
        if self.mode == 'code':
            members = mask[:, None]
        chosen = random.masked_fill(~members, -1).topk(min(self.added, mask.shape[1]), dim=2)
        pixels = features.gather(1, chosen.indices.flatten(1)[..., None].expand(-1, -1, features.shape[2]))
        # As many as the class has positions, up to 16.
        valid = (chosen.values >= 0) & (torch.arange(chosen.values.shape[2], device=mask.device) < count)
        self.pixels.put(pixels.unflatten(1, chosen.indices.shape[1:]), valid)
