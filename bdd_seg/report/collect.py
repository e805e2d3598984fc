"""Collect a report: evaluate networks, measure their cost, read their logs, choose pictures."""

import copy
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from bdd_seg.distill.settings import checked_teacher
from bdd_seg.errors import ConfigError
from bdd_seg.report.data import Network, Report
from bdd_seg.report.evaluate import Tally, evaluate, place
from bdd_seg.report.gallery import pictures
from bdd_seg.report.images import ValidationSet, check_same_images
from bdd_seg.report.runs import (
    Run,
    config_text,
    find_runs,
    read_curves,
    seeds_of,
    teacher_checkpoint,
)
from bdd_seg.report.subjects import Subject, TeacherSubject
from bdd_seg.runtime.upstream.configs import leaf_datasets, load_config
from bdd_seg.study.machine import describe_machine
from bdd_seg.study.results import Results

_PACKAGES = ('bdd-seg', 'onedl-mmsegmentation', 'onedl-mmengine', 'onedl-mmcv')


@dataclass(frozen=True)
class Options:
    """Choices for a report.

    Attributes:
        pictures: Number of images in the gallery at each end: those helped most, and those hurt most.
        checkpoint: Name or pattern of the checkpoint in each work dir; the latest by default.
        max_images: Number of validation images at most, spread evenly over the set.
        config: A config whose validation images all networks are evaluated on; by default their own.
        command: The command line of the report.
        find_teacher: Whether to build the teacher of a distilled network, if no path names it.
    """

    pictures: int = 12
    checkpoint: str | None = None
    max_images: int | None = None
    config: str | None = None
    command: str = ''
    find_teacher: bool = True


def collect(paths: Sequence[str | Path], options: Options) -> Report:
    """Return the content of a report on the networks that paths name.

    Args:
        paths: Work dirs, study folders, checkpoints, exported files.
        options: Choices.

    Raises:
        ConfigError: A path names no network, there are no images to evaluate on, or networks have others.
    """
    found = find_runs(paths, options.checkpoint)
    runs = found.runs
    images = _images(runs, options)
    subjects: list[Subject] = []
    for run in runs:
        subjects.append(_subject(run, runs, images, options))
    if options.find_teacher and images is not None:
        _add_teacher(subjects, runs, images)
    networks, tallies, notes = _networks(subjects, images)
    pair = _pair(networks, tallies)
    data_notes = [] if images is None else _notes(options, images)
    return Report(
        title=_title(networks, found.studies),
        classes=[] if images is None else images.classes,
        palette=[] if images is None else images.palette,
        dataset='' if images is None else images.describe(),
        image_size=None if images is None else _image_size(images),
        networks=networks,
        pictures=[] if images is None else pictures(images, tallies, pair, options.pictures),
        seeds=[row for study in found.studies for row in seeds_of(study)],
        environment=_environment(),
        commands=_commands(networks, runs, found.studies, options.command),
        notes=[*data_notes, *notes, *(note for study in found.studies for note in study.notes)],
    )


def _images(runs: Sequence[Run], options: Options) -> ValidationSet | None:
    """Return the images of the report: of the config that is given, else of the first network that has some.

    None where no network can be evaluated.
    """
    if not any(run.checkpoint for run in runs):
        return None
    if options.config is not None:
        return ValidationSet(load_config(options.config), options.max_images)
    order = {'distilled': 0, 'alone': 1, 'plain': 2, 'teacher': 3}
    with_config = sorted((run for run in runs if run.cfg is not None), key=lambda run: order[run.role])
    if not with_config:
        name = next(run.label for run in runs if run.checkpoint)
        raise ConfigError(
            f'{name} names no images to evaluate it on. Name a config that does: --config CONFIG.py'
        )
    assert with_config[0].cfg is not None
    return ValidationSet(with_config[0].cfg, options.max_images)


