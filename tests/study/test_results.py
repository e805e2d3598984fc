"""The statistics of a study's results, and their file."""

import json
import math

import pytest
from helpers import ROOT, small_study, study_run, study_runs
from scipy.stats import ttest_rel

from bdd_seg.errors import ConfigError
from bdd_seg.study.results import Provenance, Results, holm, load_results, paired_difference

T_975 = {2: 4.3027, 4: 2.7764}
"""Two-sided 95% quantiles of Student's t by degrees of freedom, from a printed table."""


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
    assert found == (1.0, None, 1, None)
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
def test_the_verdict_of_one_comparison_follows_from_whether_its_interval_has_0(scores, verdict, bold):
    found = paired_difference(dict(enumerate(scores)), dict.fromkeys(range(3), 0.0))
    assert found.verdict == verdict
    assert found.cell() == (f'**{found}**' if bold else str(found))


@pytest.mark.parametrize(
    ('p_values', 'adjusted'),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm's steps: 4, 3, 2 and 1 times
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.6, 0.9], [1.0, 1.0]),
    ],
)
def test_holms_adjustment_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


def test_the_p_value_agrees_with_scipys_paired_t_test():
    own, control = [31.0, 30.2, 33.4, 32.0], [30.0, 30.5, 31.0, 31.2]
    found = paired_difference(dict(enumerate(own)), dict(enumerate(control)))
    assert found.p_value == pytest.approx(ttest_rel(own, control).pvalue)
    assert found.reversed().interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_differences_are_judged_after_the_adjustment():
    """BDD minus the student alone excludes 0 by itself, and no longer as one of three."""
    content = small_study()
    for run in content['runs']:
        if run['method'] == 'bdd' and run['seed'] == 2:
            run['scores']['test']['mIoU'] = 33.0
    results = Results.model_validate(content)
    alone = results.difference('iterations', 'test', 'bdd', 'alone')
    assert alone.verdict == 'ahead' and 0.025 < alone.p_value < 0.05
    found = results.differences('iterations', 'test', 'bdd')
    assert {other: one.verdict for other, one in found.items()} == {
        'alone': 'not told apart',
        'kd': 'not told apart',
        'cwd': 'behind',
    }
    assert found['alone'].p_value == pytest.approx(2 * alone.p_value)
    assert found['cwd'].interval == results.difference('iterations', 'test', 'bdd', 'cwd').interval


@pytest.mark.parametrize('file', ['teacher', 'cache', 'start'])
def test_runs_of_two_teachers_or_two_starts_are_no_pair(file):
    content = small_study()
    for run in content['runs']:
        if run['method'] in ('bdd', 'cwd'):
            run[file] = 'first'
    content['runs'][-1][file] = 'second'  # CWD's with seed 2
    results = Results.model_validate(content)
    assert results.difference('iterations', 'test', 'bdd', 'cwd').seeds == 2
    assert results.difference('iterations', 'test', 'bdd', 'alone').seeds == 3
    content['control'] = 'cwd'
    gains = Results.model_validate(content).class_gains('test', 'iterations')
    assert gains['mIoU']['bdd'] == results.difference('iterations', 'test', 'bdd', 'cwd').mean


def test_a_method_with_a_length_of_its_own_is_no_rival():
    content = small_study()
    content['methods']['cwd']['iterations'] = 1800
    results = Results.model_validate(content)
    assert results.differences('iterations', 'test', 'bdd').keys() == {'alone', 'kd'}
    assert 'cwd' in results.finished('iterations')
    assert results.class_gains('test', 'iterations')['mIoU'].keys() == {'kd', 'bdd'}


def test_a_pace_that_was_measured_apart_comes_first():
    content = small_study()
    results = Results.model_validate(content)
    assert results.pace('bdd', 'iterations') == 0.3
    assert results.minutes('bdd', 'iterations') == [4.5] * 3
    pace = {**study_run('bdd', 0, 0.0, stage='pace', seconds_per_iteration=0.4), 'scores': {}}
    results = Results.model_validate({**content, 'runs': [*content['runs'], pace]})
    assert results.pace('bdd', 'iterations') == 0.4
    assert results.minutes('bdd', 'iterations') == [0.4 * 900 / 60] * 3


