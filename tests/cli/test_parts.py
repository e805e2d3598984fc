import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, OPTIMIZERS, TRANSFORMS
from mmseg.registry import DATASETS
from torch import nn

import bdd_seg  # noqa: F401  registers the models
from bdd_seg.cli.parts import check_built, check_parts
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config


@TRANSFORMS.register_module()
class Thing:
    def __init__(self, size: int, scale: int = 1) -> None:
        if size < 0:
            raise ValueError(f'size must not be negative,\ngot {size}')
        self.size = size.real

    def __call__(self, results):
        return results


@MODELS.register_module()
class OwnBackbone(nn.Module):
    def __init__(self, norm_cfg=None, mode=None, **others) -> None:
        super().__init__()
        self.layer = nn.Conv2d(**others)


def problem_of(key: str, value, mode: str = 'train', **more) -> str | None:
    """Return what is wrong with one part of a config."""
    cfg = Config({'default_scope': 'mmseg', key: value, **more})
    try:
        check_parts(cfg, [key], train=mode == 'train')
    except ConfigError as error:
        assert '\n' not in str(error)
        return str(error)
    return None


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({'size': 3}, 'key has no type'),
        (
            {'type': 'Thnig'},
            "key (Thnig): no transform is called 'Thnig'. Did you mean Thing? If it is your own, name its "
            'module in custom_imports',
        ),
        ({'type': 3}, 'key.type must be a name or a class, got 3'),
        ({'type': 'Thing'}, "key (Thing) lacks 'size'"),
        ({'type': 'Thing', 'size': 1, 'scael': 2}, "'scael' of Thing. Did you mean scale?"),
        ({'type': Thing, 'sise': 1}, "key (Thing): unexpected keyword argument 'sise' of Thing. Did you me"),
        (
            {'type': 'mmdet.Thing'},
            "key (mmdet.Thing): no transform is called 'mmdet.Thing', since no package 'mmdet' is installed",
        ),
    ],
)
def test_settings_that_cannot_be_built(settings, expected):
    with pytest.raises(ConfigError) as caught:
        check_built(settings, 'key', TRANSFORMS)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    'settings',
    [
        {'type': 'Thing', 'size': 1},
        {'type': 'mmengine.Thing', 'size': 1},
        {'type': Thing, 'size': 1, 'scale': 2},
        {'type': 'mmseg.PackSegInputs'},
        {'type': 'mmcv.transforms.LoadImageFromFile'},
        Thing(1),
    ],
)
def test_settings_that_can_be_built(settings):
    check_built(settings, 'key', TRANSFORMS)


def test_added_and_removed_arguments():
    settings = {'type': 'Thing', 'priority': 3}
    assert check_built(settings, 'key', TRANSFORMS, supplied={'size'}, others={'priority'}) is Thing
    assert check_built({'size': 3}, 'key', TRANSFORMS, default='Thing') is Thing


def loader(*pipeline, **more) -> dict:
    dataset = {'type': 'CityscapesDataset', 'pipeline': [*pipeline]}
    return {'sampler': {'type': 'InfiniteSampler'}, 'batch_size': 2, 'dataset': dataset, **more}


NESTED = {'type': 'RandomChoice', 'transforms': [[{'type': 'RandomFlip', 'prob': 1, 'prbo': 1}]]}


