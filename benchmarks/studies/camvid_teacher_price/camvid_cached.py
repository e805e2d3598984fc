_base_ = './camvid_live.py'
model = dict(
    teacher=dict(type='CachedTeacher', cache='work_dirs/pspnet_r50-d8-w32_1xb8-2k_camvid-120x160/cache')
)
