"""The affine map from a training crop back to the loaded image, whatever transforms made the crop.

Each transform moves, among the maps that it treats as it treats the labels, one of pixel coordinates. An
affine map is fitted to the moved coordinates. The coordinates themselves would be a worse sampling grid:
mmseg resamples label maps by nearest neighbour, and not centred as it resamples images. On crops of 256×512
from 512×1024 they are off by 0.7 pixels on average and 2.0 at most after a random resize of 0.5 to 2, and by
0.3 and 0.7 after a rotation. The fit is off by 0.0002 at most after the resize, and by 0.02 on average and
0.3 at most after the rotation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmseg.registry import TRANSFORMS
from numpy.lib.stride_tricks import as_strided

from bdd_seg.errors import ConfigError

_KEYS = ('pixel_x', 'pixel_y')

# Added to coordinates, so that none is mistaken for a value that transforms fill seg maps with (0 to 255),
# nor for a mixture with one: where a transform interpolates the maps, a slight rotation mixes whole rows.
_OFFSET = 2**15

# Rows and columns at which a map of coordinates is looked at: more make its fit no better.
_SAMPLES = 40


@TRANSFORMS.register_module()
class FollowGeometry(BaseTransform):
    """A data pipeline that also records the geometry of its output.

    Its samples have, as metainfo, ``geometry``: a (3, 3) float64 matrix that takes
    homogeneous pixel coordinates (x, y, 1) of the transformed image to those of the image as it was
    loaded, pixel centres at integers; ``loaded_shape``: that image's (H, W); and ``img_path``.

    It knows no transform by name. Each one finds, among the maps it has to treat as it treats the labels
    (``results['seg_fields']``), one of pixel coordinates, and what becomes of them tells what it did.
    mmseg resamples such maps by nearest neighbour, so a resize is recovered from its sizes, moves and flips
    exactly, and other affine maps by a fit. Random numbers are drawn as without it.

    Args:
        transforms: The pipeline, from loading to packing.

    Raises:
        ConfigError: While it runs: a transform that is not affine, or that moves the image and not the
            maps in ``seg_fields``.
    """

    def __init__(self, transforms: Sequence[dict]) -> None:
        self.pipeline = Compose(list(transforms))

    def transform(self, results: dict) -> dict | None:
        geometry, loaded_shape, img_path = np.eye(3), None, results.get('img_path')
        image: np.ndarray | None
        labels: np.ndarray | None
        for transform in self.pipeline.transforms:
            image, labels = results.get('img'), results.get('gt_seg_map')
            if image is not None:
                coordinates = _coordinates(*image.shape[:2])
                results.update(zip(_KEYS, coordinates, strict=True))
                results['seg_fields'] = [*results.get('seg_fields', []), *_KEYS]
            results = transform(results)
            if results is None:  # the transform rejects the image, and the data set takes another one
                return None
            if image is not None and 'img' in results:  # and not packed yet
                results['seg_fields'] = [key for key in results['seg_fields'] if key not in _KEYS]
                moved = tuple(results.pop(key) for key in _KEYS)
                geometry = geometry @ _step(transform, image, labels, coordinates, moved, results)
            elif image is None and 'img' in results:
                loaded_shape = results['img'].shape[:2]
        if 'data_samples' not in results:
            raise ConfigError(
                'the data pipeline does not end with packed samples (PackSegInputs). Data sets that mix '
                'several images into one cannot be followed: use a live teacher'
            )
        if loaded_shape is None:
            raise ConfigError(
                f'{type(transform).__name__} loads and transforms the image in one, which cached outputs of '
                'a teacher cannot follow. Use a live teacher, with record=FOLDER where trainings repeat'
            )
        results['data_samples'].set_metainfo(
            {'geometry': geometry, 'loaded_shape': loaded_shape, 'img_path': img_path}
        )
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.pipeline})'


def _coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each pixel plus an offset, (H, W): views of a row and a column, at no cost."""
    x = np.arange(_OFFSET, _OFFSET + width, dtype=np.uint16)
    y = np.arange(_OFFSET, _OFFSET + height, dtype=np.uint16)
    return as_strided(x, (height, width), (0, x.itemsize)), as_strided(y, (height, width), (y.itemsize, 0))


