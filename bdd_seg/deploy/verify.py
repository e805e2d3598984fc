"""Compare an exported file with the network that it was made of, on real images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmseg.models import BaseSegmentor
from torch import Tensor

from bdd_seg.deploy.about import About, Size
from bdd_seg.deploy.export import about_size, export_onnx, export_pt2
from bdd_seg.deploy.exported import ExportedFile
from bdd_seg.deploy.images import at_size
from bdd_seg.deploy.layers import first_difference
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.network import DeployedNetwork, find_multiple
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.teachers.segmentors import fixed_input_size

TOLERANCE = 1e-3
"""Largest error of a logit."""

RELATIVE_TOLERANCE = 2e-4
"""The same as a part of the largest absolute logit. The larger limit counts: float32 has 7 digits."""

LEAST_AGREEMENT = 0.999
"""Share of the pixels whose class must be the same."""


@dataclass(frozen=True)
class Check:
    """The comparison at one size.

    Attributes:
        size: (H, W) of the images.
        images: Their number.
        error: Largest difference of a logit; None where the file puts out labels.
        largest: Largest absolute logit.
        agreement: Share of the pixels, at the size of the images, whose class is the same.
    """

    size: Size
    images: int
    error: float | None
    largest: float
    agreement: float

    @property
    def tolerance(self) -> float:
        """The largest error that is let pass."""
        return max(TOLERANCE, RELATIVE_TOLERANCE * self.largest)

    @property
    def passes(self) -> bool:
        """True if the file gives what the network does."""
        return (self.error is None or self.error <= self.tolerance) and self.agreement >= LEAST_AGREEMENT

    def __str__(self) -> str:
        height, width = self.size
        error = ''
        if self.error is not None:
            error = f'largest error {self.error:.1e} of logits up to {self.largest:.3g}, '
        images = f'{self.images} image{"" if self.images == 1 else "s"} {height}×{width}'
        return f'{images}: {error}classes agree in {100 * self.agreement:.3f} %'


def compare(
    file: ExportedFile, network: DeployedNetwork, images: Sequence[Tensor], sizes: Sequence[Size]
) -> list[Check]:
    """Compare a file with its network at each size.

    The images go one by one; at another size than the first all at once, a single one twice, which tells
    whether the file takes any number of them.

    Raises:
        ConfigError: The file fails, or puts out another shape.
    """
    checks = []
    logits = network.about.gives == 'logits'
    for size in sizes:
        batch = at_size(network, images, size)
        if size != sizes[0] and len(batch) == 1:
            batch = torch.cat([batch, batch])
        pairs = [_outputs(file, network, part) for part in (batch.split(1) if size == sizes[0] else [batch])]
        error, largest = None, 0.0
        if logits:
            # As an array, whose maximum is NaN if one of them is.
            error = float(np.max([(own - other).abs().max() for own, other in pairs]))
            largest = float(np.max([own.abs().max() for own, _ in pairs]))
            pairs = [(network.labels(own, size), network.labels(other, size)) for own, other in pairs]
        same, total = (
            sum(int((own == other).sum()) for own, other in pairs),
            sum(own.numel() for own, _ in pairs),
        )
        checks.append(Check(size, len(images), error, largest, same / total))
    return checks


def _outputs(file: ExportedFile, network: DeployedNetwork, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the network and the file put out.

    Raises:
        ConfigError: The file fails, or puts out another shape.
    """
    with torch.inference_mode():
        own = network(batch)
    try:
        other = file(batch)
    except Exception as error:  # the runtimes' exceptions have no base of their own
        raise ConfigError(f'it fails on images {tuple(batch.shape)}: {first_line(error)}') from error
    if own.shape != other.shape:
        raise ConfigError(
            f'for images {tuple(batch.shape)} it puts out {tuple(other.shape)}, torch {tuple(own.shape)}'
        )
    return own, other


@dataclass(frozen=True)
class Exported:
    """A file that was kept.

    Attributes:
        file: The file.
        about: Its facts.
        checks: The comparisons that it has passed.
        fixed_because: Why it is not for any size, where it was to be.
    """

    file: Path
    about: About
    checks: tuple[Check, ...]
    fixed_because: str | None


