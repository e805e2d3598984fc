_base_ = './student.py'
model = dict(
    type='SegDistiller',
    teacher=dict(config='{{ fileDirname }}/teacher.py', checkpoint='work_dirs/teacher/iter_20000.pth'),
    distill_losses=[dict(type='BDDLoss')],
)
