"""Procedural street scenes on disk, in Cityscapes' own layout and 19 train classes.

A scene is a small three-dimensional street: every object has its place in metres and is drawn far
to near through one pinhole camera, so that scale, occlusion and haze agree with each other. The
axes are x to the right, y up and z ahead; the camera stands ``eye`` metres above the origin.

The canvas has four channels, red, green, blue and the trainId, and one drawing call fills all of
them: the label of a pixel is that of the shape drawn there, by construction. What is not a shape
(texture, shadow, haze, blur, noise) changes the first three alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

GENERATOR_VERSION = 2  # raise it with every change that alters a pixel
MANIFEST = 'street_scenes.json'
SPLITS = ('train', 'val')
MIN_SIZE, MAX_SIZE = 32, 8192
FAR = 100.0  # metres; beyond them is the skyline

# fmt: off
CLASSES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
    'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train',
    'motorcycle', 'bicycle')
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION,
 TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(19)
IGNORED = 255
PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32))
# Contrast of each class's texture: grain of a pixel, mottle of a few, streaks along the ground.
TEXTURE = (
    (.04, .02, .05), (.04, .02, .05), (.03, .04, .01), (.05, .05, .02), (.03, .03, 0),
    (.03, .02, 0), (.02, 0, 0), (.02, .02, 0), (.12, .13, 0), (.10, .06, .10), (0, 0, 0),
    (.03, .06, 0), (.03, .06, 0), (.02, .02, 0), (.02, .03, 0), (.02, .02, 0), (.02, .02, 0),
    (.03, .03, 0), (.03, .03, 0))

RUBBER, GLASS, STEEL = (26, 26, 28), (48, 58, 68), (112, 114, 116)
PAINT, LAMP = (228, 228, 222), (246, 240, 220)
RED, AMBER, GREEN, BLUE = (205, 30, 32), (236, 186, 44), (60, 220, 120), (30, 70, 160)
CARS = (
    (30, 31, 34), (62, 64, 68), (92, 94, 98), (150, 152, 155), (225, 226, 228), (150, 28, 30),
    (32, 52, 110), (52, 78, 66), (176, 150, 104), (206, 120, 40), (96, 40, 52), (70, 110, 150))
COACHES = (
    (222, 178, 40), (190, 40, 38), (226, 226, 224), (44, 98, 84), (56, 84, 140), (150, 152, 156),
    (210, 110, 40))
MASONRY = (
    (176, 160, 138), (150, 92, 74), (196, 184, 160), (134, 132, 130), (206, 200, 190),
    (112, 104, 98), (184, 138, 100), (158, 168, 172), (120, 76, 64), (96, 100, 108))
ROOFS = ((120, 62, 50), (84, 82, 84), (70, 56, 50))
TIMBER = ((132, 98, 66), (70, 76, 74), (216, 214, 206), (52, 84, 60), (128, 128, 130))
LEAVES = ((72, 98, 46), (96, 112, 50), (54, 82, 50), (84, 104, 60), (122, 118, 54), (150, 110, 50))
CLOTHES = (
    (34, 36, 44), (60, 70, 96), (120, 40, 42), (186, 182, 172), (70, 84, 60), (150, 120, 84),
    (200, 160, 50), (44, 86, 130), (96, 96, 98), (170, 80, 110), (226, 226, 226), (70, 50, 42))
SKIN = ((222, 180, 150), (168, 120, 88), (108, 74, 54))
# fmt: on

Colour = Sequence[float]
Ink = tuple[float, float, float, float]
Shape = np.ndarray | Sequence[Any]  # corners (N, 2), or several shapes of as many corners (M, N, 2)
Details = Sequence[tuple[Colour, Shape]]


class Weather(NamedTuple):
    """The light of a scene."""

    zenith: Colour
    horizon: Colour  # also the colour of the haze
    ambient: Colour  # gain of each channel
    contrast: float  # what the sun adds to a face that looks at it
    visibility: float  # metres after which 63 % of a colour is haze
    cloud: float
    lamps: float  # share of the windows that are lit


WEATHERS = (
    Weather((92, 142, 210), (206, 220, 232), (1.0, 1.0, 1.0), 0.5, 320, 0.45, 0.0),  # clear
    Weather((176, 180, 186), (200, 204, 210), (0.94, 0.96, 0.98), 0.14, 200, 0.5, 0.1),  # overcast
    Weather((74, 78, 128), (226, 160, 122), (0.64, 0.54, 0.55), 0.3, 220, 0.6, 0.5),  # dusk
    Weather((188, 190, 192), (188, 190, 192), (0.9, 0.9, 0.9), 0.08, 80, 0.1, 0.4),  # mist
)


class Side(NamedTuple):
    """One side of the street: its sign (left -1, right 1), and the x where its bands begin."""

    sign: int
    kerb: float
    walk: float  # the sidewalk begins here: at the kerb, or behind a grass verge
    line: float  # private ground begins here
    parking: bool


class Street(NamedTuple):
    """The cross-section of the street, and how far ahead another one crosses it."""

    sides: tuple[Side, Side]
    lanes: tuple[float, ...]  # centres of the oncoming lanes; the camera's own is at x = 0
    tram: float | None  # centre of the rails
    crossing: float  # far beyond the scene if there is none


class Body(NamedTuple):
    """A vehicle, or a part of one: a side profile extruded over the width. Metres from the rear.

    Details are (colour, corners), in (s, y) on the sides and in (w, y) on the rear and the front,
    with s from the rear, w from the middle to the right, y from the ground.
    """

    label: int
    length: float
    width: float
    paint: Colour
    profile: Shape  # from the bottom of the rear, over the roof, to the bottom of the front
    glass: tuple[int, ...] = ()  # edges of the profile that are windows
    sides: Details = ()
    rear: Details = ()
    front: Details = ()
    wheels: tuple[float, ...] = ()
    radius: float = 0.34


class Stage:
    """The canvas of one scene, with its camera, its light and what waits to be drawn."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.shadow = np.zeros((height, width), np.uint8)
        self.items: list[tuple[float, float, Callable[[], None]]] = []
        self.focal = height * rng.uniform(1.05, 1.5)
        self.eye = rng.uniform(1.3, 2.3)
        self.centre = width * rng.uniform(0.38, 0.62)
        self.horizon = height * rng.uniform(0.4, 0.52)
        self.bend = rng.uniform(-0.0012, 0.0012)
        weather = WEATHERS[rng.choice(len(WEATHERS), p=(0.45, 0.27, 0.14, 0.14))]
        warmth = rng.uniform(-0.07, 0.07)
        self.light = weather._replace(
            zenith=vary(rng, weather.zenith),
            horizon=vary(rng, weather.horizon, 0.08),
            ambient=np.multiply(weather.ambient, (1 + warmth, 1.0, 1 - warmth)).tolist(),
            cloud=weather.cloud * rng.uniform(0, 2),
        )
        sun = rng.uniform((0.3, 0.5, -0.7), (0.9, 1.0, 0.5)) * (rng.choice((-1, 1)), 1, 1)
        self.sun = sun / np.linalg.norm(sun)

    def project(self, x: Any, y: Any, z: Any) -> np.ndarray:
        """Places in metres, each coordinate (...), to sixteenths of pixels (..., 2), for cv2."""
        z = np.maximum(z, 0.8)
        scale = 16 * self.focal / z
        v = 16 * self.horizon + scale * (self.eye - y)
        points = np.empty((*v.shape, 2), np.int32)
        points[..., 0] = 16 * self.centre + scale * x + (16 * self.focal * self.bend) * z
        points[..., 1] = v
        return points

    def sees(self, x: float, z: float, reach: float = 0.0) -> bool:
        """Whether something at (x, z) that reaches so far to its sides can be in the picture."""
        scale = self.focal / z
        u = self.centre + scale * (x + self.bend * z * z)
        return -reach * scale <= u <= self.width + reach * scale

    def shade(self, x: float, y: float, z: float) -> float:
        """The brightness of a face with this unit normal."""
        sunlit = max(0.0, x * self.sun[0] + y * self.sun[1] + z * self.sun[2])
        return 1.0 + self.light.contrast * (sunlit - 0.55)

    def ink(self, label: int, colour: Colour, z: float = 0.0, shade: float = 1.0) -> Ink:
        """The four channels of a colour in the scene's light, through z metres of its haze."""
        clear = math.exp(-z / self.light.visibility)
        haze, gain = self.light.horizon, self.light.ambient
        return (
            min(255.0, colour[0] * gain[0] * shade) * clear + haze[0] * (1 - clear),
            min(255.0, colour[1] * gain[1] * shade) * clear + haze[1] * (1 - clear),
            min(255.0, colour[2] * gain[2] * shade) * clear + haze[2] * (1 - clear),
            label,
        )

    def fill(self, points: np.ndarray, ink: Sequence[float]) -> None:
        """Fill one polygon (N, 2) or several (M, N, 2), in sixteenths of a pixel."""
        if points.size:
            cv2.fillPoly(self.pixels, [points] if points.ndim == 2 else list(points), ink, shift=4)

    def ground(self, label: int, colour: Colour, shape: Shape, gain: float = 1.0) -> None:
        """Fill shapes that lie flat, corners in (x, z). Haze comes later, in `settle_ground`."""
        corners = np.asarray(shape, float)
        ink = self.ink(label, colour, 0.0, gain * self.shade(0, 1, 0))
        self.fill(self.project(corners[..., 0], 0.0, corners[..., 1]), ink)

    def strip(self, label: int, colour: Colour, x0: float, x1: float, gain: float = 1.0) -> None:
        """Fill the ground between two lines along the street, out to the horizon."""
        z = np.geomspace(1.0, 400.0, 16)
        edges = [np.stack((np.full(16, x), z), axis=-1) for x in (x0, x1)]
        self.ground(label, colour, np.concatenate((edges[0], edges[1][::-1])), gain)

    def cast(self, x: float, z: float, width: float, length: float, height: float) -> None:
        """Add the shadow of a box, the middle of its nearest edge at (x, z)."""
        reach = min(height, 12.0) / self.sun[1] if self.light.contrast > 0.2 else 0.0
        base = np.array(rectangle(x - width / 2, z, x + width / 2, z + length))
        ground = np.concatenate((base, base - reach * self.sun[::2]))
        hull = cv2.convexHull(self.project(ground[:, 0], 0.0, ground[:, 1]))
        cv2.fillConvexPoly(self.shadow, hull, 255, shift=4)

    def put(self, strip: float, z: float, draw: Callable[..., None], *args: Any) -> None:
        """Have something drawn later, when all that is behind it has been drawn."""
        self.items.append((strip, z, partial(draw, self, *args)))


