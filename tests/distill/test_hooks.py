from types import SimpleNamespace

import pytest
from helpers import TEST, TRAIN, build, logged, miou, run, same, train
from mmseg.registry import HOOKS
from torch import nn

from bdd_seg.distill import hooks
from bdd_seg.losses import BDDLoss, FeatureLoss
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

BY_FEATURES = """
_base_ = {base!r}
model = dict(
    distill_losses=[
        dict(type='FeatureLoss', student_channels=32, teacher_channels=128,
             student_tap='backbone.layer4', teacher_tap='backbone.layer4',
             schedule=dict(loss_weight=(2.0, 0.5)))])
custom_hooks = [
    dict(type='LossStateHook'),
    dict(type='EMAHook', update_buffers=True, momentum=0.1)]
"""


@pytest.fixture(scope='module')
def config(tiny_configs, tmp_path_factory):
    """The student distilled by its features, with all hooks."""
    path = tmp_path_factory.mktemp('configs') / 'by_features.py'
    path.write_text(BY_FEATURES.format(base=str(tiny_configs['distilled'])))
    return path


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    train(config, work_dir)
    return work_dir


def test_a_checkpoint_is_a_students_with_the_losses_beside_it(trained, tiny_configs):
    checkpoint = load_checkpoint(trained / 'iter_6.pth')  # runs no code
    assert {name: [*state] for name, state in checkpoint['distill_losses'].items()} == {
        'loss_feature': ['adapter.weight', 'adapter.bias']
    }
    student = build(tiny_configs['student'])
    student.load_state_dict(checkpoint['state_dict'], strict=True)
    averaged = {key.removeprefix('module.') for key in checkpoint['ema_state_dict']} - {'steps'}
    assert averaged == student.state_dict().keys()


def test_both_configs_evaluate_alike(trained, config, tiny_configs, tmp_path):
    outputs = [
        run(TEST, path, trained / 'iter_6.pth', '--work-dir', tmp_path)
        for path in (config, tiny_configs['student'])
    ]
    assert len(miou(outputs[0])) == 3
    assert miou(outputs[0]) == miou(outputs[1])
    assert 'do not match exactly' not in outputs[0]


def test_two_processes_train_one_projection(config, tmp_path):
    batch_norm = [f'model.{part}.norm_cfg.type=BN' for part in ('backbone', 'decode_head', 'auxiliary_head')]
    run(
        TRAIN,
        config,
        '--work-dir',
        tmp_path / 'run',
        '--launcher',
        'pytorch',
        '--cfg-options',
        *batch_norm,
        'train_cfg.max_iters=2',
        launcher=['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'],
    )
    assert [record['step'] for record in logged(tmp_path / 'run')] == [1, 2]
    checkpoint = load_checkpoint(tmp_path / 'run/iter_2.pth')
    assert list(checkpoint['distill_losses']) == ['loss_feature']


def runner_of(*losses: nn.Module, wrapped: bool = False) -> SimpleNamespace:
    """As much of a Runner as the hooks look at."""
    model = nn.Module()
    model.distill_losses = nn.ModuleList(losses)
    return SimpleNamespace(model=nn.DataParallel(model) if wrapped else model, iter=0, max_iters=8)


def test_a_plain_model_has_no_losses():
    runner = SimpleNamespace(model=nn.Linear(1, 1), _resume=True)
    hook, checkpoint = HOOKS.build({'type': 'LossStateHook'}), {}
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint == {'distill_losses': {}}
    hook.after_load_checkpoint(runner, checkpoint)


@pytest.mark.parametrize('wrapped', [False, True])
def test_only_resuming_loads_a_losss_weights(wrapped):
    saved, hook, checkpoint = FeatureLoss(2, 3), HOOKS.build({'type': 'LossStateHook'}), {}
    hook.before_save_checkpoint(runner_of(BDDLoss(), saved, wrapped=wrapped), checkpoint)
    assert list(checkpoint['distill_losses']) == ['loss_feature']
    for resume in (False, True):
        loss = FeatureLoss(2, 3)
        runner = runner_of(loss, BDDLoss(), wrapped=wrapped)
        runner._resume = resume
        hook.after_load_checkpoint(runner, checkpoint)
        assert same(dict(loss.state_dict()), dict(saved.state_dict())) is resume


def test_a_checkpoint_without_a_losss_weights_is_warned_about(monkeypatch):
    said = []
    monkeypatch.setattr('bdd_seg.distill.hooks.print_log', lambda message, **_: said.append(message))
    hook = HOOKS.build({'type': 'LossStateHook'})
    for losses in ([BDDLoss()], [BDDLoss(), FeatureLoss(2, 3)]):
        runner = runner_of(*losses)
        runner._resume = True
        hook.after_load_checkpoint(runner, {'state_dict': {}})
    assert len(said) == 1
    assert 'no weights of loss_feature' in said[0]


def test_resuming_without_what_the_hook_keeps_is_said(monkeypatch, config):
    """As from a checkpoint that a training without the hook has written."""
    said = []
    monkeypatch.setattr(hooks, 'print_log', lambda text, **_: said.append(text))
    model = build(config, balance_gradients=1.0)
    runner = SimpleNamespace(model=model, _resume=True)
    hooks.LossStateHook().after_load_checkpoint(runner, {'state_dict': {}})
    assert [text.split(',')[0] for text in said] == [
        'The checkpoint has no factors of balanced gradients',
        'The checkpoint has no weights of loss_feature',
    ]
    said.clear()
    kept = {'distill_factors': {}, 'distill_losses': {'loss_feature': model.distill_losses[0].state_dict()}}
    hooks.LossStateHook().after_load_checkpoint(runner, kept)
    assert not said
