"""Compare an exported file with the network that it was made of, on real images."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.models import BaseSegmentor
from mmseg.registry import DATASETS
from torch import Tensor

from bdd_seg.deploy.about import About, Size
from bdd_seg.deploy.export import about_size, export_onnx, export_pt2
from bdd_seg.deploy.exported import ExportedFile
from bdd_seg.deploy.layers import first_difference
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.media import find_sources
from bdd_seg.deploy.network import DeployedNetwork, find_multiple
from bdd_seg.deploy.predictor import Failed, Preparation
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.configs import leaf_datasets
from bdd_seg.teachers.segmentors import fixed_input_size

TOLERANCE = 1e-3
"""Largest error of a logit. More is let pass only as rounding: twice of what float32 loses in torch."""

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
        rounding: Largest difference of a logit between torch in float32 and in float64, 0 where the error is
            within 1e-3 and it was not measured.
    """

    size: Size
    images: int
    error: float | None
    largest: float
    agreement: float
    rounding: float = 0.0

    @property
    def tolerance(self) -> float:
        """The largest error that is let pass."""
        return max(TOLERANCE, 2 * self.rounding)

    @property
    def passes(self) -> bool:
        """Whether the file gives what the network does."""
        return (self.error is None or self.error <= self.tolerance) and self.agreement >= LEAST_AGREEMENT

    def __str__(self) -> str:
        height, width = self.size
        error = ''
        if self.error is not None:
            own = f', of which float32 in torch has {self.rounding:.1e}' if self.rounding else ''
            error = f'largest error {self.error:.1e} of logits up to {self.largest:.3g}{own}, '
        return f'{self.images} images {height}×{width}: {error}classes agree in {100 * self.agreement:.3f} %'


def real_images(trained: Trained, count: int, paths: Sequence[str] = ()) -> list[Tensor]:
    """Return images (bands, H, W) as the test pipeline prepares them, before they are normalised.

    Args:
        trained: The network with its config.
        count: How many at most.
        paths: Files, folders or patterns; by default the first images of the config's validation set.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    prepare = Preparation(trained, keep_picture=False)
    infos: list[dict[str, Any]]
    if paths:
        sources = [source.path for source in find_sources(paths, '') if not source.is_video]
        infos = [{'img_path': str(path)} for path in sources]
    else:
        infos = _validation_infos(trained)
    if not infos:
        raise ConfigError('there is no image to compare on. Give some by --images')
    images = []
    for number, info in enumerate(infos[:count]):
        loaded = prepare(number, info)
        if isinstance(loaded, Failed):
            raise ConfigError(f'{info["img_path"]!r} cannot be read: {loaded.reason}')
        images.append(loaded.inputs)
    return images


def _validation_infos(trained: Trained) -> list[dict[str, Any]]:
    """Return facts about the validation images, as their data set gives them to its pipeline."""
    advice = (
        'A file is kept if it gives what torch does on real images, so give some: --images FOLDER. '
        'Random noise would not do'
    )
    assert trained.cfg is not None
    loader = trained.cfg.get('val_dataloader') or trained.cfg.get('test_dataloader')
    if loader is None:
        raise ConfigError(f'the config has no validation images. {advice}')
    settings, _ = next(leaf_datasets(loader['dataset'], 'val_dataloader.dataset'))
    try:
        dataset = DATASETS.build({**settings, 'pipeline': [], 'test_mode': True, 'lazy_init': False})
        return [dict(dataset.get_data_info(number)) for number in range(min(len(dataset), 64))]
    except (OSError, AssertionError) as error:  # mmseg's data sets assert that files are there
        raise ConfigError(
            f"the config's validation images are not on this machine ({first_line(error)}). {advice}"
        ) from error


def at_size(network: DeployedNetwork, images: Sequence[Tensor], size: Size) -> Tensor:
    """Return images as the network takes them, (N, bands, H, W) normalised or (N, H, W, bands) uint8.

    Args:
        network: Tells which.
        images: (bands, h, w) of any size. Windows are cut out of larger images, others are resized.
        size: (H, W).

    Raises:
        ConfigError: The network normalises images of 8 bits itself, and these have more.
    """
    height, width = size
    parts = []
    for image in images:
        if network.about.windows is not None and image.shape[1] >= height and image.shape[2] >= width:
            part = image[None, :, :height, :width].float()
        else:
            part = F.interpolate(image[None].float(), size, mode='bilinear', align_corners=False)
        parts.append(part)
    batch = torch.cat(parts).permute(0, 2, 3, 1)
    if network.about.takes == 'pixels':
        if any(image.dtype != torch.uint8 for image in images):
            raise ConfigError('these images have more than 8 bits: export without --with-preprocessing')
        return batch.round().to(torch.uint8).contiguous()
    return network.normalised(batch)


def compare(
    file: ExportedFile, network: DeployedNetwork, images: Sequence[Tensor], sizes: Sequence[Size]
) -> list[Check]:
    """Compare a file with its network at each size.

    The images go one by one; at another size than the first all at once, which tells whether the file takes
    any number of them.

    Raises:
        ConfigError: The file fails, or puts out another shape.
    """
    checks = []
    for size in sizes:
        batch = at_size(network, images, size)
        parts = batch.split(1) if size == sizes[0] else [batch]
        pairs = [(part, *_outputs(file, network, part)) for part in parts]
        logits = network.about.gives == 'logits'
        error = max((own - other).abs().max().item() for _, own, other in pairs) if logits else None
        same = total = 0
        for _, own, other in pairs:
            if logits:
                own, other = (network.labels(answer, size) for answer in (own, other))
            same, total = same + int((own == other).sum()), total + own.numel()
        checks.append(
            Check(
                size=size,
                images=len(images),
                error=error,
                largest=max(own.abs().max().item() for _, own, _ in pairs) if logits else 0.0,
                agreement=same / total,
                rounding=_rounding(network, pairs) if error is not None and error > TOLERANCE else 0.0,
            )
        )
    return checks


def _rounding(network: DeployedNetwork, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Return the largest difference of a logit between torch in float32 and in float64.

    Args:
        network: The network.
        pairs: Images, and its logits for them in float32, in each the first two.
    """
    exact = copy.deepcopy(network).double()
    try:
        with torch.inference_mode():
            return max(
                (own - exact(batch if batch.dtype == torch.uint8 else batch.double())).abs().max().item()
                for batch, own, _ in pairs
            )
    except RuntimeError:  # it makes tensors in float32 itself
        return 0.0


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
        tell(f'comparing with torch on {len(images)} images')
        file = ExportedFile(draft)
        try:
            checks = compare(file, network, images, sizes)
            failed = next((check for check in checks if not check.passes), None)
            problem, size = (str(failed), failed.size) if failed else ('', sizes[0])
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
