"""Images to compare and calibrate with: those of a config's data sets, or a user's own."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import Config
from mmseg.registry import DATASETS
from torch import Tensor

from bdd_seg.deploy.about import About, Size
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.media import find_sources
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.predictor import Failed, Preparation
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.configs import leaf_datasets

CALIBRATION_IMAGES = 100
"""Number of images, at most, whose activations set the ranges of 8 bits."""


class PreparedImages(Sequence[Tensor]):
    """Images as the test pipeline prepares them, loaded when they are asked for.

    Item i is (bands, H, W), before it is normalised. A file that cannot be read is a ConfigError then.

    Args:
        trained: The network with its config.
        infos: Facts about each image, ``img_path`` among them.
    """

    def __init__(self, trained: Trained, infos: Sequence[dict[str, Any]]) -> None:
        self._infos = infos
        self._prepare = Preparation(trained, keep_picture=False)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        info = self._infos[number]
        loaded = self._prepare(number, dict(info))
        if isinstance(loaded, Failed):
            path = str(info['img_path'])
            raise ConfigError(loaded.reason if path in loaded.reason else f'{path!r}: {loaded.reason}')
        return loaded.inputs


def real_images(trained: Trained, count: int, paths: Sequence[str] = ()) -> list[Tensor]:
    """Return images (bands, H, W) to compare on, before they are normalised.

    Args:
        trained: The network with its config.
        count: How many at most.
        paths: Files, folders or patterns; by default the first images of the config's validation set.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    advice = (
        'A file is kept if it gives what torch does on real images, so give some: --images FOLDER. '
        'Random noise would not do'
    )
    assert trained.cfg is not None
    keys = ('val_dataloader', 'test_dataloader')
    infos = _given(paths) if paths else _of_config(trained.cfg, keys, 'validation', advice)
    if not infos:
        raise ConfigError('there is no image to compare on. Give some by --images')
    return list(PreparedImages(trained, infos[:count]))


def calibration_images(
    trained: Trained, paths: Sequence[str] = (), most: int = CALIBRATION_IMAGES
) -> PreparedImages:
    """Return images that set the ranges of 8 bits.

    Args:
        trained: The network with its config.
        paths: Files, folders or patterns; by default the config's training images, whose labels are not
            needed.
        most: How many at most, spread evenly.

    Raises:
        ConfigError: There is none.
    """
    advice = 'Give images of the same kind: --int8 FOLDER'
    assert trained.cfg is not None
    infos = _given(paths) if paths else _of_config(trained.cfg, ('train_dataloader',), 'training', advice)
    if not infos:
        raise ConfigError('there is no image to calibrate with. Give some: --int8 FOLDER')
    return PreparedImages(trained, spread(infos, most))


def _given(paths: Sequence[str]) -> list[dict[str, Any]]:
    return [{'img_path': str(source.path)} for source in find_sources(paths, '') if not source.is_video]


def _of_config(cfg: Config, keys: Sequence[str], kind: str, advice: str) -> list[dict[str, Any]]:
    """Return facts about the images of a config, each once, as their data sets give them to a pipeline.

    Args:
        cfg: The whole config.
        keys: Its loaders. The first that it has counts.
        kind: Of the images, for the messages.
        advice: The end of the messages.

    Raises:
        ConfigError: It has none of these loaders, or the images are not on this machine.
    """
    loader = next((cfg[key] for key in keys if cfg.get(key) is not None), None)
    if loader is None:
        raise ConfigError(f'the config has no {kind} images. {advice}')
    infos: dict[str, dict[str, Any]] = {}
    try:
        for settings, _ in leaf_datasets(copy.deepcopy(loader['dataset']), ''):
            dataset = DATASETS.build({**settings, 'pipeline': [], 'test_mode': True, 'lazy_init': False})
            for number in range(len(dataset)):
                info = dict(dataset.get_data_info(number))
                infos.setdefault(info['img_path'], info)
    except (OSError, AssertionError) as error:  # mmseg's data sets assert that files are there
        raise ConfigError(
            f"the config's {kind} images are not on this machine ({first_line(error)}). {advice}"
        ) from error
    return list(infos.values())


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most ``most`` of the items, spread evenly, the first among them."""
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]


def at_size(network: DeployedNetwork, images: Sequence[Tensor], size: Size, seed: int = 0) -> Tensor:
    """Return images as the network takes them, (N, bands, H, W) normalised or (N, H, W, bands) uint8.

    Args:
        network: Tells which.
        images: (bands, h, w) of any size. Of larger images a network with sliding windows gets a window, at
            a random place of each; others are resized.
        size: (H, W).
        seed: Of the places. That of each image is one more than that of the image before it.

    Raises:
        ConfigError: The network normalises images of 8 bits itself, and these have more.
    """
    height, width = size
    parts = []
    for number, image in enumerate(images, start=seed):
        rows, columns = image.shape[1] - height, image.shape[2] - width
        if network.about.windows is not None and min(rows, columns) >= 0:
            top, left = np.random.default_rng(number).integers(0, (rows + 1, columns + 1))
            part = image[None, :, top : top + height, left : left + width].float()
        else:
            part = F.interpolate(image[None].float(), size, mode='bilinear', align_corners=False)
        parts.append(part)
    batch = torch.cat(parts).permute(0, 2, 3, 1)
    if network.about.takes == 'pixels':
        if any(image.dtype != torch.uint8 for image in images):
            raise ConfigError('these images have more than 8 bits: export without --with-preprocessing')
        return batch.round().to(torch.uint8).contiguous()
    return network.normalised(batch)


def as_inputs(network: DeployedNetwork, images: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Yield each image as the network's file takes it, with N = 1.

    Args:
        network: The network, with the facts about its file.
        images: (bands, H, W), before they are normalised.
    """
    for number, image in enumerate(images):
        yield at_size(network, [image], input_size(network.about, image), number).numpy()


def input_size(about: About, image: Tensor) -> Size:
    """Return (H, W) at which a file sees an image (bands, h, w): its own, a window's, or the image's."""
    height, width = image.shape[1:]
    if about.size is not None:
        return about.size
    if about.windows is not None:
        height, width = about.windows.crop_size
    return -(-height // about.multiple) * about.multiple, -(-width // about.multiple) * about.multiple
