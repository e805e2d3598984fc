"""Run an exported file, or pass it to mmseg as a segmentor."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from bdd_seg.deploy.about import KEY, About, Size, parse
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.teachers.normalise import Normalisation, renormalise
from bdd_seg.teachers.onnx import open_session

SUFFIXES = ('.onnx', '.pt2')
"""Endings of the files that run without a config."""


class ExportedFile(nn.Module):
    """An ONNX file or a program of ``torch.export``, with the facts that it holds.

    Args:
        file: A file that ``bdd-seg export`` wrote. A ``.pt2`` is a program: load only those you trust.
        device: On which it runs, such as ``cpu``; by default a GPU if there is one.

    Raises:
        ConfigError: It is missing, damaged, tells no facts or such that do not fit, or holds pickled objects.
    """

    def __init__(self, file: str | Path, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.device = torch.device(device or get_device())
        self.file = Path(file).expanduser()
        if not self.file.is_file():
            raise ConfigError(
                f'{str(self.file)!r} does not exist. Give a file that bdd-seg export has written'
            )
        if self.file.suffix == '.onnx':
            self.session = open_session(self.file, str(self.file), self.device)
            text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        elif self.file.suffix == '.pt2':
            self.session = None
            # As a submodule it would refuse eval().
            text, self.program = _load_program(self.file, self.device)
        else:
            raise ConfigError(f'{str(self.file)!r} is neither an .onnx nor a .pt2 file')
        self.about: About = parse(text, str(self.file))
        if self.session is not None:
            self._check_ends()

    def forward(self, image: Tensor) -> Tensor:
        """Return what the file puts out, logits (N, C, h, w) or labels (N, H, W), on the images' device.

        Args:
            image: As ``about.takes`` says, of ``about.size`` where that is given.
        """
        if self.session is None:
            with torch.inference_mode():
                parts = image.to(self.device)
                answers = [self.program(part) for part in (parts.split(1) if self.about.size else [parts])]
                return torch.cat(answers).to(image.device)
        array = image.detach().cpu().contiguous().numpy()
        (wanted,) = self.session.get_inputs()
        # A file that fixes the number of images has 1.
        batches = np.split(array, len(array)) if wanted.shape[0] == 1 else [array]
        outputs = [self.session.run(None, {wanted.name: batch})[0] for batch in batches]
        return torch.from_numpy(np.concatenate(outputs)).to(image.device)

    def describe(self) -> str:
        """Return its path, its size, and the number and size of images that it takes."""
        size = self.about.size
        takes = f'one image of {size[0]}×{size[1]}' if size else 'images of any size'
        return f'{self.file}, {self.file.stat().st_size / 1e6:.2f} MB, for {takes}'

    def _check_ends(self) -> None:
        """Check that an ONNX file takes and gives what its facts say."""
        ends = [*self.session.get_inputs(), *self.session.get_outputs()]
        bands, channels = self.about.bands, self.about.channels
        expected = [
            ('n', 'h', 'w', bands) if self.about.takes == 'pixels' else ('n', bands, 'h', 'w'),
            ('n', 'h', 'w') if self.about.gives == 'labels' else ('n', channels, 'h', 'w'),
        ]
        if len(ends) != 2 or not all(
            _fits(end.shape, shape) for end, shape in zip(ends, expected, strict=True)
        ):
            found = ', '.join(f'{end.name} {end.shape}' for end in ends)
            raise ConfigError(
                f'{self.file}: its facts, {len(self.about.classes)} classes and images of {bands} channels, '
                f'do not fit its inputs and outputs ({found}). Export it again'
            )


@MODELS.register_module()
class ExportedSegmentor(EncoderDecoder):
    """An exported file as an mmseg segmentor, for prediction and evaluation.

    Images of another size than a file's only one are resized to it, and the logits back. Where lengths must
    be multiples of a number, the mean is added at the right and below. Of a file that gives labels, the
    "logits" are 1 for the class and 0 for all others.

    Args:
        file: A file that ``bdd-seg export`` wrote.
        test_cfg: Of mmseg; by default the file's own: sliding windows or whole images.
        data_preprocessor: A config's. Its padding counts, ``test_cfg`` and ``pad_val``; how images are
            normalised, the file tells.
        device: On which the file runs; by default a GPU if there is one.

    Raises:
        ConfigError: As for :class:`ExportedFile`.
    """

    def __init__(
        self,
        file: str | Path,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        exported = ExportedFile(file, device)
        about = exported.about
        # Not EncoderDecoder's own: there is neither a backbone nor a head to build.
        settings = data_preprocessor or {}
        padding = {key: settings[key] for key in ('test_cfg', 'pad_val') if key in settings}
        BaseModel.__init__(self, data_preprocessor={**preprocessor(about), **padding})
        self.exported = exported
        self.about = about
        self.align_corners = about.align_corners
        self.num_classes = len(about.classes)
        self.out_channels = about.channels
        self.test_cfg = ConfigDict(test_cfg or inference_settings(about))
        self.decode_head = _Head(about)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict] | None = None) -> Tensor:
        """Return the logits (N, C, H, W) at the size of the images (N, bands, H, W)."""
        height, width = inputs.shape[2:]
        return self.forward_logits(inputs, (height, width))

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        return self.forward_logits(inputs, None)

    def forward_logits(self, inputs: Tensor, size: Size | None) -> Tensor:
        """Return the logits, resized to ``size`` if it is given.

        Args:
            inputs: (N, bands, H, W), normalised.
            size: (H, W) or None for the network's own grid.
        """
        height, width = inputs.shape[2:]
        images = inputs
        if self.about.size is not None:
            if (height, width) != self.about.size:
                images = F.interpolate(inputs, self.about.size, mode='bilinear', align_corners=False)
        else:
            images = F.pad(inputs, (0, -width % self.about.multiple, 0, -height % self.about.multiple))
        output = self._run(images)
        if size is None:
            return output
        if self.about.size is None and images.shape != inputs.shape:  # without the padding
            padded_height, padded_width = images.shape[2:]
            output = self._resized(output, (padded_height, padded_width))[:, :, :height, :width]
        return self._resized(output, size)

    def _run(self, images: Tensor) -> Tensor:
        """Return the logits of images of a size that the file takes, on its own grid."""
        about = self.about
        if about.takes == 'pixels':
            images = _pixels(images, about.normalisation)
        try:
            output = self.exported(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the runtimes' exceptions have no base of their own
            raise ConfigError(
                f'{self.exported.file} does not run on images {tuple(images.shape)}: {first_line(error)}'
            ) from error
        if about.gives == 'labels':
            if output.max() >= len(about.classes):
                raise ConfigError(
                    f'{self.exported.file} gives the label {output.max()}, and tells {len(about.classes)} '
                    'classes. Export it again'
                )
            return _as_logits(output, about)
        if output.shape[1] != about.channels:
            raise ConfigError(
                f'{self.exported.file} gives {output.shape[1]} logits, and tells {len(about.classes)} '
                'classes. Export it again'
            )
        return output

    def _resized(self, logits: Tensor, size: Size) -> Tensor:
        if tuple(logits.shape[2:]) == size:
            return logits
        return resize(logits, size, mode='bilinear', align_corners=self.align_corners, warning=False)


class _Head(nn.Module):
    """The attributes of a head that mmseg asks of a segmentor."""

    def __init__(self, about: About) -> None:
        super().__init__()
        self.num_classes = len(about.classes)
        self.out_channels = about.channels
        self.align_corners = about.align_corners
        self.threshold = about.threshold
        self.ignore_index = 255


def preprocessor(about: About) -> dict[str, Any]:
    """Return the settings of the ``SegDataPreProcessor`` that a file's images need."""
    return {
        'type': SegDataPreProcessor,
        'mean': list(about.mean),
        'std': list(about.std),
        'bgr_to_rgb': about.bgr_to_rgb,
    }


