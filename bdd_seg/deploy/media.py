"""Images and videos: found, painted with classes, and written."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from io import BytesIO
from pathlib import Path
from types import TracebackType

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bdd_seg.errors import ConfigError, similar_to

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
"""Suffixes of the images that count in a folder."""

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
"""Suffixes of videos."""

OUTPUTS = ('labels', 'overlays', 'probabilities')
"""Folders of predictions, in the one that the user names."""

Colour = tuple[int, int, int]
"""(red, green, blue), 0 to 255."""

_FONT = Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'


@dataclass(frozen=True)
class Source:
    """An image or a video to predict.

    Attributes:
        path: Its file.
        name: Name of its outputs, a relative path. The suffixes of outputs follow it.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """True for the suffix of a video."""
        return self.path.suffix.lower() in VIDEOS


def find_sources(inputs: Sequence[str], out: str | Path) -> list[Source]:
    """Find images and videos.

    A file is named by its path in the folder that was given, or in the last folder without wildcards of a
    pattern. Where two names would be equal, all are paths in the folder that holds all files; with their
    suffix where those are equal; and all with their suffixes where that is not enough.

    Args:
        inputs: Files of any suffix; folders, searched with all folders in them; patterns with ``*``, ``?``,
            ``[…]`` or ``**``.
        out: The folder for predictions. Earlier ones that lie in it are no inputs.

    Returns:
        Each file once, in the order of ``inputs``, those of a folder or pattern by name.

    Raises:
        ConfigError: One of the inputs does not exist, or holds no image and no video.
    """
    own = [Path(os.path.abspath(out)) / folder for folder in OUTPUTS]
    roots: dict[Path, Path] = {}  # file → the folder in which its name begins
    for text in inputs:
        root, files = _matches(text)
        absolute = [Path(os.path.abspath(file)) for file in files]
        kept = [file for file in absolute if not any(file.is_relative_to(folder) for folder in own)]
        if not kept:
            raise ConfigError(
                f'input {text!r} holds no image ({", ".join(IMAGES)}) and no video ({", ".join(VIDEOS)})'
            )
        for file in kept:
            roots.setdefault(file, Path(os.path.abspath(root)))
    return [Source(file, name) for file, name in zip(roots, _names(roots), strict=True)]


def _matches(text: str) -> tuple[Path, list[Path]]:
    """Return the folder in which names begin, and the files that an input stands for."""
    path = Path(text).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, _search(path)
    wild = next((i for i, part in enumerate(path.parts) if any(sign in part for sign in '*?[')), None)
    if wild is None:
        siblings = [sibling.name for sibling in path.parent.glob('*')] if path.parent.is_dir() else []
        raise ConfigError(
            f'input {text!r} does not exist.{similar_to(path.name, siblings)} Give images, folders, patterns '
            'such as "frames/*.jpg", or videos'
        )
    files = []
    for hit in map(Path, sorted(glob(str(path), recursive=True))):
        files += _search(hit) if hit.is_dir() else [hit] if _counts(hit) else []
    return Path(*path.parts[:wild]), files


def _search(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if _counts(path) and path.is_file())


def _counts(path: Path) -> bool:
    return path.suffix.lower() in (*IMAGES, *VIDEOS) and not path.name.startswith('.')


def _names(roots: dict[Path, Path]) -> list[str]:
    names = [file.relative_to(root).with_suffix('').as_posix() for file, root in roots.items()]
    if len(set(names)) < len(names):
        common = os.path.commonpath([file.parent for file in roots])
        whole = [file.relative_to(common).as_posix() for file in roots]
        names = [name.removesuffix(Path(name).suffix) for name in whole]
        names = [full if names.count(name) > 1 else name for full, name in zip(whole, names, strict=True)]
        if len(set(names)) < len(names):  # a.jpg and a.png beside a.jpg.png
            return whole
    return names


def label_png(labels: np.ndarray, palette: Sequence[Colour]) -> bytes:
    """Return class numbers as a PNG file.

    Up to 256 classes it has 8 bits and a palette: viewers show colours, and Pillow and mmseg's
    ``LoadAnnotations`` read the numbers. OpenCV reads the colours. For more classes it has 16 bits of grey.

    Args:
        labels: (H, W) uint8 or uint16.
        palette: A colour for each class.
    """
    picture = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        picture.putpalette([part for colour in palette for part in colour])
    file = BytesIO()
    picture.save(file, 'PNG', compress_level=3)
    return file.getvalue()


def displayable(image: np.ndarray) -> np.ndarray:
    """Return an image of any number of channels and type as BGR (H, W, 3) uint8, to be painted on.

    Three of other channels' first ones are shown, and other types from their least to their largest value.
    """
    if image.ndim == 2:
        image = image[..., None]
    image = image[..., :3] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
    if image.dtype != np.uint8:
        low, high = np.nanmin(image), np.nanmax(image)
        scaled = (image.astype(np.float32) - low) * (255 / max(high - low, 1e-9))
        image = np.nan_to_num(scaled).astype(np.uint8)
    return np.ascontiguousarray(image)


