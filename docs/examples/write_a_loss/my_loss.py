from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses import DistillLoss, Pair


@MODELS.register_module()
class LogitsL1(DistillLoss):
    """The mean absolute difference of the logits, with an exponent: mean of |z_s - z_t|^power."""

    def __init__(self, power: float = 1.0, loss_name: str = 'loss_l1', **shared) -> None:
        super().__init__(loss_name=loss_name, **shared)
        if power <= 0:
            raise ValueError(f'power must be positive, got {power!r}')
        self.power = power

    def compare(self, pair: Pair) -> Tensor:
        differences = (pair.student - pair.teacher).abs() ** self.power  # (N, C, H, W)
        return pair.mean(differences.mean(dim=1))  # over the positions that count
