_base_ = '../../../configs/pspnet/pspnet_r50-d8-w32_1xb8-2k_camvid-120x160.py'
train_dataloader = dict(dataset=dict(indices=list(range(0, 360, 6))))  # 60 of the 367 images
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=500, by_epoch=False)]
train_cfg = dict(max_iters=500)