@pytest.mark.parametrize(
    'settings, expected',
    [
        (loader(), None),
        (
            loader({'type': 'Thing', 'size': -1}),
            'train_dataloader.dataset.pipeline.0 (Thing): size must not be negative, got -1',
        ),
        (
            loader({'type': 'RandomCrop', 'crop_size': (0, 64)}),
            'pipeline.0 (RandomCrop): assert crop_size[0] > 0 and crop_size[1] > 0 does not hold',
        ),
        (
            loader({'type': 'Thing', 'size': 3.5j}),
            None,
        ),  # a TypeError may be a bug: the run has its traceback
        (
            loader(NESTED),
            'train_dataloader.dataset.pipeline.0.transforms.0.0 (RandomFlip): unexpected keyword argument',
        ),
        (
            loader(batchsize=2),
            "train_dataloader: unexpected keyword argument 'batchsize' of DataLoader. Did you mean ",
        ),
        (loader(num_batch_per_epoch=2, pin_memory=True), None),
        (loader(batch_size=0), 'train_dataloader.batch_size must be a whole number from 1 on, got 0'),
        (loader(batch_size=1.5), 'train_dataloader.batch_size must be a whole number from 1 on, got 1.5'),
        (loader(num_workers=-1), 'train_dataloader.num_workers must be a whole number from 0 on, got -1'),
        (
            loader(sampler={'type': 'InfinitSampler'}),
            'train_dataloader.sampler (InfinitSampler): no data sampler is',
        ),
        (
            loader(sampler={'type': 'InfiniteSampler', 'shufle': 1}),
            'train_dataloader.sampler (InfiniteSampler): unexpected',
        ),
        (
            loader(collate_fn={'type': 'pseudo_colate'}),
            'train_dataloader.collate_fn (pseudo_colate): no function is called',
        ),
        (loader(collate_fn={'type': 'pseudo_collate'}), None),
        ({'dataset': {'type': 'CityscapesDataset'}}, 'train_dataloader has no sampler'),
        (
            loader(dataset={'type': 'RepeatDataset', 'times': 2, 'dataset': {'type': 'CityscapeDataset'}}),
            'train_dataloader.dataset.dataset (CityscapeDataset): no dataset is called',
        ),
        (
            loader(dataset={'type': 'ConcatDataset', 'datasets': [{'type': 'ADE20KDatset'}]}),
            'train_dataloader.dataset.datasets.0 (ADE20KDatset)',
        ),
        (loader(dataset={'type': 'RepeatDataset', 'dataset': {'type': 'ADE20KDataset'}}), "lacks 'times'"),
    ],
)
def test_data_loaders(settings, expected):
    found = problem_of('train_dataloader', settings)
    assert (
        found is None
        if expected is None
        else expected.replace('d', 'train_dataloader', 1) in found or (expected in found)
    )


@OPTIMIZERS.register_module()
class Strict(torch.optim.SGD):
    def __init__(self, params, lr: float = 1.0) -> None:
        if lr > 1:
            raise ValueError('lr must not exceed 1')
        super().__init__(params, lr=lr)


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({'optimizer': {'type': 'SGD', 'lr': 1}}, None),
        ({'optimizer': {'lr': 1}}, 'optim_wrapper.optimizer has no type'),
        (
            {'optimizer': {'type': 'SGD', 'lr': -1}},
            'optim_wrapper.optimizer (SGD): Invalid learning rate: -1',
        ),
        ({'optimizer': {'type': 'SGD', 'lr': 'x'}}, "optim_wrapper.optimizer.lr must be a number, got 'x'"),
        (
            {'optimizer': {'type': 'Strict', 'lr': 2}},
            'optim_wrapper.optimizer (Strict): lr must not exceed 1',
        ),
        (
            {'optimizer': {'type': 'SGD', 'lrr': 1}},
            "unexpected keyword argument 'lrr' of SGD. Did you mean lr?",
        ),
        ({'optimizer': {'type': 'ZeroRedundancyOptimizer', 'optimizer_type': 'SGD', 'lr': 1}}, None),
        (
            {'optimizer': {'type': 'SGD', 'lr': 1}, 'clip_gard': {}},
            "optim_wrapper (OptimWrapper): unexpected keyword argument 'clip_gard' of OptimWrapper. Did you",
        ),
        (
            {'type': 'AmpOptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 1}, 'los_scale': 1},
            "optim_wrapper (AmpOptimWrapper): unexpected keyword argument 'los_scale' of OptimWrapper.",
        ),
        (
            {
                'optimizer': {'type': 'AdamW'},
                'constructor': 'LearningRateDecayOptimizerConstructor',
                'paramwise_cfg': {'num_layers': 3},
                'clip_grad': {'max_norm': 1},
            },
            None,
        ),
        ({'constructor': 'NoConstructor'}, 'optim_wrapper.constructor (NoConstructor): no optimizer wrapper'),
        ({'type': 'OptimWrapperDict', 'a': {'optimizer': {}}}, None),
    ],
)
def test_optimizers(settings, expected):
    found = problem_of('optim_wrapper', settings)
    assert found is None if expected is None else expected in found


