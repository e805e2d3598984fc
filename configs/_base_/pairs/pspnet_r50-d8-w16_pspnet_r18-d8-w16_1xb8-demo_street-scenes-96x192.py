_base_ = '../../pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
model = dict(
    type='SegDistiller',
    teacher=dict(
        config='{{ fileDirname }}/../../pspnet/pspnet_r50-d8-w16_1xb8-demo_street-scenes-96x192.py',
        checkpoint='work_dirs/demo/teacher/iter_600.pth'))
