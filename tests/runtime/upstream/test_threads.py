"""OpenMP's waiting threads sleep soon, unless the user chose otherwise."""

import os
import subprocess
import sys
from itertools import takewhile

import pytest
from helpers import TRAIN

from bdd_seg.runtime.upstream.threads import SPIN_COUNT, shorten_waits

SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, 'torch')
    for setting in SETTINGS:
        monkeypatch.setenv(setting, '')  # so that it is as before in the end
        monkeypatch.delenv(setting)


def test_waits_are_short_where_torch_is_still_to_come(without_torch):
    shorten_waits()
    assert os.environ['GOMP_SPINCOUNT'] == str(SPIN_COUNT)


@pytest.mark.parametrize('setting', SETTINGS)
def test_the_user_s_setting_stays(without_torch, monkeypatch, setting):
    monkeypatch.setenv(setting, '7')
    before = dict(os.environ)
    shorten_waits()
    assert dict(os.environ) == before


def test_nothing_is_set_once_torch_is_loaded(without_torch, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', object())
    shorten_waits()
    assert 'GOMP_SPINCOUNT' not in os.environ


def test_torch_s_openmp_knows_it_in_a_tool():
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment['OMP_DISPLAY_ENV'] = 'verbose'
    with subprocess.Popen(
        [sys.executable, TRAIN, '--help'], env=environment, stderr=subprocess.PIPE, text=True
    ) as tool:
        shown = ''.join(takewhile(lambda line: 'DISPLAY ENVIRONMENT END' not in line, tool.stderr))
        tool.kill()  # OpenMP tells when it is loaded, and the other imports take seconds
    if 'GOMP_SPINCOUNT' not in shown:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in shown
