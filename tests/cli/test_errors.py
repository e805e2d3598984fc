import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from bdd_seg.cli import errors
from bdd_seg.cli.errors import one_line_errors, reason
from bdd_seg.errors import ConfigError


@one_line_errors('interrupted; go on')
def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    'error, line, traceback',
    [
        (ConfigError('model has no type'), 'error: model has no type', False),
        (
            pickle.UnpicklingError('x'),
            'error: the checkpoint loaded last holds more than weights, and',
            False,
        ),
        (KeyError('LOUD'), "error: KeyError: 'LOUD'", True),
        (RuntimeError('one\n  two'), 'error: RuntimeError: one', True),
        (
            torch.OutOfMemoryError('no memory'),
            'error: OutOfMemoryError: no memory. Lower the batch_size',
            True,
        ),
    ],
)
def test_the_last_line(capsys, monkeypatch, error, line, traceback):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')  # it is set, and would stay so
    with pytest.raises(SystemExit) as ended:
        fail(error)
    assert ended.value.code.startswith(line)
    assert '\n' not in ended.value.code
    assert ('Traceback' in capsys.readouterr().err) == traceback


@pytest.mark.parametrize('name, code', [('SIGINT', 130), ('SIGTERM', 143), ('SIGHUP', 129)])
@pytest.mark.parametrize('error', [None, RuntimeError('DataLoader worker exited unexpectedly')])
def test_signals_interrupt_and_handlers_are_given_back(capfd, monkeypatch, name, code, error):
    def work():
        try:
            os.kill(os.getpid(), number)
            pytest.fail('not interrupted')
        finally:
            os.kill(os.getpid(), number)  # sent twice, as timeout(1) does
            cleaned.append(True)
            if error:
                raise error

    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(errors.time, 'monotonic', lambda: 10.0)
    number, cleaned = getattr(signal, name), []
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, one_line_errors('interrupted; go on'):
        work()
    assert ended.value.code == code
    assert cleaned == [True]
    assert capfd.readouterr().err == 'interrupted; go on\n'
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_interrupts_the_cleaning(capfd, monkeypatch):
    now = [10.0]
    monkeypatch.setattr(errors.time, 'monotonic', lambda: now[0])
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(SystemExit) as ended, one_line_errors():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            now[0] = 12.0
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail('not interrupted')
    assert ended.value.code == 130


def test_ignored_signals_stay_ignored_and_launchers_end_their_processes_themselves(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with one_line_errors():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_keyboard_interrupt_without_a_signal(capfd, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(SystemExit) as ended:
        fail(KeyboardInterrupt())
    assert ended.value.code == 130
    assert capfd.readouterr().err == 'interrupted; go on\n'


def test_handlers_are_for_the_main_thread(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    found = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(one_line_errors()(lambda: found.append(signal.getsignal(signal.SIGTERM)))).result()
    assert found == [signal.getsignal(signal.SIGTERM)]


class Clumsy(Hook):
    def before_run(self, runner):
        len(3)


def test_the_traceback_of_a_hook_is_shown(capsys, monkeypatch):
    """mmengine replaces a hook's ``TypeError`` by another, without where it came from."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    runner = object.__new__(Runner)
    runner._hooks = [Clumsy()]
    with pytest.raises(SystemExit) as ended, one_line_errors():
        runner.call_hook('before_run')
    assert ended.value.code.startswith("error: TypeError: object of type 'int' has no len() in <")
    assert 'Clumsy' in ended.value.code
    assert 'len(3)' in capsys.readouterr().err


class Numbers(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {}[i]


def test_the_first_line_of_an_error_in_a_data_loaders_process(capsys, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(SystemExit) as ended, one_line_errors():
        next(iter(DataLoader(Numbers(), num_workers=1)))
    assert ended.value.code == 'error: KeyError: Caught KeyError in DataLoader worker process 0.'
    assert 'return {}[i]' in capsys.readouterr().err


def silent(size: int) -> None:
    if size < 0:
        raise AssertionError


@pytest.mark.parametrize(
    'error, expected',
    [(ValueError(' a\n b '), 'a b'), (ValueError(), ''), (KeyError('a'), "'a'"), (AssertionError(), '')],
)
def test_reason(error, expected):
    assert reason(error) == expected


def test_the_reason_of_an_assertion_without_a_message():
    with pytest.raises(AssertionError) as caught:
        silent(-1)
    assert reason(caught.value) == 'raise AssertionError does not hold'
