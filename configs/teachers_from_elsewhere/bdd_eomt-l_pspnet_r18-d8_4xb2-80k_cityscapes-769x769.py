_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-769x769.py'
custom_imports = dict(imports=['bdd_seg'])
model = dict(
    type='SegDistiller',
    teacher=dict(type='TransformersTeacher', model='tue-mps/cityscapes_semantic_eomt_large_1024'),
    distill_losses=[dict(type='BDDLoss')])
