"""Timing, peak memory, tables, plots and result files of the benchmarks.

Everything is measured in one process and in rounds. A round runs every case once, so that a machine that
slows down for a while slows all of them. The ratio of a row is the median, over the rounds, of its time
divided by the time of its reference in the same round. The peak memory is the most that tensors allocated by
one run hold at a time. Weights, optimizer state and a fixed batch are allocated before, and do not count.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.runner import Runner
from prettytable import PrettyTable, TableStyle
from torch.profiler import ProfilerActivity, profile

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_json

WARM_UP = 2
"""Runs of each case before the first that counts."""


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Args:
        part: The part of the benchmark that it belongs to.
        name: The name of its row.
        run: Does it once. With a loader, it is called with an iterator over the batches.
        reference: Name of the case that its time is divided by.
        loader: Settings of the data loader, if it needs one, with a data set that is built.
        images: Number of images in one run, 0 where their rate is of no interest.
        logits_mib: Size of the logits in MiB, 0 where the peak in multiples of it is of no interest.
        details: Further figures, by their names in words.
    """

    part: str
    name: str
    run: Callable[..., object]
    reference: str
    loader: dict[str, Any] | None = None
    images: int = 0
    logits_mib: float = 0
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the result: the median with its quartiles, and the peak memory.

    Attributes:
        part: As in :class:`Case`, like ``name`` and ``reference``.
        median_s: Seconds of one run, with the quartiles ``q1_s`` and ``q3_s``.
        ratio: Time divided by the reference's, with the quartiles ``ratio_q1`` and ``ratio_q3``.
        peak_mib: Peak memory in MiB.
        details: Further figures, by their names in words.
    """

    part: str
    name: str
    median_s: float
    q1_s: float
    q3_s: float
    reference: str
    ratio: float
    ratio_q1: float
    ratio_q3: float
    peak_mib: float
    details: dict[str, float]


@dataclass(frozen=True)
class Result:
    """The rows of one call.

    Attributes:
        machine: Its description, by :func:`bdd_seg.study.machine.describe_machine`.
        settings: Argument → value.
        notes: Sentences that the table cannot say.
        rows: In the order of the cases.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    notes: list[str]
    rows: list[Row]


def add_argument(parser: argparse.ArgumentParser, flag: str, help: str, **settings: Any) -> None:
    """Add a flag whose help ends with its default as one types it."""
    shown = f' (default: {format_setting(settings["default"])})' if 'default' in settings else ''
    parser.add_argument(flag, help=help + shown, **settings)


def add_shared_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the flags of every benchmark.

    Args:
        parser: The parser of one benchmark.
        name: The stem of the files it writes.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    add_argument(parser, '--device', choices=['cpu', 'cuda'], default=device, help='where to run')
    add_argument(
        parser, '--repetitions', type=int, default=7, help='rounds, each of which runs every row once'
    )
    files = f'folder for {name}.json and {name}.png'
    add_argument(parser, '--out', type=Path, default=Path('work_dirs/benchmark'), help=files)
    add_argument(
        parser, '--table', type=Path, metavar='FILE.json', help='only print an earlier result, as Markdown'
    )


def check_shared_arguments(args: argparse.Namespace) -> None:
    """Check the flags of :func:`add_shared_arguments`.

    Raises:
        ConfigError: There is no GPU, or no round to run.
    """
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('--device cuda: torch sees no GPU here; leave it out, or install torch for CUDA')
    check_at_least(args, 'repetitions', 1)


def check_at_least(args: argparse.Namespace, flag: str, least: int) -> None:
    """Check a number on the command line.

    Raises:
        ConfigError: It is below ``least``.
    """
    if getattr(args, flag) < least:
        raise ConfigError(f'--{flag} must be at least {least}, got {getattr(args, flag)}')


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that affect the result; of a config's path its name."""
    settings = {key: value for key, value in vars(args).items() if key not in ('config', 'out', 'table')}
    if 'config' in args:
        settings['config'] = Path(args.config).name
    return settings


