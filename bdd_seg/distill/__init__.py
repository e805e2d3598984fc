"""Segmentors that learn from a teacher, taps into networks, and hooks of distillation losses."""

from bdd_seg.distill.hooks import DiagnosticsHook, LossStateHook
from bdd_seg.distill.segmentor import CascadeSegDistiller, SegDistiller
from bdd_seg.distill.taps import Tap

__all__ = [
    'CascadeSegDistiller',
    'DiagnosticsHook',
    'LossStateHook',
    'SegDistiller',
    'Tap',
]
