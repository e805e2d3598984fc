_base_ = '../../../configs/_base_/pairs/pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
custom_imports = dict(imports=['bdd_seg', 'benchmarks.studies.bdd_ideas.balances'])
model = dict(distill_losses=[dict(type='AdaptiveBDDLoss')])
