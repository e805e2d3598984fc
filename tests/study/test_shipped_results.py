"""The texts on the shipped studies agree with their results."""

import make_results
import pytest
from helpers import ROOT

from bdd_seg.study.report import comparison_table, main_table, search_table, write_report
from bdd_seg.study.results import load_results

STUDIES = sorted((ROOT / 'benchmarks/studies').glob('*/results.json'))


@pytest.mark.parametrize('file', STUDIES, ids=lambda file: file.parent.name)
def test_texts_hold_the_tables_of_the_results(file):
    results = load_results(file)
    report = (file.parent / 'report.md').read_text()
    assert search_table(results) in report or not results.of_stage('search')
    for budget in results.budgets():
        assert main_table(results, budget) in report
        for method in results.compare:
            assert comparison_table(results, budget, method) in report


@pytest.mark.parametrize('file', STUDIES, ids=lambda file: file.parent.name)
def test_the_whole_report_follows_from_the_results(file, tmp_path):
    write_report(load_results(file), tmp_path)
    assert (tmp_path / 'report.md').read_bytes() == (file.parent / 'report.md').read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {'report.md', 'methods.png', 'class_gain.png'}


def test_the_page_of_results_is_the_one_that_the_script_makes():
    text = (ROOT / 'docs/results.md').read_text()
    assert text == make_results.page(), 'run python docs/make_results.py'
    for file in STUDIES:
        assert main_table(load_results(file), 'iterations') in text


def test_each_result_has_its_study():
    assert STUDIES
    assert all(file.parent.with_suffix('.yaml').exists() for file in STUDIES)
