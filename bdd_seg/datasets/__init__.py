from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.datasets.geometry import FollowGeometry
from bdd_seg.datasets.teacher_cache import ReadTeacherCache, TeacherCache, read_teacher_cache

__all__ = ['CamVidDataset', 'FollowGeometry', 'ReadTeacherCache', 'TeacherCache', 'read_teacher_cache']
