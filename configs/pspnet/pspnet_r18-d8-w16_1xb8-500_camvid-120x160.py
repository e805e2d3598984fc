_base_ = [
    '../_base_/models/pspnet_r50-d8.py', '../_base_/datasets/camvid_120x160.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_demo.py'
]
model = dict(
    data_preprocessor=dict(size=(120, 160)),
    pretrained=None,
    backbone=dict(depth=18, base_channels=16, stem_channels=16),
    decode_head=dict(in_channels=128, channels=32, num_classes=11),
    auxiliary_head=dict(in_channels=64, channels=16, num_classes=11))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=500, by_epoch=False)]
train_cfg = dict(max_iters=500)
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=2))
