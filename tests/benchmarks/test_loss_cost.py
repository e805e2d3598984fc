"""benchmarks/loss_cost.py at a size that says nothing about speed, but shows everything else."""

import json
import re
import sys

import loss_cost
import pytest
from helpers import ROOT, run

from bdd_seg import losses
from bdd_seg.errors import ConfigError

SHAPE = '2x3x8x16'
METHODS = [name for table in loss_cost.METHODS.values() for name in table]


@pytest.fixture(scope='module')
def result(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp('loss_cost')
    sizes = ['--shapes', SHAPE, '--channels', 4, 6]
    arguments = ['--device', 'cpu', *sizes, '--step', '--repetitions', 1, '--out', out]
    output = run(ROOT / 'benchmarks/loss_cost.py', *arguments)
    return {'output': output, 'out': out, **json.loads((out / 'loss_cost.json').read_text())}


@pytest.fixture
def rows(result) -> dict[str, dict]:
    return {row['name']: row for row in result['rows']}


@pytest.fixture
def parse(monkeypatch):
    def parse(*arguments: str):
        monkeypatch.setattr(sys, 'argv', ['loss_cost.py', '--device', 'cpu', *arguments])
        return loss_cost.parse_args()

    return parse


def test_every_class_of_the_package_is_measured():
    classes = [getattr(losses, name) for name in losses.__all__]
    concrete = {
        one.__name__
        for one in classes
        if isinstance(one, type) and issubclass(one, losses.DistillLoss) and not one.__abstractmethods__
    }
    assert set(loss_cost.CHOICES) == concrete | {'balance_divergence'}


def test_every_form_and_method_has_a_row(result, rows):
    forms = [f'{form}, {domain}' for domain in ('pixel', 'channel') for form in ('plain', 'fused')]
    assert list(rows) == [f'{name}, {SHAPE}' for name in (*forms, *METHODS, 'step of PSPNet-R18')]
    for name in ('BDDLoss', 'DKDLoss', 'plain, pixel'):
        assert rows[f'{name}, {SHAPE}']['part'] == 'loss'
    for name in ('PairwiseLoss, code', 'MGDLoss'):
        assert rows[f'{name}, {SHAPE}']['part'] == 'feature loss'
    assert all(name in result['output'] for name in rows)
    assert 'round 1 of 1' in result['output']
    assert (result['out'] / 'loss_cost.png').stat().st_size > 0


def test_ratios_are_to_the_plain_form_of_the_same_domain(rows):
    for domain in ('channel', 'pixel'):
        plain, fused = (rows[f'{form}, {domain}, {SHAPE}'] for form in ('plain', 'fused'))
        assert plain['reference'] == fused['reference'] == plain['name']
        assert plain['ratio'] == 1
        assert fused['ratio'] == pytest.approx(fused['median_s'] / plain['median_s'])


def test_ratios_of_methods_are_to_bdd_on_logits_of_the_same_shape(rows):
    reference = rows[f'BDDLoss, {SHAPE}']
    for name in METHODS:
        row = rows[f'{name}, {SHAPE}']
        assert row['reference'] == reference['name']
        assert row['ratio'] == pytest.approx(row['median_s'] / reference['median_s'])


def test_the_fused_form_is_the_plain_one_in_less_memory(rows):
    for domain in ('channel', 'pixel'):
        plain, fused = (rows[f'{form}, {domain}, {SHAPE}'] for form in ('plain', 'fused'))
        assert fused['details']['value off by'] < 1e-5
        assert fused['details']['gradient off by'] < 1e-5
        assert fused['peak_mib'] < plain['peak_mib']
        multiples = plain['details']['peak in multiples of the logits']
        assert multiples == pytest.approx(plain['peak_mib'] * 2**20 / (2 * 3 * 8 * 16 * 4))


def test_the_share_of_a_step_is_of_the_student_with_such_logits(rows):
    step = rows[f'step of PSPNet-R18, {SHAPE}']
    assert '% of a step' not in step['details']
    for row in rows.values():
        if row is not step:
            assert row['details']['% of a step'] == pytest.approx(100 * row['median_s'] / step['median_s'])


def test_weights_and_buffers_are_told_of_losses_that_are_trained(rows):
    state = {name: row['details'].get('MiB of weights and buffers') for name, row in rows.items()}
    trained = {name.split(',')[0] for name, size in state.items() if size is not None}
    assert trained == {'FeatureLoss', 'CIRKDMemoryLoss', 'MGDLoss'}
    assert state[f'FeatureLoss, mse, {SHAPE}'] == (4 * 6 + 6) * 4 / 2**20
    assert state[f'CIRKDMemoryLoss, {SHAPE}'] > 19 * 22_000 * 6 * 4 / 2**20  # the queues


def test_the_settings_can_be_typed_again(result):
    settings = f'--shapes {SHAPE} --channels 4 6 --step --device cpu --repetitions 1'
    assert f'- Settings: {settings}\n' in result['output']
    assert "- The student's features have 4 channels, the teacher's 6.\n" in result['output']


def test_methods_are_measured_beside_their_reference(parse):
    sizes = ('--shapes', SHAPE, '--channels', '4', '6')
    cases = loss_cost.build_cases(parse(*sizes, '--methods', 'PairwiseLoss', 'KDLoss'))
    names = ['BDDLoss', 'KDLoss', 'PairwiseLoss, paper', 'PairwiseLoss, code']
    assert [case.name for case in cases] == [f'{name}, {SHAPE}' for name in names]
    cases = loss_cost.build_cases(parse(*sizes, '--methods', 'balance_divergence'))
    assert [case.name.split(',')[0] for case in cases] == ['plain', 'fused'] * 2


def test_a_cpu_takes_the_step_of_the_first_shape_alone(parse):
    shapes = (SHAPE, '2x3x16x16')
    args = parse('--shapes', *shapes, '--step', '--methods', 'BDDLoss')
    cases = loss_cost.build_cases(args)
    expected = [('step', SHAPE), ('loss', SHAPE), ('loss', shapes[1])]
    assert [(case.part, case.name.split(', ')[-1]) for case in cases] == expected


def test_labels_are_squares_some_of_which_are_ignored():
    labels = loss_cost.random_labels((8, 5, 70, 130))
    assert labels.shape == (8, 70, 130)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4, 255}
    assert 0.05 < (labels == 255).float().mean() < 0.15
    for y, x in ((0, 0), (8, 120), (64, 128)):
        assert (labels[:, y : y + 8, x : x + 8] == labels[:, y : y + 1, x : x + 1]).all()


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (['--channels', '4', '0'], '--channels must be at least 1 1, got 4 0'),
        (['--step', '--shapes', '2x3x8x8', '1x3x8x8'], 'batch of at least 2.* got --shapes 2x3x8x8 1x3x8x8'),
    ],
)
def test_wrong_sizes_are_told(parse, arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        parse(*arguments)


def test_an_unknown_method_is_told_with_those_there_are(parse, capsys):
    with pytest.raises(SystemExit):
        parse('--methods', 'ADLoss')
    error = capsys.readouterr().err
    assert 'ADLoss' in error and 'MGDLoss' in error


@pytest.mark.parametrize('text', ['3x8x8', '1x3x8x0', '1x3x8x-8', '1,3,8,8'])
def test_a_shape_that_is_none_is_told(monkeypatch, capsys, text):
    monkeypatch.setattr(sys, 'argv', ['loss_cost.py', '--shapes', text])
    with pytest.raises(SystemExit):
        loss_cost.parse_args()
    assert f"'{text}' is no shape such as 2x19x64x128" in capsys.readouterr().err


def test_help_shows_defaults_as_they_are_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['loss_cost.py', '--help'])
    with pytest.raises(SystemExit):
        loss_cost.parse_args()
    shown = re.findall(r'\(default: ([^)]*)\)', ' '.join(capsys.readouterr().out.split()))
    shapes = '2x19x64x128 8x19x64x128 2x19x128x256 8x19x128x256'
    assert {shapes, '128 512', '7', 'work_dirs/benchmark'} < set(shown)
    assert not {'False', 'None'} & set(shown)
