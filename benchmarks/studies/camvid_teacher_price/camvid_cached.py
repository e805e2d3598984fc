_base_ = './camvid_live.py'
model = dict(teacher=dict(type='CachedTeacher', cache='work_dirs/camvid_teacher_1k/cache'))
