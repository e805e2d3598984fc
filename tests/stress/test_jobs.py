"""Jobs of many processes, on one machine and on two: their results, and how they end when something dies."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from gradients_of_processes import RUNS, check_gradients, gradients_of
from helpers import ROOT, logged, miou, weights
from many_processes import (
    TEST,
    TRAIN,
    Job,
    failure,
    job,
    relative_errors,
    torchrun,
    write_config,
)

from bdd_seg.datasets.street_scenes import write_dataset

SECONDS = 240
"""Longer than any job here takes; one that takes longer hangs."""

# By default mmengine collects results in files in the current folder, which two machines may not share.
GATHERED = "val_evaluator = dict(collect_device='gpu')\n"


@pytest.fixture(scope='module')
def gradients(tiny_configs, tmp_path_factory) -> dict:
    return gradients_of(4, tiny_configs['distilled'], tmp_path_factory.mktemp('gradients'), RUNS)


@pytest.mark.parametrize('case, dtype, ignored', RUNS)
def test_four_processes_have_the_gradients_of_one(gradients, tiny_configs, case, dtype, ignored):
    check_gradients(gradients, 4, tiny_configs['distilled'], case, dtype, ignored)


def run(
    command: Sequence[str | Path], folder: Path, name: str = 'log', expect: int = 0, **environment: str
) -> str:
    """Return the output of a job that runs in ``folder``."""
    with job(command, folder / f'{name}.txt', folder, **environment) as started:
        assert started.wait(SECONDS) == expect, started.output[-3000:]
        return started.output


def train(processes: int, config: Path, folder: Path, *arguments: str, expect: int = 0) -> str:
    begin = torchrun(processes) if processes > 1 else [sys.executable]
    launcher = 'pytorch' if processes > 1 else 'none'
    command = [*begin, TRAIN, config, '--work-dir', folder / 'run', '--launcher', launcher, *arguments]
    return run(command, folder, expect=expect)


@pytest.fixture(scope='module')
def many_scenes(tmp_path_factory) -> Path:
    """20 training images, of which no number of batches of 8 makes an epoch, and 4 for validation."""
    root = tmp_path_factory.mktemp('many_scenes')
    write_dataset(root, num_train=20, num_val=4, height=48, width=96, seed=1, workers=1)
    return root


@pytest.fixture(scope='module')
def trained(tiny_configs, many_scenes, tmp_path_factory) -> dict[int, Path]:
    """Work dirs of trainings on 1, 2 and 4 processes, each with batches of 8 in all."""
    folders = {}
    for processes in (1, 2, 4):
        folders[processes] = tmp_path_factory.mktemp(f'by_{processes}')
        config = write_config(
            folders[processes] / 'config.py',
            tiny_configs['distilled'],
            batch_size=8 // processes,
            iterations=20,
            save_each=10,
            extra=f'train_dataloader["dataset"]["data_root"] = {str(many_scenes)!r}\n',
        )
        train(processes, config, folders[processes])
    return folders


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.parametrize('iteration', [10, 20])
def test_many_processes_train_what_one_does(trained, processes, iteration):
    """But for the order of float32 sums: each image's gradient is added to the others' in another one."""
    many, one = (weights(trained[n] / f'run/iter_{iteration}.pth') for n in (processes, 1))
    every, worst = relative_errors(many, one)
    print(f'{processes} processes, {iteration} iterations: {every:.1e}, worst tensor {worst:.1e}')
    assert every < 1e-6
    assert worst < 1e-4


def test_they_do_train(trained):
    begin, end = (weights(trained[1] / f'run/iter_{iteration}.pth') for iteration in (10, 20))
    assert relative_errors(end, begin)[0] > 1e-2


def test_the_log_has_the_losses_of_the_first_process_share(trained):
    first = {processes: logged(folder / 'run')[0]['loss'] for processes, folder in trained.items()}
    assert first[1] == pytest.approx(first[2], rel=0.1)
    assert len({round(loss, 4) for loss in first.values()}) == 3


@pytest.mark.parametrize('processes', [2, 4])
def test_the_first_process_alone_writes(trained, processes):
    folder = trained[processes]
    (session,) = (path.parts[-2] for path in folder.glob('run/*/*.log'))
    assert {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()} == {
        *('config.py', 'log.txt', 'run/config.py'),
        *('run/iter_10.pth', 'run/iter_20.pth', 'run/last_checkpoint'),
        *(f'run/{session}/{name}' for name in (f'{session}.log', f'vis_data/{session}.json')),
        *(f'run/{session}/vis_data/{name}' for name in ('scalars.json', 'config.py')),
    }
    log = (folder / f'run/{session}/{session}.log').read_text()
    assert [log.count(f'Iter(train) [{step:>2}/20]') for step in (1, 20)] == [1, 1]
    assert [record['step'] for record in logged(folder / 'run')] == [*range(1, 21)]


def test_each_image_counts_once_in_a_test(trained, tmp_path):
    """Three processes have 6 places for 4 images: two come twice and are left out again."""
    outputs = {}
    for processes in (1, 2, 3):
        begin = torchrun(processes) if processes > 1 else [sys.executable]
        command = [*begin, TEST, trained[1] / 'config.py', trained[1] / 'run/iter_20.pth']
        command += ['--launcher', 'pytorch' if processes > 1 else 'none', '--work-dir', tmp_path / 'run']
        outputs[processes] = run(command, tmp_path, f'by_{processes}')
    table = re.compile(r'^\| +([a-z ]+?) +\| +([\d.]+|nan) +\| +([\d.]+|nan) +\|$', re.MULTILINE)
    assert len(miou(outputs[1])) == 3
    assert len(table.findall(outputs[1])) == 19
    for processes in (2, 3):
        assert miou(outputs[processes]) == miou(outputs[1])
        assert table.findall(outputs[processes]) == table.findall(outputs[1])


def test_four_processes_write_the_cache_of_one(tiny_configs, tmp_path):
    caches = []
    for processes in (1, 4):
        begin = torchrun(processes) if processes > 1 else [sys.executable]
        command = [*begin, ROOT / 'tools/cache_teacher.py', tiny_configs['distilled'], '--workers', '0']
        command += ['--launcher', 'pytorch' if processes > 1 else 'none']
        run([*command, '--out', tmp_path / f'by_{processes}'], tmp_path)
        files = {path.name: path.read_bytes() for path in (tmp_path / f'by_{processes}').iterdir()}
        manifest = json.loads(files.pop('manifest.json'))  # where the order of the images is another
        assert len(files) == len(manifest['images']) == 8
        caches.append((files, manifest))
    assert caches[0] == caches[1]


@pytest.mark.parametrize('how', ['die', 'raise'])
@pytest.mark.parametrize('processes, rank', [(2, 0), (2, 1), (4, 2)])
def test_a_process_that_ends_takes_the_job_along(tiny_configs, tmp_path, processes, rank, how):
    marker = tmp_path / 'marker'
    extra = failure(rank=rank, iteration=4, how=how, marker=str(marker))
    extra += 'train_dataloader.update(num_workers=1, persistent_workers=True)\n'
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], extra=extra)
    command = [*torchrun(processes), TRAIN, config, '--work-dir', tmp_path / 'run', '--launcher', 'pytorch']
    with job(command, tmp_path / 'log.txt', tmp_path) as started:
        assert started.wait(SECONDS) == 1
        seconds = time.time() - float(marker.read_text())
        print(f'{processes} processes, {rank} does {how}: ended after {seconds:.1f} s')
        assert seconds < 20
        deadline = time.time() + 20  # loaders look every 5 s whether their training still is there
        while started.processes():
            assert time.time() < deadline, 'processes are left'
            time.sleep(0.1)
        root_cause = started.output.partition('Root Cause')[2]
        assert f'rank      : {rank} ' in root_cause
        assert f'exitcode  : {-9 if how == "die" else 1} ' in root_cause
        assert ('RuntimeError: this process has had enough' in started.output) is (how == 'raise')
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth')) == ['iter_3.pth']


def test_a_process_that_hangs_is_waited_for_until_the_time_out(tiny_configs, tmp_path):
    """``env_cfg.dist_cfg.timeout``, and 30 s that torchrun leaves those who do not listen."""
    marker = tmp_path / 'marker'
    extra = failure(rank=1, iteration=4, how='hang', marker=str(marker))
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], timeout=5, extra=extra)
    output = train(2, config, tmp_path, expect=1)
    print(f'ended after {time.time() - float(marker.read_text()):.1f} s')
    assert 'Timed out waiting 5000ms' in output
    assert 35 <= time.time() - float(marker.read_text()) < 90


@pytest.mark.parametrize('signal_name', ['SIGTERM', 'SIGINT'])
def test_torchrun_passes_on_the_signal_that_ends_it(tiny_configs, tmp_path, signal_name):
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], iterations=10000, save_each=5000)
    command = [*torchrun(2, '--max-restarts=3'), TRAIN, config, '--work-dir', tmp_path / 'run']
    with job([*command, '--launcher', 'pytorch'], tmp_path / 'log.txt', tmp_path) as started:
        wait_for(started, 'Iter(train) [    3/10000]')
        started.process.send_signal(getattr(signal, signal_name))
        assert started.wait(20) == 1
        assert not started.processes()


def wait_for(started: Job, text: str) -> None:
    deadline = time.time() + SECONDS
    while text not in started.output:
        assert time.time() < deadline, started.output[-3000:]
        assert started.process.poll() is None, started.output[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope='module')
def never_killed(tiny_configs, tmp_path_factory) -> dict:
    """The weights after a training on two processes."""
    folder = tmp_path_factory.mktemp('never_killed')
    train(2, write_config(folder / 'config.py', tiny_configs['distilled']), folder)
    return weights(folder / 'run/iter_6.pth')


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_two_restarts_end_as_no_restart(tiny_configs, never_killed, tmp_path):
    """The first before there is a checkpoint, of rank 0; the second of rank 1, after the first checkpoint."""
    extra = failure(rank=0, iteration=1, how='die', marker=str(tmp_path / 'first'))
    extra += failure(rank=1, iteration=5, how='raise', marker=str(tmp_path / 'second'))
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], extra=extra)
    command = [*torchrun(2, '--max-restarts=2'), TRAIN, config, '--work-dir', tmp_path / 'run']
    output = run([*command, '--launcher', 'pytorch', '--resume'], tmp_path)
    assert [record['step'] for record in logged(tmp_path / 'run')] == [1, 1, 2, 3, 4, 5, 4, 5, 6]
    assert 'iterations  4 to 6' in output
    assert same(weights(tmp_path / 'run/iter_6.pth'), never_killed)


def test_what_srun_sets_is_enough(tiny_configs, never_killed, jobs, tmp_path):
    """``--launcher slurm`` without SLURM: its variables, and the address that scontrol would tell."""
    # mmengine's launcher wants to choose a GPU before it makes the group of processes
    on_cpus = tmp_path / 'on_cpus.py'
    on_cpus.write_text(
        'import runpy, sys, torch\n'
        'torch.cuda.set_device = lambda device: None\n'
        'sys.argv = sys.argv[1:]\n'
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    extra = "env_cfg['dist_cfg']['backend'] = 'gloo'\nmodel_wrapper_cfg = dict(device_ids=None)\n"
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], extra=extra)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    told = {'SLURM_NTASKS': '2', 'SLURM_NODELIST': 'here', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    command = [sys.executable, on_cpus, TRAIN, config, '--work-dir', tmp_path / 'run', '--launcher', 'slurm']
    for i in range(2):
        place = {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)}
        jobs.append(Job(command, tmp_path / f'log{i}.txt', tmp_path, **told, **place))
    assert [each.wait(SECONDS) for each in jobs] == [0, 0], [each.output[-2000:] for each in jobs]
    assert same(weights(tmp_path / 'run/iter_6.pth'), never_killed)


def test_sync_bn_on_cpus_ends_in_one_line(tiny_configs, tmp_path):
    output = train(2, tiny_configs['distilled'], tmp_path, expect=1)
    assert 'error: SyncBN works with GPUs only. On several CPU processes pass --cfg-options' in output


class Hosts:
    """Two network namespaces with a cable between them."""

    def __init__(self) -> None:
        self.names = [f'bdd{os.getpid()}{letter}' for letter in 'ab']

    def make(self) -> None:
        for name in self.names:
            self.ip('netns', 'add', name)
        self.ip(
            'link',
            'add',
            'net0',
            'netns',
            self.names[0],
            'type',
            'veth',
            'peer',
            'name',
            'net0',
            'netns',
            self.names[1],
        )
        for i in range(2):
            self.ip('-n', self.names[i], 'addr', 'add', f'10.77.0.{i + 1}/24', 'dev', 'net0')
            for device in ('net0', 'lo'):
                self.ip('-n', self.names[i], 'link', 'set', device, 'up')

    def cut(self) -> None:
        self.ip('-n', self.names[1], 'link', 'set', 'net0', 'down')

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True)

    def ip(self, *arguments: str) -> None:
        subprocess.run(['ip', *arguments], check=True, capture_output=True, text=True)

    def train(self, host: int, config: Path, folder: Path, name: str, *options: str) -> Job:
        """Two processes each, as the guide says, where no name resolves to these addresses."""
        folder.mkdir(exist_ok=True)
        address = [f'--local-addr=10.77.0.{host + 1}', f'--rdzv-conf=is_host={int(host == 0)}']
        command = [
            'ip',
            'netns',
            'exec',
            self.names[host],
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--nnodes=2',
            '--nproc-per-node=1',
            '--rdzv-backend=c10d',
            '--rdzv-endpoint=10.77.0.1:29500',
            *address,
            *options,
            TRAIN,
            config,
            '--launcher',
            'pytorch',
            '--work-dir',
            config.parent / 'run',
            '--resume',
        ]
        return Job(command, folder / f'{name}.txt', folder, GLOO_SOCKET_IFNAME='net0')


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which('ip') is None:
        pytest.skip('there is no ip command (iproute2)')
    hosts = Hosts()
    try:
        hosts.make()
    except subprocess.CalledProcessError as error:
        hosts.remove()
        pytest.skip(f'network namespaces cannot be made here: {error.stderr.strip()}')
    yield hosts
    hosts.remove()


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Those put in it are dead when the test ends."""
    started: list[Job] = []
    yield started
    for each in started:
        each.kill()


