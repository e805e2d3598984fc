"""The progress of trainings."""

import json

import pytest

from bdd_seg.study import progress
from bdd_seg.study.progress import ProgressLine, Step, seconds_left


def log(work_dir, max_iters, *records):
    """Write what a training logs: pairs of an iteration and its seconds."""
    session = work_dir / '20260101_000000/vis_data'
    session.mkdir(parents=True, exist_ok=True)
    (session / 'config.py').write_text(f'train_cfg = dict(max_iters={max_iters})')
    lines = [json.dumps({'step': step, 'loss': 1.0, 'time': seconds}) for step, seconds in records]
    (session / 'scalars.json').write_text('\n'.join(lines))


def test_progress_is_told_now_and_then(monkeypatch, tmp_path):
    lines, now = [], [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    follow = ProgressLine('alone seed 0', tmp_path, lines.append, seconds=10)
    for now[0] in (105.0, 110.0, 112.0):
        follow()
    log(tmp_path, 500, (10, 0.3), (20, 0.5))
    for now[0] in (119.9, 120.0, 125.0, 130.0):
        follow()
    assert lines == [
        'alone seed 0: running for 10 s',
        'alone seed 0: iteration 20 of 500, 3 min left',
        'alone seed 0: iteration 20 of 500, 3 min left',
    ]


def test_the_time_left_of_all_stands_behind_that_of_one(monkeypatch, tmp_path):
    lines, now = [], [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    follow = ProgressLine('step 2 of 4', tmp_path, lines.append, 10, lambda: 600.0)
    now[0] = 10.0
    follow()
    log(tmp_path, 500, (10, 0.1))
    now[0] = 20.0
    follow()
    assert lines == [
        'step 2 of 4: running for 10 s, 10 min left of all',
        'step 2 of 4: iteration 10 of 500, 49 s left of this, 10 min of all',
    ]


def test_the_time_left_of_all_follows_the_pace_of_this_machine(tmp_path):
    steps = [
        Step('teacher', tmp_path / 'a', 100, 0.4, 10),
        Step('alone', tmp_path / 'b', 50, 0.2, 10),
        Step('distilled', tmp_path / 'c', 50, 0.3, 10),
    ]
    assert seconds_left(steps) == pytest.approx(40 + 10 + 15 + 3 * 10)
    log(tmp_path / 'a', 100, (10, 0.8), (20, 0.8))  # twice as slow
    assert seconds_left(steps) == pytest.approx(80 * 0.8 + 2 * (0.8 * 10 + 10 + 15 + 2 * 10))
    log(tmp_path / 'a', 100, (50, 0.8), (100, 0.8))
    assert seconds_left(steps) == pytest.approx(2 * (10 + 15 + 2 * 10))
    log(tmp_path / 'b', 50, (10, 0.2))  # now as fast as measured: 1.5 times as slow, taken together
    assert seconds_left(steps) == pytest.approx(40 * 0.2 + 1.5 * (0.8 * 10 + 15 + 10))
    log(tmp_path / 'b', 50, (50, 0.2))
    log(tmp_path / 'c', 50, (50, 0.3))
    assert seconds_left(steps) == 0
