_base_ = '../bdd/bdd_pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
model = dict(
    distill_losses=[
        dict(type='BDDLoss', loss_name='loss_kd', domain='pixel', reverse_weight=0, loss_weight=1.0)])