def test_two_hosts_train_what_two_processes_do(hosts, jobs, tiny_configs, never_killed, tmp_path):
    """From current folders of their own: only the work dir is theirs together."""
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], extra=GATHERED)
    jobs += [hosts.train(host, config, tmp_path / f'host{host}', 'log') for host in range(2)]
    assert [each.wait(SECONDS) for each in jobs] == [0, 0], [each.output[-2000:] for each in jobs]
    assert same(weights(tmp_path / 'run/iter_6.pth'), never_killed)
    assert len([*tmp_path.glob('run/*/*.log')]) == 1
    assert not [path for host in range(2) for path in (tmp_path / f'host{host}').iterdir() if path.is_dir()]


def test_a_process_that_dies_on_one_host_is_restarted(hosts, jobs, tiny_configs, never_killed, tmp_path):
    extra = failure(rank=1, iteration=4, how='die', marker=str(tmp_path / 'marker'))
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], extra=extra)
    jobs += [hosts.train(host, config, tmp_path, f'log{host}', '--max-restarts=2') for host in range(2)]
    assert [each.wait(SECONDS) for each in jobs] == [0, 0], [each.output[-2000:] for each in jobs]
    assert (tmp_path / 'marker').exists()
    assert same(weights(tmp_path / 'run/iter_6.pth'), never_killed)


