_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'
custom_imports = dict(imports=['bdd_seg'])
model = dict(
    type='SegDistiller',
    teacher=dict(type='TransformersTeacher', model='tue-mps/cityscapes_semantic_eomt_large_1024'),
    distill_losses=[dict(type='BDDLoss')])
