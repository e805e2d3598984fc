"""Runs of the tools with one wrong or unusual input each."""

import gc
import io
import json
import math
import multiprocessing
import re
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

TOOLS = ROOT / 'tools'
TRAIN, TEST, CACHE = (TOOLS / name for name in ('train.py', 'test.py', 'cache_teacher.py'))
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
NO_VALIDATION = ['val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']
LONG = 'x' * 300

# Instead of a message: the run trains with the losses of the unchanged data set, or with other finite ones.
SAME, TRAINS = 'the same losses', 'finite losses'


@dataclass(frozen=True)
class Case:
    """One input, and the line that it leads to.

    Attributes:
        name: The input in words.
        message: A regular expression for the line, or ``SAME`` or ``TRAINS``.
        config: Which of the tiny configs is run.
        options: Overrides, as after ``--cfg-options``.
        flags: Other arguments of the tool.
        traceback: Whether a traceback comes before the line, since the cause may be a bug.
    """

    name: str
    message: str
    config: str = 'student'
    options: Sequence[str] = ()
    flags: Sequence[str] = ()
    traceback: bool = False

    def filled(self, places: dict[str, Path]) -> tuple[list[str], list[str]]:
        """Return flags and overrides, with paths in place of names such as ``FILE``."""
        return filled(self.flags, places), filled(self.options, places)


def filled(texts: Sequence[str], places: dict[str, Path]) -> list[str]:
    """Return texts with paths in place of the names of places."""
    for name, path in places.items():
        texts = [text.replace(name, str(path)) for text in texts]
    return [*texts]


def by_name(case) -> str:
    """Return the id of a parametrized case."""
    return case.name


class Trial:
    """One run of a tool.

    Attributes:
        message: The line after ``error: `` that it ended with, None if it did its work.
        errors: What it wrote to stderr.
        losses: The losses that it logged.
    """

    def __init__(self, monkeypatch, folder: Path, tool: Path, *arguments) -> None:
        monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
        monkeypatch.chdir(folder)
        given = set(folder.rglob('*.pth'))
        self.message, stderr = None, io.StringIO()
        try:
            with redirect_stderr(stderr):
                runpy.run_path(str(tool), run_name='__main__')
        except SystemExit as ended:
            self.message = ended.code
        self.errors = stderr.getvalue()
        if multiprocessing.active_children():  # torch waits 5 s for each whose loader is garbage by then
            for found in gc.get_objects():
                if isinstance(found, _MultiProcessingDataLoaderIter):
                    found._shutdown_workers()
        if isinstance(self.message, str):  # else it is the status of argparse, which has written the line
            assert self.message.startswith('error: ')
            self.message = self.message.removeprefix('error: ')
            assert '\n' not in self.message
        logs = sorted(folder.rglob('scalars.json'))
        records = [json.loads(line) for path in logs for line in path.open()]
        self.losses = [record['loss'] for record in records if 'loss' in record]
        for path in {*folder.rglob('*.pth')} - given:  # nothing is half-written
            load_checkpoint(path)


def named(folder: Path) -> list[str]:
    """Names under which mmengine finds no logger or visualizer of an earlier run in this process."""
    return [f'experiment_name={folder.name}', f'visualizer.name={folder.name}']


def check(trial: Trial, expected: str, reference: list[float]) -> None:
    """Check that a trial ended as expected, without a traceback."""
    assert 'Traceback' not in trial.errors
    if expected not in (SAME, TRAINS):
        assert re.search(expected, trial.message), trial.message
    elif expected == SAME:
        assert (trial.message, trial.losses) == (None, reference)
    else:
        assert trial.message is None
        assert len(trial.losses) == 2
        assert trial.losses != reference
        assert all(map(math.isfinite, trial.losses))
