"""Fixtures that run the tools, in this process, and compare their outcome with the expected one."""

import re
import shutil
from pathlib import Path

import pytest
from trial import NO_VALIDATION, SHORT, TRAIN, Trial, named


@pytest.fixture(autouse=True)
def _in_half_the_time(monkeypatch):
    """Runs leave out what takes half of a short one: laying out their configs, and looking for compilers."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


@pytest.fixture
def attempt(monkeypatch, tmp_path):
    """Runs a tool with the work dir ``run``."""

    def start(tool: Path, *arguments, options=(), flags=()) -> Trial:
        options = [*map(str, options), *named(tmp_path)]
        work_dir = [] if '--work-dir' in flags else ['--work-dir', tmp_path / 'run']
        arguments = [*arguments, *work_dir, *flags, '--cfg-options', *options]
        return Trial(monkeypatch, tmp_path, tool, *arguments)

    return start


@pytest.fixture
def refused(attempt):
    """Runs a tool, and checks that it ends with the expected line, before it has written a checkpoint."""

    def start(expected: str, *arguments, bug=False, **more) -> str:
        trial = attempt(*arguments, **more)
        assert isinstance(trial.message, str), trial.losses
        assert re.search(expected, trial.message), trial.message
        assert ('Traceback' in trial.errors) == bug
        return trial.message

    return start


@pytest.fixture(scope='module')
def reference(tiny_configs, tmp_path_factory) -> list[float]:
    """The losses of the student on the data set as it is."""
    folder = tmp_path_factory.mktemp('reference')
    arguments = [tiny_configs['student'], '--work-dir', 'run', '--cfg-options', *SHORT, *NO_VALIDATION]
    with pytest.MonkeyPatch.context() as patch:
        trial = Trial(patch, folder, TRAIN, *arguments, *named(folder))
    assert (trial.message, len(trial.losses)) == (None, 2)
    return trial.losses


@pytest.fixture
def data(scenes, tmp_path) -> Path:
    """A data set that may be spoilt."""
    return Path(shutil.copytree(scenes, tmp_path / 'data'))
