_base_ = '../../../configs/_base_/pairs/pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
model = dict(
    distill_losses=[
        dict(type='BDDLoss', domain='channel', reverse_weight=0.0, loss_name='loss_forward'),
        dict(type='BDDLoss', domain='pixel', forward_weight=0.0, loss_weight=1.0, loss_name='loss_reverse'),
    ],
)
