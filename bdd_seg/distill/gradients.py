"""Weights of losses by the norm of their gradients."""

from collections.abc import Iterable

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn


def gradient_norm(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the L2 norm of a loss's gradient in the parameters, a scalar. The graph is kept."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not loss.requires_grad:
        return loss.detach() * 0
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in found if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else loss.detach() * 0


def balancing_factors(
    own_loss: Tensor,
    losses: dict[str, Tensor],
    student: Iterable[nn.Parameter],
    layers: dict[str, list[nn.Parameter]],
    ratio: float,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return factors with which the norms of losses' gradients are a multiple of that of the student's own.

    Args:
        own_loss: The student's own loss, a scalar.
        losses: Name → distillation loss, a scalar.
        student: The student's parameters.
        layers: Name → parameters of the loss's own layers. They are part of its gradient, or a large factor
            could make their training diverge.
        ratio: The multiple.

    Returns:
        Name → factor, 1 where a gradient is 0 or not finite; and name → norm before, under ``''`` that of
        the student's own loss. Norms are the means over all processes.
    """
    student = list(student)
    norms = torch.stack(
        [
            gradient_norm(own_loss, student),
            *(gradient_norm(loss, [*student, *layers.get(name, ())]) for name, loss in losses.items()),
        ]
    )
    all_reduce(norms, 'mean')
    own, *others = norms.tolist()
    factors = {}
    for name, norm in zip(losses, others, strict=True):
        usable = 0 < norm < float('inf') and 0 < own < float('inf')
        factors[name] = ratio * own / norm if usable else 1.0
    return factors, {'': own, **dict(zip(losses, others, strict=True))}
