"""Signals end a tool and all that it started, whatever it is doing."""

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, logged
from many_processes import TEST, TRAIN, Job, job, torchrun, write_config

from bdd_seg.datasets.street_scenes import write_dataset

SECONDS = 240
"""Longer than anything here takes; what takes longer hangs."""
INTERRUPTED = {'SIGINT': 130, 'SIGTERM': 143, 'SIGHUP': 129}


def wait_for(started: Job, amid: Callable[[Job], bool]) -> None:
    """Wait while the job runs."""
    deadline = time.time() + SECONDS
    while not amid(started):
        assert time.time() < deadline, started.output[-3000:]
        assert started.process.poll() is None, started.output[-3000:]
        time.sleep(0.05)


def wait_until_nothing_is_left(started: Job) -> float:
    """Return the seconds that it took."""
    begin = time.time()
    while started.processes():
        assert time.time() < begin + SECONDS, 'processes are left'
        time.sleep(0.05)
    return time.time() - begin


def iterations(folder: Path) -> int:
    return len(logged(folder)) if list(folder.glob('*/vis_data/scalars.json')) else 0


@pytest.fixture(scope='module')
def many_scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('many_scenes')
    write_dataset(root, num_train=1500, num_val=1500, height=48, width=96, seed=1, workers=2)
    return root


@pytest.fixture
def endless(tiny_configs, many_scenes, tmp_path) -> dict[str, Path]:
    """Configs for hours of training or minutes of evaluation, whose loaders have two processes each."""
    text = '_base_ = {base!r}\ntrain_cfg = dict(max_iters=100000, val_begin=99999)\n'
    for name in ('train', 'val', 'test'):
        text += f'{name}_dataloader = dict(num_workers=2, persistent_workers=True, '
        text += f'dataset=dict(data_root={str(many_scenes)!r}))\n'
    for kind in ('teacher', 'student', 'distilled'):
        (tmp_path / f'{kind}.py').write_text(text.format(base=str(tiny_configs[kind])))
    return {kind: tmp_path / f'{kind}.py' for kind in ('teacher', 'student', 'distilled')}


def study_file(folder: Path, config: Path, **changes) -> Path:
    content = {
        'title': 'Endless',
        'methods': {'alone': {'label': 'alone', 'config': str(config)}},
        'control': 'alone',
        'seeds': [0, 1],
        'select_on': 'val',
        'splits': {'val': {}},
        **changes,
    }
    (folder / 'study.yaml').write_text(yaml.safe_dump(content))
    return folder / 'study.yaml'


@pytest.fixture
def command(endless, tiny_configs, tmp_path) -> Callable[[str], tuple[list, Callable[[Job], bool]]]:
    """Returns the line of a tool that takes long, and a condition that says that it is amid its work."""
    run, out, config = tmp_path / 'run', tmp_path / 'out', endless['distilled']
    training = f'tools/train.py {config} --work-dir {run}'
    prepared = [{'run': training, 'creates': str(run / 'never')}]

    def make(tool):
        if tool == 'train':
            line = [TRAIN, config, '--work-dir', run]
        elif tool == 'test':
            line = [TEST, endless['teacher'], tiny_configs['checkpoint'], '--work-dir', run]
        elif tool == 'cache':
            line = [ROOT / 'tools/cache_teacher.py', config, '--out', run]
        elif tool == 'scenes':
            line = [ROOT / 'tools/make_street_scenes.py', '--out', run, '--train', 9999, '--workers', 3]
        else:
            changes = {'prepare': prepared} if tool == 'preparing study' else {}
            file = study_file(tmp_path, endless['student'], **changes)
            line = [ROOT / 'tools/study.py', file, '--work-dir', out, '--jobs', 2]
        amid = {
            'train': lambda job: iterations(run) > 5,
            'test': lambda job: len(job.processes()) == 3,
            'cache': lambda job: len([*run.glob('*.safetensors')]) > 5,
            'scenes': lambda job: len([*run.rglob('*gtFine*.png')]) > 5,
            'preparing study': lambda job: iterations(run) > 5,
            'study': lambda job: [iterations(folder) > 5 for folder in out.glob('alone-*')] == [True] * 2,
        }
        return [sys.executable, *line], amid[tool]

    return make


TOOLS = ['train', 'test', 'cache', 'scenes', 'preparing study', 'study']


