"""The training and evaluation of one run."""

import pytest
import torch
from helpers import study_file

from bdd_seg.study import runs
from bdd_seg.study.configs import make_run
from bdd_seg.study.processes import PYTHON
from bdd_seg.study.runs import train_and_test
from bdd_seg.study.settings import load_study


def test_a_checkpoint_half_written_is_not_evaluated(tiny_configs, monkeypatch, tmp_path):
    study = load_study(study_file(tiny_configs, tmp_path))
    run, called = make_run(study, 'alone', 'final', 1, {}), []
    (tmp_path / 'iter_6.pth').write_text('half')
    torch.save({}, tmp_path / 'iter_4.pth')
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_4.pth')
    monkeypatch.setattr(runs, 'run_command', lambda line, *_: called.append(line) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_and_test(run, tmp_path, study, {}, lambda: False)
    assert called[0][len(PYTHON) :][:2] == ['-m', 'bdd_seg.cli.train']
