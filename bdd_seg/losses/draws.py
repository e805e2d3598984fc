"""Random numbers of a loss that a resumed training draws as it would have, and the student never misses."""

import numpy as np
import torch
from mmengine.dist import get_rank
from torch import Tensor, nn


class Draws(nn.Module):
    """Gives a generator for each call, seeded by the run's seed and the number of the call.

    Both are buffers, so that :class:`~bdd_seg.distill.LossStateHook` keeps them for ``--resume``. Each
    process draws other numbers, and no call touches torch's global generator: the student's dropout is the
    one it would be without this loss.
    """

    seed: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('seed', torch.randint(2**31, ()))
        self.register_buffer('count', torch.zeros((), dtype=torch.int64))

    def next(self) -> torch.Generator:
        """Return a generator on the CPU for one call of the loss."""
        sequence = np.random.SeedSequence([int(self.seed), int(self.count), get_rank()])
        self.count += 1
        return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
