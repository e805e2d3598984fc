"""Run any kind of mmseg segmentor to its final class logits, per pixel."""

import torch
from mmseg.models import BaseSegmentor
from mmseg.models.backbones import BEiT
from mmseg.models.decode_heads import Mask2FormerHead, MaskFormerHead, PointHead, SideAdapterCLIPHead
from torch import Tensor

from bdd_seg.distill.taps import LOGITS, default_tap, last_head
from bdd_seg.errors import ConfigError

# Heads that propose masks and classify each: a class's score at a pixel is a sum over masks.
_MASK_CLASSIFIERS = (Mask2FormerHead, MaskFormerHead, SideAdapterCLIPHead)

_LEAST_SCORE = 1e-6  # its logarithm is finite, and that of no score at all


def logits_tap(model: BaseSegmentor) -> str:
    """Return the layer that puts out a segmentor's final class logits; ``'logits'`` if only :func:`run` does.

    A segmentor of the user's own is one of the latter: what it returns counts.
    """
    head = last_head(model)
    if isinstance(head, (PointHead, *_MASK_CLASSIFIERS)):
        return LOGITS
    try:
        return default_tap(model)
    except ConfigError:
        return LOGITS


def predicts_scores(model: BaseSegmentor) -> bool:
    """Return whether a segmentor predicts scores of classes, as mask classifiers do, instead of logits."""
    return isinstance(last_head(model), _MASK_CLASSIFIERS)


def run(model: BaseSegmentor, inputs: Tensor) -> Tensor:
    """Return the class logits (N, C, h, w) of a segmentor in eval mode, on its own grid.

    - PointRend: the refined ones.
    - Mask2Former, MaskFormer, SAN: the logarithm of each class's score, the sum over the masks of the class's
      probability times the mask's. Its softmax is the scores, scaled to a sum of 1.
    - EncNet: without the image-level prediction.

    Args:
        model: The segmentor.
        inputs: (N, bands, H, W), normalised as it expects.
    """
    head = last_head(model)
    if isinstance(head, (PointHead, *_MASK_CLASSIFIERS)):
        size = inputs.shape[2:]
        meta = {'img_shape': size, 'pad_shape': size, 'ori_shape': size}
        output = model.encode_decode(inputs, [meta] * len(inputs))
        return output if isinstance(head, PointHead) else log_scores(output)
    output = model(inputs, mode='tensor')
    return output[0] if isinstance(output, tuple) else output


def log_scores(scores: Tensor) -> Tensor:
    """Return logits whose softmax is these scores (N, C, h, w), scaled to a sum of 1 over the classes."""
    return scores.clamp(min=_LEAST_SCORE).log()


def mask_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return the score of each class at each pixel, (N, C, h, w), of a network that classifies masks.

    Args:
        class_logits: (N, Q, C + 1) for each of Q masks, the last one standing for no class.
        mask_logits: (N, Q, h, w).
    """
    probabilities = class_logits.softmax(-1)[..., :-1]
    return torch.einsum('nqc,nqhw->nchw', probabilities, mask_logits.sigmoid())


def fixed_input_size(model: BaseSegmentor) -> tuple[int, int] | None:
    """Return (H, W) if a segmentor takes images of that size only; others adapt their positions to any."""
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, BEiT):  # and MAE, which is one; their positions are relative to a fixed grid
        height, width = backbone.img_size
        return height, width
    return None
