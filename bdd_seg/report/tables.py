"""The words and tables of the report page."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import numpy as np

from bdd_seg.report.data import Calibration, Curve, Evaluation, Network, Report, Role, Seeds

NONE = '–'
ROLES: dict[Role, str] = {
    'teacher': 'Teacher',
    'alone': 'Student alone',
    'distilled': 'Distilled student',
    'plain': 'Network',
    'exported': 'Exported',
}
MOST_CHANGES = 20
MOST_KEYS = 4
"""Keys of configs named in the verdict."""

# Of a config: what decides how a network is trained, and of that, what changes no result.
_TRAINING = ('train_cfg', 'optim_wrapper', 'param_scheduler', 'train_dataloader', 'load_from')
_NO_TRAINING = re.compile(
    r'train_cfg\.(val_|dynamic_intervals)|'
    r'train_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor|'
    r'(.*\.)?(data_root|data_prefix|ann_file))\b'
)


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: Its caption.
        head: The headings of its columns.
        rows: Its rows; the first cell of a row is its heading.
        texts: Columns that hold texts, not numbers.
        swatches: For each row a colour of CSS beside its heading; empty for none.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[int] = (0,)
    swatches: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """A figure of the headline.

    Attributes:
        name: What it is.
        value: The figure.
        note: A line below it.
        tone: A class of the style sheet: a network's role, ``gain``, ``loss`` or ``gap``.
        share: 0 to 100, drawn as a bar; None for no bar.
    """

    name: str
    value: str
    note: str
    tone: str
    share: float | None = None


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals, a dash for None, NaN and infinity."""
    return NONE if value is None or not math.isfinite(value) else f'{value:,.{digits}f}'


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign and so many decimals, a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f'{value:+.{digits}f}'
    return text[1:] if float(text) == 0 else text.replace('-', '−')


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, with an exponent only if it is tiny or huge."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return '0'
    power = math.floor(math.log10(abs(value)))
    if not -4 <= power < 9:
        return f'{value:.{digits - 1}e}'
    return f'{value:,.{max(0, digits - 1 - power)}f}'.replace('-', '−')


def differing_seeds(first: Network, second: Network) -> list[str]:
    """Return a sentence on the seeds of two trainings, none where they are equal or not known."""
    if first.seed is None or second.seed is None or first.seed == second.seed:
        return []
    return [
        f'Their seeds differ ({first.seed} and {second.seed}), and so do their first weights and random '
        'crops. Give both trainings one, --cfg-options randomness.seed=0, for a fair pair.'
    ]


def verdict(report: Report) -> str:
    """Return the sentence that says whether distillation helped, or how else the two compared differ.

    A second one names the settings of the training in which the student alone differs from the distilled one.
    """
    if not report.distils or not all(map(_known, report.compared or ())):
        return _verdict_without_gain(report)
    alone, distilled = report.first('alone'), report.first('distilled')
    reached = f'{number(_miou(distilled))} mIoU'
    gain = _miou(distilled) - _miou(alone)
    if abs(gain) < 0.005:
        text = f'Distillation changed nothing: the student stays at {reached}'
    else:
        text = (
            f'Distillation {"raised" if gain > 0 else "lowered"} the student’s mIoU by {number(abs(gain))} '
            f'points, from {number(_miou(alone))} to {number(_miou(distilled))}'
        )
    return f'{text}{_of_gap(report, gain)}{_of_trainings(report)}'


def _of_gap(report: Report, gain: float) -> str:
    """Return the end of the sentence on the gain: the gap to the teacher."""
    teacher, alone, distilled = (report.first(role) for role in ('teacher', 'alone', 'distilled'))
    if not _known(teacher):
        return '.'
    closed = report.gap_closed
    if closed is None:
        return '. The teacher is no better than the student alone: there is no gap to close.'
    if closed > 100:
        return f', {number(_miou(distilled) - _miou(teacher))} points beyond its teacher.'
    if gain < 0.005:
        return f'. The teacher is {number(_miou(teacher) - _miou(alone))} points better than it was alone.'
    return f'. That closes {number(closed, 0)}% of the gap to the teacher.'


def _of_trainings(report: Report) -> str:
    """Return a sentence where the student alone was trained otherwise than the distilled one."""
    alone, distilled = report.first('alone'), report.first('distilled')
    keys = [] if alone is None or distilled is None else training_differences(alone.config, distilled.config)
    if not keys:
        return ''
    named = ', '.join(keys[:MOST_KEYS]) + (f' and {len(keys) - MOST_KEYS} more' * (len(keys) > MOST_KEYS))
    return f' The two were not trained alike, so not all of this need be distillation: {named} differ.'


