"""The networks that a command line names: work dirs, study folders, checkpoints, exported files."""

import copy
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from bdd_seg.deploy.exported import SUFFIXES
from bdd_seg.deploy.load import config_beside, training_config_file
from bdd_seg.distill.student import is_distiller, plain_model
from bdd_seg.errors import ConfigError, similar_to
from bdd_seg.report.data import Curve, Role, Seeds
from bdd_seg.runtime.guards.data import without_checks
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.runtime.upstream.checkpoints import AUXILIARY, load_checkpoint
from bdd_seg.runtime.upstream.configs import load_config, walk
from bdd_seg.runtime.upstream.last_checkpoint import latest_checkpoint
from bdd_seg.study.logs import read_scalars
from bdd_seg.study.results import Results, load_results, minutes, mious
from bdd_seg.study.runs import half_precision_path
from bdd_seg.teachers.cached.store import TeacherCache

_STUDY_RUN = re.compile(r'.+-seed\d+-[0-9a-f]{12}')
_NO_CURVE = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'base_lr')
_SCORES = ('mIoU', 'aAcc', 'mAcc')
_NOT_COMPARED = ('work_dir', 'resume', 'launcher')  # of a config: they tell nothing of the network


@dataclass(frozen=True)
class Run:
    """A network, as far as its files tell.

    Attributes:
        path: Its work dir, or its file.
        label: Its name, for readers.
        cfg: The whole config that trained it; None for an exported file, or where no config is left.
        checkpoint: Its weights, or the exported file; None where none are left.
        work_dir: The folder with its logs, None where there is none.
        role: Its part in the comparison.
        score: The mIoU in percent that a study recorded.
        note: Anything a reader should know.
    """

    path: Path
    label: str
    cfg: Config | None = None
    checkpoint: Path | None = None
    work_dir: Path | None = None
    role: Role = 'plain'
    score: float | None = None
    note: str = ''


@dataclass(frozen=True)
class Found:
    """The networks and studies that the paths of a command line name.

    Attributes:
        runs: The networks, in the order of the paths.
        studies: Results of the study folders.
    """

    runs: list[Run]
    studies: list[Results] = field(default_factory=list)


def find_runs(paths: Iterable[str | Path], checkpoint: str | None = None) -> Found:
    """Return the networks of work dirs, study folders, checkpoints and exported files, with their roles.

    Args:
        paths: What the command line names.
        checkpoint: The name or pattern of a file in each work dir, such as ``best_*.pth``; by default the
            latest checkpoint counts.

    Raises:
        ConfigError: A path is none of these, or no work dir has such a checkpoint.
    """
    found = [_find(Path(normal_path(Path(path).expanduser())), checkpoint) for path in paths]
    runs = {(run.path.resolve(), run.checkpoint): run for one in found for run in one.runs}
    if checkpoint is not None and not any(run.checkpoint for run in runs.values()):
        raise ConfigError(
            f'--checkpoint {checkpoint!r}: no work dir holds such a file. Leave the flag out for the latest'
        )
    studies = [results for one in found for results in one.studies]
    return Found(with_roles(_with_own_labels([*runs.values()])), studies)


def _find(path: Path, checkpoint: str | None) -> Found:
    if path.is_file():
        if path.name == 'results.json':
            return _study(path.parent)
        return Found([_of_file(path)])
    if not path.is_dir():
        siblings = [other.name for other in path.parent.glob('*')] if path.parent.is_dir() else []
        raise ConfigError(f'{str(path)!r} does not exist.{similar_to(path.name, siblings)} {_EXPECTED}')
    if (path / 'results.json').is_file():
        return _study(path)
    if is_work_dir(path):
        return Found([_of_work_dir(path, checkpoint)])
    runs = [_of_work_dir(folder, checkpoint) for folder in sorted(path.iterdir()) if is_work_dir(folder)]
    if not runs:
        raise ConfigError(f'{str(path)!r} holds no checkpoint, no log and no results. {_EXPECTED}')
    return Found(runs)


_EXPECTED = (
    'Give the --work-dir of a training, the folder of a study, a checkpoint in a work dir, or an exported '
    'file'
)


