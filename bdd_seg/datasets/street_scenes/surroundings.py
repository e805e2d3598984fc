"""Houses, walls, fences and plants along the street."""

import cv2
import numpy as np

from .canvas import Panel, Stage, end, front, rectangle, spot
from .colours import CARS, COACHES, GLASS, LEAVES, MASONRY, ROOFS, TIMBER, Colour, pick, vary
from .labels import BUILDING, FENCE, VEGETATION, WALL


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
        facade.fill(BUILDING, GLASS, rectangle(panes, 0.5, panes + 1.5, 2.5), 1.3)
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
        panel.fill(BUILDING, trim, rectangle(0, ledges - 0.1, width, ledges), 0.8)
        panel.fill(BUILDING, trim, rectangle(a - 0.1, b - 0.15, a + span + 0.1, b + tall))
    panes, chance = rectangle(a, b, a + span, b + tall), rng.random(len(a))
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
        panel.fill(WALL, colour, rectangle(0, courses, length, courses + 0.03), 0.84)
    joints = np.arange(0, length, 2.5)
    panel.fill(WALL, colour, rectangle(joints, 0, joints + 0.1, height), 0.84)
    panel.fill(WALL, colour, rectangle(0, height - 0.15, length, height + 0.05), 1.25)


def draw_fence(stage: Stage, side: int, x: float, z0: float, z1: float) -> None:
    """Draw a fence to look through: pickets, or crossed laths, between posts and rails."""
    rng, length, colour = stage.rng, z1 - z0, pick(stage.rng, TIMBER)
    height, gap = rng.uniform(0.9, 1.9), rng.uniform(0.25, 0.45)
    panel = front(stage, side, x, z0, z1)
    a, posts = np.arange(0, length, gap), np.arange(0, length, 2.4)
    for slant in (-gap, gap) if rng.random() < 0.35 else (0.0,):
        bars = rectangle(a, 0.1, a + 0.35 * gap, height)
        bars[:, 2:, 0] += slant
        panel.fill(FENCE, colour, bars)
    panel.fill(FENCE, colour, rectangle(0, (0.2, height - 0.25), length, (0.3, height - 0.15)))
    panel.fill(FENCE, colour, rectangle(posts, 0, posts + 0.15, height + 0.1), 0.85)


def draw_hedge(stage: Stage, side: int, x: float, z0: float, z1: float) -> None:
    """Draw a clipped hedge."""
    rng, colour, height = stage.rng, pick(stage.rng, LEAVES[:4]), stage.rng.uniform(0.9, 2.0)
    end(stage, side, x, z0).fill(VEGETATION, colour, rectangle(0, 0, 0.8, height), 0.85)
    panel = front(stage, side, x, z0, z1)
    panel.fill(VEGETATION, colour, rectangle(0, 0, z1 - z0, height))
    for a in np.arange(0, z1 - z0, 0.7):
        panel.disc(VEGETATION, colour, (a, rng.uniform(0.3, 1) * height), 0.3, rng.uniform(0.8, 1.2))


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
    for centre, radius, ink in zip(centres.tolist(), radii.astype(int).tolist(), inks.tolist(), strict=True):
        cv2.circle(stage.pixels, centre, radius, ink, -1, shift=4)


def draw_tree(stage: Stage, x: float, z: float, height: float) -> None:
    """Draw a tree: trunk, fork and crown."""
    rng, panel = stage.rng, spot(stage, x, z)
    bark, trunk = vary(rng, (84, 68, 52), 0.25), height * rng.uniform(0.3, 0.45)
    crown = 0.5 * (height - trunk) + 0.3
    panel.line(VEGETATION, bark, [(0, 0), (0, trunk)], 0.3)
    panel.line(VEGETATION, bark, [(-0.5, trunk + 1), (0, 0.85 * trunk), (0.6, trunk + 1)], 0.14)
    wide = crown * rng.uniform(0.75, 1.1)
    draw_leaves(panel, pick(rng, LEAVES), 0, trunk + 0.85 * crown, wide, crown)


def draw_bush(stage: Stage, x: float, z: float, height: float) -> None:
    """Draw a bush."""
    draw_leaves(spot(stage, x, z, height), pick(stage.rng, LEAVES[:4]), 0, 0.4, 0.7, 0.45)
