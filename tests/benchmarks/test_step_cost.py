"""tools/benchmark.py at a size that says nothing about speed, but all of what else must hold."""

import importlib.util
import json
import re
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import ROOT, run

from bdd_seg.errors import ConfigError

TOOL = ROOT / 'tools/benchmark.py'
TEACHERS = ('', ', done plainly', ', bf16')
NAMES = {
    'steps': ['student alone', *(f'live teacher{ending}' for ending in TEACHERS)],
    'teacher': [f'teacher forward{ending}' for ending in TEACHERS],
    'loader': [
        'loader alone',
        'loader alone, with the cache',
        *(f'{kind}, data loading included' for kind in ('student alone', 'live teacher', 'cached teacher')),
    ],
    'loss': [
        f'{kind}, {domain}, 1x3x8x8'
        for kind in ('naive', 'balance_divergence')
        for domain in ('channel', 'pixel')
    ],
}


@pytest.fixture(scope='module')
def result(tiny_configs, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp('benchmark')
    output = run(
        TOOL, '--config', tiny_configs['distilled'], '--device', 'cpu', '--shape', 32, 64,
        '--repetitions', 1, '--loss-shapes', '1x3x8x8', '--out', out,
    )  # fmt: skip
    return {'out': out, 'output': output, **json.loads((out / 'benchmark.json').read_text())}


@pytest.fixture
def rows(result) -> dict[str, dict]:
    return {row['name']: row for row in result['rows']}


def test_every_part_has_its_rows(result, rows):
    for part, names in NAMES.items():
        assert sorted(row['name'] for row in result['rows'] if row['part'] == part) == sorted(names)
    assert all(name in result['output'] for name in rows)
    assert 'round 1 of 1' in result['output']
    assert 'random weights' in result['output']


def test_ratios_are_to_the_reference_of_the_same_round(rows):
    for row in rows.values():
        assert row['median_s'] > 0
        assert row['q1_s'] == row['median_s'] == row['q3_s']  # of one round
        assert row['ratio'] == pytest.approx(row['median_s'] / rows[row['reference']]['median_s'])
    assert rows['student alone']['ratio'] == 1
    assert {row['reference'] for row in rows.values() if row['part'] != 'loss'} == {'student alone'}


def test_the_teacher_answers_alike_however_it_runs(rows):
    differences = {
        ending: rows[f'teacher forward{ending}']['details']['largest difference of the logits']
        for ending in TEACHERS
    }
    assert differences[', done plainly'] == 0
    assert 0 < differences[''] < 1e-5
    assert differences[''] < differences[', bf16'] < 0.1


def test_the_loss_is_the_naive_one_in_less_memory(rows):
    for domain in ('channel', 'pixel'):
        naive, own = (rows[f'{kind}, {domain}, 1x3x8x8'] for kind in ('naive', 'balance_divergence'))
        assert own['details']['value off by'] < 1e-5
        assert own['details']['gradient off by'] < 1e-5
        assert own['peak_mib'] < naive['peak_mib']
        multiples = naive['details']['peak in multiples of the logits']
        assert multiples == pytest.approx(naive['peak_mib'] * 2**20 / (1 * 3 * 8 * 8 * 4))


@pytest.fixture(scope='module')
def benchmark():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location('benchmark', TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules['benchmark'] = module
    spec.loader.exec_module(module)
    return module


def test_the_peak_counts_what_lives_at_once(benchmark):
    mebi = 2**18  # float32
    before = torch.ones(mebi)

    def allocate() -> None:
        first = before + 1
        second = torch.cat([first, first])
        del first
        torch.cat([second, before])

    for _ in range(2):  # the second profile starts from zero again
        assert benchmark.peak_mib(benchmark.Case('steps', 'known', allocate), 'cpu') == pytest.approx(5)


def test_ratios_are_paired_by_round(benchmark):
    """A machine at half its speed for some rounds changes the times and not the ratio."""
    case = benchmark.Case('steps', 'paired', print, images=6, seconds=[3.0, 6.0, 3.0, 12.0, 6.0])
    row = benchmark.summary(case, np.array([2.0, 4.0, 2.0, 8.0, 4.0]), 1)
    assert (row.q1_s, row.median_s, row.q3_s) == (3, 6, 6)
    assert (row.ratio_q1, row.ratio, row.ratio_q3) == (1.5, 1.5, 1.5)
    assert row.details == {'images per second': 1}


def test_the_plot_is_a_picture_and_the_table_has_every_row(result, benchmark, monkeypatch, capsys):
    height, width = matplotlib.image.imread(result['out'] / 'benchmark.png').shape[:2]
    assert width == 990 and height > 500
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--table', str(result['out'] / 'benchmark.json')])
    benchmark.main()
    (head, rule, *lines), told = (
        part.splitlines() for part in capsys.readouterr().out.split('\n\n', maxsplit=1)
    )
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in (head, *lines)]
    assert cells[0] == ['part', 'what', 'ms (quartiles)', 'ratio (quartiles)', 'peak MiB', 'further']
    assert set(rule) == set('| :-')
    assert [row[:2] for row in cells[1:]] == [[row['part'], row['name']] for row in result['rows']]
    assert cells[1][2].startswith(f'{1000 * result["rows"][0]["median_s"]:.1f} (')
    assert cells[1][3] == '1.00 (1.00 to 1.00)'
    assert told[0].startswith('- Machine: ')
    assert f'threads {result["machine"]["threads"]}, torch {torch.__version__}, date 20' in told[0]
    assert told[1] == (
        '- Settings: --device cpu --shape 32 64 --batch 2 --repetitions 1 --only steps teacher loader loss '
        '--workers 0 --loss-shapes 1x3x8x8 --config distilled.py'
    )
    assert told[2:] == [f'- {note}' for note in result['notes']] and len(result['notes']) == 2
    assert '\n'.join(told) in result['output']


def test_help_shows_defaults_as_they_are_typed(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--help'])
    with pytest.raises(SystemExit):
        benchmark.parse_args()
    shown = re.findall(r'\(default: ([^)]*)\)', ' '.join(capsys.readouterr().out.split()))
    for default in ('256 512', '2', '7', 'steps teacher loader loss', '0', 'work_dirs/benchmark'):
        assert default in shown
    assert '2x19x64x128 2x19x512x1024' in shown
    assert not {'False', 'None'} & set(shown)


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(benchmark, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(benchmark, 'network_cases', None)
    for out in ('file', 'file/below'):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--device', 'cpu', '--out', str(tmp_path / out)])
        with pytest.raises(ConfigError, match=f'--out .*{out} cannot be written: '):
            benchmark.main()


def test_crops_that_the_network_cannot_run_are_told(benchmark, monkeypatch, tiny_configs, tmp_path):
    """Of another student, whose crops must be divisible by 16, and which says so."""
    backbone = dict(_delete_=True, type='UNet', base_channels=2, norm_cfg=dict(type='BN'))
    head = dict(in_channels=32, in_index=0)
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\n'
        f'model = dict(backbone={backbone}, decode_head={head}, auxiliary_head=None)'
    )
    arguments = ['--config', str(tmp_path / 'config.py'), '--device', 'cpu', '--only', 'steps']
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments, '--shape', '24', '32'])
    expected = '--shape 24 32: .*config.py cannot run crops of this size: .* divisible .* 16'
    with pytest.raises(ConfigError, match=expected):
        benchmark.network_cases(benchmark.parse_args(), tmp_path, [])


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (['--batch', '1'], '--batch must be at least 2, got 1'),
        (['--config', 'student'], "distils nothing: its model has the type 'EncoderDecoder'"),
        (['--shape', '0', '64', '--only', 'steps'], '--shape must be at least 1 1, got 0 64'),
        (
            ['--shape', '64', '-8'],
            '--shape must be at least 16 16, since the part loader draws scenes of twice that, got 64 -8',
        ),
        (
            ['--config', 'distilled', '--shape', '16', '9999'],
            '--shape: scenes are drawn at twice this size, and width must be from 32 to 8192',
        ),
    ],
)
def test_wrong_arguments_are_told(benchmark, monkeypatch, tiny_configs, tmp_path, arguments, expected):
    arguments = [str(tiny_configs.get(argument, argument)) for argument in arguments]
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments, '--device', 'cpu'])
    with pytest.raises(ConfigError, match=re.escape(expected)):
        benchmark.adapted_config(benchmark.parse_args(), tmp_path, [])


def test_a_file_that_is_no_result_is_told(benchmark, tmp_path):
    (tmp_path / 'other.json').write_text('{"rows": [{"name": 1}]}')
    for name in ('absent.json', 'other.json'):
        with pytest.raises(ConfigError, match=f'{name} is no result of this tool'):
            benchmark.read_results(tmp_path / name)


def test_the_readmes_table_is_that_of_the_committed_result():
    rows = json.loads((ROOT / 'benchmarks/results/cpu_2x3x256x512_float32.json').read_text())['rows']
    measured = {
        (f'{1000 * row["median_s"]:.0f} ({1000 * row["q1_s"]:.0f} to {1000 * row["q3_s"]:.0f})',
         f'{row["ratio"]:.2f}'): row['name']
        for row in rows
    }  # fmt: skip
    shown = re.findall(
        r'^\| ([^|]+) \| ([\d]+ \(\d+ to \d+\)) \| ([\d.]+) \|$', (ROOT / 'README.md').read_text(), re.M
    )
    assert [measured[time, ratio] for _, time, ratio in shown] == [
        'student alone',
        'live teacher, done plainly',
        'live teacher',
        'live teacher, bf16',
        'live teacher, compile',
        'student alone, data loading included',
        'cached teacher, data loading included',
    ]
