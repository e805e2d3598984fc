"""A fixed number of random views of each image."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmseg.registry import TRANSFORMS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.seeding import random_state_kept, seed_view


@TRANSFORMS.register_module()
class FixedViews(BaseTransform):
    """A data pipeline whose random transforms make the same few views of an image, over and over.

    A view follows from the name of the image file and the number of the view. Which view comes next is drawn.
    A teacher that is recorded (``teacher.record``) then answers each view once, in any training.

    Args:
        views: The number of views of each image.
        transforms: The pipeline, from loading to packing.

    Raises:
        ConfigError: ``views`` is no positive whole number.
    """

    def __init__(self, views: int, transforms: Sequence[dict]) -> None:
        if not isinstance(views, int) or views < 1:
            raise ConfigError(f'FixedViews: views must be a positive whole number, got {views!r}')
        self.views = views
        self.pipeline = Compose(list(transforms))

    def transform(self, results: dict) -> dict | None:
        """Return the sample that the pipeline makes with the random numbers of one view."""
        view = np.random.randint(self.views)
        with random_state_kept():
            seed_view(zlib.crc32(Path(results['img_path']).name.encode()), view)
            return self.pipeline(results)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(views={self.views}, {self.pipeline})'
