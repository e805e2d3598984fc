"""The first lines of a training that starts cold, imports included."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, TRAIN


@pytest.mark.parametrize('verbose', [False, True])
def test_a_cold_start(tiny_configs, tmp_path, verbose):
    command = [sys.executable, TRAIN, tiny_configs['distilled'], '--work-dir', tmp_path]
    environment = {**os.environ, 'BDD_SEG_VERBOSE': str(int(verbose))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    lines = (done.stderr + done.stdout).splitlines()
    first = next(i for i, line in enumerate(lines) if 'Iter(train)' in line)
    assert (first <= 20) is not verbose
    for text in ('Could not import OneDL', 'avg_non_ignore', 'FileClient', 'Hooks will be executed'):
        assert any(text in line for line in lines) is verbose
