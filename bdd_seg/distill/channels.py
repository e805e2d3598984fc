"""The number of channels of a tapped map, from a forward pass without data."""

import torch
from mmseg.models import BaseSegmentor
from torch import Tensor, nn

from bdd_seg.distill.taps import Tap, run_all_heads

_SIZE = (256, 256)  # of the input; meta tensors have no data, so that it costs nothing


def map_channels(model: BaseSegmentor, tap: str) -> int:
    """Return the number of channels of a module's output, by a forward pass on torch's meta device.

    The model is left as it is, on whatever device.

    Args:
        model: The network.
        tap: The dotted name of one of its modules. Those of auxiliary heads run, too.

    Raises:
        ConfigError: The tap names no module, or one that does not run or does not put out one tensor.
        Exception: Of any kind, where the network computes with the values of tensors.
    """
    whole = _AllHeads(model)
    tensors = {name: tensor.to('meta') for name, tensor in whole.named_parameters()}
    tensors |= {name: tensor.to('meta') for name, tensor in whole.named_buffers()}
    training = {module: module.training for module in model.modules()}
    bands = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    inputs = torch.empty(1, bands, *_SIZE, device='meta')
    try:
        for module in training:
            module.training = False  # not by eval(), with which some networks freeze parts of themselves
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Tap(model, [tap]) as outputs:
            torch.func.functional_call(whole, tensors, (inputs,))
    finally:
        for module, mode in training.items():
            module.training = mode
    return outputs[tap].shape[1]


class _AllHeads(nn.Module):
    """A segmentor whose forward pass runs all of its heads."""

    def __init__(self, model: BaseSegmentor) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> None:
        run_all_heads(self.model, inputs)
