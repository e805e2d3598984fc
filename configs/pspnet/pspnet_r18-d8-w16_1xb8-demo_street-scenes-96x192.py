_base_ = [
    '../_base_/models/pspnet_r50-d8.py', '../_base_/datasets/street_scenes.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_demo.py'
]
model = dict(
    data_preprocessor=dict(size=(96, 192)),
    pretrained=None,
    backbone=dict(depth=18, base_channels=16, stem_channels=16),
    decode_head=dict(in_channels=128, channels=32),
    auxiliary_head=dict(in_channels=64, channels=16))
