"""Run any network for its outputs alone, at the lowest cost that leaves them the same."""

import copy
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdd_seg.distill.taps import LOGITS, Tap, find_taps

PRECISIONS = {None: None, 'bf16': torch.bfloat16}
"""Values of ``precision`` → dtype of autocast and weights."""

FOLDING_TOLERANCE = 0.01
"""Relative error above which folding has made another network. Rounding is 1e-6, on a GPU with TF32 1e-3."""


class FrozenModule:
    """A network that is run for its outputs alone.

    It runs in eval and inference mode, with BatchNorm folded into the convolutions and memory laid out
    channels-last. The outputs are the same to rounding. The first inputs trigger the folding; the network
    follows the inputs to their device and dtype.

    Args:
        model: The network.
        taps: The maps that are wanted, as for :class:`~bdd_seg.distill.taps.Tap`. ``'logits'`` is what
            ``forward`` returns, if that is a tensor.
        forward: Called as ``forward(model, inputs)`` to run it.
        read: Called as ``read(model, inputs, name, output)`` to make a map of what a tapped module put out;
            by default the output is the map.
        precision: None for that of the autocast around the call, if any. ``'bf16'`` for bfloat16 autocast
            with weights kept in bfloat16, which changes the answers slightly.
        compile: Whether to run through ``torch.compile``. Where that fails, a warning says so, and the
            network runs without.

    Raises:
        ConfigError: A tap names no module.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[str],
        forward: Callable[[nn.Module, Tensor], Any] = nn.Module.__call__,
        precision: str | None = None,
        compile: bool = False,
        read: Callable[[nn.Module, Tensor, str, Any], Any] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.taps = sorted(taps)
        self.precision = precision
        self.compile = compile
        self._inner_taps = [tap for tap in self.taps if tap != LOGITS]
        find_taps(model, self._inner_taps)
        self._forward = forward
        self._read = read
        self._run: Callable[[Tensor], dict[str, Tensor]] = self._tapped
        self._is_ready = False
        self._memory_format = torch.channels_last

    @property
    def is_compiled(self) -> bool:
        """True if it runs through ``torch.compile``; known once it has answered."""
        return self._is_ready and self._run != self._tapped

    def __call__(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return tap name → output (N, C, h, w), contiguous, in the dtype of the inputs.

        Args:
            inputs: (N, C, H, W), normalised as the network expects.
        """
        self._get_ready(inputs)
        inputs = inputs.contiguous(memory_format=self._memory_format)
        # SegNeXt's head draws random numbers even in eval mode. They are the same ones each time, and the
        # student's own are left alone.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(), self._autocast(inputs.device):
            torch.default_generator.manual_seed(0)
            outputs = self._answer(inputs)
        # Copies, since autograd cannot keep tensors that were made in inference mode.
        return {
            name: output.to(inputs.dtype).clone(memory_format=torch.contiguous_format)
            for name, output in outputs.items()
        }

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def _get_ready(self, inputs: Tensor) -> None:
        """Follow the inputs to their device and dtype; before the first of them, become cheap."""
        if not self._is_ready:
            self.model = self._folded(self.model.to(inputs.device), inputs[:1])
            self.model.eval().requires_grad_(False)
            self.model.to(memory_format=self._memory_format)  # type: ignore[call-overload]  # torch's stub
            if self.precision is not None:
                for module in self.model.modules():
                    if isinstance(module, nn.Conv2d | nn.Linear):
                        module.to(PRECISIONS[self.precision])
            self._run = torch.compile(self._tapped) if self.compile else self._tapped
            self._is_ready = True
        weight = next(self.model.parameters(), inputs)
        if weight.device != inputs.device:
            self.model.to(inputs.device)
        if self.precision is None and weight.dtype != inputs.dtype:
            self.model.to(inputs.dtype)

    def _folded(self, model: nn.Module, image: Tensor) -> nn.Module:
        """Return the network with folded BatchNorm, if that gives the same answers, else as it is.

        mmcv folds a BatchNorm into the convolution that its module names before it, which is not in every
        network the one that runs before it. And a tap may want what lies between the two. The trial also
        tells whether the network runs channels-last, and whether a tapped output is changed in place.
        """
        images = image.repeat(2, 1, 1, 1)  # of one, any view can be taken
        try:
            original = self._try(model, images.contiguous(memory_format=torch.channels_last))
        except RuntimeError:  # DMNet takes views of maps that are not contiguous then
            self._memory_format = torch.contiguous_format
            original = self._try(model, images)
        if not any(isinstance(module, _BatchNorm) for module in model.modules()):
            return model
        try:
            folded = fuse_conv_bn(copy.deepcopy(model))
            changed = self._try(folded, images.contiguous(memory_format=self._memory_format))
        except Exception as error:  # mmcv can fold no BatchNorm without weights or statistics
            reason = f'{type(error).__name__}: {error}'
        else:
            errors = {tap: relative_error(changed[tap], original[tap]) for tap in self.taps}
            worst = max(errors, key=errors.__getitem__)
            if errors[worst] < FOLDING_TOLERANCE:
                return folded
            reason = f'{worst} would be another by {errors[worst]:.0%}'
        print_log(f"The teacher's BatchNorm is not folded into its convolutions: {reason}", logger='current')
        return model

    def _try(self, model: nn.Module, image: Tensor) -> dict[str, Tensor]:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),  # where a tap sees that an output is changed in place
            torch.autocast(image.device.type, enabled=False),
        ):
            torch.default_generator.manual_seed(0)
            return self._maps(model, image.float())

    def _answer(self, inputs: Tensor) -> dict[str, Tensor]:
        try:
            return self._run(inputs)
        except Exception as error:
            if not self.is_compiled:
                raise
            self._run = self._tapped
            print_log(
                f'The teacher runs without torch.compile, which failed: {type(error).__name__}: '
                f'{str(error).strip().splitlines()[0]}',
                logger='current',
                level=logging.WARNING,
            )
            return self._run(inputs)

    def _tapped(self, inputs: Tensor) -> dict[str, Tensor]:
        return self._maps(self.model, inputs)

    def _maps(self, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        read = None if self._read is None else partial(self._read, model, inputs)
        with Tap(model, self._inner_taps, read) as outputs:
            logits = self._forward(model, inputs)
        return {**outputs, LOGITS: logits} if LOGITS in self.taps else outputs


def relative_error(changed: Tensor, original: Tensor) -> float:
    """Return the norm of the difference of two tensors over that of the original; infinite for NaN."""
    return ((changed - original).norm() / original.norm().clamp(min=1e-12)).nan_to_num(nan=torch.inf).item()
