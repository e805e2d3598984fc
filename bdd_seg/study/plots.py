"""The figures of a study's report."""

import itertools
import math
import textwrap
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from bdd_seg.study.results import Results, Runs, mious
from bdd_seg.study.settings import Budget

BUDGET_TITLES: dict[Budget, str] = {'iterations': 'equal iterations', 'wall_clock': 'equal wall-clock'}
MARKERS: dict[Budget, str] = {'iterations': 'o', 'wall_clock': 'D'}
COLOURS = ('#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7F7F7F')
"""Okabe and Ito's (https://jfly.uni-koeln.de/color), with grey for their yellow, too pale on white."""
LOOKS: list[dict[str, Any]] = [
    {'color': colour, 'fillstyle': fill} for fill in ('full', 'none', 'left', 'bottom') for colour in COLOURS
]
"""Looks of marks, in which more methods differ than there are colours."""


def plot_wall_clock(results: Results, split: str, file: Path) -> None:
    """Draw mIoU against minutes of training: small marks for runs, large ones for mean ± deviation.

    Methods that take about the same time are moved apart so that their marks do not cover each other. Draws
    nothing as long as no final run is finished.

    Args:
        results: The results.
        split: The split of the scores.
        file: The image to write.
    """
    panels = {budget: results.finished(budget) for budget in results.budgets()}
    if not panels:
        return
    drawn = dict.fromkeys(method for panel in panels.values() for method in panel)
    height = max(0.8 + 3.4 * len(panels), 0.24 * len(drawn) + 0.8)
    figure = Figure(figsize=(9 if len(drawn) <= len(COLOURS) else 12, height), layout='constrained')
    axes = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
    students = [method for method in results.methods if method not in results.references()]
    looks = dict(zip(students, itertools.cycle(LOOKS)))
    times = [
        time for budget, panel in panels.items() for name in panel for time in results.minutes(name, budget)
    ]
    gap = 0.022 * max(max(times) - min(times), 0.1 * max(times))
    for axis, (budget, panel) in zip(axes, panels.items(), strict=True):
        minutes = {method: results.minutes(method, budget) for method in panel}
        _draw_methods(axis, panel, minutes, split, gap, looks, MARKERS[budget])
        axis.set_title(BUDGET_TITLES[budget], fontsize='medium')
        axis.set_ylabel(f'{split} mIoU (%)')
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel('minutes of training (about equal times are drawn side by side)')
    counts = {len(runs) for panel in panels.values() for runs in panel.values()}
    title = textwrap.fill(results.title, 100)
    figure.suptitle(f'{title}\nmean ± standard deviation of {count_seeds(counts)}', fontsize='medium')
    keys = {
        results.label(method): Line2D([], [], marker='o', linestyle='', markersize=9, **looks[method])
        for method in drawn
    }
    figure.legend(keys.values(), keys.keys(), loc='outside right center')
    figure.savefig(file, dpi=110)


def _draw_methods(
    axis: Axes,
    panel: dict[str, Runs],
    minutes: dict[str, list[float]],
    split: str,
    gap: float,
    looks: dict[str, dict[str, Any]],
    marker: str,
) -> None:
    means = np.array([fmean(minutes[method]) for method in panel])
    shifts = moved_apart(means, gap) - means
    for (method, runs), mean, shift in zip(panel.items(), means, shifts, strict=True):
        scores = list(mious(runs, split).values())
        deviation = stdev(scores) if len(scores) > 1 else None
        look: dict[str, Any] = {'marker': marker, 'color': looks[method]['color']}
        axis.scatter(np.array(minutes[method]) + shift, scores, s=14, alpha=0.5, linewidths=0, **look)
        look['fillstyle'] = looks[method]['fillstyle']
        axis.errorbar(mean + shift, fmean(scores), deviation, markersize=9, capsize=4, **look)


def plot_class_gain(results: Results, split: str, budget: Budget, file: Path) -> None:
    """Draw the gains of :meth:`~bdd_seg.study.results.Results.class_gains` as a map with numbers.

    Draws nothing as long as there are no gains.

    Args:
        results: The results.
        split: The split of the scores.
        budget: The budget of the runs.
        file: The image to write.
    """
    gains = results.class_gains(split, budget)
    if not gains:
        return
    methods, finished = list(gains['mIoU']), results.finished(budget)
    values = np.array([[row[method] for method in methods] for row in gains.values()])
    # One class that gains a lot must not make all others pale.
    limit = max(1.0, float(np.nanpercentile(np.abs(values), 90)))
    many = len(methods) > len(COLOURS)  # then names stand upright
    size = (max(9.0, 0.55 * len(methods) + 2), 0.3 * len(gains) + (3.4 if many else 1.4))
    figure = Figure(figsize=size, layout='constrained')
    axis = figure.subplots()
    axis.imshow(values, cmap='RdBu', vmin=-limit, vmax=limit, aspect='auto')
    for (i, j), value in np.ndenumerate(values):
        colour = 'white' if abs(value) > 0.6 * limit else 'black'
        axis.text(j, i, '–' if math.isnan(value) else f'{value:+.1f}', color=colour, ha='center', va='center')
    names = [textwrap.fill(results.label(method), 24 if many else 12) for method in methods]
    axis.set_xticks(range(len(names)), names, rotation=90 if many else 0)
    axis.set_yticks(range(len(gains)), gains)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.axhline(0.5, color='black')
    control = finished[results.control]
    counts = {len(finished[method].keys() & control.keys()) for method in methods}
    title = f'gain in IoU over {results.label(results.control)}, {split}, {BUDGET_TITLES[budget]}'
    axis.set_title(f'{title}: mean of {count_seeds(counts)}')
    figure.savefig(file, dpi=110)


def moved_apart(places: np.ndarray, gap: float) -> np.ndarray:
    """Return the nearest places, by least squares, that keep their order and are at least a gap apart."""
    order, steps = np.argsort(places), gap * np.arange(len(places))
    moved = np.empty_like(places)
    moved[order] = isotonic_regression(places[order] - steps).x + steps
    return moved


def count_seeds(counts: set[int]) -> str:
    """Return the number of seeds in words, a range where it is not the same everywhere."""
    if counts == {1}:
        return 'one seed'
    return ' to '.join(str(count) for count in sorted({min(counts), max(counts)})) + ' seeds'
