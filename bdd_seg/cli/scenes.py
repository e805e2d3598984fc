"""Write a data set of procedural street scenes in Cityscapes' layout."""

import argparse
import os
import sys
import time
from pathlib import Path

import cv2

from bdd_seg.cli.errors import one_line_errors
from bdd_seg.datasets.street_scenes import contact_sheet, draw_scene, scene_rng, write_dataset
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_atomically

SHEET_SCENES = 4


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Run it again after an interruption, or for more scenes: it draws those that are missing.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', type=Path, default='data/street_scenes', help='folder to write')
    parser.add_argument('--train', type=int, default=600, help='scenes in the train split')
    parser.add_argument('--val', type=int, default=100, help='scenes in the val split')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(128, 256), metavar=('H', 'W'), help='size in pixels'
    )
    parser.add_argument('--seed', type=int, default=0, help='another seed, other scenes')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes that draw')
    parser.add_argument(
        '--sheet',
        type=Path,
        metavar='FILE.png',
        default=argparse.SUPPRESS,
        help=f'also write the first {SHEET_SCENES} val scenes beside their coloured labels',
    )
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    draw(args.out, (args.train, args.val), args.size, args.seed, args.workers)
    if 'sheet' in args:
        write_sheet(args.sheet, args.seed, *args.size)


def draw(root: Path, counts: tuple[int, int], size: tuple[int, int], seed: int, workers: int) -> None:
    """Draw the scenes that a folder lacks, with a line that tells the progress.

    Args:
        root: The folder.
        counts: Scenes in the train and in the val split.
        size: Height and width in pixels.
        seed: Another seed, other scenes.
        workers: Processes that draw.

    Raises:
        ConfigError: A number is out of its range, or the folder cannot be written to or holds other scenes.
    """
    try:
        drawn = write_dataset(root, *counts, *size, seed, workers, Progress())
    except KeyboardInterrupt:
        print(file=sys.stderr)  # below the line that tells the progress
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    print(f'{root}: {drawn} scenes drawn, {sum(counts) - drawn} were there already', flush=True)


class Progress:
    """A line on the terminal with the scenes done, their rate and the time left."""

    def __init__(self) -> None:
        self.start = self.shown = time.monotonic()
        self.seconds = 0.5 if sys.stderr.isatty() else 10.0  # between lines that stay

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.shown < self.seconds:
            return
        self.shown = now
        rate = done / max(now - self.start, 1e-9)
        line = f'{done}/{total} scenes, {rate:.0f}/s, {(total - done) / rate:.0f} s left'
        if sys.stderr.isatty():
            line = f'\r{line:<60}' + '\n' * (done == total)
        else:
            line += '\n'
        sys.stderr.write(line)
        sys.stderr.flush()


def write_sheet(path: Path, seed: int, height: int, width: int) -> None:
    """Write the contact sheet of the first val scenes.

    Raises:
        ConfigError: The file cannot be written.
    """
    scenes = [draw_scene(scene_rng(seed, 'val', i), height, width) for i in range(SHEET_SCENES)]
    smallest = (cv2.IMWRITE_PNG_COMPRESSION, 9)
    image = cv2.imencode('.png', contact_sheet(scenes)[..., ::-1], smallest)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, image.tobytes())
    except OSError as error:
        raise ConfigError(f'--sheet {str(path)!r} cannot be written: {error.strerror}') from error


if __name__ == '__main__':
    main()
