"""Jobs of many processes on CPUs: how tests start one, see it end, and leave nothing running behind.

A training imports this module as well (``custom_imports``), for what goes wrong in it on purpose.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch.nn.modules.batchnorm import _BatchNorm

TESTS = Path(__file__).parent
TRAIN, TEST = TESTS.parent / 'tools/train.py', TESTS.parent / 'tools/test.py'

# What is drawn from one global batch is the same however many processes share it: no crops, flips or
# dropout, and BatchNorm in eval mode. In train mode it would take the statistics of each process's share,
# and SyncBN, which takes everybody's, has no CPU version.
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['bdd_seg', 'many_processes'])
norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg, dropout_ratio=0),
    auxiliary_head=dict(norm_cfg=norm_cfg, dropout_ratio=0))
train_dataloader = dict(batch_size={batch_size}, dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(64, 32)),
    dict(type='PackSegInputs')]))
train_cfg = dict(max_iters={iterations}, val_interval={iterations})
default_hooks = dict(checkpoint=dict(interval={save_each}))
custom_hooks = [dict(type='EvalBatchNorm'), dict(type='LossStateHook')]
env_cfg = dict(dist_cfg=dict(timeout={timeout}))
"""


@HOOKS.register_module()
class EvalBatchNorm(Hook):
    """Keeps every BatchNorm in eval mode."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@HOOKS.register_module()
class Fail(Hook):
    """Lets one process fail before an iteration, once.

    Args:
        rank: Of the process.
        iteration: Counted from 0.
        how: ``'die'`` without a word, as where the memory ran out; ``'raise'`` an exception; or ``'hang'``.
        marker: A file that says it has happened.
    """

    def __init__(self, rank: int, iteration: int, how: str, marker: str) -> None:
        self.rank, self.iteration, self.how, self.marker = rank, iteration, how, Path(marker)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank != self.rank or runner.iter != self.iteration or self.marker.exists():
            return
        self.marker.write_text(str(time.time()))
        if self.how == 'raise':
            raise RuntimeError('this process has had enough')
        os.kill(os.getpid(), signal.SIGKILL if self.how == 'die' else signal.SIGSTOP)


class Job:
    """A command, all the processes that it starts, and what they print."""

    def __init__(self, command: Sequence[str], log: Path, cwd: Path, **environment: str) -> None:
        self.log = log
        self._mark = f'TEST_JOB={uuid.uuid4().hex}'
        name, _, value = self._mark.partition('=')
        environment = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(TESTS), os.environ.get('PYTHONPATH', '')]),
            'OMP_NUM_THREADS': '1',
            'CUDA_VISIBLE_DEVICES': '-1',
            # Processes that torchrun restarts read addresses of those that died from the store they share
            # by default, and fail or wait for them until the time-out (pytorch issue 135712).
            'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1',
            name: value,
            **environment,
        }
        self.started = time.time()
        with log.open('w') as file:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=file, stderr=file, cwd=cwd, env=environment
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 3600) -> int:
        """The exit code; fails where it takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'still running after {seconds} s:\n{self.output[-3000:]}') from None

    def processes(self) -> list[int]:
        """The ids of all that still run, wherever they were moved to: known by their environment."""
        found = []
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                state = (folder / 'stat').read_text().rpartition(')')[2].split()[0]
                if state != 'Z' and self._mark.encode() in (folder / 'environ').read_bytes().split(b'\0'):
                    found.append(int(folder.name))
            except OSError:  # it ended meanwhile
                continue
        return found

    def kill(self) -> None:
        self.process.kill()
        while processes := self.processes():
            for process in processes:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        self.process.wait()


@contextmanager
def job(command: Sequence[str], log: Path, cwd: Path, **environment: str) -> Iterator[Job]:
    """A :class:`Job` of which nothing runs any more when the block ends."""
    started = Job(command, log, cwd, **environment)
    try:
        yield started
    finally:
        started.kill()


def torchrun(processes: int, *options: str, python: str = sys.executable) -> list[str]:
    """The beginning of a command line that runs a tool on one machine, at a port that is free.

    With ``python=warm_python()`` it starts at once, but :meth:`Job.processes` does not see what it starts.
    """
    return [
        python,
        '-m',
        'torch.distributed.run',
        '--standalone',
        f'--nproc-per-node={processes}',
        *options,
    ]


def write_config(path: Path, base: Path, *, extra: str = '', **settings: int) -> Path:
    """A config of :data:`CONFIG`; ``extra`` is appended to it."""
    settings = {'batch_size': 2, 'iterations': 6, 'save_each': 3, 'timeout': 600, **settings}
    path.write_text(CONFIG.format(base=str(base), **settings) + extra)
    return path


def failure(**settings: object) -> str:
    """Return a line for the end of a config that makes :class:`Fail` happen."""
    settings = {'type': 'Fail', **settings}
    return f'custom_hooks.append({settings!r})\n'


def relative_errors(ours: dict, reference: dict) -> tuple[float, float]:
    """The norm of the difference over that of the reference: of all tensors as one, and of the worst one."""
    assert ours.keys() == reference.keys()
    pairs = [
        (ours[key].double(), value.double())
        for key, value in reference.items()
        if torch.is_floating_point(value)
    ]
    differences = torch.stack([(a - b).norm() for a, b in pairs])
    sizes = torch.stack([b.norm() for _, b in pairs])
    each = differences / sizes.where(differences > 0, torch.ones_like(sizes))
    return (differences.norm() / sizes.norm()).item(), each.max().item()