def test_hours_of_recorded_teachers():
    """The student alone, and a method whose pace was not measured, do not count."""
    content = small_study()
    assert Results.model_validate(content).recorded() == (0, 0.0, 0.0)
    pace = {**study_run('bdd', 0, 0.0, stage='pace', seconds_per_iteration=0.4), 'scores': {}}
    for run in content['runs']:
        if run['method'] in ('bdd', 'kd'):
            run['teacher'] = 'its digest'
    search = study_run('bdd', 9, 30.0, stage='search', teacher='its digest', iterations=450)
    content['runs'] += [pace, {**pace, 'method': 'alone'}, search]
    count, hours, live = Results.model_validate(content).recorded()
    bdd = [run for run in content['runs'] if run['method'] == 'bdd' and run['stage'] == 'final']
    assert count == len(bdd) + 1 == 4
    assert hours == pytest.approx((sum(900 * run['seconds_per_iteration'] for run in bdd) + 450 * 0.2) / 3600)
    assert live == pytest.approx(0.4 * (3 * 900 + 450) / 3600)


def test_class_gains_are_paired_and_sorted():
    # Sky gains 1 and 3 in the two common seeds, pole 5 in the one where both have it; there is no train.
    results = small_study()
    results['runs'] = [
        *study_runs('alone', [30.0, 30.0, 30.0]),
        study_run('bdd', 0, 31.0),
        study_run('bdd', 1, 33.0),
        study_run('bdd', 7, 90.0),
    ]
    results['runs'][3]['scores']['test']['classes']['pole'] = 15.0
    results['runs'][4]['scores']['test']['classes']['pole'] = math.nan
    gains = Results.model_validate(results).class_gains('test', 'iterations')
    assert list(gains) == ['mIoU', 'pole', 'sky', 'train']
    assert gains['mIoU'] == {'bdd': pytest.approx(2)}
    assert gains['pole'] == {'bdd': pytest.approx(5)}
    assert gains['sky'] == {'bdd': pytest.approx(2)}
    assert math.isnan(gains['train']['bdd'])


def test_budgets_are_those_with_finished_runs():
    results = small_study()
    assert Results.model_validate(results).budgets() == ['iterations']
    results['runs'] += study_runs('alone', [31.0], equal='wall_clock')
    assert Results.model_validate(results).budgets() == ['iterations', 'wall_clock']
    results['runs'] = [study_run('alone', 0, 31.0, stage='search')]
    assert Results.model_validate(results).budgets() == []


def test_a_method_without_common_seeds_has_no_difference():
    results = Results.model_validate(small_study())
    assert results.difference('iterations', 'test', 'bdd', 'late') is None
    assert results.difference('iterations', 'test', 'bdd', 'alone').mean == pytest.approx(1.8)
    assert results.difference('iterations', 'val', 'bdd', 'alone').seeds == 3


def test_splits_that_judge():
    results = small_study()
    assert Results.model_validate(results).judged_on() == ['test']
    assert Results.model_validate({**results, 'splits': ['val']}).judged_on() == ['val']


@pytest.mark.parametrize(
    'file', sorted((ROOT / 'benchmarks/studies').glob('*/results.json')), ids=lambda file: file.parent.name
)
def test_a_file_is_written_as_it_was_read(file):
    assert json.dumps(load_results(file).to_json(), indent=1) == file.read_text()


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        (None, 'No such file'),
        ('{', 'Expecting property name'),
        ('{"title": 3}', 'title: Input should be a valid string'),
        ('[]', 'Input should be a valid dictionary'),
    ],
)
def test_a_file_that_is_none(tmp_path, text, reason):
    if text is not None:
        (tmp_path / 'results.json').write_text(text)
    with pytest.raises(
        ConfigError, match=f"results.json' cannot be read as the results of a study: .*{reason}"
    ):
        load_results(tmp_path / 'results.json')


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, True),
        ({'train_flags': []}, False),
        ({'splits': {'val': {}}}, True),
        ({'splits': {'val': {}, 'test': {'a': 2}}}, False),
        ({'teacher': 'other'}, False),
        ({'teacher': None}, True),
        ({'checkpoint': 'new'}, False),
    ],
)
def test_provenance(changes, expected):
    earlier = {
        'train_flags': ['--amp'],
        'splits': {'val': {}, 'test': {'a': 1}},
        'checkpoint': None,
        'teacher': 'digest',
    }
    now = Provenance.model_validate({**earlier, **changes})
    assert now.agrees_with(Provenance.model_validate(earlier)) == expected


def test_provenance_that_was_not_recorded_is_not_compared():
    assert Provenance(train_flags=['--amp'], teacher='digest').agrees_with(Provenance())
