"""The frames of a video, as image files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from mmengine.dist import barrier, is_main_process

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_atomically, write_json

_DONE = 'frames.json'


def extract_frames(video: str | Path, stride: int, folder: str | Path) -> list[str]:
    """Write every n-th frame of a video as a JPEG file, unless an earlier run has done so.

    The main process writes, the others wait. An interrupted run begins anew.

    Args:
        video: The video, of any format that OpenCV reads.
        stride: n. The first frame is always taken.
        folder: The frames lie in a folder of their own in this one. Its name tells the video and the stride,
            so that a video which was replaced, or another stride, gets another folder.

    Returns:
        The paths of the frames, in order.

    Raises:
        ConfigError: The video does not exist or has no frame that can be read, or a frame cannot be written.
    """
    video = Path(video)
    try:
        facts = video.stat()
    except OSError as error:
        raise ConfigError(f'video {str(video)!r} cannot be read: {error.strerror}') from error
    identity = f'{video.resolve()} {facts.st_size} {facts.st_mtime_ns}'
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    place = Path(folder) / f'{video.stem}-{digest}-every-{stride}'
    if is_main_process() and not (place / _DONE).exists():
        _write(video, stride, place)
    barrier()
    frames = sorted(map(str, place.glob('*.jpg')))
    if not frames:
        raise ConfigError(f'{str(place)!r} has no frames here: all machines must see the same folder')
    return frames


def _write(video: Path, stride: int, place: Path) -> None:
    written = 0
    try:
        place.mkdir(parents=True, exist_ok=True)
        for number, frame in read_frames(video, stride):
            _, content = cv2.imencode('.jpg', frame)
            write_atomically(place / f'{number:08d}.jpg', content.tobytes())
            written += 1
        if not written:
            raise ConfigError(f'{str(video)!r} has no frame that can be read. Is it a video, and whole?')
        write_json(place / _DONE, {'video': str(video), 'stride': stride, 'frames': written})
    except OSError as error:
        raise ConfigError(f'frames cannot be written into {str(place)!r}: {error.strerror}') from error


def read_frames(video: Path, stride: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of every n-th frame and its pixels, (H, W, 3) uint8."""
    capture = cv2.VideoCapture(str(video))
    number = 0
    while capture.grab():  # which is cheaper than to decode all
        if number % stride == 0:
            readable, frame = capture.retrieve()
            if readable:
                yield number, frame
        number += 1
    capture.release()
