"""Guards that protect a run: from wrong data, wrong checkpoints, losses that are not finite, interruptions.

Most are hooks. :func:`bdd_seg.runtime.guards.data.check_data` rewrites the config instead, and
:mod:`bdd_seg.runtime.guards.heads` and :mod:`bdd_seg.runtime.guards.labels` look at it before it is built.
"""

from bdd_seg.runtime.guards.batch_norm import BatchNormHook
from bdd_seg.runtime.guards.checked_transforms import CheckedCrop, CheckedLoading, CheckLabels
from bdd_seg.runtime.guards.checkpoint_fits import CheckpointFitsHook
from bdd_seg.runtime.guards.finite_loss import FiniteLossHook
from bdd_seg.runtime.guards.pretrained import PretrainedHook
from bdd_seg.runtime.guards.rehearsal import RehearsalHook
from bdd_seg.runtime.guards.resume import ExactResumeHook

__all__ = [
    'BatchNormHook',
    'CheckLabels',
    'CheckedCrop',
    'CheckedLoading',
    'CheckpointFitsHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'PretrainedHook',
    'RehearsalHook',
]