def format_setting(value: Any) -> str:
    """Return a setting as one types it: ``256 512``, or shapes as ``2x19x64x128``."""
    if not isinstance(value, list | tuple):
        return str(value)
    return ' '.join(format_shape(item) if isinstance(item, list | tuple) else str(item) for item in value)


def format_shape(shape: Collection[int]) -> str:
    """Return a shape as one types it, such as ``2x19x64x128``."""
    return 'x'.join(map(str, shape))


def measure(cases: list[Case], device: str, repetitions: int) -> list[Row]:
    """Warm up, measure the memory of each case, and time all of them in rounds."""
    print(f'{len(cases)} rows; warming up', flush=True)
    peaks = {}
    for case in cases:
        for _ in range(WARM_UP):
            measure_seconds(case, device)
        peaks[case.name] = measure_peak_mib(case, device)
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    start = time.monotonic()
    for number in range(repetitions):
        for case in cases:
            seconds[case.name].append(measure_seconds(case, device, seed=number))
        left = (time.monotonic() - start) / (number + 1) * (repetitions - number - 1)
        print(f'round {number + 1} of {repetitions}, {left:.0f} s left', flush=True)
    return [summarise(case, seconds[case.name], seconds[case.reference], peaks[case.name]) for case in cases]


def summarise(case: Case, seconds: list[float], reference_seconds: list[float], peak_mib: float) -> Row:
    """Return the row of a case.

    Args:
        case: The case.
        seconds: Its times, one a round.
        reference_seconds: The times of its reference in the same rounds.
        peak_mib: Its peak memory in MiB.
    """
    times = np.array(seconds)
    q1, median, q3 = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    low, ratio, high = np.quantile(times / np.array(reference_seconds), (0.25, 0.5, 0.75)).tolist()
    details = dict(case.details)
    if case.images:
        details['images per second'] = case.images / median
    if case.logits_mib:
        details['peak in multiples of the logits'] = peak_mib / case.logits_mib
    return Row(case.part, case.name, median, q1, q3, case.reference, ratio, low, high, peak_mib, details)


def measure_seconds(case: Case, device: str, seed: int = 0) -> float:
    """Return the seconds that one run takes.

    Args:
        case: The case.
        device: ``'cpu'`` or ``'cuda'``.
        seed: Seed of the data loader. Cases that are timed with one seed load the same crops.
    """
    run, prefetched = prepare_run(case, seed)
    runs = max(1, prefetched)

    def repeat() -> None:
        for _ in range(runs):
            run()

    if prefetched:
        repeat()
    if device == 'cpu':
        start = time.perf_counter()
        repeat()
        return (time.perf_counter() - start) / runs
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    repeat()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / runs


def prepare_run(case: Case, seed: int) -> tuple[Callable[[], object], int]:
    """Return a function without arguments that runs a case once, and the number of prefetched batches.

    The workers of a data loader start anew each time. Those of an earlier row would go on filling their queue
    while the next row runs, and then have a batch at hand that cost nothing.
    """
    if case.loader is None:
        return case.run, 0
    np.random.seed(seed)
    loader = Runner.build_dataloader(case.loader, seed=seed)
    return partial(case.run, iter(loader)), loader.num_workers * (loader.prefetch_factor or 0)


def measure_peak_mib(case: Case, device: str) -> float:
    """Return the most memory, in MiB, that tensors allocated within one run hold at a time."""
    run, _ = prepare_run(case, seed=0)
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())['traceEvents'] if e['name'] == '[memory]']
    # The events' own totals go on from earlier profiles; changes added up start from zero.
    changes = [event['args']['Bytes'] for event in sorted(events, key=lambda event: event['ts'])]
    return max(accumulate(changes, initial=0)) / 2**20