class Panel(NamedTuple):
    """An upright plane in the street, to draw on in metres: a along it from (x, z), b upwards."""

    stage: Stage
    x: float
    z: float
    along: tuple[float, float]  # the step in (x, z) for each metre of a
    shade: float
    distance: float  # for the haze and for the width of lines
    size: float = 1.0  # the step upwards for each metre of b

    def points(self, shape: Shape) -> np.ndarray:
        """Corners (..., 2) of (a, b) to pixels (..., 2) in sixteenths."""
        corners = np.asarray(shape, float)
        a, b = corners[..., 0], corners[..., 1]
        x, z = self.x + a * self.along[0], self.z + a * self.along[1]
        return self.stage.project(x, b * self.size, z)

    def ink(self, label: int, colour: Colour, gain: float = 1.0) -> Ink:
        """The four channels of a colour on this panel."""
        return self.stage.ink(label, colour, self.distance, gain * self.shade)

    def fill(self, label: int, colour: Colour, shape: Shape, gain: float = 1.0) -> None:
        """Fill one shape (N, 2) or several (M, N, 2)."""
        self.stage.fill(self.points(shape), self.ink(label, colour, gain))

    def pixels(self, metres: float) -> float:
        """A length on the panel, in pixels."""
        return metres * self.size * self.stage.focal / self.distance

    def disc(self, label: int, colour: Colour, at: Shape, radius: float, gain: float = 1.0) -> None:
        """Fill a circle."""
        centre, size = self.points(at).tolist(), max(8, round(16 * self.pixels(radius)))
        cv2.circle(self.stage.pixels, centre, size, self.ink(label, colour, gain), -1, shift=4)

    def line(self, label: int, colour: Colour, path: Shape, wide: float, gain: float = 1.0) -> None:
        """Draw a line, one pixel wide at least."""
        ink, thickness = self.ink(label, colour, gain), max(1, round(self.pixels(wide)))
        cv2.polylines(self.stage.pixels, [self.points(path)], False, ink, thickness, shift=4)

    def wheel(self, label: int, a: float, radius: float, turn: float, solid: bool) -> None:
        """Draw a wheel that stands at a, as wide as ``turn`` times its height."""
        centre, size = (self.points((a, radius)) // 16).tolist(), self.pixels(radius)
        axes = (max(1, round(size * turn)), max(1, round(size)))
        ink, thickness = self.ink(label, RUBBER), -1 if solid else max(1, round(self.pixels(0.06)))
        cv2.ellipse(self.stage.pixels, centre, axes, 0, 0, 360, ink, thickness)


def spot(stage: Stage, x: float, z: float, size: float = 1.0) -> Panel:
    """A panel at (x, z) that faces the camera, for things without depth, so much enlarged."""
    return Panel(stage, x, z, (size, 0.0), 1.0, z, size)


def front(stage: Stage, side: int, x: float, z0: float, z1: float) -> Panel:
    """A panel along the street from z0 to z1, on its left (-1) or right (1) side."""
    return Panel(stage, x, z0, (0.0, 1.0), stage.shade(-side, 0, 0), 0.5 * (z0 + z1))


def end(stage: Stage, side: int, x: float, z: float) -> Panel:
    """A panel across the street, from x outwards."""
    return Panel(stage, x, z, (side, 0.0), stage.shade(0, 0, -1), z)


def vary(rng: np.random.Generator, colour: Colour, spread: float = 0.12) -> list[float]:
    """A colour near this one: brighter or darker, and a little off in hue."""
    gain, shift = rng.uniform(1 - spread, 1 + spread), rng.uniform(-8, 8, 3).tolist()
    return [max(0.0, c * gain + s) for c, s in zip(colour, shift, strict=True)]


def pick(rng: np.random.Generator, colours: Sequence[Colour]) -> list[float]:
    """One of these colours, varied."""
    return vary(rng, colours[int(rng.integers(len(colours)))])


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """The corners of an upright rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def rectangles(x0: Any, y0: Any, x1: Any, y1: Any) -> np.ndarray:
    """The corners (M, 4, 2) of M upright rectangles; each argument a number or an array (M,)."""
    corners = np.empty((*np.broadcast(x0, y0, x1, y1).shape, 4, 2))
    corners[:, 0, 0] = corners[:, 3, 0] = x0
    corners[:, 1, 0] = corners[:, 2, 0] = x1
    corners[:, 0, 1] = corners[:, 1, 1] = y0
    corners[:, 2, 1] = corners[:, 3, 1] = y1
    return corners


def smooth_noise(stage: Stage, rows: int, columns: int) -> np.ndarray:
    """Noise (H, W), normal at rows x columns points and linear between them."""
    seeds = stage.rng.standard_normal((max(2, rows), max(2, columns)), dtype=np.float32)
    return cv2.resize(seeds, (stage.width, stage.height), interpolation=cv2.INTER_LINEAR)


# -------------------------------------------------------------------------------- sky and ground


def draw_sky(stage: Stage) -> None:
    """Cover the canvas with a sky, its clouds, and what is too far away to have a place."""
    light, height, width = stage.light, stage.height, stage.width
    fall = np.clip(np.arange(height, dtype=np.float32) / stage.horizon, 0, 1)[:, None, None]
    zenith, low, ambient = np.array((light.zenith, light.horizon, light.ambient), np.float32)
    sky = zenith + (low - zenith) * fall
    puffs = smooth_noise(stage, height // 10, width // 24)
    puffs += 0.5 * smooth_noise(stage, height // 4, width // 10)
    amount = np.clip(puffs * 0.7 + light.cloud - 0.5, 0, 0.8)[..., None]
    white = 0.5 * low + 122 * ambient
    stage.pixels[..., :3] = np.clip(sky + (white - sky) * amount, 0, 255)
    stage.pixels[..., 3] = SKY
    draw_skyline(stage, 110.0)


def draw_skyline(stage: Stage, distance: float) -> None:
    """Set roofs and trees along the horizon, so far away that only their outlines count."""
    rng, metre = stage.rng, stage.focal / distance
    panel = Panel(stage, -stage.bend * distance**2, distance, (1, 0), 1.0, distance)
    a, last = -stage.centre / metre, (stage.width - stage.centre) / metre
    while a < last:
        step, rise = rng.uniform(6, 25), rng.uniform(1.5, 10)
        if rng.random() < 0.45:
            panel.fill(BUILDING, pick(rng, MASONRY), rectangle(a, 0, a + step, stage.eye + rise))
        else:
            draw_leaves(panel, pick(rng, LEAVES), a, stage.eye, step, rise)
        a += 0.8 * step


def draw_ground(stage: Stage, street: Street) -> None:
    """Draw all that lies flat: private ground, sidewalks, verges, both streets, kerbs."""
    rng, z = stage.rng, street.crossing
    asphalt, paving = vary(rng, (92, 92, 95), 0.3), vary(rng, (148, 142, 134), 0.22)
    grass, stone = vary(rng, (104, 122, 62), 0.2), vary(rng, (176, 174, 168))
    yard, label = pick(rng, ((128, 108, 80), grass)), TERRAIN
    if rng.random() < 0.25:
        yard, label = paving, SIDEWALK
    stage.ground(label, yard, rectangle(-999, 1, 999, 999))
    for side in street.sides:
        if side.walk != side.kerb:
            stage.strip(TERRAIN, grass, side.kerb, side.walk)
        stage.strip(SIDEWALK, paving, side.walk, side.line)
        slabs = 2.5 * 1.13 ** np.arange(22)
        joints = rectangles(side.walk, slabs, side.line, slabs * 1.015)
        stage.ground(SIDEWALK, paving, joints, 0.82)
    stage.strip(ROAD, asphalt, street.sides[0].kerb, street.sides[1].kerb)
    if z < FAR:
        stage.ground(ROAD, asphalt, rectangle(-999, z - 3.5, 999, z + 3.5))
    ink = stage.ink(SIDEWALK, stone, 0, stage.shade(0, 1, 0))
    for side in street.sides:
        for start, stop in ((1.0, z - 3.5), (z + 3.5, z + 60)):
            at = np.geomspace(start, stop, 16)
            low = stage.project(side.kerb, 0.0, at)
            high = stage.project(side.kerb + 0.25 * side.sign, 0.14, at)
            stage.fill(np.concatenate((low, high[::-1])), ink)
    draw_wear(stage, street, asphalt)
    draw_markings(stage, street)


def draw_wear(stage: Stage, street: Street, asphalt: Colour) -> None:
    """Draw patches of other asphalt, and the rails of the tram."""
    rng = stage.rng
    for _ in range(rng.integers(1, 6)):
        x, z = rng.uniform(street.sides[0].kerb, street.sides[1].kerb - 2), rng.uniform(3.5, 25)
        patch = rectangle(x, z, x + rng.uniform(0.5, 2), z + rng.uniform(0.7, 5))
        stage.ground(ROAD, asphalt, patch, rng.choice((0.82, 0.9, 1.1)))
    if street.tram is not None:
        for rail in (street.tram - 0.72, street.tram + 0.72):
            stage.strip(ROAD, asphalt, rail - 0.12, rail + 0.12, 0.75)
            stage.strip(ROAD, STEEL, rail - 0.04, rail + 0.04, 1.3)


def draw_markings(stage: Stage, street: Street) -> None:
    """Draw lane lines, and before a crossing the zebra and the stop line."""
    rng, left, right = stage.rng, street.sides[0].kerb, street.sides[1].kerb
    paint = vary(rng, PAINT, 0.2)
    dashes = rng.uniform(0, 3) + np.arange(1.0, 110, 6.0)
    for x in (lane + 1.65 for lane in street.lanes):
        if rng.random() < 0.2:
            stage.strip(ROAD, paint, x - 0.08, x + 0.08)
        else:
            stage.ground(ROAD, paint, rectangles(x - 0.08, dashes, x + 0.08, dashes + 2.8))
    if street.sides[1].parking:
        stage.strip(ROAD, paint, right - 2.25, right - 2.15)
    if street.crossing < FAR:
        bars, z = np.arange(left + 0.3, right - 0.6, 1.05), street.crossing
        stage.ground(ROAD, paint, rectangles(bars, z - 7, bars + 0.55, z - 4.2))
        stage.ground(ROAD, paint, rectangle(-1.65, z - 8.6, 1.65, z - 8.2))


def settle_ground(stage: Stage) -> None:
    """Lay shadows and haze on the ground, before anything stands on it."""
    top = math.ceil(stage.horizon)
    rows = np.arange(top, stage.height, dtype=np.float32) - stage.horizon + 0.5
    clear = np.exp(-stage.focal * stage.eye / rows / stage.light.visibility)[:, None, None]
    dark = cv2.GaussianBlur(stage.shadow[top:], (0, 0), 0.6 + stage.height / 200)[..., None]
    depth = np.float32((0.55 if stage.light.contrast > 0.2 else 0.42) / 255)
    haze = np.array(stage.light.horizon, np.float32)
    ground = stage.pixels[top:, :, :3]
    ground[:] = haze + (ground * (1 - depth * dark) - haze) * clear


# -------------------------------------------------------------------------- what lines the street


def draw_building(stage: Stage, side: int, x: float, z0: float, z1: float, height: float) -> None:
    """Draw a house: the end wall, the facade along the street, and a pitched roof on a low one."""
    rng, length, depth = stage.rng, z1 - z0, 9.0
    wall, roof, trim = pick(rng, MASONRY), pick(rng, ROOFS), vary(rng, (190, 184, 172), 0.25)
    gable, facade = end(stage, side, x, z0), front(stage, side, x, z0, z1)
    if height < 9 and rng.random() < 0.7:
        gable.fill(BUILDING, wall, [(0, height), (depth / 2, height + 3), (depth, height)], 0.92)
        eave = facade.points([(0, height), (length, height)])
        middle = front(stage, side, x + side * depth / 2, z0, z1)
        ridge = middle.points([(length, height + 3), (0, height + 3)])
        ink = stage.ink(BUILDING, roof, middle.distance, stage.shade(-side * 0.55, 0.83, 0))
        stage.fill(np.concatenate((eave, ridge)), ink)
    base, pane = rng.uniform(0.4, 3.2), vary(rng, GLASS, 0.3)
    for panel, width in ((gable, depth), (facade, length)):
        panel.fill(BUILDING, wall, rectangle(0, 0, width, height))
        if panel.pixels(1.0) > 2:
            panel.fill(BUILDING, wall, rectangle(0, 0, width, base), 0.8)
            panel.fill(BUILDING, roof, rectangle(0, height - 0.5, width, height))
            draw_windows(panel, width, height, pane, trim)
    door = rng.uniform(0.5, max(0.6, length - 2))
    facade.fill(BUILDING, pick(rng, TIMBER + CARS), rectangle(door, 0, door + 1.1, 2.3), 0.8)
    if height > 9 and rng.random() < 0.4:
        panes = np.arange(0.6, length - 1.6, 1.7)
        facade.fill(BUILDING, GLASS, rectangles(panes, 0.5, panes + 1.5, 2.5), 1.3)
        facade.fill(BUILDING, pick(rng, COACHES), rectangle(0.5, 2.4, length - 0.5, 3.1))


def draw_windows(panel: Panel, width: float, height: float, pane: Colour, trim: Colour) -> None:
    """Draw a grid of windows: dark ones, some that mirror the sky, and lit ones towards night."""
    stage, rng = panel.stage, panel.stage.rng
    pitch, span, tall = rng.uniform(2.0, 3.6), rng.uniform(0.8, 1.8), rng.uniform(1.2, 1.7)
    columns, floors = int(width / pitch), int((height - 1) / 3)
    if not columns or not floors:
        return
    a = 0.5 + pitch * np.tile(np.arange(columns), floors)
    b = 1.1 + 3.0 * np.repeat(np.arange(floors), columns)
    if panel.pixels(1.0) > 4:
        ledges = 3.0 * np.arange(1, floors + 1)
        panel.fill(BUILDING, trim, rectangles(0, ledges - 0.1, width, ledges), 0.8)
        panel.fill(BUILDING, trim, rectangles(a - 0.1, b - 0.15, a + span + 0.1, b + tall))
    panes, chance = rectangles(a, b, a + span, b + tall), rng.random(len(a))
    lit = chance < 0.7 * stage.light.lamps
    mirror = ~lit & (chance > 0.75)
    sky = [0.5 * (p + h) for p, h in zip(pane, stage.light.horizon, strict=True)]
    panel.fill(BUILDING, pane, panes)
    panel.fill(BUILDING, sky, panes[mirror])
    panel.fill(BUILDING, (250, 205, 120), panes[lit], 1.8)


def draw_wall(stage: Stage, side: int, x: float, z0: float, z1: float) -> None:
    """Draw a free-standing wall with courses, joints and a cap."""
    rng, length, colour = stage.rng, z1 - z0, pick(stage.rng, MASONRY)
    height, panel = rng.uniform(1.2, 3.2), front(stage, side, x, z0, z1)
    end(stage, side, x, z0).fill(WALL, colour, rectangle(0, 0, 0.35, height))
    panel.fill(WALL, colour, rectangle(0, 0, length, height))
    if panel.pixels(0.4) > 2:
        courses = np.arange(0.4, height - 0.2, 0.4)
        panel.fill(WALL, colour, rectangles(0, courses, length, courses + 0.03), 0.84)
    joints = np.arange(0, length, 2.5)
    panel.fill(WALL, colour, rectangles(joints, 0, joints + 0.1, height), 0.84)
    panel.fill(WALL, colour, rectangle(0, height - 0.15, length, height + 0.05), 1.25)


def draw_fence(stage: Stage, side: int, x: float, z0: float, z1: float) -> None:
    """Draw a fence to look through: pickets, or crossed laths, between posts and rails."""
    rng, length, colour = stage.rng, z1 - z0, pick(stage.rng, TIMBER)
    height, gap = rng.uniform(0.9, 1.9), rng.uniform(0.25, 0.45)
    panel = front(stage, side, x, z0, z1)
    a, posts = np.arange(0, length, gap), np.arange(0, length, 2.4)
    for slant in (-gap, gap) if rng.random() < 0.35 else (0.0,):
        bars = rectangles(a, 0.1, a + 0.35 * gap, height)
        bars[:, 2:, 0] += slant
        panel.fill(FENCE, colour, bars)
    panel.fill(FENCE, colour, rectangles(0, (0.2, height - 0.25), length, (0.3, height - 0.15)))
    panel.fill(FENCE, colour, rectangles(posts, 0, posts + 0.15, height + 0.1), 0.85)


def draw_hedge(stage: Stage, side: int, x: float, z0: float, z1: float) -> None:
    """Draw a clipped hedge."""
    rng, colour, height = stage.rng, pick(stage.rng, LEAVES[:4]), stage.rng.uniform(0.9, 2.0)
    end(stage, side, x, z0).fill(VEGETATION, colour, rectangle(0, 0, 0.8, height), 0.85)
    panel = front(stage, side, x, z0, z1)
    panel.fill(VEGETATION, colour, rectangle(0, 0, z1 - z0, height))
    for a in np.arange(0, z1 - z0, 0.7):
        at, gain = (a, rng.uniform(0.3, 1) * height), rng.uniform(0.8, 1.2)
        panel.disc(VEGETATION, colour, at, 0.3, gain)


def draw_leaves(panel: Panel, colour: Colour, a: float, b: float, wide: float, tall: float) -> None:
    """Draw a crown: discs inside an ellipse of these half axes, brighter above and to the sun."""
    stage, rng = panel.stage, panel.stage.rng
    count = int(np.clip(1.3 * panel.pixels(wide), 5, 40))
    angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    da, db = reach * np.cos(angle), reach * np.sin(angle)
    glow = 0.95 + rng.uniform(-0.13, 0.13, count) + 0.12 * db
    glow += 0.3 * stage.light.contrast * (da * stage.sun[0] + db)
    order = np.argsort(glow)
    centres = panel.points(np.stack((a + wide * da, b + tall * db), -1)[order])
    radii = 8 + 16 * panel.pixels(min(wide, tall)) * rng.uniform(0.2, 0.4, count)
    inks = np.outer(glow[order], panel.ink(VEGETATION, colour))
    inks[:, 3] = VEGETATION
    leaves = zip(centres.tolist(), radii.astype(int).tolist(), inks.tolist(), strict=True)
    for centre, radius, ink in leaves:
        cv2.circle(stage.pixels, centre, radius, ink, -1, shift=4)


def draw_tree(stage: Stage, x: float, z: float, height: float) -> None:
    """Draw a tree: trunk, fork and crown."""
    rng, panel = stage.rng, spot(stage, x, z)
    bark, trunk = vary(rng, (84, 68, 52), 0.25), height * rng.uniform(0.3, 0.45)
    crown = 0.5 * (height - trunk) + 0.3
    panel.line(VEGETATION, bark, [(0, 0), (0, trunk)], 0.3)
    panel.line(VEGETATION, bark, [(-0.5, trunk + 1), (0, 0.85 * trunk), (0.6, trunk + 1)], 0.14)
    wide, middle = crown * rng.uniform(0.75, 1.1), trunk + 0.85 * crown
    draw_leaves(panel, pick(rng, LEAVES), 0, middle, wide, crown)


def draw_bush(stage: Stage, x: float, z: float, height: float) -> None:
    """Draw a bush."""
    panel, colour = spot(stage, x, z, height), pick(stage.rng, LEAVES[:4])
    draw_leaves(panel, colour, 0, 0.4, 0.7, 0.45)


# ------------------------------------------------------------------------------- street furniture


def draw_lamp(stage: Stage, x: float, z: float, side: int) -> None:
    """Draw a street lamp, its arm over the road."""
    panel, steel, top = spot(stage, x, z), vary(stage.rng, STEEL, 0.35), stage.rng.uniform(5, 8)
    panel.line(POLE, steel, [(0, 0), (0, top)], 0.16)
    panel.line(POLE, steel, [(0, top), (-1.6 * side, top + 0.25)], 0.1)
    panel.line(POLE, steel, [(-1.6 * side, top + 0.2), (-2.2 * side, top)], 0.18)


def draw_bollard(stage: Stage, x: float, z: float) -> None:
    """Draw a bollard."""
    spot(stage, x, z).fill(POLE, vary(stage.rng, STEEL, 0.3), rectangle(-0.07, 0, 0.07, 0.95))


def draw_bin(stage: Stage, x: float, z: float) -> None:
    """Draw a bin, which belongs to no class."""
    box = rectangle(-0.3, 0, 0.3, stage.rng.uniform(0.8, 1.4))
    spot(stage, x, z).fill(IGNORED, pick(stage.rng, CARS), box)


def draw_sign(stage: Stage, x: float, z: float) -> None:
    """Draw a traffic sign on its pole: round, triangular, square, on its corner, or a board."""
    panel, top = spot(stage, x, z), 2.5
    panel.line(POLE, STEEL, [(0, 0), (0, top)], 0.09)
    kind, size = int(stage.rng.integers(6)), max(0.42, 1.6 / panel.pixels(1.0))
    if kind == 0:
        panel.disc(TRAFFIC_SIGN, RED, (0, top), size)
        panel.disc(TRAFFIC_SIGN, PAINT, (0, top), 0.6 * size)
        return
    outline, outer, inner = (
        ([(0, 1.1), (1.05, -0.8), (-1.05, -0.8)], RED, PAINT),
        (rectangle(-1, -1, 1, 1), BLUE, PAINT),
        ([(0, 1.15), (1.15, 0), (0, -1.15), (-1.15, 0)], PAINT, AMBER),
        (rectangle(-1.9, -0.8, 1.9, 0.8), BLUE, PAINT),
        (rectangle(-1.9, -0.8, 1.9, 0.8), AMBER, RUBBER),
    )[kind - 1]
    for colour, share in ((outer, 1.0), (inner, 0.5)):
        panel.fill(TRAFFIC_SIGN, colour, np.multiply(outline, share * size) + (0, top), 1.1)


def draw_traffic_light(stage: Stage, x: float, z: float, side: int) -> None:
    """Draw a traffic light, at times with a second one on an arm over the road."""
    rng, panel, heads = stage.rng, spot(stage, x, z), [(0.0, 2.7)]
    steel, shown = vary(rng, STEEL, 0.4), rng.integers(3)
    panel.line(POLE, steel, [(0, 0), (0, 2.7)], 0.14)
    if rng.random() < 0.5:
        arm = -side * rng.uniform(2.5, 4.5)
        panel.line(POLE, steel, [(0, 0), (0, 5.3), (arm, 5.3)], 0.15)
        heads.append((arm, 4.9))
    wide, tall = max(0.22, 1.2 / panel.pixels(1.0)), max(0.6, 3.0 / panel.pixels(1.0))
    for a, b in heads:
        panel.fill(TRAFFIC_LIGHT, (34, 36, 36), rectangle(a - wide, b - tall, a + wide, b + tall))
        for number, lamp in enumerate((RED, AMBER, GREEN)):
            at = (a, b + (1 - number) * 0.62 * tall)
            panel.disc(TRAFFIC_LIGHT, lamp, at, 0.6 * wide, 1.5 if number == shown else 0.3)


# ------------------------------------------------------------------------------- people and cycles


def draw_torso(panel: Panel, label: int, hip: float, a: float, lean: float) -> None:
    """Draw a coat with its arms, and a head, above the hips at (a, hip)."""
    rng, neck = panel.stage.rng, (a + lean, hip + 0.58)
    coat, wide = pick(rng, CLOTHES), rng.uniform(0.17, 0.25)
    shoulders = [(neck[0] + wide, neck[1]), (neck[0] - wide, neck[1])]
    waist = [(a - 0.8 * wide, hip - 0.06), (a + 0.8 * wide, hip - 0.06)]
    panel.fill(label, coat, waist + shoulders)
    for way, shoulder in zip((1, -1), shoulders, strict=True):
        hand = (a + lean + 0.26 * way, hip + rng.uniform(-0.15, 0.1))
        panel.line(label, coat, [shoulder, hand], 0.1, 0.8)
    panel.disc(label, pick(rng, CLOTHES), (neck[0], neck[1] + 0.21), 0.135)
    panel.disc(label, pick(rng, SKIN), (neck[0], neck[1] + 0.14), 0.09)


def draw_person(stage: Stage, x: float, z: float) -> None:
    """Draw somebody in mid-step, now and then a child."""
    rng = stage.rng
    panel = spot(stage, x, z, rng.uniform(0.88, 1.08) if rng.random() < 0.9 else 0.65)
    trousers, step = pick(rng, CLOTHES), rng.uniform(0.02, 0.3)
    for way in (-1, 1):
        panel.line(PERSON, trousers, [(0.08 * way, 0.85), (step * way, 0.03)], 0.15, 0.9)
    draw_torso(panel, PERSON, 0.85, 0.0, rng.uniform(-0.04, 0.04))
    if rng.random() < 0.3:
        panel.disc(PERSON, pick(rng, CLOTHES), (0.28, 0.95), 0.14)


def draw_rider(panel: Panel, a: float, lean: float) -> None:
    """Draw who sits on a cycle."""
    trousers = pick(panel.stage.rng, CLOTHES)
    for way in (-0.09, 0.09):
        leg = [(a, 0.95), (a + way + lean, 0.6), (a + way + 0.4 * lean, 0.22)]
        panel.line(RIDER, trousers, leg, 0.14, 0.9)
    draw_torso(panel, RIDER, 0.95, a, lean)


def draw_bicycle(stage: Stage, x: float, z: float, turn: float, ridden: bool) -> None:
    """Draw a bicycle, from the side (turn 1) to nearly from behind (turn 0.1)."""
    panel, paint, reach = spot(stage, x, z), pick(stage.rng, CARS), 0.55 * turn
    for way in (-1, 1):
        panel.wheel(BICYCLE, way * reach, 0.34, max(turn, 0.2), solid=False)
    crank, seat, head = (-0.1 * reach, 0.34), (-0.3 * reach, 0.9), (0.7 * reach, 1.0)
    tubes = [(-reach, 0.34), crank, head, (reach, 0.34), head, seat, crank, seat, (-reach, 0.34)]
    panel.line(BICYCLE, paint, tubes, 0.06, 1.1)
    grip = 0.25 * (1.1 - turn)
    panel.line(BICYCLE, RUBBER, [(head[0] - grip, 1.0), (head[0] + grip, 1.0)], 0.06)
    if ridden:
        draw_rider(panel, -0.2 * reach, 0.25 * turn)


def draw_motorcycle(stage: Stage, x: float, z: float, turn: float, ridden: bool) -> None:
    """Draw a motorcycle, from the side (turn 1) to nearly from behind (turn 0.1)."""
    panel, reach = spot(stage, x, z), 0.7 * turn
    wide = max(reach, 0.2)
    for way in (-1, 1):
        panel.wheel(MOTORCYCLE, way * reach, 0.32, max(turn, 0.3), solid=True)
    hull = ((-1, 0.75), (-0.6, 0.95), (0.1, 0.8), (0.5, 1.05), (0.8, 0.7), (0.2, 0.25), (-0.5, 0.3))
    panel.fill(MOTORCYCLE, pick(stage.rng, CARS), np.multiply(hull, (wide, 1)), 1.1)
    seat = ((-0.9, 0.95), (0, 0.88), (0, 0.76), (-0.8, 0.8))
    panel.fill(MOTORCYCLE, RUBBER, np.multiply(seat, (wide, 1)))
    grip = 0.32 * (1.15 - turn)
    panel.line(MOTORCYCLE, RUBBER, [(0.45 * reach - grip, 1.1), (0.45 * reach + grip, 1.1)], 0.07)
    panel.disc(MOTORCYCLE, RED, (-0.9 * wide * turn, 0.75), 0.07, 1.2)
    if ridden:
        draw_rider(panel, -0.25 * reach, 0.2 * turn)


# --------------------------------------------------------------------------------------- vehicles


def pair(w0: float, y0: float, w1: float, y1: float) -> np.ndarray:
    """A rectangle on the right half of a vehicle's rear or front, and its mirror image."""
    return rectangles((w0, -w1), y0, (w1, -w0), y1)


def car_bodies(rng: np.random.Generator) -> list[Body]:
    """A hatchback, a saloon or a van."""
    length, half, roof = rng.uniform(3.7, 4.7), rng.uniform(0.82, 0.95), rng.uniform(1.38, 1.95)
    belt, nose = 0.62 * roof, rng.uniform(0.74, 0.82) * length
    boot = rng.choice((0.02, 0.08, 0.2)) * length
    back, screen = boot + 0.1 * length, nose - 0.16 * length
    profile = (
        *((0, 0.3), (0.02, belt), (boot, belt + 0.04), (back, roof), (screen, roof)),
        *((nose, belt + 0.02), (length - 0.08, belt - 0.14), (length, 0.3)),
    )
    low, high, pillar = belt + 0.02, roof - 0.1, 0.5 * (back + screen)
    panes = [
        [(boot + 0.18, low), (back + 0.08, high), (pillar - 0.05, high), (pillar - 0.05, low)],
        [(pillar + 0.05, low), (pillar + 0.05, high), (screen - 0.05, high), (nose - 0.2, low)],
    ]
    under = (
        (RUBBER, pair(half - 0.24, 0, half, 0.34)),
        ((30, 30, 32), rectangle(-half, 0.2, half, 0.42)),
    )
    lamps = pair(half - 0.28, belt - 0.22, half, belt - 0.02)
    plate, grille = rectangle(-0.26, 0.5, 0.26, 0.62), rectangle(-0.5, 0.45, 0.5, 0.62)
    car = Body(CAR, length, 2 * half, pick(rng, CARS), profile, glass=(2, 4))
    return [
        car._replace(
            sides=((GLASS, panes),),
            rear=(*under, (RED, lamps), (PAINT, plate)),
            front=(*under, (LAMP, lamps), (GLASS, grille)),
            wheels=(0.19 * length, 0.8 * length),
        )
    ]


def truck_bodies(rng: np.random.Generator) -> list[Body]:
    """A lorry: its load, and the cab ahead of it."""
    load, height, half = rng.uniform(3.5, 7.5), rng.uniform(2.7, 3.7), rng.uniform(1.1, 1.25)
    paint, floor, top = pick(rng, COACHES + CARS[3:5]), 0.85, min(height - 0.1, 2.8)
    ribs, seam = np.arange(0.5, load, 0.9), [0.75 * c for c in paint]
    tyres = (RUBBER, pair(half - 0.45, 0, half, 0.7))
    box = Body(
        label=TRUCK,
        length=load,
        width=2 * half,
        paint=paint,
        profile=((0, floor), (0, height), (load, height), (load, floor)),
        sides=(
            (seam, rectangles(ribs, floor, ribs + 0.08, height)),
            (STEEL, rectangle(0, 0.5, load, floor)),
        ),
        rear=(
            tyres,
            (GLASS, rectangle(-half, 0.5, half, floor)),
            (RED, pair(half - 0.3, 0.62, half, 0.82)),
            (seam, rectangle(-0.04, floor, 0.04, height)),
        ),
        wheels=(0.8, 1.9),
        radius=0.48,
    )
    window = [(0.7, 1.55), (0.7, top - 0.25), (1.7, top - 0.25), (1.9, 1.55)]
    cab = box._replace(
        length=2.1,
        paint=pick(rng, COACHES + CARS),
        profile=((0, 0.5), (0, top), (1.8, top), (2.05, 1.5), (2.1, 0.5)),
        glass=(2,),
        sides=((GLASS, window),),
        rear=(),
        front=(
            tyres,
            (GLASS, rectangle(-0.6, 0.7, 0.6, 1.2)),
            (LAMP, pair(half - 0.35, 0.7, half, 0.95)),
        ),
        wheels=(1.1,),
    )
    return [box, cab]


def coach_bodies(rng: np.random.Generator, label: int) -> list[Body]:
    """A bus, or the two or three sections of a tram: long boxes with a band of windows."""
    bus, paint, floor = label == BUS, pick(rng, COACHES), 0.35
    if bus:
        length, half, height, low, high, taper = rng.uniform(9, 12), 1.25, 3.1, 1.3, 2.5, 0.0
        skirt = vary(rng, paint, 0.4)
    else:
        length, half, height, low, high, taper = rng.uniform(7, 10), 1.2, 3.5, 1.5, 2.75, 0.35
        skirt = vary(rng, STEEL)
    panes, doors = np.arange(0.3, length - 1.5, 1.5), np.array((0.25, 0.75)) * length
    lean = ((0, floor), (taper / 2, 1.3), (taper, height))
    ends = (
        (RUBBER, rectangle(-half, 0.05, half, floor + 0.15)),
        (GLASS, rectangle(0.15 - half, 1.35, half - 0.15, 2.6)),
        (AMBER, rectangle(-0.7, height - 0.42, 0.7, height - 0.14)),
    )
    lamps = pair(half - 0.45, 0.6, half - 0.1, 0.85)
    body = Body(
        label=label,
        length=length,
        width=2 * half,
        paint=paint,
        profile=(*lean, *((length - s, y) for s, y in lean[::-1])),
        sides=(
            (GLASS, rectangles(panes, low, panes + 1.3, high)),
            (skirt, rectangle(0, floor, length, floor + 0.5)),
            ((70, 76, 82), rectangles(doors, floor + 0.1, doors + 1.2, high)),
        ),
        rear=(*ends, (RED, lamps)),
        front=(*ends, (LAMP, lamps)),
        wheels=(1.8, length - 2.2) if bus else (),
        radius=0.48,
    )
    return [body] * (1 if bus else int(rng.integers(2, 4)))


def draw_body(stage: Stage, body: Body, x: float, z: float, heading: float) -> None:
    """Draw a body, its rear at (x, z): heading 0 drives away from the camera, pi towards it."""
    sin, cos, half, label = math.sin(heading), math.cos(heading), 0.5 * body.width, body.label
    middle = z + 0.5 * body.length * cos
    turn = np.linspace(0, 2 * np.pi, 11)[:-1]
    rim = body.radius * np.stack((np.cos(turn), np.sin(turn)), -1)
    outlines = []
    for way in (-1, 1):
        px, pz = x + way * half * cos, z - way * half * sin
        shade = stage.shade(way * cos, 0, -way * sin)
        panel = Panel(stage, px, pz, (sin, cos), shade, max(1.0, middle))
        outlines.append(panel.points(body.profile))
        if way * (px * cos - pz * sin) >= 0:  # the camera is on the other side
            continue
        stage.fill(outlines[-1], panel.ink(label, body.paint))
        for colour, shape in body.sides:
            panel.fill(label, colour, shape)
        if body.wheels:
            hubs = np.stack((body.wheels, np.full(len(body.wheels), body.radius)), -1)[:, None]
            panel.fill(label, RUBBER, hubs + rim)
            panel.fill(label, STEEL, hubs + 0.5 * rim)
    draw_hull(stage, body, outlines[0], outlines[1], (sin, cos), middle)
    for way, s, details in ((-1, 0.0, body.rear), (1, body.length, body.front)):
        px, pz = x + s * sin, z + s * cos
        if way * (px * sin + pz * cos) < 0:
            shade = stage.shade(way * sin, 0, way * cos)
            panel = Panel(stage, px, pz, (cos, -sin), shade, max(1.0, pz))
            for colour, shape in details:
                panel.fill(label, colour, shape)


def draw_hull(
    stage: Stage,
    body: Body,
    left: np.ndarray,
    right: np.ndarray,
    along: tuple[float, float],
    z: float,
) -> None:
    """Draw the faces between the outlines (N, 2) of both sides that the camera sees, top first."""
    rising, falling = (right[1:] - left[:-1]).astype(float), (right[:-1] - left[1:]).astype(float)
    seen = rising[:, 0] * falling[:, 1] > rising[:, 1] * falling[:, 0]
    steps = np.diff(np.asarray(body.profile, float), axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    for i in sorted(np.flatnonzero(seen), key=lambda i: left[i, 1] + left[i + 1, 1]):
        ds, dy = steps[i].tolist()
        shade = stage.shade(-dy * along[0], ds, -dy * along[1])
        colour = GLASS if i in body.glass else body.paint
        quad = np.array((left[i], left[i + 1], right[i + 1], right[i]))
        stage.fill(quad, stage.ink(body.label, colour, z, shade))


def draw_convoy(stage: Stage, bodies: Sequence[Body], x: float, z: float, heading: float) -> None:
    """Draw coupled bodies, the rear of the last one at (x, z), far to near."""
    places = []
    for body in bodies:
        places.append((body, x, z))
        x, z = x + body.length * math.sin(heading), z + body.length * math.cos(heading)
    for body, x, z in places if heading else places[::-1]:
        draw_body(stage, body, x, z, heading)


# ------------------------------------------------------------------------------------ composition


def plan_street(rng: np.random.Generator) -> Street:
    """Draw the cross-section of a street."""
    lanes = (-3.3, -6.6)[: rng.choice((1, 1, 2))]
    sides = []
    for sign, edge in ((-1, lanes[-1] - 1.7), (1, 1.75)):
        parking = bool(rng.random() < 0.5)
        kerb = edge + sign * 2.3 * parking
        walk = kerb + sign * rng.uniform(0.8, 2.5) * (rng.random() < 0.35)
        sides.append(Side(sign, kerb, walk, walk + sign * rng.uniform(1.6, 4), parking))
    tram = lanes[-1] if rng.random() < 0.33 else None
    crossing = rng.uniform(15, 34) if rng.random() < 0.45 else 900.0
    return Street((sides[0], sides[1]), lanes, tram, crossing)


def place_blocks(stage: Stage, street: Street, side: Side) -> None:
    """Fill private ground with houses, walls, fences, hedges and parks, one plot after another."""
    rng, z = stage.rng, 3.0
    mixes = (
        (0.74, 0.05, 0.08, 0.08, 0.05),  # a town: buildings, houses, walls, fences, parks
        (0.12, 0.44, 0.12, 0.18, 0.14),  # a suburb
        (0.06, 0.08, 0.22, 0.29, 0.35),  # its outskirts
    )
    mix = mixes[rng.choice(3, p=(0.5, 0.27, 0.23))]
    while z < FAR:
        length = rng.uniform(8, 20)
        if z < street.crossing + 4.5 and z + length > street.crossing - 4.5:
            length = street.crossing - 4.5 - z
            if length < 5:
                z = length = street.crossing + 4.5
                continue
        if stage.sees(side.line, z + length, 3.0):
            place_plot(stage, side, z, z + length, int(rng.choice(5, p=mix)))
        z += length + (rng.uniform(1, 6) if rng.random() < 0.3 else 0.0)


def place_plot(stage: Stage, side: Side, z0: float, z1: float, kind: int) -> None:
    """Fill a plot: a building (0), a house and garden (1), a wall (2), a fence (3), a park (4)."""
    rng, sign, line = stage.rng, side.sign, side.line
    if kind == 0:
        height = rng.uniform(7, 24)
        stage.cast(line + 4.5 * sign, z0, 9, z1 - z0, height)
        stage.put(abs(line), z0, draw_building, sign, line, z0, z1, height)
        return
    back = line + sign * rng.uniform(4, 9)
    if kind == 1 or rng.random() < 0.35:
        start, stop, height = z0 + 1, z1 - rng.uniform(1, 3), rng.uniform(5, 9)
        stage.put(abs(back), z0, draw_building, sign, back, start, stop, height)
    plants = [(draw_tree, 8.0)] * rng.integers(1, 4) + [(draw_bush, 1.8)] * rng.integers(3)
    for draw, tall in plants:
        x, z = line + sign * rng.uniform(1, 6), rng.uniform(z0, z1)
        stage.put(abs(x), z, draw, x, z, tall * rng.uniform(0.5, 1))
    if kind < 4:
        garden = draw_hedge if rng.random() < 0.5 else draw_fence
        border = (garden, draw_wall, draw_fence)[kind - 1]
        stage.cast(line, z0, 0.3, z1 - z0, 1.5)
        stage.put(abs(line), z0, border, sign, line, z0, z1)


def place_furniture(stage: Stage, street: Street, side: Side) -> None:
    """Line the kerb with lamps, trees, signs and bollards, and the sidewalk with parked cycles."""
    rng, sign, x = stage.rng, side.sign, side.kerb + 0.45 * side.sign
    rows: tuple[tuple[float, float, float, Callable[..., None], Sequence[Any]], ...] = (
        (0.75, rng.uniform(5, 18), rng.uniform(14, 28), draw_lamp, (sign,)),
        (0.5, rng.uniform(7, 14), rng.uniform(7, 14), draw_tree, (rng.uniform(4.5, 8),)),
        (0.15, rng.uniform(5, 9), 2.2, draw_bollard, ()),
        (0.75, rng.uniform(6, 22), rng.uniform(15, 40), draw_sign, ()),
        (0.2, rng.uniform(6, 20), 99.0, draw_bin, ()),
        (0.2, rng.uniform(10, 25), 99.0, draw_traffic_light, (sign,)),
        (1.0, street.crossing - 4.2, 99.0, draw_traffic_light, (sign,)),
    )
    for chance, start, pitch, draw, args in rows:
        if rng.random() < chance:
            for z in np.arange(start, 60, pitch):
                if abs(z - street.crossing) > 4 and stage.sees(x, z, 3.0):
                    stage.cast(x, z, 0.2, 0.2, 5.0)
                    stage.put(abs(x), z, draw, x, z, *args)
    if rng.random() < 0.5:
        x, start = side.line - 0.5 * sign, rng.uniform(6, 18)
        draw_cycle = draw_bicycle if rng.random() < 0.6 else draw_motorcycle
        for z in start + rng.uniform(0.7, 1.6) * np.arange(rng.integers(1, 6)):
            stage.cast(x, z, 0.8, 0.3, 0.3)
            stage.put(abs(x), z, draw_cycle, x, z, rng.uniform(0.3, 1.0), False)


def place_people(stage: Stage, street: Street) -> None:
    """Let people walk on the sidewalks, and on the zebra where there is one."""
    rng, z = stage.rng, street.crossing
    for side in street.sides:
        for _ in range(rng.integers(5)):
            start = 6 + 40 * rng.random() ** 1.5
            for z_group in start + 0.6 * np.arange(rng.integers(1, 4)):
                x = side.walk + rng.random() * (side.line - side.walk)
                if stage.sees(x, z_group, 0.5):
                    stage.cast(x, z_group, 0.45, 0.3, 1.6)
                    stage.put(abs(side.walk) + 0.5, z_group, draw_person, x, z_group)
    for _ in range(rng.integers(5) if z < FAR else 0):
        x, near = rng.uniform(street.sides[0].kerb, street.sides[1].kerb), z - rng.uniform(4.3, 6.8)
        stage.cast(x, near, 0.45, 0.3, 1.6)
        stage.put(0, near, draw_person, x, near)


def some_vehicle(rng: np.random.Generator, mix: Sequence[float]) -> list[Body]:
    """A car, a truck, a bus or a tram, with these probabilities."""
    kind = rng.choice(4, p=mix)
    if kind < 2:
        return (car_bodies, truck_bodies)[kind](rng)
    return coach_bodies(rng, (BUS, TRAIN)[kind - 2])


def place_lane(
    stage: Stage,
    x: float,
    towards: bool,
    start: float,
    pitch: float,
    mix: Sequence[float],
    stop: float = 60.0,
) -> None:
    """Fill a lane with vehicles, ``pitch`` metres between them at the least."""
    rng, z = stage.rng, start
    while z < stop:
        bodies, at = some_vehicle(rng, mix), x + rng.uniform(-0.15, 0.15)
        length = sum(body.length for body in bodies)
        if stage.sees(at, z + length, 1.3):
            stage.cast(at, z, bodies[0].width + 0.1, length, 1.2 if bodies[0].label == CAR else 2.8)
            rear, heading = (z + length, math.pi) if towards else (z, 0.0)
            stage.put(abs(x), z, draw_convoy, bodies, at, rear, heading)
        z += length + pitch * rng.uniform(1, 3)


def place_traffic(stage: Stage, street: Street) -> None:
    """Put vehicles and riders on both streets."""
    rng, mixed, z = stage.rng, (0.62, 0.19, 0.19, 0.0), street.crossing
    if rng.random() < 0.7:
        place_lane(stage, 0.0, False, rng.uniform(7, 30), 6.0, mixed)
    for lane in street.lanes:
        if lane == street.tram and rng.random() < 0.75:
            start, towards = rng.uniform(7, 26), bool(rng.random() < 0.6)
            place_lane(stage, lane, towards, start, 20.0, (0, 0, 0, 1), stop=27.0)
        elif rng.random() < 0.75:
            place_lane(stage, lane, True, rng.uniform(7, 28), 7.0, mixed)
    for side in street.sides:
        if side.parking:
            x, start = side.kerb - 1.15 * side.sign, rng.uniform(4.5, 10)
            pitch, parked = rng.choice((0.6, 3.0)), (0.93, 0.07, 0.0, 0.0)
            place_lane(stage, x, side.sign < 0, start, pitch, parked, stop=45.0)
    for draw in (draw_bicycle, draw_motorcycle):
        while rng.random() < 0.38:
            x, near = rng.choice((1.3, 1.5, -1.9, street.lanes[0] + 0.8)), rng.uniform(5.5, 22)
            stage.cast(x, near, 0.5, 1.5, 1.5)
            stage.put(abs(x) - 0.2, near, draw, x, near, rng.uniform(0.1, 0.4), True)
    if z < FAR:
        place_crossing(stage, rng.uniform(street.sides[0].kerb - 8, street.sides[1].kerb), z)


def place_crossing(stage: Stage, x: float, z: float) -> None:
    """Put a vehicle or a rider, or neither, on the street that crosses."""
    kind, near = stage.rng.random(), z - 1.5
    if kind < 0.4:
        bodies = some_vehicle(stage.rng, (0.5, 0.2, 0.2, 0.1))
        length = sum(body.length for body in bodies)
        stage.cast(x + length / 2, z - 1.2, length, 2.4, 1.2)
        stage.put(0, z, draw_convoy, bodies, x, z, 0.5 * math.pi)
    elif kind < 0.7:
        stage.cast(x, near, 1.4, 0.3, 1.5)
        stage.put(0, near, draw_bicycle if kind < 0.55 else draw_motorcycle, x, near, 1.0, True)


def draw_items(stage: Stage, crossing: float) -> None:
    """Draw what was put on the stage, far to near.

    A ray from the camera only ever moves outwards across the lanes, so outer lanes lie behind
    inner ones, and within a lane the distance decides. What is on the crossing spans the lanes:
    it comes between everything beyond it and everything before it.
    """

    def key(item: tuple[float, float, Callable[[], None]]) -> tuple[int, float, float]:
        strip, z, _ = item
        if crossing - 7.5 < z <= crossing + 3.5:
            return 1, 0.0, -z
        return 0 if z > crossing else 2, -strip, -z

    for _, _, draw in sorted(stage.items, key=key):
        draw()


def draw_hood(stage: Stage) -> None:
    """Draw the hood of the car that carries the camera, which is ignored."""
    rng, height, width = stage.rng, stage.height, stage.width
    u, paint, rise = np.linspace(-0.1, 1.1, 25), pick(rng, CARS), rng.uniform(0.05, 0.12) * height
    rim = np.stack((16 * u * width, 16 * (height - rise * (1 - (2 * u - 1) ** 4))), axis=-1)
    for top, bottom, gain in ((0, 4.0, 1.0), (0.25, 0.45, 1.3)):
        shape = np.concatenate((rim + (0, 16 * top * rise), rim[::-1] + (0, 16 * bottom * rise)))
        stage.fill(shape.astype(np.int32), stage.ink(IGNORED, paint, 0, gain))


def develop(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """The canvas to an image with texture, blur, exposure and sensor noise, and its labels."""
    rng, height, width = stage.rng, stage.height, stage.width
    labels = stage.pixels[..., 3].copy()
    strength = np.zeros((256, 3), np.float32)
    strength[: len(TEXTURE)] = TEXTURE * rng.uniform(0.6, 1.4, 3)
    grain, mottle, streak = cv2.split(strength.take(labels, axis=0))
    texture = 1 + grain * rng.standard_normal((height, width), dtype=np.float32)
    texture += mottle * smooth_noise(stage, height // 3, width // 3)
    texture += streak * smooth_noise(stage, height // 2, width // 16)
    texture *= rng.uniform(0.85, 1.12)
    image = stage.pixels[..., :3].astype(np.float32) * texture[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.65) * max(1.0, height / 256))
    sensor = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(1.5, 4.5)
    return np.clip(image + sensor, 0, 255).astype(np.uint8), labels


def draw_scene(
    rng: np.random.Generator, height: int = 128, width: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene.

    Args:
        rng: The only source of chance: equal generators draw equal scenes.
        height: Rows of the picture, from MIN_SIZE to MAX_SIZE. All things scale with it.
        width: Columns of the picture, from MIN_SIZE to MAX_SIZE.

    Returns:
        The RGB image, uint8 (height, width, 3), and its labels, uint8 (height, width): trainIds
        from 0 to 18, and 255 where a pixel is to be ignored.
    """
    stage = Stage(rng, height, width)
    street = plan_street(rng)
    # All is placed before any of it is drawn: drawing takes more chances on a larger canvas, and
    # the street must not depend on that.
    place_traffic(stage, street)
    place_people(stage, street)
    for side in street.sides:
        place_blocks(stage, street, side)
        place_furniture(stage, street, side)
    draw_sky(stage)
    draw_ground(stage, street)
    settle_ground(stage)
    draw_items(stage, street.crossing)
    if rng.random() < 0.3:
        draw_hood(stage)
    return develop(stage)


# ---------------------------------------------------------------------------------------- on disk


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of scene ``index`` of a split, which depends on nothing else."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def scene_paths(root: Path, split: str, index: int) -> tuple[Path, Path]:
    """The files of a scene: its image and its labels."""
    name = f'street_000000_{index:06d}'
    return (
        root / 'leftImg8bit' / split / 'street' / f'{name}_leftImg8bit.png',
        root / 'gtFine' / split / 'street' / f'{name}_gtFine_labelTrainIds.png',
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears under its name complete or not at all."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_scene(root: Path, seed: int, height: int, width: int, scene: tuple[str, int]) -> None:
    """Draw and write one scene, given as (split, index)."""
    image, labels = draw_scene(scene_rng(seed, *scene), height, width)
    # Sensor noise has no repeats to look for, which halves the time of compression.
    strategy = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)
    image_path, labels_path = scene_paths(root, *scene)
    write_whole(image_path, cv2.imencode('.png', image[..., ::-1], strategy)[1].tobytes())
    write_whole(labels_path, cv2.imencode('.png', labels)[1].tobytes())


def claim_folder(root: Path, settings: dict[str, int], wanted: set[Path]) -> None:
    """Make sure that the folder holds scenes of these settings alone, and record them in it."""
    manifest, advice = root / MANIFEST, 'delete the folder or choose another one'
    present = set(root.glob('leftImg8bit/*/*/*.png')) | set(root.glob('gtFine/*/*/*.png'))
    if not manifest.exists():
        if present:
            raise FileExistsError(f'{root} holds pictures but no {MANIFEST}: {advice}')
        root.mkdir(parents=True, exist_ok=True)
        write_whole(manifest, (json.dumps(settings, indent=2) + '\n').encode())
        return
    try:
        found = json.loads(manifest.read_text())
    except ValueError:
        raise FileExistsError(f'{manifest} cannot be read: {advice}') from None
    if found != settings:
        raise FileExistsError(f'{root} was written with {found}, asked for is {settings}: {advice}')
    if extra := present - wanted:
        more = f'{len(extra)} files beyond those asked for, such as {min(extra).name}'
        raise FileExistsError(f'{root} holds {more}: ask for more scenes, {advice}')


def start_worker() -> None:
    """Keep a worker to one core, and let it finish its scene when the user interrupts the run."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_dataset(
    root: str | os.PathLike[str],
    num_train: int = 600,
    num_val: int = 100,
    height: int = 128,
    width: int = 256,
    seed: int = 0,
    workers: int = 1,
    on_scene: Callable[[int, int], None] | None = None,
) -> int:
    """Write the scenes that a folder lacks, in Cityscapes' layout.

    A scene depends on ``seed``, its split and its number alone: the files are the same, byte for
    byte, whatever the number of workers and however often the work was interrupted.

    Args:
        root: The folder; it is made if it does not exist.
        num_train: Scenes in the train split.
        num_val: Scenes in the val split.
        height: Rows of each picture, from MIN_SIZE to MAX_SIZE.
        width: Columns of each picture, from MIN_SIZE to MAX_SIZE.
        seed: Another seed, other scenes.
        workers: Processes that draw.
        on_scene: Called after each scene with the numbers of scenes done and to do.

    Returns:
        The number of scenes that were drawn now.

    Raises:
        ValueError: A number is out of its range.
        FileExistsError: The folder holds other pictures than those asked for.
    """
    for name, size in (('height', height), ('width', width)):
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f'{name} must be from {MIN_SIZE} to {MAX_SIZE} pixels, not {size}')
    limits = (('num_train', num_train, 0), ('num_val', num_val, 0), ('seed', seed, 0))
    for name, number, least in (*limits, ('workers', workers, 1)):
        if number < least:
            raise ValueError(f'{name} must be at least {least}, not {number}')
    root = Path(root)
    counts = zip(SPLITS, (num_train, num_val), strict=True)
    paths = {(split, i): scene_paths(root, split, i) for split, n in counts for i in range(n)}
    settings = {'version': GENERATOR_VERSION, 'seed': seed, 'height': height, 'width': width}
    claim_folder(root, settings, set(itertools.chain(*paths.values())))
    for path in itertools.chain(*(scene_paths(root, split, 0) for split in SPLITS)):
        path.parent.mkdir(parents=True, exist_ok=True)
    missing = [scene for scene, files in paths.items() if not all(map(Path.exists, files))]
    write = partial(write_scene, root, seed, height, width)
    with contextlib.ExitStack() as stack:
        written: Iterable[None] = map(write, missing)
        if workers > 1 and missing:
            pool = stack.enter_context(ProcessPoolExecutor(workers, initializer=start_worker))
            written = pool.map(write, missing, chunksize=4)
        for done, _ in enumerate(written, 1):
            if on_scene:
                on_scene(done, len(missing))
    return len(missing)


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
