"""A teacher that replays cached outputs, warped to each crop."""

from bdd_seg.teachers.cached.pipeline import ReadTeacherCache, read_teacher_cache
from bdd_seg.teachers.cached.store import TeacherCache
from bdd_seg.teachers.cached.teacher import CachedTeacher

__all__ = ['CachedTeacher', 'ReadTeacherCache', 'TeacherCache', 'read_teacher_cache']
