"""The numbers of channels of tapped maps, from a forward pass without data."""

from collections.abc import Iterable

import torch
from mmseg.models import BaseSegmentor

from bdd_seg.distill.taps import Tap

_SIZE = (256, 256)  # of the input; meta tensors have no data, so that it costs nothing


def map_channels(model: BaseSegmentor, taps: Iterable[str]) -> dict[str, int]:
    """Return tap name → channels, by a forward pass on torch's meta device.

    The model is left as it is, on whatever device.

    Args:
        model: The network. Auxiliary heads do not run.
        taps: Dotted names of its modules.

    Raises:
        ConfigError: A tap names no module, or one that does not run or does not put out one tensor.
        Exception: Of any kind, where the network computes with the values of tensors.
    """
    tensors = {name: tensor.to('meta') for name, tensor in model.named_parameters()}
    tensors |= {name: tensor.to('meta') for name, tensor in model.named_buffers()}
    training = {module: module.training for module in model.modules()}
    inputs = torch.empty(1, 3, *_SIZE, device='meta')
    try:
        for module in training:
            module.training = False  # not by eval(), with which some networks freeze parts of themselves
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Tap(model, taps) as outputs:
            torch.func.functional_call(model, tensors, (inputs,), {'mode': 'tensor'})
    finally:
        for module, mode in training.items():
            module.training = mode
    return {name: output.shape[1] for name, output in outputs.items()}
