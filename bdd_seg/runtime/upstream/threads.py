"""Let OpenMP's threads sleep after a short wait.

Reason: by default GNU's OpenMP, which torch brings, lets a thread that waits spin for a millisecond. On a CPU
that is shared with anything else it takes the core from a thread that works. Beside one busy process the
demo's steps took 5 to 17 times as long as on an idle machine, and with this setting 3 times as long.
OMP_WAIT_POLICY=PASSIVE, to sleep at once, brings that to 2 times, but costs 1.4 times on an idle machine.
Test: tests/runtime/upstream/test_threads.py; benchmarks/step_cost.py beside a busy process measures it.
Goes when: torch or its OpenMP waits more briefly by default.
"""

import os
import sys

SPIN_COUNT = 10_000  # the default is 300,000
_SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')


def shorten_waits() -> None:
    """Set ``GOMP_SPINCOUNT`` for this process and those that it starts.

    OpenMP reads it when torch is loaded. Where that has happened, or the user has chosen how to wait, nothing
    changes.
    """
    if 'torch' not in sys.modules and not any(setting in os.environ for setting in _SETTINGS):
        os.environ['GOMP_SPINCOUNT'] = str(SPIN_COUNT)
