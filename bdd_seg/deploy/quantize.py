"""Static quantisation of an exported ONNX file to 8 bits, held to a limit on the loss of mIoU.

The result is one ONNX file in which ``QuantizeLinear`` and ``DequantizeLinear`` stand around each operator
(QDQ): int8 weights with a scale for each output channel, uint8 activations. ONNX Runtime, OpenVINO and
TensorRT compute it in integers.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmseg.registry import DATASETS
from rich.progress import track
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from bdd_seg.deploy.about import KEY, About, Size, parse
from bdd_seg.deploy.exported import ExportedFile
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.media import find_sources
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.predictor import Failed, Preparation
from bdd_seg.deploy.verify import at_size
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.configs import leaf_datasets
from bdd_seg.teachers.onnx import import_onnxruntime

CALIBRATION_IMAGES = 100
"""Number of images, at most, whose activations set the ranges of 8 bits."""

_WEIGHTED = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')

# Between two weighted operators in integers these would force a way through float and back.
_JOINING = ('Add', 'AveragePool', 'Concat', 'GlobalAveragePool')

# In integers where what comes before them is, so they need no decision of their own.
_FOLLOWING = ('Clip', 'MaxPool', 'Relu')

_OPERATORS = (*_WEIGHTED, *_JOINING, *_FOLLOWING)

_RANKING_IMAGES = 4
_AGREEMENT_IMAGES = 8
_CHUNK = 10  # images whose outputs are held at once while the ranges are found
_MOST_IN_FLOAT = 0.5  # share of the operators. Beyond it, it is no network of 8 bits


class CalibrationImages(Sequence[Tensor]):
    """Images as the test pipeline prepares them, loaded when they are asked for.

    Item i is (bands, H, W), before it is normalised.

    Args:
        trained: The network with its config.
        paths: Files, folders or patterns; by default the config's training images, whose labels are not
            needed.
        most: How many at most, spread evenly.

    Raises:
        ConfigError: There is none.
    """

    def __init__(self, trained: Trained, paths: Sequence[str] = (), most: int = CALIBRATION_IMAGES) -> None:
        if paths:
            found = [str(source.path) for source in find_sources(paths, '') if not source.is_video]
            infos = [{'img_path': path} for path in found]
        else:
            infos = _training_infos(trained)
        if not infos:
            raise ConfigError('there is no image to calibrate with. Give some: --int8 FOLDER')
        self._infos = spread(infos, most)
        self._prepare = Preparation(trained, keep_picture=False)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        info = self._infos[number]
        loaded = self._prepare(number, dict(info))
        if isinstance(loaded, Failed):
            raise ConfigError(f'{info["img_path"]!r} cannot be read: {loaded.reason}')
        return loaded.inputs


def _training_infos(trained: Trained) -> list[dict[str, Any]]:
    """Return facts about the training images, each once, as their data sets give them to a pipeline."""
    advice = 'Give images of the same kind: --int8 FOLDER'
    loader = trained.cfg and trained.cfg.get('train_dataloader')
    if loader is None:
        raise ConfigError(f'the config has no training images to calibrate with. {advice}')
    infos: dict[str, dict[str, Any]] = {}
    try:
        for settings, _ in leaf_datasets(copy.deepcopy(loader['dataset']), 'train_dataloader.dataset'):
            dataset = DATASETS.build({**settings, 'pipeline': [], 'test_mode': True, 'lazy_init': False})
            for number in range(len(dataset)):
                info = dict(dataset.get_data_info(number))
                infos.setdefault(info['img_path'], info)
    except (OSError, AssertionError) as error:  # mmseg's data sets assert that files are there
        raise ConfigError(
            f"the config's training images are not on this machine ({first_line(error)}). {advice}"
        ) from error
    return list(infos.values())


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most ``most`` of the items, spread evenly, the first among them."""
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]