@pytest.mark.parametrize(
    'key, value, expected',
    [
        ('param_scheduler', [{'type': 'PolyLR', 'power': 1, 'convert_to_iter_based': True}], None),
        ('param_scheduler', {'type': 'PolyLR', 'powr': 1}, 'param_scheduler (PolyLR): unexpected keyword'),
        (
            'param_scheduler',
            {'a': [{'type': 'PolyL'}]},
            'param_scheduler.a.0 (PolyL): no parameter scheduler',
        ),
        (
            'val_evaluator',
            [{'type': 'IoUMetric'}, {'type': 'IoUMetrc'}],
            'val_evaluator.1 (IoUMetrc): no metric',
        ),
        (
            'val_evaluator',
            {'metrics': [{'type': 'IoUMetrc'}]},
            'val_evaluator.metrics.0 (IoUMetrc): no metric',
        ),
        ('val_evaluator', {'type': 'IoUMetric', 'own': 1}, None),  # mmseg's takes any argument
        ('train_cfg', {'by_epoch': False, 'max_iters': 1}, None),
        (
            'train_cfg',
            {'by_epoch': True, 'max_iters': 1},
            'train_cfg (EpochBasedTrainLoop): unexpected keyword',
        ),
        ('train_cfg', {'type': 'IterBasedTrainLoop'}, "train_cfg (IterBasedTrainLoop) lacks 'max_iters'"),
        ('val_cfg', {}, None),
        ('val_cfg', {'fp61': True}, "val_cfg (ValLoop): unexpected keyword argument 'fp61' of ValLoop"),
        ('default_hooks', {'timer': None, 'logger': {'type': 'LoggerHook', 'priority': 1}}, None),
        ('default_hooks', {'loger': {'interval': 1}}, 'default_hooks.loger has no type'),
        ('custom_hooks', [{'type': 'EMAHook', 'momentum': 0.1, 'begin_iter': 3}], None),
        (
            'custom_hooks',
            [{'type': 'EMAHook', 'momentun': 0.1}],
            "custom_hooks.0 (EMAHook): unexpected keyword argument 'momentun' of ExponentialMovingAverage. "
            'Did you mean momentum',
        ),
        ('visualizer', {'type': 'SegLocalVisualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]}, None),
        ('visualizer', {'vis_backends': []}, 'visualizer has no type'),
        (
            'visualizer',
            {'type': 'Visualizer', 'vis_backends': [{'type': 'LocalBackend'}]},
            'visualizer.vis_backends.0 (LocalBackend): no vis_backend is called',
        ),
        ('log_processor', {'by_epoch': False}, None),
        ('log_processor', {'by_epoc': False}, 'log_processor (LogProcessor): unexpected keyword'),
        ('model_wrapper_cfg', {'broadcast_buffers': True}, None),
        ('model_wrapper_cfg', {'type': 'Wrapper'}, 'model_wrapper_cfg (Wrapper): no model_wrapper is called'),
        ('runner_type', 'Runnr', 'runner_type (Runnr): no runner is called'),
        ('tta_model', {'type': 'SegTTAModel'}, None),
        ('tta_model', {'type': 'SegTTAModl'}, 'tta_model (SegTTAModl): no model is called'),
        (
            'tta_pipeline',
            [{'type': 'TestTimeAug', 'transforms': [[{'type': 'Rsize'}]]}],
            '0.transforms.0.0 (Rsiz',
        ),
    ],
)
def test_other_parts(key, value, expected):
    found = problem_of(key, value)
    assert found is None if expected is None else expected in found


@pytest.fixture
def config(tiny_configs) -> Config:
    return load_config(tiny_configs['distilled'])


@pytest.mark.parametrize(
    'changes, expected',
    [
        ({}, None),
        ({'model.type': 'EncoderDecodr'}, "model (EncoderDecodr): no model is called 'EncoderDecodr'"),
        (
            {'model.backbone.dept': 18},
            "model.backbone (ResNetV1c): unexpected keyword argument 'dept' of ResNet",
        ),
        (
            {'model.backbone.norm_cfg.type': 'SyncBM'},
            'model.backbone.norm_cfg (SyncBM): nothing registered is',
        ),
        ({'model.backbone.norm_cfg.type': 'torch.nn.BatchNorm2d'}, None),
        ({'model.decode_head.loss_decode.loss_weight': 'x'}, 'loss_decode.loss_weight must be a number'),
        (
            {'model.decode_head.sampler': {'type': 'OHEMPixelSamplr'}},
            'model.decode_head.sampler (OHEMPixelSampl',
        ),
        ({'model.auxiliary_head.type': 'FCNHed'}, 'model.auxiliary_head (FCNHed): no model is called'),
        ({'model.data_preprocessor.meen': 1}, 'model.data_preprocessor (SegDataPreProcessor): unexpected'),
        ({'model.backbone': {'type': 'OwnBackbone', 'in_channels': 3, 'kernel_size': 1}}, None),
        ({'model.backbone': {'type': 'OwnBackbone', 'mode': {'type': 'fast'}}}, None),
        ({'model.distill_losses.0.tau_foward': 2}, 'model.distill_losses.0 (BDDLoss): unexpected keyword'),
        ({'model.distill_losses.0.student_tap': 'backbone'}, None),
        ({'model.distill_losses': 3}, 'model.distill_losses must be a list of dicts, got 3'),
        ({'model.teacher': None}, 'the model has no teacher'),
        ({'model.teacher.type': 'MMSegTeecher'}, 'model.teacher (MMSegTeecher): no model is called'),
        (
            {'model.teacher.chekpoint': 2},
            "model.teacher (MMSegTeacher): unexpected keyword argument 'chekpoint'",
        ),
        ({'model.teacher.config': 'nowhere.py'}, "teacher: config 'nowhere.py' does not exist"),
        ({'model.num_stages': 2}, None),  # the model says that it wants CascadeSegDistiller
    ],
)
def test_models(config, changes, expected):
    config.merge_from_dict(changes)
    found = problem_of('model', config.model)
    assert found is None if expected is None else expected in found


def test_models_that_are_only_tested_need_no_config_of_the_teacher(config):
    config.model.teacher.config = 'nowhere.py'
    assert problem_of('model', config.model, mode='test') is None


@pytest.mark.parametrize('nested', [True, False])
def test_the_config_of_a_teacher_given_as_a_dict(config, tiny_configs, nested):
    teacher = load_config(tiny_configs['teacher'])
    teacher.model.backbone.type = 'ResNetV1z'
    config.model.teacher.config = teacher.to_dict() if nested else teacher.model.to_dict()
    expected = "teacher (config given as a dict): model.backbone (ResNetV1z): no model is called 'ResNetV1z'."
    assert problem_of('model', config.model).startswith(expected)


def test_the_model_within_test_time_augmentation(config):
    config.model.backbone.type = 'ResNetV1z'
    found = problem_of('model', {'type': 'SegTTAModel', 'module': config.model})
    assert found.startswith('model.module.backbone (ResNetV1z): no model is called')


def test_names_are_looked_up_in_the_default_scope_of_the_config():
    settings = {'type': 'SegVisualizationHook'}
    assert problem_of('custom_hooks', [settings]) is None
    assert 'no hook is called' in problem_of('custom_hooks', [settings], default_scope='mmengine')
    assert HOOKS.get('mmseg.SegVisualizationHook') is not None
    assert (
        problem_of('custom_hooks', [{'type': 'mmseg.SegVisualizationHook'}], default_scope='mmengine') is None
    )
    assert DATASETS.scope == 'mmseg'
