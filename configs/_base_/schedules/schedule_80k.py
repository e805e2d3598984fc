optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=8000),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
    # bdd_seg's; its tools add them where they are not named, mmseg's do not.
    batch_norm=dict(type='BatchNormHook'),
    checkpoint_fits=dict(type='CheckpointFitsHook'),
    diagnostics=dict(type='DiagnosticsHook'),
    exact_resume=dict(type='ExactResumeHook'),
    finite=dict(type='FiniteLossHook'),
    loss_state=dict(type='LossStateHook'),
    teacher_first_look=dict(type='TeacherFirstLookHook'),
    unlabelled=dict(type='UnlabelledHook'),
    pretrained=dict(type='PretrainedHook'),
    rehearsal=dict(type='RehearsalHook'))