def paint(image: np.ndarray, labels: np.ndarray, palette: Sequence[Colour], opacity: float) -> np.ndarray:
    """Return an image with the colours of its classes laid over it.

    Args:
        image: (H, W, 3) uint8, blue first.
        labels: (H, W), class numbers.
        palette: A colour for each class.
        opacity: Of the colours, 0 to 1.
    """
    colours = np.array(palette, np.uint8)[:, ::-1][labels]
    return cv2.addWeighted(colours, opacity, image, 1 - opacity, 0)


def add_legend(image: np.ndarray, entries: Sequence[tuple[str, Colour]]) -> np.ndarray:
    """Return an image with a legend below it. Where a name is wider than the image, the image gets a margin.

    Args:
        image: (H, W, 3) uint8, blue first.
        entries: Name and colour of the classes in it.
    """
    legend = draw_legend(tuple(entries), image.shape[1])
    margin = legend.shape[1] - image.shape[1]
    image = cv2.copyMakeBorder(image, 0, 0, 0, margin, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.concatenate([image, legend])


def lay_legend_over(image: np.ndarray, entries: Sequence[tuple[str, Colour]], share: float = 0.4) -> None:
    """Draw a legend into the lowest rows of an image, which keeps its size.

    Args:
        image: (H, W, 3) uint8, blue first, changed in place.
        entries: Name and colour of classes. Those that do not fit are left out.
        share: Of the height that may be covered.
    """
    height, width = image.shape[:2]
    legend = draw_legend(tuple(entries), width)[: int(share * height), :width]
    place = image[height - len(legend) :, : legend.shape[1]]
    place[:] = cv2.addWeighted(legend, 0.8, place, 0.2, 0)


@lru_cache(maxsize=64)
def draw_legend(entries: tuple[tuple[str, Colour], ...], width: int) -> np.ndarray:
    """Return a legend (h, w, 3) uint8, blue first: patches and names in rows, on white.

    Args:
        entries: Name and colour of each class. A name is written on one line.
        width: The least w in pixels. A name that is wider makes it wider.
    """
    size = min(max(width // 45, 12), 28)
    font = ImageFont.truetype(_FONT, size)
    gap, row = size // 2, round(1.5 * size)
    lines = [' '.join(name.split()) for name, _ in entries]
    widths = [3 * gap + size + round(font.getlength(line)) for line in lines]
    width = max([width, *(entry + gap for entry in widths)])
    places, x, y = [], gap, gap
    for entry in widths:
        if x > gap and x + entry > width:
            x, y = gap, y + row
        places.append((x, y))
        x += entry
    picture = Image.new('RGB', (width, y + row + gap), 'white')
    draw = ImageDraw.Draw(picture)
    for (x, y), line, (_, colour) in zip(places, lines, entries, strict=True):
        draw.rectangle((x, y, x + size, y + size), fill=colour, outline=(90, 90, 90))
        draw.text((x + size + gap, y + size // 2), line, fill=(20, 20, 20), font=font, anchor='lm')
    return np.asarray(picture)[..., ::-1]


def jpeg(image: np.ndarray) -> bytes:
    """Return an image (H, W, 3) uint8, blue first, as a JPEG file."""
    _, content = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return content.tobytes()


def frames_per_second(video: Path) -> tuple[float, int | None]:
    """Return the pace of a video, and how many frames it says it has, None where it does not.

    A video that tells no pace gets 25 frames a second.

    Raises:
        ConfigError: It has no frame that can be read.
    """
    capture = cv2.VideoCapture(str(video))
    readable = capture.isOpened() and capture.grab()
    pace, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    if not readable:
        raise ConfigError(f'{str(video)!r} has no frame that can be read. Is it a video, and whole?')
    return pace if 0 < pace < 1000 else 25.0, count if count > 0 else None


class VideoFile:
    """An MP4 file, written frame by frame, whole or not at all.

    Leaving the ``with`` block moves it to its place, unless by an exception.

    Args:
        path: The file.
        pace: Frames a second.
    """

    def __init__(self, path: Path, pace: float) -> None:
        self.path, self.pace = path, pace
        self._beside = path.with_name(f'.{path.stem}.{os.getpid()}.part.mp4')
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8, blue first.

        Raises:
            ConfigError: The file cannot be written.
        """
        if self._writer is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f'{str(self.path)!r} cannot be written: {error.strerror}') from error
            height, width = frame.shape[:2]
            code = cv2.VideoWriter.fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self._beside), code, self.pace, (width, height))
            if not self._writer.isOpened():
                raise ConfigError(
                    f'{str(self.path)!r} cannot be written as a video of {width}×{height} pixels'
                )
        self._writer.write(frame)

    def __enter__(self) -> 'VideoFile':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None and self._writer is not None:
            self._beside.replace(self.path)
        else:
            with suppress(OSError):
                self._beside.unlink(missing_ok=True)