@pytest.mark.parametrize('tool, name', [*product(TOOLS, ['SIGINT', 'SIGTERM']), ('train', 'SIGHUP')])
def test_a_signal_ends_all(command, tmp_path, tool, name):
    line, amid = command(tool)
    with job(line, tmp_path / 'log.txt', tmp_path) as started:
        wait_for(started, amid)
        count, begin = len(started.processes()), time.time()
        assert count >= 3  # the tool and two more
        started.process.send_signal(getattr(signal, name))
        assert started.wait(SECONDS) == INTERRUPTED[name], started.output[-3000:]
        ended = time.time() - begin
        left = wait_until_nothing_is_left(started)
    print(f'{tool}, {name}: {count} processes, the tool ended after {ended:.1f} s, all {left:.1f} s later')
    assert 'KeyboardInterrupt' not in started.output
    assert '\ninterrupted' in f'\n{started.output}'


@pytest.mark.parametrize('tool, name', product(['train', 'test', 'scenes', 'study'], ['SIGINT', 'SIGTERM']))
def test_a_signal_to_the_whole_group_does_the_same(command, tmp_path, tool, name):
    """As a terminal sends Ctrl-C, or a machine that shuts down SIGTERM."""
    line, amid = command(tool)
    with job(['setsid', *line], tmp_path / 'log.txt', tmp_path) as started:
        wait_for(started, amid)
        os.killpg(started.process.pid, getattr(signal, name))
        assert started.wait(SECONDS) == INTERRUPTED[name], started.output[-3000:]
        wait_until_nothing_is_left(started)
    assert '\ninterrupted' in f'\n{started.output}'
    assert '\nerror: ' not in started.output


@pytest.mark.parametrize('tool', TOOLS)
def test_a_kill_ends_all(command, tmp_path, tool):
    line, amid = command(tool)
    with job(line, tmp_path / 'log.txt', tmp_path) as started:
        wait_for(started, amid)
        count = len(started.processes())
        started.process.kill()
        assert started.wait(SECONDS) == -signal.SIGKILL
        left = wait_until_nothing_is_left(started)
    print(f'{tool}, SIGKILL: {count} processes, all ended {left:.1f} s later')


@pytest.mark.parametrize('pause', [0.0, 0.5, 1.5])
def test_two_signals_leave_nothing_behind(command, tmp_path, pause):
    line, amid = command('study')
    with job(line, tmp_path / 'log.txt', tmp_path) as started:
        wait_for(started, amid)
        for _ in range(2):
            started.process.send_signal(signal.SIGINT)
            time.sleep(pause)
        # The second one may come when Python is about to end, and has no handler any more.
        assert started.wait(SECONDS) in (130, -signal.SIGINT), started.output[-3000:]
        left = wait_until_nothing_is_left(started)
    print(f'twice, {pause} s apart: all ended {left:.1f} s later')


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGKILL'])
def test_torchrun_ends_its_processes_and_their_loaders(tiny_configs, tmp_path, name):
    """SIGKILL ends torchrun alone. Its processes go on, and a second job in their work dir is refused."""
    extra = 'train_dataloader.update(num_workers=2, persistent_workers=True)\n'
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], iterations=100000, extra=extra)
    run = tmp_path / 'run'
    line = [*torchrun(2), TRAIN, config, '--work-dir', run, '--launcher', 'pytorch', '--resume']
    with job(line, tmp_path / 'log.txt', tmp_path) as started:
        wait_for(started, lambda _: iterations(run) > 5)
        count, begin = len(started.processes()), time.time()
        assert count >= 7  # torchrun, two trainings, two loaders of each
        started.process.send_signal(getattr(signal, name))
        started.wait(SECONDS)
        ended = time.time() - begin
        if name == 'SIGKILL':
            with job(line, tmp_path / 'second.txt', tmp_path) as second:
                assert second.wait(SECONDS) == 1
            assert f"error: '{run}' is in use by process " in second.output
            return
        left = wait_until_nothing_is_left(started)
    print(f'torchrun, {name}: {count} processes, torchrun ended after {ended:.1f} s, all {left:.1f} s later')


def test_a_resumed_training_beside_a_survivor_is_refused(command, tmp_path):
    line, amid = command('train')
    with job(line, tmp_path / 'log.txt', tmp_path) as started:
        wait_for(started, amid)
        before = sorted(path.name for path in (tmp_path / 'run').iterdir())
        started.process.send_signal(signal.SIGSTOP)
        with job([*line, '--resume'], tmp_path / 'second.txt', tmp_path) as second:
            assert second.wait(SECONDS) == 1
        assert f'is in use by process {started.process.pid} on ' in second.output.splitlines()[-1]
        assert before == sorted(path.name for path in (tmp_path / 'run').iterdir())
