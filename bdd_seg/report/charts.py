"""The charts of the report page, as plotly's JSON.

Colours are names of the page's style sheet, ``@distilled`` for its ``--distilled``: the page draws each chart
in the colours of its light or dark theme. Texts from outside are escaped, as plotly reads some HTML in them.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bdd_seg.report.data import Curve, Network, Seeds

LONGEST_NAME = 20
MOST_POINTS = 400
_OTHER_COLOURS = 4  # --other-0 to --other-3


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        key: Its HTML id.
        title: Its heading.
        data: plotly's traces.
        layout: plotly's layout, with its height in pixels. The width is that of the page.
        least_width: Pixels below which the chart scrolls sideways, by itself.
    """

    key: str
    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    least_width: int = 0


def network_colours(networks: Sequence[Network]) -> dict[str, str]:
    """Return key → colour: that of its role for the first of a role, further ones in turn."""
    colours: dict[str, str] = {}
    others = 0
    for network in networks:
        own = f'@{network.role}'
        if network.role in ('teacher', 'alone', 'distilled') and own not in colours.values():
            colours[network.key] = own
        else:
            colours[network.key] = f'@other-{others % _OTHER_COLOURS}'
            others += 1
    return colours


def gain_chart(key: str, title: str, names: Sequence[str], gains: np.ndarray) -> Chart:
    """Draw the gain of each class as a bar to the left or right of 0.

    Args:
        key: The HTML id.
        title: The heading.
        names: C names, from top to bottom.
        gains: (C,) points, NaN for a class without a gain.

    Returns:
        The chart.
    """
    known = np.append(gains[np.isfinite(gains)], 0.0)
    low, high = float(known.min()), float(known.max())
    span = max(high - low, 1.0)
    bars = {
        'type': 'bar',
        'orientation': 'h',
        'x': numbers(gains),
        'y': list(range(len(names))),
        'marker': {'color': ['@loss' if gain < 0 else '@gain' for gain in gains]},
        'text': [f'{gain:+.1f}'.replace('-', '−') if math.isfinite(gain) else '–' for gain in gains],
        'textposition': 'outside',
        'cliponaxis': False,
        'hovertext': [escape(name) for name in names],
        'hovertemplate': '%{hovertext}: %{x:+.2f} points<extra></extra>',
    }
    layout = _class_layout(names)
    # Room for the numbers.
    reach = [low - (0.26 * span if low < 0 else 0), high + 0.26 * span]
    layout['xaxis'] |= {'range': reach, 'title': {'text': 'points'}, 'zeroline': True}
    return Chart(key, title, [bars], layout)


def level_chart(
    key: str, title: str, names: Sequence[str], levels: dict[str, np.ndarray], colours: dict[str, str]
) -> Chart:
    """Draw the score of each class and network as a dot, or as a bar where there is one network.

    Args:
        key: The HTML id.
        title: The heading.
        names: C names, from top to bottom.
        levels: Label of a network → (C,) scores in percent, NaN for a class without one.
        colours: Label of a network → its colour.

    Returns:
        The chart.
    """
    traces: list[dict[str, Any]] = []
    for label, values in levels.items():
        trace: dict[str, Any] = {
            'name': escape(label),
            'x': numbers(values),
            'y': list(range(len(names))),
            'marker': {'color': colours[label]},
            'cliponaxis': False,
            'hovertext': [escape(name) for name in names],
            'hovertemplate': '%{hovertext}: %{x:.1f}%<extra>%{fullData.name}</extra>',
        }
        if len(levels) == 1:
            trace |= {'type': 'bar', 'orientation': 'h'}
        else:
            trace |= {'type': 'scatter', 'mode': 'markers'}
            trace['marker'] |= {'size': 9, 'symbol': _SYMBOLS[len(traces) % len(_SYMBOLS)]}
        traces.append(trace)
    layout = _class_layout(names)
    layout['xaxis'] |= {'range': [-2, 101], 'title': {'text': '%'}}
    layout['yaxis'] |= {'showgrid': len(levels) > 1}
    if len(levels) > 1:
        layout |= _legend(layout)
    return Chart(key, title, traces, layout)