def normal_path(path: str | Path) -> str:
    """Return a path without ``..`` in it, or as it is where that would be another file, behind a link."""
    normal = os.path.normpath(path)
    return normal if os.path.realpath(normal) == os.path.realpath(path) else str(path)


def is_work_dir(folder: Path) -> bool:
    """Return whether a training has left a checkpoint or a log in a folder."""
    signs = ('last_checkpoint', 'iter_*.pth', 'epoch_*.pth', 'student_float16.pth', '*/vis_data')
    return folder.is_dir() and any(True for sign in signs for _ in folder.glob(sign))


def _of_file(path: Path) -> Run:
    """Return the network of a checkpoint or an exported file."""
    if path.suffix in SUFFIXES:
        return Run(path, path.name, None, path, role='exported')
    if path.suffix not in ('.pth', '.safetensors'):
        raise ConfigError(f'{str(path)!r} is no trained network. {_EXPECTED}')
    if is_work_dir(path.parent):
        name = f'{path.parent.name}/{path.name}'
        return Run(path, name, training_config(path.parent), path, path.parent)
    return Run(path, path.name, load_config(config_beside(path)), path)


def _of_work_dir(folder: Path, checkpoint: str | None = None) -> Run:
    """Return the network of a work dir. Where it has no checkpoint that can be read, the note says why."""
    file, note = None, ''
    if checkpoint is not None:
        file = max(folder.glob(checkpoint), key=lambda path: path.stat().st_mtime, default=None)
        note = '' if file else f'has no checkpoint {checkpoint}'
    elif half_precision_path(folder).exists() and not any(folder.glob('iter_*.pth')):
        file = half_precision_path(folder)  # all that a finished run of a study keeps
    else:
        try:
            latest = latest_checkpoint(folder)
        except ConfigError as error:
            note = str(error)
        else:
            file = None if latest is None else Path(normal_path(latest))
            note = '' if file else 'has no checkpoint yet'
            if file is not None and not file.is_file():
                file, note = None, f'its checkpoint {latest} is no file on this machine'
    return Run(folder, folder.resolve().name, training_config(folder), file, folder, note=note)


def training_config(folder: Path) -> Config:
    """Return the config of the latest training in a work dir, else the youngest one there.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    trained = training_config_file(folder)
    if trained is not None:
        return load_config(trained)
    dumped = sorted(folder.glob('*.py'), key=lambda path: -path.stat().st_mtime)
    others = sorted(folder.glob('*/vis_data/config.py'), reverse=True)
    for file in [*dumped, *others]:
        return load_config(file)
    raise ConfigError(f'{str(folder)!r} holds no config *.py, which a training leaves there. Put it back')


def _study(folder: Path) -> Found:
    """Return a network for each method of a study, of its first seed, and those in other work dirs there."""
    results = load_results(folder / 'results.json')
    split = results.judged_on()[0]
    runs = []
    for budget in results.budgets()[:1]:
        for method, finished in results.finished(budget).items():
            seed, record = min(finished.items())
            note = f'seed {seed} of {len(finished)}' if len(finished) > 1 else ''
            folders = folder.glob(f'{method}-seed{seed}-{(record.config_sha256 or "")[:12]}*')
            own = next(folders, None)
            run = Run(folder / method, results.label(method), score=record.scores[split].miou, note=note)
            if own is not None and is_work_dir(own):
                kept = _of_work_dir(own)
                notes = '; '.join(filter(None, [note, kept.note]))
                run = replace(kept, label=run.label, score=run.score, note=notes)
            runs.append(run)
    for records in results.references().values():
        record = next(iter(records.values()))
        miou = record.scores[split].miou
        runs.insert(0, Run(folder / record.method, results.label(record.method), role='teacher', score=miou))
    for other in sorted(folder.iterdir()):
        if is_work_dir(other) and not _STUDY_RUN.fullmatch(other.name):
            runs.append(_of_work_dir(other))
    return Found(runs, [results])


def _with_own_labels(runs: list[Run]) -> list[Run]:
    """Return the networks with different labels: those of one name get their folders' names, or a number."""
    labels = [run.label for run in runs]
    named = [
        replace(run, label=f'{run.path.resolve().parent.name}/{run.label}')
        if labels.count(run.label) > 1
        else run
        for run in runs
    ]
    labels = [run.label for run in named]
    return [
        replace(run, label=f'{run.label} ({labels[: i + 1].count(run.label)})')
        if labels.count(run.label) > 1
        else run
        for i, run in enumerate(named)
    ]


