_base_ = './upernet.py'
model = dict(distill_losses=[dict(type='KDLoss')])
