"""The runs of a study: their configs, digests, and the check that they may be compared."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.distill.settings import DEFAULT_TEACHER
from bdd_seg.distill.student import plain_model
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.settings import class_of
from bdd_seg.runtime.upstream.atomic_files import file_digest, files_digest
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint, weights_digest, weights_of
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.study.results import Provenance, RunRecord, RunResult, Stage
from bdd_seg.study.settings import (
    PROJECT,
    Budget,
    Options,
    Study,
    expand_aliases,
    find_file,
    format_overrides,
)
from bdd_seg.teachers import NetworkTeacher

# The settings that runs must share to be compared: data, schedule and crop. The student is compared, too.
_SHARED = (
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'test_evaluator',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'load_from',
    'custom_hooks',
)
_METHOD_HOOKS = ('LossStateHook',)  # the hooks that are part of a method
_DEFAULT_HOOKS = {
    'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False},
    'logger': {'type': 'LoggerHook'},
}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        method: Name of its method.
        stage: ``'search'``, ``'final'``, ``'pace'`` for a few iterations that are timed, or ``'reference'``
            for a network that is only evaluated.
        budget: The amount of training that it has in common with others.
        seed: Its seed.
        setting: Overrides that the search tries or has chosen.
        splits: Split → overrides for its evaluation.
        cfg: The whole config.
        checkpoint: That of a reference.
    """

    method: str
    stage: Stage
    budget: Budget
    seed: int
    setting: Options
    splits: dict[str, Options]
    cfg: Config
    checkpoint: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """A digest of the config, the same wherever the project lies."""
        text = json.dumps(self.cfg.to_dict(), sort_keys=True, default=str, ensure_ascii=False)
        text = text.replace(f'{PROJECT}/', '').replace(f'{Path.cwd()}/', '')
        return hashlib.sha256(text.encode()).hexdigest()

    def training_config(self, recordings: Path | None) -> Config:
        """Return the config to train with: a copy whose teacher, where it can be, is recorded in a folder.

        That of a run that measures the pace is live.
        """
        cfg = Config(ConfigDict(self.cfg.to_dict()))
        if self.stage == 'pace' and self.has_recordable_teacher:
            cfg.model.teacher.record = None
        elif recordings is not None and self.has_recordable_teacher:
            cfg.model.teacher.record = str(recordings / f'seed{self.seed}')
        return cfg

    @property
    def has_recordable_teacher(self) -> bool:
        """True if it has a teacher that runs a network."""
        teacher = self.cfg.model.get('teacher')
        kind = class_of({'type': DEFAULT_TEACHER, **teacher}, MODELS) if isinstance(teacher, dict) else None
        return kind is not None and issubclass(kind, NetworkTeacher)

    @property
    def name(self) -> str:
        """A short name for its folder. Two runs with one config have one name and are run once."""
        seed = f'{"pace-" if self.stage == "pace" else ""}seed{self.seed}'
        return f'{self.method}-{seed}-{self.sha256[:12]}'

    def provenance(self, study: Study) -> Provenance:
        """Return the inputs, beyond the config, that affect the result."""
        teacher = self.cfg.model.get('teacher')
        settings = teacher if isinstance(teacher, dict) else {}  # a list is an ensemble
        cache = settings.get('cache')
        return Provenance(
            train_flags=study.train_flags,
            splits=self.splits,
            checkpoint=digest_if_local(self.checkpoint),
            teacher=None if cache else digest_if_local(settings.get('checkpoint') or settings.get('model')),
            cache=digest_if_local(Path(cache) / 'manifest.json') if cache else None,
            start=digest_if_local(self.cfg.get('load_from')),
        )

    def to_record(self, result: RunResult) -> RunRecord:
        """Return the entry of ``results.json`` for this run with its result."""
        identity = {
            'method': self.method,
            'stage': self.stage,
            'equal': self.budget,
            'seed': self.seed,
            'setting': self.setting,
            'config_sha256': self.sha256,
        }
        return RunRecord.model_validate({**identity, **result.to_json()})

    def __str__(self) -> str:
        setting = f' ({format_overrides(self.setting)})' if self.setting else ''
        return f'{self.stage} {self.method}{setting} seed {self.seed}'


def make_run(
    study: Study,
    method: str,
    stage: Stage,
    seed: int,
    setting: Options,
    budget: Budget = 'iterations',
    iterations: int | None = None,
) -> Run:
    """Return the run of a method with a setting and a seed.

    Args:
        study: The study.
        method: Name of the method.
        stage: ``'search'``, ``'final'`` or ``'pace'``.
        seed: The seed.
        setting: Overrides on top of those of study and method.
        budget: The amount of training that it has in common with others.
        iterations: Length of a final run; by default that of the study.

    Raises:
        ConfigError: The config cannot be read, or an override does not fit into it.
    """
    cfg = load_with_overrides(study, study.methods[method].config, study.methods[method].options, setting)
    cfg.merge_from_dict({'randomness.seed': seed})
    if stage == 'search':
        iterations = study.search_iterations
    elif stage == 'pace':
        iterations = study.pace_iterations
    set_length(cfg, iterations or iterations_of(study))
    splits = {
        'search': {study.select_on: study.splits[study.select_on]},
        'pace': {},
    }.get(stage, study.final_splits)
    return Run(method, stage, budget, seed, setting, splits, cfg)


