"""Two networks side by side in a terminal."""

import difflib
import math
from collections.abc import Callable, Iterator

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bdd_seg.report.data import Network, Report
from bdd_seg.report.tables import differing_seeds

_CLASSES, _CONFUSIONS, _CONFIG_LINES = 5, 3, 6


def print_comparison(report: Report, first: Network, second: Network, console: Console | None = None) -> None:
    """Print two evaluated networks: scores, cost, classes, confusions, and differences of the configs.

    Args:
        report: That they are part of.
        first: A.
        second: B, whose gain over A is shown.
        console: Where to print; by default the terminal.
    """
    console = console or Console(highlight=False)
    lines = [Text(line) for line in _lines(report, first, second)]
    head = Text(f'evaluated on {report.dataset}')
    console.print(Group(head, _table(report, first, second), *lines), soft_wrap=True)


def _table(report: Report, first: Network, second: Network) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column('')
    for name in ('A', 'B', 'B − A'):
        table.add_column(name, justify='right', no_wrap=True)
    table.add_row('role', first.role, second.role, '')
    for name, digits, value in _measures(report, first, second):
        one, two = value(first), value(second)
        if one is not None and two is not None:
            table.add_row(name, f'{one:.{digits}f}', f'{two:.{digits}f}', _signed(two - one, digits))
        elif one is not None or two is not None:
            texts = ['–' if number is None else f'{number:.{digits}f}' for number in (one, two)]
            table.add_row(name, *texts, '')
    return table


def _measures(
    report: Report, first: Network, second: Network
) -> list[tuple[str, int, Callable[[Network], float | None]]]:
    """Return the rows: name and unit, digits, and what gives the value of a network."""
    size = '' if report.image_size is None else ' at {}×{}'.format(*report.image_size)
    devices = ' and '.join(dict.fromkeys(filter(None, (first.device, second.device))))

    def evaluated(measure: str) -> Callable[[Network], float | None]:
        def value(network: Network) -> float | None:
            return None if network.evaluation is None else getattr(network.evaluation, measure)

        return value

    def error(network: Network) -> float | None:
        calibration = None if network.evaluation is None else network.evaluation.calibration
        return None if calibration is None else 100 * calibration.error

    def scaled(measure: str, unit: float) -> Callable[[Network], float | None]:
        def value(network: Network) -> float | None:
            number = getattr(network, measure)
            return None if number is None else number * unit

        return value

    return [
        ('mIoU (%)', 2, evaluated('miou')),
        ('boundary IoU (%)', 2, evaluated('boundary_miou')),
        ('pixel accuracy (%)', 2, evaluated('pixel_accuracy')),
        ('calibration error (%)', 2, error),
        ('parameters (M)', 2, scaled('parameters', 1e-6)),
        (f'GFLOPs{size}', 2, scaled('flops', 1e-9)),
        (f'latency (ms), {devices}', 1, scaled('latency', 1e3)),
    ]


def _signed(number: float, digits: int) -> str:
    return '–' if math.isnan(number) else f'{number:+.{digits}f}'.replace('-', '−')


def _lines(report: Report, first: Network, second: Network) -> Iterator[str]:
    """Yield what follows the table."""
    yield f'A: {first.source}' + (f' ({first.note})' if first.note else '')
    yield f'B: {second.source}' + (f' ({second.note})' if second.note else '')
    yield 'latency: the network on one prepared image, without the resize of its logits'
    if first.evaluation is None or second.evaluation is None:
        return
    yield from differing_seeds(first, second)
    gains = second.evaluation.ious - first.evaluation.ious
    order = [int(number) for number in np.argsort(-gains, kind='stable') if np.isfinite(gains[number])]
    for title, numbers in (
        ('gained most', [number for number in order if gains[number] > 0][:_CLASSES]),
        ('lost most', [number for number in order[::-1] if gains[number] < 0][:_CLASSES]),
    ):
        listed = ', '.join(f'{report.classes[number]} {_signed(gains[number], 1)}' for number in numbers)
        yield f'{title}: {listed or "no class"}'
    changes = confusion_changes(first.evaluation.confusion, second.evaluation.confusion)[:_CONFUSIONS]
    for true, predicted, change in changes:
        names = f'{report.classes[true]} taken for {report.classes[predicted]}'
        yield f'{names}: {_signed(change, 1)} points'
    yield from _config_lines(first.config, second.config)


def confusion_changes(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int, float]]:
    """Return how confusions of two networks differ, the largest difference first.

    Args:
        first: (C, C) pixels; a row is a true class, a column a predicted one.
        second: The same of the other network.

    Returns:
        True class, predicted class, and the difference in percent of the pixels of the true class.
    """
    shares = [
        100 * np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
        for matrix in (first, second)
        for total in [matrix.sum(1, keepdims=True)]
    ]
    change = shares[1] - shares[0]
    np.fill_diagonal(change, 0)
    places = np.argsort(-np.abs(change), axis=None, kind='stable')
    found = [(int(i), int(j)) for i, j in zip(*np.unravel_index(places, change.shape), strict=True)]
    return [(i, j, float(change[i, j])) for i, j in found if change[i, j]]


def _config_lines(first: str, second: str) -> Iterator[str]:
    """Yield the lines in which two configs differ, the first of them where there are many."""
    if not first or not second:
        return
    lines = [
        line
        for line in difflib.unified_diff(first.splitlines(), second.splitlines(), lineterm='', n=0)
        if not line.startswith(('---', '+++', '@@'))
    ]
    yield f'configs: {len(lines)} lines differ (− A, + B)' if lines else 'configs: the same'
    for line in lines[:_CONFIG_LINES]:
        text = f'  {line[0].replace("-", "−")} {line[1:]}'
        yield text if len(text) <= 100 else f'{text[:99]}…'
    if len(lines) > _CONFIG_LINES:
        yield f'  and {len(lines) - _CONFIG_LINES} more'
