_base_ = [
    '../_base_/models/pspnet_r50-d8.py', '../_base_/datasets/camvid_120x160.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_demo.py'
]
model = dict(
    data_preprocessor=dict(size=(120, 160)),
    pretrained=None,
    backbone=dict(base_channels=32, stem_channels=32),
    decode_head=dict(in_channels=1024, channels=256, num_classes=11),
    auxiliary_head=dict(in_channels=512, channels=128, num_classes=11))
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=2000, by_epoch=False)]
train_cfg = dict(max_iters=2000)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=2))
