_base_ = 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'
custom_imports = dict(imports=['bdd_seg'])
model = dict(
    type='SegDistiller',
    teacher=dict(type='TransformersTeacher', model='facebook/mask2former-swin-large-cityscapes-semantic'),
    distill_losses=[dict(type='BDDLoss')])
