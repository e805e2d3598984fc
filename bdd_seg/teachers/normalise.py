"""Images normalised for the student, normalised anew for the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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


def _per_channel(values: Sequence[float], like: Tensor) -> Any:
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
