"""The command ``bdd-seg``."""

import importlib
import subprocess
import sys

import pytest
from helpers import ROOT

import bdd_seg
import bdd_seg_cli


def call(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, 'argv', ['bdd-seg', *map(str, arguments)])
    bdd_seg_cli.main()


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h']])
def test_the_help_lists_the_commands(monkeypatch, capsys, arguments):
    call(monkeypatch, *arguments)
    printed = capsys.readouterr().out
    assert all(f'\n  {name} ' in printed for name in bdd_seg_cli.COMMANDS)
    assert max(map(len, printed.splitlines())) <= 100


def test_help_and_version_import_neither_torch_nor_the_package():
    code = (
        'import sys, bdd_seg_cli; bdd_seg_cli.main(); '
        'assert not {"bdd_seg", "torch", "numpy", "mmengine"} & set(sys.modules)'
    )
    for flag, expected in (('--help', 'usage: bdd-seg COMMAND'), ('--version', bdd_seg.__version__)):
        done = subprocess.run(
            [sys.executable, '-c', code, flag], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout.startswith(expected)


@pytest.mark.parametrize(
    ('command', 'hint'),
    [
        ('trian', 'Did you mean train?'),
        ('demos', 'Did you mean demo?'),
        ('x', f'There are {", ".join(bdd_seg_cli.COMMANDS)}'),
    ],
)
def test_an_unknown_command(monkeypatch, capsys, command, hint):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, command)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f'error: bdd-seg has no command {command!r}. {hint}\n'


@pytest.mark.parametrize('command', bdd_seg_cli.COMMANDS)
def test_each_command_has_its_module(monkeypatch, capsys, command):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, command, '--help')
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: bdd-seg {command} ')


def test_an_installation_that_cannot_work_ends_in_one_line(monkeypatch):
    def fail(name):
        raise ImportError('cv2 cannot be imported', name='bdd_seg')

    monkeypatch.setattr(importlib, 'import_module', fail)
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, 'train')
    assert ended.value.code == 'error: cv2 cannot be imported'


def test_another_import_error_keeps_its_traceback(monkeypatch):
    def fail(name):
        raise ImportError('cannot import x', name='bdd_seg.cli.train')

    monkeypatch.setattr(importlib, 'import_module', fail)
    with pytest.raises(ImportError, match='cannot import x'):
        call(monkeypatch, 'train')


def test_ctrl_c_during_the_imports(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, 'import_module', interrupt)
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, 'train')
    assert (ended.value.code, capsys.readouterr().err) == (130, 'interrupted\n')


SCRIPT = """
import sys
import neighbour

assert __name__ == '__main__' and 'bdd_seg' in sys.modules
print(sys.argv[1:], sys.argv[0] == __file__, neighbour.VALUE)
"""


def test_a_script_runs_with_the_package_imported(monkeypatch, capsys, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    (tmp_path / 'neighbour.py').write_text('VALUE = 7')
    monkeypatch.setattr(sys, 'path', [*sys.path])
    call(monkeypatch, 'run', tmp_path / 'script.py', '--help', 'a b', '--', '-x')
    assert capsys.readouterr().out == "['--help', 'a b', '--', '-x'] True 7\n"


def test_a_script_that_is_not_there(monkeypatch):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, 'run', 'absent.py', '--flag')
    assert ended.value.code == "error: script 'absent.py' does not exist"
