_base_ = './alone.py'
model = dict(
    type='SegDistiller',
    teacher=dict(
        config='{{ fileDirname }}/teacher.py',
        checkpoint='work_dirs/camvid_60_labels/teacher/iter_500.pth',
    ),
    distill_losses=[dict(type='BDDLoss')],
)
