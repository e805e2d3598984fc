"""Settings of a loss that change while training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bdd_seg.distill.arguments import taken
from bdd_seg.errors import ConfigError, similar_to
from bdd_seg.losses import DistillLoss

CURVES = ('linear', 'cosine')
SPAN = ('begin', 'end', 'curve', 'warmup')


def interpolate(
    iteration: int, span: tuple[int, int], values: tuple[float, float], curve: str = 'linear'
) -> float:
    """Return the value at an iteration: the first before the span of iterations, the second after it."""
    part = min(1.0, max(0.0, (iteration - span[0]) / (span[1] - span[0])))
    if curve == 'cosine':
        part = (1 - math.cos(math.pi * part)) / 2
    return values[0] + part * (values[1] - values[0])


def movable(loss: nn.Module) -> list[str]:
    """Return the names of a loss's numbers that a schedule can move: those that are no whole ones.

    Of a ``DistillLoss`` they are arguments of its constructor.
    """
    if isinstance(loss, DistillLoss):
        names = taken(type(loss))
    else:
        names = [name for name in vars(loss) if not name.startswith('_')]
    return [name for name in names if isinstance(getattr(loss, name, None), float)]


def check_movable(loss: nn.Module, name: str, key: str) -> None:
    """Check that a loss has a number of this name.

    Raises:
        ConfigError: It has none. The message begins with ``key``.
    """
    if not isinstance(getattr(loss, name, None), float):
        names = movable(loss)
        hint = similar_to(name, [*names, *SPAN])
        raise ConfigError(
            f'{key}: {type(loss).__name__} has no number {name!r}; it has {", ".join(names) or "none"}.{hint}'
        )


def check_span(begin: int, end: int, key: str, by_default: bool = False) -> None:
    """Check that a span of iterations has a length.

    Raises:
        ConfigError: It has none. The message begins with ``key``.
    """
    if begin >= end:
        whose = ' (the iterations of the training)' if by_default else ''
        raise ConfigError(f'{key}: begin={begin} must come before end={end}{whose}')


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
        key: Its place in the config, for messages.
    """

    settings: Mapping[str, tuple[float, float]]
    begin: int = 0
    end: int | None = None
    curve: str = 'linear'
    warmup: int = 0
    key: str = 'schedule'

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
        span = {name: settings.pop(name) for name in SPAN if name in settings}
        if span.get('curve', 'linear') not in CURVES:
            raise ConfigError(f'{key}.curve must be one of {CURVES}, got {span["curve"]!r}')
        for name in ('begin', 'end', 'warmup'):
            value = span.get(name)
            if (
                name in span
                and not (name == 'end' and value is None)
                and (type(value) is not int or value < 0)
            ):
                raise ConfigError(f'{key}.{name} must be a number of iterations, got {value!r}')
        if span.get('end') is not None:
            check_span(span.get('begin', 0), span['end'], key)
        for name, values in settings.items():
            check_movable(loss, name, key)
            numbers = isinstance(values, list | tuple) and [
                type(value) in (int, float) and math.isfinite(value) for value in values
            ]
            if numbers != [True, True]:
                raise ConfigError(f'{key}.{name} must be two numbers, its first and its last, got {values!r}')
        moved = {name: (float(values[0]), float(values[1])) for name, values in settings.items()}
        return cls(moved, **span, key=key)

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
        if self.settings:
            check_span(self.begin, end, self.key, by_default=self.end is None)
        return {
            name: interpolate(iteration, (self.begin, end), values, self.curve)
            for name, values in self.settings.items()
        }

    def warmup_factor(self, iteration: int) -> float:
        """Return by how much to multiply the loss at an iteration, counted from 0."""
        return min(1.0, iteration / self.warmup) if self.warmup else 1.0
