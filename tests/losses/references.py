"""Float64 arithmetic on plain lists, and inputs, that the tests of several losses share."""

import math
from itertools import product

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHAPES = [(2, 4, 5, 7), (1, 3, 6, 4), (3, 5, 3, 3), (2, 2, 4, 5), (1, 7, 1, 9)]
"""(N, C, H, W), with batches of 1 and 3 and odd sizes."""

BALANCES = [
    {},
    {'tau': 3.0},
    {'tau': 2.0, 'tau_reverse': 0.7, 'forward_weight': 0.6, 'reverse_weight': 1.7},
    {'tau': 1.5, 'reverse_weight': 7.0},
]
"""Settings of a balanced divergence, that of the method as published among them."""


def draw(shape, seed: int = 0, masked: bool = False, scale: float = 2.0) -> tuple[Tensor, ...]:
    """Return student, teacher (N, C, H, W) float64, labels with 255 among them, and a mask or None."""
    generator = torch.Generator().manual_seed(seed)
    images, classes, height, width = shape
    student, teacher = (
        torch.randn(shape, generator=generator, dtype=torch.float64) * scale for _ in range(2)
    )
    label = torch.randint(classes, (images, height, width), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.25] = 255
    mask = torch.rand(label.shape, generator=generator) < 0.7 if masked else None
    return student, teacher, label, mask


def positions(label: Tensor, mask: Tensor | None, ignore_index: int = 255) -> list[tuple[int, int, int]]:
    """Return the places (n, y, x) that are labelled, and known by the mask."""
    return [
        place
        for place in product(*map(range, label.shape))
        if label[place] != ignore_index and (mask is None or mask[place])
    ]


def log_softmax(values: list[float], tau: float = 1.0) -> list[float]:
    """Return the logarithms of the softened probabilities."""
    highest = max(values)
    total = math.fsum(math.exp((value - highest) / tau) for value in values)
    return [(value - highest) / tau - math.log(total) for value in values]


def kl(log_p: list[float], log_q: list[float]) -> float:
    """Return KL(P‖Q) of two distributions' logarithms."""
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def balance(
    student: list[float],
    teacher: list[float],
    tau: float = 1.0,
    tau_reverse: float | None = None,
    forward_weight: float = 1.0,
    reverse_weight: float = 0.0,
) -> float:
    """Return α·τ²·KL(p‖q) + β·τ_r²·KL(q‖p) of one distribution's logits."""
    tau_reverse = tau_reverse or tau
    forward = kl(log_softmax(teacher, tau), log_softmax(student, tau))
    reverse = kl(log_softmax(student, tau_reverse), log_softmax(teacher, tau_reverse))
    return forward_weight * tau**2 * forward + reverse_weight * tau_reverse**2 * reverse


def mean(values: list[float]) -> float:
    """Return the mean, 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


class LargestTemporary(TorchDispatchMode):
    """The most elements that an operation put out, other than views and the gradient that is kept."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        aliases = any(a.alias_info is not None for a in func._schema.returns)
        if not aliases and func is not torch.ops.aten.empty_like.default:
            sizes = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            self.elements = max(self.elements, *sizes, 0)
        return output
