_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    'bdd_seg::_base_/datasets/camvid.py',
    'bdd_seg::_base_/default_runtime.py',
    'bdd_seg::_base_/schedules/schedule_20k.py',
]
model = dict(
    data_preprocessor=dict(size=(360, 480)),  # of a crop
    pretrained=None,  # there are no weights of this width
    backbone=dict(depth=18, stem_channels=32, base_channels=32),  # ResNet-18, half as wide
    decode_head=dict(in_channels=256, channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=11),
)
