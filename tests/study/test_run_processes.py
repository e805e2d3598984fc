"""Commands in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest
from helpers import ROOT, study_file

from bdd_seg.errors import ConfigError
from bdd_seg.study import processes, supervisor
from bdd_seg.study.processes import (
    PYTHON,
    StoppedError,
    command_line,
    is_prepared,
    parse_command,
    prepare,
    run_command,
)
from bdd_seg.study.settings import PROJECT, Preparation, load_study


@pytest.fixture
def script(tmp_path):
    file = tmp_path / 'script.py'

    def make(text):
        file.write_text(text)
        return [sys.executable, str(file)], tmp_path / 'script.log'

    return make


def gone(pid):
    """Return True for a process that has ended, whether or not its parent knows."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] in 'ZX'
    except FileNotFoundError:
        return True


def wait_until(condition):
    """Wait for what will happen soon on any machine that is not stuck."""
    for _ in range(50_000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail('waited for a quarter of an hour')


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
    wait_until(lambda: gone(int(pid.read_text())))
    spent = json.loads(usage.read_text())
    assert spent['seconds'] > 100
    assert spent['peak_memory_mb'] >= 7


# Starts a process of its own, tells both numbers, and sleeps for ever.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1e6)'])
with open({pids!r} + '.new', 'w') as file:
    file.write(f'{{os.getpid()}} {{child.pid}}')
os.rename({pids!r} + '.new', {pids!r})
time.sleep(1e6)
"""


def supervise(line, seconds_to_end=10):
    """Start the supervisor of a command as run_command does. Returns it, and the pipe's end to close."""
    receiver, lifeline = Pipe(duplex=False)
    code = 'import sys; sys.path.insert(0, sys.argv.pop(1)); import supervisor; '
    code += f'supervisor.SECONDS_TO_END = {seconds_to_end}; supervisor.main()'
    start = [sys.executable, '-c', code, str(Path(supervisor.__file__).parent), str(receiver.fileno()), *line]
    with receiver:
        process = subprocess.Popen(start, start_new_session=True, pass_fds=[receiver.fileno()])
    return process, lifeline


@pytest.mark.parametrize('stubborn', [False, True])
def test_a_command_ends_with_the_process_that_started_it(script, tmp_path, stubborn):
    """Also where that is killed, for then the system closes the pipe."""
    pids = tmp_path / 'pids'
    ignore = 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)' if stubborn else ''
    line, _ = script(ignore + FAMILY.format(pids=str(pids)))
    process, lifeline = supervise(line, seconds_to_end=0.5 if stubborn else 60)
    wait_until(pids.exists)
    family = [int(pid) for pid in pids.read_text().split()]
    assert not any(map(gone, family))
    lifeline.close()
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: all(map(gone, family)))


@pytest.mark.parametrize('end, code', [('sys.exit(7)', 7), ('os.kill(os.getpid(), 2)', -2), ('pass', 0)])
def test_the_supervisor_ends_as_the_command_does(script, end, code):
    handler = 'signal.signal(signal.SIGINT, signal.SIG_DFL)'
    line, _ = script(f'import os, signal, sys\n{handler}\n{end}')
    process, lifeline = supervise(line)
    with lifeline:
        assert process.wait() == code


def test_what_a_command_leaves_in_the_background_ends_with_it(script, tmp_path):
    pids = tmp_path / 'pids'
    line, log = script(FAMILY.format(pids=str(pids)).replace('time.sleep(1e6)\n', 'sys.exit()\n'))
    run_command(line, log, {}, lambda: False)
    wait_until(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))


def test_a_second_ctrl_c_kills_at_once(script, tmp_path, monkeypatch):
    def interrupted():
        if pids.exists():
            raise KeyboardInterrupt
        return False

    def waitid(kind, pid, options):
        if not options & os.WNOHANG:  # as if it came while the command takes its time
            raise KeyboardInterrupt('second')
        return actual(kind, pid, options)

    pids, actual = tmp_path / 'pids', os.waitid
    ignore = 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)'
    line, log = script(ignore + FAMILY.format(pids=str(pids)))
    monkeypatch.setattr(processes.os, 'waitid', waitid)
    with pytest.raises(KeyboardInterrupt, match='second'):
        run_command(line, log, {}, interrupted)
    wait_until(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))


def test_a_signal_is_named(script):
    line, log = script('print("Iter 7", flush=True)\nimport os\nos.kill(os.getpid(), 9)')
    with pytest.raises(ConfigError, match=r'script.py failed \(ended by SIGKILL\); see .*script.log'):
        run_command(line, log, {}, lambda: False)


def test_a_preparation_that_was_interrupted_is_not_done(tiny_configs, tmp_path):
    def silent(name, work_dir):
        return lambda: None

    made, script = tmp_path / 'made.json', tmp_path / 'make.py'
    script.write_text(f'import time\nopen({str(made)!r}, "a").write("x")\ntime.sleep(60)')
    step = Preparation(run=str(script), creates=made)
    changed = load_study(study_file(tiny_configs, tmp_path)).model_copy(update={'prepare': [step]})
    with pytest.raises(StoppedError):
        prepare(changed, tmp_path / 'logs', lambda: made.exists() and made.read_text() == 'x', print, silent)
    assert not is_prepared(step)
    script.write_text(f'open({str(made)!r}, "a").write("y")')
    for _ in range(2):
        prepare(changed, tmp_path / 'logs', lambda: False, print, silent)
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
        ('configs/kd/README.md configs/a.py', [f'{PROJECT}/configs/kd/README.md', 'configs/a.py']),
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


def test_a_command_is_followed(script, tmp_path):
    def follow():
        called.append(1)
        if len(called) == 3:
            seen.touch()

    called, seen = [], tmp_path / 'seen'
    line, log = script(f'import os, time\nwhile not os.path.exists({str(seen)!r}):\n    time.sleep(0.01)')
    run_command(line, log, {}, lambda: False, follow)
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
