"""What the results of a study show, and what not: statistics, Markdown tables, sentences and plots.

``results`` is throughout what the study's ``results.json`` holds, finished or not; scores are in percent.
A comparison is ``equal`` in ``'iterations'`` or in ``'wall_clock'``, the time that training takes.
"""

import itertools
import json
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.optimize import isotonic_regression
from scipy.stats import t as student_t

from bdd_seg.study.settings import in_short

MODES = {'iterations': 'equal iterations', 'wall_clock': 'equal wall-clock'}
MARKERS = {'iterations': 'o', 'wall_clock': 'D'}
COLOURS = ('#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7F7F7F')
"""Okabe and Ito's (https://jfly.uni-koeln.de/color), with grey for their yellow, too pale on white."""
RELATIONS = {'ahead': 'is ahead of', 'behind': 'is behind', 'not told apart': 'is not told apart from'}
HOW_TO_READ = (
    'mIoU in percent, mean ± sample standard deviation over the seeds. Differences are paired by seed; in '
    "brackets their 95% intervals by Student's t, bold where these exclude 0. "
    'Seconds per iteration are medians, minutes means.'
)

Results = dict[str, Any]
Runs = dict[int, dict[str, Any]]
"""Seed → run."""


class Difference(NamedTuple):
    """A difference of two methods' mIoU, paired by seed.

    Attributes:
        mean: In points.
        interval: The two-sided 95% interval of the mean, None with one seed.
        seeds: How many pairs there are.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int

    @property
    def verdict(self) -> str:
        """Where the first method stands, in words."""
        if self.interval is None:
            return 'one seed'
        low, high = self.interval
        return 'ahead' if low > 0 else 'behind' if high < 0 else 'not told apart'

    def __str__(self) -> str:
        if self.interval is None:
            return f'{self.mean:+.1f}'
        return '{:+.1f} [{:+.1f}, {:+.1f}]'.format(self.mean, *self.interval)

    def cell(self) -> str:
        """For a table: bold where the interval excludes 0."""
        return f'**{self}**' if self.verdict in ('ahead', 'behind') else str(self)


def paired_difference(scores: dict[int, float], control_scores: dict[int, float]) -> Difference:
    """Mean difference over the common seeds, with its interval by Student's t.

    Args:
        scores: Seed → mIoU.
        control_scores: Seed → mIoU of what is subtracted.

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
    half = float(student_t.ppf(0.975, n - 1)) * stdev(differences) / math.sqrt(n)
    return Difference(mean, (mean - half, mean + half), n)


def main_table(results: Results, equal: str) -> str:
    """Markdown: a line per method with finished runs, what is only evaluated first, then the control."""
    control, students = results['control'], finished(results, equal)
    minus = f'− {label(results, control)}'
    header = [name for split in results['splits'] for name in (f'{split} mIoU', f'{split} {minus}')]
    rows = []
    for method, runs in {**references(results), **students}.items():
        row = [label(results, method)]
        for split in results['splits']:
            compared = method in students and method != control
            found = difference(results, equal, split, method, control) if compared else None
            row += [mean_and_sd(scores(runs, split)), found.cell() if found else '']
        rows.append([
            *row,
            str(len(runs)),
            number(values(runs, 'seconds_per_iteration'), median, '.3f'),
            number(values(runs, 'iterations'), median, '.0f'),
            number(in_minutes(runs), fmean, '.1f'),
        ])  # fmt: skip
    header = ['method', *header, 'seeds', 's/iteration', 'iterations', 'minutes of training']
    return markdown(header, 'l' + 'r' * (len(header) - 1), rows)


def comparison_table(results: Results, equal: str, method: str) -> str:
    """Markdown: a method minus each other one that was trained, on each split."""
    rows = []
    for split in results['splits']:
        for other in finished(results, equal):
            found = difference(results, equal, split, method, other) if other != method else None
            if found:
                rows.append([split, label(results, other), found.cell(), str(found.seeds), found.verdict])
    header = ['split', f'{label(results, method)} against', 'difference', 'seeds', 'it is']
    return markdown(header, 'llrrl', rows)


