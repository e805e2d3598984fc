import os
from types import SimpleNamespace

import pytest
import torch
from helpers import build
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmseg.registry import MODELS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.checkpoint_fits import CheckpointFitsHook


@pytest.fixture
def model(tiny_configs):
    return build(tiny_configs['student'])


@pytest.fixture
def weights(tiny_configs):
    """Those of another training of the same network."""
    return build(tiny_configs['student']).state_dict()


def load(model, weights, mode='test', load_from='some.pth', work_dir='.', optimizer=True) -> None:
    trains = mode != 'test'
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1)) if trains else {}
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=optim_wrapper,
        work_dir=work_dir,
        _resume=mode == 'resume',
        _load_from=load_from,
    )
    content = {'state_dict': weights, **({'optimizer': {}} if optimizer else {})}
    CheckpointFitsHook().after_load_checkpoint(runner, content)


def without(weights, *parts) -> dict:
    return {key: value for key, value in weights.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize('mode', ['test', 'load_from', 'resume'])
def test_the_networks_own_weights_fit(model, weights, mode):
    load(model, weights, mode)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    load(model, {f'module.{key}': value for key, value in weights.items()}, mode)
    # Checkpoints of before torch 0.4.1 do not count batches, and torch knows.
    load(model, without(weights, 'num_batches_tracked'), mode)


def test_at_several_scales_it_is_the_network_within(tiny_configs, weights):
    several = MODELS.build({'type': 'SegTTAModel', 'module': Config.fromfile(tiny_configs['student']).model})
    load(several, weights)
    with pytest.raises(ConfigError, match='1 missing: decode_head.conv_seg.bias'):
        load(several, without(weights, 'decode_head.conv_seg.bias'))


def test_auxiliary_heads_count_where_they_train(model, weights):
    lacking = without(weights, 'auxiliary_head')
    load(model, lacking)
    load(model, {**weights, 'auxiliary_head.other': torch.zeros(1)})
    with pytest.raises(
        ConfigError, match=r"checkpoint 'some.pth' does not fit the model: \d+ missing: auxiliary_"
    ):
        load(model, lacking, 'resume')


@pytest.mark.parametrize('mode', ['test', 'resume'])
def test_what_does_not_fit_is_listed(model, weights, mode):
    weights['decode_head.conv_seg.weight'] = torch.zeros(7, 8, 1, 1)
    weights['backbone.extra'] = weights.pop('backbone.stem.0.weight')
    expected = (
        r'1 missing: backbone.stem.0.weight; 1 unexpected: backbone.extra; 1 of another shape: '
        r'decode_head.conv_seg.weight \(7, 8, 1, 1\) instead of \(19, 8, 1, 1\). Use the config that it was'
    )
    with pytest.raises(ConfigError, match=expected):
        load(model, weights, mode)


def test_a_training_may_begin_with_a_part(model, weights):
    """As fine-tuning for other classes does."""
    weights['decode_head.conv_seg.weight'] = torch.zeros(7, 8, 1, 1)
    load(model, weights, 'load_from')
    load(model, {'backbone.stem.0.weight': weights['backbone.stem.0.weight']}, 'load_from')
    counters = {key: value for key, value in weights.items() if 'num_batches_tracked' in key}
    with pytest.raises(ConfigError, match=r'\d+ unexpected: other.a. None of its weights could be used'):
        load(model, {'other.a': torch.zeros(3), **counters}, 'load_from')


@pytest.mark.parametrize('mode', ['test', 'load_from', 'resume'])
@pytest.mark.parametrize('weights', [None, [torch.zeros(1)], {'a': 1}, {1: torch.zeros(1)}])
def test_what_are_no_weights(model, weights, mode):
    with pytest.raises(ConfigError, match="checkpoint 'some.pth' holds no dict of named tensors"):
        load(model, weights, mode)


def test_a_checkpoint_without_a_name(model):
    with pytest.raises(ConfigError, match='^the checkpoint does not fit'):
        load(model, {}, 'resume', load_from=None)


@pytest.mark.parametrize('mode', ['test', 'load_from', 'resume'])
def test_what_modules_save_besides_their_weights(model, weights, mode, monkeypatch):
    monkeypatch.setattr(type(model.decode_head), 'get_extra_state', lambda self: {'a': 1}, raising=False)
    seen = []
    monkeypatch.setattr(
        type(model.decode_head), 'set_extra_state', lambda self, state: seen.append(state), raising=False
    )
    load(model, {**weights, 'decode_head._extra_state': {'a': 2}}, mode)
    assert seen == [{'a': 2}]


def test_resuming_needs_the_state_of_the_optimizer(model, weights, tmp_path):
    best = tmp_path / 'best_mIoU_iter_8.pth'
    for i, name in enumerate(['iter_4', 'iter_8', 'iter_12', 'iter_16']):
        content = {'state_dict': {}} if name == 'iter_12' else {'state_dict': {}, 'optimizer': {}}
        torch.save(content, tmp_path / f'{name}.pth')
        os.utime(tmp_path / f'{name}.pth', (i, i))
    (tmp_path / 'iter_16.pth').write_bytes(b'cut short')
    expected = (
        f"checkpoint '{best}' has no optimizer state, .*--resume cannot go on from it. Resume from "
        f"'{tmp_path}/iter_8.pth', which has it .* load_from without --resume"
    )
    with pytest.raises(ConfigError, match=expected):
        load(model, weights, 'resume', load_from=str(best), optimizer=False)
    with pytest.raises(ConfigError, match=f"Resume from '{tmp_path}/iter_8.pth'"):  # found by mmengine
        load(model, weights, 'resume', load_from=None, work_dir=str(tmp_path), optimizer=False)
    with pytest.raises(ConfigError, match=f"No checkpoint in '{tmp_path}/empty' has it. Or begin anew"):
        load(model, weights, 'resume', load_from=str(tmp_path / 'empty/best.pth'), optimizer=False)


@pytest.mark.parametrize('mode', ['test', 'load_from'])
def test_only_resuming_needs_it(model, weights, mode):
    load(model, weights, mode, optimizer=False)
