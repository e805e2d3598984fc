_base_ = '../_base_/pairs/pspnet_r50-d8-w32_pspnet_r18-d8-w16_1xb8-500_camvid-120x160.py'
model = dict(distill_losses=[dict(type='DISTLoss'), dict(type='BDDLoss')])
