"""Cityscapes' 19 train classes: their names, their colours and how their surfaces look."""

from collections.abc import Sequence

import numpy as np

# fmt: off
CLASSES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign', 'vegetation',
    'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION,
 TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(19)
IGNORED = 255
PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32))
# Contrast of each class's texture: grain of a pixel, mottle of a few, streaks along the ground.
TEXTURE = (
    (.04, .02, .05), (.04, .02, .05), (.03, .04, .01), (.05, .05, .02), (.03, .03, 0), (.03, .02, 0),
    (.02, 0, 0), (.02, .02, 0), (.12, .13, 0), (.10, .06, .10), (0, 0, 0), (.03, .06, 0), (.03, .06, 0),
    (.02, .02, 0), (.02, .03, 0), (.02, .02, 0), (.02, .02, 0), (.03, .03, 0), (.03, .03, 0))
# fmt: on


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) to their Cityscapes colours (H, W, 3), black where a pixel is ignored."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(PALETTE)] = PALETTE
    return table[labels]


def contact_sheet(scenes: Sequence[tuple[np.ndarray, np.ndarray]], columns: int = 2) -> np.ndarray:
    """Images (H, W, 3) beside their coloured labels (H, W), so many scenes to a row, as RGB."""
    tiles = [np.hstack((image, colour_labels(labels))) for image, labels in scenes]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
