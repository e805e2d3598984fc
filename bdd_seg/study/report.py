"""The report of a study: Markdown tables and sentences. Scores are in percent."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean, median, stdev

from bdd_seg.runtime.upstream.atomic_files import write_atomically
from bdd_seg.study.plots import BUDGET_TITLES, plot_class_gain, plot_methods
from bdd_seg.study.results import Difference, Results, by_seed, mious
from bdd_seg.study.settings import Budget, Options, format_overrides

RELATIONS = {'ahead': 'is ahead of', 'behind': 'is behind', 'not told apart': 'is not told apart from'}
HOW_TO_READ = (
    'mIoU in percent, mean ± sample standard deviation over the seeds. Differences are paired by seed; in '
    "brackets their 95% intervals by Student's t, each for itself. Bold are those that stay significant at "
    "5% when the p-values of the paired t-tests of one table and split are adjusted by Holm's method. "
    'Seconds per iteration are medians, minutes means. Where teachers were recorded, both are those of short '
    'runs with a live teacher.'
)


def write_report(results: Results, folder: Path) -> None:
    """Write ``report.md`` and its figures into a folder, at any moment of a study."""
    folder.mkdir(parents=True, exist_ok=True)
    split = results.judged_on()[-1]
    parts = [f'# {results.title}', f'```bash\n{results.command}\n```']
    facts = results.environment.items()
    machine = ', '.join(f'no {key}' if value is None else f'{key} {value}' for key, value in facts)
    elsewhere = {run.machine for run in results.runs} - {'', *map(str, results.environment.values())}
    others = f' Runs were also made with {", ".join(sorted(elsewhere))}.' if elsewhere else ''
    parts += [f'Run with {machine}.{others}', '## Methods', methods_table(results)]
    if results.budgets():
        plot_methods(results, split, folder / 'methods.png')
        parts += [HOW_TO_READ, recording_in_words(results)]
        parts.append('![mIoU and minutes of training of each method](methods.png)')
    for budget in results.budgets():
        parts += _comparison(results, budget)
        if budget == 'iterations' and results.class_gains(split, budget):
            plot_class_gain(results, split, budget, folder / 'class_gain.png')
            parts.append('![gain in IoU per class](class_gain.png)')
    if results.of_stage('search'):
        parts += ['## Search', f'Settings were chosen on {results.select_on}.', search_table(results)]
    if results.notes:
        parts += ['## What this does not show', '\n'.join(f'- {note}' for note in results.notes)]
    write_atomically(folder / 'report.md', '\n\n'.join(filter(None, parts)) + '\n')


def _comparison(results: Results, budget: Budget) -> list[str]:
    parts = [f'## {BUDGET_TITLES[budget].capitalize()}']
    if budget == 'wall_clock' and results.wall_clock_of:
        parts.append(f'Each trains about as long as {results.label(results.wall_clock_of)} does.')
    parts.append(main_table(results, budget))
    compared = [method for method in results.compare if method in results.finished(budget)]
    parts += [comparison_table(results, budget, method) for method in compared]
    return [*parts, '\n'.join(f'- {sentence}' for sentence in in_words(results, budget))]


def main_table(results: Results, budget: Budget) -> str:
    """Return a Markdown table of the methods with finished runs: references, the control, the others."""
    control, students = results.control, results.finished(budget)
    minus = f'− {results.label(control)}'
    header = [name for split in results.splits for name in (f'{split} mIoU', f'{split} {minus}')]
    rows = []
    gains = {split: results.differences(budget, split, control) for split in results.splits}
    for method, runs in {**results.references(), **students}.items():
        row = [results.label(method)]
        for split in results.splits:
            found = gains[split].get(method)
            row += [mean_and_sd(mious(runs, split)), found.reversed().cell() if found else '']
        lengths = (run.iterations for run in runs.values())
        pace, times = results.pace(method, budget), results.minutes(method, budget)
        row += [str(len(runs)), number([pace], median, '.3f'), number(lengths, median, '.0f')]
        rows.append([*row, number(times, fmean, '.1f')])
    header = ['method', *header, 'seeds', 's/iteration', 'iterations', 'minutes of training']
    return markdown(header, 'l' + 'r' * (len(header) - 1), rows)


def comparison_table(results: Results, budget: Budget, method: str) -> str:
    """Return a Markdown table of a method minus each other trained one, on each split."""
    rows = []
    for split in results.splits:
        for other, found in results.differences(budget, split, method).items():
            p_value = number([found.p_value], median, '.3f')
            rows.append([split, results.label(other), found.cell(), str(found.seeds), p_value, found.verdict])
    header = ['split', f'{results.label(method)} against', 'difference', 'seeds', 'adjusted p', 'it is']
    return markdown(header, 'llrrrl', rows)


def search_table(results: Results) -> str:
    """Return a Markdown table of the settings that were tried and their mean scores, the chosen in bold."""
    rows = []
    for method, about in results.methods.items():
        runs = [run for run in results.of_stage('search') if run.method == method]
        tried = {_as_key(run.setting): run.setting for run in runs}
        for key, setting in tried.items():
            same = by_seed((run for run in runs if _as_key(run.setting) == key), [results.select_on])
            scores = mious(same, results.select_on)
            cells = [format_overrides(setting) or 'as configured', number(scores.values(), fmean, '.2f')]
            if key == _as_key(about.setting):
                cells = [f'**{cell}**' for cell in cells]
            rows.append([about.label, *cells, str(len(scores))])
    return markdown(['method', 'setting', f'{results.select_on} mIoU', 'seeds'], 'llrr', rows)


def methods_table(results: Results) -> str:
    """Return a Markdown table of the methods: config, fixed overrides, and what the search chose."""
    rows = []
    for about in results.methods.values():
        overrides = [format_overrides(about.options), format_overrides(about.setting)]
        rows.append([about.label, f'`{about.config}`', *overrides, str(about.trials or '')])
    return markdown(['method', 'config', 'fixed', 'chosen', 'trials'], 'llllr', rows)


def in_words(results: Results, budget: Budget) -> list[str]:
    """Return sentences on what the comparisons show and what they do not show.

    They are about the splits on which nothing was chosen, where there are such.
    """
    methods, sentences, tested = results.finished(budget), [], 0
    for i, method in enumerate(results.compare):
        if method not in methods:
            sentences.append(f'{results.label(method)} has no finished run yet.')
            continue
        # Where both methods of a pair are set against all others, the first one's sentence is enough.
        others = [other for other in methods if other not in results.compare[: i + 1]]
        for split in results.judged_on():
            found = results.differences(budget, split, method)
            tested += sum(one.interval is not None for one in found.values())
            sentences += [
                sentence(results.label(method), results.label(other), split, found[other])
                for other in others
                if other in found
            ]
    if tested:
        sentences += [
            'Not told apart does not mean equal: the interval says how large a difference may still be.',
            'Who is ahead is judged at 5%, with p-values adjusted by Holm for the comparisons of one method '
            'on one split. The intervals are not adjusted: where nothing differs, one in twenty excludes 0 '
            'all the same.',
        ]
    return sentences


def sentence(name: str, other: str, split: str, found: Difference) -> str:
    """Return in words what a difference of two methods on a split shows."""
    if found.interval is None:
        return (
            f'On {split}, {name} minus {other} is {found} with one seed, which shows nothing of the spread.'
        )
    return f'On {split}, {name} {RELATIONS[found.verdict]} {other}: {found}, {found.seeds} seeds.'


def recording_in_words(results: Results) -> str:
    """Return what recording the teachers saved, an empty text where none were recorded."""
    count, hours, live = results.recorded()
    if not count:
        return ''
    return (
        f'{count} trainings shared recordings of their teachers: their iterations took {hours:.1f} hours, '
        f'recording included. At the pace with a live teacher they would have taken {live:.1f} hours.'
    )


def mean_and_sd(scores: Mapping[int, float]) -> str:
    """Return the mean and, of several seeds, the sample standard deviation."""
    mean = number(scores.values(), fmean, '.1f')
    return f'{mean} ± {stdev(scores.values()):.1f}' if len(scores) > 1 else mean


def number(values: Iterable[float | None], statistic: Callable[[list[float]], float], form: str) -> str:
    """Return a statistic of the values that are known, an empty text where there are none."""
    known = [value for value in values if value is not None]
    return format(statistic(known), form) if known else ''


def markdown(header: list[str], align: str, rows: list[list[str]]) -> str:
    """Return a table; ``align`` has an ``l`` or ``r`` for each column."""
    rule = ['---:' if side == 'r' else '---' for side in align]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, rule, *rows])


def _as_key(setting: Options) -> str:
    return json.dumps(setting, sort_keys=True)
