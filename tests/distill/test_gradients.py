"""Factors that give losses' gradients a chosen norm."""

import pytest
import torch
from helpers import TRAIN, build, complaint, logged, train
from mmengine.config import Config
from torch import nn
from torch.utils.checkpoint import checkpoint

from bdd_seg.distill import gradients
from bdd_seg.distill.gradients import GradientBalance, gradient_norm
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

LOSSES = [
    {'type': 'BDDLoss', 'loss_weight': 100.0},
    {
        'type': 'FeatureLoss',
        'loss_weight': 1e-3,
        'student_tap': 'backbone.layer4',
        'teacher_tap': 'backbone.layer4',
    },
]


def test_the_norm_is_that_of_all_parameters_gradients():
    weights = [nn.Parameter(torch.tensor([3.0, 0.0])), nn.Parameter(torch.tensor([1.0]))]
    unused = nn.Parameter(torch.ones(2))
    loss = weights[0].square().sum() / 2 + 4 * weights[1].sum()
    assert gradient_norm(loss, [*weights, unused]).item() == 5
    assert gradient_norm(loss, [unused]).item() == 0
    assert gradient_norm(torch.tensor(2.0), weights).item() == 0
    loss.backward()  # the graph is still there, and no gradient was accumulated
    assert weights[0].grad.tolist() == [3, 0]


@pytest.mark.parametrize('gradient', [2.0**-30, 2.0**-20, 1.0, 2.0**10])
def test_a_norm_is_right_in_float16_too(gradient):
    weight = nn.Parameter(torch.ones(4))
    loss = gradient * weight.half().float().sum()
    assert gradient_norm(loss, [weight]).item() == 2 * gradient  # 2**-30 is 0 in float16


def test_a_norm_that_is_not_finite_stays_so():
    weight = nn.Parameter(torch.ones(1))
    assert gradient_norm(float('inf') * weight.sum(), [weight]).item() == float('inf')


def test_all_processes_take_the_same_number_of_backward_passes(monkeypatch):
    """Another process overflows at the first scale: this one goes on to the next with it."""
    finite_elsewhere, norms = iter([0.0, 1.0, 0.0, 1.0]), []

    def all_reduce(tensor, op):
        assert op == 'min'
        norms.append(tensor.clone())
        tensor.copy_(torch.minimum(tensor, torch.tensor(next(finite_elsewhere))))

    monkeypatch.setattr(gradients, 'all_reduce', all_reduce)
    weight = nn.Parameter(torch.ones(4))
    assert gradient_norm(weight.sum(), [weight]).item() == 2
    without_gradient = torch.tensor(2.0)  # takes part all the same
    assert gradient_norm(without_gradient, [weight]).item() == 0
    assert norms == [1.0] * 4


def test_factors_bring_each_norm_to_the_ratio():
    weight = nn.Parameter(torch.ones(4))
    losses = {'a': 10 * weight.sum(), 'b': 0.1 * weight.sum()}
    balance = GradientBalance(0.5)
    balanced = balance.balance(2 * weight.sum(), losses, [weight], {})
    assert balance.factors == pytest.approx({'a': 0.1, 'b': 10})
    assert {name: loss.item() for name, loss in balanced.items()} == pytest.approx({'a': 4, 'b': 4})


def test_a_losss_own_layers_are_part_of_its_gradient():
    weight, layer = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    balance = GradientBalance(1.0)
    balance.balance(10 * weight.sum(), {'a': 3 * weight.sum() + 4 * layer.sum()}, [weight], {'a': [layer]})
    assert balance.factors == pytest.approx({'a': 2})


def test_a_step_without_a_gradient_is_logged_once_and_the_next_step_chooses(monkeypatch):
    said = []
    monkeypatch.setattr('bdd_seg.distill.gradients.print_log', lambda message, *_: said.append(message))
    weight = nn.Parameter(torch.ones(4))
    balance, own = GradientBalance(1.0), weight.sum()
    for _ in range(2):
        assert balance.balance(own, {'a': 0 * own, 'b': 4 * own}, [weight], {})['a'] == 0
        assert balance.factors == {'b': 0.25}
    assert len(said) == 2
    assert said[0] == "a is not balanced yet: the norm of its gradient is 0, that of the student's own loss 2"
    balance.balance(own, {'a': 8 * own, 'b': 100 * own}, [weight], {})
    assert balance.factors == pytest.approx({'a': 0.125, 'b': 0.25})


def test_activation_checkpointing_is_refused():
    weight = nn.Parameter(torch.ones(2))
    loss = checkpoint(torch.sum, weight, use_reentrant=True)
    with pytest.raises(ConfigError, match='model.balance_gradients: .*with_cp=False'):
        GradientBalance(1.0).balance(loss, {'a': loss}, [weight], {})


