"""The numbers, words and pictures of a study's report."""

import copy
import json
import math

import matplotlib.image
import numpy as np
import pytest

from bdd_seg.study.report import (
    class_gains,
    comparison_table,
    in_words,
    main_table,
    moved_apart,
    paired_difference,
    plot_class_gain,
    plot_wall_clock,
    search_table,
    write_report,
)

T_975 = {2: 4.3027, 4: 2.7764}
"""Two-sided 95% quantiles of Student's t by degrees of freedom, from a printed table."""


def make_run(method, seed, miou, equal='iterations', stage='final', setting=None, **facts):
    """A run whose scores on val are one point above those on test; a search knows val alone."""
    classes = {'sky': miou + 40, 'train': None, 'pole': miou - 20}
    scores = {
        split: {'mIoU': score, 'aAcc': 80.0, 'mAcc': 50.0, 'classes': classes}
        for split, score in (('val', miou + 1), ('test', miou))
        if split == 'val' or stage != 'search'
    }
    run = {'method': method, 'stage': stage, 'equal': equal, 'seed': seed, 'setting': setting or {}}
    if stage != 'reference':
        run.update(iterations=900, seconds_per_iteration=0.2, seconds=180.0, peak_memory_mb=900.0)
    return {**run, 'scores': scores, 'finished': '2025-01-01T00:00:00', **facts}


def final_runs(method, mious, **facts):
    return [make_run(method, seed, miou, **facts) for seed, miou in enumerate(mious)]


@pytest.fixture
def results() -> dict:
    """BDD is ahead of the student alone, behind CWD, and not told apart from KD."""
    labels = {'teacher': 'teacher', 'kd': 'KD', 'alone': 'alone', 'bdd': 'BDD', 'cwd': 'CWD', 'late': 'late'}
    return {
        'title': 'CamVid', 'command': 'python tools/study.py camvid.yaml', 'control': 'alone',
        'select_on': 'val', 'splits': ['val', 'test'], 'compare': ['bdd'], 'wall_clock_of': None,
        'methods': {
            name: {'label': label, 'config': f'{name}.py', 'loss': {}, 'setting': {}, 'trials': 0}
            for name, label in labels.items()
        },
        'runs': [
            make_run('teacher', 0, 45.0, stage='reference'),
            *final_runs('kd', [34.0, 30.5, 33.0]),
            *final_runs('bdd', [32.0, 33.0, 33.4], seconds_per_iteration=0.3, seconds=270.0),
            *final_runs('alone', [30.0, 31.0, 32.0]),
            *final_runs('cwd', [34.0, 35.0, 35.5]),
        ],
        'environment': {'cpu': 'Xeon', 'cores': 2, 'gpu': None, 'torch': '2.13.0', 'jobs': 2},
        'notes': ['Nothing on Cityscapes.'],
    }  # fmt: skip


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


def test_interval_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, sum of squares 10, so the variance is 10 / 4.
    found = paired_difference({i: 30.0 + i for i in range(1, 6)}, dict.fromkeys(range(1, 6), 30.0))
    half = T_975[4] * math.sqrt(2.5) / math.sqrt(5)
    assert found.mean == pytest.approx(3)
    assert found.interval == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert found.seeds == 5
    assert str(found) == '+3.0 [+1.0, +5.0]'


def test_pairs_are_of_the_same_seed():
    # The methods vary by 20 points with the seed, their difference by 0.2: only pairs can tell.
    control = {0: 20.0, 1: 30.0, 2: 40.0, 7: 99.0}
    found = paired_difference({2: 41.2, 0: 21.0, 1: 31.1, 8: 0.0}, control)
    half = T_975[2] * 0.1 / math.sqrt(3)
    assert found.mean == pytest.approx(1.1)
    assert found.interval == pytest.approx((1.1 - half, 1.1 + half), abs=1e-3)
    assert found.seeds == 3


