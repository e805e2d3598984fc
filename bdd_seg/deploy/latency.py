"""Time that one image takes in torch and in exported files, with one thread and with all."""

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor

from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.teachers.frozen import FOLDING_TOLERANCE, relative_error
from bdd_seg.teachers.onnx import import_onnxruntime, session_options

_WARM_UP = 3
_SECONDS = 10.0  # for all that is compared with one number of threads
_FEWEST, _MOST = 5, 100  # rounds


@dataclass(frozen=True)
class Latency:
    """Times of one image, in milliseconds.

    Attributes:
        median: The median of all rounds.
        low: The first quartile.
        high: The third quartile.
    """

    median: float
    low: float
    high: float

    @property
    def images_per_second(self) -> float:
        """Its reciprocal, at the median."""
        return 1000 / self.median

    def __str__(self) -> str:
        return f'{self.median:.1f} ms ({self.low:.1f}–{self.high:.1f})'


@dataclass(frozen=True)
class Row:
    """A network in one form.

    Attributes:
        name: Of the form, such as ``ONNX``.
        miou: In percent, None where it was not measured.
        size: Bytes of the weights or of the file.
        latencies: Number of threads → latency.
    """

    name: str
    miou: float | None
    size: int
    latencies: Mapping[int, Latency]


def all_threads() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def measure(
    network: DeployedNetwork,
    files: Mapping[str, Path],
    image: Tensor,
    threads: Sequence[int] | None = None,
    seconds: float = _SECONDS,
) -> dict[str, dict[int, Latency]]:
    """Return the latencies of a network in torch and in ONNX files, on the CPU.

    The forms take turns, so that what else the machine does slows all of them alike. In torch, batch norm is
    folded into the convolutions before it, as onnxruntime has it, where that leaves the network the same.

    Args:
        network: The network.
        files: Name → ONNX file.
        image: As the network takes it, N = 1.
        threads: Numbers of threads; by default 1 and all of the machine's.
        seconds: Time for each number of threads, about.

    Returns:
        ``torch`` and each of ``files`` → number of threads → latency.
    """
    fused = with_folded_batch_norm(network.cpu(), image)
    found: dict[str, dict[int, Latency]] = {name: {} for name in ('torch', *files)}
    for count in dict.fromkeys(threads or (1, all_threads())):
        forms: dict[str, Callable[[], Any]] = {'torch': lambda: fused(image)}
        forms |= {name: _onnx(file, image, count) for name, file in files.items()}
        with _torch_threads(count), torch.inference_mode():
            for name, times in in_turns(forms, seconds).items():
                low, median, high = np.percentile(times, [25, 50, 75]).tolist()
                found[name][count] = Latency(median, low, high)
    return found


def in_turns(forms: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Call functions in turns and return the times of each in milliseconds.

    Args:
        forms: Name → function.
        seconds: When to stop, once there are five rounds; there are a hundred at most.
    """
    for form in forms.values():
        for _ in range(_WARM_UP):
            form()
    times: dict[str, list[float]] = {name: [] for name in forms}
    end = time.perf_counter() + seconds
    for done in range(_MOST):
        if done >= _FEWEST and time.perf_counter() > end:
            break
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def with_folded_batch_norm(network: torch.nn.Module, image: Tensor) -> torch.nn.Module:
    """Return a copy with batch norm folded into convolutions, or the network where that changes it.

    mmcv folds a batch norm into the convolution that its module names before it, which is not in every
    network, such as PIDNet, the one that runs before it.
    """
    with torch.no_grad():
        try:
            folded = fuse_conv_bn(copy.deepcopy(network)).eval()
            error = relative_error(folded(image).float(), network(image).float())
        except (RuntimeError, AttributeError):  # shapes that do not fit, a batch norm without weights
            return network
    return folded if error < FOLDING_TOLERANCE else network


def _onnx(file: Path, image: Tensor, threads: int) -> Callable[[], Any]:
    """Return a function that runs a file on an image."""
    options = session_options(threads)
    # Else its threads spin while torch has its turn.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = import_onnxruntime().InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    inputs = {'image': image.numpy()}
    return lambda: session.run(None, inputs)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weight_bytes(network: DeployedNetwork) -> int:
    """Return the bytes of a network's weights, as a checkpoint has them."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def table(rows: Sequence[Row]) -> str:
    """Return the table as lines of text."""
    counts = list(rows[0].latencies)
    head = ['', 'mIoU', 'size']
    for count in counts:
        head += [f'{count} thread{"" if count == 1 else "s"}', 'images/s']
    lines = [head]
    for row in rows:
        cells = [row.name, '–' if row.miou is None else f'{row.miou:.2f}', f'{row.size / 1e6:.2f} MB']
        for count in counts:
            latency = row.latencies[count]
            cells += [str(latency), f'{latency.images_per_second:.1f}']
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join([line[0].ljust(widths[0]), *(map(str.rjust, line[1:], widths[1:]))]) for line in lines
    )
