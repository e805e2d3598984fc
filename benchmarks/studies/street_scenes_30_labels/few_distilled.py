_base_ = './few_alone.py'
model = dict(
    type='SegDistiller',
    teacher=dict(
        config='{{ fileDirname }}/../../../configs/pspnet/pspnet_r50-d8-w16_1xb8-demo_street-scenes-96x192.py',  # noqa: E501
        checkpoint='work_dirs/street_scenes_teacher_float32/iter_3200.pth',
    ),
    distill_losses=[dict(type='BDDLoss')],
)
