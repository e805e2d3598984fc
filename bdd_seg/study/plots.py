"""The figures of a study's report."""

import math
import textwrap
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from matplotlib.figure import Figure

from bdd_seg.study.results import Results, mious
from bdd_seg.study.settings import Budget

BUDGET_TITLES: dict[Budget, str] = {'iterations': 'equal iterations', 'wall_clock': 'equal wall-clock'}
LOOKS: dict[Budget, tuple[str, str]] = {'iterations': ('#0072B2', 'o'), 'wall_clock': ('#D55E00', 'D')}
"""Colour and mark of each budget; the colours are of https://jfly.uni-koeln.de/color."""
MANY = 8
"""With more methods than this their names stand upright in the map of the classes."""


def plot_methods(results: Results, split: str, file: Path) -> None:
    """Draw a row for each method, the best first: mIoU as mean ± deviation, and the length of its training.

    Small marks are the runs, the dotted line is the mean of the control. Draws nothing as long as no final
    run is finished.

    Args:
        results: The results.
        split: The split of the scores.
        file: The image to write.
    """
    panels = {budget: results.finished(budget) for budget in results.budgets()}
    if not panels:
        return
    best: dict[str, float] = {}
    for panel in panels.values():
        for method, runs in panel.items():
            best[method] = max(best.get(method, -math.inf), fmean(mious(runs, split).values()))
    order = sorted(best, key=best.__getitem__)
    figure = Figure(figsize=(9, 1.7 + 0.3 * len(order) * len(panels)), layout='constrained')
    scores, times = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for number, (budget, panel) in enumerate(panels.items()):
        colour, marker = LOOKS[budget]
        below = 0.35 * (number - (len(panels) - 1) / 2)
        for method, runs in panel.items():
            values, row = list(mious(runs, split).values()), order.index(method) - below
            deviation = stdev(values) if len(values) > 1 else None
            scores.scatter(values, [row] * len(values), s=14, alpha=0.5, color=colour, linewidths=0)
            scores.errorbar(
                fmean(values), row, xerr=deviation, marker=marker, markersize=7, capsize=4, color=colour
            )
            times.barh(row, fmean(results.minutes(method, budget) or [0.0]), 0.7 / len(panels), color=colour)
    for budget, panel in panels.items():
        if results.control in panel:
            mean = fmean(mious(panel[results.control], split).values())
            scores.axvline(mean, color=LOOKS[budget][0], linestyle=':', zorder=0)
    scores.set_yticks(range(len(order)), [textwrap.fill(results.label(method), 40) for method in order])
    scores.set_ylim(-0.7, len(order) - 0.3)
    scores.set_xlabel(f'{split} mIoU (%)')
    times.set_xlabel('minutes of training')
    scores.grid(alpha=0.3)
    times.grid(alpha=0.3, axis='x')
    times.set_axisbelow(True)
    times.tick_params(axis='y', length=0)
    counts = {len(runs) for panel in panels.values() for runs in panel.values()}
    title = f'{textwrap.fill(results.title, 100)}\nmean ± standard deviation of {count_seeds(counts)}'
    colours = {'iterations': 'circles', 'wall_clock': 'diamonds'}
    kinds = ', '.join(f'{colours[budget]}: {BUDGET_TITLES[budget]}' for budget in panels)
    figure.suptitle(title if len(panels) == 1 else f'{title}; {kinds}', fontsize='medium')
    figure.savefig(file, dpi=110)


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
    many = len(methods) > MANY
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


def count_seeds(counts: set[int]) -> str:
    """Return the number of seeds in words, a range where it is not the same everywhere."""
    if counts == {1}:
        return 'one seed'
    return ' to '.join(str(count) for count in sorted({min(counts), max(counts)})) + ' seeds'
