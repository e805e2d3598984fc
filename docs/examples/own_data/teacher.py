_base_ = [
    'bdd_seg::_base_/models/pspnet_r50-d8.py',
    './data.py',
    'bdd_seg::_base_/default_runtime.py',
    'bdd_seg::_base_/schedules/schedule_20k.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),  # of a crop
    decode_head=dict(num_classes=3),
    auxiliary_head=dict(num_classes=3),
)
