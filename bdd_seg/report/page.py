"""The report as one HTML page that needs no network."""

import base64
import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bdd_seg.errors import ConfigError
from bdd_seg.report import charts, tables
from bdd_seg.report.charts import Chart
from bdd_seg.report.data import Curve, Network, Picture, Report
from bdd_seg.report.tables import Table
from bdd_seg.runtime.upstream.atomic_files import write_atomically

THUMBNAIL_WIDTH = 320
MOST_CLASSES_OF_MAP = 30
BUDGETS = {'iterations': 'equal iterations', 'wall_clock': 'equal wall-clock'}

_TEMPLATES = resources.files('bdd_seg.report') / 'templates'
_NOT_DRAWN = ('time', 'data_time', 'memory', 'iter', 'step', 'epoch', 'eta')


@dataclass
class Section:
    """A section of the page with charts and tables.

    Attributes:
        key: Its HTML id.
        title: Its heading.
        text: Its introduction.
        charts: Its charts.
        tables: Tables always shown.
        folded: Tables that a reader unfolds.
        columns: Charts side by side on a wide screen.
        parts: Its sections of the second order.
    """

    key: str
    title: str
    text: str
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    columns: int = 1
    parts: list['Section'] = field(default_factory=list)


def write_page(report: Report, file: Path) -> None:
    """Write the page of a report, whole or not at all.

    Args:
        report: The report.
        file: The HTML file. Its folder must exist.

    Raises:
        ConfigError: The packages that draw the page are missing, or the file cannot be written.
    """
    page = render(report)
    try:
        write_atomically(file, page)
    except OSError as error:
        raise ConfigError(f'{str(file)!r} cannot be written: {error.strerror}. Give another --out') from error


def check_packages() -> None:
    """Check that the packages which draw the page are installed.

    Raises:
        ConfigError: One is not.
    """
    for package in ('jinja2', 'plotly'):
        if find_spec(package) is None:
            raise ConfigError(f'the report page needs the package {package}: pip install "bdd-seg[report]"')


def render(report: Report) -> str:
    """Return the page of a report: HTML with its style, scripts and images inside.

    Raises:
        ConfigError: The packages that draw the page are missing.
    """
    check_packages()
    from jinja2 import Environment, StrictUndefined  # an extra
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    report = replace(report, networks=told_apart(report.networks))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_read('page.html'))
    sections = [section for build in _SECTIONS for section in build(report)]
    drawn = [chart for section in sections for part in (section, *section.parts) for chart in part.charts]
    figures = {chart.key: {'data': chart.data, 'layout': chart.layout} for chart in drawn}
    return template.render(
        report=report,
        verdict=tables.verdict(report),
        caveat=_caveat(report),
        cards=tables.cards(report),
        networks=tables.network_table(report) if report.networks else None,
        sections=sections,
        gallery=_gallery(report),
        differences=_config_differences(report),
        style=Markup(_read('page.css')),
        script=Markup(_read('page.js')),
        plotly=Markup(get_plotlyjs()) if figures else '',
        figures=Markup(script_json(figures)),
        pictures=(Markup(script_json(_layers(picture))) for picture in report.pictures),
    )


