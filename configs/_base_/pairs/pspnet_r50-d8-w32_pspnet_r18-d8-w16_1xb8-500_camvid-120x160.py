_base_ = '../../pspnet/pspnet_r18-d8-w16_1xb8-500_camvid-120x160.py'
model = dict(
    type='SegDistiller',
    teacher=dict(
        config='{{ fileDirname }}/../../pspnet/pspnet_r50-d8-w32_1xb8-2k_camvid-120x160.py',
        checkpoint='work_dirs/pspnet_r50-d8-w32_1xb8-2k_camvid-120x160/iter_2000.pth'))
