"""Procedural street scenes on disk, in Cityscapes' own layout and 19 train classes.

A scene is a small three-dimensional street: every object has its place in metres and is drawn far
to near through one pinhole camera, so that scale, occlusion and haze agree with each other. The
axes are x to the right, y up and z ahead; the camera stands ``eye`` metres above the origin.

The canvas has four channels, red, green, blue and the trainId, and one drawing call fills all of
them: the label of a pixel is that of the shape drawn there, by construction. What is not a shape
(texture, shadow, haze, blur, noise) changes the first three alone.
"""

from .labels import CLASSES, IGNORED, PALETTE, ROAD, SKY, colour_labels, contact_sheet
from .scene import draw_scene
from .writer import GENERATOR_VERSION, MANIFEST, scene_paths, scene_rng, write_dataset

__all__ = [
    'CLASSES',
    'GENERATOR_VERSION',
    'IGNORED',
    'MANIFEST',
    'PALETTE',
    'ROAD',
    'SKY',
    'colour_labels',
    'contact_sheet',
    'draw_scene',
    'scene_paths',
    'scene_rng',
    'write_dataset',
]