def script_json(content: Any) -> str:
    """Return JSON for a script element: nothing in it can end the element or open a comment.

    Raises:
        ValueError: A number is not finite; JSON has none of these.
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(',', ':'))
    return text.replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e')


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding='utf-8')


def told_apart(networks: list[Network]) -> list[Network]:
    """Return the networks with their keys in labels that several of them have."""
    labels = [network.label for network in networks]
    twice = {label for label in labels if labels.count(label) > 1}
    return [
        replace(network, label=f'{network.label} ({network.key})') if network.label in twice else network
        for network in networks
    ]


def _caveat(report: Report) -> str:
    """Return the sentence on chance that a comparison of single runs needs."""
    if _several_seeds(report) or report.compared is None:
        return ''
    return ' '.join(
        [
            'One run each: several seeds would tell how much of the difference is chance.',
            *tables.differing_seeds(*report.compared),
        ]
    )


def _several_seeds(report: Report) -> bool:
    return any(len(method.mious) > 1 for method in report.seeds)


def _seeds(report: Report) -> list[Section]:
    if not _several_seeds(report):
        return []
    section = Section('seeds', 'Over several seeds', 'Each dot is one training; the diamond is their mean.')
    for budget in dict.fromkeys(method.budget for method in report.seeds):
        methods = [method for method in report.seeds if method.budget == budget]
        title = BUDGETS.get(budget, budget)
        chart = charts.seeds_chart(f'chart-seeds-{budget}', 'mIoU by method', methods)
        part = Section(f'seeds-{budget}', f'At {title}', '', [chart], [tables.seeds_table(methods, title)])
        section.parts.append(part)
    return [section]


def _classes(report: Report) -> list[Section]:
    """Return the sections on IoU, on boundary IoU and on confusions, all in one order of the classes."""
    evaluated = [network for network in report.networks if network.evaluation is not None]
    if not evaluated:
        return []
    order = tables.class_order(report)
    pair = tables.evaluated_pair(report)
    by = 'sorted by gain in IoU' if pair else 'sorted by IoU'
    ious = {net.key: net.evaluation.ious for net in evaluated if net.evaluation}
    outlines = {net.key: net.evaluation.boundary_ious for net in evaluated if net.evaluation}
    text = f'Intersection over union of each class, {by}.'
    result = [_class_section(report, 'iou', 'IoU by class', text, order, ious)]
    if any(np.isfinite(values).any() for values in outlines.values()):
        text = (
            'The same on bands along the outlines alone, where thin things are won and lost. The order is '
            f'that of the classes above, {by}.'
        )
        result.append(_class_section(report, 'boundary', 'Boundary IoU by class', text, order, outlines))
    table = tables.confusion_table(report)
    if not table.rows:
        return result
    if pair:
        before, after = (tables.shares_of_rows(evaluation.confusion) for evaluation in pair)
        shares, names = after - before, [network.label for network in report.compared or ()]
        text = (
            f'What changes from {names[0]} to {names[1]}, in points of the true class’s pixels: blue is '
            'more, orange is less. On the diagonal more is better, elsewhere less.'
        )
        section = Section('confusion', 'Confusion', text, tables=[table])
    else:
        assert evaluated[0].evaluation is not None
        shares = tables.shares_of_rows(evaluated[0].evaluation.confusion)
        text = 'Classes taken for others, in percent of the true class’s pixels. The diagonal is left out.'
        section = Section('confusion', 'Confusion', text, tables=[table])
    if len(order) <= MOST_CLASSES_OF_MAP:
        names = [report.classes[index] for index in order]
        heading = ' minus '.join(network.label for network in reversed(report.compared or evaluated[:1]))
        shown = shares[np.ix_(order, order)]
        section.charts = [charts.confusion_chart(heading, names, shown, pair is not None)]
        section.tables, section.folded = [], [table]
    return [*result, section]


def _class_section(
    report: Report, key: str, title: str, text: str, order: np.ndarray, levels: dict[str, np.ndarray]
) -> Section:
    names = [report.classes[index] for index in order]
    by_key = {network.key: network for network in report.networks}
    by_label = {by_key[name].label: values[order] for name, values in levels.items()}
    colours = {by_key[name].label: colour for name, colour in charts.network_colours(report.networks).items()}
    section = Section(key, title, text, columns=2)
    if tables.evaluated_pair(report) is not None and report.compared is not None:
        first, second = report.compared
        gains = (levels[second.key] - levels[first.key])[order]
        heading = f'Gain: {second.label} minus {first.label}'
        section.charts.append(charts.gain_chart(f'chart-{key}-gain', heading, names, gains))
    heading = 'All networks' if len(levels) > 1 else next(iter(by_label))
    section.charts.append(charts.level_chart(f'chart-{key}', heading, names, by_label, colours))
    section.columns = len(section.charts)
    section.folded.append(tables.class_table(report, f'{title}, in percent.', order, levels))
    return section


def _group(name: str) -> str:
    """Return the heading under which a logged value is drawn."""
    if name.endswith(('forward_kl', 'reverse_kl')):
        return 'Divergence from the teacher'
    if 'loss' in name:
        return 'Distillation losses' if name.startswith('distill.') else 'The student’s own losses'
    if name.endswith('lr'):
        return 'Learning rate'
    if name in ('mIoU', 'mAcc', 'aAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall'):
        return 'Validation'
    if 'acc' in name or 'agree' in name:
        return 'Accuracy and agreement in training'
    return 'Other values'


_GROUPS = (
    'Validation',
    'The student’s own losses',
    'Distillation losses',
    'Divergence from the teacher',
    'Accuracy and agreement in training',
    'Learning rate',
    'Other values',
)


def _curves(report: Report) -> list[Section]:
    found: dict[str, dict[str, dict[str, Curve]]] = {group: {} for group in _GROUPS}
    for network in report.networks:
        for curve in network.curves:
            if curve.name not in _NOT_DRAWN and len(curve.values):
                found[_group(curve.name)].setdefault(curve.name, {})[network.key] = curve
    longest = [curve.seconds[-1] for net in report.networks for curve in net.curves if len(curve.seconds)]
    unit = charts.time_unit(max(longest, default=0.0))
    colours = charts.network_colours(report.networks)
    labels = {network.key: network.label for network in report.networks}
    shades = {labels[key]: colour for key, colour in colours.items()}
    text = (
        f'All that the trainings logged. A value logged over {charts.MOST_POINTS} times is averaged over '
        'as many equal parts of the training.'
    )
    whole = Section('curves', 'Training curves', text)
    for group, values in found.items():
        section = Section(f'curves-{_GROUPS.index(group)}', group, '', columns=3)
        rows = []
        for name, curves in values.items():
            by_label = {labels[key]: curve for key, curve in curves.items()}
            key = f'chart-{section.key}-{len(section.charts)}'
            section.charts.append(charts.curve_chart(key, name, by_label, shades, unit))
            rows += [(name, label, curve) for label, curve in by_label.items()]
        if rows:
            section.folded.append(tables.curve_table(rows))
            whole.parts.append(section)
    return [whole] if whole.parts else []


def _calibration(report: Report) -> list[Section]:
    known = {
        net.label: net.evaluation.calibration
        for net in report.networks
        if net.evaluation is not None and net.evaluation.calibration is not None
    }
    if not known:
        return []
    colours = charts.network_colours(report.networks)
    text = (
        'How often pixels are right that a network is so sure of. Below the dashed line it is too sure, '
        'above it too cautious.'
    )
    section = Section(
        'calibration', 'Calibration', text, [charts.reliability_chart(report.networks, colours)]
    )
    section.tables.append(tables.calibration_table(known))
    section.folded.append(tables.bin_table(known))
    return [section]


_SECTIONS: tuple[Callable[[Report], list[Section]], ...] = (_seeds, _classes, _curves, _calibration)


@dataclass(frozen=True)
class Thumbnail:
    """A picture in the grid of the gallery.

    Attributes:
        name: Its file.
        source: A small image as a data URL.
        badge: Its gain or mIoU.
        tone: ``gain``, ``loss`` or empty.
        spoken: The badge for a screen reader.
        scores: Label of a network → its mIoU, as one text.
    """

    name: str
    source: str
    badge: str
    tone: str
    spoken: str
    scores: str


def _gallery(report: Report) -> dict[str, Any] | None:
    """Return what the gallery shows before a picture is opened; None without pictures."""
    if not report.pictures:
        return None
    labels = {network.key: network.label for network in report.networks}
    layers = {'image': 'Image', 'truth': 'Labels'} | labels
    layers |= {f'error.{key}': f'Errors of {label}' for key, label in labels.items()}
    compared = [network.key for network in report.compared or report.comparable[:1]]
    return {
        'thumbnails': [_thumbnail(picture, labels) for picture in report.pictures],
        'filters': any(picture.gain is not None for picture in report.pictures),
        'counts': tables.image_counts(report),
        'better': 'Helped' if report.distils else f'{labels[compared[-1]]} better' if compared else '',
        'worse': 'Hurt' if report.distils else f'{labels[compared[0]]} better' if compared else '',
        'settings': script_json({'layers': layers, 'sides': ['truth', *compared][-2:]}),
        'classes': [
            (name, 'rgb({}, {}, {})'.format(*colour))
            for name, colour in zip(report.classes, report.palette, strict=True)
        ],
    }


def _thumbnail(picture: Picture, labels: dict[str, str]) -> Thumbnail:
    scores = ', '.join(
        f'{labels[key]} {tables.number(miou, 1)}' for key, miou in picture.mious.items() if key in labels
    )
    source = data_url(_shrink(picture.layers['image']))
    if picture.gain is None:
        badge = tables.number(next(iter(picture.mious.values()), None), 1)
        return Thumbnail(picture.name, source, badge, '', f'mIoU {badge}', scores)
    badge = tables.signed(picture.gain, 1)
    tone = 'gain' if picture.gain > 0 else 'loss' if picture.gain < 0 else ''
    return Thumbnail(picture.name, source, badge, tone, f'gain {badge} points', scores)


def _layers(picture: Picture) -> dict[str, str]:
    return {layer: data_url(content) for layer, content in picture.layers.items()}


def _shrink(content: bytes) -> bytes:
    """Return an encoded image as a small JPEG for the grid."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'not an image: {content[:8]!r}')
    height, width = image.shape[:2]
    if width > THUMBNAIL_WIDTH:
        size = THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 72])[1].tobytes()


def data_url(content: bytes) -> str:
    """Return an encoded JPEG, PNG or WebP as a URL that holds it.

    Raises:
        ValueError: It is neither.
    """
    for start, kind in ((b'\xff\xd8', 'jpeg'), (b'\x89PNG', 'png'), (b'RIFF', 'webp')):
        if content.startswith(start):
            return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
    raise ValueError(f'neither JPEG nor PNG nor WebP: {content[:8]!r}')


def _config_differences(report: Report) -> dict[str, Any] | None:
    """Return the lines in which the configs of the compared networks differ; None where there are none."""
    pair = report.compared
    if pair is None or not all(network.config for network in pair):
        return None
    first, second = pair
    lines = difflib.unified_diff(
        first.config.splitlines(), second.config.splitlines(), first.label, second.label, lineterm=''
    )
    kinds = {'+': 'added', '-': 'removed', '@': 'place'}
    marked = [(kinds.get(line[:1], ''), line) for line in lines]
    return {'names': (first.label, second.label), 'lines': marked} if marked else None
