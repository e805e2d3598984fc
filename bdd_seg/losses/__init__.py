from bdd_seg.losses.bdd import BDDLoss
from bdd_seg.losses.divergences import balance_divergence
from bdd_seg.losses.feature_mse import FeatureMSELoss

__all__ = ['BDDLoss', 'FeatureMSELoss', 'balance_divergence']