def test_one_seed_has_no_interval_and_none_is_an_error():
    found = paired_difference({3: 31.0}, {3: 30.0, 4: 30.0})
    assert found == (1.0, None, 1)
    assert (str(found), found.cell(), found.verdict) == ('+1.0', '+1.0', 'one seed')
    with pytest.raises(ValueError, match='no seed'):
        paired_difference({0: 31.0}, {1: 30.0})


@pytest.mark.parametrize(
    ('scores', 'verdict', 'bold'),
    [
        ([1.0, 1.1, 1.2], 'ahead', True),
        ([-1.0, -1.1, -1.2], 'behind', True),
        ([-1.0, 1.0, 2.0], 'not told apart', False),
        ([2.0, 2.0, 2.0], 'ahead', True),
        ([0.0, 0.0, 0.0], 'not told apart', False),
    ],
)
def test_verdict_and_bold_follow_from_whether_the_interval_has_0(scores, verdict, bold):
    found = paired_difference(dict(enumerate(scores)), dict.fromkeys(range(3), 0.0))
    assert found.verdict == verdict
    assert found.cell() == (f'**{found}**' if bold else str(found))


def test_main_table(results):
    table = main_table(results, 'iterations')
    assert [row[0] for row in cells(table)[1:]] == ['teacher', 'alone', 'KD', 'BDD', 'CWD']
    assert row_of(table, 'teacher') == {
        'method': 'teacher', 'val mIoU': '46.0', 'val − alone': '', 'test mIoU': '45.0', 'test − alone': '',
        'seeds': '1', 's/iteration': '', 'iterations': '', 'minutes of training': '',
    }  # fmt: skip
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
        make_run('alone', seed, 30.0, seconds_per_iteration=speed, seconds=seconds)
        for seed, (speed, seconds) in enumerate([(0.1, 60), (0.2, 60), (0.9, 240)])
    ]
    row = row_of(main_table(results, 'iterations'), 'alone')
    assert (row['s/iteration'], row['minutes of training']) == ('0.200', '2.0')


def test_comparison_table(results):
    header, *rows = cells(comparison_table(results, 'iterations', 'bdd'))
    assert header == ['split', 'BDD against', 'difference', 'seeds', 'it is']
    assert rows[3:] == [
        ['test', 'alone', '**+1.8 [+0.9, +2.7]**', '3', 'ahead'],
        ['test', 'KD', '+0.3 [-5.3, +5.9]', '3', 'not told apart'],
        ['test', 'CWD', '**-2.0 [-2.2, -1.9]**', '3', 'behind'],
    ]
    assert [row[0] for row in rows[:3]] == ['val'] * 3


def test_words_say_ahead_behind_and_neither(results):
    sentences = in_words(results, 'iterations')
    assert sentences[:3] == [
        'On test, BDD is ahead of alone: +1.8 [+0.9, +2.7], 3 seeds.',
        'On test, BDD is not told apart from KD: +0.3 [-5.3, +5.9], 3 seeds.',
        'On test, BDD is behind CWD: -2.0 [-2.2, -1.9], 3 seeds.',
    ]
    assert 'does not mean equal' in sentences[3]
    assert 'not corrected for there being 3' in sentences[4]
    assert len(sentences) == 5


def test_words_name_a_pair_once(results):
    results['compare'] = ['bdd', 'cwd']
    sentences = in_words(results, 'iterations')
    assert sum('BDD' in sentence and 'CWD' in sentence for sentence in sentences) == 1
    assert 'not corrected for there being 5' in sentences[-1]


def test_words_of_one_seed_and_of_none(results):
    results['compare'] = ['bdd', 'late']
    results['runs'] = [*final_runs('alone', [30.0, 31.0]), make_run('bdd', 1, 32.5)]
    assert in_words(results, 'iterations') == [
        'On test, BDD minus alone is +1.5 with one seed, which shows nothing of the spread.',
        'late has no finished run yet.',
    ]


def test_words_are_about_the_only_split_where_there_is_one(results):
    results['splits'] = ['val']
    assert in_words(results, 'iterations')[0].startswith('On val, BDD is ahead of alone')


