"""Evaluate the networks of a report and measure their cost."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from mmengine.dataset import pseudo_collate

from bdd_seg.deploy.latency import in_turns
from bdd_seg.errors import first_line
from bdd_seg.report.data import Network
from bdd_seg.report.evaluate import Kept, Tally, evaluate, place
from bdd_seg.report.images import ValidationSet
from bdd_seg.report.runs import Run, config_text, normal_path, read_curves, seed_of, train_command
from bdd_seg.report.subjects import Subject
from bdd_seg.study.machine import describe_machine

_SECONDS = 0.5  # of timing for each network
_TIMED = 'network'  # without the resize of its logits: latencies of earlier versions, with it, do not count


@dataclass(frozen=True)
class Evaluated:
    """A network that has been evaluated.

    Attributes:
        subject: The network.
        tally: Its evaluation.
        facts: Its cost, as far as it is known.
        kept: Where both are kept.
        size: (height, width) of the first image, as its own pipeline gives it.
    """

    subject: Subject
    tally: Tally
    facts: Mapping[str, Any]
    kept: Kept
    size: tuple[int, int]

    @property
    def settings(self) -> str:
        """A text that networks share which differ in their weights alone, and so have one cost."""
        return json.dumps([self.subject.settings(), self.size])

    def with_facts(self, facts: Mapping[str, Any]) -> 'Evaluated':
        """Return it with its cost, which is kept."""
        if facts != self.facts:
            self.tally.save(self.kept.file, self.kept.key, dict(facts))
        return replace(self, facts=facts)


def measure(
    subjects: Sequence[Subject], images: ValidationSet | None
) -> tuple[list[Network], dict[str, Tally], list[str]]:
    """Evaluate networks and measure their cost. One that fails is not evaluated, and its note says why.

    Args:
        subjects: The networks.
        images: Those of the report, None where nothing is evaluated.

    Returns:
        The networks, the evaluations by key, and notes for the page.

    Raises:
        Exception: All of them fail.
    """
    keyed = dict(zip(_keys(subjects), subjects, strict=True))
    evaluated: dict[str, Evaluated] = {}
    failures: dict[str, Exception] = {}
    for key, subject in keyed.items():
        if subject.images is None or images is None:
            continue
        try:
            evaluated[key] = _evaluate(subject, subject.images)
        except Exception as error:  # of any kind, from whatever network it is
            failures[key] = error
    if failures and not evaluated:
        raise [*failures.values()][-1]  # a student's rather than the teacher's
    evaluated = _with_costs(evaluated)
    size = None if images is None else image_size(images)
    networks = []
    for key, subject in keyed.items():
        network = _described(key, subject)
        if key in evaluated:
            network = _with_results(network, evaluated[key], size)
        elif key in failures:
            note = f'not evaluated: {first_line(failures[key])}'
            network = replace(network, note=_joined(network.note, note))
        if network.scores is None and network.evaluation is None:
            network = replace(network, scores=_last_score(network))
        networks.append(network)
    notes = [note for network in networks for note in _notes(network, failures, evaluated)]
    return networks, {key: one.tally for key, one in evaluated.items()}, notes


def image_size(images: ValidationSet) -> tuple[int, int]:
    """Return (height, width) of the first image as its pipeline gives it."""
    height, width = images.dataset[images.numbers[0]]['inputs'].shape[1:]
    return height, width


def _keys(subjects: Sequence[Subject]) -> list[str]:
    """Return a short name for each network: its role, with a number from the second one on."""
    roles = [subject.run.role for subject in subjects]
    numbers = [roles[: i + 1].count(role) for i, role in enumerate(roles)]
    return [role if number == 1 else f'{role}-{number}' for role, number in zip(roles, numbers, strict=True)]


def _evaluate(subject: Subject, images: ValidationSet) -> Evaluated:
    kept = place(subject.folder, subject.name, subject.identity(), images)
    tally, facts = evaluate(subject.run.label, images, kept, subject.predict, subject.known)
    return Evaluated(subject, tally, facts, kept, image_size(images))


def _with_costs(evaluated: Mapping[str, Evaluated]) -> dict[str, Evaluated]:
    """Return networks with their costs: what is kept, else measured anew.

    Their latencies are taken in turns, so that what else the machine does slows all of them alike. Those of
    an earlier report count only if it had the same networks and machine.
    """
    by_settings = {one.settings: one for one in evaluated.values()}
    costs = {settings: _cost(one) for settings, one in by_settings.items()}
    machine = {k: v for k, v in describe_machine(torch.cuda.is_available()).items() if k != 'date'}
    together = json.loads(json.dumps([_TIMED, machine, sorted(by_settings)]))
    if any(cost.get('timed_together') != together for cost in costs.values()):
        forms = {settings: one.subject.timed(_first(one)) for settings, one in by_settings.items()}
        times = in_turns(forms, _SECONDS * len(forms))
        for settings, one in by_settings.items():
            latency = {'latency': median(times[settings]) / 1000, 'device': one.subject.device()}
            costs[settings] = {**costs[settings], **latency, 'timed_together': together}
    return {key: one.with_facts(costs[one.settings]) for key, one in evaluated.items()}


def _cost(one: Evaluated) -> dict[str, Any]:
    """Return parameters, operations and unknown classes: what is kept for this size, else measured anew."""
    if one.facts.get('size') == [*one.size]:
        return dict(one.facts)
    known, images = one.subject.known(), one.subject.images
    assert images is not None
    names = [] if known is None else [name for i, name in enumerate(images.classes) if i not in known]
    return {**one.subject.costs(_first(one)), 'unknown': names, 'size': [*one.size]}


def _first(one: Evaluated) -> dict[str, Any]:
    """Return a batch of the first image."""
    images = one.subject.images
    assert images is not None
    return pseudo_collate([images.dataset[images.numbers[0]]])


def _described(key: str, subject: Subject) -> Network:
    """Return what is known of a network without evaluating it."""
    run = subject.run
    return Network(
        key=key,
        role=run.role,
        label=run.label,
        source=normal_path(run.path),
        scores=run.score,
        curves=[] if run.work_dir is None else read_curves(run.work_dir),
        config='' if run.cfg is None else config_text(run.cfg),
        command='' if run.cfg is None else train_command(run),
        note=_joined(run.note, _unfinished(run), subject.manner),
        seed=seed_of(run),
    )


def _with_results(network: Network, one: Evaluated, size: tuple[int, int] | None) -> Network:
    notes = [one.facts['note']]
    if one.size != size:
        notes.append(f'operations and latency are those of {one.size[0]} × {one.size[1]} pixels')
    if not one.tally.finite:
        notes.append('its probabilities are not all finite (NaN), so it has no calibration')
    return replace(
        network,
        evaluation=one.tally.evaluation(),
        parameters=one.facts['parameters'],
        flops=one.facts['flops'],
        latency=one.facts['latency'],
        device=one.facts['device'],
        note=_joined(network.note, *notes),
    )


def _notes(
    network: Network, failures: Mapping[str, Exception], evaluated: Mapping[str, Evaluated]
) -> list[str]:
    """Return sentences on a network for the notes of the page."""
    name = 'The teacher' if network.key == 'teacher' else network.label
    if network.key in failures:
        return [f'{name} is not evaluated: {first_line(failures[network.key])}']
    unknown = evaluated[network.key].facts['unknown'] if network.key in evaluated else []
    if not unknown:
        return []
    return [f'Pixels of classes unknown to the teacher do not count for it: {", ".join(unknown)}.']


def _joined(*notes: str) -> str:
    return '; '.join(filter(None, notes))


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
