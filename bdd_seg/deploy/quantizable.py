"""The graph of an ONNX file, in which any set of operators can be computed in 8 bits.

``QuantizeLinear`` and ``DequantizeLinear`` stand around each operator (QDQ): int8 weights with a scale for
each output channel, uint8 activations. ONNX Runtime computes it in integers. TensorRT refuses zero points
other than 0, which activations have here.
"""

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.progress import track

from bdd_seg.deploy.about import KEY, parse
from bdd_seg.errors import ConfigError
from bdd_seg.teachers.onnx import import_onnxruntime

_WEIGHTED = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')

# Between two weighted operators in integers these would force a way through float and back.
_JOINING = ('Add', 'AveragePool', 'Concat', 'GlobalAveragePool')

# In integers where what comes before them is, so they need no decision of their own.
_FOLLOWING = ('Clip', 'MaxPool', 'Relu')

_OPERATORS = (*_WEIGHTED, *_JOINING, *_FOLLOWING)

_CHUNK = 10  # images whose outputs are held at once while the ranges are found


class QuantizableGraph:
    """The graph of a float ONNX file, any of whose operators can be quantised.

    Args:
        file: A file that ``bdd-seg export`` wrote, without ``--int8``.
        inputs: Images as the file takes them, which set the ranges of the activations.
        count: Number of these.
        reduce_range: Use 7 of the 8 bits, so that sums of two products fit into 16 bits. x86 processors
            without VNNI cut larger ones off.

    Attributes:
        about: The file's facts.
        layers: Node → a name of its layer for users, for each operator that can be quantised, in their order.
            Others are computed in float, or follow these.

    Raises:
        ConfigError: onnx or onnxruntime is missing, the file tells no facts, or has no operator to quantise.
    """

    def __init__(
        self, file: Path, inputs: Iterable[np.ndarray], count: int, reduce_range: bool = False
    ) -> None:
        onnx, _ = import_quantizer()
        self._reduce_range = reduce_range
        source = onnx.load(file)
        self._metadata = {entry.key: entry.value for entry in source.metadata_props}
        self.about = parse(self._metadata.get(KEY), str(file))
        self._opset = next(entry.version for entry in source.opset_import if not entry.domain)
        with TemporaryDirectory() as folder:
            prepared = Path(folder) / 'prepared.onnx'
            self._graph = _prepared(file, prepared)
            self.layers = _layers(self._graph)
            if not self.layers:
                raise ConfigError(f'{file} has no convolution or other operator that 8 bits are for')
            self._following = [node.name for node in self._graph.graph.node if node.op_type in _FOLLOWING]
            self._ranges = _ranges(prepared, Path(folder), inputs, count)

    def quantized(self, nodes: Collection[str]) -> Any:
        """Return the ``onnx.ModelProto`` in which these nodes are quantised, and the others are not."""
        _, quantization = import_quantizer()
        quantizer = quantization.QDQQuantizer(
            _with_barriers(self._graph, self.layers.keys() - set(nodes)),
            per_channel=True,
            reduce_range=self._reduce_range,
            weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=[*nodes, *self._following],
            nodes_to_exclude=[],
            op_types_to_quantize=list(_OPERATORS),
            extra_options={},
        )
        model = quantizer.quantize_model()
        quantizer.model.topological_sort()  # as the format asks for
        self._restore_facts(model)
        return model

    def without(self, in_float: Collection[str]) -> Any:
        """Return the ``onnx.ModelProto`` in which all of ``layers`` are quantised but for these nodes."""
        return self.quantized([node for node in self.layers if node not in in_float])

    def _restore_facts(self, model: Any) -> None:
        """Write the file's own metadata and versions; onnxruntime's optimiser adds sets of operators."""
        onnx, _ = import_quantizer()
        onnx.helper.set_model_props(model, self._metadata)
        used = {node.domain for node in model.graph.node}
        kept = [entry for entry in model.opset_import if not entry.domain or entry.domain in used]
        versions = [onnx.helper.make_opsetid(entry.domain, entry.version) for entry in kept]
        del model.opset_import[:]
        model.opset_import.extend(versions)


def _prepared(file: Path, out: Path) -> Any:
    """Write the graph with constants folded and the types of its tensors inferred; return it."""
    onnx, _ = import_quantizer()
    from onnxruntime.quantization import quant_pre_process

    quant_pre_process(file, out, skip_symbolic_shape=True)
    model = onnx.load(out)
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f'{node.op_type}_{number}'
        taken.add(node.name)
        del node.metadata_props[:]  # the exporter's stack traces, with paths of its machine
    onnx.save(model, out)
    return model


