_base_ = './camvid_live.py'
pipeline = _base_.train_dataloader.dataset.pipeline  # type: ignore[attr-defined]  # of the config named above
train_dataloader = dict(dataset=dict(pipeline=[dict(type='FixedViews', views=2, transforms=pipeline)]))
