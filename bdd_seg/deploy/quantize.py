"""Static quantisation of an exported ONNX file to 8 bits, held to a limit on the loss of mIoU."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from bdd_seg.deploy.exported import ExportedFile
from bdd_seg.deploy.images import as_inputs, spread
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.quantizable import QuantizableGraph, import_quantizer
from bdd_seg.errors import ConfigError
from bdd_seg.teachers.onnx import import_onnxruntime, session_options

_RANKING_IMAGES = 4
_AGREEMENT_IMAGES = 8
_MOST_IN_FLOAT = 0.5  # share of the operators. Beyond it, it is no network of 8 bits


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
    content = model if isinstance(model, bytes) else str(model)
    options = session_options(torch.get_num_threads())
    session = import_onnxruntime().InferenceSession(content, options, ['CPUExecutionProvider'])
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
    reduce_range: bool = False,
) -> Quantized:
    """Quantise a float file, and leave its most sensitive layers in float until the mIoU is high enough.

    Args:
        file: The float file, ``.onnx``.
        out: The file to write. Another of that name is removed first.
        network: The network of which ``file`` was made, with the file's facts.
        images: (bands, H, W) before they are normalised. They set the ranges of 8 bits.
        evaluate: Returns the mIoU in percent of a file; the text names it to the user.
        max_drop: Points of mIoU that may be lost.
        tell: Called with a line for each step.
        reduce_range: As for :class:`~bdd_seg.deploy.quantizable.QuantizableGraph`.

    Raises:
        ConfigError: onnx or onnxruntime is missing, an image cannot be read, or more is lost even with half
            of the layers in float. There is no such file then.
    """
    onnx, _ = import_quantizer()
    if out.exists():  # of other weights, perhaps
        out.unlink()
        tell(f'removed {out}, which was there before')
    tell(f'calibrating on {len(images)} images')
    graph = QuantizableGraph(file, as_inputs(network, images), len(images), reduce_range)
    inputs = list(as_inputs(network, (images[i] for i in spread(range(len(images)), _AGREEMENT_IMAGES))))
    expected = run(file, inputs)
    float_miou = evaluate(file, 'the float file')
    tell(f'in float: mIoU {float_miou:.2f}')
    with TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
        drafts = _Drafts(graph, Path(folder), inputs, expected, evaluate, tell)
        count = fewest(
            lambda number: drafts.drop(number, float_miou) <= max_drop,
            int(len(graph.layers) * _MOST_IN_FLOAT),
        )
        if count is None:
            best = max(drafts.tried, key=lambda number: drafts.tried[number])
            raise ConfigError(
                f'{str(out)!r} is not written: with 8 bits at least {float_miou - drafts.tried[best]:.2f} '
                f'points of mIoU are lost ({drafts.tried[best]:.2f} instead of {float_miou:.2f}, with {best} '
                f'of {len(graph.layers)} layers in float), more than --max-drop {max_drop:g}. Allow more, or '
                f'use {str(file)!r}'
            )
        draft = drafts.file(count)
        onnx.checker.check_model(onnx.load(draft), full_check=True)
        ExportedFile(draft, 'cpu')  # its facts, its input and its output
        outputs = run(draft, inputs)
        draft.replace(out)
    agreement = [
        np.mean(_classes(network, own, image) == _classes(network, other, image))
        for own, other, image in zip(expected, outputs, inputs, strict=True)
    ]
    return Quantized(
        file=out,
        float_miou=float_miou,
        miou=drafts.tried[count],
        layers=len(graph.layers),
        in_float=tuple(graph.layers[node] for node in drafts.order[:count]),
        agreement=float(np.mean(agreement)),
        tried=drafts.tried,
    )


class _Drafts:
    """Files in 8 bits, in which more and more layers stay in float.

    Args:
        graph: The graph.
        folder: The folder for the files.
        inputs: Images as the file takes them, of which some rank the layers.
        expected: The outputs of the float file for them.
        evaluate: As for :func:`quantize`.
        tell: As there.

    Attributes:
        order: The nodes, the most sensitive first; empty until one stays in float.
        tried: Number of layers in float → mIoU in percent.
    """

    def __init__(
        self,
        graph: QuantizableGraph,
        folder: Path,
        inputs: Sequence[np.ndarray],
        expected: Sequence[np.ndarray],
        evaluate: Callable[[Path, str], float],
        tell: Callable[[str], Any],
    ) -> None:
        self.graph, self.folder = graph, folder
        self.inputs, self.expected = (spread(arrays, _RANKING_IMAGES) for arrays in (inputs, expected))
        self.evaluate, self.tell = evaluate, tell
        self.order: list[str] = []
        self.tried: dict[int, float] = {}

    def file(self, count: int) -> Path:
        """Return the file with so many layers in float."""
        return self.folder / f'{count}.onnx'

    def drop(self, count: int, float_miou: float) -> float:
        """Write the file with so many layers in float, and return the points of mIoU that it loses."""
        onnx, _ = import_quantizer()
        if count and not self.order:
            self.tell('finding the layers that 8 bits change most')
            self.order = ranked(self.graph, self.inputs, self.expected)
        onnx.save(self.graph.without(self.order[:count]), self.file(count))
        kept = f', {count} of {len(self.graph.layers)} layers in float' if count else ''
        self.tried[count] = self.evaluate(self.file(count), f'8 bits{kept}')
        # mmseg rounds to two digits, and a difference of such numbers has more.
        drop = round(float_miou - self.tried[count], 6)
        self.tell(f'8 bits{kept}: mIoU {self.tried[count]:.2f} ({-drop:+.2f})')
        return drop


def _classes(network: DeployedNetwork, output: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the labels (N, H, W), at the size of the image, for an output of a file."""
    if network.about.gives == 'labels':
        return output
    height, width = image.shape[1:3] if network.about.takes == 'pixels' else image.shape[2:]
    return network.labels(torch.from_numpy(output), (height, width)).numpy()
