"""The cost of a network: its parameters and operations."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn

from bdd_seg.errors import first_line


class _Forward(nn.Module):
    """A module that runs another one by a function."""

    def __init__(self, model: nn.Module, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, image: Tensor) -> Any:
        return self._run(self.model, image)


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def operations(model: nn.Module, run: Callable[[Any, Tensor], Any], image: Tensor) -> tuple[int | None, str]:
    """Return the multiply-adds for an image, and, where they cannot be counted, None and why.

    Args:
        model: The network, in eval mode.
        run: Called as ``run(model, image)``.
        image: (1, bands, H, W).
    """
    analysis = FlopAnalyzer(_Forward(model, run), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
    try:
        with torch.no_grad():
            return int(analysis.total()), ''
    except Exception as error:  # of any kind, from networks that torch cannot trace
        return None, f'operations cannot be counted: {first_line(error)}'
