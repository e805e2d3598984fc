"""Data sets: CamVid, and generated street scenes."""

from bdd_seg.datasets.camvid import CamVidDataset

__all__ = ['CamVidDataset']