def training_differences(first: str, second: str) -> list[str]:
    """Return the keys in which two configs train differently, apart from their models, hooks and paths.

    Args:
        first: A config as lines ``key = value``.
        second: Another one. Where one of the two says nothing of a training, there is no difference.
    """
    settings = []
    for text in (first, second):
        pairs = (line.partition(' = ')[::2] for line in text.splitlines())
        settings.append(
            {
                key: value
                for key, value in pairs
                if key.partition('.')[0] in _TRAINING and not _NO_TRAINING.match(key)
            }
        )
    one, two = settings
    if not any(key.startswith('train_cfg') for key in one) or not any(
        key.startswith('train_cfg') for key in two
    ):
        return []
    return [key for key in dict.fromkeys([*one, *two]) if one.get(key, 'None') != two.get(key, 'None')]


def _verdict_without_gain(report: Report) -> str:
    """Return the sentences on two networks that are not the student alone and distilled, or on one."""
    known = [network for network in report.comparable if _known(network)]
    if not known:
        return 'No network has an mIoU yet.'
    pair = [network for network in report.compared or () if _known(network)]
    text = _difference(*pair) if len(pair) == 2 else _reached((pair or known)[0]) + '.'
    best = max(known, key=_miou)
    if best.role != 'teacher' and _miou(best) > max(map(_miou, pair or known)):
        text += f' The best of all is {best.label}, at {number(_miou(best))} mIoU.'
    if any(network.role == 'distilled' for network in known) and not _known(report.first('alone')):
        text += (
            ' No evaluated run of the student alone is among these, so the gain by distillation is unknown.'
        )
    return text


def _difference(first: Network, second: Network) -> str:
    """Return the sentence that says how the mIoU of a network differs from that of another one."""
    lead = _miou(second) - _miou(first)
    if (first.role, second.role) == ('teacher', 'distilled'):
        side = 'below' if lead < 0 else 'above'
        return f'{_reached(second)}, {number(abs(lead))} points {side} its teacher, {first.label}.'
    if abs(lead) < 0.005:
        return f'{first.label} and {second.label} are level at {number(_miou(first))} mIoU.'
    more = 'more' if lead > 0 else 'less'
    return f'{_reached(second)}, {number(abs(lead))} points {more} than {first.label}.'


def _reached(network: Network) -> str:
    return f'{network.label} reaches {number(_miou(network))} mIoU'


def _known(network: Network | None) -> bool:
    return network is not None and network.miou is not None and math.isfinite(network.miou)


def _miou(network: Network | None) -> float:
    return float('nan') if network is None or network.miou is None else network.miou


def cards(report: Report) -> list[Card]:
    """Return the figures of the headline: the teacher, the two compared, and how these differ.

    That is their gain, or a difference where one is the teacher. With the student alone and distilled there
    is the share of the gap closed.
    """
    pair = report.compared
    shown = report.comparable[:1]
    if pair is not None:
        keys = {network.key for network in (report.first('teacher'), *pair) if network is not None}
        shown = [network for network in report.comparable if network.key in keys]
    result = [
        Card(ROLES[network.role], number(network.miou), network.label, network.role)
        for network in shown
        if _known(network)
    ]
    if pair is not None and all(map(_known, pair)):
        first, second = pair
        gain = _miou(second) - _miou(first)
        if first.role == 'teacher':
            result.append(Card('Difference', signed(gain), f'points against {first.label}', 'gap'))
        else:
            note = f'points over {"the student alone" if first.role == "alone" else first.label}'
            result.append(Card('Gain', signed(gain), note, 'loss' if gain < 0 else 'gain'))
    if (closed := report.gap_closed) is not None and math.isfinite(closed):
        value = signed(closed, 0).lstrip('+')
        result.append(Card('Gap closed', f'{value}%', 'of the way from student to teacher', 'gap', closed))
    return result