def reference_runs(study: Study) -> list[Run]:
    """Return the evaluation of the teacher, an empty list for a study that names none.

    Raises:
        ConfigError: The config cannot be read, or an override does not fit into it.
    """
    if study.teacher is None:
        return []
    cfg = load_with_overrides(study, study.teacher.config)
    return [
        Run('teacher', 'reference', 'iterations', 0, {}, study.final_splits, cfg, study.teacher.checkpoint)
    ]


def iterations_of(study: Study) -> int:
    """Return the length of each final run."""
    control = study.methods[study.control]
    return study.iterations or _max_iters(load_with_overrides(study, control.config, control.options))


def check_comparable(study: Study) -> None:
    """Check that methods differ in nothing but distillation.

    Raises:
        ConfigError: They differ. The message names the first key.
    """
    control = _shared_settings(make_run(study, study.control, 'final', 0, {}).cfg)
    for name in study.methods:
        for setting in study.search_of(name) or [{}]:
            other = _shared_settings(make_run(study, name, 'final', 0, setting).cfg)
            for key in sorted(control.keys() | other.keys()):
                if control.get(key) == other.get(key):
                    continue
                if any(key == free or key.startswith(f'{free}.') for free in study.may_differ):
                    continue
                raise ConfigError(
                    f'methods {study.control!r} and {name!r} cannot be compared: their {key} is '
                    f'{control.get(key)!r} and {other.get(key)!r}. If that is meant, name it in may_differ'
                )


def load_with_overrides(study: Study, path: Path, *options: Options) -> Config:
    """Read a config and apply the study's overrides, then further ones. The later win.

    Raises:
        ConfigError: The config cannot be read, or an override does not fit into it.
    """
    file = find_file(path)
    cfg = copy.deepcopy(_read(file.absolute() if file.exists() else file))
    distilled = study.distilled_options if 'teacher' in cfg.model else {}
    for overrides in (study.options, distilled, *options):
        try:
            cfg.merge_from_dict(expand_aliases(overrides))
        except (KeyError, TypeError, AssertionError, IndexError) as error:
            raise ConfigError(f'{path}: {overrides} does not fit: {error}') from error
    return cfg


@cache
def _read(path: Path) -> Config:
    """Return the config in a file, which takes half a second the first time."""
    return load_config(path)


def set_length(cfg: Config, iterations: int) -> None:
    """Set the length of a training and of the schedules that end with it, and turn validation off.

    Args:
        cfg: The whole config, changed in place.
        iterations: The new length.

    Raises:
        ConfigError: The config has no length in iterations, or a schedule that cannot follow another length.
    """
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
    for name, hook in _DEFAULT_HOOKS.items():
        if cfg.default_hooks.get(name) is None:
            cfg.default_hooks[name] = ConfigDict(hook)
    checkpoint, logger = cfg.default_hooks.checkpoint, cfg.default_hooks.logger
    checkpoint.update(interval=math.ceil(iterations / 4), max_keep_ckpts=2)
    logger.interval = min(logger.get('interval', 50), math.ceil(iterations / 10))


def class_iou_evaluator(cfg: Config) -> dict[str, Any]:
    """Return the evaluator that all runs share, with the ignored label of the config's own."""
    given = cfg.get('test_evaluator') or []
    metrics = given if isinstance(given, list) else [given]
    own: dict[str, Any] = next((metric for metric in metrics if metric.get('type') == 'IoUMetric'), {})
    ignore_index = own.get('ignore_index', 255)
    return {'type': 'ClassIoUMetric', 'iou_metrics': ['mIoU'], 'ignore_index': ignore_index}


@cache
def digest_if_local(path: Path | str | None) -> str | None:
    """Return the SHA-256 of what is in a local file or folder; None for anything else, such as a URL.

    Of a checkpoint it is that of the weights: the same training on the same machine leaves the same weights,
    in a file that differs by the time of day.
    """
    if path is None or not Path(path).exists():
        return None
    path = Path(path)
    if path.is_dir():
        return files_digest(sorted(file for file in path.iterdir() if file.is_file()))
    if path.suffix != '.pth':
        return file_digest(path)
    weights = weights_of(load_checkpoint(path), str(path))
    return weights_digest({name: value for name, value in weights.items() if isinstance(value, Tensor)})


def _max_iters(cfg: Config) -> int:
    max_iters = (cfg.get('train_cfg') or {}).get('max_iters')
    if max_iters is None:
        raise ConfigError(
            f'config {str(cfg.filename)!r} has no train_cfg.max_iters, and a study counts iterations. Give '
            "it train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)"
        )
    return max_iters


def _shared_settings(cfg: Config) -> dict[str, Any]:
    """Return the settings that runs must share, as dotted key → value."""
    settings = cfg.to_dict()
    hooks = settings.get('custom_hooks') or []
    settings['custom_hooks'] = [hook for hook in hooks if hook['type'] not in _METHOD_HOOKS]
    shared = {key: settings.get(key) for key in _SHARED}
    return dict(_flat({**shared, 'model': plain_model(settings['model'])}))


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for inner, content in items:
            yield from _flat(content, f'{key}.{inner}' if key else str(inner))
    else:
        yield key, value
