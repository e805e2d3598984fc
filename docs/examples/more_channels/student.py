_base_ = '../own_data/student.py'
custom_imports = dict(imports=['bdd_seg', 'bands'])
train_pipeline = [
    dict(type='LoadBands'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadBands'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
bands = dict(data_root='data/garden_bands', img_suffix='.npy')
train_dataloader = dict(dataset=dict(**bands, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**bands, pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(
    pretrained=None,  # those weights are for three channels
    data_preprocessor=dict(mean=[110.0], std=[60.0], bgr_to_rgb=False),  # one number for all bands
    backbone=dict(in_channels=5),
)
