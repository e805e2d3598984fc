"""The plan of a street, and everything in its place on it, before any of it is drawn."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .canvas import Stage
from .furniture import draw_bin, draw_bollard, draw_lamp, draw_sign, draw_traffic_light
from .labels import CAR
from .people import draw_bicycle, draw_motorcycle, draw_person
from .surroundings import draw_building, draw_bush, draw_fence, draw_hedge, draw_tree, draw_wall
from .vehicles import draw_convoy, some_vehicle

FAR = 100.0  # metres; beyond them is the skyline


class Side(NamedTuple):
    """One side of the street: its sign (left -1, right 1), and the x where its bands begin."""

    sign: int
    kerb: float
    walk: float  # the sidewalk begins here: at the kerb, or behind a grass verge
    line: float  # private ground begins here
    parking: bool


class Street(NamedTuple):
    """The cross-section of the street, and how far ahead another one crosses it."""

    left: Side
    right: Side
    lanes: tuple[float, ...]  # centres of the oncoming lanes; the camera's own is at x = 0
    tram: float | None  # centre of the rails
    crossing: float  # far beyond the scene if there is none

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both sides, the left one first."""
        return self.left, self.right


def plan_street(rng: np.random.Generator) -> Street:
    """Choose the cross-section of a street."""
    lanes = (-3.3, -6.6)[: rng.choice((1, 1, 2))]
    sides = []
    for sign, edge in ((-1, lanes[-1] - 1.7), (1, 1.75)):
        parking = bool(rng.random() < 0.5)
        kerb = edge + sign * 2.3 * parking
        walk = kerb + sign * rng.uniform(0.8, 2.5) * (rng.random() < 0.35)
        sides.append(Side(sign, kerb, walk, walk + sign * rng.uniform(1.6, 4), parking))
    tram = lanes[-1] if rng.random() < 0.33 else None
    crossing = rng.uniform(15, 34) if rng.random() < 0.45 else 900.0
    return Street(sides[0], sides[1], lanes, tram, crossing)


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
            for at in start + 0.6 * np.arange(rng.integers(1, 4)):
                x = side.walk + rng.random() * (side.line - side.walk)
                if stage.sees(x, at, 0.5):
                    stage.cast(x, at, 0.45, 0.3, 1.6)
                    stage.put(abs(side.walk) + 0.5, at, draw_person, x, at)
    for _ in range(rng.integers(5) if z < FAR else 0):
        x, near = rng.uniform(street.left.kerb, street.right.kerb), z - rng.uniform(4.3, 6.8)
        stage.cast(x, near, 0.45, 0.3, 1.6)
        stage.put(0, near, draw_person, x, near)


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
        place_crossing(stage, rng.uniform(street.left.kerb - 8, street.right.kerb), z)


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
