"""The operator of mmcv that is written in Python, where mmcv has no compiled ones.

Reason: ``import mmcv.ops`` fails as a whole without compiled operators, though ``point_sample`` needs none.
mmseg's PointRend and SAN then refuse to be built.
Test: tests/runtime/upstream/test_point_sample.py.
Goes when: ``mmcv.ops`` imports what it can.
"""

import importlib.util
from pathlib import Path

import mmcv
from mmseg.models.decode_heads import point_head, san_head
from mmseg.models.utils import point_sample as sampled_points
from mmseg.utils import mask_classification

_USERS = (point_head, san_head, sampled_points, mask_classification)


def apply() -> None:
    """Give mmseg mmcv's ``point_sample``, where it could not import it."""
    if importlib.util.find_spec('mmcv._ext') is not None:
        return
    file = Path(mmcv.__file__).parent / 'ops/point_sample.py'
    spec = importlib.util.spec_from_file_location('point_sample', file)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for user in _USERS:
        user.point_sample = module.point_sample