def search_table(results: Results) -> str:
    """Markdown: every setting that was tried, its mean score over the seeds, and what was chosen in bold."""
    split, rows = results['select_on'], []
    for method, about in results['methods'].items():
        runs = [run for run in results['runs'] if run['method'] == method and run['stage'] == 'search']
        tried = {as_key(run['setting']): run['setting'] for run in runs}
        for key, setting in tried.items():
            same = by_seed((run for run in runs if as_key(run['setting']) == key), [split])
            found = scores(same, split)
            cells = [in_short(setting) or 'as configured', number(found.values(), fmean, '.2f')]
            if key == as_key(about['setting']):
                cells = [f'**{cell}**' for cell in cells]
            rows.append([about['label'], *cells, str(len(found))])
    return markdown(['method', 'setting', f'{split} mIoU', 'seeds'], 'llrr', rows)


def methods_table(results: Results) -> str:
    """Markdown: what each method is, what its config fixes and what the search chose."""
    rows = []
    for about in results['methods'].values():
        settings = [in_short(about.get(kind) or {}) for kind in ('loss', 'setting')]
        rows.append([about['label'], f'`{about["config"]}`', *settings, str(about.get('trials') or '')])
    return markdown(['method', 'config', 'fixed', 'chosen', 'trials'], 'llllr', rows)


def in_words(results: Results, equal: str) -> list[str]:
    """What the comparisons show and do not show, in plain sentences.

    They are about the splits on which nothing was chosen, where there are such.
    """
    splits = judged_on(results)
    methods, intervals = finished(results, equal), 0
    sentences: list[str] = []
    for i, method in enumerate(results['compare']):
        name = label(results, method)
        if method not in methods:
            sentences.append(f'{name} has no finished run yet.')
            continue
        # Where both of a pair are to be set against all others, the first one's sentence is enough.
        others = [other for other in methods if other not in results['compare'][: i + 1]]
        for split, other in ((split, other) for split in splits for other in others):
            found = difference(results, equal, split, method, other)
            if found is None:
                continue
            if found.interval:
                intervals += 1
                text = f'On {split}, {name} {RELATIONS[found.verdict]} {label(results, other)}'
                sentences.append(f'{text}: {found}, {found.seeds} seeds.')
            else:
                text = f'On {split}, {name} minus {label(results, other)} is {found} with one seed'
                sentences.append(f'{text}, which shows nothing of the spread.')
    if intervals:
        sentences += [
            'Not told apart does not mean equal: the interval says how large a difference may still be.',
            f'Each interval is one of 95%, not corrected for there being {intervals}: where nothing differs, '
            'one in twenty excludes 0 all the same.',
        ]
    return sentences


def class_gains(results: Results, split: str, equal: str) -> dict[str, dict[str, float]]:
    """Class → method → mean gain in IoU over the control, paired by seed: that in mIoU, then the largest.

    A gain is NaN where no seed has the class in both, as with a class that the split lacks.
    """
    methods = finished(results, equal)
    control = methods.pop(results['control'], {})
    methods = {method: runs for method, runs in methods.items() if runs.keys() & control.keys()}
    if not methods:
        return {}
    gains: dict[str, dict[str, float]] = {}
    for method, runs in methods.items():
        own = class_ious(runs, split)
        for name, reference in class_ious(control, split).items():
            common = paired_if_any(own.get(name, {}), reference)
            gains.setdefault(name, {})[method] = common.mean if common else math.nan
    known = {name: [gain for gain in row.values() if not math.isnan(gain)] for name, row in gains.items()}
    order = sorted(gains, key=lambda name: -fmean(known[name]) if known[name] else math.inf)
    mious = {
        m: paired_difference(scores(runs, split), scores(control, split)).mean for m, runs in methods.items()
    }
    return {'mIoU': mious, **{name: gains[name] for name in order}}


