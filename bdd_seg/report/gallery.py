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
    """Return the numbers of the images at both ends, the largest gain first.

    Args:
        gains: (M,) of each image; NaN for one that cannot be told.
        count: Number of images at each end, at most. With a gain above 0 they are at the one, below 0 at the
            other; equal ones fill up what is left.
    """
    order = [int(number) for number in np.argsort(-gains, kind='stable') if np.isfinite(gains[number])]
    if len(order) <= 2 * count:
        return order
    return [*order[:count], *order[len(order) - count :]]


def pictures(
    images: ValidationSet, tallies: Mapping[str, Tally], pair: Sequence[str], count: int
) -> list[Picture]:
    """Return the pictures of the images that the second of a pair does better, and worse, than the first.

    Args:
        images: The validation set.
        tallies: Key → evaluation of each network.
        pair: The keys of two networks that are compared, or of one, whose best and worst images are taken.
        count: Number of images at each end.
    """
    if not pair or count < 1:
        return []
    mious = {key: np.array(tally.image_mious) for key, tally in tallies.items()}
    gains = mious[pair[-1]] - mious[pair[0]] if len(pair) > 1 else mious[pair[0]]
    folder = os.path.commonpath([os.path.dirname(path) for path in images.paths])
    found = []
    for number in choose(gains, count):
        data = pseudo_collate([images.dataset[images.numbers[number]]])
        label = images.label(data)
        maps = {key: from_png(tally.maps[number]) for key, tally in tallies.items()}
        found.append(
            Picture(
                name=os.path.relpath(images.paths[number], folder),
                layers=layers(data['inputs'][0].numpy(), label, maps, images),
                mious={key: float(values[number]) for key, values in mious.items()},
                gain=float(gains[number]) if len(pair) > 1 else None,
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
