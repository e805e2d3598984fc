_base_ = './schedule_20k.py'
optim_wrapper = dict(optimizer=dict(lr=0.1))  # from scratch: there are no ImageNet weights to spare
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=300, by_epoch=False)]
train_cfg = dict(max_iters=300, val_begin=1_000_000)  # the demo evaluates with tools/test.py
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=100))
