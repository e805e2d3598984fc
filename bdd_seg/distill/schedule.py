"""Settings of a loss that change while training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bdd_seg.errors import ConfigError

CURVES = ('linear', 'cosine')


def interpolate(
    iteration: int, span: tuple[int, int], values: tuple[float, float], curve: str = 'linear'
) -> float:
    """Return the value at an iteration: the first before the span of iterations, the second after it."""
    part = min(1.0, max(0.0, (iteration - span[0]) / (span[1] - span[0])))
    if curve == 'cosine':
        part = (1 - math.cos(math.pi * part)) / 2
    return values[0] + part * (values[1] - values[0])


def numbers_of(loss: nn.Module) -> list[str]:
    """Return the names of a loss's attributes that are numbers, which a schedule can move."""
    return [
        name
        for name, value in vars(loss).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith('_')
    ]


@dataclass(frozen=True)
class Schedule:
    """Numbers of one loss that move from one value to another between two iterations.

    In a config: ``schedule=dict(reverse_weight=(0.0, 1.0), curve='cosine')``, beside a loss's own settings.
    The values follow from the number of the iteration alone, so a resumed run goes on as it would have.

    Attributes:
        settings: Name of the attribute → its values until ``begin`` and from ``end`` on.
        begin: Iteration, counted from 0.
        end: Iteration, by default the number of iterations of the training.
        curve: ``'linear'`` or ``'cosine'``.
        warmup: Iterations over which the loss grows from 0 times to 1 times itself, 0 for none.
    """

    settings: Mapping[str, tuple[float, float]]
    begin: int = 0
    end: int | None = None
    curve: str = 'linear'
    warmup: int = 0

    @classmethod
    def of(cls, loss: nn.Module, schedule: Any, key: str) -> 'Schedule':
        """Return the schedule that a config gives to a loss.

        Raises:
            ConfigError: It is no dict, or names no number of the loss, or its values are no numbers. The
                message begins with ``key``.
        """
        if not isinstance(schedule, dict):
            raise ConfigError(
                f'{key} must be a dict such as dict(reverse_weight=(0.0, 1.0)), got {schedule!r}'
            )
        settings = dict(schedule)
        span = {name: settings.pop(name) for name in ('begin', 'end', 'curve', 'warmup') if name in settings}
        if span.get('curve', 'linear') not in CURVES:
            raise ConfigError(f'{key}.curve must be one of {CURVES}, got {span["curve"]!r}')
        for name in ('begin', 'end', 'warmup'):
            value = span.get(name, 0)
            if not isinstance(value, int) and not (name == 'end' and value is None):
                raise ConfigError(f'{key}.{name} must be a number of iterations, got {value!r}')
        numbers = numbers_of(loss)
        for name in settings:
            if name not in numbers:
                others = ', '.join(numbers) or 'none'
                raise ConfigError(f'{key}: {type(loss).__name__} has no number {name!r}; it has {others}')
        for name, values in settings.items():
            if (
                not isinstance(values, list | tuple)
                or [isinstance(v, int | float) for v in values] != [True] * 2
            ):
                raise ConfigError(f'{key}.{name} must be two numbers, its first and its last, got {values!r}')
        return cls({name: tuple(values) for name, values in settings.items()}, **span)

    def values(self, iteration: int, max_iters: int | None) -> dict[str, float]:
        """Return the settings' values at an iteration.

        Args:
            iteration: Counted from 0.
            max_iters: The number of iterations of the training. Without it, as without a Runner, a schedule
                that has no ``end`` stays at its first values.

        Raises:
            ConfigError: ``begin`` is not before ``end``.
        """
        end = max_iters if self.end is None else self.end
        if end is None:
            return {name: values[0] for name, values in self.settings.items()}
        if self.settings and self.begin >= end:
            by_default = ' (the iterations of the training)' if self.end is None else ''
            raise ConfigError(f'schedule: begin={self.begin} must come before end={end}{by_default}')
        return {
            name: interpolate(iteration, (self.begin, end), values, self.curve)
            for name, values in self.settings.items()
        }

    def warmup_factor(self, iteration: int) -> float:
        """Return by how much to multiply the loss at an iteration, counted from 0."""
        return min(1.0, iteration / self.warmup) if self.warmup else 1.0
