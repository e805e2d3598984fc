"""What answers a batch with maps: an mmseg network, or a cache of its outputs."""

from bdd_seg.teachers.base import Teacher
from bdd_seg.teachers.cached import CachedTeacher
from bdd_seg.teachers.mmseg import FrozenTeacher

__all__ = ['CachedTeacher', 'FrozenTeacher', 'Teacher']
