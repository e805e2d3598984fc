"""The runs of a study: which they are, whether they may be compared, and each as a user would start it."""

import fcntl
import hashlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TextIO

import torch
from mmengine.config import Config, ConfigDict

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.resume import latest_checkpoint
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.study.logs import read_log, read_scores, seconds_per_iteration
from bdd_seg.study.settings import Options, Preparation, Study, full_keys, in_short

TOOLS = Path(__file__).parents[2] / 'tools'

# What runs must share to be compared: data, schedule and crop; the student is looked at too.
_SHARED = (
    'train_dataloader', 'val_dataloader', 'test_dataloader', 'test_evaluator', 'train_cfg', 'optim_wrapper',
    'param_scheduler', 'load_from', 'custom_hooks',
)  # fmt: skip
_OF_LOSSES = ('LossStateHook', 'LossScheduleHook')  # the hooks that are part of a method
_DISTILLERS = {'SegDistiller': 'EncoderDecoder', 'CascadeSegDistiller': 'CascadeEncoderDecoder'}


class StoppedError(Exception):
    """The study was asked to stop while a run was going on."""


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        method: Name of its method.
        stage: ``'search'``, ``'final'``, or ``'reference'`` for a network that is only evaluated.
        equal: What it gets the same amount of as others: ``'iterations'`` or ``'wall_clock'``.
        seed: Its seed.
        setting: What the search set.
        splits: Where it is evaluated.
        cfg: The whole config.
        checkpoint: That of a reference.
    """

    method: str
    stage: str
    equal: str
    seed: int
    setting: Options
    splits: dict[str, Options]
    cfg: Config
    checkpoint: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """A digest of the config, the same wherever the project lies."""
        text = self.cfg.pretty_text.replace(f'{TOOLS.parent}/', '').replace(f'{Path.cwd()}/', '')
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Short and unique, for a folder. Two runs of one config are one."""
        return f'{self.method}-seed{self.seed}-{self.sha256[:12]}'

    def circumstances(self, study: Study) -> dict[str, Any]:
        """What besides the config decides what comes out: flags, what it is evaluated on, the teacher."""
        teacher = self.cfg.model.get('teacher', {})
        file = Path(teacher['cache']) / 'manifest.json' if 'cache' in teacher else teacher.get('checkpoint')
        return {
            'train_flags': study.train_flags,
            'splits': self.splits,
            'checkpoint': _digest(self.checkpoint),
            'teacher': _digest(file),
        }

    def described(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The run with what came out of it, as :mod:`bdd_seg.study.report` knows it."""
        return {
            'method': self.method, 'stage': self.stage, 'equal': self.equal, 'seed': self.seed,
            'setting': self.setting, 'config_sha256': self.sha256, **facts,
        }  # fmt: skip

    def __str__(self) -> str:
        setting = f' ({in_short(self.setting)})' if self.setting else ''
        return f'{self.stage} {self.method}{setting} seed {self.seed}'


def make_run(
    study: Study, method: str, stage: str, seed: int, setting: Options, equal: str = 'iterations',
    iterations: int | None = None,
) -> Run:  # fmt: skip
    """The run of a method with a setting and a seed.

    Raises:
        ConfigError: The config cannot be read, or an override does not fit into it.
    """
    cfg = _config(study, study.methods[method].config, study.methods[method].options, setting)
    cfg.merge_from_dict({'randomness.seed': seed})
    if stage == 'search':
        iterations = study.search_iterations
    _set_length(cfg, iterations or iterations_of(study))
    splits = {study.select_on: study.splits[study.select_on]} if stage == 'search' else study.splits
    return Run(method, stage, equal, seed, setting, splits, cfg)


def reference_runs(study: Study) -> list[Run]:
    """The evaluation of the teacher, where the study names one."""
    if study.teacher is None:
        return []
    cfg = _config(study, study.teacher.config, {}, {})
    return [Run('teacher', 'reference', 'iterations', 0, {}, study.splits, cfg, study.teacher.checkpoint)]


def iterations_of(study: Study) -> int:
    """How long each final run is."""
    control = study.methods[study.control]
    return study.iterations or _max_iters(_config(study, control.config, control.options, {}))


def check_comparable(study: Study) -> None:
    """Refuse a study whose methods differ in more than how they distil.

    Raises:
        ConfigError: It names the first key that differs.
    """
    control = _shared(make_run(study, study.control, 'final', 0, {}).cfg)
    for name, method in study.methods.items():
        for setting in method.search or [{}]:
            other = _shared(make_run(study, name, 'final', 0, setting).cfg)
            for key in sorted(control.keys() | other.keys()):
                if control.get(key) == other.get(key):
                    continue
                if any(key == free or key.startswith(f'{free}.') for free in study.may_differ):
                    continue
                raise ConfigError(
                    f'methods {study.control!r} and {name!r} cannot be compared: their {key} is '
                    f'{control.get(key)!r} and {other.get(key)!r}. If that is meant, name it in may_differ'
                )


def train_and_test(
    run: Run, folder: Path, study: Study, environment: dict[str, str], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Train and evaluate by the project's own tools, and say what came out.

    An interrupted training goes on from its latest checkpoint, also where the folder has been moved. Of a
    finished run the logs stay, and of a final one the student's weights in half precision.

    Args:
        run: What to run.
        folder: Where it may write.
        study: The study that it belongs to.
        environment: Environment variables, such as which GPU.
        stop: Whether it has to stop. Asked several times a second.

    Returns:
        ``iterations``, ``seconds_per_iteration``, ``seconds`` of wall-clock, ``peak_memory_mb``, ``scores``
        by split, the run's ``circumstances``, ``git_revision`` and when it ``finished``.

    Raises:
        ConfigError: A tool failed; it names the log.
        StoppedError: ``stop`` said so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = run.circumstances(study)
    checkpoint, config = run.checkpoint, folder / 'config.py'
    run.cfg.dump(config)
    if checkpoint is None:
        iterations = run.cfg.train_cfg.max_iters
        checkpoint, latest = folder / f'iter_{iterations}.pth', latest_checkpoint(folder)
        usage = folder / 'usage.json'  # of all sessions, should it be interrupted
        if latest != checkpoint and half(folder).exists():
            checkpoint = half(folder)
        elif latest != checkpoint:
            if latest is None:
                usage.unlink(missing_ok=True)
            line = [str(TOOLS / 'train.py'), str(config), '--work-dir', str(folder), '--resume']
            _call([*line, *study.train_flags], folder / 'train.log', environment, stop, usage)
        facts |= {'iterations': iterations, **json.loads(usage.read_text()), **_logged(folder)}
    scores = {}
    for split, options in run.splits.items():
        cfg = Config(ConfigDict(run.cfg.to_dict()))
        cfg.merge_from_dict(full_keys(options))
        cfg.test_evaluator = _evaluator(cfg)
        cfg.dump(folder / f'{split}.py')
        work_dir = folder / split
        line = [str(TOOLS / 'test.py'), str(folder / f'{split}.py'), str(checkpoint)]
        _call([*line, '--work-dir', str(work_dir)], folder / f'{split}.log', environment, stop)
        scores[split] = read_scores(work_dir)
    if run.checkpoint is None:
        _tidy(folder, checkpoint, keep=run.stage == 'final')
    return {
        **facts,
        'scores': scores,
        'git_revision': _revision(),
        'finished': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    }


def half(folder: Path) -> Path:
    """Where a finished run leaves its student's weights in half precision."""
    return folder / 'student_float16.pth'


def prepare(study: Study, folder: Path, stop: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Run the commands that come first, but those that are done. Their logs go into ``folder``.

    Raises:
        ConfigError: One failed or made no such file.
        StoppedError: ``stop`` said so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(study.prepare, 1):
        if is_prepared(step):
            continue
        log = folder / f'prepare_{number}.log'
        say(f'{step.run}   (log: {log})')
        step.creates.parent.mkdir(parents=True, exist_ok=True)
        _unfinished(step).touch()
        tool, *arguments = shlex.split(step.run)
        _call([str(TOOLS.parent / tool), *arguments], log, {}, stop)
        if not step.creates.exists():
            raise ConfigError(f'prepare: {step.run!r} made no {step.creates}; see {log}')
        _unfinished(step).unlink()


def is_prepared(step: Preparation) -> bool:
    """Whether the command was run, to its end: its file may be there before."""
    return step.creates.exists() and not _unfinished(step).exists()


def _unfinished(step: Preparation) -> Path:
    return step.creates.with_name(f'{step.creates.name}.unfinished')


def _config(study: Study, path: Path, options: Options, setting: Options) -> Config:
    shipped = TOOLS.parent / path
    cfg = load_config(shipped if shipped.is_file() else path)
    distilled = study.distilled_options if 'teacher' in cfg.model else {}
    for overrides in (study.options, distilled, options, setting):
        try:
            cfg.merge_from_dict(full_keys(overrides))
        except (KeyError, TypeError, AssertionError, IndexError) as error:
            raise ConfigError(f'{path}: {overrides} does not fit: {error}') from error
    return cfg


def _set_length(cfg: Config, iterations: int) -> None:
    """Train that long, schedules that end with the training included, and validate nothing meanwhile."""
    before = _max_iters(cfg)
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if iterations != before and scheduler.keys() & {'milestones', 'step_size', 'total_steps'}:
            raise ConfigError(
                f'{scheduler.type} does not say how it follows a training of another length, {iterations} '
                f'instead of {before} iterations. Use another scheduler, or leave the length as it is'
            )
        if scheduler.get('T_max') == before - scheduler.get('begin', 0):
            scheduler.T_max += iterations - before
        if scheduler.get('end') == before:
            scheduler.end = iterations
    cfg.train_cfg.max_iters = iterations
    cfg.train_cfg.val_begin = iterations + 1
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    defaults = {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False}, 'logger': {'type': 'LoggerHook'}}
    for name, hook in defaults.items():
        if cfg.default_hooks.get(name) is None:
            cfg.default_hooks[name] = ConfigDict(hook)
    cfg.default_hooks.checkpoint.update(interval=math.ceil(iterations / 4), max_keep_ckpts=2)
    cfg.default_hooks.logger.interval = min(
        cfg.default_hooks.logger.get('interval', 50), math.ceil(iterations / 10)
    )


def _max_iters(cfg: Config) -> int:
    max_iters = (cfg.get('train_cfg') or {}).get('max_iters')
    if max_iters is None:
        raise ConfigError(
            f'config {str(cfg.filename)!r} has no train_cfg.max_iters, and a study counts iterations. Give '
            "it train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)"
        )
    return max_iters


def _evaluator(cfg: Config) -> dict[str, Any]:
    """The IoU of each class, whatever the config measures."""
    given = cfg.get('test_evaluator') or []
    metrics = given if isinstance(given, list) else [given]
    own: dict[str, Any] = next((metric for metric in metrics if metric.get('type') == 'IoUMetric'), {})
    ignore_index = own.get('ignore_index', 255)
    return {'type': 'ClassIoUMetric', 'iou_metrics': ['mIoU'], 'ignore_index': ignore_index}


def _shared(cfg: Config) -> dict[str, Any]:
    """What runs must share, flat: dotted key → value."""
    settings = cfg.to_dict()
    student = {
        key: value for key, value in settings['model'].items() if key not in ('teacher', 'distill_losses')
    }
    student['type'] = _DISTILLERS.get(student['type'], student['type'])
    hooks = settings.get('custom_hooks') or []
    settings['custom_hooks'] = [hook for hook in hooks if hook['type'] not in _OF_LOSSES]
    return dict(_flat({**{key: settings.get(key) for key in _SHARED}, 'model': student}))


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for inner, content in items:
            yield from _flat(content, f'{key}.{inner}' if key else str(inner))
    else:
        yield key, value


def _logged(folder: Path) -> dict[str, float]:
    facts = {'seconds_per_iteration': seconds_per_iteration(folder)}
    memory = [record['memory'] for record in read_log(folder) if 'memory' in record]  # of the GPU
    return {**facts, 'peak_memory_mb': max(memory)} if memory else facts


def _tidy(folder: Path, checkpoint: Path, keep: bool) -> None:
    if keep and checkpoint != half(folder):
        content = load_checkpoint(checkpoint)
        weights = {
            key: value.half() if value.is_floating_point() else value
            for key, value in content['state_dict'].items()
        }
        torch.save(
            {'state_dict': weights, 'meta': {'dataset_meta': content['meta'].get('dataset_meta')}},
            half(folder),
        )
    for path in folder.glob('iter_*.pth'):
        path.unlink()
    if not keep:
        half(folder).unlink(missing_ok=True)


@cache
def _digest(file: Path | str | None) -> str | None:
    """SHA-256 of a file, None of what is none, such as a URL."""
    if file is None or not Path(file).is_file():
        return None
    return file_digest(Path(file))


def _revision() -> str:
    """The commit that the project is at, with ``-dirty`` where files differ from it; empty without git."""
    line = ['git', '-C', str(TOOLS), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()


def _call(
    line: list[str],
    log: Path,
    environment: dict[str, str],
    stop: Callable[[], bool],
    usage: Path | None = None,
) -> None:
    """Run a tool.

    ``usage`` says its wall-clock in seconds and its peak memory in MB, with those of earlier sessions and
    however this one ends.
    """
    earlier = {'seconds': 0.0, 'peak_memory_mb': 0.0}
    if usage is not None and usage.exists():
        earlier = json.loads(usage.read_text())
    start = noted = time.monotonic()

    def note(memory: float = 0.0) -> None:
        if usage is not None:
            seconds = earlier['seconds'] + time.monotonic() - start
            write_json(usage, {'seconds': seconds, 'peak_memory_mb': max(earlier['peak_memory_mb'], memory)})

    with log.open('a') as file:
        _lock(file)
        note()
        process = subprocess.Popen(
            [sys.executable, *line], stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        try:
            while True:
                child, status, resources = os.wait4(process.pid, os.WNOHANG)  # of this child alone
                if child:
                    break
                if stop():
                    raise StoppedError
                if time.monotonic() > noted + 10:  # should nobody be there to do it at the end
                    note()
                    noted = time.monotonic()
                time.sleep(0.2)
        except BaseException:  # Ctrl-C, too, of which a process of another session hears nothing
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            note()
            raise
    note(resources.ru_maxrss / 1024)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        reason = ''.join(log.read_text(errors='replace').strip().splitlines()[-1:])
        if process.returncode < 0:  # it could not say why
            reason = f'ended by {signal.Signals(-process.returncode).name}'
        raise ConfigError(f'{Path(line[0]).name} failed ({reason}); see {log}')


def _lock(log: TextIO) -> None:
    """Keep others from writing there until the last process that has this file open is gone, a child too."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f'another process is writing {log.name}: a second call with this work dir, or what a killed one '
            'left behind. End that, or wait for it'
        ) from error
    except OSError:  # a file system without locks
        pass


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    temporary = path.with_suffix('.part')
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)
