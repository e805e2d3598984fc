"""The results of a study, as ``results.json`` holds them, and their statistics. Scores are in percent."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import t as student_t

from bdd_seg.errors import ConfigError
from bdd_seg.study.settings import Budget, Options, first_problem

Stage = Literal['reference', 'search', 'final', 'pace']
BUDGETS: tuple[Budget, ...] = ('iterations', 'wall_clock')


class _Record(BaseModel):
    """Read from JSON and written back with the same keys; what a file does not have is not written."""

    model_config = ConfigDict(frozen=True)

    def to_json(self) -> dict[str, Any]:
        """Return the content for ``json.dumps``."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Scores(_Record):
    """The scores of a network on one split.

    Attributes:
        miou: Mean intersection over union.
        pixel_accuracy: Share of the pixels that are right, the key ``aAcc``.
        class_accuracy: Mean over the classes of the share of their pixels that is right, the key ``mAcc``.
        classes: Class → IoU, None for a class that neither labels nor predictions contain.
    """

    miou: float = Field(alias='mIoU')
    pixel_accuracy: float = Field(alias='aAcc')
    class_accuracy: float = Field(alias='mAcc')
    classes: dict[str, float | None]


class Provenance(_Record):
    """The inputs, beyond the config, that affect the result of a run.

    Attributes:
        train_flags: Further flags of ``tools/train.py``.
        splits: Split → overrides under which it was evaluated.
        checkpoint: SHA-256 of the checkpoint of a reference.
        teacher: SHA-256 of the live teacher's checkpoint.
        cache: SHA-256 of the manifest of a cached teacher.
        start: SHA-256 of the checkpoint that the student begins with, the config's ``load_from``.
    """

    train_flags: list[str] = []
    splits: dict[str, Options] = {}
    checkpoint: str | None = None
    teacher: str | None = None
    cache: str | None = None
    start: str | None = None

    def agrees_with(self, earlier: 'Provenance') -> bool:
        """Return False if an earlier run had other inputs.

        It may have been evaluated on more splits. A file that is not here any more cannot be compared, nor
        can what the earlier run did not record.
        """
        now = self.model_copy(update={'splits': {**earlier.splits, **self.splits}})
        keys = earlier.model_fields_set & Provenance.model_fields.keys()
        known = [key for key in keys if getattr(now, key) is not None]
        return all(getattr(now, key) == getattr(earlier, key) for key in known)


class RunResult(Provenance):
    """The result of a run, the content of its ``result.json``. References have no training.

    Attributes:
        iterations: Length of the training.
        seconds: Wall-clock of the training, all its sessions taken together.
        peak_memory_mb: Peak memory of the GPU, or of the process without one.
        seconds_per_iteration: Median over the log intervals.
        scores: Split → scores.
        git_revision: Commit of the project, empty without git.
        machine: Name of the GPU, else of the CPU, that trained it.
        finished: Date and time.
    """

    iterations: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    seconds_per_iteration: float | None = None
    scores: dict[str, Scores]
    git_revision: str = ''
    machine: str = ''
    finished: str = ''


class RunIdentity(_Record):
    """The place of a run in its study.

    Attributes:
        method: Name of its method.
        stage: ``'search'``, ``'final'``, ``'pace'`` for a few iterations that were timed, or ``'reference'``
            for a network that is only evaluated.
        budget: The amount of training that it has in common with others, the key ``equal``.
        seed: Its seed.
        setting: Overrides that the search tries or has chosen.
        config_sha256: Digest of its config.
    """

    method: str
    stage: Stage
    budget: Budget = Field(alias='equal')
    seed: int
    setting: Options
    config_sha256: str | None = None


class RunRecord(RunResult, RunIdentity):
    """A finished run, an entry of ``results.json``."""

    def pairs_with(self, other: 'RunRecord') -> bool:
        """Return False if both runs had a live teacher, a cache or a start, and not the same one."""
        files = (self.teacher, other.teacher), (self.cache, other.cache), (self.start, other.start)
        return all(None in pair or pair[0] == pair[1] for pair in files)


class MethodRecord(_Record):
    """A method, an entry of ``results.json``.

    Attributes:
        label: Its name in tables.
        config: Its config file.
        options: Its overrides, the key ``loss``.
        setting: Overrides that the search chose.
        trials: Number of settings that the search tries.
        iterations: Length of its runs, where that is what is compared; else None.
    """

    label: str
    config: str
    options: Options = Field(default={}, alias='loss')
    setting: Options = {}
    trials: int = 0
    iterations: int | None = None


Runs = Mapping[int, RunRecord]
"""Seed → run."""


