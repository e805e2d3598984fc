"""Write a config as text without laying it out.

Reason: mmengine lays the whole config out by yapf, half a second for a usual one, five times before the first
iteration and at each checkpoint. ``Config.fromfile`` takes ``format_python_code=False``, and drops it.
Test: tests/runtime/upstream/test_config_text.py.
Goes when: ``Config.fromfile`` hands ``format_python_code`` on.
"""

from mmengine.config import Config


def skip_layout(cfg: Config) -> None:
    """Write a config's text in log, work dir and checkpoints without yapf: the same content, one item a line.

    Args:
        cfg: The whole config, changed in place.
    """
    object.__setattr__(cfg, '_format_python_code', False)  # a usual assignment would make it a key