def export_verified(
    model: BaseSegmentor,
    about: About,
    out: Path,
    images: Sequence[Tensor],
    size: Size,
    dynamic: bool | None = None,
    tell: Callable[[str], Any] = print,
) -> Exported:
    """Export a network, compare the file with it on images, and keep it if both give the same.

    Args:
        model: The segmentor.
        about: Facts about it; ``takes`` and ``gives`` say what the file shall take and give.
        out: The file, ``.onnx`` or ``.pt2``. Another of that name is replaced.
        images: As :func:`real_images` gives them.
        size: (H, W) of a file for one size, and the first that one for any size is compared at.
        dynamic: Whether it is for any size and number of images; None for so if that passes, else for one.
        tell: Called with a line for each step.

    Raises:
        ConfigError: It cannot be exported, or differs. There is no file then.
    """
    multiple = None if fixed_input_size(model) else find_multiple(DeployedNetwork(model, about))
    because = None
    if multiple is None:
        because = f'the network takes images of {size[0]}×{size[1]} only'
        if dynamic:
            raise ConfigError(f'{str(out)!r} cannot be for any size: {because}')
        dynamic = False
    elif any(length % multiple for length in size):
        raise ConfigError(
            f'images of {size[0]}×{size[1]}: this network takes lengths that are multiples of {multiple}'
        )
    for is_dynamic in [True, False] if dynamic is None else [dynamic]:
        facts = about_size(about, size, is_dynamic, multiple or 1)
        network = DeployedNetwork(model, facts)
        sizes = [size, other_size(size, multiple or 1)] if is_dynamic else [size]
        try:
            return Exported(out, facts, _export_and_check(network, out, images, sizes, tell), because)
        except ConfigError as error:
            if not is_dynamic or dynamic:
                raise ConfigError(f'{str(out)!r} is not written: {error}') from error
            because = str(error)
    raise AssertionError('a file for one size is the last that is tried')


def _export_and_check(
    network: DeployedNetwork,
    out: Path,
    images: Sequence[Tensor],
    sizes: Sequence[Size],
    tell: Callable[[str], Any],
) -> tuple[Check, ...]:
    """Export a network in a folder beside ``out``, compare, and move the file to its place.

    Raises:
        ConfigError: It cannot be exported, or differs.
    """
    dynamic = network.about.size is None
    height, width = sizes[0]
    write = export_onnx if out.suffix == '.onnx' else export_pt2
    with TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
        draft = Path(folder) / out.name
        tell(f'exporting for images of {"any size" if dynamic else f"{height}×{width}"}')
        write(network, draft, sizes[0], dynamic)
        tell(f'comparing with torch on {len(images)} image{"" if len(images) == 1 else "s"}')
        file = ExportedFile(draft, 'cpu')
        try:
            checks = compare(file, network, images, sizes)
            failed = next((check for check in checks if not check.passes), None)
            problem, size = '', sizes[0]
            if failed is not None:
                limits = (
                    f'at most {failed.tolerance:.1e} and at least {100 * LEAST_AGREEMENT:g} % are let pass'
                )
                problem, size = f'{failed}, and {limits}', failed.size
        except ConfigError as error:
            checks, problem, size = [], str(error), sizes[-1]
        if problem:
            tell('looking for the layer that differs')
            batch = at_size(network, images[:1], size)
            layer = first_difference(network, batch, sizes[0], dynamic, Path(folder), out.suffix)
            raise ConfigError(f'{problem}; {layer}')
        for part in Path(folder).glob(f'{out.name}*'):  # a file of 2 GB or more has another beside it
            part.replace(out.with_name(part.name))
    return tuple(checks)


def other_size(size: Size, multiple: int) -> Size:
    """Return a second size, lower and wider, whose lengths are odd multiples of a number."""
    height, width = (
        (int(length * factor) // (2 * multiple) * 2 + 1) * multiple
        for length, factor in zip(size, (0.75, 1.25), strict=True)
    )
    return height, width


def default_size(trained: Trained, image: Tensor) -> Size:
    """Return (H, W) for a file of one size: of the network's own, of its windows, or of an image."""
    windows = trained.about.windows
    own = fixed_input_size(trained.model) or (windows and windows.crop_size)
    if own:
        return own
    multiple = find_multiple(DeployedNetwork(trained.model, trained.about)) or 1
    height, width = (-(-length // multiple) * multiple for length in image.shape[1:])
    return height, width
