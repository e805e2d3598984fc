"""Teachers: networks of several kinds, ensembles, or a cache of outputs. Each answers a batch with maps."""

from bdd_seg.teachers.base import Answer, Teacher
from bdd_seg.teachers.cached import CachedTeacher
from bdd_seg.teachers.ensemble import EnsembleTeacher
from bdd_seg.teachers.first_look import TeacherFirstLookHook
from bdd_seg.teachers.mmseg import MMSegTeacher
from bdd_seg.teachers.module import ModuleTeacher
from bdd_seg.teachers.network import Network, NetworkTeacher
from bdd_seg.teachers.onnx import OnnxTeacher
from bdd_seg.teachers.transformers import TransformersTeacher

__all__ = [
    'Answer',
    'CachedTeacher',
    'EnsembleTeacher',
    'MMSegTeacher',
    'ModuleTeacher',
    'Network',
    'NetworkTeacher',
    'OnnxTeacher',
    'Teacher',
    'TeacherFirstLookHook',
    'TransformersTeacher',
]
