"""People and cycles."""

import numpy as np

from .canvas import Panel, Stage, spot
from .colours import CARS, CLOTHES, RED, RUBBER, SKIN, pick
from .labels import BICYCLE, MOTORCYCLE, PERSON, RIDER


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
