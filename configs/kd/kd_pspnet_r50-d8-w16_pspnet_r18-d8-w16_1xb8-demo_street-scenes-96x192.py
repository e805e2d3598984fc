_base_ = '../_base_/pairs/pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
model = dict(distill_losses=[dict(type='KDLoss')])