def plot_wall_clock(results: Results, split: str, file: Path) -> None:
    """Draw mIoU against minutes of training: small each final run, large a method's mean ± deviation.

    Methods that take about the same time are moved apart so far that their marks do not cover each other.
    """
    panels = {equal: finished(results, equal) for equal in modes(results)}
    if not panels:
        return
    figure = Figure(figsize=(9, 0.8 + 3.4 * len(panels)), layout='constrained')
    axes = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
    students = [method for method in results['methods'] if method not in references(results)]
    colours = dict(zip(students, itertools.cycle(COLOURS)))
    times = [minutes for panel in panels.values() for runs in panel.values() for minutes in in_minutes(runs)]
    gap = 0.022 * max(max(times) - min(times), 0.1 * max(times))
    keys, counts = {}, set()
    for axis, (equal, panel) in zip(axes, panels.items(), strict=True):
        means = np.array([fmean(in_minutes(runs)) for runs in panel.values()])
        shifts = moved_apart(means, gap) - means
        for (method, runs), mean, shift in zip(panel.items(), means, shifts, strict=True):
            mious = list(scores(runs, split).values())
            sd = stdev(mious) if len(mious) > 1 else None
            look: dict[str, Any] = {'marker': MARKERS[equal], 'color': colours[method]}
            axis.scatter(np.array(in_minutes(runs)) + shift, mious, s=14, alpha=0.5, linewidths=0, **look)
            axis.errorbar(mean + shift, fmean(mious), sd, markersize=9, capsize=4, **look)
            keys[label(results, method)] = Patch(color=colours[method])
            counts.add(len(mious))
        axis.set_title(MODES[equal], fontsize='medium')
        axis.set_ylabel(f'{split} mIoU (%)')
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel('minutes of training (about equal times are drawn side by side)')
    title = textwrap.fill(results['title'], 100)
    figure.suptitle(f'{title}\nmean ± standard deviation of {in_seeds(counts)}', fontsize='medium')
    figure.legend(keys.values(), keys.keys(), loc='outside right center')
    figure.savefig(file, dpi=110)


def plot_class_gain(results: Results, split: str, equal: str, file: Path) -> None:
    """Draw :func:`class_gains` as a map with numbers."""
    gains = class_gains(results, split, equal)
    if not gains:
        return
    methods, control = list(gains['mIoU']), finished(results, equal)[results['control']]
    values = np.array([[row[method] for method in methods] for row in gains.values()])
    # One class that gains a lot is not to make all others pale.
    limit = max(1.0, float(np.nanpercentile(np.abs(values), 90)))
    figure = Figure(figsize=(9, 0.3 * len(gains) + 1.4), layout='constrained')
    axis = figure.subplots()
    axis.imshow(values, cmap='RdBu', vmin=-limit, vmax=limit, aspect='auto')
    for (i, j), value in np.ndenumerate(values):
        colour = 'white' if abs(value) > 0.6 * limit else 'black'
        axis.text(j, i, '–' if math.isnan(value) else f'{value:+.1f}', color=colour, ha='center', va='center')
    names = [textwrap.fill(label(results, method), 12) for method in methods]
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(gains)), gains)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.axhline(0.5, color='black')
    counts = {
        len(runs.keys() & control.keys())
        for name, runs in finished(results, equal).items()
        if name in methods
    }
    title = f'gain in IoU over {label(results, results["control"])}, {split}, {MODES[equal]}'
    axis.set_title(f'{title}: mean of {in_seeds(counts)}')
    figure.savefig(file, dpi=110)


def write_report(results: Results, folder: Path) -> None:
    """Write ``report.md`` and its plots into a folder, at any moment of a study."""
    folder.mkdir(parents=True, exist_ok=True)
    split = judged_on(results)[-1]
    parts = [f'# {results["title"]}', f'```bash\n{results["command"]}\n```']
    machine = (
        f'no {key}' if value is None else f'{key} {value}' for key, value in results['environment'].items()
    )
    parts += [f'Run with {", ".join(machine)}.', '## Methods', methods_table(results)]
    if modes(results):
        plot_wall_clock(results, split, folder / 'wall_clock.png')
        parts += [HOW_TO_READ, '![mIoU against minutes of training](wall_clock.png)']
    for equal in modes(results):
        parts.append(f'## {MODES[equal].capitalize()}')
        if equal == 'wall_clock' and results['wall_clock_of']:
            parts.append(f'Each trains about as long as {label(results, results["wall_clock_of"])} does.')
        parts.append(main_table(results, equal))
        for method in results['compare']:
            if method in finished(results, equal):
                parts.append(comparison_table(results, equal, method))
        parts.append('\n'.join(f'- {sentence}' for sentence in in_words(results, equal)))
        if equal == 'iterations' and class_gains(results, split, equal):
            plot_class_gain(results, split, equal, folder / 'class_gain.png')
            parts.append('![gain in IoU per class](class_gain.png)')
    if any(run['stage'] == 'search' for run in results['runs']):
        parts += ['## Search', f'Settings were chosen on {results["select_on"]}.', search_table(results)]
    if results['notes']:
        parts += ['## What this does not show', '\n'.join(f'- {note}' for note in results['notes'])]
    temporary = folder / 'report.md.part'
    temporary.write_text('\n\n'.join(filter(None, parts)) + '\n')
    temporary.replace(folder / 'report.md')


