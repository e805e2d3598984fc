"""End a command with one line where its user can mend the cause."""

import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import distributed

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.processes import LAUNCHERS

_SIGNALS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


@contextmanager
def one_line_errors(if_interrupted: str = 'interrupted') -> Iterator[None]:
    """Exit with ``error: …`` for a ``ConfigError``; other exceptions keep their traceback.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP unwind the block as ``KeyboardInterrupt`` does, so that everything
    that it started ends, too. The exit code is then 128 + the signal's number, as in shells.

    Args:
        if_interrupted: What is printed on such a signal.
    """
    # Holds ways to torch.load that load_checkpoint does not cover, such as init_cfg's s3://NAME, to
    # weights_only. torch refuses to load with both variables set.
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    received: list[int] = []
    try:
        with _signals_interrupt(received):
            yield
        if distributed.is_initialized():
            # gloo's threads end with the group's last user, DDP, which is part of a cycle. One that frees a
            # tensor while Python ends aborts the process, and torchrun takes the job for failed.
            gc.collect()
            distributed.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        # An interrupted call may raise another exception, such as a data loader whose workers have gone.
        if received or isinstance(error, KeyboardInterrupt):
            with suppress(OSError):  # the terminal may be gone
                print(if_interrupted, file=sys.stderr, flush=True)
            sys.exit(128 + (received or [signal.SIGINT])[0])
        sys.exit(f'error: {_describe(error)}')


@contextmanager
def _signals_interrupt(received: list[int]) -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` at signals, note their numbers, and give the handlers back at the end."""
    last = float('-inf')

    def interrupt(number: int, _frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        # Some programs send a signal to a process and to its group. The second one must not disturb what the
        # first one has begun. A second Ctrl-C, later, interrupts that.
        received.append(number)
        if now >= last + 1:
            last = now
            raise KeyboardInterrupt

    # Where one of its processes has died, a launcher sends SIGTERM to the others. Those wait in C code, where
    # Python runs no handler, so SIGTERM keeps its default action there.
    launched = any(os.environ.get(launcher.size, '1') != '1' for launcher in LAUNCHERS.values())
    earlier = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number, default in _SIGNALS.items():
            if number == signal.SIGTERM and launched:
                continue
            # Ignored signals stay ignored: SIGHUP below nohup, SIGINT in what a script starts with "&".
            if signal.getsignal(number) == default:
                earlier[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _describe(error: Exception) -> str:
    """Return the line for an exception, after its traceback where it needs one."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, pickle.UnpicklingError):
        return 'the checkpoint loaded last holds more than weights, and is refused'
    # mmengine raises the TypeError of a hook anew, and hides where it comes from.
    error.__suppress_context__ = False
    traceback.print_exception(error)
    first_line = str(error).strip().partition('\n')[0]
    return f'{type(error).__name__}: {first_line}{_advice(error)}'


def reason(error: BaseException) -> str:
    """Return the message of an exception on one line; for an assertion without one, its line of source."""
    text = str(error).strip()
    raised_at = traceback.extract_tb(error.__traceback__)[-1:]
    if not text and isinstance(error, AssertionError) and raised_at and raised_at[0].line:
        return f'{raised_at[0].line} does not hold'
    return ' '.join(text.split())


def _advice(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return '. Lower the batch_size of the data loader or the crop, or train with --amp'
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        return '. If another process of the job has died, look further up, or at what its machine printed'
    return ''
