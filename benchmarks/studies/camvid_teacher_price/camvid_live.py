_base_ = '../../../configs/bdd/bdd_pspnet_r50-d8-w32_pspnet_r18-d8-w16_1xb8-500_camvid-120x160.py'
model = dict(teacher=dict(checkpoint='work_dirs/camvid_teacher_1k/iter_1000.pth'))
