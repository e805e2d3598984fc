"""Boundary IoU: the IoU of the bands along the outlines of classes, where thin structures are decided.

Source: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021,
https://arxiv.org/abs/2103.16562. The band of a class is what erosion takes from its mask: the pixels of the
class with another class, or the edge of the image, at most ``d`` pixels away along both axes.
"""

import cv2
import numpy as np

RATIO = 0.02
"""Width of the band as a share of the image's diagonal."""


def band_width(height: int, width: int) -> int:
    """Return the width of the band in pixels, at least 1."""
    return max(1, round(RATIO * float(np.hypot(height, width))))


def band(labels: np.ndarray, width: int, counts: np.ndarray | None = None) -> np.ndarray:
    """Return where the bands of all classes are, (H, W) bool. Each pixel is in that of its own class at most.

    Args:
        labels: (H, W) class numbers below 65535.
        width: Of the band in pixels.
        counts: (H, W) bool, False for pixels that are no neighbours of others, as those without a label.
    """
    counts = np.ones(labels.shape, bool) if counts is None else counts
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    # Of the neighbours that count, the largest and the smallest number: they differ if classes do. Beyond
    # the image OpenCV sees none.
    numbers = labels.astype(np.uint16) + 1
    largest = cv2.dilate(np.where(counts, numbers, 0).astype(np.uint16), window)
    smallest = cv2.erode(np.where(counts, numbers, 65535).astype(np.uint16), window)
    inside = largest != smallest
    for edge in (inside[:width], inside[-width:], inside[:, :width], inside[:, -width:]):
        edge[:] = True
    return inside & counts


def boundary_areas(
    label: np.ndarray, predicted: np.ndarray, classes: int, counts: np.ndarray | None = None
) -> np.ndarray:
    """Return intersection and union of the bands of each class, (2, C) pixels.

    Args:
        label: (H, W) true class numbers.
        predicted: (H, W) predicted ones.
        classes: C.
        counts: (H, W) bool, False where the label is unknown. Those pixels are in no band, and make none.
    """
    width = band_width(*label.shape)
    true_band, own_band = band(label, width, counts), band(predicted, width, counts)
    both = true_band & own_band & (label == predicted)
    intersection, true_area, own_area = (
        np.bincount(numbers.astype(np.int64), minlength=classes)
        for numbers in (label[both], label[true_band], predicted[own_band])
    )
    return np.stack([intersection, true_area + own_area - intersection])
