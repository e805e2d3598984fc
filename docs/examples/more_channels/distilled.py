_base_ = './student.py'
model = dict(
    type='SegDistiller',
    teacher=dict(
        config='{{ fileDirname }}/../own_data/teacher.py',
        checkpoint='work_dirs/teacher/iter_20000.pth',
        channels=[0, 1, 2],
    ),  # the bands that are red, green and blue
    distill_losses=[dict(type='BDDLoss')],
)
