"""Street furniture."""

import numpy as np

from .canvas import Stage, rectangle, spot
from .colours import AMBER, BLUE, CARS, GREEN, PAINT, RED, RUBBER, STEEL, pick, vary
from .labels import IGNORED, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN


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