class Results(_Record):
    """The whole of ``results.json``, at any moment of a study.

    Attributes:
        title: Title of the report.
        command: The command that made the results.
        control: The method that the others are measured against.
        select_on: The split on which settings were chosen.
        splits: All splits.
        compare: Methods that are set against every other.
        wall_clock_of: The method that set the wall-clock.
        methods: Name → method.
        runs: The finished runs.
        environment: Description of the machine.
        notes: Limits of the results.
    """

    title: str
    command: str
    control: str
    select_on: str
    splits: list[str]
    compare: list[str]
    wall_clock_of: str | None
    methods: dict[str, MethodRecord]
    runs: list[RunRecord]
    environment: dict[str, Any]
    notes: list[str]

    def label(self, method: str) -> str:
        """Return the name of a method in tables."""
        return self.methods[method].label if method in self.methods else method

    @property
    def rivals(self) -> list[str]:
        """The methods that are compared with each other: those without a length of their own."""
        return [name for name, method in self.methods.items() if method.iterations is None]

    def finished(self, budget: Budget) -> dict[str, Runs]:
        """Return the final runs of each method that has any, the control first."""
        order = sorted(self.methods, key=lambda method: method != self.control)
        return self._by_method(order, (run for run in self.of_stage('final') if run.budget == budget))

    def references(self) -> dict[str, Runs]:
        """Return the runs of networks that are only evaluated, by method."""
        runs = self.of_stage('reference')
        return self._by_method(dict.fromkeys(run.method for run in runs), runs)

    def of_stage(self, stage: Stage) -> list[RunRecord]:
        """Return the finished runs of a stage."""
        return [run for run in self.runs if run.stage == stage]

    def _by_method(self, methods: Iterable[str], runs: Iterable[RunRecord]) -> dict[str, Runs]:
        runs = list(runs)
        found = {
            method: by_seed((run for run in runs if run.method == method), self.splits) for method in methods
        }
        return {method: own for method, own in found.items() if own}

    def budgets(self) -> list[Budget]:
        """Return the budgets with finished runs."""
        return [budget for budget in BUDGETS if self.finished(budget)]

    def judged_on(self) -> list[str]:
        """Return the splits on which nothing was chosen, all splits where there is none such."""
        return [split for split in self.splits if split != self.select_on] or self.splits

    def difference(self, budget: Budget, split: str, method: str, other: str) -> 'Difference | None':
        """Return the difference of two methods' mIoU, None as long as they have no seed in common.

        Runs with one seed and two teachers, or with two checkpoints to begin with, as in a study that went on
        elsewhere, are no pair.
        """
        own, control = self._pairs(budget, method, other)
        return paired_if_any(mious(own, split), mious(control, split))

    def _pairs(self, budget: Budget, method: str, other: str) -> tuple[Runs, Runs]:
        """Return the runs of two methods with the same seeds and files."""
        runs = self.finished(budget)
        own, control = runs.get(method, {}), runs.get(other, {})
        seeds = [seed for seed, run in own.items() if seed in control and run.pairs_with(control[seed])]
        return {seed: own[seed] for seed in seeds}, {seed: control[seed] for seed in seeds}

    def differences(self, budget: Budget, split: str, method: str) -> dict[str, 'Difference']:
        """Return the differences of a method's mIoU to that of each other, by the other.

        Methods with a length of their own are left out. The p-values are adjusted for the number of
        comparisons, see :func:`holm`.
        """
        finished = self.finished(budget)
        others = [other for other in finished if other != method and other in self.rivals]
        found = {other: self.difference(budget, split, method, other) for other in others}
        known = {other: one for other, one in found.items() if one is not None}
        tested = {other: one.p_value for other, one in known.items() if one.p_value is not None}
        adjusted = dict(zip(tested, holm([*tested.values()]), strict=True))
        return {other: one._replace(p_value=adjusted.get(other)) for other, one in known.items()}

    def pace(self, method: str, budget: Budget) -> float | None:
        """Return the seconds of an iteration with a live teacher, the median over runs, None if not known.

        They come from runs that were made for it, where there are such.
        """
        runs = self._timed(method) or [*self.finished(budget).get(method, {}).values()]
        seconds = [run.seconds_per_iteration for run in runs if run.seconds_per_iteration is not None]
        return median(seconds) if seconds else None

    def minutes(self, method: str, budget: Budget) -> list[float]:
        """Return the length of each final training in minutes, at the pace with a live teacher."""
        runs, pace = self.finished(budget).get(method, {}), self.pace(method, budget)
        if not self._timed(method) or pace is None:
            return minutes(runs)
        return [pace * (run.iterations or 0) / 60 for run in runs.values()]

    def recorded(self) -> tuple[int, float, float]:
        """Return what recording the teachers saved, in runs of a study whose pace was measured apart.

        Returns:
            The number of trainings with a teacher, the hours that their iterations took with its recorded
            answers, those of the trainings that recorded included, and the hours at the pace with a live one.
        """
        count, hours, live = 0, 0.0, 0.0
        for run in [*self.of_stage('search'), *self.of_stage('final')]:
            pace = self.pace(run.method, 'iterations') if self._timed(run.method) else None
            if run.teacher and run.iterations and run.seconds_per_iteration and pace:
                count += 1
                hours += run.iterations * run.seconds_per_iteration / 3600
                live += run.iterations * pace / 3600
        return count, hours, live

    def _timed(self, method: str) -> list[RunRecord]:
        """Return the runs that were made to measure the pace of a method."""
        return [run for run in self.of_stage('pace') if run.method == method]

    def class_gains(self, split: str, budget: Budget) -> dict[str, dict[str, float]]:
        """Return the mean gains in IoU over the control, paired by seed.

        Returns:
            Class → method → gain. First comes the gain in mIoU, then the classes, those that gain most first.
            A gain is NaN where no seed has the class in both, as with a class that the split lacks. Empty as
            long as no method has a seed in common with the control.
        """
        pairs = {
            method: self._pairs(budget, method, self.control)
            for method in self.finished(budget)
            if method != self.control and method in self.rivals
        }
        pairs = {method: pair for method, pair in pairs.items() if pair[0]}
        if not pairs:
            return {}
        gains: dict[str, dict[str, float]] = {}
        for method, (runs, control) in pairs.items():
            own = class_ious(runs, split)
            for name, reference in class_ious(control, split).items():
                common = paired_if_any(own.get(name, {}), reference)
                gains.setdefault(name, {})[method] = common.mean if common else math.nan
        known = {name: [gain for gain in row.values() if not math.isnan(gain)] for name, row in gains.items()}
        order = sorted(gains, key=lambda name: -fmean(known[name]) if known[name] else math.inf)
        overall = {
            method: paired_difference(mious(runs, split), mious(control, split)).mean
            for method, (runs, control) in pairs.items()
        }
        return {'mIoU': overall, **{name: gains[name] for name in order}}


