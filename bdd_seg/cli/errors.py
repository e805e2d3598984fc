"""End a command with one line where its user can mend the cause."""

import gc
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from bdd_seg.errors import ConfigError


@contextmanager
def one_line_errors(if_interrupted: str = 'interrupted') -> Iterator[None]:
    """Exit with ``error: …`` for a ``ConfigError``; other exceptions keep their traceback.

    Args:
        if_interrupted: What is printed on Ctrl-C.
    """
    # Holds ways to torch.load that load_checkpoint does not cover, such as init_cfg's open-mmlab://NAME, to
    # weights_only. torch refuses to load with both variables set.
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    try:
        yield
        if distributed.is_initialized():
            # gloo's threads end with the group's last user, DDP, which is part of a cycle. One that frees a
            # tensor while Python ends aborts the process, and torchrun takes the job for failed.
            gc.collect()
            distributed.destroy_process_group()
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except pickle.UnpicklingError:
        sys.exit('error: the checkpoint loaded last holds more than weights, and is refused')
    except KeyboardInterrupt:
        sys.exit(if_interrupted)
    except Exception as error:
        # mmengine raises the TypeError of a hook anew, and hides where it comes from.
        error.__suppress_context__ = False
        traceback.print_exception(error)
        first_line = str(error).strip().partition('\n')[0]
        sys.exit(f'error: {type(error).__name__}: {first_line}{_advice(error)}')


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
