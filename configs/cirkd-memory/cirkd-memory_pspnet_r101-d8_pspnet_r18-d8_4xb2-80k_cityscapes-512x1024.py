_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
model = dict(
    distill_losses=[
        dict(type='CIRKDLoss',
             student_tap='decode_head.bottleneck', teacher_tap='decode_head.bottleneck'),
        dict(type='CIRKDMemoryLoss', num_classes=19,
             student_tap='decode_head.bottleneck', teacher_tap='decode_head.bottleneck'),
        dict(type='KDLoss')])
