from bdd_seg.losses.bdd import BDDLoss
from bdd_seg.losses.divergences import balance_divergence

__all__ = ['BDDLoss', 'balance_divergence']
