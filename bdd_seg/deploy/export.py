"""Write a network as ONNX, as a program of ``torch.export``, or as plain weights."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from bdd_seg.deploy.about import KEY, About, Size
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.portable import config_text, portable_config
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.atomic_files import write_atomically

OPSET = 18
"""Version of the ONNX operators: the one for which torch's exporter is written."""

FORMATS = ('.onnx', '.pt2', '.safetensors')
"""Endings of the files that can be written."""

_LARGEST = 1_900_000_000  # bytes of weights. An ONNX file of 2 GB or more needs others beside it.

_SCOPES = 'pkg.torch.onnx.name_scopes'  # dotted names of a node's module and of those around it


def export_onnx(network: DeployedNetwork, file: Path, size: Size, dynamic: bool) -> None:
    """Write an ONNX file, with its classes and other facts in its metadata.

    Its input is ``image``, its output ``logits`` or ``labels``. Below 2 GB it is one file; else its weights
    are in ``FILE.data`` beside it.

    Args:
        network: The network. Its ``about`` is written as it is.
        file: The file.
        size: (H, W) of the images; of the example, if it is for any size.
        dynamic: Whether it takes any number of images of any size, or one image of that size.

    Raises:
        ConfigError: onnxscript is missing, or the network cannot be exported.
    """
    about = network.about
    metadata = {KEY: about.model_dump_json(), 'classes': json.dumps(about.classes)}
    write_onnx(network, network, file, size, dynamic, [about.gives], metadata)


def write_onnx(
    module: nn.Module,
    network: DeployedNetwork,
    file: Path,
    size: Size,
    dynamic: bool,
    outputs: Sequence[str],
    metadata: dict[str, str],
) -> None:
    """Write a module that takes the images of ``network`` as an ONNX file.

    Args:
        module: The module.
        network: Tells what the images are like.
        file: The file.
        size: As for :func:`export_onnx`, like ``dynamic``.
        dynamic: As there.
        outputs: Names of the outputs.
        metadata: Of the file.

    Raises:
        ConfigError: As there.
    """
    import_exporter()
    program = traced(module, network, size, dynamic)
    try:
        with _quiet():
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(network.axes,) if dynamic else None,
                input_names=['image'],
                output_names=list(outputs),
                verbose=False,
            )
    except Exception as error:  # torch's, onnxscript's and onnx_ir's own, of any kind
        raise ConfigError(f'it cannot be written as ONNX: {first_line(error.__cause__ or error)}') from error
    assert written is not None  # given no file, torch returns the program
    _strip(written.model.graph, dynamic)
    written.model.metadata_props.update(metadata)
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    written.save(file, external_data=weights > _LARGEST)


def _strip(graph: Any, dynamic: bool) -> None:
    """Leave out of an ONNX graph what the exporter noted for its own debugging, but for layers' names.

    Of a file for any size also the shapes within: those that happened to be 1 for the example stand there as
    1 for all images. onnxruntime plans its memory by them, and infers them itself where there are none.
    """
    graph.metadata_props.clear()
    for node in graph:
        for key in node.metadata_props.keys() - {_SCOPES}:
            del node.metadata_props[key]
        for value in node.outputs:
            value.metadata_props.clear()
            if dynamic and not value.is_graph_output():
                value.shape = None


def export_pt2(network: DeployedNetwork, file: Path, size: Size, dynamic: bool) -> None:
    """Write a program of ``torch.export``, with its facts among its extra files.

    Args:
        network: As for :func:`export_onnx`, like the other arguments.
        file: As there.
        size: As there.
        dynamic: As there.

    Raises:
        ConfigError: The network cannot be exported.
    """
    program = traced(network, network, size, dynamic)
    program.example_inputs = None  # they would be written, too
    with _quiet():
        torch.export.save(program, file, extra_files={f'{KEY}.json': network.about.model_dump_json()})


def traced(
    module: nn.Module, network: DeployedNetwork, size: Size, dynamic: bool
) -> torch.export.ExportedProgram:
    """Return the program of a module that takes the images of ``network``.

    Raises:
        ConfigError: torch cannot trace it.
    """
    height, width = size
    if dynamic and height == width:  # torch would take two equal lengths for one
        width *= 2
    example = network.example((2 if dynamic else 1, height, width))
    shapes = ({axis: torch.export.Dim.DYNAMIC for axis in network.axes},) if dynamic else None
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of any kind, from the network's own code as well
        raise ConfigError(f'torch.export cannot trace it: {first_line(error)}') from error
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths of this machine
    return program


def write_safetensors(trained: Trained, file: Path) -> None:
    """Write the weights alone, and the plain config beside them.

    Args:
        trained: The network.
        file: The file. The config gets its name with ``.py``.

    Raises:
        ConfigError: There is another file of the config's name, or a checkpoint whose config it would become.
    """
    assert trained.cfg is not None
    config, text = file.with_suffix('.py'), config_text(portable_config(trained.cfg).settings)
    if config.exists() and config.read_bytes() != text.encode():
        raise ConfigError(
            f'{str(config)!r} exists, where the config of these weights is to be written. Choose another '
            f'name for {str(file)!r}, or remove it'
        )
    checkpoint = file.with_suffix('.pth')
    if checkpoint.exists() and not config.exists():
        raise ConfigError(
            f'{str(config)!r}, the config of these weights, would become that of {str(checkpoint)!r}, too. '
            f'Choose another name for {str(file)!r}'
        )
    weights = {name: tensor.detach().clone() for name, tensor in trained.model.state_dict().items()}
    write_atomically(file, save(weights, {'format': 'pt', KEY: trained.about.model_dump_json()}))
    write_atomically(config, text)


def import_exporter() -> Any:
    """Return the module ``onnxscript``, which torch's exporter needs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import onnxscript  # an extra
    except ImportError as error:
        raise ConfigError(
            f"exporting ONNX needs onnx and onnxscript ({error}): pip install 'bdd-seg[onnx]'"
        ) from error
    return onnxscript


def about_size(about: About, size: Size, dynamic: bool, multiple: int) -> About:
    """Return the facts about a file for images of one size, or of any."""
    changes = {'size': None, 'multiple': multiple} if dynamic else {'size': size, 'multiple': 1}
    return about.model_copy(update=changes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters log about their own steps. What fails is raised."""
    loggers = [logging.getLogger(name) for name in ('torch', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
