_base_ = [
    '../_base_/models/pspnet_r50-d8.py', '../_base_/datasets/cityscapes.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_80k.py'
]
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101))