def _subject(run: Run, runs: Sequence[Run], images: ValidationSet | None, options: Options) -> Subject:
    """Return a network with the images that its own pipeline prepares.

    Raises:
        ConfigError: They are others than those of the report.
    """
    if run.checkpoint is None or images is None:
        return Subject(run)
    if run.cfg is None:
        return Subject(run, images)
    cfg = run.cfg if options.config is None else _with_images(run.cfg, load_config(options.config))
    try:
        own = ValidationSet(cfg, options.max_images)
        check_same_images(images, own, ('The other networks', run.label))
    except ConfigError:
        student = next((one for one in runs if one.role == 'distilled' and one.cfg is not None), None)
        if run.role != 'teacher' or student is None:
            raise
        return TeacherSubject(run, images, student)  # trained elsewhere: it answers as in the training
    return Subject(run, own)


def _with_images(cfg: Config, source: Config) -> Config:
    """Return a config that evaluates on the images of another one, with its own pipeline."""
    cfg = copy.deepcopy(cfg)
    for key in ('val_dataloader', 'test_dataloader'):
        if source.get(key) is not None:
            own = cfg.get('val_dataloader') or cfg.get('test_dataloader')
            pipeline = None if own is None else next(leaf_datasets(own.dataset, ''))[0].get('pipeline')
            loader = copy.deepcopy(source[key])
            for leaf, _ in leaf_datasets(loader.dataset, ''):
                if pipeline is not None:
                    leaf['pipeline'] = pipeline
            cfg.val_dataloader, cfg.val_evaluator = loader, source.get(key.replace('dataloader', 'evaluator'))
            break
    return cfg


def _add_teacher(subjects: list[Subject], runs: Sequence[Run], images: ValidationSet) -> None:
    """Add the teacher of the first distilled network, unless there is one that can be evaluated."""
    student = next((run for run in runs if run.role == 'distilled' and run.cfg is not None), None)
    if student is None or any(one.run.role == 'teacher' and one.images is not None for one in subjects):
        return
    assert student.cfg is not None
    recorded = next((one for one in subjects if one.run.role == 'teacher'), None)
    settings = checked_teacher(student.cfg.model.to_dict().get('teacher'))
    named = settings.get('config') or settings.get('model') or settings.get('module')
    label = Path(named).stem if isinstance(named, str) else settings['type']
    checkpoint = teacher_checkpoint(student)
    run = Run(checkpoint or student.path, label, checkpoint=checkpoint, role='teacher')
    if recorded is not None:
        run = replace(run, label=recorded.run.label, score=recorded.run.score)
        subjects.remove(recorded)
    subjects.insert(0, TeacherSubject(run, images, student))


def _networks(
    subjects: Sequence[Subject], images: ValidationSet | None
) -> tuple[list[Network], dict[str, Tally], list[str]]:
    """Evaluate all; return the networks, their evaluations by key, and notes."""
    networks, tallies, notes = [], {}, []
    costs: dict[str, dict[str, Any]] = {}
    for i, subject in enumerate(subjects):
        run = subject.run
        number = 1 + sum(one.run.role == run.role for one in subjects[:i])
        network = Network(
            key=run.role if number == 1 else f'{run.role}-{number}',
            role=run.role,
            label=run.label,
            source=str(run.path),
            scores=run.score,
            curves=[] if run.work_dir is None else read_curves(run.work_dir),
            config='' if run.cfg is None else config_text(run.cfg),
            command='' if run.cfg is None else _train_command(run),
            note=_joined(run.note, _unfinished(run), subject.manner),
        )
        if subject.images is not None and images is not None:
            try:
                tally, facts = _measured(subject, images, costs)
            except ConfigError as error:
                if run.role != 'teacher':
                    raise
                notes.append(f'The teacher is not evaluated: {error}')
                network = replace(network, note=_joined(network.note, f'not evaluated: {error}'))
            else:
                tallies[network.key] = tally
                unknown = facts.get('unknown') or []
                if unknown:
                    notes.append(
                        f'Pixels of classes unknown to the teacher do not count for it: {", ".join(unknown)}.'
                    )
                network = replace(
                    network,
                    evaluation=tally.evaluation(),
                    parameters=facts['parameters'],
                    flops=facts['flops'],
                    latency=facts['latency'],
                    note=_joined(network.note, facts['note']),
                )
        if network.scores is None and network.evaluation is None:
            network = replace(network, scores=_last_score(network))
        networks.append(network)
    return networks, tallies, notes


def _joined(*notes: str) -> str:
    return '; '.join(filter(None, notes))


