_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'
custom_imports = dict(imports=['bdd_seg'])
model = dict(
    type='SegDistiller',
    teacher=dict(type='TransformersTeacher', model='facebook/mask2former-swin-large-cityscapes-semantic'),
    distill_losses=[dict(type='BDDLoss')])
