_base_ = './distilled.py'
others = [i for i in range(367) if i % 6 or i >= 360]
train_dataloader = dict(
    sampler=dict(type='MixedSampler', unlabelled=0.5),
    dataset=dict(
        _delete_=True,
        type='WithUnlabelled',
        dataset=_base_.train_dataloader.dataset,  # type: ignore[attr-defined]  # of the config named above
        unlabelled=dict(type='UnlabelledImages', images='data/camvid/images/train', indices=others),
    ),
)
