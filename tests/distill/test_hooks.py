from types import SimpleNamespace

import pytest
from helpers import TEST, TRAIN, build, complaint, logged, miou, run, same, train
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn

from bdd_seg.distill.hooks import LossScheduleHook
from bdd_seg.errors import ConfigError
from bdd_seg.losses import BDDLoss, FeatureLoss
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

BY_FEATURES = """
_base_ = {base!r}
model = dict(
    distill_losses=[
        dict(type='FeatureLoss', student_channels=32, teacher_channels=128,
             student_tap='backbone.layer4', teacher_tap='backbone.layer4')])
custom_hooks = [
    dict(type='LossStateHook'),
    dict(type='LossScheduleHook', loss_name='loss_feature', setting='loss_weight', start=2.0, stop=0.5),
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


@HOOKS.register_module()
class RecordSettings(Hook):
    """Keeps what the first distillation loss was set to in each iteration."""

    def __init__(self) -> None:
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = runner.model.distill_losses[0]
        self.seen.append((loss.reverse_weight, loss.loss_weight))


def scheduled_run(tiny_configs, work_dir, **changes) -> list[tuple[float, float]]:
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.merge_from_dict({'experiment_name': work_dir.name, 'work_dir': str(work_dir), **changes})
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    schedule = {'type': 'LossScheduleHook', 'loss_name': 'loss_bdd'}
    cfg.custom_hooks = [
        {**schedule, 'setting': 'reverse_weight', 'start': 0.0, 'stop': 2.0, 'begin': 1, 'end': 5},
        {**schedule, 'setting': 'loss_weight', 'start': 3.0, 'stop': 0.0},
        {'type': 'RecordSettings'},
    ]
    runner = Runner.from_cfg(cfg)
    runner.train()
    return next(hook for hook in runner.hooks if isinstance(hook, RecordSettings)).seen


def test_schedules_run_with_the_iterations_and_go_on_when_resumed(tiny_configs, tmp_path):
    expected = [(0.0, 3.0), (0.0, 2.5), (0.5, 2.0), (1.0, 1.5), (1.5, 1.0), (2.0, 0.5)]
    whole = tmp_path / 'whole'
    assert scheduled_run(tiny_configs, whole) == expected
    resumed = scheduled_run(
        tiny_configs, tmp_path / 'resumed', resume=True, load_from=str(whole / 'iter_3.pth')
    )
    assert resumed == expected[3:]


def runner_of(*losses: nn.Module, wrapped: bool = False) -> SimpleNamespace:
    """As much of a Runner as the hooks look at."""
    model = nn.Module()
    model.distill_losses = nn.ModuleList(losses)
    return SimpleNamespace(model=nn.DataParallel(model) if wrapped else model, iter=0, max_iters=8)


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize(
    'begin, end, expected',
    [
        (0, None, {0: 1.0, 2: 2.0, 7: 4.5, 8: 5.0, 100: 5.0}),
        (2, 6, {0: 1.0, 1: 1.0, 2: 1.0, 3: 2.0, 5: 4.0, 6: 5.0, 7: 5.0}),
        (4, 5, {0: 1.0, 4: 1.0, 5: 5.0, 6: 5.0}),  # a step
    ],
)
def test_values(wrapped, begin, end, expected):
    losses = BDDLoss(), BDDLoss(loss_name='loss_other')
    runner = runner_of(*losses, wrapped=wrapped)
    hook = LossScheduleHook('loss_other', 'reverse_weight', start=1, stop=5, begin=begin, end=end)
    hook.before_train(runner)
    for runner.iter, value in expected.items():
        hook.before_train_iter(runner, batch_idx=0)
        assert losses[1].reverse_weight == value
        assert losses[0].reverse_weight == 1


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'loss_name': 'bdd'}, "no distillation loss 'bdd'; it has loss_bdd, loss_feature$"),
        ({'setting': 'beta'}, "loss_bdd: BDDLoss has no number 'beta'; it has loss_weight, .*reverse_weight"),
        ({'setting': 'domain'}, "loss_bdd: BDDLoss has no number 'domain'"),
        ({'setting': 'mask_ignored'}, "loss_bdd: BDDLoss has no number 'mask_ignored'"),
        ({'loss_name': 'loss_feature'}, r'loss_feature: FeatureLoss has no number .* it has loss_weight\.'),
        ({'begin': 9}, r'begin=9 must come before end=8 \(the iterations of the training\)$'),
        ({'begin': 2, 'end': 2}, 'begin=2 must come before end=2$'),
    ],
)
def test_wrong_schedules_are_named(settings, message):
    defaults = {'loss_name': 'loss_bdd', 'setting': 'reverse_weight', 'start': 0, 'stop': 1}
    hook = HOOKS.build({'type': 'LossScheduleHook', **defaults, **settings})
    with pytest.raises(ConfigError, match=message):
        hook.before_train(runner_of(BDDLoss(), FeatureLoss(2, 3)))


def test_a_wrong_schedule_ends_in_one_line(monkeypatch, config, tmp_path):
    options = ['--cfg-options', 'custom_hooks.1.loss_name=loss_bdd', f'experiment_name={tmp_path.name}']
    message = complaint(monkeypatch, TRAIN, config, '--work-dir', tmp_path, *options)
    assert message.endswith("the model has no distillation loss 'loss_bdd'; it has loss_feature")


def test_a_plain_model_has_no_losses():
    runner = SimpleNamespace(model=nn.Linear(1, 1), _resume=True)
    hook, checkpoint = HOOKS.build({'type': 'LossStateHook'}), {}
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint == {'distill_losses': {}}
    hook.after_load_checkpoint(runner, checkpoint)
    with pytest.raises(ConfigError, match='it has none'):
        LossScheduleHook('loss_bdd', 'loss_weight', 0, 1).before_train(runner)


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
