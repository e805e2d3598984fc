"""Data sets: CamVid, images without labels, and generated street scenes; a pipeline of fixed views."""

from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.datasets.fixed_views import FixedViews
from bdd_seg.datasets.unlabelled import MixedSampler, UnlabelledImages, WithUnlabelled
from bdd_seg.datasets.unlabelled_hook import UnlabelledHook

__all__ = [
    'CamVidDataset',
    'FixedViews',
    'MixedSampler',
    'UnlabelledHook',
    'UnlabelledImages',
    'WithUnlabelled',
]
