"""Agreement and divergences of a student's and its teacher's class logits, whichever losses it learns by."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from mmseg.utils import SampleList
from torch import Tensor

from bdd_seg.losses.divergences import forward_kl, reverse_kl
from bdd_seg.losses.pair import Pair, resize_nearest

DIAGNOSTICS = ('distill.agreement', 'distill.forward_kl', 'distill.reverse_kl')
"""Keys of the diagnostics in the log. None contains ``loss``, as mmengine adds such values to the total."""


@torch.no_grad()
def logit_diagnostics(pair: Pair) -> dict[str, Tensor]:
    """Return the divergences and the agreement of two maps of class logits, without a gradient.

    The distributions run over the classes of one position, at temperature 1: p is the teacher's, q the
    student's. The one channel z of a binary head stands for the logits (0, z). All values are means over the
    positions that count (``pair.mask``), labelled or not, and NaN where none does.

    Args:
        pair: Class logits (N, C, H, W) of both sides.

    Returns:
        Scalars under the names of :data:`DIAGNOSTICS`. ``distill.agreement`` is the share of positions where
        both predict the same class, in percent. ``distill.forward_kl`` is KL(p‖q) and ``distill.reverse_kl``
        KL(q‖p), in nats.
    """
    pair = pair.of_two_classes()
    # One image at a time, which keeps the temporaries small beside what the step has in memory.
    images = [_of_image(*logits) for logits in zip(pair.student, pair.teacher, strict=True)]
    values = torch.stack(images, dim=1)  # (3, N, H, W)
    if pair.mask is None:
        means = values.mean(dim=(1, 2, 3))
    else:
        # A sum over none is 0, and 0/0 NaN. Unknown positions may hold a NaN of their own.
        means = values.masked_fill(~pair.mask, 0).sum(dim=(1, 2, 3)) / pair.mask.sum()
    return dict(zip(DIAGNOSTICS, means, strict=True))


def _of_image(student: Tensor, teacher: Tensor) -> Tensor:
    """Return (3, H, W) the agreement in percent and both divergences, of logits (C, H, W)."""
    log_p, log_q = teacher.log_softmax(0), student.log_softmax(0)
    agreement = 100 * (log_p.argmax(0) == log_q.argmax(0)).to(log_p.dtype)
    divergences = torch.stack([forward_kl(log_p, log_q, 0), reverse_kl(log_p, log_q, 0)])
    return torch.cat([agreement[None], divergences.clamp(min=0)])  # rounding may lead below 0


def without_padding(pair: Pair, data_samples: SampleList, size: Sequence[int]) -> Pair:
    """Return the pair in which positions that mmseg's data preprocessor padded do not count.

    Args:
        pair: Maps (N, C, h, w).
        data_samples: N samples, whose ``padding_size`` (left, right, top, bottom) is in pixels.
        size: H and W of the padded images.
    """
    paddings = [tuple(sample.get('padding_size', (0, 0, 0, 0))) for sample in data_samples]
    if not any(map(any, paddings)):
        return pair
    height, width = size
    inside = torch.zeros(len(paddings), height, width, dtype=torch.bool, device=pair.student.device)
    for image, (left, right, top, bottom) in zip(inside, paddings, strict=True):
        image[top : height - bottom, left : width - right] = True
    inside = resize_nearest(inside, tuple(pair.student.shape[2:]))
    return replace(pair, mask=inside if pair.mask is None else pair.mask & inside)
