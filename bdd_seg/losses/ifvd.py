"""Intra-class feature variation distillation (IFVD), ECCV 2020.

https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/230_ECCV_2020_paper.php
"""

from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.blocks import image_by_image
from bdd_seg.losses.pair import Pair, unit


def centres(features: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Return for each position the mean feature of its class in its image.

    Args:
        features: (N, C, H, W).
        label: (N, H, W) classes.
        mask: (N, H, W) bool, True where a position counts.

    Returns:
        (N, C, H, W), 0 where a position does not count.
    """
    label, mask = label.flatten(1), mask.flatten(1)
    classes = int(label.masked_fill(~mask, 0).max()) + 1 if label.numel() else 1
    members = torch.nn.functional.one_hot(label.masked_fill(~mask, classes), classes + 1)[..., :classes]
    members = members.to(features.dtype)  # (N, H·W, classes)
    means = features.flatten(2) @ members / members.sum(1, keepdim=True).clamp(min=1)  # (N, C, classes)
    return (means @ members.mT).view_as(features)


def similarity_to_centre(features: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Return m(f), the cosine of each position's feature and its class's centre, (N, H, W)."""
    return (unit(features, 1) * unit(centres(features, label, mask), 1)).sum(dim=1)


def squared_difference(student: Tensor, teacher: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Return (m(f_s) − m(f_t))², (N, H, W)."""
    out = ~mask[:, None]
    student, teacher = student.masked_fill(out, 0), teacher.masked_fill(out, 0)
    difference = similarity_to_centre(student, label, mask) - similarity_to_centre(teacher, label, mask)
    return difference.square()


@MODELS.register_module()
class IFVDLoss(DistillLoss):
    """Mean squared difference of the positions' similarities to their class's centre.

    ``mean over labelled positions of (m(f_s) − m(f_t))²``. IFVD adds the KL of KDLoss with weight 1. Common
    code gives ignored positions a centre of their own, with which their similarity is 1; here they do not
    count.

    Args:
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.
    """

    channels = 'any'
    needs_labels = True

    def __init__(self, loss_weight: float = 20.0, loss_name: str = 'loss_ifvd', **shared: Any) -> None:
        super().__init__(loss_weight, loss_name, **shared)

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean over the labelled positions; 0 where there is none."""
        return pair.mean(image_by_image(squared_difference, pair.student, pair.teacher, *pair.labelled()))
