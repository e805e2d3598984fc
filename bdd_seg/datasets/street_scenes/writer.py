"""Scenes on disk, in Cityscapes' layout."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from bdd_seg.runtime.upstream.atomic_files import write_atomically

from .scene import MAX_SIZE, MIN_SIZE, draw_scene

GENERATOR_VERSION = 2  # raise it with every change that alters a pixel
MANIFEST = 'street_scenes.json'
SPLITS = ('train', 'val')


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of scene ``index`` of a split, which depends on nothing else."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def scene_paths(root: Path, split: str, index: int) -> tuple[Path, Path]:
    """The files of a scene: its image and its labels."""
    name = f'street_000000_{index:06d}'
    return (
        root / 'leftImg8bit' / split / 'street' / f'{name}_leftImg8bit.png',
        root / 'gtFine' / split / 'street' / f'{name}_gtFine_labelTrainIds.png',
    )


def write_scene(root: Path, seed: int, height: int, width: int, scene: tuple[str, int]) -> None:
    """Draw and write one scene, given as (split, index)."""
    image, labels = draw_scene(scene_rng(seed, *scene), height, width)
    # Sensor noise has no repeats to look for, which halves the time of compression.
    strategy = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)
    image_path, labels_path = scene_paths(root, *scene)
    write_atomically(image_path, cv2.imencode('.png', image[..., ::-1], strategy)[1].tobytes())
    write_atomically(labels_path, cv2.imencode('.png', labels)[1].tobytes())


def claim_folder(root: Path, settings: dict[str, int], wanted: set[Path]) -> None:
    """Make sure that the folder holds scenes of these settings alone, and record them in it."""
    manifest, advice = root / MANIFEST, 'delete the folder or choose another one'
    present = set(root.glob('leftImg8bit/*/*/*.png')) | set(root.glob('gtFine/*/*/*.png'))
    if not manifest.exists():
        if present:
            raise FileExistsError(f'{root} holds pictures but no {MANIFEST}: {advice}')
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(manifest, json.dumps(settings, indent=2) + '\n')
        return
    try:
        found = json.loads(manifest.read_text())
    except ValueError:
        raise FileExistsError(f'{manifest} cannot be read: {advice}') from None
    if found != settings:
        raise FileExistsError(f'{root} was written with {found}, asked for is {settings}: {advice}')
    if extra := present - wanted:
        more = f'{len(extra)} files beyond those asked for, such as {min(extra).name}'
        raise FileExistsError(f'{root} holds {more}: ask for more scenes, {advice}')


def drawing_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of forked processes. Others would import the whole package anew."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context('fork'), initializer=start_worker)


def start_worker() -> None:
    """Keep a worker to one core, let it finish its scene on Ctrl-C, and end it with its parent."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # a forked worker has its parent's handler
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end. After a kill of it, the pool's workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def write_dataset(
    root: str | os.PathLike[str],
    num_train: int = 600,
    num_val: int = 100,
    height: int = 128,
    width: int = 256,
    seed: int = 0,
    workers: int = 1,
    on_scene: Callable[[int, int], None] | None = None,
) -> int:
    """Write the scenes that a folder lacks, in Cityscapes' layout.

    A scene depends on ``seed``, its split and its number alone: the files are the same, byte for
    byte, whatever the number of workers and however often the work was interrupted.

    Args:
        root: The folder; it is made if it does not exist.
        num_train: Scenes in the train split.
        num_val: Scenes in the val split.
        height: Rows of each picture, from MIN_SIZE to MAX_SIZE.
        width: Columns of each picture, from MIN_SIZE to MAX_SIZE.
        seed: Another seed, other scenes.
        workers: Processes that draw.
        on_scene: Called after each scene with the numbers of scenes done and to do.

    Returns:
        The number of scenes that were drawn now.

    Raises:
        ValueError: A number is out of its range.
        FileExistsError: The folder holds other pictures than those asked for.
    """
    for name, size in (('height', height), ('width', width)):
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f'{name} must be from {MIN_SIZE} to {MAX_SIZE} pixels, not {size}')
    limits = (('num_train', num_train, 0), ('num_val', num_val, 0), ('seed', seed, 0))
    for name, number, least in (*limits, ('workers', workers, 1)):
        if number < least:
            raise ValueError(f'{name} must be at least {least}, not {number}')
    root = Path(root)
    counts = zip(SPLITS, (num_train, num_val), strict=True)
    paths = {(split, i): scene_paths(root, split, i) for split, n in counts for i in range(n)}
    settings = {'version': GENERATOR_VERSION, 'seed': seed, 'height': height, 'width': width}
    claim_folder(root, settings, set(itertools.chain(*paths.values())))
    for path in itertools.chain(*(scene_paths(root, split, 0) for split in SPLITS)):
        path.parent.mkdir(parents=True, exist_ok=True)
    missing = [scene for scene, files in paths.items() if not all(map(Path.exists, files))]
    write = partial(write_scene, root, seed, height, width)
    parallel = workers > 1 and missing
    with drawing_pool(workers) if parallel else nullcontext() as pool:
        try:
            written = pool.map(write, missing) if pool else map(write, missing)
            for done, _ in enumerate(written, 1):
                if on_scene:
                    on_scene(done, len(missing))
        except BaseException:
            if pool:
                pool.shutdown(cancel_futures=True)
            raise
    return len(missing)
