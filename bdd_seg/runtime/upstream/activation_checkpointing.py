"""Activation checkpointing under which the outputs of inner modules keep their gradient.

Reason: mmengine's ``turn_on_activation_checkpointing`` leaves ``use_reentrant`` to torch, whose default runs
the module without gradients and once more in the backward pass. What a forward hook sees within it, such as
the logits that a distillation loss compares, then has no gradient, and only positional arguments go through.
Test: tests/runtime/upstream/test_activation_checkpointing.py.
Goes when: mmengine passes ``use_reentrant=False``, or torch has it as its default.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from mmengine.runner import activation_checkpointing
from torch.utils.checkpoint import checkpoint


def wrap_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a module's ``forward`` that computes its activations again in the backward pass."""
    return wraps(forward)(partial(checkpoint, forward, use_reentrant=False))


def apply() -> None:
    """Let ``turn_on_activation_checkpointing``, and so the Runner, use :func:`wrap_forward`."""
    activation_checkpointing.wrap_forward = wrap_forward