def _step(
    transform: Any,
    image: np.ndarray,
    labels: np.ndarray | None,
    coordinates: tuple[np.ndarray, np.ndarray],
    moved: tuple[np.ndarray, np.ndarray],
    results: dict,
) -> np.ndarray:
    """Return the (3, 3) matrix of one transform, from image, labels and coordinates before and after."""
    name = type(getattr(transform, 'wrapped', transform)).__name__  # a check may stand around it
    new_image: np.ndarray = results['img']
    new_labels: np.ndarray | None = results.get('gt_seg_map')
    if new_image is image:
        return np.eye(3)
    untouched = moved[0] is coordinates[0]
    if untouched:
        labels_kept = (
            labels is None or new_labels is None or new_labels is labels or np.array_equal(labels, new_labels)
        )
        if new_image.shape[:2] == image.shape[:2] and labels_kept:
            return np.eye(3)
        height, width = image.shape[:2]
        if np.array_equal(new_image[:height, :width], image):
            return np.eye(3)  # padded on the right and at the bottom
    if untouched or moved[0].shape != new_image.shape[:2]:
        raise ConfigError(
            f'{name} moves the image but not all maps in seg_fields, so that cached '
            "outputs of a teacher cannot follow it. Use mmseg's own transform, or a live teacher"
        )
    matrix = fit_matrix(*moved, image, new_image)
    if matrix is None:
        raise ConfigError(
            f'{name} does more than an affine map, which cached outputs of a teacher '
            'cannot follow. Use a live teacher'
        )
    return matrix


def fit_matrix(
    source_x: np.ndarray, source_y: np.ndarray, source: np.ndarray, image: np.ndarray
) -> np.ndarray | None:
    """Fit the affine map behind maps of coordinates that were resampled by nearest neighbour.

    Args:
        source_x: (H', W') x in the source plus the offset, below that for pixels from outside.
        source_y: (H', W') y in the source, likewise.
        source: (H, W, channels) the image before.
        image: (H', W', channels) the image after.

    Returns:
        (3, 3) float64, from (x', y', 1) to (x, y, 1), or None where no affine map fits.
    """
    height, width = source_x.shape
    rows, columns = (
        np.unique(np.linspace(0, size - 1, min(size, _SAMPLES)).round().astype(int))
        for size in (height, width)
    )
    y, x = (index.ravel() for index in np.meshgrid(rows, columns, indexing='ij'))
    target = np.stack([source_x[y, x], source_y[y, x]], axis=1).astype(np.float64) - _OFFSET
    points = np.stack([x, y, np.ones_like(x)], axis=1)
    inside = (target >= 0).all(axis=1)
    points, target = points[inside], target[inside]
    if len(points) == 0:
        return np.array([[1, 0, -1e6], [0, 1, -1e6], [0, 0, 1]])  # nothing of the source is left
    matrix = np.eye(3)
    solution, _, rank, _ = np.linalg.lstsq(points, target, rcond=None)
    if rank < 3 and min(height, width) > 1:
        return None
    matrix[:2] = solution.T
    # Interpolation may have mixed coordinates with what lies outside: leave those few out.
    reach = 1 + np.abs(matrix[:2, :2]).sum(axis=1)
    kept = (np.abs(target - points @ matrix[:2].T) <= reach).all(axis=1)
    if kept.mean() < 0.9:
        return None
    if not kept.all():
        points, target = points[kept], target[kept]
        matrix[:2] = np.linalg.lstsq(points, target, rcond=None)[0].T
    (x, y), (source_x, source_y) = points[:, :2].T, target.round().astype(int).T
    copied = np.array_equal(image[y, x], source[source_y, source_x])
    for axis in (0, 1):
        row = matrix[axis].round()
        moved = np.abs(row[:2]).sum() == 1 and np.abs(target[:, axis] - points @ row).max() < 1e-3
        size, source_size = image.shape[1 - axis], source.shape[1 - axis]
        # By its coordinates alone, a resize to a pixel less looks like a crop.
        if moved and (copied or abs(size - source_size) != 1):
            matrix[axis] = row  # cropped, flipped, turned by 90 degrees
        elif abs(matrix[axis, 1 - axis]) < 1e-3:
            matrix[axis] = _resized(matrix[axis], axis, size, source_size)
    return matrix


def _resized(row: np.ndarray, axis: int, size: int, source_size: int) -> np.ndarray:
    """Return the row of the matrix of an axis that was resized; ``row`` is the fit to nearest neighbours.

    Images are resized with pixel centres half a pixel from the edges, label maps by ⌊x'·scale⌋, which lies
    half a source pixel and more to the left.
    """
    scale = source_size / size
    exact = np.zeros(3)
    exact[axis], exact[2] = scale, (scale - 1) / 2
    if abs(row[axis] - scale) * size < 1.5 and abs(row[2] - exact[2]) < 1 + scale / 2:
        return exact
    # Resized and cropped by one transform: to less than a pixel, since ⌊·⌋ takes away about a half.
    exact[axis], exact[2] = row[axis], row[2] + abs(row[axis]) / 2
    return exact
