"""OpenMP's waiting threads sleep, unless the user chose otherwise."""

import os
import subprocess
import sys

import pytest
from helpers import TRAIN

from bdd_seg.runtime.upstream.threads import wait_passively


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, 'torch')
    for setting in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'):
        monkeypatch.setenv(setting, '')  # so that it is as before in the end
        monkeypatch.delenv(setting)


def test_waiting_is_passive_where_torch_is_still_to_come(without_torch):
    wait_passively()
    assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'


@pytest.mark.parametrize('setting', ['OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'])
def test_the_user_s_setting_stays(without_torch, monkeypatch, setting):
    monkeypatch.setenv(setting, '7')
    before = dict(os.environ)
    wait_passively()
    assert dict(os.environ) == before


def test_nothing_is_set_once_torch_is_loaded(without_torch, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', object())
    wait_passively()
    assert 'OMP_WAIT_POLICY' not in os.environ


def test_torch_s_openmp_waits_passively_in_a_tool():
    environment = {name: value for name, value in os.environ.items() if name != 'OMP_WAIT_POLICY'}
    shown = subprocess.run(
        [sys.executable, TRAIN, '--help'],
        env={**environment, 'OMP_DISPLAY_ENV': 'true'},
        capture_output=True,
        text=True,
        check=True,
    )
    if 'OPENMP DISPLAY ENVIRONMENT' not in shown.stderr:
        pytest.skip('this torch has an OpenMP that does not show its settings')
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr
