import logging
import os
import warnings
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from bdd_seg.runtime.upstream.console import QuietRunner, is_verbose, quiet_warnings


@pytest.fixture
def build_runner(tiny_configs, tmp_path):
    """Builds a runner within the test, whose standard output is then the one that pytest captures."""

    def start(**changes) -> QuietRunner:
        cfg = Config.fromfile(tiny_configs['student'])
        cfg.update(work_dir=str(tmp_path), experiment_name=tmp_path.name, **changes)
        cfg.visualizer.name = tmp_path.name
        return QuietRunner.from_cfg(cfg)

    return start


def log_file(runner) -> str:
    (file,) = Path(runner.log_dir).glob('*.log')
    return file.read_text()


def test_the_log_file_has_what_the_console_leaves_out(build_runner, capsys):
    runner = build_runner()
    runner.logger.warning('a warning')
    runner.open_console()
    runner.logger.info('from here on')
    printed, log = capsys.readouterr().out, log_file(runner)
    assert 'a warning' in printed and 'from here on' in printed
    assert len(printed.splitlines()) == 2
    for text in ('System environment', 'Hooks will be executed', 'train_dataloader = dict(', 'a warning'):
        assert text in log


def test_a_shell_that_finds_no_compiler_is_not_heard(build_runner, capfd, monkeypatch):
    monkeypatch.setattr(Runner, '_log_env', lambda runner, env_cfg: os.system('echo sh: no gcc >&2'))
    build_runner().logger.warning('a warning')
    printed = capfd.readouterr()
    assert 'no gcc' not in printed.out + printed.err
    os.system('echo heard again >&2')
    assert capfd.readouterr().err == 'heard again\n'


def test_logged_warnings_that_nobody_can_act_on_are_left_out(build_runner, capsys):
    runner = build_runner()
    runner.build_evaluator({'type': 'IoUMetric'})
    print_log('"FileClient" will be deprecated in future', runner.logger, logging.WARNING)
    runner.logger.warning('a warning')
    assert [line[-9:] for line in capsys.readouterr().out.splitlines()] == ['a warning']
    assert 'The prefix is not set' in log_file(runner)


def test_a_level_of_the_configs_own_stays(build_runner, capsys):
    runner = build_runner(log_level='ERROR')
    runner.logger.warning('before')
    runner.open_console()
    runner.logger.warning('after')
    runner.logger.error('an error')
    assert [line[-8:] for line in capsys.readouterr().out.splitlines()] == ['an error']


def test_warnings_are_shown_once_and_defaults_not_at_all():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        quiet_warnings()
        defaults = 'The draw is False, it means', 'DeprecationWarning: pretrained is a deprecated, please'
        for text in ('of the student', *defaults, 'of the student', 'of the data'):
            warnings.warn(text, stacklevel=1)
            with warnings.catch_warnings():  # as torch does, which makes Python forget what it has shown
                warnings.simplefilter('ignore')
    assert [str(warning.message) for warning in caught] == ['of the student', 'of the data']


@pytest.mark.parametrize('value, expected', [(None, False), ('', False), ('0', False), ('1', True)])
def test_the_environment_can_ask_for_everything(monkeypatch, value, expected):
    monkeypatch.delenv('BDD_SEG_VERBOSE', raising=False)
    if value is not None:
        monkeypatch.setenv('BDD_SEG_VERBOSE', value)
    assert is_verbose() is expected
