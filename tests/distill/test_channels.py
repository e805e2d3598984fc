"""Layers of losses that are made from the channels found in a pass without data."""

import copy

import pytest
import torch
from helpers import TEST, build, complaint, miou, run, train
from mmengine.config import Config
from mmseg.models import ResNetV1c
from mmseg.registry import MODELS
from torch import nn

from bdd_seg.distill.channels import map_channels
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

LAYER = {'student_tap': 'backbone.layer4', 'teacher_tap': 'backbone.layer4'}
HEAD = {'student_tap': 'decode_head.bottleneck', 'teacher_tap': 'decode_head.bottleneck'}


@MODELS.register_module()
class LooksAtItsInput(ResNetV1c):
    """A network whose forward pass depends on the values of its input."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def distilled(tiny_configs, *losses: dict, **changes) -> nn.Module:
    return build(Config.fromfile(tiny_configs['distilled']), distill_losses=list(losses), **changes)


def sizes(module: nn.Module) -> tuple[int, int]:
    return module.in_channels, module.out_channels


def test_every_loss_finds_its_channels(tiny_configs, batch):
    model = distilled(
        tiny_configs,
        {'type': 'FeatureLoss', **LAYER},
        {'type': 'MGDLoss', **HEAD},
        {'type': 'CWDLoss', 'loss_weight': 50.0, **HEAD},
        {'type': 'CIRKDMemoryLoss', 'num_classes': 19, 'pixel_memory': 32, 'region_memory': 8, **HEAD},
        {'type': 'AttentionLoss', **LAYER},
        {'type': 'BDDLoss'},
    )
    feature, mgd, cwd, memory, attention, bdd = model.distill_losses
    assert sizes(feature.adapter) == (32, 128)
    assert sizes(mgd.adapter) == (8, 16) and sizes(mgd.generation[0]) == (16, 16)
    assert sizes(cwd.adapter) == (8, 16) and cwd.adapter.bias is None
    assert memory.projection[0].in_features == 8 and memory.pixels.vectors.shape == (19, 32, 16)
    for loss in (attention, bdd):
        assert isinstance(loss.adapter, nn.Identity)
    losses = model.train().loss(*batch)
    model.parse_losses(losses)[0].backward()
    for name, parameter in model.distill_losses.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_given_channels_are_those_that_are_found(tiny_configs):
    states = []
    for channels in ({}, {'student_channels': 32, 'teacher_channels': 128}):
        torch.manual_seed(3)
        model = distilled(tiny_configs, {'type': 'FeatureLoss', **LAYER, **channels})
        states.append(({**model.state_dict()}, {**model.distill_losses[0].state_dict()}))
    for found, given in zip(*states, strict=True):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[key], given[key]) for key in found)


def test_equal_channels_need_no_layer(tiny_configs):
    stem = {'student_tap': 'backbone.stem', 'teacher_tap': 'backbone.stem'}
    model = distilled(tiny_configs, {'type': 'CWDLoss', **stem})
    assert [*model.distill_losses.parameters()] == []


def test_the_pass_leaves_the_network_and_the_random_numbers_alone(tiny_configs):
    model = build(tiny_configs['student']).train()
    model.backbone.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    taps = ('backbone.layer4', 'decode_head.conv_seg', 'auxiliary_head.convs.0')
    assert [map_channels(model, tap) for tap in taps] == [32, 19, 8]
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_images_of_five_bands(tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.model.data_preprocessor.update(mean=None, std=None, bgr_to_rgb=False)
    cfg.model.backbone.in_channels = 5
    assert map_channels(build(cfg), 'backbone.layer4') == 32


def test_testing_needs_no_teacher(tiny_configs, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\n'
        f"model = dict(teacher=dict(config='gone.py'),\n"
        f"             distill_losses=[dict(type='FeatureLoss', **{LAYER!r})])\n"
    )
    torch.manual_seed(0)
    checkpoint = tmp_path / 'student.pth'
    torch.save({'state_dict': build(tiny_configs['student']).state_dict()}, checkpoint)
    assert len(miou(run(TEST, config, checkpoint, '--work-dir', tmp_path))) == 3


def test_a_teacher_that_cannot_tell_is_an_error_when_training_starts(tiny_configs):
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.distill_losses = [{'type': 'FeatureLoss', **LAYER}]
    cfg.model.teacher.config = 'gone.py'
    model = MODELS.build(cfg.model)
    with pytest.raises(ConfigError, match='gone'):
        model.init_weights()


def test_a_tap_that_is_none_is_named(monkeypatch, tiny_configs, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\n'
        "model = dict(distill_losses=[dict(type='FeatureLoss', student_tap='backbone.layer5',\n"
        "                                  teacher_tap='backbone.layer4')])\n"
    )
    message = complaint(monkeypatch, TEST.with_name('train.py'), config, '--work-dir', tmp_path / 'run')
    assert (
        message.startswith("error: model.distill_losses.0.student_tap: tap 'backbone.layer5' names no")
        and 'backbone.layer4' in message
    )


def test_a_network_that_computes_with_its_input_needs_them_given(tiny_configs):
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.backbone.type = 'LooksAtItsInput'
    message = r'loss_feature: the channels .* \(.*Error: .*\). Give it student_channels and teacher_channels'
    with pytest.raises(ConfigError, match=message):
        build(cfg, distill_losses=[{'type': 'FeatureLoss', **LAYER}])
    given = {'student_channels': 32, 'teacher_channels': 128}
    model = build(cfg, distill_losses=[{'type': 'FeatureLoss', **LAYER, **given}])
    assert sizes(model.distill_losses[0].adapter) == (32, 128)


def test_a_tap_of_an_auxiliary_head_does_not_keep_others_from_their_layers(tiny_configs, batch):
    aux = {'student_tap': 'auxiliary_head.conv_seg', 'teacher_tap': 'decode_head.conv_seg'}
    model = distilled(
        tiny_configs, {'type': 'FeatureLoss', **LAYER}, {'type': 'DISTLoss', 'loss_name': 'loss_aux', **aux}
    )
    losses = model.train().loss(*batch)
    assert losses['distill.loss_feature'] > 0 and losses['distill.loss_aux'] > 0
    assert sizes(model.distill_losses[0].adapter) == (32, 128)
    assert isinstance(model.distill_losses[1].adapter, nn.Identity)


def test_the_teachers_auxiliary_head_is_kept_where_it_is_tapped(tiny_configs, batch):
    aux = {'student_tap': 'auxiliary_head.conv_seg', 'teacher_tap': 'auxiliary_head.conv_seg'}
    model = distilled(
        tiny_configs,
        {'type': 'DISTLoss'},
        {'type': 'DISTLoss', 'loss_name': 'loss_aux', 'loss_weight': 0.4, **aux},
    )
    maps = model.teacher(batch[0]).maps
    teacher = build(Config.fromfile(model.teacher.config))  # with all its heads
    teacher.load_state_dict(load_checkpoint(model.teacher.checkpoint)['state_dict'])
    with torch.no_grad():
        features = teacher.eval().extract_feat(batch[0])
        expected = teacher.auxiliary_head(features)
    torch.testing.assert_close(maps['auxiliary_head.conv_seg'], expected, rtol=1e-4, atol=1e-4)
    losses = model.train().loss(*batch)
    assert losses['distill.loss_dist'] > 0 and losses['distill.loss_aux'] > 0
    plain = distilled(tiny_configs, {'type': 'DISTLoss'})
    assert not plain.teacher.model.with_auxiliary_head


def test_a_cache_tells_the_channels(tiny_configs, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\n'
        f"model = dict(distill_losses=[dict(type='FeatureLoss', **{LAYER!r})])\n"
    )
    run(TEST.with_name('cache_teacher.py'), config, '--out', tmp_path / 'cache')
    cached = tmp_path / 'cached.py'
    cached.write_text(
        f'_base_ = {str(config)!r}\n'
        f"model = dict(teacher=dict(type='CachedTeacher', cache={str(tmp_path / 'cache')!r}))\n"
    )
    train(cached, tmp_path / 'run')
    state = load_checkpoint(tmp_path / 'run/iter_6.pth')['distill_losses']['loss_feature']
    assert state['adapter.weight'].shape == (128, 32, 1, 1)
