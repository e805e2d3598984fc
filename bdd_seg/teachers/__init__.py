"""Teachers: networks of several kinds, ensembles, or a cache of outputs. Each answers a batch with maps."""

from bdd_seg.teachers.base import Answer, Teacher
from bdd_seg.teachers.cached import CachedTeacher
from bdd_seg.teachers.ensemble import EnsembleTeacher
from bdd_seg.teachers.mmseg import MMSegTeacher
from bdd_seg.teachers.network import Network, NetworkTeacher

__all__ = [
    'Answer',
    'CachedTeacher',
    'EnsembleTeacher',
    'MMSegTeacher',
    'Network',
    'NetworkTeacher',
    'Teacher',
]
