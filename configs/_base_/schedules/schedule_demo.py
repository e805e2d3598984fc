_base_ = './schedule_20k.py'
optim_wrapper = dict(optimizer=dict(lr=0.05))  # from scratch: there are no ImageNet weights to keep
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=600, by_epoch=False)]
train_cfg = dict(max_iters=600, val_interval=600)
default_hooks = dict(checkpoint=dict(interval=200))