def test_a_host_that_comes_back_goes_on(hosts, jobs, tiny_configs, never_killed, tmp_path):
    """The other waits for it, as long as ``--rdzv-conf=join_timeout`` says."""
    marker = tmp_path / 'marker'
    extra = failure(rank=1, iteration=4, how='hang', marker=str(marker))
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], extra=extra)
    jobs += [hosts.train(host, config, tmp_path, f'log{host}', '--max-restarts=2') for host in range(2)]
    wait_for_file(marker)
    jobs[1].kill()
    jobs.append(hosts.train(1, config, tmp_path, 'log2', '--max-restarts=2'))
    assert [jobs[i].wait(SECONDS) for i in (0, 2)] == [0, 0], [each.output[-2000:] for each in jobs]
    assert same(weights(tmp_path / 'run/iter_6.pth'), never_killed)


def wait_for_file(path: Path) -> None:
    deadline = time.time() + SECONDS
    while not path.exists():
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_host_that_dies_takes_the_job_along(hosts, jobs, tiny_configs, tmp_path, victim):
    config = write_config(tmp_path / 'config.py', tiny_configs['distilled'], iterations=10000, save_each=5000)
    jobs += [hosts.train(host, config, tmp_path, f'log{host}') for host in range(2)]
    wait_for(jobs[0], 'Iter(train) [    3/10000]')
    jobs[victim].kill()
    begin = time.time()
    assert jobs[1 - victim].wait(SECONDS) == 1
    print(f'the other ended after {time.time() - begin:.1f} s')
    assert time.time() - begin < 20
    assert re.search('Connection (closed|reset) by peer', jobs[1 - victim].output)


