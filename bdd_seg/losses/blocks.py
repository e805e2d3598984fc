"""A sum that is worked out in blocks, so that its memory is that of one block."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Block = TypeVar('Block')


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