def network_table(report: Report) -> Table:
    """Return the table of all networks: scores, size, cost."""
    size = '' if report.image_size is None else ' of {} × {} pixels'.format(*report.image_size)
    devices = list(dict.fromkeys(network.device for network in report.networks if network.device))
    mixed = any(network.evaluation for network in report.networks)
    rows = []
    for network in report.networks:
        result = network.evaluation
        calibration = result.calibration if result else None
        million = None if network.parameters is None else network.parameters / 1e6
        giga = None if network.flops is None else network.flops / 1e9
        milliseconds = None if network.latency is None else 1000 * network.latency
        rows.append(
            [
                network.label,
                ROLES[network.role],
                number(network.miou) + (' (recorded)' if mixed and _recorded(network) else ''),
                number(result.boundary_miou if result else None),
                number(result.pixel_accuracy if result else None),
                number(100 * calibration.error if calibration else None),
                significant(million),
                significant(giga),
                significant(milliseconds),
                *([network.device or NONE] if len(devices) > 1 else []),
            ]
        )
    where = f', on {devices[0]}' if len(devices) == 1 else ''
    caption = (
        f'Scores in percent. GFLOPs, as multiply-adds, and latency are those of the network on one prepared '
        f'image{size}, in sliding windows where test_cfg says so. The resize of its logits to the size of '
        f'the file, much the same for all networks, is not timed. They took turns{where}.'
    )
    if mixed and any(map(_recorded, report.networks)):
        caption += ' A recorded mIoU was not measured for this page, and is compared with none.'
    head = ['Network', 'Role', 'mIoU', 'Boundary mIoU', 'Pixel accuracy', 'Calibration error']
    head += ['Parameters (M)', 'GFLOPs', 'Latency (ms)']
    return Table(caption, head + ['Device'] * (len(devices) > 1), rows, texts=(0, 1, 9))


def _recorded(network: Network) -> bool:
    """Return whether a network's mIoU is one that was not measured for the report."""
    return network.evaluation is None and _known(network)


def evaluated_pair(report: Report) -> tuple[Evaluation, Evaluation] | None:
    """Return the evaluations of the two networks that are compared, None unless there are both."""
    results = [network.evaluation for network in report.compared or ()]
    return (results[0], results[1]) if len(results) == 2 and results[0] and results[1] else None


def image_counts(report: Report) -> str:
    """Return the sentence that says on how many images each of the two compared is better, empty for one."""
    pair = evaluated_pair(report)
    if pair is None or report.compared is None:
        return ''
    gains = pair[1].image_mious - pair[0].image_mious
    first, second = report.compared
    return (
        f'Of {len(gains)} images, {(gains > 0).sum()} are better with {second.label}, and '
        f'{(gains < 0).sum()} with {first.label}.'
    )


def class_order(report: Report) -> np.ndarray:
    """Return the (C,) order of the classes: by gain in IoU, largest first, and classes without one last.

    Without two networks to compare it is the IoU of the first one evaluated. One at least must be.
    """
    pair = evaluated_pair(report)
    first = next(network.evaluation for network in report.networks if network.evaluation)
    key = first.ious if pair is None else pair[1].ious - pair[0].ious
    return np.argsort(-np.nan_to_num(key, nan=-np.inf), kind='stable')


def class_table(report: Report, caption: str, order: np.ndarray, levels: Mapping[str, np.ndarray]) -> Table:
    """Return the table of a score by class, with its gain where two networks are compared.

    Args:
        report: The report.
        caption: The caption.
        order: (C,) the order of the classes.
        levels: Key of a network → (C,) scores in percent.

    Returns:
        The table.
    """
    labels = {network.key: network.label for network in report.networks}
    head = ['Class', *(labels[key] for key in levels)]
    gains = None
    if evaluated_pair(report) is not None and report.compared is not None:
        first, second = report.compared
        gains = levels[second.key] - levels[first.key]
        head.append('Gain')
    rows = []
    for index in order:
        row = [report.classes[index], *(number(values[index], 1) for values in levels.values())]
        rows.append(row if gains is None else [*row, signed(gains[index], 1)])
    swatches = ['rgb({}, {}, {})'.format(*report.palette[index]) for index in order]
    return Table(caption, head, rows, swatches=swatches)


def shares_of_rows(confusion: np.ndarray) -> np.ndarray:
    """Return a (C, C) confusion matrix in percent of each true class's pixels, NaN where it has none."""
    pixels = confusion.sum(1, keepdims=True).astype(float)
    return 100 * np.divide(confusion, pixels, out=np.full(confusion.shape, np.nan), where=pixels > 0)