def confusion_chart(title: str, names: Sequence[str], shares: np.ndarray, difference: bool) -> Chart:
    """Draw a confusion matrix, or the difference of two, as a heat map.

    Args:
        title: The heading.
        names: C names, from top to bottom and from left to right.
        shares: (C, C) percent, or points of a difference, of a row's pixels; NaN for a row without pixels.
        difference: Whether it is a difference, with 0 in the middle of the colours.

    Returns:
        The chart.
    """
    shown = shares if difference else np.where(np.eye(len(names), dtype=bool), np.nan, shares)
    known = np.abs(shown[np.isfinite(shown)])
    # One large change must not make all others pale.
    limit = max(1.0, float(np.percentile(known, 99)) if known.size else 0.0)
    unit = ' points' if difference else '%'
    scale: list[list[Any]] = [[0, '@surface'], [1, '@gain']]
    if difference:
        scale = [[0, '@loss'], [0.5, '@surface'], [1, '@gain']]
    heat = {
        'type': 'heatmap',
        'z': [numbers(row) for row in shown],
        'zmin': -limit if difference else 0,
        'zmax': limit,
        'colorscale': scale,
        'xgap': 1,
        'ygap': 1,
        'colorbar': {'thickness': 10, 'outlinewidth': 0, 'title': {'text': unit.strip()}, 'len': 0.9},
        'hovertext': [[f'{escape(row)} → {escape(column)}' for column in names] for row in names],
        'hovertemplate': f'%{{hovertext}}: %{{z:{"+" if difference else ""}.2f}}{unit}<extra></extra>',
    }
    ticks = {'tickvals': list(range(len(names))), 'ticktext': [_short(name) for name in names]}
    ticks |= {'zeroline': False, 'showgrid': False}
    layout = _layout(160 + max(200, 22 * len(names)))
    layout['yaxis'] |= ticks | {'autorange': 'reversed', 'title': {'text': 'true class'}}
    layout['xaxis'] |= ticks | {'tickangle': -90, 'title': {'text': 'predicted class', 'standoff': 16}}
    return Chart('chart-confusion', title, [heat], layout, least_width=200 + 18 * len(names))


def curve_chart(key: str, name: str, curves: dict[str, Curve], colours: dict[str, str], unit: str) -> Chart:
    """Draw one logged value of several networks against iterations, and against time on demand.

    Args:
        key: The HTML id.
        name: The name of the value, the heading.
        curves: Label of a network → its curve, at most :data:`MOST_POINTS` points of which are kept.
        colours: Label of a network → its colour.
        unit: Of the time axis, a key of :data:`TIME_UNITS`.

    Returns:
        The chart.
    """
    traces = []
    for label, curve in curves.items():
        few = thin_out(curve)
        # One of the two becomes x on the page.
        axes = {
            'iterations': numbers(few.iterations),
            'time': numbers(few.seconds / TIME_UNITS[unit]),
        }
        traces.append(
            {
                'type': 'scatter',
                'mode': 'lines+markers' if len(few.values) < 25 else 'lines',
                'name': escape(label),
                'y': numbers(few.values),
                'meta': axes,
                'line': {'color': colours[label], 'width': 2},
                'marker': {'color': colours[label], 'size': 6},
                'hovertemplate': '%{y:.4~g}<extra>%{fullData.name}</extra>',
            }
        )
    layout = _layout(260) | {'hovermode': 'x unified', 'meta': {'iterations': 'iterations', 'time': unit}}
    layout['xaxis'] |= {'title': {'text': 'iterations'}}
    if len(traces) > 1:
        layout |= _legend(layout)
    return Chart(key, name, traces, layout)


def reliability_chart(networks: Iterable[Network], colours: dict[str, str]) -> Chart:
    """Draw accuracy against confidence for each network with a calibration."""
    diagonal = {
        'type': 'scatter',
        'mode': 'lines',
        'name': 'perfect',
        'x': [0, 100],
        'y': [0, 100],
        'line': {'color': '@faint', 'dash': 'dash', 'width': 1.5},
        'hoverinfo': 'skip',
    }
    traces: list[dict[str, Any]] = [diagonal]
    for network in networks:
        calibration = network.evaluation.calibration if network.evaluation else None
        if calibration is None:
            continue
        shares = 100 * calibration.pixels / max(1, calibration.pixels.sum())
        traces.append(
            {
                'type': 'scatter',
                'mode': 'lines+markers',
                'name': escape(network.label),
                'x': numbers(100 * calibration.confidence),
                'y': numbers(100 * calibration.accuracy),
                'customdata': numbers(shares),
                'connectgaps': True,
                'line': {'color': colours[network.key], 'width': 2},
                'marker': {'size': 7, 'symbol': _SYMBOLS[(len(traces) - 1) % len(_SYMBOLS)]},
                'hovertemplate': 'confidence %{x:.1f}%, accuracy %{y:.1f}%, %{customdata:.1f}% of the pixels'
                '<extra>%{fullData.name}</extra>',
            }
        )
    layout = _layout(420)
    layout['xaxis'] |= {'range': [0, 101], 'title': {'text': 'confidence (%)'}}
    layout['yaxis'] |= {'range': [0, 101], 'title': {'text': 'accuracy (%)'}}
    return Chart('chart-calibration', 'Reliability', traces, layout | _legend(layout))


