_base_ = '../../pspnet/pspnet_r18-d8_1xb8-20k_camvid-360x480.py'
model = dict(
    type='SegDistiller',
    teacher=dict(
        config='{{ fileDirname }}/../../pspnet/pspnet_r101-d8_1xb8-20k_camvid-360x480.py',
        checkpoint='work_dirs/pspnet_r101-d8_1xb8-20k_camvid-360x480/iter_20000.pth'))
