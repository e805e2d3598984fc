"""The shipped configs: mmseg's own numbers, and short diffs on top of them."""

import pytest
from helpers import CONFIGS
from mmseg.registry import MODELS

from bdd_seg.cli.steps import HOOKS
from bdd_seg.runtime.upstream.configs import load_config

PLAIN = sorted(path.name for path in (CONFIGS / 'pspnet').glob('*.py'))
METHODS = {  # folder: loss, lines at most
    'bdd': ('BDDLoss', 2),
    'cwd': ('CWDLoss', 2),
    'kd': ('KDLoss', 2),
    'feature': ('FeatureMSELoss', 5),
}
DISTILLED = [
    f'{folder}/{path.name}' for folder in METHODS for path in sorted((CONFIGS / folder).glob('*.py'))
]
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


@pytest.mark.parametrize('name', DISTILLED)
def test_distilled_configs_are_the_student_plus_a_teacher(name):
    cfg = load_config(CONFIGS / name)
    method, _, filename = name.partition('/')
    assert filename.startswith(method)
    kind, max_lines = METHODS[method]
    student = load_config(CONFIGS / 'pspnet' / f'pspnet_{name.split("_pspnet_")[-1]}')
    teacher = load_config(cfg.model.teacher.config)
    model = cfg.model.to_dict()
    assert model.pop('type') == 'SegDistiller'
    assert set(model.pop('teacher')) == {'config', 'checkpoint'}
    losses = model.pop('distill_losses')
    assert [loss['type'] for loss in losses] == [kind]
    if method != 'feature':
        loss = MODELS.build(losses[0])
        assert ('pixel' in name or method == 'kd') == (loss.domain == 'pixel')
        assert (loss.forward_weight, loss.reverse_weight) == (1, 1 if method == 'bdd' else 0)
    plain = student.model.to_dict()
    assert plain.pop('type') == 'EncoderDecoder'
    assert model == plain
    for key in SETTINGS[1:]:
        assert cfg[key] == student[key], key
    assert teacher.model.decode_head.num_classes == student.model.decode_head.num_classes
    assert len((CONFIGS / name).read_text().splitlines()) <= max_lines


@pytest.mark.parametrize('name', [name for name in DISTILLED if name.startswith('feature/')])
def test_features_are_those_that_both_heads_get(name):
    cfg = load_config(CONFIGS / name)
    [loss] = cfg.model.distill_losses
    assert (loss.student_tap, loss.teacher_tap) == ('backbone.layer4', 'backbone.layer4')
    teacher = load_config(cfg.model.teacher.config).model
    for channels, model in ((loss.student_channels, cfg.model), (loss.teacher_channels, teacher)):
        assert (channels, model.decode_head.in_index) == (model.decode_head.in_channels, 3)
    assert 'custom_hooks' not in cfg


@pytest.mark.parametrize('name', [name for name in DISTILLED if 'camvid' in name])
def test_a_trained_teacher_is_found_where_its_config_leaves_it(name):
    """For data sets without a published teacher, the checkpoint is the last one of the teacher's own run."""
    cfg = load_config(CONFIGS / name)
    teacher = load_config(cfg.model.teacher.config)
    name = cfg.model.teacher.config.rpartition('/')[2].removesuffix('.py')
    assert cfg.model.teacher.checkpoint == f'work_dirs/{name}/iter_{teacher.train_cfg.max_iters}.pth'
