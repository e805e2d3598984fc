"""Lines that tell the progress of a training, and the time that several trainings will still take."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from bdd_seg.study.logs import read_progress, seconds_per_iteration


class ProgressLine:
    """Print the progress of a command from time to time, as the ``follow`` of ``run_command``.

    Args:
        name: The beginning of each line.
        work_dir: The work dir of a training, whose logged scalars are read. In a folder without any, the
            line has the time that has passed.
        say: Prints a line.
        seconds: Time between lines.
        left_of_all: Returns the time left of all that the command is a part of, in seconds.
    """

    def __init__(
        self,
        name: str,
        work_dir: Path,
        say: Callable[[str], None],
        seconds: float = 10,
        left_of_all: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.work_dir = work_dir
        self.say = say
        self.seconds = seconds
        self.left_of_all = left_of_all
        self.start = self.said = time.monotonic()

    def __call__(self) -> None:
        """Print a line if it is time."""
        now = time.monotonic()
        if now < self.said + self.seconds:
            return
        self.said = now
        progress = read_progress(self.work_dir)
        left = []
        if progress is None:
            done = f'running for {_duration(now - self.start)}'
        else:
            done = f'iteration {progress.done} of {progress.total}'
            left.append(f'{_duration(progress.seconds_left)} left')
        if self.left_of_all is not None:
            left = [f'{text} of this' for text in left]
            left.append(f'{_duration(self.left_of_all())}{"" if left else " left"} of all')
        self.say(', '.join([f'{self.name}: {done}', *left]))


class Step(NamedTuple):
    """A training among several that run one after the other.

    Attributes:
        label: A name to be printed.
        work_dir: Its work dir.
        iterations: The number of its iterations.
        seconds: Time of an iteration on a machine on which all steps were measured.
        overhead_seconds: Time there for the rest: its start, and the evaluation.
    """

    label: str
    work_dir: Path
    iterations: int
    seconds: float
    overhead_seconds: float


def seconds_left(steps: Sequence[Step]) -> float:
    """Return the time left of all steps, at this machine's pace once one of them has logged it."""
    found = [read_progress(step.work_dir) for step in steps]
    paces = [
        seconds_per_iteration(step.work_dir) / step.seconds
        for step, progress in zip(steps, found, strict=True)
        if progress is not None
    ]
    slowdown, left = mean(paces or [1.0]), 0.0
    for step, progress in zip(steps, found, strict=True):
        if progress is None:
            left += slowdown * (step.iterations * step.seconds + step.overhead_seconds)
        else:
            left += progress.seconds_left
            left += slowdown * step.overhead_seconds * (1 - progress.done / progress.total)
    return left


def _duration(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'
