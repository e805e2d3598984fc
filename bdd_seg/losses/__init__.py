"""Distillation losses, one file for each method. ``divergences`` has the formulas of those with a KL."""

from bdd_seg.losses.base import DistillLoss, Pair
from bdd_seg.losses.bdd import BDDLoss
from bdd_seg.losses.cwd import CWDLoss
from bdd_seg.losses.feature_mse import FeatureMSELoss
from bdd_seg.losses.fused import balance_divergence
from bdd_seg.losses.kd import KDLoss

__all__ = ['BDDLoss', 'CWDLoss', 'DistillLoss', 'FeatureMSELoss', 'KDLoss', 'Pair', 'balance_divergence']
