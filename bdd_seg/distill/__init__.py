"""The student that learns from a teacher: segmentors, taps, and the hooks of their losses."""

from bdd_seg.distill.hooks import LossScheduleHook, LossStateHook
from bdd_seg.distill.segmentor import CascadeSegDistiller, SegDistiller
from bdd_seg.distill.taps import Tap

__all__ = ['CascadeSegDistiller', 'LossScheduleHook', 'LossStateHook', 'SegDistiller', 'Tap']
