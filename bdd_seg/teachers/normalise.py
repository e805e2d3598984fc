"""Images normalised for the student, normalised anew for the teacher."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from bdd_seg.errors import ConfigError

Statistic = Sequence[float] | float | None
"""A mean or standard deviation as a config states it: per channel, for all of them, or none."""


@dataclass(frozen=True)
class Normalisation:
    """The input that a network was trained with: ``(x − mean) / std`` of images with values 0 to 255.

    Attributes:
        mean: One number per channel, or one for all of them.
        std: The same.
        swapped: Whether the three channels as they were loaded, blue first, change places beforehand, so that
            the network sees red first.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    swapped: bool = False

    @classmethod
    def of(cls, preprocessor: nn.Module) -> 'Normalisation':
        """Return that of an mmseg ``SegDataPreProcessor``."""
        mean, std = (
            tuple(statistic.flatten().tolist()) if isinstance(statistic, Tensor) else (default,)
            for statistic, default in (
                (getattr(preprocessor, 'mean', None), 0.0),
                (getattr(preprocessor, 'std', None), 1.0),
            )
        )
        return cls(mean, std, bool(getattr(preprocessor, '_channel_conversion', False)))

    @property
    def bands(self) -> int | None:
        """The number of channels it is for, None for any."""
        count = max(len(self.mean), len(self.std))
        return count if count > 1 else None


def renormalise(
    inputs: Tensor, source: Normalisation, target: Normalisation, channels: Sequence[int] | None = None
) -> Tensor:
    """Turn images normalised in one way into images normalised in another.

    Args:
        inputs: (N, C, H, W), normalised by ``source``.
        source: That of the student.
        target: That of the teacher.
        channels: Which of the C channels to take, in the order in which the teacher expects them; all of them
            by default, whose order then follows ``swapped`` of both.

    Returns:
        (N, C, H, W), or as many channels as were taken, normalised by ``target``.
    """
    if source == target and channels is None:
        return inputs
    images = inputs * _per_channel(source.std, inputs) + _per_channel(source.mean, inputs)
    if channels is not None:
        images = images[:, list(channels)]
    elif source.swapped != target.swapped and images.shape[1] == 3:  # as mmseg does
        images = images.flip(1)
    return (images - _per_channel(target.mean, inputs)) / _per_channel(target.std, inputs)


def stated_normalisation(
    mean: Statistic | EllipsisType, std: Statistic | EllipsisType, bgr_to_rgb: bool
) -> Normalisation:
    """Return the normalisation that a config states.

    Args:
        mean: One number a channel, one for all, or None for 0; ``...`` where it was not stated.
        std: The same, None for 1.
        bgr_to_rgb: Whether red comes first.

    Raises:
        ConfigError: One is not stated, or is neither; or they are for different numbers of channels.
    """
    values: dict[str, tuple[float, ...]] = {}
    for key, value, default in (('mean', mean, 0.0), ('std', std, 1.0)):
        if isinstance(value, EllipsisType):
            raise ConfigError(
                f'teacher.{key} is needed: that of the images with which the teacher was trained, with '
                'values from 0 to 255. ImageNet: mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, '
                '57.375]. For images as they are loaded: mean=None, std=None'
            )
        numbers = [default] if value is None else [value] if isinstance(value, int | float) else value
        if (
            not isinstance(numbers, Sequence)
            or not numbers
            or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            or (key == 'std' and min(numbers) <= 0)
        ):
            raise ConfigError(
                f'teacher.{key} must be a number for each channel, one for all, or None, got {value!r}'
            )
        values[key] = tuple(map(float, numbers))
    if len({len(numbers) for numbers in values.values()} - {1}) > 1:
        raise ConfigError(
            f'teacher.mean and teacher.std must be for as many channels, got {mean!r} and {std!r}'
        )
    return Normalisation(values['mean'], values['std'], bgr_to_rgb)


def check_bands(normalisation: Normalisation, bands: int | None, teacher: str) -> None:
    """Check that a normalisation is one of images with as many channels as a network takes.

    Args:
        normalisation: That of the network's input.
        bands: The number of channels of its images, None where nothing tells.
        teacher: The teacher, for the message.

    Raises:
        ConfigError: It is not.
    """
    counts = {len(normalisation.mean), len(normalisation.std)} - {1}
    if bands is not None and counts - {bands}:
        raise ConfigError(
            f'teacher ({teacher}): it takes images of {bands} channels, and its mean and std are for '
            f'{" and ".join(map(str, sorted(counts)))}. Give teacher.mean and teacher.std a number for each, '
            'or one for all'
        )


def warn_of_unit_range(normalisation: Normalisation) -> None:
    """Warn where a normalisation seems to be that of images with values from 0 to 1."""
    if max(normalisation.std) < 1:
        print_log(
            f'teacher.std={[*normalisation.std]} looks like that of images with values from 0 to 1. Those of '
            'image files have values from 0 to 255: multiply mean and std by 255, if yours are such',
            'current',
            logging.WARNING,
        )


def as_data(normalisation: Normalisation) -> dict[str, Any]:
    """Return a normalisation as plain data."""
    return {
        'mean': [*normalisation.mean],
        'std': [*normalisation.std],
        'bgr_to_rgb': normalisation.swapped,
    }


def _per_channel(values: Sequence[float], like: Tensor) -> Any:
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
