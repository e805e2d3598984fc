"""Checkpoints that are broken, hostile or of another network: one line that names the file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spoil import halve
from trial import NO_VALIDATION, SAME, SHORT, TEST, TRAIN, check

from bdd_seg.runtime.upstream.checkpoints import load_checkpoint


class Command:
    """Pickles as a call of ``Path.touch``, as code in a file from elsewhere might."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def cut_short(path: Path, weights: dict) -> None:
    torch.save({'state_dict': weights}, path)
    halve(path)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, made from the weights that would be right, and the line that it leads to."""

    name: str
    message: str
    make: Callable[[Path, dict], object]


CHECKPOINTS = [
    Checkpoint('a folder', r'\.pth. is a folder', lambda path, _: path.mkdir()),
    Checkpoint('an empty file', r'\.pth. is no readable checkpoint', lambda path, _: path.write_bytes(b'')),
    Checkpoint('a half', r'\.pth. is no readable checkpoint', cut_short),
    Checkpoint(
        'a text', r'\.pth. (is no readable|holds more than)', lambda path, _: path.write_text('weights')
    ),
    Checkpoint(
        'random bytes',
        r'\.pth. (is no readable|holds more)',
        lambda path, _: path.write_bytes(np.random.default_rng(0).bytes(999)),
    ),
    Checkpoint(
        'a command',
        r'\.pth. holds more than weights and is refused',
        lambda path, weights: torch.save(
            {'state_dict': weights, 'x': Command(path.with_suffix('.ran'))}, path
        ),
    ),
    Checkpoint(
        'safetensors',
        r'\.pth. (is no readable|holds more than)',
        lambda path, weights: save_file(weights, path),
    ),
    Checkpoint('a list', r'\.pth. holds a list', lambda path, weights: torch.save([*weights.values()], path)),
    Checkpoint(
        'no weights', r'\.pth. holds no dict of named tensors', lambda path, _: torch.save({'epoch': 3}, path)
    ),
    Checkpoint(
        'another network',
        r'\.pth. does not fit .*\d+ missing: backbone.stem.0.weight, .*\d+ unexpected: other.backbone',
        lambda path, weights: torch.save(
            {'state_dict': {f'other.{key}': weights[key] for key in weights}}, path
        ),
    ),
    Checkpoint(
        'other shapes',
        r'\.pth. does not fit .*\d+ of another shape: .* instead of',
        lambda path, weights: torch.save({key: torch.stack([weights[key]] * 2) for key in weights}, path),
    ),
]


@pytest.mark.parametrize(
    'case, place',
    [
        (case, place)
        for case in CHECKPOINTS
        for place in ('teacher', 'test', 'load_from', 'resume')
        if (case.name, place) != ('a folder', 'resume')  # no checkpoint: the training begins
    ],
    ids=lambda value: getattr(value, 'name', value),
)
def test_checkpoints(refused, tiny_configs, tmp_path, place, case):
    path = tmp_path / 'run/iter_3.pth'
    path.parent.mkdir()
    case.make(path, load_checkpoint(tiny_configs['checkpoint'])['state_dict'])
    if place == 'test':
        refused(case.message, TEST, tiny_configs['teacher'], path)
    elif place == 'teacher':
        refused(case.message, TRAIN, tiny_configs['distilled'], options=[f'model.teacher.checkpoint={path}'])
    elif place == 'load_from':
        refused(case.message, TRAIN, tiny_configs['teacher'], options=[*SHORT, f'load_from={path}'])
    else:
        (path.parent / 'last_checkpoint').write_text(str(path))
        refused(case.message, TRAIN, tiny_configs['teacher'], flags=['--resume'], options=SHORT)
    assert [found.name for found in tmp_path.rglob('*.pth')] == ['iter_3.pth']
    assert not list(tmp_path.rglob('*.ran'))


def test_resuming_where_there_is_nothing_yet_begins(attempt, reference, tiny_configs):
    trial = attempt(TRAIN, tiny_configs['student'], flags=['--resume'], options=[*SHORT, *NO_VALIDATION])
    check(trial, SAME, reference)
