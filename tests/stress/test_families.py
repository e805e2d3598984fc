"""docs/families.md says of every network what happens."""

import families
import pytest
from helpers import ROOT

PAGE = ROOT / 'docs/families.md'

MISSING = {
    'ccnet': 'CrissCrossAttention',
    'convnext': 'mmpretrain',
    'mask2former': 'mmdet',
    'maskformer': 'mmdet',
    'poolformer': 'mmpretrain',
    'psanet': 'PSAMask',
    'vpd': 'install required packages',
}
"""Family → what it lacks here, in a word of the reason."""


@pytest.fixture(autouse=True)
def _quiet():
    families.prepare()


@pytest.mark.parametrize('case', families.CASES)
def test_the_page_says_what_happens(case, tmp_path):
    assert families.row(case, tmp_path) in PAGE.read_text().splitlines()


def test_all_distil_but_those_that_lack_something():
    page = PAGE.read_text()
    rows = [line.strip('| ').split(' | ') for line in page.splitlines() if '.py' in line]
    rows = [row for row in rows if '/'.join(row[:2]) in families.CASES]
    assert len(rows) == len(families.CASES)
    distil = sum(row[2:4] == ['yes', 'yes'] for row in rows)
    assert page.startswith(families.PAGE.format(distil=distil, all=len(rows)))
    for family, _, student, teacher, *reason in rows:
        if family == 'san':
            assert (student, teacher) == ('no', 'yes')  # a student is an EncoderDecoder
        elif family in MISSING:
            assert (student, teacher) == ('no', 'no')
            assert MISSING[family] in reason[0]
        else:
            assert (student, teacher) == ('yes', 'yes'), f'{family}: {reason}'
