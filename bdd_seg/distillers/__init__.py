from bdd_seg.distillers.cached_teacher import CachedTeacher
from bdd_seg.distillers.frozen_teacher import FrozenTeacher
from bdd_seg.distillers.seg_distiller import CascadeSegDistiller, SegDistiller
from bdd_seg.distillers.tap import Tap
from bdd_seg.distillers.teacher import Teacher

__all__ = ['CachedTeacher', 'CascadeSegDistiller', 'FrozenTeacher', 'SegDistiller', 'Tap', 'Teacher']
