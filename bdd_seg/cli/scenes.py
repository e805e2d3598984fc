"""Write a data set of procedural street scenes in Cityscapes' layout."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import cv2

from bdd_seg.datasets.street_scenes import contact_sheet, draw_scene, scene_rng, write_dataset

SHEET_SCENES = 4


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Run it again after an interruption, or for more scenes: it draws what is missing.',
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
        '--sheet', type=Path, metavar='FILE.png', default=argparse.SUPPRESS,
        help=f'also write the first {SHEET_SCENES} val scenes beside their coloured labels',
    )  # fmt: skip
    return parser.parse_args()


class Progress:
    """A line on the terminal with the scenes done, their rate and the time left."""

    def __init__(self) -> None:
        self.start = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.shown < 0.5:
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
    """Write the contact sheet of the first val scenes."""
    scenes = [draw_scene(scene_rng(seed, 'val', i), height, width) for i in range(SHEET_SCENES)]
    smallest = (cv2.IMWRITE_PNG_COMPRESSION, 9)
    data = cv2.imencode('.png', contact_sheet(scenes)[..., ::-1], smallest)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def main() -> str | int:
    """Run the tool; return 0, or what went wrong."""
    args = parse_args()
    height, width = args.size
    counts = args.train, args.val
    try:
        drawn = write_dataset(args.out, *counts, height, width, args.seed, args.workers, Progress())
        if 'sheet' in args:
            write_sheet(args.sheet, args.seed, height, width)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 'stopped; the same command goes on from here'
    except (ValueError, OSError) as error:
        return f'error: {error}'
    print(f'{args.out}: {drawn} scenes drawn, {sum(counts) - drawn} were there already')
    return 0


if __name__ == '__main__':
    sys.exit(main())
