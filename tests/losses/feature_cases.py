"""Pairs of small feature maps, and arithmetic on lists of numbers for the references of the losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from bdd_seg.losses import DistillLoss
from bdd_seg.losses.draws import Draws

SHAPES = [(1, 3, 5, 5, 7), (3, 4, 2, 4, 3), (3, 3, 3, 1, 6)]
"""(N, C_s, C_t, H, W)."""

EXCLUDED = ['nothing', 'mask', 'labels', 'both', 'an image', 'everything']
"""Causes: unknown answers, labels 255, both; and all positions of one image, or of all images."""

CLASSES = 3

Vector = list[float]


@dataclass
class Case:
    """Arguments of a loss, in float64 with values that float32 can hold."""

    student: Tensor
    teacher: Tensor
    label: Tensor
    mask: Tensor | None

    @property
    def counts(self) -> Tensor:
        """(N, H, W) bool, True where a position counts."""
        labelled = self.label != 255
        return labelled if self.mask is None else labelled & self.mask

    @property
    def settings(self) -> dict:
        """Arguments of a loss that compares positions without a label unless it is told not to."""
        return {'mask_ignored': bool((self.label == 255).any())}

    @property
    def arguments(self) -> dict:
        return {'seg_label': self.label, 'mask': self.mask}

    def positions(self, n: int) -> list[tuple[int, int]]:
        """The positions (y, x) of an image that count, row by row."""
        height, width = self.counts.shape[1:]
        return [(y, x) for y in range(height) for x in range(width) if self.counts[n, y, x]]


def make_case(shape: Sequence[int], excluded: str = 'nothing', seed: int = 0) -> Case:
    images, students, teachers, *size = shape
    rng = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(images, channels, *size, generator=rng).double() for channels in (students, teachers)
    )
    label = torch.randint(CLASSES, (images, *size), generator=rng)
    draw = torch.rand(2, images, *size, generator=rng)
    mask = None
    if excluded in ('labels', 'both'):
        label[draw[0] < 0.4] = 255
    if excluded in ('mask', 'both'):
        mask = draw[1] > 0.4
    if excluded == 'an image':
        mask = draw[1] > 0.4
        mask[0] = False
    if excluded == 'everything':
        label[draw[0] < 0.5] = 255
        mask = label == 255
    return Case(student, teacher, label, mask)


def check_value(loss: DistillLoss, case: Case, expected: float) -> None:
    """Check a loss's value, in float64 and in float32, and that it is 0 where no position counts."""
    assert expected > 1e-4 or not case.counts.any()
    value = loss.double()(case.student, case.teacher, **case.arguments)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=0)
    value = loss.float()(case.student.float(), case.teacher.float(), **case.arguments)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=2e-5, abs=0)


def check_gradient(loss: DistillLoss, case: Case, prepare=lambda: None) -> None:
    """Check the gradient in the student and in the loss's parameters against differences of the value.

    Args:
        loss: Any.
        case: Small ones.
        prepare: Called before the loss, if it has a state to be put back.
    """
    loss.double()
    student, teacher = case.student.clone().requires_grad_(), case.teacher.clone().requires_grad_()
    mask = case.mask

    def value(student: Tensor, *parameters: nn.Parameter) -> Tensor:
        prepare()
        return loss(student, teacher, case.label, mask=mask)

    assert torch.autograd.gradcheck(value, (student, *loss.parameters()))
    value(student).backward()
    assert teacher.grad is None
    assert not student.grad.movedim(1, 3)[~case.counts].any()
    assert student.grad.any() or not case.counts.any()


def check_minimum(loss: DistillLoss, case: Case, same: Tensor) -> None:
    """Check that value and gradient are 0 at a teacher's map that is as good as the student's."""
    student = case.student.clone().requires_grad_()
    value = loss(student, same, **case.arguments)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-10 * loss.loss_weight)
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-10 * loss.loss_weight)


def seed_of(loss: DistillLoss, call: int) -> int:
    """The seed of this process's random numbers in a call of a loss, counted from 0."""
    draws = Draws()
    draws.seed.copy_(loss.draws.seed)
    draws.count.fill_(call)
    return draws.next().initial_seed()


def vector(features: Tensor, n: int, y: int, x: int) -> Vector:
    return features[n, :, y, x].tolist()


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def normalised(a: Vector) -> Vector:
    """The vector of length 1; zeros stay zeros."""
    length = math.sqrt(dot(a, a)) or 1.0
    return [x / length for x in a]


def cosine(a: Vector, b: Vector) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def mean(values: Sequence[float]) -> float:
    """The mean, 0 of no values."""
    return math.fsum(values) / max(1, len(values))


def mean_vector(vectors: list[Vector]) -> Vector:
    return [mean(column) for column in zip(*vectors, strict=True)]


def softmax(logits: Vector, tau: float) -> Vector:
    powers = [math.exp((x - max(logits)) / tau) for x in logits]
    return [power / math.fsum(powers) for power in powers]


def kl(p: Vector, q: Vector) -> float:
    return math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


def balanced(teacher: Vector, student: Vector, loss: DistillLoss) -> float:
    """α·KL(p‖q) + β·KL(q‖p) of similarities, without τ²."""
    tau, tau_reverse = loss.temperatures
    forward = kl(softmax(teacher, tau), softmax(student, tau))
    reverse = kl(softmax(student, tau_reverse), softmax(teacher, tau_reverse))
    return loss.forward_weight * forward + loss.reverse_weight * reverse


def windows(features: Tensor, case: Case, n: int, size: tuple[int, int]) -> list[list[Vector]]:
    """The vectors of each window of an image that count, of those windows that have any, row by row."""
    height, width = features.shape[2:]
    found = []
    for top in range(0, height, size[0]):
        for left in range(0, width, size[1]):
            window = [
                vector(features, n, y, x)
                for y, x in case.positions(n)
                if top <= y < top + size[0] and left <= x < left + size[1]
            ]
            if window:
                found.append(window)
    return found
