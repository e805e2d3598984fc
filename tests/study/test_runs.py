"""The training and evaluation of one run."""

import subprocess
from pathlib import Path

import pytest
import torch
from helpers import study_file

import bdd_seg
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


def git(folder: Path, *arguments) -> str:
    person = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false']
    return subprocess.run(
        ['git', '-C', folder, *person, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_revision_is_that_of_the_packages_own_checkout(monkeypatch, tmp_path):
    package = tmp_path / 'lib/bdd_seg'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('')
    monkeypatch.setattr(bdd_seg, '__file__', str(package / '__init__.py'))
    git(tmp_path, 'init')
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-m', 'of a repository that holds the environment')
    assert runs._revision() == bdd_seg.__version__
    git(package.parent, 'init')
    git(package.parent, 'add', '.')
    git(package.parent, 'commit', '-m', 'of the package')
    commit = git(package.parent, 'rev-parse', '--short=12', 'HEAD')
    assert runs._revision() == commit
    (package / '__init__.py').write_text('x = 1')
    assert runs._revision() == f'{commit}-dirty'
    monkeypatch.setattr(runs.shutil, 'which', lambda name: None)
    assert runs._revision() == bdd_seg.__version__