def with_roles(runs: Sequence[Run]) -> list[Run]:
    """Return the networks with their roles, teachers first, then students alone.

    A plain network is ``alone`` if it has the model settings of a distilled one, and a ``teacher`` if a
    distilled one names its checkpoint. A published file whose training was a distillation is ``distilled``,
    although its config is plain. A teacher of which a study has kept the score alone takes the place of
    the network found for it.
    """
    models = {id(run): run.cfg.model for run in runs if run.cfg is not None}
    distilled = [run for run in runs if id(run) in models and is_distiller(models[id(run)])]
    published = [run for run in runs if id(run) in models and _published_distilled(run)]
    students = {settings_key(plain_model(models[id(run)])) for run in distilled}
    published_students = {_published_key(models[id(run)]) for run in published}
    ids = {id(run) for run in [*distilled, *published]}
    files = [file for run in distilled if (file := teacher_checkpoint(run)) is not None]
    digests = {digest for run in distilled if (digest := _cached_checkpoint(run)) is not None}
    found = []
    for run in runs:
        model = models.get(id(run))
        if id(run) in ids:
            run = replace(run, role='distilled')
        elif model is not None and run.role == 'plain':
            own = _teacher_in(run, files, digests)
            if own is not None:
                run = replace(run, role='teacher', checkpoint=own)
            elif settings_key(model) in students or _published_key(model) in published_students:
                run = replace(run, role='alone')
        found.append(run)
    recorded = [run for run in found if run.role == 'teacher' and run.cfg is None]
    trained = [run for run in found if run.role == 'teacher' and run.cfg is not None]
    if recorded and trained:  # one network: what the study says of it, and what is left of it
        known = replace(trained[0], label=recorded[0].label, score=recorded[0].score)
        found = [known if run is trained[0] else run for run in found if run is not recorded[0]]
    order = {'teacher': 0, 'alone': 1}
    return sorted(found, key=lambda run: order.get(run.role, 2))


def _published_distilled(run: Run) -> bool:
    """Return whether a checkpoint outside of a work dir says that its network was distilled."""
    return run.work_dir is None and bool(_checkpoint_meta(run).get('distilled'))


def seed_of(run: Run) -> int | None:
    """Return the seed of the training that wrote a run's checkpoint, None where it does not say."""
    seed = _checkpoint_meta(run).get('seed')
    return seed if isinstance(seed, int) else None


def _checkpoint_meta(run: Run) -> Mapping[str, Any]:
    """Return what a checkpoint says of itself, empty where there is none that can be read."""
    if run.checkpoint is None or run.checkpoint.suffix != '.pth':
        return {}
    try:
        meta = load_checkpoint(run.checkpoint).get('meta')
    except ConfigError:  # told when it is evaluated
        return {}
    return meta if isinstance(meta, Mapping) else {}


def teacher_settings(run: Run) -> dict[str, Any]:
    """Return ``model.teacher`` of a distilled run as a dict, empty for an ensemble given as a list."""
    teacher = None if run.cfg is None else run.cfg.model.get('teacher')
    return dict(teacher) if isinstance(teacher, Mapping) else {}


def teacher_checkpoint(run: Run) -> Path | None:
    """Return the file of the teacher's weights of a distilled run, None where it is no local file."""
    checkpoint = teacher_settings(run).get('checkpoint')
    return Path(normal_path(checkpoint)) if checkpoint is not None and Path(checkpoint).is_file() else None


def _cached_checkpoint(run: Run) -> str | None:
    """Return the SHA-256 of the weights of the teacher whose outputs are cached."""
    cache = teacher_settings(run).get('cache')
    if cache is None:
        return None
    try:
        return TeacherCache(cache).manifest.teacher.get('checkpoint')
    except ConfigError:
        return None


