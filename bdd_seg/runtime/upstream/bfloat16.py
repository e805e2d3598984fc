"""Mixed precision in bfloat16 on any device.

Reason: mmengine's ``AmpOptimWrapper`` asserts a GPU, and scales losses, which bfloat16 does not need.
Test: tests/runtime/upstream/test_bfloat16.py.
Goes when: ``AmpOptimWrapper(dtype='bfloat16')`` runs on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn


class BFloat16OptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` whose forward passes run in bfloat16 autocast. Arguments are ``OptimWrapper``'s."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter the wrapper's own context, and autocast to bfloat16 on the model's device."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def apply() -> None:
    """Register :class:`BFloat16OptimWrapper` beside mmengine's."""
    OPTIM_WRAPPERS.register_module(module=BFloat16OptimWrapper)