def save_result(result: Result, folder: Path, name: str, title: str, axis_label: str) -> None:
    """Write a result and its plot, and print its table.

    Args:
        result: The result.
        folder: The folder for ``name.json`` and ``name.png``.
        name: The stem of both files.
        title: The title of the plot.
        axis_label: The label of the ratios in the plot.
    """
    write_json(folder / f'{name}.json', asdict(result))
    plot_ratios(result.rows, title, axis_label, folder / f'{name}.png')
    print(format_result(result, TableStyle.DEFAULT))
    print(f'\n{folder}: {name}.json, {name}.png')


def print_saved_result(path: Path, parts: Collection[str]) -> None:
    """Print some parts of an earlier result, as Markdown.

    Raises:
        ConfigError: The file is no result, or has no row of these parts.
    """
    result = read_result(path)
    rows = [row for row in result.rows if row.part in parts]
    if not rows:
        there = sorted({row.part for row in result.rows})
        raise ConfigError(
            f'--table {path} has the parts {format_setting(there)}, none of {format_setting(tuple(parts))}; '
            'step_cost.py and loss_cost.py each print their own'
        )
    print(format_result(Result(result.machine, result.settings, result.notes, rows), TableStyle.MARKDOWN))


def read_result(path: Path) -> Result:
    """Read a file that :func:`save_result` wrote.

    Raises:
        ConfigError: There is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text())
        rows = [Row(**row) for row in content['rows']]
        return Result(content['machine'], content['settings'], content['notes'], rows)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f'--table {path} is no result of this tool: {error!r}') from error


def format_result(result: Result, style: TableStyle) -> str:
    """Return the table, and below it the machine, the settings and the notes."""
    machine = [f'{key} {value}' for key, value in result.machine.items() if value is not None]
    settings = [
        f'--{key.replace("_", "-")}' + ('' if value is True else f' {format_setting(value)}')
        for key, value in result.settings.items()
        if value is not None and value is not False
    ]
    lines = [f'Machine: {", ".join(machine)}', f'Settings: {" ".join(settings)}', *result.notes]
    return '\n'.join([format_rows(result.rows, style), '', *(f'- {line}' for line in lines)])


def format_rows(rows: list[Row], style: TableStyle) -> str:
    """Return the rows as a table in one of prettytable's styles."""
    output = PrettyTable(['part', 'what', 'ms (quartiles)', 'ratio (quartiles)', 'peak MiB', 'further'])
    output.align = 'r'
    output.align.update(part='l', what='l', further='l')
    output.set_style(style)
    for row in rows:
        q1, median, q3 = (f'{1000 * seconds:.1f}' for seconds in (row.q1_s, row.median_s, row.q3_s))
        ratio = f'{row.ratio:.2f} ({row.ratio_q1:.2f} to {row.ratio_q3:.2f})'
        details = (
            f'{key} {value:.0f}' if value > 100 else f'{key} {value:.3g}'
            for key, value in row.details.items()
        )
        time_and_quartiles = f'{median} ({q1} to {q3})'
        peak = f'{row.peak_mib:.1f}'
        output.add_row([row.part, row.name, time_and_quartiles, ratio, peak, ', '.join(details)])
    return output.get_string()


def plot_ratios(rows: list[Row], title: str, axis_label: str, path: Path) -> None:
    """Draw the ratios as bars with their quartiles.

    Args:
        rows: One bar each, from the top.
        title: The title.
        axis_label: The label of the ratios.
        path: The picture to write.
    """
    figure = Figure(figsize=(9, 0.35 * len(rows) + 1.2), layout='constrained')
    figure.suptitle(title)
    axis = figure.subplots()
    ratios, low, high = np.array([(row.ratio, row.ratio_q1, row.ratio_q3) for row in rows]).T
    bars = axis.barh([row.name for row in rows], ratios, xerr=(ratios - low, high - ratios), capsize=3)
    axis.bar_label(bars, fmt='%.2f', padding=3)
    axis.axvline(1, color='black', linewidth=0.8)
    if ratios.max() > 100 * ratios.min():
        axis.set_xscale('log')
    axis.margins(x=0.1)
    axis.invert_yaxis()
    axis.set_xlabel(axis_label)
    figure.savefig(path, dpi=110)
