"""Find the layer at which an exported file begins to differ from its network."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bdd_seg.deploy.about import Size
from bdd_seg.deploy.export import traced, write_onnx
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.errors import first_line
from bdd_seg.teachers.onnx import import_onnxruntime

_LAYER_TOLERANCE = 1e-3  # of the largest value that a layer puts out


def first_difference(
    network: DeployedNetwork, batch: Tensor, size: Size, dynamic: bool, folder: Path, suffix: str
) -> str:
    """Export the network once more with the outputs of all layers, and compare these one by one.

    Args:
        network: The network.
        batch: Images as it takes them, with which its file differs.
        size: (H, W) of the example for the export.
        dynamic: Whether the file takes images of any size.
        folder: Where a file can be written.
        suffix: ``'.onnx'`` or ``'.pt2'``.

    Returns:
        The first layer, in the order in which they end, that differs by more than 1e-3 of its largest value,
        and how; or that there is none; or why that cannot be told.
    """
    layers = _Layers(network)
    with torch.inference_mode():
        expected = layers(batch)
    names, failure = list(layers.names), ''
    try:
        if suffix == '.pt2':
            with torch.inference_mode():
                found = traced(layers, network, size, dynamic).module()(batch)
        else:
            file = folder / 'layers.onnx'
            write_onnx(
                layers, network, file, size, dynamic, [str(number) for number in range(len(names))], {}
            )
            found, failure = _onnx_outputs(file, batch.numpy())
    except Exception as error:  # the runtimes' exceptions have no base of their own
        return f'which layer differs cannot be told: {first_line(error)}'
    for name, own, other in zip(names, expected, found, strict=False):
        difference = _difference(own, other)
        if difference is not None:
            return f'the first layer whose output differs is {name}: {difference}'
    if len(found) < len(names):
        return f'the first layer that cannot be computed is {names[len(found)]}: {failure}'
    return 'no layer alone differs by more than a thousandth: rounding errors add up'


class _Layers(nn.Module):
    """A network that puts out what each of its modules does, in the order in which they end.

    Attributes:
        names: Dotted names of the modules, for the outputs of the last call.
    """

    def __init__(self, network: DeployedNetwork) -> None:
        super().__init__()
        self.network = network
        self.names: list[str] = []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        names: list[str] = []
        outputs: list[Tensor] = []

        def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, list | tuple) and output else output
            if isinstance(first, Tensor):
                names.append(name)
                outputs.append(first.clone())  # a later module may change it in place

        handles = [
            module.register_forward_hook(partial(note, name))
            for name, module in self.network.model.named_modules()
            if name
        ]
        try:
            outputs.append(self.network(image))
        finally:
            for handle in handles:
                handle.remove()
        self.names = [*names, f'the {self.network.about.gives}']
        return tuple(outputs)


def _onnx_outputs(file: Path, image: np.ndarray) -> tuple[list[Tensor], str]:
    """Run an ONNX file of many outputs; return those up to the first that cannot be computed, and why."""
    import onnx  # an extra, there where a file was written
    from onnx.utils import Extractor

    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4

    def run(graph: bytes) -> list[np.ndarray]:
        return runtime.InferenceSession(graph, options, ['CPUExecutionProvider']).run(None, {'image': image})

    model = onnx.load(file)
    names = [output.name for output in model.graph.output]
    try:
        return [torch.from_numpy(array) for array in run(model.SerializeToString())], ''
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        failure = first_line(error)
    found: list[np.ndarray] = []
    good, bad = 0, len(names)  # outputs before good can be computed, those before bad cannot
    extractor = Extractor(model)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            found = run(extractor.extract_model(['image'], names[:middle]).SerializeToString())
            good = middle
        except Exception as error:
            failure, bad = first_line(error), middle
    return [torch.from_numpy(array) for array in found], failure


def _difference(own: Tensor, other: Tensor) -> str | None:
    """Tell how two outputs of a layer differ, None if they do not."""
    if own.shape != other.shape:
        return f'{tuple(other.shape)} instead of {tuple(own.shape)}'
    largest = own.abs().max().item()
    error = (own - other).abs().max().item() if own.is_floating_point() else float((own != other).any())
    if error <= _LAYER_TOLERANCE * max(largest, 1e-6):
        return None
    return f'an error of {error:.1e} at values up to {largest:.3g}, {tuple(own.shape)}'
