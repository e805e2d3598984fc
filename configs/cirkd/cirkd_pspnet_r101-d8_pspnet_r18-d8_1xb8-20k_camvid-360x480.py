_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_1xb8-20k_camvid-360x480.py'
model = dict(
    distill_losses=[
        dict(type='CIRKDLoss',
             student_tap='decode_head.bottleneck', teacher_tap='decode_head.bottleneck'),
        dict(type='KDLoss')])