def segmentor_for(file: str | Path, cfg: Config) -> dict[str, Any]:
    """Return the settings of a model that stands for a config's own: a file that was made of it.

    Args:
        file: A file that ``bdd-seg export`` wrote.
        cfg: The whole config.
    """
    padding = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    return {'type': 'ExportedSegmentor', 'file': str(file), 'data_preprocessor': padding}


def inference_settings(about: About) -> dict[str, Any]:
    """Return mmseg's ``test_cfg``."""
    if about.windows is None:
        return {'mode': 'whole'}
    return {'mode': 'slide', 'crop_size': about.windows.crop_size, 'stride': about.windows.stride}


def _fits(shape: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Return whether a shape in an ONNX file can be another one. Lengths that are not fixed have names."""
    return len(shape) == len(expected) and all(
        own == other
        for own, other in zip(shape, expected, strict=True)
        if isinstance(own, int) and isinstance(other, int)
    )


def _as_logits(labels: Tensor, about: About) -> Tensor:
    """Return (N, C, H, W): 1 for the class and 0 for others, or ±10 for a binary network."""
    if about.threshold is not None:
        return 20.0 * labels[:, None].float() - 10.0  # its sigmoid passes any threshold
    count, height, width = labels.shape
    logits = torch.zeros(count, len(about.classes), height, width, device=labels.device)
    return logits.scatter_(1, labels[:, None].long(), 1.0)


def _pixels(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Return normalised images (N, bands, H, W) as they were loaded, uint8 (N, H, W, bands).

    mmseg and this class pad normalised images with 0, which is the mean in pixels.
    """
    return (
        renormalise(images, normalisation, Normalisation())
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
    )


def _load_program(file: Path, device: torch.device) -> tuple[str | None, Callable[[Tensor], Tensor]]:
    """Return the facts in a ``.pt2`` file, and its program on a device.

    Raises:
        ConfigError: It is damaged, or holds pickled objects.
    """
    extra = {f'{KEY}.json': ''}
    try:
        refused = _pickles_in(file)
        if not refused:
            program = torch.export.load(file, extra_files=extra)
            if device.type != 'cpu':
                program = move_to_device_pass(program, str(device))
    except Exception as error:  # of any kind, from whatever lies in the file
        raise ConfigError(
            f'{file} cannot be loaded: {first_line(error)}. If it is damaged, copy it again'
        ) from error
    if refused:
        raise ConfigError(
            f'{file} holds pickled objects ({refused[0]}), which can run code when they are loaded, and is '
            'refused. bdd-seg export writes none'
        )
    text = extra[f'{KEY}.json']
    return text or None, program.module().__call__


def _pickles_in(file: Path) -> list[str]:
    """Return the parts of a ``.pt2`` that ``torch.export.load`` would unpickle without ``weights_only``.

    This makes no foreign program safe: a ``.pt2`` names the functions that it calls.
    """
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        found = [
            name
            for name in names
            if name.endswith('.pt')  # weights in the form before torch 2.9
            or PurePosixPath(name).name.startswith(('custom_obj', 'opaque_obj'))
            or '/aotinductor/' in name
        ]
        for name in found.copy():
            if '/sample_inputs/' in name:
                content = archive.read(name)
                if content:
                    torch.load(io.BytesIO(content), weights_only=True)
                found.remove(name)
        for name in names:
            if name.endswith('_config.json'):
                parts = json.loads(archive.read(name)).get('config', {})
                found += [f'{name}: {part}' for part, facts in parts.items() if facts.get('use_pickle')]
    return found
