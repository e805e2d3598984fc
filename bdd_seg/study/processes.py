"""Commands in processes of their own: started, followed and stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_json
from bdd_seg.study import supervisor
from bdd_seg.study.settings import Preparation, Study, find_file

# tools/NAME.py → module of bdd_seg.cli
_COMMANDS = {
    'train': 'train',
    'test': 'test',
    'demo': 'demo',
    'study': 'study',
    'cache_teacher': 'cache',
    'make_street_scenes': 'scenes',
}
# -m puts the working directory first on the path, and a folder mmseg/ there would be imported. -P leaves it
# out; Python 3.10 has no such option.
PYTHON = [sys.executable, *(['-P'] if sys.version_info >= (3, 11) else [])]

_POLL_SECONDS = 0.2
_NOTE_SECONDS = 10


class StoppedError(Exception):
    """The study was asked to stop while a process was running."""


def command_line(command: str, *arguments: object) -> list[str]:
    """Return the line that runs a command of this package with this Python.

    Args:
        command: A module of ``bdd_seg.cli``, such as ``'train'``.
        arguments: Its arguments.
    """
    return [*PYTHON, '-m', f'bdd_seg.cli.{command}', *map(str, arguments)]


def parse_command(text: str) -> list[str]:
    """Return the line that runs the command of a preparation: ``tools/NAME.py``, or a Python script.

    Scripts and arguments that begin with ``configs/`` are found in this project where the working directory
    does not have them.
    """
    program, *arguments = shlex.split(text)
    arguments = [str(find_file(word)) if word.startswith('configs/') else word for word in arguments]
    path = Path(program)
    if path.parent == Path('tools') and path.suffix == '.py' and path.stem in _COMMANDS:
        return command_line(_COMMANDS[path.stem], *arguments)
    return [sys.executable, str(find_file(path)), *arguments]


def run_command(
    line: list[str],
    log: Path,
    environment: dict[str, str],
    stop: Callable[[], bool],
    follow: Callable[[], None] | None = None,
    usage: Path | None = None,
) -> None:
    """Run a command to its end in a session of its own.

    However this call ends, by an exception, Ctrl-C or a kill of this process, the command and what it started
    end within seconds: a supervisor sees to that, which is told by a pipe.

    Args:
        line: A Python and its arguments.
        log: The file that its output is appended to.
        environment: Environment variables on top of this process's.
        stop: Returns True to stop the command. Called several times a second.
        follow: Called several times a second while the command runs.
        usage: A JSON file for the command's wall-clock in ``seconds`` and its ``peak_memory_mb``. Those of
            earlier sessions in the file are included. It is kept up to date however the command ends. Linux
            counts what this process holds when it starts the command, so the peak is never below that.

    Raises:
        ConfigError: The command failed.
        StoppedError: ``stop`` returned True.
    """
    note = _UsageNote(usage) if usage is not None else None
    receiver, lifeline = Pipe(duplex=False)
    with log.open('a') as file, receiver, lifeline:
        process = subprocess.Popen(
            [sys.executable, '-I', supervisor.__file__, str(receiver.fileno()), *line],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[receiver.fileno()],
            # So that a command's error is the last line, below what it printed before.
            env={**os.environ, 'PYTHONUNBUFFERED': '1', **environment},
        )
        try:
            _wait(process, stop, follow, note)
        finally:
            lifeline.close()
            returncode, memory = _end(process)
            if note is not None:
                note.write(memory)
    if returncode:
        name = next(Path(word).name for word in line[1:] if not word.startswith('-'))
        raise ConfigError(f'{name} failed ({_reason(returncode, log)}); see {log}')


def _wait(
    process: subprocess.Popen,
    stop: Callable[[], bool],
    follow: Callable[[], None] | None,
    note: '_UsageNote | None',
) -> None:
    """Wait until the process has ended, but leave its exit code to be collected."""
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if stop():
            raise StoppedError
        if follow is not None:
            follow()
        if note is not None:
            note.write_now_and_then()  # this process may be killed, too
        time.sleep(_POLL_SECONDS)


def _end(process: subprocess.Popen) -> tuple[int, float]:
    """Wait for the supervisor's end, and kill what is left of its group: at a second Ctrl-C, at once.

    Returns:
        Its exit code, and the peak memory in MB.
    """
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # until it is collected, no other group has the number
        # Unlike the resource module's, these figures are of this child and its children alone.
        _, status, resources = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # Popen did not wait itself
    return process.returncode, resources.ru_maxrss / 1024


class _UsageNote:
    """The file ``usage`` of :func:`run_command`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.earlier = {'seconds': 0.0, 'peak_memory_mb': 0.0}
        if file.exists():
            self.earlier = json.loads(file.read_text())
        self.start = time.monotonic()
        self.write()

    def write(self, memory: float = 0.0) -> None:
        """Write the time so far, and the peak memory in MB where it is known."""
        self.written = time.monotonic()
        seconds = self.earlier['seconds'] + self.written - self.start
        memory = max(self.earlier['peak_memory_mb'], memory)
        write_json(self.file, {'seconds': seconds, 'peak_memory_mb': memory})

    def write_now_and_then(self) -> None:
        """Write the time if the file is old."""
        if time.monotonic() > self.written + _NOTE_SECONDS:
            self.write()


def _reason(returncode: int, log: Path) -> str:
    if returncode < 0:  # a process that a signal ended could not log why
        return f'ended by {signal.Signals(-returncode).name}'
    return ''.join(log.read_text(errors='replace').strip().splitlines()[-1:])


def prepare(
    study: Study,
    folder: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    progress_line: Callable[[str, Path], Callable[[], None]],
) -> None:
    """Run the commands that come before a study, except those that are done.

    Args:
        study: The study.
        folder: The folder for their logs.
        stop: Returns True to stop. Called several times a second.
        say: Prints a line.
        progress_line: Returns what tells the progress, given a name and a work dir.

    Raises:
        ConfigError: A command failed, or did not create its file.
        StoppedError: ``stop`` returned True.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(study.prepare, 1):
        if is_prepared(step):
            continue
        log = folder / f'prepare_{number}.log'
        say(f'== {step.run}   (log: {log})')
        step.creates.parent.mkdir(parents=True, exist_ok=True)
        _unfinished(step).touch()
        follow = progress_line(str(step.creates), step.creates.parent)
        run_command(parse_command(step.run), log, {}, stop, follow)
        if not step.creates.exists():
            raise ConfigError(f'prepare: {step.run!r} made no {step.creates}; see {log}')
        _unfinished(step).unlink()


def is_prepared(step: Preparation) -> bool:
    """Return True if the command has run to its end. Its file may exist before that."""
    return step.creates.exists() and not _unfinished(step).exists()


def _unfinished(step: Preparation) -> Path:
    return step.creates.with_name(f'{step.creates.name}.unfinished')
