"""What the texts say of the studies is what came out of them."""

import json

import pytest
from helpers import ROOT

from bdd_seg.study.report import comparison_table, main_table, modes, search_table

STUDIES = sorted((ROOT / 'benchmarks/studies').glob('*/results.json'))


@pytest.mark.parametrize('file', STUDIES, ids=lambda file: file.parent.name)
def test_texts_hold_the_tables_of_the_results(file):
    results = json.loads(file.read_text())
    report = (file.parent / 'report.md').read_text()
    assert search_table(results) in report or not any(run['stage'] == 'search' for run in results['runs'])
    for equal in modes(results):
        assert main_table(results, equal) in report
        for method in results['compare']:
            assert comparison_table(results, equal, method) in report
    assert main_table(results, 'iterations') in (ROOT / 'README.md').read_text()


def test_each_result_has_its_study():
    assert STUDIES
    assert all(file.parent.with_suffix('.yaml').exists() for file in STUDIES)
