"""Boundary-privileged knowledge distillation (BPKD), https://arxiv.org/abs/2306.08075."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses.balanced import BalancedLoss
from bdd_seg.losses.divergences import check_weights
from bdd_seg.losses.pair import Pair


def edges(label: Tensor, mask: Tensor, radius: int) -> Tensor:
    """Return where another class lies within ``radius`` positions, (N, H, W) bool.

    Args:
        label: (N, H, W) classes.
        mask: (N, H, W) bool, True where a position counts. The others are of no class.
        radius: Half the side of the square window.
    """
    values = label.float()
    both = torch.stack([values, -values], dim=1).masked_fill(~mask[:, None], -torch.inf)
    highest, lowest = F.max_pool2d(both, 2 * radius + 1, stride=1, padding=radius).unbind(1)
    return mask & (highest != -lowest)


@MODELS.register_module()
class BPKDLoss(BalancedLoss):
    """KL over the classes at edges between labels, and over the positions of each class's body.

    ``w_e · mean over edge positions of KL(p‖q) + w_b · mean over images and classes of KL(p‖q)``, times τ².
    In the first the distributions run over the C classes (pixel domain), in the second over the positions
    that are labelled with the class and are no edge (channel domain). ``reverse_weight`` balances both.

    The paper's text and its weights could not be had; the weights below are ours, search them.

    Args:
        tau: τ, the temperature of KL(teacher‖student), > 0.
        edge_weight: w_e.
        body_weight: w_b.
        edge_radius: Half the width of the edge band, in positions of the logits.
        standardize: Whether the logits of each term's distributions are standardised first,
            https://arxiv.org/abs/2403.01427.
        **shared: ``forward_weight``, ``reverse_weight`` and ``tau_reverse`` as for
            :class:`~bdd_seg.losses.BalancedLoss`, and the arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Raises:
        ValueError: A temperature or radius that is not positive, or a weight that is no number.
    """

    over_classes = True
    needs_labels = True

    def __init__(
        self,
        tau: float = 1.0,
        edge_weight: float = 1.0,
        body_weight: float = 1.0,
        edge_radius: int = 1,
        standardize: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_bpkd',
        **shared: Any,
    ) -> None:
        super().__init__(tau, loss_weight=loss_weight, loss_name=loss_name, **shared)
        check_weights(edge_weight=edge_weight, body_weight=body_weight)
        if not isinstance(edge_radius, int) or edge_radius < 1:
            raise ValueError(f'edge_radius must be a whole number from 1 on, got {edge_radius!r}')
        self.edge_weight = float(edge_weight)
        self.body_weight = float(body_weight)
        self.edge_radius = edge_radius
        self.standardize = standardize

    def compare(self, pair: Pair) -> Tensor:
        """Return the weighted sum of both terms; a term without positions is 0."""
        label, mask = pair.labelled()
        edge = edges(label, mask, self.edge_radius)
        classes = torch.arange(pair.student.shape[1], device=edge.device).view(1, -1, 1, 1)
        body = (label[:, None] == classes) & (mask & ~edge)[:, None]  # (N, C, H, W)
        total = pair.student.new_zeros(())
        for domain, weight, part in (('pixel', self.edge_weight, edge), ('channel', self.body_weight, body)):
            maps = pair.standardized(domain, part) if self.standardize else pair
            total = total + weight * self.divergence(maps.student, maps.teacher, domain, part)
        return total
