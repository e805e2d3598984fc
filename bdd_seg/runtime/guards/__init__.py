"""Hooks that protect a run: from wrong data, wrong checkpoints, losses that are not finite, interruptions."""

from bdd_seg.runtime.guards.checkpoint_fits import CheckpointFitsHook
from bdd_seg.runtime.guards.data import BatchCheckHook
from bdd_seg.runtime.guards.finite_loss import FiniteLossHook
from bdd_seg.runtime.guards.resume import ExactResumeHook

__all__ = ['BatchCheckHook', 'CheckpointFitsHook', 'ExactResumeHook', 'FiniteLossHook']
