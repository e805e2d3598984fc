"""The sky, the skyline and all that lies flat."""

import math

import cv2
import numpy as np

from .canvas import Panel, Stage, rectangle
from .colours import LEAVES, MASONRY, PAINT, STEEL, Colour, pick, vary
from .labels import BUILDING, ROAD, SIDEWALK, SKY, TERRAIN
from .street import FAR, Street
from .surroundings import draw_leaves


def draw_sky(stage: Stage) -> None:
    """Cover the canvas with a sky, its clouds, and what is too far away to have a place."""
    light, height, width = stage.light, stage.height, stage.width
    fall = np.clip(np.arange(height, dtype=np.float32) / stage.horizon, 0, 1)[:, None, None]
    zenith, low, ambient = np.array((light.zenith, light.horizon, light.ambient), np.float32)
    sky = zenith + (low - zenith) * fall
    puffs = stage.smooth_noise(height // 10, width // 24)
    puffs += 0.5 * stage.smooth_noise(height // 4, width // 10)
    amount = np.clip(puffs * 0.7 + light.cloud - 0.5, 0, 0.8)[..., None]
    stage.pixels[..., :3] = np.clip(sky + (0.5 * low + 122 * ambient - sky) * amount, 0, 255)
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
        stage.ground(SIDEWALK, paving, rectangle(side.walk, slabs, side.line, slabs * 1.015), 0.82)
    stage.strip(ROAD, asphalt, street.left.kerb, street.right.kerb)
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
        x, z = rng.uniform(street.left.kerb, street.right.kerb - 2), rng.uniform(3.5, 25)
        patch = rectangle(x, z, x + rng.uniform(0.5, 2), z + rng.uniform(0.7, 5))
        stage.ground(ROAD, asphalt, patch, rng.choice((0.82, 0.9, 1.1)))
    if street.tram is not None:
        for rail in (street.tram - 0.72, street.tram + 0.72):
            stage.strip(ROAD, asphalt, rail - 0.12, rail + 0.12, 0.75)
            stage.strip(ROAD, STEEL, rail - 0.04, rail + 0.04, 1.3)


def draw_markings(stage: Stage, street: Street) -> None:
    """Draw lane lines, and before a crossing the zebra and the stop line."""
    rng, z, left, right = stage.rng, street.crossing, street.left.kerb, street.right.kerb
    paint, dashes = vary(rng, PAINT, 0.2), rng.uniform(0, 3) + np.arange(1.0, 110, 6.0)
    for x in (lane + 1.65 for lane in street.lanes):
        if rng.random() < 0.2:
            stage.strip(ROAD, paint, x - 0.08, x + 0.08)
        else:
            stage.ground(ROAD, paint, rectangle(x - 0.08, dashes, x + 0.08, dashes + 2.8))
    if street.right.parking:
        stage.strip(ROAD, paint, right - 2.25, right - 2.15)
    if z < FAR:
        bars = np.arange(left + 0.3, right - 0.6, 1.05)
        stage.ground(ROAD, paint, rectangle(bars, z - 7, bars + 0.55, z - 4.2))
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