def confusion_table(report: Report) -> Table:
    """Return the largest changes of confusions, or the largest confusions where nothing is compared."""
    pair = evaluated_pair(report)
    if pair is None:
        first = next(network for network in report.networks if network.evaluation)
        assert first.evaluation is not None
        shares = shares_of_rows(first.evaluation.confusion)
        caption = f'The largest confusions of {first.label}, in percent of the true class’s pixels.'
        head = ['True class → predicted class', 'Share (%)']
    else:
        before, after = (shares_of_rows(result.confusion) for result in pair)
        shares = after - before
        assert report.compared is not None
        labels = [network.label for network in report.compared]
        caption = 'The largest changes of confusions, in points of the true class’s pixels. Fewer are better.'
        head = ['True class → predicted class', f'{labels[0]} (%)', f'{labels[1]} (%)', 'Change (points)']
    sizes = np.abs(np.nan_to_num(np.where(np.eye(len(shares), dtype=bool), 0, shares)))
    largest = np.argsort(-sizes, axis=None, kind='stable')[:MOST_CHANGES]
    rows = []
    for row, column in zip(*np.unravel_index(largest, shares.shape), strict=True):
        if round(sizes[row, column], 2) == 0:
            break
        name = f'{report.classes[row]} → {report.classes[column]}'
        if pair is None:
            rows.append([name, number(shares[row, column])])
        else:
            levels = number(before[row, column]), number(after[row, column])
            rows.append([name, *levels, signed(shares[row, column])])
    return Table(caption, head, rows)


def curve_table(curves: Sequence[tuple[str, str, Curve]]) -> Table:
    """Return the table of logged values: (name of the value, label of the network, curve) for each row."""
    rows = []
    for name, label, curve in curves:
        finite = np.isfinite(curve.values)
        values, iterations = curve.values[finite], curve.iterations[finite]
        if not len(values):
            rows.append([name, label, *6 * [NONE]])
            continue
        low, high = int(values.argmin()), int(values.argmax())
        ends = significant(values[0], 4), significant(values[-1], 4)
        extremes = [significant(values[low], 4), number(iterations[low], 0)]
        extremes += [significant(values[high], 4), number(iterations[high], 0)]
        rows.append([name, label, *ends, *extremes])
    head = ['Value', 'Network', 'First', 'Last', 'Lowest', 'at iteration', 'Highest', 'at iteration']
    return Table('The curves in numbers.', head, rows, texts=(0, 1))


def calibration_table(calibrations: Mapping[str, Calibration]) -> Table:
    """Return the table of calibration errors: label of a network → its calibration."""
    rows = []
    for label, calibration in calibrations.items():
        pixels = max(1, calibration.pixels.sum())
        means = [
            100 * float((np.nan_to_num(values) * calibration.pixels).sum()) / pixels
            for values in (calibration.confidence, calibration.accuracy)
        ]
        tendency = 'too sure' if means[0] > means[1] else 'too cautious'
        row = [number(100 * calibration.error), number(means[0], 1), number(means[1], 1), tendency]
        rows.append([label, *row])
    caption = 'Expected calibration error: the mean distance between confidence and accuracy, in percent.'
    head = ['Network', 'Calibration error', 'Mean confidence', 'Accuracy', 'On the whole']
    return Table(caption, head, rows, texts=(0, 4))


def bin_table(calibrations: Mapping[str, Calibration]) -> Table:
    """Return the table behind the reliability diagram: for each bin and network its accuracy and share."""
    count = max(len(calibration.pixels) for calibration in calibrations.values())
    rows = []
    for index in range(count):
        row = [f'{100 * index / count:.0f} to {100 * (index + 1) / count:.0f}']
        for calibration in calibrations.values():
            share = 100 * calibration.pixels[index] / max(1, calibration.pixels.sum())
            row += [number(100 * calibration.accuracy[index], 1), number(share, 1)]
        rows.append(row)
    head = ['Confidence (%)']
    for label in calibrations:
        head += [f'{label}: accuracy (%)', f'{label}: pixels (%)']
    return Table('Accuracy in each bin of confidence, and the share of the pixels in it.', head, rows)


def seeds_table(methods: Sequence[Seeds], budget: str) -> Table:
    """Return the table of the methods of studies under one budget."""
    rows = []
    for method in methods:
        scores = list(method.mious.values())
        mean = number(fmean(scores)) if scores else NONE
        spread = f'{mean} ± {number(stdev(scores))}' if len(scores) > 1 else mean
        difference = method.against_control or NONE
        rows.append([method.label, str(len(scores)), spread, number(method.minutes, 1), difference])
    head = ['Method', 'Seeds', 'mIoU', 'Minutes', 'Difference to the student alone']
    caption = f'mIoU at {budget}: mean ± standard deviation over seeds; the difference with its 95% interval.'
    return Table(caption, head, rows, texts=(0, 4))