def finished(results: Results, equal: str) -> dict[str, Runs]:
    """Method → its final runs by seed, of methods that have any; the control first."""
    order = sorted(results['methods'], key=lambda method: method != results['control'])
    runs = [run for run in results['runs'] if run['stage'] == 'final' and run['equal'] == equal]
    found = {
        method: by_seed((run for run in runs if run['method'] == method), results['splits'])
        for method in order
    }
    return {method: runs for method, runs in found.items() if runs}


def references(results: Results) -> dict[str, Runs]:
    """As :func:`finished`, of what is only evaluated: the teacher."""
    runs = [run for run in results['runs'] if run['stage'] == 'reference']
    methods = dict.fromkeys(run['method'] for run in runs)
    return {
        method: by_seed((run for run in runs if run['method'] == method), results['splits'])
        for method in methods
    }


def judged_on(results: Results) -> list[str]:
    """The splits on which nothing was chosen, all where there is no such."""
    return [split for split in results['splits'] if split != results['select_on']] or results['splits']


def modes(results: Results) -> list[str]:
    """In what there are comparisons."""
    return [equal for equal in MODES if finished(results, equal)]


def by_seed(runs: Iterable[dict[str, Any]], splits: list[str]) -> Runs:
    """The runs that have been evaluated on all these splits."""
    return {run['seed']: run for run in runs if run['scores'].keys() >= {*splits}}


def scores(runs: Runs, split: str) -> dict[int, float]:
    """Seed → mIoU."""
    return {seed: run['scores'][split]['mIoU'] for seed, run in runs.items()}


def class_ious(runs: Runs, split: str) -> dict[str, dict[int, float]]:
    """Class → seed → IoU, where it has one."""
    found: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        for name, iou in run['scores'][split]['classes'].items():
            ious = found.setdefault(name, {})
            if iou is not None and not math.isnan(iou):
                ious[seed] = iou
    return found


def difference(results: Results, equal: str, split: str, method: str, other: str) -> Difference | None:
    """:func:`paired_difference` of two methods by name, None as long as they have no seed in common."""
    runs = finished(results, equal)
    return paired_if_any(scores(runs.get(method, {}), split), scores(runs.get(other, {}), split))


def paired_if_any(own: dict[int, float], control: dict[int, float]) -> Difference | None:
    return paired_difference(own, control) if own.keys() & control.keys() else None


def moved_apart(places: np.ndarray, gap: float) -> np.ndarray:
    """The nearest places, by least squares, that keep the order and are at least a gap from each other."""
    order, steps = np.argsort(places), gap * np.arange(len(places))
    moved = np.empty_like(places)
    moved[order] = isotonic_regression(places[order] - steps).x + steps
    return moved


def label(results: Results, method: str) -> str:
    return results['methods'].get(method, {}).get('label', method)


def mean_and_sd(found: dict[int, float]) -> str:
    """The mean and, of several seeds, the sample standard deviation."""
    mean = number(found.values(), fmean, '.1f')
    return f'{mean} ± {stdev(found.values()):.1f}' if len(found) > 1 else mean


def number(found: Iterable[float], statistic: Callable[[list[float]], float], form: str) -> str:
    """A statistic as text, which is empty where there is nothing to take it of."""
    known = list(found)
    return format(statistic(known), form) if known else ''


def values(runs: Runs, key: str) -> list[float]:
    return [run[key] for run in runs.values() if run.get(key) is not None]


def in_minutes(runs: Runs) -> list[float]:
    return [seconds / 60 for seconds in values(runs, 'seconds')]


def as_key(setting: dict[str, Any]) -> str:
    return json.dumps(setting, sort_keys=True)


def in_seeds(counts: set[int]) -> str:
    """How many seeds, where it may not be the same number everywhere."""
    if counts == {1}:
        return 'one seed'
    return ' to '.join(str(count) for count in sorted({min(counts), max(counts)})) + ' seeds'


def markdown(header: list[str], align: str, rows: list[list[str]]) -> str:
    """A table; ``align`` has an ``l`` or ``r`` for each column."""
    rule = ['---:' if side == 'r' else '---' for side in align]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, rule, *rows])
