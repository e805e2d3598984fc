"""benchmarks/step_cost.py at a size that says nothing about speed, but shows everything else."""

import json
import re
import sys

import matplotlib.image
import pytest
import step_cost
import torch
from helpers import ROOT, run

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config

TEACHERS = ('', ', done plainly', ', bf16')
NAMES = {
    'steps': ['student alone', *(f'live teacher{ending}' for ending in TEACHERS), 'recorded teacher'],
    'teacher': [f'teacher forward{ending}' for ending in TEACHERS],
    'loader': [
        'loader alone',
        'loader alone, with the cache',
        *(f'{kind}, data loading included' for kind in ('student alone', 'live teacher', 'cached teacher')),
    ],
}


@pytest.fixture(scope='module')
def result(tiny_configs, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp('step_cost')
    arguments = ['--config', tiny_configs['distilled'], '--device', 'cpu', '--shape', 32, 64]
    output = run(ROOT / 'benchmarks/step_cost.py', *arguments, '--repetitions', 1, '--out', out)
    return {'out': out, 'output': output, **json.loads((out / 'step_cost.json').read_text())}


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
    assert {row['reference'] for row in rows.values()} == {'student alone'}


def test_the_teacher_answers_alike_however_it_runs(rows):
    differences = {
        ending: rows[f'teacher forward{ending}']['details']['largest difference of the logits']
        for ending in TEACHERS
    }
    assert differences[', done plainly'] == 0
    assert 0 < differences[''] < 1e-5
    assert differences[''] < differences[', bf16'] < 0.1


def test_the_plot_is_a_picture_and_the_table_has_every_row(result, monkeypatch, capsys):
    height, width = matplotlib.image.imread(result['out'] / 'step_cost.png').shape[:2]
    assert width == 990 and height > 500
    monkeypatch.setattr(sys, 'argv', ['step_cost.py', '--table', str(result['out'] / 'step_cost.json')])
    step_cost.main()
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
        '- Settings: --shape 32 64 --batch 2 --only steps teacher loader --workers 0 --device cpu '
        '--repetitions 1 --config distilled.py'
    )
    assert told[2:] == [f'- {note}' for note in result['notes']] and len(result['notes']) == 2
    assert '\n'.join(told) in result['output']


def test_help_shows_defaults_as_they_are_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['step_cost.py', '--help'])
    with pytest.raises(SystemExit):
        step_cost.parse_args()
    shown = re.findall(r'\(default: ([^)]*)\)', ' '.join(capsys.readouterr().out.split()))
    for default in ('256 512', '2', '7', 'steps teacher loader', '0', 'work_dirs/benchmark'):
        assert default in shown
    assert not {'False', 'None'} & set(shown)


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(step_cost, 'build_cases', None)
    for out, problem in (('file', 'is a file'), ('file/below', 'cannot be made: Not a directory')):
        monkeypatch.setattr(sys, 'argv', ['step_cost.py', '--device', 'cpu', '--out', str(tmp_path / out)])
        with pytest.raises(ConfigError, match=f'--out .*{out}. {problem}'):
            step_cost.main()


def test_crops_that_the_network_cannot_run_are_told(monkeypatch, tiny_configs, tmp_path):
    """Of another student, whose crops must be divisible by 16, and which says so."""
    backbone = dict(_delete_=True, type='UNet', base_channels=2, norm_cfg=dict(type='BN'))
    head = dict(in_channels=32, in_index=0)
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\n'
        f'model = dict(backbone={backbone}, decode_head={head}, auxiliary_head=None)'
    )
    arguments = ['--config', str(tmp_path / 'config.py'), '--device', 'cpu', '--only', 'steps']
    monkeypatch.setattr(sys, 'argv', ['step_cost.py', *arguments, '--shape', '24', '32'])
    expected = '--shape 24 32: .*config.py cannot run crops of this size: .* divisible .* 16'
    with pytest.raises(ConfigError, match=expected):
        step_cost.build_cases(step_cost.parse_args(), tmp_path)


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
def test_wrong_arguments_are_told(monkeypatch, tiny_configs, tmp_path, arguments, expected):
    arguments = [str(tiny_configs.get(argument, argument)) for argument in arguments]
    monkeypatch.setattr(sys, 'argv', ['step_cost.py', *arguments, '--device', 'cpu'])
    with pytest.raises(ConfigError, match=re.escape(expected)):
        step_cost.adapt_config(step_cost.parse_args(), tmp_path)


def test_the_guides_table_is_that_of_the_committed_result():
    rows = json.loads((ROOT / 'benchmarks/results/cpu_2x3x256x512_float32.json').read_text())['rows']
    measured = {}
    for row in rows:
        median, q1, q3 = (f'{1000 * row[key]:.0f}' for key in ('median_s', 'q1_s', 'q3_s'))
        measured[f'{median} ({q1} to {q3})', f'{row["ratio"]:.2f}'] = row['name']
    guide = (ROOT / 'docs/teacher_price.md').read_text()
    shown = re.findall(r'^\| ([^|]+) \| ([\d]+ \(\d+ to \d+\)) \| ([\d.]+) \|$', guide, re.M)
    assert [measured[time, ratio] for _, time, ratio in shown] == [
        'student alone',
        'live teacher, done plainly',
        'live teacher',
        'live teacher, bf16',
        'live teacher, compile',
        'student alone, data loading included',
        'cached teacher, data loading included',
    ]


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tiny_configs, tmp_path):
    """The command's output stays where the result would be, since the other files are temporary."""
    arguments = ['--config', str(tiny_configs['distilled']), '--device', 'cpu', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['step_cost.py', *arguments])
    script = 'import sys; print("loading"); sys.exit("error: broken")'
    monkeypatch.setattr(step_cost, 'command_line', lambda *words: [sys.executable, '-c', script, *words])
    cfg = load_config(tiny_configs['distilled'])
    with pytest.raises(ConfigError, match=r'failed \(error: broken\); see .*cache\.log'):
        step_cost.write_cache(cfg, tmp_path, step_cost.parse_args())
    assert sorted((tmp_path / 'cache.log').read_text().splitlines()) == ['error: broken', 'loading']