def test_search_table(results):
    results['methods']['bdd']['setting'] = {'loss.tau_forward': 1, 'loss.loss_weight': 3}
    chosen, other = {'loss.loss_weight': 3, 'loss.tau_forward': 1}, {'loss.loss_weight': 10}
    results['runs'] += [
        make_run('bdd', 8, 30.0, stage='search', setting=chosen),
        make_run('bdd', 9, 31.0, stage='search', setting=chosen),
        make_run('bdd', 8, 20.25, stage='search', setting=other),
    ]
    assert cells(search_table(results)) == [
        ['method', 'setting', 'val mIoU', 'seeds'],
        ['BDD', '**loss_weight 3, tau_forward 1**', '**31.50**', '2'],
        ['BDD', 'loss_weight 10', '21.25', '1'],
    ]


def test_a_search_is_no_final_run(results):
    before = main_table(results, 'iterations')
    results['runs'].append(make_run('bdd', 0, 99.0, stage='search'))
    assert main_table(results, 'iterations') == before


def test_equal_wall_clock_has_runs_of_its_own(results):
    results['runs'] += final_runs('alone', [31.0, 32.0, 33.0], equal='wall_clock', iterations=1350)
    results['runs'] += final_runs('bdd', [32.0, 33.0, 33.4], equal='wall_clock')
    table = main_table(results, 'wall_clock')
    assert [row[0] for row in cells(table)[1:]] == ['teacher', 'alone', 'BDD']
    assert row_of(table, 'alone')['iterations'] == '1350'
    assert row_of(table, 'BDD')['test − alone'] == '+0.8 [-0.1, +1.7]'
    assert row_of(main_table(results, 'iterations'), 'alone')['test mIoU'] == '31.0 ± 1.0'


def test_class_gains_are_paired_and_sorted(results):
    # Sky gains 1 and 3 in the two common seeds, pole 5 in the one where both have it; there is no train.
    results['runs'] = [
        *final_runs('alone', [30.0, 30.0, 30.0]),
        make_run('bdd', 0, 31.0), make_run('bdd', 1, 33.0), make_run('bdd', 7, 90.0),
    ]  # fmt: skip
    results['runs'][3]['scores']['test']['classes']['pole'] = 15.0
    results['runs'][4]['scores']['test']['classes']['pole'] = math.nan
    gains = class_gains(results, 'test', 'iterations')
    assert list(gains) == ['mIoU', 'pole', 'sky', 'train']
    assert gains['mIoU'] == {'bdd': pytest.approx(2)}
    assert gains['pole'] == {'bdd': pytest.approx(5)}
    assert gains['sky'] == {'bdd': pytest.approx(2)}
    assert math.isnan(gains['train']['bdd'])


def test_marks_are_moved_no_more_than_needed():
    assert moved_apart(np.array([5.0, 1.0, 9.0]), 2.0).tolist() == [5, 1, 9]
    # Three at one place go to both sides of it; what is far away stays.
    assert moved_apart(np.array([3.0, 3.0, 3.0, 20.0]), 2.0).tolist() == [1, 3, 5, 20]


@pytest.fixture
def large() -> dict:
    """Seven methods and the student alone, five seeds, eleven classes, both kinds of comparison."""
    rng = np.random.default_rng(0)
    names = ['alone', 'bdd', 'kd', 'cwd', 'dist', 'mgd', 'bdd-pixel', 'a method with a long name']
    classes = [f'class {i}' for i in range(11)]
    runs = []
    for i, (name, equal) in enumerate((n, e) for e in ('iterations', 'wall_clock') for n in names):
        runs += final_runs(name, rng.normal(35 + i % 3, 0.5, 5).tolist(), equal=equal, seconds=180.0)
    for run in runs:
        for score in run['scores'].values():
            score['classes'] = dict(zip(classes, rng.normal(40, 5, 11).tolist(), strict=True))
    return {
        'title': 'CamVid', 'command': 'python tools/study.py camvid.yaml', 'control': 'alone',
        'select_on': 'val', 'splits': ['val', 'test'], 'compare': ['bdd'], 'wall_clock_of': 'bdd',
        'methods': {
            name: {'label': name, 'config': 'c.py', 'loss': {}, 'setting': {}, 'trials': 0} for name in names
        },
        'runs': runs, 'environment': {'cpu': 'Xeon'}, 'notes': [],
    }  # fmt: skip


