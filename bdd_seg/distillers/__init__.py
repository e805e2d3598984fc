from bdd_seg.distillers.seg_distiller import CascadeSegDistiller, SegDistiller
from bdd_seg.distillers.tap import Tap
from bdd_seg.distillers.teacher import FrozenTeacher

__all__ = ['CascadeSegDistiller', 'FrozenTeacher', 'SegDistiller', 'Tap']
