"""The canvas of a scene with its camera and its light, and upright planes to draw on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from .colours import RUBBER, Colour, some_weather

Ink = tuple[float, float, float, float]
Shape = np.ndarray | Sequence[Any]  # corners (N, 2), or several shapes of as many corners (M, N, 2)


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
        self.light = some_weather(rng)
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
        """Return whether something at (x, z) that reaches so far to its sides can be in the picture."""
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
        x = np.repeat((x0, x1), 16)
        self.ground(label, colour, np.stack((x, np.concatenate((z, z[::-1]))), -1), gain)

    def cast(self, x: float, z: float, width: float, length: float, height: float) -> None:
        """Add the shadow of a box, the middle of its nearest edge at (x, z)."""
        reach = min(height, 12.0) / self.sun[1] if self.light.contrast > 0.2 else 0.0
        base = rectangle(x - width / 2, z, x + width / 2, z + length)
        ground = np.concatenate((base, base - reach * self.sun[::2]))
        hull = cv2.convexHull(self.project(ground[:, 0], 0.0, ground[:, 1]))
        cv2.fillConvexPoly(self.shadow, hull, 255, shift=4)

    def put(self, strip: float, z: float, draw: Callable[..., None], *args: Any) -> None:
        """Have something drawn later, when all that is behind it has been drawn."""
        self.items.append((strip, z, partial(draw, self, *args)))

    def smooth_noise(self, rows: int, columns: int) -> np.ndarray:
        """Noise (H, W), normal at rows x columns points and linear between them."""
        seeds = self.rng.standard_normal((max(2, rows), max(2, columns)), dtype=np.float32)
        return cv2.resize(seeds, (self.width, self.height), interpolation=cv2.INTER_LINEAR)


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
        return self.stage.project(self.x + a * self.along[0], b * self.size, self.z + a * self.along[1])

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
        thickness = -1 if solid else max(1, round(self.pixels(0.06)))
        cv2.ellipse(self.stage.pixels, centre, axes, 0, 0, 360, self.ink(label, RUBBER), thickness)


def spot(stage: Stage, x: float, z: float, size: float = 1.0) -> Panel:
    """A panel at (x, z) that faces the camera, for things without depth, so much enlarged."""
    return Panel(stage, x, z, (size, 0.0), 1.0, z, size)


def front(stage: Stage, side: int, x: float, z0: float, z1: float) -> Panel:
    """A panel along the street from z0 to z1, on its left (-1) or right (1) side."""
    return Panel(stage, x, z0, (0.0, 1.0), stage.shade(-side, 0, 0), 0.5 * (z0 + z1))


def end(stage: Stage, side: int, x: float, z: float) -> Panel:
    """A panel across the street, from x outwards."""
    return Panel(stage, x, z, (side, 0.0), stage.shade(0, 0, -1), z)


def rectangle(x0: Any, y0: Any, x1: Any, y1: Any) -> np.ndarray:
    """The corners (4, 2) of an upright rectangle, or (M, 4, 2) of several, given by arrays (M,)."""
    corners = np.empty((*np.broadcast(x0, y0, x1, y1).shape, 4, 2))
    corners[..., 0, 0] = corners[..., 3, 0] = x0
    corners[..., 1, 0] = corners[..., 2, 0] = x1
    corners[..., 0, 1] = corners[..., 1, 1] = y0
    corners[..., 2, 1] = corners[..., 3, 1] = y1
    return corners
