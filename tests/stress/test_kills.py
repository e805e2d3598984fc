"""Trainings killed with SIGKILL against the one that was not: twenty once, and one twenty times."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import EVERYTHING_RANDOM, KEPT, TRAIN, logged_losses, same
from phases import LONGEST

from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

ITERATIONS, SAVING, VALIDATING = 24, 4, 6
SETTINGS = f"""
custom_imports = dict(imports=['bdd_seg', 'phases'])
custom_hooks += [dict(type='SayPhase')]
train_cfg = dict(max_iters={ITERATIONS}, val_interval={VALIDATING})
default_hooks = dict(checkpoint=dict(interval={SAVING}, max_keep_ckpts=2, save_best='mIoU'))
"""


@pytest.fixture(scope='module')
def config(tiny_configs, tmp_path_factory):
    path = tmp_path_factory.mktemp('configs') / 'random.py'
    text = EVERYTHING_RANDOM.format(base=str(tiny_configs['distilled'])) + SETTINGS
    text = text.replace('train_cfg = dict(val_interval=3)\n', '').replace('seed=None', 'seed=11')
    path.write_text(text)
    return path


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    """The work dir of the training that nobody kills."""
    folder = tmp_path_factory.mktemp('whole')
    assert finish(config, folder, workers=0).count('Saving checkpoint at') == ITERATIONS // SAVING
    return folder


def start(config: Path, folder: Path, workers: int) -> subprocess.Popen:
    line = [sys.executable, TRAIN, config, '--work-dir', folder, '--resume', '--cfg-options']
    line += [f'train_dataloader.num_workers={workers}', f'train_dataloader.persistent_workers={workers > 0}']
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    with (folder / 'output.txt').open('a') as output:
        return subprocess.Popen(
            [str(word) for word in line],
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        )


def finish(config: Path, folder: Path, workers: int) -> str:
    process = start(config, folder, workers)
    assert process.wait(timeout=300) == 0, (folder / 'output.txt').read_text()[-3000:]
    return (folder / 'output.txt').read_text()


def kill(config: Path, folder: Path, workers: int, phase: str, iteration: int, chance: random.Random) -> str:
    """Start or resume, kill while in that phase of that iteration or a later one, and say when that was.

    Of a training that ends before, nothing.
    """
    said = folder / 'phase'
    said.unlink(missing_ok=True)
    process = start(config, folder, workers)
    deadline = time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < deadline
        now = said.read_text().split() if said.exists() else ['', '-1']
        if now[0] == phase and int(now[1]) >= iteration:
            time.sleep(chance.uniform(0, LONGEST[phase]))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return said.read_text()
        time.sleep(0.001)
    assert process.returncode == 0, (folder / 'output.txt').read_text()[-3000:]
    return ''


def check(whole: Path, folder: Path) -> None:
    """The end of a training, bit for bit, and what it logged."""
    name = f'iter_{ITERATIONS}.pth'
    expected, ended = load_checkpoint(whole / name), load_checkpoint(folder / name)
    for key in KEPT:
        assert same(expected[key], ended[key]), key
    histories = [
        {
            key: value.data[0].tolist()
            for key, value in content['message_hub']['log_scalars'].items()
            if 'loss' in key or 'lr' in key
        }
        for content in (expected, ended)
    ]
    assert len(histories[0]['train/loss']) == ITERATIONS
    assert histories[0] == histories[1]
    assert by_step(whole) == by_step(folder)
    assert scores(whole) == scores(folder)
    assert [path.name for path in folder.glob('best*')] == [path.name for path in whole.glob('best*')]
    assert not list(folder.glob('*.part'))


def by_step(folder: Path) -> dict[int, dict]:
    return {record['step']: record for record in logged_losses(folder)}


def scores(folder: Path) -> dict[int, float]:
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines() if '}' in line]
    return {record['step']: record['mIoU'] for record in records if 'mIoU' in record}


def test_twenty_trainings_killed_once(config, whole, tmp_path, capsys):
    chance = random.Random(0)
    plans = [
        (phase, chance.randrange(ITERATIONS - 3)) for phase in ['train'] * 8 + ['val'] * 6 + ['write'] * 6
    ]

    def killed_and_resumed(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        phase, iteration = plans[number]
        when = kill(config, folder, number % 3, phase, iteration, random.Random(number))
        assert when
        finish(config, folder, number % 3)
        check(whole, folder)
        return when

    with ThreadPoolExecutor(2) as pool:
        moments = list(pool.map(killed_and_resumed, range(len(plans))))
    with capsys.disabled():
        print(
            f'\nkilled once, resumed and ended alike: {len(moments)} of {len(plans)} ({", ".join(moments)})'
        )


def test_a_training_killed_twenty_times(config, whole, tmp_path, capsys):
    chance, moments = random.Random(1), []
    while len(moments) < 20:
        # A few iterations at a time, so that it does not end before.
        iteration = min(len(moments) + chance.randrange(3), ITERATIONS - 3)
        phase = chance.choice(['train', 'train', 'val', 'write'])
        when = kill(config, tmp_path, len(moments) % 3, phase, iteration, chance)
        assert when, 'the training ended before'
        moments.append(when)
    finish(config, tmp_path, 0)
    check(whole, tmp_path)
    with capsys.disabled():
        print(f'\nkilled {len(moments)} times and ended alike ({", ".join(moments)})')