def _layers(model: Any) -> dict[str, str]:
    """Return node → layer for the operators that can be quantised."""
    onnx, _ = import_quantizer()
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    infos = [*model.graph.value_info, *model.graph.output]
    floats = {info.name for info in infos if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    makers = {output: node for node in model.graph.node for output in node.output}
    layers: dict[str, str] = {}
    for node in model.graph.node:
        if node.output[0] not in floats:  # of computations with shapes
            continue
        if node.op_type in _WEIGHTED:
            if node.input[1] not in weights or (node.op_type == 'MatMul' and weights[node.input[1]] != 2):
                continue  # of two activations, in attention and pooling: no faster in integers
            layer, dot, _ = node.input[1].rpartition('.weight')
            layers[node.name] = layer.removeprefix('model.') if dot else node.name
        elif node.op_type in _JOINING:
            before = makers.get(node.input[0])
            while before is not None and before.name not in layers:
                before = makers.get(before.input[0]) if before.input else None
            layers[node.name] = f'{node.op_type} after {layers[before.name]}' if before else node.name
    if not any(node.op_type in _WEIGHTED for node in model.graph.node if node.name in layers):
        return {}
    return layers


def _with_barriers(model: Any, in_float: Collection[str]) -> Any:
    """Return a copy in which what enters each layer in float passes a ``Clip`` that changes nothing.

    Reason: where a float Conv or Gemm stands between two layers of 8 bits, onnxruntime quantises its weights,
    too, when it loads the file (WeightBiasQuantization, https://github.com/microsoft/onnxruntime/pull/22969).
    Test: test_a_layer_in_float_is_computed_in_float.
    Goes when: a file can tell onnxruntime to leave a layer as it is.
    """
    onnx, _ = import_quantizer()
    model = copy.deepcopy(model)
    bounds = [np.array(bound) for bound in (np.finfo(np.float32).min, np.finfo(np.float32).max)]
    names = ['float_lowest', 'float_highest']
    nodes = []
    for node in model.graph.node:
        if node.name in in_float and node.op_type in ('Conv', 'ConvTranspose', 'Gemm'):
            passed = f'{node.name}_input'
            nodes.append(onnx.helper.make_node('Clip', [node.input[0], *names], [passed], f'{passed}_clip'))
            node.input[0] = passed
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        tensors = map(onnx.numpy_helper.from_array, bounds, names)
        model.graph.initializer.extend(tensors)
        nodes = copy.deepcopy(nodes)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def _ranges(file: Path, folder: Path, inputs: Iterable[np.ndarray], count: int) -> Any:
    """Return the least and the greatest value of each tensor over all images.

    Of PSPNet-R18 and SegFormer-B0, trained briefly on street scenes, percentiles (99.99) and entropy gave the
    same mIoU within 0.05 points; they need twice the time and the whole activations.
    """
    _, quantization = import_quantizer()
    calibrator = quantization.create_calibrator(
        file,
        list(_OPERATORS),
        augmented_model_path=str(folder / 'augmented.onnx'),
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    reader = _Reader(inputs)
    for _ in track(range(-(-count // _CHUNK)), 'Calibrating'):
        calibrator.collect_data(reader)
        reader.left = _CHUNK
    return calibrator.compute_data()


class _Reader:
    """The images in the form that onnxruntime's calibration reads, ten at a time.

    Attributes:
        left: How many it gives before it says that there is none.
    """

    def __init__(self, inputs: Iterable[np.ndarray]) -> None:
        self._inputs = iter(inputs)
        self.left = _CHUNK

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image, None for an end."""
        if self.left == 0:
            return None
        self.left -= 1
        image = next(self._inputs, None)
        return None if image is None else {'image': image}


def import_quantizer() -> tuple[Any, Any]:
    """Return the modules ``onnx`` and ``onnxruntime.quantization``.

    Raises:
        ConfigError: They are not installed.
    """
    import_onnxruntime()
    try:
        import onnx  # an extra
        from onnxruntime import quantization
    except ImportError as error:
        raise ConfigError(
            f"quantising needs onnx and onnxruntime ({error}): pip install 'bdd-seg[onnx]'"
        ) from error
    return onnx, quantization
