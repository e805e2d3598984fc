"""Commands in processes of their own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, study_file

from bdd_seg.errors import ConfigError
from bdd_seg.study import processes
from bdd_seg.study.processes import (
    PYTHON,
    ProgressLine,
    StoppedError,
    command_line,
    is_prepared,
    parse_command,
    prepare,
    run_command,
)
from bdd_seg.study.settings import Preparation, load_study


@pytest.fixture
def script(tmp_path):
    file = tmp_path / 'script.py'

    def make(text):
        file.write_text(text)
        return [sys.executable, str(file)], tmp_path / 'script.log'

    return make


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_ctrl_c_leaves_no_process_behind_and_the_time_is_kept(script, tmp_path):
    def interrupted():
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt
        return False

    pid, usage = tmp_path / 'pid', tmp_path / 'usage.json'
    usage.write_text('{"seconds": 100.0, "peak_memory_mb": 7.0}')
    line, log = script(f'import os, time\nopen({str(pid)!r}, "w").write(str(os.getpid()))\ntime.sleep(60)')
    with pytest.raises(KeyboardInterrupt):
        run_command(line, log, {}, interrupted, usage=usage)
    assert gone(int(pid.read_text()))
    spent = json.loads(usage.read_text())
    assert 100 < spent['seconds'] < 150
    assert spent['peak_memory_mb'] == 7


def test_what_a_killed_call_left_behind_is_not_written_over(script, tmp_path):
    pid = tmp_path / 'pid'
    line, log = script(f'import os, time\nopen({str(pid)!r}, "w").write(str(os.getpid()))\ntime.sleep(60)')
    first = 'import sys; from bdd_seg.study.processes import run_command; from pathlib import Path; '
    first += 'run_command(sys.argv[1:3], Path(sys.argv[3]), {}, lambda: False)'
    killed = subprocess.Popen([sys.executable, '-c', first, *line, str(log)])
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    left = int(pid.read_text())
    try:
        with pytest.raises(ConfigError, match=r'another process is writing .*script.log'):
            run_command(line, log, {}, lambda: True)
    finally:
        os.kill(left, 9)
    for _ in range(100):  # nobody but init waits for it
        try:
            with pytest.raises(StoppedError):
                run_command(line, log, {}, lambda: True)
            break
        except ConfigError:
            time.sleep(0.05)
    else:
        pytest.fail('still locked')


def test_a_signal_is_named(script):
    line, log = script('print("Iter 7", flush=True)\nimport os\nos.kill(os.getpid(), 9)')
    with pytest.raises(ConfigError, match=r'script.py failed \(ended by SIGKILL\); see .*script.log'):
        run_command(line, log, {}, lambda: False)


def test_a_preparation_that_was_interrupted_is_not_done(tiny_configs, tmp_path):
    made, script = tmp_path / 'made.json', tmp_path / 'make.py'
    script.write_text(f'import time\nopen({str(made)!r}, "a").write("x")\ntime.sleep(60)')
    step = Preparation(run=str(script), creates=made)
    changed = load_study(study_file(tiny_configs, tmp_path)).model_copy(update={'prepare': [step]})
    with pytest.raises(StoppedError):
        prepare(changed, tmp_path / 'logs', lambda: made.exists() and made.read_text() == 'x', print)
    assert not is_prepared(step)
    script.write_text(f'open({str(made)!r}, "a").write("y")')
    for _ in range(2):
        prepare(changed, tmp_path / 'logs', lambda: False, print)
        assert made.read_text() == 'xy'
    assert is_prepared(step)


def test_commands_are_modules():
    expected = [*PYTHON, '-m', 'bdd_seg.cli.train', 'config.py', '--work-dir', 'a b']
    assert command_line('train', 'config.py', '--work-dir', Path('a b')) == expected


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('tools/train.py a.py --amp', ['-m', 'bdd_seg.cli.train', 'a.py', '--amp']),
        ('tools/cache_teacher.py a.py', ['-m', 'bdd_seg.cli.cache', 'a.py']),
        ("tools/make_street_scenes.py --out 'a b'", ['-m', 'bdd_seg.cli.scenes', '--out', 'a b']),
        ('tools/mine.py x', ['tools/mine.py', 'x']),
        ('/somewhere/script.py configs/mine.py', ['/somewhere/script.py', 'configs/mine.py']),
        ('setup.py configs/bdd/README.md', [f'{ROOT}/setup.py', f'{ROOT}/configs/bdd/README.md']),
    ],
)
def test_commands_of_preparations(monkeypatch, tmp_path, text, expected):
    monkeypatch.chdir(tmp_path)
    python = PYTHON if expected[0] == '-m' else [sys.executable]
    assert parse_command(text) == [*python, *expected]


@pytest.mark.skipif(sys.version_info < (3, 11), reason='Python 3.10 cannot leave the folder out')
def test_a_folder_with_a_name_of_a_library_is_not_imported(monkeypatch, tmp_path):
    (tmp_path / 'mmseg').mkdir()
    (tmp_path / 'mmseg/__init__.py').write_text('raise RuntimeError')
    monkeypatch.chdir(tmp_path)
    run_command(command_line('train', '--help'), tmp_path / 'log', {}, lambda: False)
    assert 'mixed precision' in (tmp_path / 'log').read_text()


@pytest.mark.parametrize('command', ['train', 'test', 'demo', 'study', 'cache', 'scenes'])
def test_commands_exist(command):
    assert command in processes._COMMANDS.values()
    text = (ROOT / f'bdd_seg/cli/{command}.py').read_text()
    assert "if __name__ == '__main__':" in text
    assert (ROOT / f'tools/{next(k for k, v in processes._COMMANDS.items() if v == command)}.py').exists()


def test_progress_is_told_now_and_then(monkeypatch, tmp_path):
    lines, now = [], [100.0]
    monkeypatch.setattr(processes.time, 'monotonic', lambda: now[0])
    follow = ProgressLine('alone seed 0', tmp_path, lines.append, seconds=10)
    for now[0] in (105.0, 110.0, 112.0):
        follow()
    session = tmp_path / '20260101_000000/vis_data'
    session.mkdir(parents=True)
    (session / 'config.py').write_text('train_cfg = dict(max_iters=500)')
    records = [{'step': 10, 'loss': 1.0, 'time': 0.3}, {'step': 20, 'loss': 1.0, 'time': 0.5}]
    (session / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    for now[0] in (119.9, 120.0, 125.0, 130.0):
        follow()
    assert lines == [
        'alone seed 0: running for 10 s',
        'alone seed 0: iteration 20 of 500, 3 min left',
        'alone seed 0: iteration 20 of 500, 3 min left',
    ]


def test_a_command_is_followed(script):
    line, log = script('import time\ntime.sleep(1)')
    called = []
    run_command(line, log, {}, lambda: False, lambda: called.append(1))
    assert len(called) >= 3


def test_what_a_command_needs_is_measured(script, tmp_path):
    usage = tmp_path / 'usage.json'
    line, log = script('import os\nprint(os.environ["MINE"])\nblock = bytearray(200_000_000)')
    for _ in range(2):
        run_command(line, log, {'MINE': 'yes'}, lambda: False, usage=usage)
    assert log.read_text() == 'yes\nyes\n'
    spent = json.loads(usage.read_text())
    assert spent['peak_memory_mb'] > 190
    assert spent['seconds'] > 0.1