def test_a_cable_that_is_cut_is_noticed_after_the_time_out(hosts, jobs, tiny_configs, tmp_path):
    config = write_config(
        tmp_path / 'config.py', tiny_configs['distilled'], iterations=10000, save_each=5000, timeout=10
    )
    jobs += [hosts.train(host, config, tmp_path, f'log{host}') for host in range(2)]
    wait_for(jobs[0], 'Iter(train) [    3/10000]')
    hosts.cut()
    begin = time.time()
    assert jobs[0].wait(SECONDS) == 1
    print(f'the first ended after {time.time() - begin:.1f} s')
    assert 10 <= time.time() - begin < 40
    for each in jobs:  # torchrun itself waits longer on the host that is cut off from the rendezvous
        wait_for_text(each, 'Timed out waiting 10000ms')


def wait_for_text(started: Job, text: str) -> None:
    deadline = time.time() + 40
    while text not in started.output:
        assert time.time() < deadline, started.output[-3000:]
        time.sleep(0.05)


def test_hosts_that_share_no_work_dir_do_not_resume(hosts, jobs, tiny_configs, tmp_path):
    """One would go on from a checkpoint, and the other begin."""
    folders = [tmp_path / 'a', tmp_path / 'b']
    for folder in folders:
        folder.mkdir()
        config = write_config(folder / 'config.py', tiny_configs['distilled'])
    train(2, config, folders[0])
    for name in ('iter_6.pth', 'last_checkpoint'):
        (folders[0] / 'run' / name).unlink()
    jobs += [hosts.train(i, folders[i] / 'config.py', folders[i], 'log') for i in range(2)]
    assert [each.wait(SECONDS) for each in jobs] == [1, 1]
    assert 'the processes resume at different iterations, [3, 0]' in jobs[0].output