def _teacher_in(run: Run, files: Sequence[Path], digests: Iterable[str]) -> Path | None:
    """Return the checkpoint of a plain network that is a teacher's, None if it is none."""
    for file in files:
        if run.path == run.work_dir and file.resolve().parent == run.work_dir.resolve():
            return file
        if run.checkpoint is not None and file.resolve() == run.checkpoint.resolve():
            return file
    if run.checkpoint is not None and digests and file_digest(run.checkpoint) in digests:
        return run.checkpoint
    return None


def settings_key(model: Mapping[str, Any]) -> str:
    """Return model settings as a text that is the same for the same network."""
    settings = {**model, 'type': str(model.get('type')).rpartition('.')[2]}
    return json.dumps(settings, sort_keys=True, default=str)


def train_command(run: Run) -> str:
    """Return the command that trains a network with a config again."""
    assert run.cfg is not None
    return shlex.join(['bdd-seg', 'train', str(run.cfg.filename), '--work-dir', f'{run.path}-again'])


def _published_key(model: Mapping[str, Any]) -> str:
    """Return a text that is the same for a network and its published form.

    That has neither the weights that the training began with nor auxiliary heads.
    """
    settings = copy.deepcopy(dict(model))
    settings.pop(AUXILIARY, None)
    for _, part in walk(settings, 'model'):
        if isinstance(part, dict):
            part.pop('pretrained', None)
            part.pop('init_cfg', None)
    return settings_key(settings)


def config_text(cfg: Config) -> str:
    """Return a config as lines ``key = value``, for differences: keys are dotted, and in their order."""
    settings = without_checks(cfg.to_dict())
    if settings.get('resume'):
        settings.pop('load_from', None)  # the checkpoint that it goes on from
    settings = {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
    return '\n'.join(f'{key} = {value!r}' for key, value in _flat(settings))


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        parts = enumerate(value)
    elif key:
        yield key, value
    for name, part in parts:
        yield from _flat(part, f'{key}.{name}' if key else str(name))


def read_curves(work_dir: Path) -> list[Curve]:
    """Return what a training logged, all its sessions taken together.

    Of iterations that a resumed session did again, its values count. The wall-clock is the sum of the time of
    the iterations that count; that of validations is no part of it. Scores of a validation have the iteration
    at which it took place.
    """
    records: list[dict[str, Any]] = []
    validations: list[tuple[int, dict[str, Any]]] = []
    for record in read_scalars(work_dir):
        if 'loss' in record:
            while records and records[-1]['step'] >= record['step']:
                records.pop()
            validations = [one for one in validations if one[0] < record['step']]
            records.append(record)
        elif 'mIoU' in record:
            in_epochs = bool(records) and 'epoch' in records[-1]
            validations.append((records[-1]['step'] if in_epochs else record.get('step', 0), record))
    steps = np.array([record['step'] for record in records], dtype=float)
    paces = np.array([record.get('time', 0.0) for record in records], dtype=float)
    seconds = np.cumsum(paces * np.diff(steps, prepend=0.0)) if len(steps) else steps
    names = dict.fromkeys(name for record in records for name in record if name not in _NO_CURVE)
    curves = []
    for name in names:
        has = np.array([isinstance(record.get(name), int | float) for record in records])
        values = np.array([record[name] for record, known in zip(records, has, strict=True) if known])
        if has.any():
            curves.append(Curve(name, steps[has], seconds[has], values.astype(float)))
    for name in _SCORES:
        points = [(step, record[name]) for step, record in validations if name in record]
        if points:
            at, values = np.array(points, dtype=float).T
            when = np.interp(at, steps, seconds) if len(steps) else np.zeros(len(at))
            curves.append(Curve(name, at, when, values))
    return curves


def seeds_of(results: Results) -> list[Seeds]:
    """Return the scores of each method of a study under each budget, on a split on which none was chosen."""
    split = results.judged_on()[0]
    rows = []
    for budget in results.budgets():
        for method, runs in results.finished(budget).items():
            difference = None
            if method != results.control:
                difference = results.difference(budget, split, method, results.control)
            times = minutes(runs)
            rows.append(
                Seeds(
                    label=results.label(method),
                    budget=budget,
                    mious=mious(runs, split),
                    minutes=sum(times) / len(times) if times else None,
                    against_control='' if difference is None else str(difference),
                )
            )
    return rows
