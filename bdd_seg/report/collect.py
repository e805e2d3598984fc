"""Collect a report: find networks and images, measure, choose pictures."""

import copy
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from bdd_seg.distill.settings import checked_teacher
from bdd_seg.distill.student import is_distiller
from bdd_seg.errors import ConfigError
from bdd_seg.report.data import Network, Report
from bdd_seg.report.gallery import pictures
from bdd_seg.report.images import ValidationSet, check_same_images
from bdd_seg.report.networks import image_size, measure
from bdd_seg.report.runs import Run, find_runs, seeds_of, teacher_checkpoint, train_command
from bdd_seg.report.subjects import Subject, TeacherSubject
from bdd_seg.runtime.upstream.configs import leaf_datasets, load_config
from bdd_seg.runtime.versions import package_versions
from bdd_seg.study.machine import describe_machine
from bdd_seg.study.results import Results


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
    networks, tallies, notes = measure(subjects, images)
    data_notes = [] if images is None else _notes(options, images)
    report = Report(
        title=_title(networks, found.studies),
        classes=[] if images is None else images.classes,
        palette=[] if images is None else images.palette,
        dataset='' if images is None else images.describe(),
        image_size=None if images is None else image_size(images),
        networks=networks,
        seeds=[row for study in found.studies for row in seeds_of(study)],
        environment=_environment(),
        commands=_commands(networks, runs, found.studies, options.command),
        notes=[*data_notes, *notes, *(note for study in found.studies for note in study.notes)],
    )
    if images is None:
        return report
    pair = [network.key for network in report.compared or report.comparable[:1]]
    return replace(report, pictures=pictures(images, tallies, pair, options.pictures))


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
        student = next(filter(_names_teacher, runs), None)
        if run.role != 'teacher' or student is None:
            raise
        return TeacherSubject(run, images, student)  # trained elsewhere: it answers as in the training
    return Subject(run, own)


def _names_teacher(run: Run) -> bool:
    """Return whether a run is distilled, and its config still names its teacher."""
    return run.cfg is not None and is_distiller(run.cfg.model)


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
    student = next(filter(_names_teacher, runs), None)
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


def _title(networks: Sequence[Network], studies: Sequence[Results]) -> str:
    if studies:
        return studies[0].title
    names = [network.label for network in networks if network.role != 'teacher'] or ['no network']
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _environment() -> dict[str, Any]:
    machine = describe_machine(torch.cuda.is_available())
    return {key: value for key, value in {**machine, **package_versions()}.items() if value is not None}


def _commands(
    networks: Sequence[Network], runs: Sequence[Run], studies: Sequence[Results], own: str
) -> list[str]:
    """Return the commands that train and evaluate the networks again, and make the report."""
    lines = [study.command for study in studies]
    for run in runs:
        if run.cfg is not None and run.work_dir is not None:
            lines.append(train_command(run))
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