def test_the_first_step_chooses_and_the_others_keep(tiny_configs, batch):
    torch.manual_seed(0)
    model = build(Config.fromfile(tiny_configs['distilled']), distill_losses=LOSSES, balance_gradients=0.5)
    model.train()
    student = [p for name, p in model.named_parameters() if not name.startswith('distill_losses')]
    losses = model.loss(*batch)
    own, _ = model.parse_losses({k: v for k, v in losses.items() if not k.startswith('distill.')})
    expected = 0.5 * gradient_norm(own, student).item()
    layers = {'distill.loss_bdd': [], 'distill.loss_feature': [*model.distill_losses[1].parameters()]}
    for name, own_layers in layers.items():
        assert gradient_norm(losses[name], [*student, *own_layers]).item() == pytest.approx(
            expected, rel=1e-4
        )
    chosen = dict(model.gradient_balance.factors)
    model.parse_losses(losses)[0].backward()
    with torch.no_grad():
        for parameter in student:
            parameter.mul_(0.9)
    model.loss(*batch)
    assert model.gradient_balance.factors == chosen


def test_resuming_keeps_what_was_chosen(tiny_configs, tmp_path):
    config = tmp_path / 'balanced.py'
    config.write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\n'
        f'model = dict(balance_gradients=1.0, distill_losses={LOSSES!r})\n'
    )
    output = train(config, tmp_path / 'whole')
    factors = load_checkpoint(tmp_path / 'whole/iter_6.pth')['distill_factors']
    assert factors.keys() == {'distill.loss_bdd', 'distill.loss_feature'}
    assert factors['distill.loss_bdd'] < 1 < factors['distill.loss_feature']
    assert f'distill.loss_bdd × {factors["distill.loss_bdd"]:.4g}, so that its gradient has 1 times' in output
    train(config, tmp_path / 'cut', '--cfg-options', 'train_cfg.max_iters=3')
    output = train(config, tmp_path / 'cut', '--resume')
    assert 'so that its gradient' not in output
    [*_, log] = sorted((tmp_path / 'cut').glob('*/*.log'))
    assert "The checkpoint's factors of balanced gradients: distill.loss_bdd × 0." in log.read_text()
    assert load_checkpoint(tmp_path / 'cut/iter_6.pth')['distill_factors'] == factors
    names = ('distill.loss_bdd', 'distill.loss_feature', 'loss')
    whole, cut = (
        [[log[name] for name in names] for log in logged(tmp_path / run)] for run in ('whole', 'cut')
    )
    assert cut == whole


@pytest.mark.parametrize('value', [0, -1.0, "'auto'"])
def test_a_wrong_ratio_ends_in_one_line(monkeypatch, tiny_configs, tmp_path, value):
    arguments = ['--work-dir', tmp_path / 'run', '--cfg-options', f'model.balance_gradients={value}']
    message = complaint(monkeypatch, TRAIN, tiny_configs['distilled'], *arguments)
    assert 'model.balance_gradients must be a positive number, got' in message


def test_a_loss_that_warms_up_is_balanced_as_it_will_be(tiny_configs, batch):
    chosen = []
    for extra in ({}, {'schedule': {'warmup': 100}}):
        torch.manual_seed(0)
        losses = [{**LOSSES[0], **extra}]
        cfg = Config.fromfile(tiny_configs['distilled'])
        model = build(cfg, distill_losses=losses, balance_gradients=1.0).train()
        torch.manual_seed(1)  # dropout
        value = model.loss(*batch)['distill.loss_bdd'].item()
        chosen.append((value > 0, model.gradient_balance.factors['distill.loss_bdd']))
    assert chosen[0][1] == chosen[1][1] < 1
    assert [positive for positive, _ in chosen] == [True, False]


@pytest.mark.parametrize(
    'loss',
    [
        {'type': 'CWDLoss', 'tau': 1.0, 'schedule': {'forward_weight': (0.0, 1.0)}},
        {'type': 'BDDLoss', 'schedule': {'loss_weight': (0, 3)}},
    ],
)
def test_a_loss_that_a_schedule_makes_0_cannot_be_balanced(tiny_configs, batch, loss):
    """The second step would balance a tiny share of it: the loss would end far too large."""
    cfg = Config.fromfile(tiny_configs['distilled'])
    model = build(cfg, distill_losses=[loss], balance_gradients=1.0).train()
    with pytest.raises(
        ConfigError, match=r'schedule of distill\.loss_\w+ begins at 0.*dict\(warmup=ITERATIONS\)'
    ):
        model.loss(*batch)


def test_a_schedule_in_which_a_part_begins_at_0_is_balanced(tiny_configs, batch):
    loss = {'type': 'BDDLoss', 'schedule': {'reverse_weight': (0.0, 1.0)}}
    model = build(Config.fromfile(tiny_configs['distilled']), distill_losses=[loss], balance_gradients=1.0)
    model.train().loss(*batch)
    assert model.gradient_balance.factors.keys() == {'distill.loss_bdd'}