def _measured(
    subject: Subject, images: ValidationSet, costs: dict[str, dict[str, Any]]
) -> tuple[Tally, dict[str, Any]]:
    """Return evaluation and cost of a network: what is kept, else measured anew.

    Args:
        subject: The network.
        images: Those of the report.
        costs: Settings of a network → its cost. Networks of the same settings have the same, so that other
            work on the machine does not make one look slower than the other. The cost is added.
    """
    assert subject.images is not None
    kept = place(subject.folder, subject.name, subject.identity(), subject.images)
    tally, facts = evaluate(subject.run.label, subject.images, kept, subject.predict, subject.known)
    gpu = torch.cuda.is_available()
    machine = {key: value for key, value in describe_machine(gpu).items() if key != 'date'}
    place_of_cost = json.loads(json.dumps([machine, _image_size(images)]))
    settings = subject.settings()
    if settings in costs:
        facts = costs[settings]
    elif facts.get('measured_on') != place_of_cost:
        known = subject.known()
        names = [] if known is None else [name for i, name in enumerate(images.classes) if i not in known]
        data = pseudo_collate([images.dataset[images.numbers[0]]])
        facts = {**subject.costs(data), 'unknown': names, 'measured_on': place_of_cost}
        tally.save(kept.file, kept.key, facts)
    costs[settings] = facts
    return tally, facts


def _image_size(images: ValidationSet) -> tuple[int, int]:
    """Return (height, width) of the first image as its pipeline gives it."""
    height, width = images.dataset[images.numbers[0]]['inputs'].shape[1:]
    return height, width


def _last_score(network: Network) -> float | None:
    """Return the last mIoU that a training logged."""
    curve = next((curve for curve in network.curves if curve.name == 'mIoU'), None)
    return None if curve is None else float(curve.values[-1])


def _unfinished(run: Run) -> str:
    """Return a note where a checkpoint is not that of the last iteration."""
    total = (run.cfg.get('train_cfg') or {}).get('max_iters') if run.cfg is not None else None
    found = None if run.checkpoint is None else re.fullmatch(r'iter_(\d+)', run.checkpoint.stem)
    if total is None or found is None or int(found[1]) >= total:
        return ''
    return f'after {found[1]} of {total} iterations'


def _pair(networks: Sequence[Network], tallies: dict[str, Tally]) -> list[str]:
    """Return the keys of the networks whose difference is shown: the student alone, and distilled.

    Without them these are the first two networks, or the only one.
    """
    evaluated = [network for network in networks if network.key in tallies]
    firsts = [
        next((one.key for one in evaluated if one.role == role), None) for role in ('alone', 'distilled')
    ]
    if None not in firsts:
        return [key for key in firsts if key is not None]
    return [network.key for network in evaluated][:2]


def _title(networks: Sequence[Network], studies: Sequence[Results]) -> str:
    if studies:
        return studies[0].title
    names = [network.label for network in networks if network.role != 'teacher'] or ['no network']
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _environment() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    machine = describe_machine(torch.cuda.is_available())
    return {key: value for key, value in {**machine, **versions}.items() if value is not None}


def _train_command(run: Run) -> str:
    assert run.cfg is not None
    return shlex.join(['bdd-seg', 'train', str(run.cfg.filename), '--work-dir', f'{run.path}-again'])


def _commands(
    networks: Sequence[Network], runs: Sequence[Run], studies: Sequence[Results], own: str
) -> list[str]:
    """Return the commands that train and evaluate the networks again, and make the report."""
    lines = [study.command for study in studies]
    for run in runs:
        if run.cfg is not None and run.work_dir is not None:
            lines.append(_train_command(run))
            if run.checkpoint is not None:
                lines.append(shlex.join(['bdd-seg', 'test', str(run.cfg.filename), str(run.checkpoint)]))
    return list(dict.fromkeys([*lines, *([own] if own else [])]))


def _notes(options: Options, images: ValidationSet) -> list[str]:
    notes = [
        'Boundary IoU takes a band of 2% of the diagonal along outlines (Cheng et al., CVPR 2021).',
        'Parameters, operations and latency are those of inference, without auxiliary heads.',
    ]
    if len(images.numbers) < len(images.dataset):
        notes.insert(0, f'Scores are those of {len(images.numbers)} of {len(images.dataset)} images.')
    return notes
