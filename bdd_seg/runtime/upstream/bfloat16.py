"""Mixed precision in bfloat16 on any device, and a warning where it is slow.

Reason: mmengine's ``AmpOptimWrapper`` asserts a GPU, and scales losses, which bfloat16 does not need. torch
computes in bfloat16 on any CPU, without a word where that takes many times as long as float32.
Test: tests/runtime/upstream/test_bfloat16.py.
Goes when: ``AmpOptimWrapper(dtype='bfloat16')`` runs on a CPU, and torch warns itself.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn
from torch.optim import Optimizer

# Of x86 and of ARM, by torch's names.
_UNITS = ('avx512_bf16', 'amx_bf16', 'avx10_2', 'bf16', 'sve_bf16')


def is_slow() -> bool:
    """Return whether the networks run on a CPU that has no units for bfloat16.

    torch asks the processor. Limits such as ``ONEDNN_MAX_CPU_ISA`` do not change the answer, and torch
    releases that cannot tell do not count as slow.
    """
    if get_device() != 'cpu' or not hasattr(torch.cpu, 'get_capabilities'):
        return False
    capabilities = torch.cpu.get_capabilities()
    return not any(capabilities.get(unit) for unit in _UNITS)


def warn_if_slow(setting: str, advice: str) -> None:
    """Log a warning of one line where bfloat16 is slow.

    Args:
        setting: The flag or setting that asks for bfloat16, to begin the line with.
        advice: Its cost, and what to use instead.
    """
    if is_slow():
        print_log(f'{setting}: this CPU has no units for bfloat16. {advice}', 'current', logging.WARNING)


class BFloat16OptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` whose forward passes run in bfloat16 autocast. Arguments are ``OptimWrapper``'s."""

    def __init__(
        self,
        optimizer: Optimizer,
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad)
        warn_if_slow(
            'mixed precision',
            'A training step was measured there at 4.4 times one in float32. Use OptimWrapper, without --amp '
            'and --bf16',
        )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter the wrapper's own context, and autocast to bfloat16 on the model's device."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def apply() -> None:
    """Register :class:`BFloat16OptimWrapper` beside mmengine's."""
    OPTIM_WRAPPERS.register_module(module=BFloat16OptimWrapper)