def colours_in(file) -> np.ndarray:
    """How often the file has each colour, the frequent ones first."""
    pixels = (255 * matplotlib.image.imread(file)[..., :3]).round().astype(int)
    _, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    return np.sort(counts)[::-1]


def test_plots_are_drawn(large, tmp_path):
    plot_wall_clock(large, 'test', tmp_path / 'wall_clock.png')
    plot_class_gain(large, 'test', 'iterations', tmp_path / 'class_gain.png')
    assert (colours_in(tmp_path / 'wall_clock.png')[:9] > 200).all()  # white, and a colour per method
    assert (colours_in(tmp_path / 'class_gain.png')[:30] > 1000).all()  # cells of many colours


def test_report(results, tmp_path):
    results['runs'].append(make_run('bdd', 9, 30.0, stage='search', setting={'loss.loss_weight': 3}))
    results['methods']['bdd']['loss'] = {'loss.domain': 'channel'}
    results = json.loads(json.dumps(results))
    write_report(results, tmp_path / 'new')
    text = (tmp_path / 'new/report.md').read_text()
    assert text.startswith('# CamVid\n\n```bash\npython tools/study.py camvid.yaml\n```\n\n')
    assert 'Run with cpu Xeon, cores 2, no gpu, torch 2.13.0, jobs 2.' in text
    assert '| BDD | `bdd.py` | domain channel |  |  |' in text
    for part in (
        main_table(results, 'iterations'), comparison_table(results, 'iterations', 'bdd'),
        search_table(results), *in_words(results, 'iterations'),
        '## What this does not show\n\n- Nothing on Cityscapes.',
        '![gain in IoU per class](class_gain.png)', '![mIoU against minutes of training](wall_clock.png)',
    ):  # fmt: skip
        assert part in text
    assert 'wall-clock\n' not in text
    assert {path.name for path in (tmp_path / 'new').iterdir()} == {
        'report.md',
        'wall_clock.png',
        'class_gain.png',
    }


def test_pictures_are_of_a_split_on_which_nothing_was_chosen(results, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr('bdd_seg.study.report.plot_wall_clock', lambda _, split, file: drawn.append(split))
    results['splits'] = ['test', 'val']
    write_report(results, tmp_path)
    assert drawn == ['test']


def test_report_has_both_kinds_of_comparison(large, tmp_path):
    write_report(large, tmp_path)
    text = (tmp_path / 'report.md').read_text()
    assert text.index('## Equal iterations') < text.index('## Equal wall-clock')
    assert 'Each trains about as long as bdd does.' in text
    assert main_table(large, 'wall_clock') in text
    assert 'does not show\n' not in text


def test_a_report_can_be_written_after_any_run(results, large, tmp_path):
    results['runs'].append(make_run('bdd', 9, 30.0, stage='search'))
    for study in (results, large):
        for done in range(0, len(study['runs']) + 1, 4 if study is results else 20):
            part = copy.deepcopy(study)
            part['runs'] = study['runs'][:done]
            write_report(part, tmp_path)
            assert (tmp_path / 'report.md').read_text().startswith('# CamVid')
            assert 'nan' not in (tmp_path / 'report.md').read_text()


def test_a_run_without_all_splits_is_not_finished(results, tmp_path):
    del results['runs'][1]['scores']['test']
    assert row_of(main_table(results, 'iterations'), 'KD')['seeds'] == '2'
    for run in results['runs']:
        run['scores'].pop('test', None)
    write_report(results, tmp_path)
    assert '## Equal' not in (tmp_path / 'report.md').read_text()
