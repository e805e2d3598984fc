"""A console that shows what its reader can act on.

Reason: mmengine prints the environment, the whole config and the order of all hooks before the first
iteration, over 400 lines. mmcv, mmengine and mmseg warn of what their own configs and hooks do by default.
Test: tests/runtime/upstream/test_console.py, tests/cli/test_summary.py.
Goes when: mmengine's Runner takes a level for its console, and the libraries stop; each message apart.
"""

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

# Given as --verbose, which comes after the imports, it lets all but the warnings of imports appear.
_VERBOSE = 'BDD_SEG_VERBOSE'

# How the messages begin, and why nobody can act on them.
_IMPORT_WARNINGS = (
    # The maintained mmcv has no compiled operators. The advice is to install the original mmcv, which would
    # corrupt it.
    'Fail to import ``MultiScaleDeformableAttention``',
)
_RUN_WARNINGS = (
    'Default ``avg_non_ignore`` is False',  # the default of all of mmseg's configs, and of the teacher's
    'DeprecationWarning: pretrained is a deprecated',  # nearly all of mmseg's configs have it
    'The draw is False',  # the hook is in all of mmseg's configs, for --show and --show-dir
    'The shape of value will convert from',  # mmseg's test-time augmentation leaves out an axis
    '``build_pixel_sampler`` would be deprecated',  # mmseg's own heads call it
    'When align_corners=True, the output would more aligned',  # mmseg's configs of STDC and others set it
)
_LOGGED_WARNINGS = (
    'The prefix is not set in metric class',  # mmseg's configs set none, and its names need none
    '"FileClient" will be deprecated',  # mmengine's own CheckpointHook uses it
    '"HardDiskBackend" is the alias of',  # so does its FileClient
)


def is_verbose() -> bool:
    """Return whether the environment asks for everything that the libraries print."""
    return os.environ.get(_VERBOSE, '0') not in ('', '0')


def apply() -> None:
    """Import mmseg's data sets without the lines that say which optional packages are absent."""
    if is_verbose():
        return
    for message in _IMPORT_WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    with redirect_stdout(io.StringIO()):  # it prints 'Could not import OneDL' twice
        importlib.import_module('mmseg.datasets')


def quiet_warnings() -> None:
    """Leave out warnings that nobody can act on, and show any other one once, not for each network."""
    for message in _RUN_WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    # Not by the filter 'once', which forgets what it has seen whenever torch leaves a catch_warnings().
    show, seen = warnings.showwarning, set()

    def show_once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if (str(message), category) not in seen:
            seen.add((str(message), category))
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_once


def quiet_libraries() -> None:
    """Leave out such warnings, and what mmengine logs below a warning: for commands that train nothing."""
    quiet_warnings()
    MMLogger.get_instance('mmengine').setLevel(logging.WARNING)


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's ``Runner``, whose console shows warnings only until :meth:`open_console` is called.

    The log file has everything. Other processes than the first print errors only, as with any ``Runner``.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the Runner's logger, and limit its console to warnings."""
        logger = super().build_logger(*args, **kwargs)
        self._levels = {handler: handler.level for handler in logger.handlers if _is_console(handler)}
        for handler, level in self._levels.items():
            handler.setLevel(max(level, logging.WARNING))
            handler.addFilter(_can_be_acted_on)
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        """Log the environment. A shell that mmengine asks for the compiler complains where there is none."""
        with _without_stderr():
            super()._log_env(env_cfg)

    def open_console(self) -> None:
        """Let the console show everything that is logged from here on."""
        for handler, level in self._levels.items():
            handler.setLevel(level)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what this process and those that it starts write to stderr."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _can_be_acted_on(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED_WARNINGS)
