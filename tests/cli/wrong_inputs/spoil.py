"""Changes to the images and label maps of a data set."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def images_of(data: Path, split: str = 'train') -> list[Path]:
    return sorted((data / 'leftImg8bit' / split).rglob('*_leftImg8bit.png'))


def labels_of(data: Path, split: str = 'train') -> list[Path]:
    return sorted((data / 'gtFine' / split).rglob('*_gtFine_labelTrainIds.png'))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def write(path: Path, array: np.ndarray, **options) -> None:
    """As a file of the format that the name says, or of the given one."""
    Image.fromarray(array).save(path, **options)


def resize(size: tuple[int, int]) -> Callable[[Path], None]:
    return lambda path: write(path, cv2.resize(pixels(path), size, interpolation=cv2.INTER_NEAREST))


def fill(value: int) -> Callable[[Path], None]:
    return lambda path: write(path, np.full_like(pixels(path), value))


def crop(height: int, width: int) -> Callable[[Path], None]:
    return lambda path: write(path, pixels(path)[:height, :width])


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_palette(path: Path) -> None:
    image = Image.open(path)
    image.load()
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)
    assert Image.open(path).mode == 'P'


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_mode(mode: str, **options) -> Callable[[Path], None]:
    return lambda path: Image.open(path).convert(mode).save(path, **options)


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def one_wrong_label(path: Path) -> None:
    labels = pixels(path)
    labels[::8, ::8] = 19
    write(path, labels)
