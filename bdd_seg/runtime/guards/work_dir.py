"""One training at a time in a work dir."""

import fcntl
import json
import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.processes import LAUNCHERS

LOCK_FILE = '.running'


@contextmanager
def hold_work_dir(folder: str | Path, launcher: str = 'none') -> Iterator[None]:
    """Keep other trainings out of a folder, which is made if it does not exist.

    A POSIX lock on the file ``.running`` holds the folder. The lock ends with this process, also after
    SIGKILL. Processes that this one forks do not inherit it. NFS passes it on to other machines, unless it is
    mounted with local locks. The file names the process for those that are refused. It may be left behind by
    a kill, which blocks nobody.

    Closing any descriptor of the file drops the lock, so a process must not hold a folder twice.

    Args:
        folder: The folder.
        launcher: The launcher of this process. Of its processes only the first holds the folder.

    Raises:
        ConfigError: Another process holds the folder, or it cannot be written to.
    """
    if launcher != 'none' and os.environ.get(LAUNCHERS[launcher].rank, '0') != '0':
        yield
        return
    file = Path(folder) / LOCK_FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(file)
        holder = {
            'pid': os.getpid(),
            'host': socket.gethostname(),
            'since': time.strftime('%Y-%m-%d %H:%M:%S'),
            'command': ' '.join([sys.argv[0], *map(shlex.quote, sys.argv[1:])]),
        }
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
    except OSError as error:
        raise ConfigError(f'{str(file)!r} cannot be written: {error.strerror}') from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while the lock holds, so the file is still this process's
        os.close(descriptor)


def _open_locked(file: Path) -> int:
    """Return the descriptor of the locked file.

    Raises:
        ConfigError: Another process holds the lock.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, file)
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who held it removed the file meanwhile


def _lock(descriptor: int, file: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows either
        raise _in_use(file, _read_holder(descriptor)) from error
    except OSError:  # a file system without locks, where the file's content has to do
        holder = _read_holder(descriptor)
        if holder.get('host') == socket.gethostname():
            if _is_alive(holder['pid']):
                raise _in_use(file, holder) from None
        elif holder:
            warnings.warn(
                f'the file system of {file.parent} has no locks: if process {holder["pid"]} on '
                f'{holder["host"]} still runs, both write there',
                stacklevel=2,
            )


def _in_use(file: Path, holder: dict) -> ConfigError:
    pid, host, since = (holder.get(key, '(unknown)') for key in ('pid', 'host', 'since'))
    return ConfigError(
        f'{str(file.parent)!r} is in use by process {pid} on {host} since {since}: '
        f'{holder.get("command", "its command is unknown")}. Wait for it, end it there by "kill {pid}", or '
        'choose another --work-dir'
    )


def _read_holder(descriptor: int) -> dict:
    """Return the content of the file, nothing where it is being written."""
    try:
        content = json.loads(os.pread(descriptor, 1 << 16, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) and {'host', 'pid'} <= content.keys() else {}


def _is_alive(pid: int) -> bool:
    """Return True for a living process. One with our own number is gone: containers use numbers again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return pid != os.getpid()
