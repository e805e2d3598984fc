"""Let OpenMP's threads sleep while they wait.

Reason: by default they spin, so on a CPU that is shared with anything else a thread that waits takes the core
from one that works: beside one busy process the demo's step takes 3.5 times as long, asleep 1.9 times. On an
idle machine there is no difference.
Test: tests/runtime/upstream/test_threads.py; ``benchmarks/step_cost.py`` beside a busy process measures it.
Goes when: torch or its OpenMP waits passively by default.
"""

import os
import sys

_SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')


def wait_passively() -> None:
    """Set ``OMP_WAIT_POLICY=PASSIVE`` for this process and those that it starts.

    OpenMP reads it when torch is loaded. Where that has happened, or the user has chosen a policy, nothing
    changes.
    """
    if 'torch' not in sys.modules and not any(setting in os.environ for setting in _SETTINGS):
        os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'
