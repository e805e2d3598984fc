"""Predict images and videos, and write label maps, overlays and probabilities."""

import io
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bdd_seg.datasets.frames import read_frames
from bdd_seg.deploy.about import About
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.media import (
    OUTPUTS,
    Source,
    VideoFile,
    add_legend,
    frames_per_second,
    jpeg,
    label_png,
    lay_legend_over,
    paint,
)
from bdd_seg.deploy.predictor import Failed, Loaded, Prediction, Predictor, Preparation
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_atomically

MARK = '.bdd-seg-predictions'
"""File that marks a folder of predictions."""

_WAITING = 4  # batches of images of other sizes that may wait for more of their own

_FEW_TASKS = 2  # that hold probabilities: for 19 classes 80 MB per image of 1024×2048 pixels

_OUTPUT_SUFFIXES = {'labels': '.png', 'overlays': '.jpg', 'probabilities': '.npz'}


@dataclass(frozen=True)
class Wanted:
    """Files to be written, into the folders ``labels``, ``overlays`` and ``probabilities``.

    Attributes:
        overlays: Images with the colours of their classes and a legend, and videos of these. Without them, a
            video has no output but those of its frames.
        probabilities: float16 (C, H, W) of images and frames, as ``probabilities`` in an ``.npz``.
        frame_labels: Label maps of the frames of videos. Those of images are always written.
        opacity: Opacity of the colours, 0 to 1.
    """

    overlays: bool = True
    probabilities: bool = False
    frame_labels: bool = False
    opacity: float = 0.5

    def of_image(self, out: Path, source: Source) -> dict[str, Path]:
        """Return the files of an image, by their folder in ``out``."""
        kinds = {'labels': True, 'overlays': self.overlays, 'probabilities': self.probabilities}
        return _files(out, source.name, kinds)

    def of_frame(self, out: Path, source: Source, number: int) -> dict[str, Path]:
        """Return the files of a frame, by their folder in ``out``."""
        kinds = {'labels': self.frame_labels, 'probabilities': self.probabilities}
        return _files(out, f'{source.name}/{number:08d}', kinds)

    def are_there(self, out: Path, source: Source) -> bool:
        """Return whether all outputs of a source exist. Those of frames alone are not looked for."""
        if source.is_video:
            return self.overlays and video_file(out, source).exists()
        return all(file.exists() for file in self.of_image(out, source).values())


def video_file(out: Path, source: Source) -> Path:
    """Return the file of a painted video."""
    return out / 'overlays' / f'{source.name}.mp4'


def _files(out: Path, name: str, kinds: dict[str, bool]) -> dict[str, Path]:
    return {kind: out / kind / f'{name}{_OUTPUT_SUFFIXES[kind]}' for kind, wanted in kinds.items() if wanted}


class Outcome(NamedTuple):
    """The result of :func:`predict_all`.

    Attributes:
        images: Images predicted.
        videos: Videos predicted.
        frames: Their frames.
        seconds: Time taken for all, without loading the network.
        existing: Sources passed over, since their outputs are there.
        skipped: Each file that cannot be read or predicted, with the reason.
    """

    images: int
    videos: int
    frames: int
    seconds: float
    existing: int
    skipped: list[tuple[Path, str]]


def predict_all(
    trained: Trained,
    sources: Sequence[Source],
    out: Path,
    wanted: Wanted,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 2,
    skip_existing: bool = False,
) -> Outcome:
    """Predict images and videos, and write the files that are wanted.

    Files that cannot be read are passed over, and named at once on stderr.

    Args:
        trained: The network.
        sources: Images and videos.
        out: The folder for the files.
        wanted: Which files.
        device: That of the network.
        batch_size: Images of one size that the network gets at once.
        workers: Processes that load images, and threads that write. 0 to do all in this thread.
        skip_existing: Whether to pass over sources whose outputs are there.

    Raises:
        ConfigError: A file cannot be written, or the network gives no probabilities.
        torch.OutOfMemoryError: A batch is too large for the GPU.
    """
    predictor = Predictor(trained, device, wanted.probabilities)
    todo = [source for source in sources if not (skip_existing and wanted.are_there(out, source))]
    run = _Run(predictor, trained, out, wanted, batch_size, workers)
    start = time.monotonic()
    run.predict_images([source for source in todo if not source.is_video])
    for source in todo:
        if source.is_video:
            run.predict_video(source)
    seconds = time.monotonic() - start
    return Outcome(run.images, run.videos, run.frames, seconds, len(sources) - len(todo), run.skipped)


