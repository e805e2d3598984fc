"""Run an exported file, or pass it to mmseg as a segmentor."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.deploy.about import KEY, About, Size, parse
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.teachers.onnx import open_session

SUFFIXES = ('.onnx', '.pt2')
"""Of the files that run without a config."""


class ExportedFile(nn.Module):
    """An ONNX file or a program of ``torch.export``, with the facts that it holds.

    Args:
        file: A file that ``bdd-seg export`` wrote.

    Raises:
        ConfigError: It is missing, damaged, or tells no facts.
    """

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        self.file = Path(file).expanduser()
        if not self.file.is_file():
            raise ConfigError(
                f'{str(self.file)!r} does not exist. Give a file that bdd-seg export has written'
            )
        if self.file.suffix == '.onnx':
            self.session = open_session(self.file, str(self.file))
            text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        elif self.file.suffix == '.pt2':
            self.session = None
            text, self.program = _load_program(self.file)
        else:
            raise ConfigError(f'{str(self.file)!r} is neither an .onnx nor a .pt2 file')
        self.about: About = parse(text, str(self.file))

    def forward(self, image: Tensor) -> Tensor:
        """Return what the file puts out, logits (N, C, h, w) or labels (N, H, W), on the images' device.

        Args:
            image: As ``about.takes`` says, of ``about.size`` where that is given.
        """
        if self.session is None:
            return self.program(image)
        array = image.detach().cpu().contiguous().numpy()
        (wanted,) = self.session.get_inputs()
        # A file that fixes the number of images has 1.
        parts = np.split(array, len(array)) if wanted.shape[0] == 1 else [array]
        answers = [self.session.run(None, {wanted.name: part})[0] for part in parts]
        return torch.from_numpy(np.concatenate(answers)).to(image.device)


@MODELS.register_module()
class ExportedSegmentor(EncoderDecoder):
    """An exported file as an mmseg segmentor, for prediction and evaluation.

    Images of another size than the file's are resized to it, and the logits back. Of a file that gives
    labels, the "logits" are 1 for the class and 0 for all others.

    Args:
        file: A file that ``bdd-seg export`` wrote.
        test_cfg: Of mmseg; by default the file's own: sliding windows or whole images.

    Raises:
        ConfigError: As for :class:`ExportedFile`.
    """

    def __init__(self, file: str | Path, test_cfg: Mapping[str, Any] | None = None) -> None:
        exported = ExportedFile(file)
        about = exported.about
        # Not EncoderDecoder's own: there is neither a backbone nor a head to build.
        BaseModel.__init__(self, data_preprocessor=preprocessor(about))
        self.exported = exported
        self.about = about
        self.align_corners = about.align_corners
        self.num_classes = len(about.classes)
        self.out_channels = about.channels
        self.test_cfg = ConfigDict(test_cfg or inference_settings(about))
        self.decode_head = _Head(about)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict] | None = None) -> Tensor:
        """Return the logits (N, C, H, W) at the size of the images (N, bands, H, W)."""
        return self.forward_logits(inputs, tuple(inputs.shape[2:]))

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        return self.forward_logits(inputs, None)

    def forward_logits(self, inputs: Tensor, size: Size | None) -> Tensor:
        """Return the logits, resized to ``size`` if it is given.

        Args:
            inputs: (N, bands, H, W); normalised, or pixels in float where the file normalises itself.
            size: (H, W) or None for the network's own grid.
        """
        wanted = self.about.size or _rounded_up(inputs.shape[2:], self.about.multiple)
        images = inputs
        if tuple(inputs.shape[2:]) != wanted:
            images = F.interpolate(inputs, wanted, mode='bilinear', align_corners=False)
        if self.about.takes == 'pixels':
            images = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        try:
            output = self.exported(images)
        except Exception as error:  # the runtimes' exceptions have no base of their own
            raise ConfigError(
                f'{self.exported.file} does not run on images {tuple(images.shape)}: {first_line(error)}'
            ) from error
        if self.about.gives == 'labels':
            output = _as_logits(output, self.about)
        if size is None or tuple(output.shape[2:]) == size:
            return output
        return resize(output, size, mode='bilinear', align_corners=self.align_corners, warning=False)


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
    settings: dict[str, Any] = {'type': SegDataPreProcessor}
    if about.takes == 'normalised':
        settings |= {'mean': list(about.mean), 'std': list(about.std), 'bgr_to_rgb': about.bgr_to_rgb}
    return settings


def inference_settings(about: About) -> dict[str, Any]:
    """Return mmseg's ``test_cfg``."""
    if about.windows is None:
        return {'mode': 'whole'}
    return {'mode': 'slide', 'crop_size': about.windows.crop_size, 'stride': about.windows.stride}


def _as_logits(labels: Tensor, about: About) -> Tensor:
    """Return (N, C, H, W): 1 for the class and 0 for others, or ±1 for a binary network."""
    if about.threshold is not None:
        return 20.0 * labels[:, None].float() - 10.0  # its sigmoid passes any threshold
    return F.one_hot(labels.long(), len(about.classes)).permute(0, 3, 1, 2).float()


def _rounded_up(size: Any, multiple: int) -> Size:
    height, width = (-(-int(length) // multiple) * multiple for length in size)
    return height, width


def _load_program(file: Path) -> tuple[str | None, nn.Module]:
    """Return the facts in a ``.pt2`` file and its program.

    Raises:
        ConfigError: It is damaged.
    """
    extra = {f'{KEY}.json': ''}
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError('it is no zip archive')
        program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # of any kind, from whatever lies in the file
        raise ConfigError(
            f'{file} cannot be loaded: {first_line(error)}. If it is damaged, copy it again'
        ) from error
    text = extra[f'{KEY}.json']
    return (text if isinstance(text, str) else json.dumps(text)) or None, program.module()
