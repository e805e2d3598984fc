"""The tables and sentences of a study's report."""

import copy
import json
import math

import pytest
from helpers import large_study, small_study, study_run, study_runs

from bdd_seg.study.report import comparison_table, in_words, main_table, search_table, write_report
from bdd_seg.study.results import Results

T_975 = {2: 4.3027}
"""Two-sided 95% quantiles of Student's t by degrees of freedom, from a printed table."""

parse = Results.model_validate


@pytest.fixture
def results() -> dict:
    return small_study()


@pytest.fixture
def large() -> dict:
    return large_study()


def cells(table: str) -> list[list[str]]:
    """A Markdown table's header and rows."""
    header, rule, *rows = (
        [cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()
    )
    assert {len(row) for row in (header, rule, *rows)} == {len(header)}
    assert all(set(cell) <= {'-', ':'} for cell in rule)
    return [header, *rows]


def row_of(table: str, name: str) -> dict[str, str]:
    header, *rows = cells(table)
    (row,) = (row for row in rows if row[0] == name)
    return dict(zip(header, row, strict=True))


def test_the_hours_that_recordings_saved_stand_in_the_report(results, tmp_path):
    write_report(parse(results), tmp_path)
    assert 'recordings of their teachers' not in (tmp_path / 'report.md').read_text()
    pace = study_run('bdd', 0, 0.0, stage='pace', seconds_per_iteration=4.0)
    for run in results['runs']:
        run['teacher'] = 'its digest' if run['method'] == 'bdd' else None
    results['runs'].append({**pace, 'scores': {}})
    write_report(parse(results), tmp_path)
    words = '3 trainings shared recordings of their teachers: their iterations took 0.2 hours'
    text = (tmp_path / 'report.md').read_text()
    assert words in text and 'they would have taken 3.0 hours.' in text


def test_main_table(results):
    table = main_table(parse(results), 'iterations')
    assert [row[0] for row in cells(table)[1:]] == ['teacher', 'alone', 'KD', 'BDD', 'CWD']
    assert row_of(table, 'teacher') == {
        'method': 'teacher',
        'val mIoU': '46.0',
        'val − alone': '',
        'test mIoU': '45.0',
        'test − alone': '',
        'seeds': '1',
        's/iteration': '',
        'iterations': '',
        'minutes of training': '',
    }
    # 30, 31, 32 have a sample standard deviation of 1.0; over n instead of n - 1 it would be 0.8.
    assert row_of(table, 'alone')['test mIoU'] == '31.0 ± 1.0'
    assert row_of(table, 'alone')['test − alone'] == ''
    bdd = row_of(table, 'BDD')
    # Differences 2.0, 2.0, 1.4: mean 1.8, standard deviation 0.3464.
    half = T_975[2] * 0.34641 / math.sqrt(3)
    assert (
        bdd['test − alone'] == f'**+1.8 [{1.8 - half:+.1f}, {1.8 + half:+.1f}]**' == '**+1.8 [+0.9, +2.7]**'
    )
    assert bdd['val mIoU'] == '33.8 ± 0.7'
    assert (bdd['s/iteration'], bdd['iterations'], bdd['minutes of training']) == ('0.300', '900', '4.5')
    assert row_of(table, 'KD')['test − alone'] == '+1.5 [-4.2, +7.2]'


def test_main_table_takes_the_median_speed_and_the_mean_time(results):
    results['runs'] = [
        study_run('alone', seed, 30.0, seconds_per_iteration=speed, seconds=seconds)
        for seed, (speed, seconds) in enumerate([(0.1, 60), (0.2, 60), (0.9, 240)])
    ]
    row = row_of(main_table(parse(results), 'iterations'), 'alone')
    assert (row['s/iteration'], row['minutes of training']) == ('0.200', '2.0')


def test_comparison_table(results):
    header, *rows = cells(comparison_table(parse(results), 'iterations', 'bdd'))
    assert header == ['split', 'BDD against', 'difference', 'seeds', 'adjusted p', 'it is']
    assert rows[3:] == [
        ['test', 'alone', '**+1.8 [+0.9, +2.7]**', '3', '0.024', 'ahead'],
        ['test', 'KD', '+0.3 [-5.3, +5.9]', '3', '0.839', 'not told apart'],
        ['test', 'CWD', '**-2.0 [-2.2, -1.9]**', '3', '0.001', 'behind'],
    ]
    assert [row[0] for row in rows[:3]] == ['val'] * 3


def test_words_say_ahead_behind_and_neither(results):
    sentences = in_words(parse(results), 'iterations')
    assert sentences[:3] == [
        'On test, BDD is ahead of alone: +1.8 [+0.9, +2.7], 3 seeds.',
        'On test, BDD is not told apart from KD: +0.3 [-5.3, +5.9], 3 seeds.',
        'On test, BDD is behind CWD: -2.0 [-2.2, -1.9], 3 seeds.',
    ]
    assert 'does not mean equal' in sentences[3]
    assert 'adjusted by Holm' in sentences[4]
    assert len(sentences) == 5


def test_words_name_a_pair_once(results):
    results['compare'] = ['bdd', 'cwd']
    sentences = in_words(parse(results), 'iterations')
    assert sum('BDD' in sentence and 'CWD' in sentence for sentence in sentences) == 1


def test_words_of_one_seed_and_of_none(results):
    results['compare'] = ['bdd', 'late']
    results['runs'] = [*study_runs('alone', [30.0, 31.0]), study_run('bdd', 1, 32.5)]
    assert in_words(parse(results), 'iterations') == [
        'On test, BDD minus alone is +1.5 with one seed, which shows nothing of the spread.',
        'late has no finished run yet.',
    ]


def test_words_are_about_the_only_split_where_there_is_one(results):
    results['splits'] = ['val']
    assert in_words(parse(results), 'iterations')[0].startswith('On val, BDD is ahead of alone')


def test_search_table(results):
    results['methods']['bdd']['setting'] = {'loss.tau_forward': 1, 'loss.loss_weight': 3}
    chosen, other = {'loss.loss_weight': 3, 'loss.tau_forward': 1}, {'loss.loss_weight': 10}
    results['runs'] += [
        study_run('bdd', 8, 30.0, stage='search', setting=chosen),
        study_run('bdd', 9, 31.0, stage='search', setting=chosen),
        study_run('bdd', 8, 20.25, stage='search', setting=other),
    ]
    assert cells(search_table(parse(results))) == [
        ['method', 'setting', 'val mIoU', 'seeds'],
        ['BDD', '**loss_weight 3, tau_forward 1**', '**31.50**', '2'],
        ['BDD', 'loss_weight 10', '21.25', '1'],
    ]


def test_a_search_is_no_final_run(results):
    before = main_table(parse(results), 'iterations')
    results['runs'].append(study_run('bdd', 0, 99.0, stage='search'))
    assert main_table(parse(results), 'iterations') == before


def test_equal_wall_clock_has_runs_of_its_own(results):
    results['runs'] += study_runs('alone', [31.0, 32.0, 33.0], equal='wall_clock', iterations=1350)
    results['runs'] += study_runs('bdd', [32.0, 33.0, 33.4], equal='wall_clock')
    table = main_table(parse(results), 'wall_clock')
    assert [row[0] for row in cells(table)[1:]] == ['teacher', 'alone', 'BDD']
    assert row_of(table, 'alone')['iterations'] == '1350'
    assert row_of(table, 'BDD')['test − alone'] == '+0.8 [-0.1, +1.7]'
    assert row_of(main_table(parse(results), 'iterations'), 'alone')['test mIoU'] == '31.0 ± 1.0'


def test_report(results, tmp_path):
    results['runs'].append(study_run('bdd', 9, 30.0, stage='search', setting={'loss.loss_weight': 3}))
    results['methods']['bdd']['loss'] = {'loss.domain': 'channel'}
    results = json.loads(json.dumps(results))
    write_report(parse(results), tmp_path / 'new')
    text = (tmp_path / 'new/report.md').read_text()
    assert text.startswith('# CamVid\n\n```bash\npython tools/study.py camvid.yaml\n```\n\n')
    assert 'Run with cpu Xeon, cores 2, no gpu, torch 2.13.0, jobs 2.' in text
    assert '| BDD | `bdd.py` | domain channel |  |  |' in text
    for part in (
        main_table(parse(results), 'iterations'),
        comparison_table(parse(results), 'iterations', 'bdd'),
        search_table(parse(results)),
        *in_words(parse(results), 'iterations'),
        '## What this does not show\n\n- Nothing on Cityscapes.',
        '![gain in IoU per class](class_gain.png)',
        '![mIoU and minutes of training of each method](methods.png)',
    ):
        assert part in text
    assert 'wall-clock\n' not in text
    assert {path.name for path in (tmp_path / 'new').iterdir()} == {
        'report.md',
        'methods.png',
        'class_gain.png',
    }


def test_pictures_are_of_a_split_on_which_nothing_was_chosen(results, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr('bdd_seg.study.report.plot_methods', lambda _, split, file: drawn.append(split))
    results['splits'] = ['test', 'val']
    write_report(parse(results), tmp_path)
    assert drawn == ['test']


def test_report_has_both_kinds_of_comparison(large, tmp_path):
    write_report(parse(large), tmp_path)
    text = (tmp_path / 'report.md').read_text()
    assert text.index('## Equal iterations') < text.index('## Equal wall-clock')
    assert 'Each trains about as long as bdd does.' in text
    assert main_table(parse(large), 'wall_clock') in text
    assert 'does not show\n' not in text


def test_a_report_can_be_written_after_any_run(results, large, tmp_path):
    results['runs'].append(study_run('bdd', 9, 30.0, stage='search'))
    for study in (results, large):
        for done in range(0, len(study['runs']) + 1, 4 if study is results else 20):
            part = copy.deepcopy(study)
            part['runs'] = study['runs'][:done]
            write_report(parse(part), tmp_path)
            assert (tmp_path / 'report.md').read_text().startswith('# CamVid')
            assert 'nan' not in (tmp_path / 'report.md').read_text()


def test_a_run_without_all_splits_is_not_finished(results, tmp_path):
    del results['runs'][1]['scores']['test']
    assert row_of(main_table(parse(results), 'iterations'), 'KD')['seeds'] == '2'
    for run in results['runs']:
        run['scores'].pop('test', None)
    write_report(parse(results), tmp_path)
    assert '## Equal' not in (tmp_path / 'report.md').read_text()
