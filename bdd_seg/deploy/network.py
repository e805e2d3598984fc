"""A segmentor as one function of images, in a form that can be exported."""

import copy

import torch
from mmengine.model import revert_sync_batchnorm
from mmseg.models import BaseSegmentor
from mmseg.models.utils import Upsample, resize
from torch import Tensor, nn

from bdd_seg.deploy.about import About, Size
from bdd_seg.teachers.segmentors import run

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Height and width of images must be multiples of one of these, for any network that is known."""

_SHORTEST = 64  # pixels of the images with which they are tried


class DeployedNetwork(nn.Module):
    """A copy of a segmentor, in eval mode, from images to logits or labels as ``about`` says.

    Two kinds of layers are replaced by equal ones. Adaptive pooling becomes a product of matrices, since
    neither exporters nor runtimes have it for bins that do not divide the map, or for maps of any size.
    mmseg's ``Upsample`` computes its size in floating point, which exporters fix at that of their example.

    Args:
        model: The segmentor, which stays as it is.
        about: Facts about the result.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: BaseSegmentor, about: About) -> None:
        super().__init__()
        self.about = about
        self.model = _with_exportable_layers(revert_sync_batchnorm(copy.deepcopy(model))).eval()
        mean, std = (torch.tensor(values)[:, None, None] for values in (about.mean, about.std))
        self.register_buffer('mean', mean, persistent=False)
        self.register_buffer('std', std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, C, h, w), or labels (N, H, W).

        Args:
            image: (N, bands, H, W) normalised, or uint8 (N, H, W, bands) as loaded: see ``About.takes``.
        """
        if self.about.takes == 'pixels':
            image = self.normalised(image)
        logits = run(self.model, image)
        if self.about.gives == 'logits':
            return logits
        height, width = image.shape[2:]
        return self.labels(logits, (height, width))

    @property
    def axes(self) -> dict[int, str]:
        """Number → name of the axes of an input that may have any length."""
        names = ('batch', 'height', 'width')
        return dict(zip((0, 1, 2) if self.about.takes == 'pixels' else (0, 2, 3), names, strict=True))

    def example(self, shape: tuple[int, ...]) -> Tensor:
        """Return an input of zeros for N images of height H and width W.

        Args:
            shape: (N, H, W).
        """
        count, height, width = shape
        if self.about.takes == 'pixels':
            return torch.zeros(count, height, width, self.about.bands, dtype=torch.uint8)
        return torch.zeros(count, self.about.bands, height, width)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return pixels (N, H, W, bands) as the network expects them, (N, bands, H, W)."""
        image = pixels.permute(0, 3, 1, 2).to(self.mean.dtype)
        if self.about.bgr_to_rgb and self.about.bands == 3:
            image = image.flip(1)
        return (image - self.mean) / self.std

    def labels(self, logits: Tensor, size: Size) -> Tensor:
        """Return class numbers (N, H, W) of logits (N, C, h, w), at the size (H, W) of the images."""
        logits = resize(logits, size, mode='bilinear', align_corners=self.about.align_corners, warning=False)
        if self.about.threshold is not None:
            labels = logits[:, 0].sigmoid() > self.about.threshold
        else:
            labels = logits.argmax(1)
        return labels.to(torch.uint8 if len(self.about.classes) <= 256 else torch.int32)


class ExportableAdaptivePool(nn.Module):
    """Adaptive average pooling as the product ``rows · map · columnsᵀ``.

    A bin i of n over a length L averages positions ⌊i·L/n⌋ to ⌈(i+1)·L/n⌉ − 1, as in
    ``nn.AdaptiveAvgPool2d``.

    Args:
        output_size: Bins along height and width; None for as many as there are cells.
    """

    def __init__(self, output_size: tuple[int | None, int | None]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, C, n, m) of features (N, C, h, w)."""
        bins_h, bins_w = self.output_size
        rows, columns = (
            _bin_weights(features.shape[dim], count, features) for dim, count in ((2, bins_h), (3, bins_w))
        )
        if rows is not None:
            features = rows @ features
        if columns is not None:
            features = features @ columns.transpose(0, 1)
        return features


def _bin_weights(length: int, bins: int | None, like: Tensor) -> Tensor | None:
    """Return (bins, length): the weight of each position in each bin; None for no pooling."""
    if bins is None:
        return None
    position = torch.arange(length, device=like.device)[None]
    bin_number = torch.arange(bins, device=like.device)[:, None]
    first = (bin_number * length) // bins
    end = ((bin_number + 1) * length + bins - 1) // bins
    inside = ((position >= first) & (position < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class ExportableUpsample(nn.Module):
    """mmseg's ``Upsample`` by a whole number.

    Args:
        layer: The layer that it replaces.
    """

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        self.factor = int(layer.scale_factor)
        self.mode, self.align_corners = layer.mode, layer.align_corners

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, C, factor·h, factor·w) of features (N, C, h, w)."""
        size = [length * self.factor for length in features.shape[2:]]
        return resize(features, size, None, self.mode, self.align_corners, warning=False)


def find_multiple(network: DeployedNetwork) -> int | None:
    """Return the smallest power of two, up to 64, of which height and width must be multiples.

    It is found by running the network on small images, whose lengths are four odd multiples of each power.

    Args:
        network: Of any size.

    Returns:
        None if no size works, for networks that take images of one size only.
    """
    for multiple in MULTIPLES:
        first = _SHORTEST // multiple // 2 * 2 + 1
        lengths = [multiple * (first + 2 * step) for step in range(4)]
        try:
            with torch.inference_mode():
                for height, width in ((lengths[0], lengths[3]), (lengths[1], lengths[2])):
                    network(network.example((1, height, width)))
        except (RuntimeError, ValueError, AssertionError):  # shapes that do not fit
            continue
        return multiple
    return None


def _with_exportable_layers(model: nn.Module) -> nn.Module:
    """Replace the layers that :class:`DeployedNetwork` names. One bin is a mean, which exports."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                pair = (size, size) if isinstance(size, int) or size is None else (size[0], size[1])
                if pair != (1, 1):
                    parent.register_module(name, ExportableAdaptivePool(pair))
            elif isinstance(child, Upsample) and not child.size and _is_whole(child.scale_factor):
                parent.register_module(name, ExportableUpsample(child))
    return model


def _is_whole(factor: float | tuple[float, ...] | None) -> bool:
    return isinstance(factor, float) and factor.is_integer()
