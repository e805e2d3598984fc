"""The shipped configs: mmseg's own numbers, and short diffs on top of them."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, WIDTH, build
from mmengine.config import Config
from mmseg.registry import MODELS

from bdd_seg.cli.steps import HOOKS
from bdd_seg.distill import Tap
from bdd_seg.losses import BalancedLoss, BDDLoss, KDLoss
from bdd_seg.runtime.upstream import configs

_load = cache(configs.load_config)


def load_config(path: Path | str) -> Config:
    """Read a config once, and return a copy of it."""
    return copy.deepcopy(_load(str(path)))


PLAIN = sorted(path.name for path in (CONFIGS / 'pspnet').glob('*.py'))
METHODS = sorted(
    path.name
    for path in CONFIGS.iterdir()
    if path.is_dir() and path.name not in ('_base_', 'pspnet', 'teachers_from_elsewhere')
)
PAIRS = sorted(path.stem for path in (CONFIGS / '_base_/pairs').glob('*.py'))
TAPS = (None, 'backbone.layer4', 'decode_head.bottleneck', 'auxiliary_head.conv_seg')
DISTILLED = [
    f'{folder}/{path.name}' for folder in METHODS for path in sorted((CONFIGS / folder).glob('*.py'))
]
MAX_LINES = 8
TRAIN_HOOKS = HOOKS['train']
SETTINGS = [
    'model',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'val_cfg',
    'test_cfg',
    'default_hooks',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'val_evaluator',
    'test_evaluator',
    'tta_pipeline',
    'tta_model',
    'default_scope',
    'env_cfg',
    'log_processor',
    'visualizer',
]


def parameters(cfg) -> int:
    return sum(p.numel() for p in MODELS.build(cfg.model).parameters())


@pytest.mark.parametrize('depth', [18, 101])
def test_cityscapes_configs_are_mmsegs(depth):
    name = f'pspnet/pspnet_r{depth}-d8_4xb2-80k_cityscapes-512x1024.py'
    ours, theirs = load_config(CONFIGS / name), load_config(f'mmseg::{name}')
    for name in TRAIN_HOOKS:  # this package's, beside mmseg's
        del ours.default_hooks[name]
    for key in SETTINGS:
        assert ours[key] == theirs[key], key
    assert parameters(ours) == parameters(theirs)


@pytest.mark.parametrize('name', PLAIN)
def test_shipped_configs_name_the_hooks_that_the_tools_add(name):
    hooks = load_config(CONFIGS / 'pspnet' / name).default_hooks
    assert {name: hooks[name].type for name in TRAIN_HOOKS} == TRAIN_HOOKS


@pytest.mark.parametrize('name', PLAIN)
def test_plain_configs_build(name):
    cfg = load_config(CONFIGS / 'pspnet' / name)
    crop = [step['crop_size'] for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
    assert crop == [cfg.model.data_preprocessor.size]
    assert name.endswith(f'-{crop[0][0]}x{crop[0][1]}.py')
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    assert f'xb{cfg.train_dataloader.batch_size}-' in name
    assert parameters(cfg) > 0


@pytest.mark.parametrize('method', METHODS)
def test_each_method_has_a_config_of_each_pair(method):
    names = {path.stem for path in (CONFIGS / method).glob('*.py')}
    assert {f'{method}_{pair}' for pair in PAIRS} <= names
    assert all(name.startswith(method) and name.partition('_')[2] in PAIRS for name in names)


@pytest.mark.parametrize('name', DISTILLED)
def test_distilled_configs_are_the_student_plus_a_teacher(name):
    cfg = load_config(CONFIGS / name)
    student = load_config(CONFIGS / 'pspnet' / f'pspnet_{name.split("_pspnet_")[-1]}')
    teacher = load_config(cfg.model.teacher.config)
    model = cfg.model.to_dict()
    assert model.pop('type') == 'SegDistiller'
    assert set(model.pop('teacher')) == {'config', 'checkpoint'}
    assert model.pop('distill_losses')
    plain = student.model.to_dict()
    assert plain.pop('type') == 'EncoderDecoder'
    assert model == plain
    for key in SETTINGS[1:]:
        assert cfg[key] == student[key], key
    assert 'custom_hooks' not in cfg
    assert teacher.model.decode_head.num_classes == student.model.decode_head.num_classes
    assert len((CONFIGS / name).read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize('name', DISTILLED)
def test_a_loss_is_balanced_where_the_config_is_named_bdd(name):
    balanced = 'bdd' in name.partition('_')[0].partition('/')[2].split('-')
    found = [
        MODELS.build({key: value for key, value in loss.items() if not key.endswith('_tap')})
        for loss in load_config(CONFIGS / name).model.distill_losses
    ]
    assert not balanced or any(isinstance(loss, BalancedLoss) for loss in found)
    for loss in found:
        if isinstance(loss, BalancedLoss):
            assert (loss.forward_weight, loss.reverse_weight) == (1, 1 if balanced else 0)
        if isinstance(loss, BDDLoss):
            assert (loss.domain == 'pixel') == ('pixel' in name or isinstance(loss, KDLoss))


@pytest.mark.parametrize('name', DISTILLED)
def test_features_are_those_that_the_heads_get_and_those_that_they_classify(name):
    cfg = load_config(CONFIGS / name)
    for loss in cfg.model.distill_losses:
        assert loss.get('student_tap') == loss.get('teacher_tap')
        assert loss.get('student_tap') in TAPS
    for model in (cfg.model, load_config(cfg.model.teacher.config).model):
        assert (model.decode_head.type, model.decode_head.in_index) == ('PSPHead', 3)


def test_the_bottleneck_of_a_psp_head_is_what_it_classifies(tiny_configs, batch):
    model = build(tiny_configs['student']).eval()
    seen = []
    model.decode_head.conv_seg.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with Tap(model, ['decode_head.bottleneck']) as outputs:
        model(batch[0], mode='tensor')
    assert torch.equal(outputs['decode_head.bottleneck'], seen[0])


def shrunk(model: dict, depth: int, base_channels: int) -> dict:
    """Return the settings of a PSPNet with few channels, without weights to download."""
    model = copy.deepcopy(model)
    small = {key: dict(value) for key, value in WIDTH.items()}
    small['backbone'] = {'depth': depth, 'base_channels': base_channels, 'stem_channels': base_channels}
    small['decode_head'] = {'in_channels': 8 * base_channels, 'channels': 2 * base_channels}
    small['auxiliary_head']['in_channels'] = 4 * base_channels
    for key, settings in small.items():
        model[key].update(settings)
    return {**model, 'pretrained': None}


@pytest.fixture(scope='module')
def teachers(tmp_path_factory) -> Callable[[str], dict]:
    """The teacher of a config, shrunk, with random weights in a file; one for each number of classes."""
    made: dict[int, dict] = {}

    def teacher(config: str) -> dict:
        model = shrunk(load_config(config).model.to_dict(), depth=18, base_channels=8)
        classes = model['decode_head']['num_classes']
        if classes not in made:
            file = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
            torch.manual_seed(classes)
            torch.save({'state_dict': build(Config({'model': model})).state_dict()}, file)
            made[classes] = {'config': model, 'checkpoint': str(file)}
        return made[classes]

    return teacher


# Shrunk, configs of the same losses differ in the number of classes only: one of each is run.
OF_OTHER_LOSSES = list(
    {str(_load(str(CONFIGS / name)).model.distill_losses): name for name in DISTILLED}.values()
)


@pytest.mark.parametrize('name', OF_OTHER_LOSSES)
def test_each_loss_of_each_config_gives_the_student_a_gradient(name, teachers, batch):
    cfg = load_config(CONFIGS / name)
    cfg.model.update(shrunk(cfg.model.to_dict(), depth=18, base_channels=4))
    torch.manual_seed(0)
    model = build(cfg, teacher=teachers(cfg.model.teacher.config)).train()
    images, samples = batch
    for sample in samples:
        label = sample.gt_sem_seg.data
        label[label != 255] %= cfg.model.decode_head.num_classes
    values = model.loss(images, samples)
    student = [p for key, p in model.named_parameters() if key.startswith('backbone')]
    names = [f'distill.{loss.loss_name}' for loss in model.distill_losses]
    assert len(names) == len(cfg.model.distill_losses)
    for key in names:
        assert values[key].isfinite() and values[key] > 0
        gradients = torch.autograd.grad(values[key], student, retain_graph=True, allow_unused=True)
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        assert norms and torch.stack(norms).isfinite().all() and torch.stack(norms).sum() > 0, key
    loss, _ = model.parse_losses(values)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize('pair', PAIRS)
def test_a_trained_teacher_is_found_where_its_run_leaves_it(pair):
    """The checkpoint of a teacher that is not published is the last one of its own run."""
    cfg = load_config(CONFIGS / '_base_/pairs' / f'{pair}.py')
    teacher = load_config(cfg.model.teacher.config)
    name = cfg.model.teacher.config.rpartition('/')[2].removesuffix('.py')
    last = f'iter_{teacher.train_cfg.max_iters}.pth'
    expected = {
        'camvid': f'work_dirs/{name}/{last}',
        'street-scenes': f'work_dirs/demo/teacher/{last}',  # `make demo` trains it there
        'cityscapes': 'https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/'
        'pspnet_r101-d8_512x1024_80k_cityscapes/'
        'pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    }
    [data] = [data for data in expected if f'_{data}-' in pair]
    assert cfg.model.teacher.checkpoint == expected[data]
