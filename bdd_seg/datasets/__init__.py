from bdd_seg.datasets.camvid import CamVidDataset

__all__ = ['CamVidDataset']
