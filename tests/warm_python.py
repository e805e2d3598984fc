"""A Python that starts at once, in a fork of a process that has torch, mmseg and bdd_seg imported.

Tools take seconds to import what they need, and the tests start them a hundred times. ``warm_python()`` gives
the path of an executable that takes the arguments of ``python``. It is the client: it hands its arguments,
environment, folder and streams to a server, which forks a process that runs the command. Signals go to that
process, its exit status comes back, and it ends when the client is killed. Other commands than scripts and
modules of tools are run by a fresh Python.
"""

import atexit
import functools
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_MODULES = ('bdd_seg.', 'torch.distributed.run')
_PRELOADED = (
    *(f'bdd_seg.cli.{name}' for name in ('train', 'test', 'cache', 'scenes', 'study', 'demo')),
    *('torch.distributed.run', 'torch._dynamo', 'mmseg.apis', 'mmseg.engine'),
    # What runners import late: to draw, to write configs, and to tell about the machine.
    *('matplotlib.backends.backend_agg', 'yapf.yapflib.yapf_api', 'setuptools', 'distutils.errors'),
    *('PIL.BmpImagePlugin', 'PIL.GifImagePlugin', 'PIL.JpegImagePlugin', 'PIL.PpmImagePlugin'),
)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@functools.cache
def warm_python() -> str:
    """Start the server, and return the path of the executable."""
    folder = tempfile.mkdtemp(prefix='warm')  # a TemporaryDirectory would be removed by any fork
    executable, address = Path(folder, 'python'), Path(folder, 'socket')
    client = [sys.executable, '-IS', __file__, sys.executable, str(address)]
    quoted = ' '.join(f"'{word}'" for word in client)
    executable.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    executable.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    # The server ends when this process does, since nobody holds the other end of its standard input then.
    server = subprocess.Popen(
        [sys.executable, __file__, '--serve', str(listener.fileno()), str(executable)],
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,
        cwd=Path(__file__).parent,
    )
    listener.close()

    def close() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(close)
    return str(executable)


def parse(arguments: list[str]) -> dict | None:
    """Return what a command line of Python runs, None for those that need a fresh Python."""
    words, safe_path = list(arguments), False
    while words and words[0] in ('-u', '-P'):
        safe_path |= words.pop(0) == '-P'
    if len(words) > 1 and words[0] == '-m' and words[1].startswith(_MODULES):
        return {'module': words[1], 'argv': words[1:], 'path': None if safe_path else os.getcwd()}
    if words and words[0].endswith('.py') and os.path.exists(words[0]):
        folder = os.path.dirname(os.path.abspath(words[0]))
        return {'module': None, 'argv': words, 'path': None if safe_path else folder}
    return None


def client(python: str, address: str, arguments: list[str]) -> None:
    """Have the server run a command, and end as that does."""
    command = parse(arguments)
    if command is None:
        os.execv(python, [python, *arguments])
    command |= {'environment': dict(os.environ), 'folder': os.getcwd(), 'ignored': []}
    command['ignored'] = [number for number in _FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    content = json.dumps(command).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, 'big')], [0, 1, 2])
    connection.sendall(content)
    process = int.from_bytes(connection.recv(8), 'big')

    def forward(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, number)

    for number in {*_FORWARDED} - {*command['ignored']}:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    status = int.from_bytes(connection.recv(8) or (1).to_bytes(8, 'big'), 'big')
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


def serve(listener: socket.socket) -> dict:
    """Fork a process for each client. Return its command, in the process that is to run it."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:  # looks after one command
            listener.close()
            command = look_after(connection)
            connection.close()
            return command
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def look_after(connection: socket.socket) -> dict:
    """Fork the process that runs a client's command, and return there; here, wait until it has ended."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    content = b''
    while len(content) < int.from_bytes(size, 'big'):
        content += connection.recv(1 << 16)
    command = json.loads(content)
    process = os.fork()
    if process == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return command
    for stream in streams:
        os.close(stream)
    connection.sendall(process.to_bytes(8, 'big'))
    ready, _, _ = select.select([os.pidfd_open(process), connection], [], [])
    if connection in ready:  # the client was killed
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with suppress(OSError):
        connection.sendall(status.to_bytes(8, 'big'))
    os._exit(0)


def run(command: dict) -> None:
    """Run a command in this process, as ``python`` does."""
    import runpy

    import numpy

    os.environ.clear()
    os.environ.update(command['environment'])
    os.chdir(command['folder'])
    for number in command['ignored']:
        signal.signal(number, signal.SIG_IGN)
    numpy.random.seed()
    sys.argv = command['argv']
    added = [command['path'], *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    sys.path[0:1] = [path for path in added if path]
    if command['module']:
        runpy.run_module(command['module'], run_name='__main__', alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name='__main__')


def end(run: Callable[[dict], None], command: dict) -> NoReturn:
    """Run a command, and end as Python does, but without taking down all that is imported."""
    status = 0
    try:
        run(command)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def main() -> None:
    """Be the client or, as ``--serve``, the server."""
    if sys.argv[1] != '--serve':
        client(sys.argv[1], sys.argv[2], sys.argv[3:])
        return
    sys.executable = sys.argv[3]  # what commands start is warm, too
    with socket.socket(fileno=int(sys.argv[2])) as listener:
        os.environ.setdefault('OMP_NUM_THREADS', '1')
        for name in _PRELOADED:
            __import__(name)
        import torch

        torch.set_num_threads(1)
        gc.freeze()  # what is imported stays, so the forks need not look through it
        command = serve(listener)
    end(run, command)


if __name__ == '__main__':
    main()
