import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadBands(LoadImageFromFile):
    """Load an image with any number of bands, (H, W, bands), from a .npy file."""

    def transform(self, results):
        image = np.load(results['img_path']).astype(np.float32)
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results
