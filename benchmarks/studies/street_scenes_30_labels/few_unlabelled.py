_base_ = './few_distilled.py'
train_dataloader = dict(
    sampler=dict(type='MixedSampler', unlabelled=0.5),
    dataset=dict(
        _delete_=True,
        type='WithUnlabelled',
        dataset=_base_.train_dataloader.dataset,  # type: ignore[attr-defined]  # of the config named above
        unlabelled=dict(type='UnlabelledImages', images='data/street_scenes_more/leftImg8bit/train'),
    ),
)
