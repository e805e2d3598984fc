"""Schedules of a loss's settings: their values, through the tools and resumed, and wrong ones."""

import json
import math

import pytest
from helpers import TRAIN, build, complaint, logged, train
from mmengine.config import Config
from mmengine.logging import MessageHub

from bdd_seg.distill.schedule import Schedule, interpolate
from bdd_seg.errors import ConfigError
from bdd_seg.losses import BDDLoss, CWDLoss, KDLoss


def values_of(schedule, iterations, max_iters=8, loss=None) -> list[dict]:
    built = Schedule.of(loss or BDDLoss(), schedule, 'here')
    return [built.values(iteration, max_iters) for iteration in iterations]


def test_linear_over_the_whole_training_by_default():
    found = values_of({'reverse_weight': (0.0, 2.0)}, [0, 2, 7, 8, 100])
    assert found == [{'reverse_weight': value} for value in (0.0, 0.5, 1.75, 2.0, 2.0)]


def test_begin_and_end():
    found = values_of({'tau_forward': (4, 1), 'begin': 2, 'end': 5}, [0, 2, 3, 5, 7])
    assert found == [{'tau_forward': value} for value in (4, 4, 3, 1, 1)]


def test_cosine_is_flat_at_both_ends_and_halfway_in_the_middle():
    found = [interpolate(i, (0, 8), (1.0, 3.0), 'cosine') for i in range(9)]
    expected = [1 + 2 * math.sin(math.pi * i / 16) ** 2 for i in range(9)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[4] == pytest.approx(2)
    assert found[1] - found[0] < 0.4 * (found[5] - found[4])


def test_several_settings_share_a_span():
    [found] = values_of({'forward_weight': (1.0, 0.0), 'reverse_weight': [0.0, 7.0]}, [4])
    assert found == {'forward_weight': 0.5, 'reverse_weight': 3.5}


def test_warm_up_grows_from_zero_to_the_whole_loss():
    schedule = Schedule.of(KDLoss(), {'warmup': 4}, 'here')
    assert [schedule.warmup_factor(i) for i in (0, 1, 4, 5)] == [0, 0.25, 1, 1]
    assert schedule.values(1, max_iters=None) == {}
    assert Schedule.of(KDLoss(), {'loss_weight': (8.0, 0.0)}, 'here').warmup_factor(0) == 1


@pytest.mark.parametrize(
    'schedule, message',
    [
        (['reverse_weight'], r'here must be a dict such as dict\(reverse_weight=\(0.0, 1.0\)\), got'),
        (
            {'beta': (0, 1)},
            "here: BDDLoss has no number 'beta'; it has tau_forward, .*reverse_weight, loss_weight",
        ),
        ({'domain': (0, 1)}, "no number 'domain'"),
        ({'standardize': (0, 1)}, "no number 'standardize'"),
        ({'reverse_weight': 1.0}, r'here.reverse_weight must be two numbers, .* got 1.0'),
        ({'reverse_weight': (0, 1, 2)}, r'must be two numbers, .* got \(0, 1, 2\)'),
        ({'reverse_weight': ('0', 1)}, 'must be two numbers'),
        (
            {'reverse_weight': (0, 1), 'curve': 'step'},
            r"here.curve must be one of \('linear', 'cosine'\), got",
        ),
        ({'reverse_weight': (0, 1), 'begin': 0.5}, 'here.begin must be a number of iterations, got 0.5'),
        ({'warmup': None}, 'here.warmup must be a number of iterations, got None'),
        ({'warmup': -5}, 'here.warmup must be a number of iterations, got -5'),
        ({'reverse_weight': (0, math.nan)}, 'must be two numbers'),
        ({'reverse_weight': (False, 1)}, 'must be two numbers'),
        ({'ignore_index': (255, 1)}, "no number 'ignore_index'"),
        ({'reverse_weight': (0, 1), 'begin': 2, 'end': 2}, '^here: begin=2 must come before end=2$'),
    ],
)
def test_wrong_schedules(schedule, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.of(BDDLoss(), schedule, 'here')


@pytest.mark.parametrize(
    'schedule, max_iters, message',
    [
        ({'begin': 9}, 8, r'begin=9 must come before end=8 \(the iterations of the training\)$'),
    ],
)
def test_a_span_without_length(schedule, max_iters, message):
    with pytest.raises(ConfigError, match=message):
        values_of({'reverse_weight': (0, 1), **schedule}, [0], max_iters)


@pytest.mark.parametrize('name', ['tau', 'tau_forward'])
def test_the_reverse_temperature_follows_where_it_is_not_given(name):
    loss = CWDLoss(reverse_weight=1.0)
    for value in Schedule.of(loss, {name: (4.0, 1.0)}, 'here').values(4, 8).values():
        setattr(loss, name, value)
    assert loss.temperatures == (2.5, 2.5)
    loss = CWDLoss(reverse_weight=1.0, tau_reverse=3.0)
    loss.tau = 2.0
    assert loss.temperatures == (2.0, 3.0)


SCHEDULED = """
_base_ = {base!r}
model = dict(distill_losses=[
    dict(type='KDLoss', forward_weight=0.0, reverse_weight=1.0, schedule=dict(warmup=3)),
    dict(type='CWDLoss', schedule=dict(loss_weight=(2.0, 0.0), begin=3, end=4))])
log_processor = dict(window_size=1)
"""


def test_the_tools_follow_it_and_a_resumed_run_goes_on(tiny_configs, tmp_path):
    config = tmp_path / 'scheduled.py'
    config.write_text(SCHEDULED.format(base=str(tiny_configs['distilled'])))
    train(config, tmp_path / 'whole')
    losses = [(log['distill.loss_kd'], log['distill.loss_cwd']) for log in logged(tmp_path / 'whole')]
    assert [kd == 0 for kd, _ in losses] == [True, *[False] * 5]
    assert [cwd == 0 for _, cwd in losses] == [*[False] * 4, True, True]
    train(config, tmp_path / 'cut', '--cfg-options', 'train_cfg.max_iters=3')
    train(config, tmp_path / 'cut', '--resume')
    resumed = [(log['distill.loss_kd'], log['distill.loss_cwd']) for log in logged(tmp_path / 'cut')]
    assert json.dumps(resumed) == json.dumps(losses)


def test_a_wrong_schedule_ends_in_one_line(monkeypatch, tiny_configs, tmp_path):
    config = tmp_path / 'scheduled.py'
    config.write_text(SCHEDULED.format(base=str(tiny_configs['distilled'])).replace('warmup', 'warm_up'))
    message = complaint(monkeypatch, TRAIN, config, '--work-dir', tmp_path / 'run')
    assert "model.distill_losses.0.schedule: KDLoss has no number 'warm_up'" in message
    assert message.endswith('Did you mean warmup?')


def test_without_a_runner_the_first_values_hold(tiny_configs, batch):
    MessageHub.get_instance('schedule of no runner')
    loss = {'type': 'BDDLoss', 'schedule': {'reverse_weight': (0.25, 1.0)}}
    model = build(Config.fromfile(tiny_configs['distilled']), distill_losses=[loss])
    model.train().loss(*batch)
    assert model.distill_losses[0].reverse_weight == 0.25
