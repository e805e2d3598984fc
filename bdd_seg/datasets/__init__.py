"""Data sets: CamVid, images without labels, and generated street scenes."""

from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.datasets.unlabelled import MixedSampler, UnlabelledImages, WithUnlabelled
from bdd_seg.datasets.unlabelled_hook import UnlabelledHook

__all__ = ['CamVidDataset', 'MixedSampler', 'UnlabelledHook', 'UnlabelledImages', 'WithUnlabelled']