def claim_folder(out: Path, force: bool = False) -> None:
    """Mark a folder as one that holds predictions, which later runs may replace.

    Args:
        out: The folder, which exists.
        force: Whether its folders ``labels``, ``overlays`` and ``probabilities`` may hold other files.

    Raises:
        ConfigError: One of them holds files, and no earlier run has marked ``out``; or it cannot be marked.
    """
    mark = out / MARK
    if mark.exists():
        return
    for folder in (out / name for name in OUTPUTS):
        if not force and any(path.is_file() for path in folder.rglob('*')):
            raise ConfigError(
                f'{str(folder)!r} holds files that bdd-seg predict has not written, and could replace them. '
                'Choose another folder as --out, or accept that with --force'
            )
    try:
        write_atomically(mark, 'Written by bdd-seg predict, which may replace the predictions here.\n')
    except OSError as error:
        raise ConfigError(f'{str(mark)!r} cannot be written: {error.strerror}') from error


class _UnusableError(Exception):
    """A video that cannot be predicted to its end, with the reason."""


class _Run:
    """A call of :func:`predict_all`: its arguments, and the counts of what is done."""

    def __init__(
        self, predictor: Predictor, trained: Trained, out: Path, wanted: Wanted, batch_size: int, workers: int
    ) -> None:
        self.predictor, self.trained = predictor, trained
        self.out, self.wanted = out, wanted
        self.batch_size, self.workers = batch_size, workers
        self.images = self.videos = self.frames = 0
        self.skipped: list[tuple[Path, str]] = []

    def predict_images(self, sources: Sequence[Source]) -> None:
        """Predict images."""
        prepare = Preparation(self.trained, keep_picture=self.wanted.overlays)
        dataset = ImageFiles([source.path for source in sources], prepare)
        progress = Progress('images', len(sources))
        with self._writers(self.workers if sources else 0) as writers:
            for image, prediction in self._answers(dataset, self.workers, progress):
                source = sources[image.number]
                if isinstance(prediction, str):
                    self._skip(source, prediction, progress)
                else:
                    files = self.wanted.of_image(self.out, source)
                    writers.submit(
                        write_image, files, image, prediction, self.predictor.about, self.wanted.opacity
                    )
                    self.images += 1
        progress.clear()

    def predict_video(self, source: Source) -> None:
        """Predict the frames of a video."""
        try:
            pace, count = frames_per_second(source.path)
            prepare = Preparation(self.trained, keep_picture=self.wanted.overlays, arrays=True)
        except ConfigError as error:
            self._skip(source, str(error))
            return
        progress = Progress(source.path.name, count)
        file = video_file(self.out, source)
        frames = Frames(source.path, prepare)
        painter = FramePainter(self.predictor.about, self.wanted.opacity)
        workers = min(self.workers, 1)  # of threads, too: frames have an order
        before = self.frames
        try:
            with VideoFile(file, pace) as video, self._writers(workers) as writers:
                for image, prediction in self._answers(frames, workers, progress):
                    if isinstance(prediction, str):
                        raise _UnusableError(f'frame {image.number}: {prediction}')
                    files = self.wanted.of_frame(self.out, source, image.number)
                    writers.submit(write_image, files, image, prediction, self.predictor.about)
                    if self.wanted.overlays:
                        writers.submit(write_frame, video, painter, image, prediction)
                    self.frames += 1
        except _UnusableError as problem:
            self._skip(source, str(problem), progress)
            return
        progress.clear()
        self.videos += 1
        if count is not None and self.frames - before < 0.9 * count:
            _complain(f'{source.path}: {self.frames - before} of {count} frames can be read')

    def _answers(
        self, dataset: Dataset, workers: int, progress: 'Progress'
    ) -> Iterator[tuple[Loaded | Failed, Prediction | str]]:
        """Yield each image with its prediction, or the reason why it has none."""
        loader = _loader(dataset, workers, self.batch_size)
        for batch in batches(loader, self.batch_size):
            if isinstance(batch, Failed):
                yield batch, batch.reason
                progress.add(1)
                continue
            answers: Sequence[Prediction | str]
            try:
                answers = self.predictor(batch)
            except ConfigError as error:
                answers = [str(error)] * len(batch)
            yield from zip(batch, answers, strict=True)
            progress.add(len(batch))

    def _writers(self, threads: int) -> 'Writers':
        return Writers(threads, _FEW_TASKS if self.wanted.probabilities else 8 * threads)

    def _skip(self, source: Source, reason: str, progress: 'Progress | None' = None) -> None:
        if progress is not None:
            progress.clear()
        _complain(f'skipped {source.path}: {reason}')
        self.skipped.append((source.path, reason))


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class ImageFiles(Dataset):
    """Images, prepared by the processes of a data loader.

    Args:
        files: Their files.
        prepare: The pipeline.
    """

    def __init__(self, files: Sequence[Path], prepare: Preparation) -> None:
        self.files, self.prepare = files, prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Loaded | Failed:
        return self.prepare(number, {'img_path': str(self.files[number]), 'seg_fields': []})


