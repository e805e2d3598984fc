_base_ = '../_base_/pairs/pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
model = dict(
    distill_losses=[
        dict(type='DISTLoss'),
        dict(type='DISTLoss', loss_name='loss_dist_auxiliary', loss_weight=0.4,
             student_tap='auxiliary_head.conv_seg', teacher_tap='auxiliary_head.conv_seg')])
