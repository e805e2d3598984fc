"""The cost of a network: its parameters, its operations, its time for one image."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import Tensor, nn

from bdd_seg.distill.student import plain_config
from bdd_seg.errors import first_line
from bdd_seg.runtime.upstream.checkpoints import AUXILIARY


class _Forward(nn.Module):
    """A module that runs another one by a function."""

    def __init__(self, model: nn.Module, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, image: Tensor) -> Any:
        return self._run(self.model, image)


def without_auxiliary_heads(cfg: Config) -> Config:
    """Return a copy of a whole config with the plain network alone that runs once the training is over."""
    cfg = plain_config(cfg)
    cfg.model.pop(AUXILIARY, None)
    return cfg


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


def latency(run: Callable[[], Any], device: torch.device, seconds: float = 4.0, most: int = 20) -> float:
    """Return the median time in seconds of several calls, after two to warm up.

    Args:
        run: Processes one image.
        device: Where it runs.
        seconds: No further call is begun after this time, but there are three at least.
        most: Number of calls at most.
    """
    times: list[float] = []
    begin = time.perf_counter()
    with torch.no_grad():
        for call in range(2 + most):
            if len(times) >= 3 and time.perf_counter() - begin > seconds:
                break
            start = time.perf_counter()
            run()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            if call >= 2:
                times.append(time.perf_counter() - start)
    return median(times)
