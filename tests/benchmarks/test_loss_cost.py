"""benchmarks/loss_cost.py at a size that says nothing about speed, but shows everything else."""

import json
import re
import sys

import loss_cost
import pytest
from helpers import ROOT, run


@pytest.fixture(scope='module')
def result(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp('loss_cost')
    arguments = ['--device', 'cpu', '--shapes', '1x3x8x8', '--repetitions', 1, '--out', out]
    output = run(ROOT / 'benchmarks/loss_cost.py', *arguments)
    return {'output': output, 'out': out, **json.loads((out / 'loss_cost.json').read_text())}


@pytest.fixture
def rows(result) -> dict[str, dict]:
    return {row['name']: row for row in result['rows']}


def test_every_form_has_a_row_in_each_domain(result, rows):
    names = [f'{form}, {domain}, 1x3x8x8' for domain in ('pixel', 'channel') for form in ('plain', 'fused')]
    assert list(rows) == names
    assert {row['part'] for row in rows.values()} == {'loss'}
    assert all(name in result['output'] for name in names)
    assert 'round 1 of 1' in result['output']
    assert (result['out'] / 'loss_cost.png').stat().st_size > 0


def test_ratios_are_to_the_plain_form_of_the_same_domain(rows):
    for domain in ('channel', 'pixel'):
        plain, fused = (rows[f'{form}, {domain}, 1x3x8x8'] for form in ('plain', 'fused'))
        assert plain['reference'] == fused['reference'] == plain['name']
        assert plain['ratio'] == 1
        assert fused['ratio'] == pytest.approx(fused['median_s'] / plain['median_s'])


def test_the_fused_form_is_the_plain_one_in_less_memory(rows):
    for domain in ('channel', 'pixel'):
        plain, fused = (rows[f'{form}, {domain}, 1x3x8x8'] for form in ('plain', 'fused'))
        assert fused['details']['value off by'] < 1e-5
        assert fused['details']['gradient off by'] < 1e-5
        assert fused['peak_mib'] < plain['peak_mib']
        multiples = plain['details']['peak in multiples of the logits']
        assert multiples == pytest.approx(plain['peak_mib'] * 2**20 / (1 * 3 * 8 * 8 * 4))


def test_the_settings_can_be_typed_again(result):
    assert '- Settings: --shapes 1x3x8x8 --device cpu --repetitions 1\n' in result['output']


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
    assert {'2x19x64x128 2x19x512x1024', '7', 'work_dirs/benchmark'} < set(shown)
    assert not {'False', 'None'} & set(shown)
