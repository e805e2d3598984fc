_base_ = '../../../configs/bdd/bdd_pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
model = dict(teacher=dict(checkpoint='work_dirs/street_scenes_teacher_1600/iter_1600.pth', precision='bf16'))