class Frames(IterableDataset):
    """The frames of a video, prepared by one process of a data loader.

    Args:
        video: The video.
        prepare: The pipeline, which takes arrays.
    """

    def __init__(self, video: Path, prepare: Preparation) -> None:
        self.video, self.prepare = video, prepare

    def __iter__(self) -> Iterator[Loaded | Failed]:
        for number, frame in read_frames(self.video):
            yield self.prepare(number, {'img': frame, 'seg_fields': []})


def _loader(dataset: Dataset, workers: int, batch_size: int) -> Iterable[Loaded | Failed]:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        prefetch_factor=1 - (-batch_size // workers) if workers else None,  # the next batch, and more
    )


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first one ends the others
    cv2.setNumThreads(0)


def batches(items: Iterable[Loaded | Failed], batch_size: int) -> Iterator[list[Loaded] | Failed]:
    """Yield images of one size together, and failures on their own.

    Images of one size keep their order. A smaller batch comes at the end, and where too many images of other
    sizes wait.

    Args:
        items: Images in any order.
        batch_size: Images in a batch.
    """
    waiting: dict[Any, list[Loaded]] = {}
    for item in items:
        if isinstance(item, Failed):
            yield item
            continue
        size = (item.inputs.shape, tuple(item.sample.ori_shape))
        waiting.setdefault(size, []).append(item)
        if len(waiting[size]) < batch_size and sum(map(len, waiting.values())) < _WAITING * batch_size:
            continue
        if len(waiting[size]) < batch_size:
            size = max(waiting, key=lambda key: len(waiting[key]))
        yield waiting.pop(size)
    yield from waiting.values()