def seeds_chart(key: str, title: str, methods: Sequence[Seeds]) -> Chart:
    """Draw the mIoU of each seed as a dot, and mean ± standard deviation of each method."""
    rows = list(range(len(methods)))
    means = [fmean(method.mious.values()) if method.mious else None for method in methods]
    deviations = [stdev(method.mious.values()) if len(method.mious) > 1 else 0 for method in methods]
    single = [(row, seed, miou) for row in rows for seed, miou in methods[row].mious.items()]
    dots = {
        'type': 'scatter',
        'mode': 'markers',
        'name': 'one seed',
        'x': numbers(np.array([miou for _, _, miou in single])),
        'y': [row for row, _, _ in single],
        'text': [f'seed {seed}' for _, seed, _ in single],
        'marker': {'color': '@distilled', 'size': 8, 'opacity': 0.7},
        'hovertemplate': '%{text}: %{x:.2f}<extra></extra>',
    }
    bars = {
        'type': 'scatter',
        'mode': 'markers',
        'name': 'mean ± standard deviation',
        'x': means,
        'y': rows,
        'error_x': {'type': 'data', 'array': deviations, 'color': '@ink', 'thickness': 2, 'width': 6},
        'marker': {'color': '@ink', 'symbol': 'diamond', 'size': 11},
        'hovertemplate': '%{x:.2f}<extra></extra>',
    }
    layout = _layout(130 + 44 * len(methods))
    layout['yaxis'] |= _class_axis([method.label for method in methods])
    layout['xaxis'] |= {'title': {'text': 'mIoU (%)'}}
    return Chart(key, title, [dots, bars], layout | _legend(layout))


TIME_UNITS = {'seconds': 1, 'minutes': 60, 'hours': 3600}


def time_unit(longest: float) -> str:
    """Return the unit in which a time in seconds reads best, a key of :data:`TIME_UNITS`."""
    return 'seconds' if longest < 180 else 'minutes' if longest < 3 * 3600 else 'hours'


def thin_out(curve: Curve) -> Curve:
    """Return the curve, or the means of :data:`MOST_POINTS` equal parts of a longer one."""
    if len(curve.values) <= MOST_POINTS:
        return curve
    parts = [
        np.array([part.mean() for part in np.array_split(np.asarray(values, float), MOST_POINTS)])
        for values in (curve.iterations, curve.seconds, curve.values)
    ]
    return Curve(curve.name, *parts)


def numbers(values: np.ndarray) -> list[float | None]:
    """Return numbers for JSON: six significant digits, None for one that is not finite."""
    return [float(f'{value:.6g}') if math.isfinite(value) else None for value in values]


def escape(text: str) -> str:
    """Return a text that plotly shows as it is."""
    return html.escape(text, quote=False)


_LEGEND = 48  # pixels
_SYMBOLS = ('circle', 'diamond', 'square', 'cross', 'x')


def _short(name: str) -> str:
    return escape(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + '…')


def _layout(height: int) -> dict[str, Any]:
    return {
        'height': height,
        'margin': {'l': 10, 'r': 10, 't': 10, 'b': 10},
        'xaxis': {'automargin': True},
        'yaxis': {'automargin': True},
        'showlegend': False,
    }


def _legend(layout: dict[str, Any]) -> dict[str, Any]:
    """Return the layout's further settings for a legend on top."""
    return {
        'showlegend': True,
        'legend': {'orientation': 'h', 'x': 0, 'y': 1, 'yref': 'paper', 'yanchor': 'bottom'},
        'margin': layout['margin'] | {'t': _LEGEND},
    }


def _class_axis(names: Sequence[str]) -> dict[str, Any]:
    ticks = {'tickvals': list(range(len(names))), 'ticktext': [_short(name) for name in names]}
    return ticks | {'range': [len(names) - 0.4, -0.6], 'zeroline': False}


def _class_layout(names: Sequence[str]) -> dict[str, Any]:
    layout = _layout(90 + 22 * len(names))
    # The same top as with a legend: rows of charts side by side are level.
    layout['margin'] |= {'t': _LEGEND}
    layout['yaxis'] |= _class_axis(names) | {'showgrid': False}
    return layout | {'bargap': 0.3}
