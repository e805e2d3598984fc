"""Images normalised for the student, normalised anew for the teacher."""

import torch
from torch import Tensor, nn


def renormalise(inputs: Tensor, source: nn.Module, target: nn.Module) -> Tensor:
    """Turn images normalised by one data preprocessor into images normalised by another.

    Args:
        inputs: (N, C, H, W), normalised by ``source``.
        source: An mmseg ``SegDataPreProcessor``: ``(x[bgr or rgb] - mean) / std``.
        target: The same, with other statistics or another channel order.

    Returns:
        (N, C, H, W), normalised by ``target``.
    """
    mean, std, swapped = _input_settings(source)
    target_mean, target_std, target_swapped = _input_settings(target)
    raw = inputs * std.to(inputs) + mean.to(inputs)
    if swapped != target_swapped:
        raw = raw.flip(1)
    return (raw - target_mean.to(inputs)) / target_std.to(inputs)


def same_input(source: nn.Module, target: nn.Module) -> bool:
    """Return whether two data preprocessors normalise images alike."""
    mean, std, swapped = _input_settings(source)
    target_mean, target_std, target_swapped = _input_settings(target)
    return swapped == target_swapped and all(
        a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
        for a, b in ((mean, target_mean), (std, target_std))
    )


def _input_settings(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """Return mean and standard deviation (C, 1, 1) in 0..255, and whether the loaded channels are swapped."""
    mean = getattr(preprocessor, 'mean', torch.zeros(1))
    std = getattr(preprocessor, 'std', torch.ones(1))
    return mean, std, getattr(preprocessor, '_channel_conversion', False)