def write_image(
    files: dict[str, Path], image: Loaded, prediction: Prediction, about: About, opacity: float = 0.5
) -> None:
    """Write the files of an image.

    Args:
        files: Which, as :class:`Wanted` returns them.
        image: The image, with its picture where an overlay is wanted.
        prediction: Its prediction.
        about: Names and colours of the classes.
        opacity: Of the colours.

    Raises:
        ConfigError: One cannot be written.
    """
    for kind, file in files.items():
        if kind == 'labels':
            content = label_png(prediction.labels, about.palette)
        elif kind == 'overlays':
            assert image.picture is not None
            painted = paint(image.picture.numpy(), prediction.labels, about.palette, opacity)
            content = jpeg(add_legend(painted, _entries(_occurring(prediction.labels), about)))
        else:
            assert prediction.probabilities is not None
            buffer = io.BytesIO()
            np.savez_compressed(buffer, probabilities=prediction.probabilities)
            content = buffer.getvalue()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content)
        except OSError as error:
            raise ConfigError(f'{str(file)!r} cannot be written: {error.strerror}') from error


def write_frame(video: VideoFile, painter: 'FramePainter', image: Loaded, prediction: Prediction) -> None:
    """Append a painted frame to a video."""
    video.write(painter(image, prediction))


class FramePainter:
    """Paints frames. The legend lists the classes seen so far, in the order in which they came.

    Args:
        about: Names and colours of the classes.
        opacity: Of the colours.
    """

    def __init__(self, about: About, opacity: float) -> None:
        self.about, self.opacity = about, opacity
        self._seen: dict[int, None] = {}

    def __call__(self, image: Loaded, prediction: Prediction) -> np.ndarray:
        """Return a frame (H, W, 3) uint8, blue first."""
        assert image.picture is not None
        self._seen.update(dict.fromkeys(_occurring(prediction.labels)))
        painted = paint(image.picture.numpy(), prediction.labels, self.about.palette, self.opacity)
        lay_legend_over(painted, _entries(self._seen, self.about))
        return painted


def _occurring(labels: np.ndarray) -> list[int]:
    return np.flatnonzero(np.bincount(labels.ravel())).tolist()


def _entries(classes: Iterable[int], about: About) -> list[tuple[str, tuple[int, int, int]]]:
    return [(about.classes[number], about.palette[number]) for number in classes]


class Progress:
    """A line with the images done, their number a second, and the time left.

    On a terminal it is written over twice a second, elsewhere a new one comes every ten seconds.

    Args:
        name: The beginning of the line.
        total: Images in all, None if it is not known.
    """

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done = name, total, 0
        self._terminal = sys.stdout.isatty()
        self._start = self._said = time.monotonic()

    def add(self, count: int) -> None:
        """Count images that are done."""
        self.done += count
        now = time.monotonic()
        if now >= self._said + (0.5 if self._terminal else 10):
            self._said = now
            line = self.line(now - self._start)
            print(f'\r\033[K{line}' if self._terminal else f'{line}\n', end='', flush=True)

    def line(self, seconds: float) -> str:
        """Return the line after so many seconds."""
        pace = self.done / seconds
        if self.total is None:
            return f'{self.name}: {self.done}, {pace:.1f} images/s'
        left = max(self.total - self.done, 0) / pace
        left_text = f'{left:.0f} s' if left < 100 else f'{left / 60:.0f} min'
        return f'{self.name}: {self.done} of {self.total}, {pace:.1f} images/s, {left_text} left'

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self._terminal:
            print('\r\033[K', end='', flush=True)


class Writers:
    """Threads that write files while the network runs.

    Args:
        threads: 0 to do each task at once, in the thread that submits it.
        limit: Tasks in progress or waiting, at least 1. A further one has to wait for the oldest.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._limit = limit
        self._waiting: deque[Future] = deque()

    def submit(self, task: Callable[..., None], *arguments: Any) -> None:
        """Do a task soon. The exception of an earlier one is raised here, or where the block ends."""
        if self._pool is None:
            task(*arguments)
            return
        if len(self._waiting) >= self._limit:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(task, *arguments))

    def __enter__(self) -> 'Writers':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        try:
            if kind is None:
                for task in self._waiting:
                    task.result()
        finally:
            self._pool.shutdown(cancel_futures=True)
