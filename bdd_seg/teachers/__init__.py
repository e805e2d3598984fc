"""Teachers: an mmseg network, or a cache of its outputs. Each answers a batch with maps."""

from bdd_seg.teachers.base import Answer, Teacher
from bdd_seg.teachers.cached import CachedTeacher
from bdd_seg.teachers.mmseg import MMSegTeacher

__all__ = ['Answer', 'CachedTeacher', 'MMSegTeacher', 'Teacher']
