"""Two trainings never write into one work dir."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import ROOT, TRAIN, complaint, study_file

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.work_dir import LOCK_FILE, hold_work_dir


@contextmanager
def other_process(folder):
    """A process that holds the folder. Killed at the end of the block, if not before."""
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe()

    def hold():
        sys.argv = ['tools/train.py', 'my config.py']
        with hold_work_dir(folder):
            there.send('held')
            there.recv()

    process = context.Process(target=hold)
    process.start()
    assert here.recv() == 'held'
    try:
        yield process, here
    finally:
        process.kill()
        process.join()


def write_holder(folder, **changes):
    holder = {'pid': os.getppid(), 'host': socket.gethostname(), 'since': 'today', 'command': 'train'}
    (folder / LOCK_FILE).write_text(json.dumps({**holder, **changes}))


def without_locks(*_):
    raise OSError(errno.ENOLCK, 'No locks available')


def test_a_second_training_is_refused_with_what_holds_the_folder(tmp_path):
    folder = tmp_path / 'new/run'
    with other_process(folder) as (process, pipe):
        for _ in range(2):  # a call that was refused has not released the lock
            with pytest.raises(ConfigError) as refused, hold_work_dir(folder):
                pass
        message = str(refused.value)
        assert message.startswith(
            f"'{folder}' is in use by process {process.pid} on {socket.gethostname()} since 20"
        )
        assert message.endswith(
            ": tools/train.py 'my config.py'. Wait for it, end it there by "
            f'"kill {process.pid}", or choose another --work-dir'
        )
        pipe.send('end')
        process.join()
        assert process.exitcode == 0
    assert not list(folder.iterdir())
    with hold_work_dir(folder):
        assert json.loads((folder / LOCK_FILE).read_text())['pid'] == os.getpid()


@pytest.mark.parametrize('flags', [[], ['--resume']])
def test_the_training_tool_writes_nothing_into_a_folder_in_use(monkeypatch, tiny_configs, tmp_path, flags):
    with other_process(tmp_path) as (process, _):
        message = complaint(monkeypatch, TRAIN, tiny_configs['student'], '--work-dir', tmp_path, *flags)
        assert message.startswith(f"error: '{tmp_path}' is in use by process {process.pid} on ")
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_two_studies_have_two_folders(monkeypatch, tiny_configs, tmp_path):
    file, folder = study_file(tiny_configs, tmp_path), tmp_path / 'out'
    with other_process(folder) as (process, _):
        message = complaint(monkeypatch, ROOT / 'tools/study.py', file, '--work-dir', folder)
        assert message.startswith(f"error: '{folder}' is in use by process {process.pid} on ")
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]


@pytest.mark.parametrize('left', [None, '{"pid": 1', '{}'])
def test_what_a_kill_leaves_behind_blocks_nobody(tmp_path, left):
    with other_process(tmp_path) as (process, _):
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert json.loads((tmp_path / LOCK_FILE).read_text())['pid'] == process.pid
    if left is not None:
        (tmp_path / LOCK_FILE).write_text(left)
    with hold_work_dir(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())['pid'] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_forked_processes_neither_keep_nor_drop_the_lock(tmp_path):
    """Such as those of data loaders."""
    context = multiprocessing.get_context('fork')

    def refused(pipe):
        try:
            with hold_work_dir(tmp_path):
                pipe.send(False)
        except ConfigError:
            pipe.send(True)

    here, there = context.Pipe()
    sleeping = context.Process(target=signal.pause)
    with hold_work_dir(tmp_path):
        sleeping.start()
        for _ in range(2):
            process = context.Process(target=refused, args=[there])
            process.start()
            assert here.recv()
            process.join()
    process = context.Process(target=refused, args=[there])
    process.start()
    assert not here.recv()
    process.join()
    sleeping.kill()
    sleeping.join()


def test_an_exception_releases_the_folder(tmp_path):
    with pytest.raises(RuntimeError), hold_work_dir(tmp_path):
        raise RuntimeError
    with other_process(tmp_path):
        pass


def test_a_file_that_its_holder_removed_meanwhile_is_made_anew(monkeypatch, tmp_path):
    """The holder ends between another one's opening of the file and its lock."""

    def lockf(descriptor, *_):
        if len(descriptors) < 2:
            (tmp_path / LOCK_FILE).unlink()
        if len(descriptors) == 1:
            (tmp_path / LOCK_FILE).touch()  # by a third one
        descriptors.append(descriptor)

    descriptors = []
    monkeypatch.setattr(fcntl, 'lockf', lockf)
    with hold_work_dir(tmp_path):
        assert len(descriptors) == 3
        assert (tmp_path / LOCK_FILE).samefile(Path(f'/proc/self/fd/{descriptors[-1]}'))


@pytest.mark.parametrize(
    'launcher, variable, rank, held',
    [
        ('pytorch', 'RANK', '1', False),
        ('slurm', 'SLURM_PROCID', '3', False),
        ('mpi', 'OMPI_COMM_WORLD_RANK', '1', False),
        ('pytorch', 'RANK', '0', True),
        ('none', 'RANK', '1', True),
    ],
)
def test_of_a_launchers_processes_the_first_holds_the_folder(
    monkeypatch, tmp_path, launcher, variable, rank, held
):
    monkeypatch.setenv(variable, rank)
    with hold_work_dir(tmp_path, launcher):
        assert (tmp_path / LOCK_FILE).exists() == held
    assert not list(tmp_path.iterdir())


def test_without_locks_the_file_has_to_do(monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr(fcntl, 'lockf', without_locks)
    write_holder(tmp_path)
    with pytest.raises(ConfigError, match=f'in use by process {os.getppid()} on'), hold_work_dir(tmp_path):
        pass
    for pid in (2**22 + 1, os.getpid()):  # more than Linux gives; this container's last process had it
        write_holder(tmp_path, pid=pid)
        with hold_work_dir(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())['pid'] == os.getpid()
    with hold_work_dir(tmp_path):
        pass
    assert not recwarn.list
    write_holder(tmp_path, host='elsewhere', pid=7)
    with (
        pytest.warns(UserWarning, match='if process 7 on elsewhere still runs, both write'),
        hold_work_dir(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r"file/run/.running' cannot be written: Not a directory"):
        hold_work_dir(tmp_path / 'file/run').__enter__()


def test_processes_of_others_are_alive(monkeypatch, tmp_path):
    def kill(*_):
        raise PermissionError

    monkeypatch.setattr(fcntl, 'lockf', without_locks)
    monkeypatch.setattr(os, 'kill', kill)
    write_holder(tmp_path)
    with pytest.raises(ConfigError, match='is in use'), hold_work_dir(tmp_path):
        pass
