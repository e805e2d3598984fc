"""Reach the segmentor inside the wrappers that mmengine puts around it.

Reason: mmengine has a test for wrappers (``is_model_wrapper``), but no function that takes them off, and its
``BaseTTAModel`` is not among them.
Test: tests/distill/test_hooks.py, tests/runtime/guards.
Goes when: mmengine has such a function.
"""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the segmentor inside DDP and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = getattr(model, 'module')  # noqa: B009  typed as any module's attribute otherwise
    return model
