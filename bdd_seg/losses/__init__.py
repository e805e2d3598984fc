"""Distillation losses, one file for each method. ``divergences`` has the formulas of those with a KL."""

from bdd_seg.losses.alpha_beta import AlphaBetaLoss
from bdd_seg.losses.attention import AttentionLoss
from bdd_seg.losses.balanced import BalancedLoss
from bdd_seg.losses.base import DistillLoss
from bdd_seg.losses.bdd import BDDLoss
from bdd_seg.losses.bpkd import BPKDLoss
from bdd_seg.losses.cirkd import CIRKDLoss
from bdd_seg.losses.cirkd_memory import CIRKDMemoryLoss
from bdd_seg.losses.cwd import CWDLoss
from bdd_seg.losses.dist import DISTLoss
from bdd_seg.losses.dkd import DKDLoss
from bdd_seg.losses.feature import FeatureLoss
from bdd_seg.losses.fused import balance_divergence
from bdd_seg.losses.ifvd import IFVDLoss
from bdd_seg.losses.kd import KDLoss
from bdd_seg.losses.mgd import MGDLoss
from bdd_seg.losses.pair import Pair
from bdd_seg.losses.pairwise import PairwiseLoss

__all__ = [
    'AlphaBetaLoss',
    'AttentionLoss',
    'BDDLoss',
    'BPKDLoss',
    'BalancedLoss',
    'CIRKDLoss',
    'CIRKDMemoryLoss',
    'CWDLoss',
    'DISTLoss',
    'DKDLoss',
    'DistillLoss',
    'FeatureLoss',
    'IFVDLoss',
    'KDLoss',
    'MGDLoss',
    'Pair',
    'PairwiseLoss',
    'balance_divergence',
]