def as_inputs(network: DeployedNetwork, images: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Yield each image as the network's file takes it, with N = 1.

    Args:
        network: The network, with the facts about its file.
        images: (bands, H, W), before they are normalised.
    """
    for image in images:
        yield at_size(network, [image], input_size(network.about, image)).numpy()


def input_size(about: About, image: Tensor) -> Size:
    """Return (H, W) at which a file sees an image (bands, h, w): its own, a window's, or the image's."""
    height, width = image.shape[1:]
    if about.size is not None:
        return about.size
    if about.windows is not None:
        height, width = about.windows.crop_size
    return -(-height // about.multiple) * about.multiple, -(-width // about.multiple) * about.multiple


class QuantizableGraph:
    """The graph of a float ONNX file, any of whose operators can be quantised.

    Args:
        file: A file that ``bdd-seg export`` wrote, without ``--int8``.
        inputs: Images as the file takes them, which set the ranges of the activations.
        count: Number of these.

    Attributes:
        about: The file's facts.
        layers: Node → a name of its layer for users, for each operator that can be quantised, in their order.
            Others are computed in float, or follow these.

    Raises:
        ConfigError: onnx or onnxruntime is missing, the file tells no facts, or has no operator to quantise.
    """

    def __init__(self, file: Path, inputs: Iterable[np.ndarray], count: int) -> None:
        onnx, _ = import_quantizer()
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
            reduce_range=False,
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


def ranked(
    graph: QuantizableGraph, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> list[str]:
    """Return the nodes of a graph, the one first that changes the outputs most if it alone is quantised.

    Args:
        graph: The graph.
        inputs: A few images as it takes them.
        expected: The outputs of the float graph for them.
    """
    change = {}
    for node in track(graph.layers, 'Ranking the layers'):
        outputs = run(graph.quantized([node]).SerializeToString(), inputs)
        change[node] = float(np.mean([divergence(*pair) for pair in zip(expected, outputs, strict=True)]))
    return sorted(graph.layers, key=lambda node: -change[node])


def divergence(own: np.ndarray, other: np.ndarray) -> float:
    """Return how far outputs are from the float file's, P.

    Args:
        own: Of the float file, P: logits (N, C, h, w), or labels (N, H, W).
        other: Of the quantised one, Q.

    Returns:
        KL(P‖Q) over the classes, the mean over the cells; of labels the share that differs.
    """
    if own.ndim == 3:
        return float(np.mean(own != other))
    if own.shape[1] == 1:  # a binary network: its logit against 0
        own, other = (np.concatenate([np.zeros_like(logits), logits], 1) for logits in (own, other))
    log_p, log_q = (log_softmax(torch.from_numpy(logits).double(), dim=1) for logits in (own, other))
    return kl_div(log_q, log_p, reduction='none', log_target=True).sum(1).mean().item()


def run(model: Path | bytes, inputs: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return the output of an ONNX file, or of its bytes, for each input, computed on the CPU."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    content = model if isinstance(model, bytes) else str(model)
    session = runtime.InferenceSession(content, options, ['CPUExecutionProvider'])
    return [session.run(None, {'image': image})[0] for image in inputs]


def fewest(passes: Callable[[int], bool], most: int) -> int | None:
    """Return the least number, 0 to ``most``, that passes, by doubling and bisection.

    A number above one that passes is taken to pass, too.

    Args:
        passes: Tells whether a number does; expensive.
        most: The largest number that is tried.

    Returns:
        None if ``most`` does not pass.
    """
    failed, number = -1, 0
    while not passes(number):
        if number >= most:
            return None
        failed, number = number, min(max(1, 2 * number), most)
    while number - failed > 1:
        middle = (failed + number) // 2
        if passes(middle):
            number = middle
        else:
            failed = middle
    return number


@dataclass(frozen=True)
class Quantized:
    """A quantised file that was kept.

    Attributes:
        file: The file.
        float_miou: mIoU of the float file in percent.
        miou: mIoU of this one.
        layers: Number of those that can be quantised.
        in_float: Names of the layers that stayed in float, the most sensitive first.
        agreement: Share of the pixels of some images whose class is that of the float file.
        tried: Number of layers in float → mIoU, for each file that was evaluated.
    """

    file: Path
    float_miou: float
    miou: float
    layers: int
    in_float: tuple[str, ...]
    agreement: float
    tried: Mapping[int, float]

    def __str__(self) -> str:
        lost = f'{self.file}: mIoU {self.miou:.2f}, {self.float_miou:.2f} in float'
        agreement = f'classes agree in {100 * self.agreement:.2f} % of the pixels'
        stayed = f'{self.layers - len(self.in_float)} of {self.layers} layers in 8 bits'
        names = f'; in float stayed {", ".join(self.in_float)}' if self.in_float else ''
        return f'{lost}; {agreement}; {stayed}{names}'


def quantize(
    file: Path,
    out: Path,
    network: DeployedNetwork,
    images: Sequence[Tensor],
    evaluate: Callable[[Path, str], float],
    max_drop: float,
    tell: Callable[[str], Any] = print,
) -> Quantized:
    """Quantise a float file, and leave its most sensitive layers in float until the mIoU is high enough.

    Args:
        file: The float file, ``.onnx``.
        out: The file to write. Another of that name is replaced.
        network: The network of which ``file`` was made, with the file's facts.
        images: (bands, H, W) before they are normalised. They set the ranges of 8 bits.
        evaluate: Returns the mIoU in percent of a file; the text names it to the user.
        max_drop: Points of mIoU that may be lost.
        tell: Called with a line for each step.

    Raises:
        ConfigError: onnx or onnxruntime is missing, an image cannot be read, or more is lost even with half
            of the layers in float. No file is written then.
    """
    onnx, _ = import_quantizer()
    tell(f'calibrating on {len(images)} images')
    graph = QuantizableGraph(file, as_inputs(network, images), len(images))
    inputs = list(as_inputs(network, (images[i] for i in spread(range(len(images)), _AGREEMENT_IMAGES))))
    expected = run(file, inputs)
    float_miou = evaluate(file, 'the float file')
    tell(f'in float: mIoU {float_miou:.2f}')
    order: list[str] = []
    tried: dict[int, float] = {}
    with TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:

        def draft(count: int) -> Path:
            return Path(folder) / f'{count}.onnx'

        def passes(count: int) -> bool:
            if count and not order:
                few = _RANKING_IMAGES
                tell('finding the layers that 8 bits change most')
                order.extend(ranked(graph, spread(inputs, few), spread(expected, few)))
            onnx.save(graph.without(order[:count]), draft(count))
            kept = f', {count} of {len(graph.layers)} layers in float' if count else ''
            tried[count] = evaluate(draft(count), f'8 bits{kept}')
            # mmseg rounds to two digits, and a difference of such numbers has more.
            drop = round(float_miou - tried[count], 6)
            tell(f'8 bits{kept}: mIoU {tried[count]:.2f} ({tried[count] - float_miou:+.2f})')
            return drop <= max_drop

        count = fewest(passes, int(len(graph.layers) * _MOST_IN_FLOAT))
        if count is None:
            best = max(tried, key=lambda number: tried[number])
            raise ConfigError(
                f'{str(out)!r} is not written: with 8 bits at least {float_miou - tried[best]:.2f} points of '
                f'mIoU are lost ({tried[best]:.2f} instead of {float_miou:.2f}, with {best} of '
                f'{len(graph.layers)} layers in float), more than --max-drop {max_drop:g}. Allow more, or '
                f'use {str(file)!r}'
            )
        onnx.checker.check_model(onnx.load(draft(count)), full_check=True)
        ExportedFile(draft(count))  # its facts, its input and its output
        outputs = run(draft(count), inputs)
        draft(count).replace(out)
    agreement = [
        np.mean(_classes(network, own, image) == _classes(network, other, image))
        for own, other, image in zip(expected, outputs, inputs, strict=True)
    ]
    return Quantized(
        file=out,
        float_miou=float_miou,
        miou=tried[count],
        layers=len(graph.layers),
        in_float=tuple(graph.layers[node] for node in order[:count]),
        agreement=float(np.mean(agreement)),
        tried=tried,
    )


def _classes(network: DeployedNetwork, output: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the labels (N, H, W), at the size of the image, for an output of a file."""
    if network.about.gives == 'labels':
        return output
    height, width = image.shape[1:3] if network.about.takes == 'pixels' else image.shape[2:]
    return network.labels(torch.from_numpy(output), (height, width)).numpy()


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
