_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
model = dict(
    distill_losses=[
        dict(type='DISTLoss'),
        dict(type='DISTLoss', loss_name='loss_dist_auxiliary', loss_weight=0.4,
             student_tap='auxiliary_head.conv_seg', teacher_tap='auxiliary_head.conv_seg')])
