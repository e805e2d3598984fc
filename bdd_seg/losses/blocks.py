"""Block-wise evaluation of losses, with bounded memory."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Block = TypeVar('Block')
_LARGE = 2**24  # elements of a map from which images are taken one by one


def image_by_image(function: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """Return ``function(*maps)``, for large maps one image at a time, whose intermediates are not kept.

    The backward pass computes an image anew, which takes a third of the time more.

    Args:
        function: Returns (N, ...) from maps (N, ...), each image apart from the others.
        maps: Tensors of N images.
    """
    if max(one.numel() for one in maps) < _LARGE:
        return function(*maps)
    images = zip(*(one.split(1) for one in maps), strict=True)
    return torch.cat([checkpoint(function, *image, use_reentrant=False) for image in images])


def sum_over_blocks(
    function: Callable[[Tensor, Block], Tensor], x: Tensor, blocks: Iterable[Block]
) -> Tensor:
    """Return ``sum(function(x, block) for block in blocks)`` with one block's intermediates at a time.

    The gradient in ``x`` is computed beside the value, and is the only tensor that the backward pass keeps.

    Args:
        function: Returns a scalar. Its gradient flows into its first argument alone.
        x: The tensor that receives the gradient.
        blocks: The second arguments.
    """
    return _SumOverBlocks.apply(x, function, blocks, x.requires_grad and torch.is_grad_enabled())


class _SumOverBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, function: Callable[..., Tensor], blocks: Iterable[Any], with_gradient: bool
    ) -> Tensor:
        total, gradient = x.new_zeros(()), torch.zeros_like(x) if with_gradient else None
        for block in blocks:
            with torch.set_grad_enabled(with_gradient):
                leaf = x.detach().requires_grad_(with_gradient)
                value = function(leaf, block)
                if gradient is not None:
                    gradient += torch.autograd.grad(value, leaf)[0]
            total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None, None
