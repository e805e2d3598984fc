_base_ = './live.py'
model = dict(teacher=dict(type='CachedTeacher', cache='work_dirs/street_scenes_teacher_1600/cache'))
