"""Timing, peak memory and result files of the benchmarks."""

import argparse
import json
import subprocess
import sys

import matplotlib.image
import pytest
import torch
from harness import (
    Case,
    Result,
    Row,
    add_shared_arguments,
    check_shared_arguments,
    format_setting,
    measure,
    measure_peak_mib,
    measure_seconds,
    print_saved_result,
    read_result,
    save_result,
    summarise,
)
from helpers import ROOT, run

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.installation import PINS

SHIPPED = ROOT / 'benchmarks/results/cpu_2x3x256x512_float32.json'


def case(name: str, run, **settings) -> Case:
    return Case('steps', name, run, reference='first', **settings)


def test_the_peak_counts_what_lives_at_once():
    mebi = 2**18  # float32
    before = torch.ones(mebi)

    def allocate() -> None:
        first = before + 1
        second = torch.cat([first, first])
        del first
        torch.cat([second, before])

    for _ in range(2):  # the second profile starts from zero again
        assert measure_peak_mib(case('known', allocate), 'cpu') == pytest.approx(5)


def test_ratios_are_paired_by_round():
    """A machine at half its speed for some rounds changes the times and not the ratio."""
    seconds, reference = [3.0, 6.0, 3.0, 12.0, 6.0], [2.0, 4.0, 2.0, 8.0, 4.0]
    row = summarise(case('paired', print, images=6, logits_mib=0.5), seconds, reference, 2)
    assert (row.q1_s, row.median_s, row.q3_s) == (3, 6, 6)
    assert (row.ratio_q1, row.ratio, row.ratio_q3) == (1.5, 1.5, 1.5)
    assert row.details == {'images per second': 1, 'peak in multiples of the logits': 4}


def test_a_round_runs_every_case_once(capsys):
    calls = []
    cases = [case(name, lambda name=name: calls.append(name)) for name in ('first', 'second')]
    rows = measure(cases, 'cpu', repetitions=2)
    # Two to warm up and one for the memory, then the rounds.
    assert calls == ['first'] * 3 + ['second'] * 3 + ['first', 'second'] * 2
    assert [(row.name, row.reference) for row in rows] == [('first', 'first'), ('second', 'first')]
    assert rows[0].ratio == 1
    assert 'round 2 of 2, 0 s left' in capsys.readouterr().out


def test_cases_timed_with_one_seed_load_the_same_batches():
    batches = []
    loader = {
        'batch_size': 4,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': True},
        'dataset': range(10),
    }
    loading = case('loading', lambda iterator: batches.append(next(iterator)), loader=loader)
    for seed in (1, 1, 2):
        measure_seconds(loading, 'cpu', seed)
    first, again, other = batches
    assert len(first) == 4 and first == again != other


@pytest.fixture
def result() -> Result:
    quick = Row('steps', 'quick', 0.5, 0.25, 1.0, 'quick', 1.0, 1.0, 1.0, 8.0, {})
    slow = Row('teacher', 'slow', 2.0, 1.5, 2.5, 'quick', 4.0, 3.0, 6.0, 16.0, {'images': 250.4, 'off': 1e-7})
    machine = {'cpu': 'Some Processor', 'gpu': None}
    return Result(machine, {'shape': [32, 64], 'amp': False, 'compile': True}, ['A note.'], [quick, slow])


def test_a_result_is_read_as_it_was_saved(result, tmp_path, capsys):
    save_result(result, tmp_path, 'cost', 'Title', 'time relative to a quick one')
    assert read_result(tmp_path / 'cost.json') == result
    printed = capsys.readouterr().out
    assert 'quick' in printed and 'slow' in printed
    assert printed.endswith(f'\n\n{tmp_path}: cost.json, cost.png\n')
    height, width = matplotlib.image.imread(tmp_path / 'cost.png').shape[:2]
    assert width == 990 and height == 209


def test_the_table_has_the_rows_of_the_parts_asked_for(result, tmp_path, capsys):
    save_result(result, tmp_path, 'cost', 'Title', 'time relative to a quick one')
    capsys.readouterr()
    print_saved_result(tmp_path / 'cost.json', ('teacher', 'loader'))
    head, rule, row, empty, *lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in (head, row)]
    assert cells == [
        ['part', 'what', 'ms (quartiles)', 'ratio (quartiles)', 'peak MiB', 'further'],
        [
            'teacher',
            'slow',
            '2000.0 (1500.0 to 2500.0)',
            '4.00 (3.00 to 6.00)',
            '16.0',
            'images 250, off 1e-07',
        ],
    ]
    assert set(rule) == set('| :-') and empty == ''
    assert lines == ['- Machine: cpu Some Processor', '- Settings: --shape 32 64 --compile', '- A note.']


def test_a_file_that_is_no_result_is_told(tmp_path):
    (tmp_path / 'other.json').write_text('{"rows": [{"name": 1}]}')
    for name in ('absent.json', 'other.json'):
        with pytest.raises(ConfigError, match=f'{name} is no result of this tool'):
            read_result(tmp_path / name)


def test_a_result_without_a_row_of_the_tool_is_told(result, tmp_path):
    save_result(result, tmp_path, 'cost', 'Title', 'time relative to a quick one')
    with pytest.raises(ConfigError, match='cost.json has the parts steps teacher, none of loss; '):
        print_saved_result(tmp_path / 'cost.json', ('loss',))


@pytest.mark.parametrize(
    'parts, count', [(('steps', 'teacher', 'loader'), 14), (('loader',), 5), (('loss',), 8)]
)
def test_the_shipped_result_can_be_printed(capsys, parts, count):
    print_saved_result(SHIPPED, parts)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines[2:] if line.startswith('|')]
    assert len(rows) == count == sum(row['part'] in parts for row in json.loads(SHIPPED.read_text())['rows'])
    assert lines[-2].startswith('- The teacher has random weights')


@pytest.mark.parametrize(
    'value, typed',
    [
        ((256, 512), '256 512'),
        ([[2, 19, 64, 128], (1, 3, 8, 8)], '2x19x64x128 1x3x8x8'),
        (7, '7'),
        ('a', 'a'),
    ],
)
def test_settings_are_shown_as_they_are_typed(value, typed):
    assert format_setting(value) == typed


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (['--repetitions', '0'], '--repetitions must be at least 1, got 0'),
        (['--device', 'cuda'], '--device cuda: torch sees no GPU here'),
    ],
)
def test_wrong_shared_arguments_are_told(monkeypatch, arguments, expected):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    parser = argparse.ArgumentParser()
    add_shared_arguments(parser, 'cost')
    with pytest.raises(ConfigError, match=expected):
        check_shared_arguments(parser.parse_args(arguments))


@pytest.mark.parametrize('script', ['step_cost.py', 'loss_cost.py'])
def test_a_benchmark_without_mmseg_says_what_to_install(script):
    done = subprocess.run(
        [sys.executable, '-S', ROOT / 'benchmarks' / script, '--help'],
        capture_output=True,
        text=True,
        env={'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 1
    assert 'ImportError: mmseg is not installed' in done.stderr
    assert done.stderr.rstrip().endswith('pip install ' + ' '.join(PINS))


def test_an_error_ends_a_benchmark_in_one_line():
    output = run(ROOT / 'benchmarks/loss_cost.py', '--table', 'absent.json', expect=1)
    assert output.startswith('error: --table absent.json is no result of this tool: FileNotFoundError')
    assert output.count('\n') == 1
