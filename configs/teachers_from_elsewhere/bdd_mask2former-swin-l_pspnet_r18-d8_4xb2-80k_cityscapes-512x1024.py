_base_ = '../pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
model = dict(
    type='SegDistiller',
    teacher=dict(type='TransformersTeacher', model='facebook/mask2former-swin-large-cityscapes-semantic'),
    distill_losses=[dict(type='BDDLoss')])