class Difference(NamedTuple):
    """A difference of two methods' mIoU, paired by seed.

    Attributes:
        mean: Mean difference in points.
        interval: The two-sided 95% interval of the mean, None with one seed.
        seeds: Number of pairs.
        p_value: That of the two-sided t-test of a mean of 0, adjusted where it is one of several; None with
            one seed.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int
    p_value: float | None = None

    @property
    def verdict(self) -> str:
        """The place of the first method at 5%: ahead, behind, not told apart, or one seed."""
        if self.p_value is None:
            return 'one seed'
        if self.p_value >= 0.05:
            return 'not told apart'
        return 'ahead' if self.mean > 0 else 'behind'

    def reversed(self) -> 'Difference':
        """Return the difference of the second method to the first."""
        interval = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return self._replace(mean=-self.mean, interval=interval)

    def __str__(self) -> str:
        if self.interval is None:
            return f'{self.mean:+.1f}'
        return '{:+.1f} [{:+.1f}, {:+.1f}]'.format(self.mean, *self.interval)

    def cell(self) -> str:
        """Return the text for a table: bold where the two are told apart."""
        return f'**{self}**' if self.verdict in ('ahead', 'behind') else str(self)


def paired_difference(scores: Mapping[int, float], control_scores: Mapping[int, float]) -> Difference:
    """Return the mean difference over the common seeds, with its interval by Student's t.

    Args:
        scores: Seed → mIoU.
        control_scores: Seed → mIoU to subtract.

    Raises:
        ValueError: No seed is common to both.
    """
    differences = [score - control_scores[seed] for seed, score in scores.items() if seed in control_scores]
    n = len(differences)
    if n == 0:
        raise ValueError(f'no seed is common to {sorted(scores)} and {sorted(control_scores)}')
    mean = fmean(differences)
    if n == 1:
        return Difference(mean, None, n)
    error = stdev(differences) / math.sqrt(n)
    half = float(student_t.ppf(0.975, n - 1)) * error
    statistic = abs(mean) / error if error else math.inf if mean else 0.0
    return Difference(mean, (mean - half, mean + half), n, float(2 * student_t.sf(statistic, n - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in their order, https://www.jstor.org/stable/4615733.

    Calling those below 5% significant is wrong about any of the comparisons in at most one study of twenty.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def paired_if_any(own: Mapping[int, float], control: Mapping[int, float]) -> Difference | None:
    """Return :func:`paired_difference`, or None if no seed is common to both."""
    return paired_difference(own, control) if own.keys() & control.keys() else None


def by_seed(runs: Iterable[RunRecord], splits: Iterable[str]) -> dict[int, RunRecord]:
    """Return the runs that have been evaluated on all these splits, by seed."""
    return {run.seed: run for run in runs if run.scores.keys() >= {*splits}}


def mious(runs: Runs, split: str) -> dict[int, float]:
    """Return seed → mIoU."""
    return {seed: run.scores[split].miou for seed, run in runs.items()}


def class_ious(runs: Runs, split: str) -> dict[str, dict[int, float]]:
    """Return class → seed → IoU, for the seeds that have one."""
    found: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        for name, iou in run.scores[split].classes.items():
            ious = found.setdefault(name, {})
            if iou is not None and not math.isnan(iou):
                ious[seed] = iou
    return found


def minutes(runs: Runs) -> list[float]:
    """Return the wall-clock of each training, in minutes."""
    return [run.seconds / 60 for run in runs.values() if run.seconds is not None]


def load_results(path: str | Path) -> Results:
    """Read a ``results.json``.

    Raises:
        ConfigError: The file cannot be read, or does not hold the results of a study.
    """
    try:
        return Results.model_validate(json.loads(Path(path).read_text()))
    except (OSError, ValueError) as error:  # a ValidationError is a ValueError, too
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        raise ConfigError(f'{str(path)!r} cannot be read as the results of a study: {reason}') from error
