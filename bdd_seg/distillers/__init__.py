from bdd_seg.distillers.frozen_teacher import FrozenTeacher
from bdd_seg.distillers.seg_distiller import CascadeSegDistiller, SegDistiller
from bdd_seg.distillers.tap import Tap

__all__ = ['CascadeSegDistiller', 'FrozenTeacher', 'SegDistiller', 'Tap']
