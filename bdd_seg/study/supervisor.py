"""Run a command, and end it once the process that wants it is gone: ``supervisor.py PIPE COMMAND…``.

The caller holds the write end of the pipe. The system closes that end with the caller, also after SIGKILL.
The command is then asked to end by SIGTERM. After a limit, it and its process group, which this script leads,
are killed. Started by its path, this script does not import bdd_seg, which takes seconds.
"""

import os
import select
import signal
import subprocess
import sys

SECONDS_TO_END = 10

_POLL_SECONDS = 0.1


def main() -> None:
    """Run the command, and end as it ends."""
    pipe, line = int(sys.argv[1]), sys.argv[2:]
    command = subprocess.Popen(line)
    while command.poll() is None:
        if select.select([pipe], [], [], _POLL_SECONDS)[0]:
            end(command)
    if command.returncode < 0:
        end_by(-command.returncode)
    sys.exit(command.returncode)


def end(command: subprocess.Popen) -> None:
    """Ask the command to end. Once it has, or time is over, kill the process group with this process."""
    command.terminate()
    try:
        command.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        pass
    finally:
        os.killpg(0, signal.SIGKILL)


def end_by(number: int) -> None:
    """End this process by a signal."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)  # Python handles SIGINT and ignores SIGPIPE
    os.kill(os.getpid(), number)


if __name__ == '__main__':
    main()
