"""The pictures of the report: the images on which networks differ most, as small encoded files."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import pseudo_collate
from PIL import Image

from bdd_seg.deploy.media import displayable
from bdd_seg.report.data import Picture
from bdd_seg.report.evaluate import Tally, from_png, small, small_size
from bdd_seg.report.images import ValidationSet

WRONG = (213, 94, 0)
"""Colour (red, green, blue) of wrong pixels, the vermilion of Okabe and Ito."""

UNLABELLED = (0, 0, 0)
_JPEG_QUALITY = 80


def choose(gains: np.ndarray, count: int) -> list[int]:
    """Return the numbers of the images helped most and hurt most, the largest gain first.

    Args:
        gains: (M,) of each image; NaN for one that cannot be told.
        count: Number of either kind at most, above 0. A gain below 0 alone is hurt; where fewer are helped,
            images without a change follow them.
    """
    order = _descending(gains)
    helped = [number for number in order if gains[number] >= 0]
    hurt = [number for number in order if gains[number] < 0]
    return [*helped[:count], *hurt[-count:]]


def both_ends(values: np.ndarray, count: int) -> list[int]:
    """Return the numbers of the images with the highest and the lowest values, the highest first.

    Args:
        values: (M,) of each image; NaN for one that cannot be told.
        count: Number of images at each end at most, above 0.
    """
    order = _descending(values)
    return order if len(order) <= 2 * count else [*order[:count], *order[-count:]]


def _descending(values: np.ndarray) -> list[int]:
    return [int(number) for number in np.argsort(-values, kind='stable') if np.isfinite(values[number])]


def pictures(
    images: ValidationSet, tallies: Mapping[str, Tally], pair: Sequence[str], count: int
) -> list[Picture]:
    """Return the pictures of the images that the second of a pair does better, and worse, than the first.

    Args:
        images: The validation set.
        tallies: Key → evaluation of each network.
        pair: The keys of two networks that are compared, or of one, whose best and worst images are taken.
        count: Number of images at each end, at most.
    """
    if not pair or count < 1:
        return []
    mious = {key: np.array(tally.image_mious) for key, tally in tallies.items()}
    if len(pair) > 1:
        gains = mious[pair[1]] - mious[pair[0]]
        chosen = choose(gains, count)
    else:
        gains, chosen = None, both_ends(mious[pair[0]], count)
    folder = os.path.commonpath([os.path.dirname(path) for path in images.paths])
    found = []
    for number in chosen:
        data = pseudo_collate([images.dataset[images.numbers[number]]])
        label = images.label(data)
        maps = {key: from_png(tally.maps[number]) for key, tally in tallies.items()}
        found.append(
            Picture(
                name=os.path.relpath(images.paths[number], folder),
                layers=layers(data['inputs'][0].numpy(), label, maps, images),
                mious={key: float(values[number]) for key, values in mious.items()},
                gain=None if gains is None else float(gains[number]),
            )
        )
    return found


def layers(
    pixels: np.ndarray, label: np.ndarray, maps: Mapping[str, np.ndarray], images: ValidationSet
) -> dict[str, bytes]:
    """Return the encoded layers of an image, all of one size.

    Args:
        pixels: (bands, h, w) as loaded, blue first.
        label: (H, W) true class numbers.
        maps: Key → predicted class numbers at the size of pictures.
        images: For colours and the label that does not count.
    """
    height, width = small_size(*label.shape)
    photo = _resized(displayable(pixels.transpose(1, 2, 0)), height, width)
    truth = small(label)
    counts = truth != images.ignore_index
    encoded = {'image': _jpeg(photo), 'truth': _painted(np.where(counts, truth, -1), images.palette)}
    for key, predicted in maps.items():
        encoded[key] = _painted(predicted, images.palette)
        encoded[f'error.{key}'] = _jpeg(_marked(photo, counts & (predicted != truth)))
    return encoded


def _resized(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    if photo.shape[:2] == (height, width):
        return photo
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def _marked(photo: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the image in dark grey, with wrong pixels (h, w) in their colour."""
    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    marked = (grey * 0.6).astype(np.uint8)
    marked[wrong] = (0.2 * grey[wrong] + 0.8 * np.array(WRONG[::-1])).astype(np.uint8)
    return marked


def _painted(labels: np.ndarray, palette: Sequence[Any]) -> bytes:
    """Return class numbers (h, w), -1 for none, in their colours, as a PNG with a palette if that can be."""
    colours = np.array([*palette, UNLABELLED], np.uint8)  # -1 takes the last one
    buffer = io.BytesIO()
    if len(colours) <= 256:
        image = Image.fromarray(np.where(labels < 0, len(palette), labels).astype(np.uint8), 'P')
        image.putpalette(colours.tobytes())
    else:
        image = Image.fromarray(colours[labels])
    image.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


def _jpeg(photo: np.ndarray) -> bytes:
    return cv2.imencode('.jpg', photo, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
