"""Vehicles: solid bodies, seen from any side."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .canvas import Panel, Shape, Stage, rectangle
from .colours import AMBER, CARS, COACHES, GLASS, LAMP, PAINT, RED, RUBBER, STEEL, Colour, pick, vary
from .labels import BUS, CAR, TRAIN, TRUCK

Details = Sequence[tuple[Colour, Shape]]
TURN = np.linspace(0, 2 * np.pi, 11)[:-1]
RIM = np.stack((np.cos(TURN), np.sin(TURN)), -1)  # of a wheel of radius 1


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


def pair(w0: float, y0: float, w1: float, y1: float) -> np.ndarray:
    """A rectangle on the right half of a vehicle's rear or front, and its mirror image."""
    return rectangle((w0, -w1), y0, (w1, -w0), y1)


def car(rng: np.random.Generator) -> list[Body]:
    """A hatchback, a saloon or a van."""
    length, half, roof = rng.uniform(3.7, 4.7), rng.uniform(0.82, 0.95), rng.uniform(1.38, 1.95)
    belt, nose = 0.62 * roof, rng.uniform(0.74, 0.82) * length
    boot = rng.choice((0.02, 0.08, 0.2)) * length
    back, screen = boot + 0.1 * length, nose - 0.16 * length
    low, high, pillar = belt + 0.02, roof - 0.1, 0.5 * (back + screen)
    profile = (
        (0, 0.3),
        (0.02, belt),
        (boot, belt + 0.04),
        (back, roof),
        (screen, roof),
        (nose, belt + 0.02),
        (length - 0.08, belt - 0.14),
        (length, 0.3),
    )
    panes = (
        ((boot + 0.18, low), (back + 0.08, high), (pillar - 0.05, high), (pillar - 0.05, low)),
        ((pillar + 0.05, low), (pillar + 0.05, high), (screen - 0.05, high), (nose - 0.2, low)),
    )
    under = ((RUBBER, pair(half - 0.24, 0, half, 0.34)), ((30, 30, 32), rectangle(-half, 0.2, half, 0.42)))
    lamps = pair(half - 0.28, belt - 0.22, half, belt - 0.02)
    return [
        Body(
            CAR,
            length,
            2 * half,
            pick(rng, CARS),
            profile,
            glass=(2, 4),
            sides=((GLASS, panes),),
            rear=(*under, (RED, lamps), (PAINT, rectangle(-0.26, 0.5, 0.26, 0.62))),
            front=(*under, (LAMP, lamps), (GLASS, rectangle(-0.5, 0.45, 0.5, 0.62))),
            wheels=(0.19 * length, 0.8 * length),
        )
    ]


def truck(rng: np.random.Generator) -> list[Body]:
    """A lorry: its load, and the cab ahead of it."""
    load, height, half = rng.uniform(3.5, 7.5), rng.uniform(2.7, 3.7), rng.uniform(1.1, 1.25)
    paint, floor, top = pick(rng, COACHES + CARS[3:5]), 0.85, min(height - 0.1, 2.8)
    ribs, seam = np.arange(0.5, load, 0.9), [0.75 * c for c in paint]
    tyres = (RUBBER, pair(half - 0.45, 0, half, 0.7))
    box = Body(
        TRUCK,
        load,
        2 * half,
        paint,
        ((0, floor), (0, height), (load, height), (load, floor)),
        sides=((seam, rectangle(ribs, floor, ribs + 0.08, height)), (STEEL, rectangle(0, 0.5, load, floor))),
        rear=(
            tyres,
            (GLASS, rectangle(-half, 0.5, half, floor)),
            (RED, pair(half - 0.3, 0.62, half, 0.82)),
            (seam, rectangle(-0.04, floor, 0.04, height)),
        ),
        wheels=(0.8, 1.9),
        radius=0.48,
    )
    cab = Body(
        TRUCK,
        2.1,
        2 * half,
        pick(rng, COACHES + CARS),
        ((0, 0.5), (0, top), (1.8, top), (2.05, 1.5), (2.1, 0.5)),
        glass=(2,),
        sides=((GLASS, ((0.7, 1.55), (0.7, top - 0.25), (1.7, top - 0.25), (1.9, 1.55))),),
        front=(tyres, (GLASS, rectangle(-0.6, 0.7, 0.6, 1.2)), (LAMP, pair(half - 0.35, 0.7, half, 0.95))),
        wheels=(1.1,),
        radius=0.48,
    )
    return [box, cab]


def coach(rng: np.random.Generator, label: int) -> list[Body]:
    """A bus, or the two or three sections of a tram: long boxes with a band of windows."""
    paint, floor = pick(rng, COACHES), 0.35
    if label == BUS:
        length, half, height, low, high, taper = rng.uniform(9, 12), 1.25, 3.1, 1.3, 2.5, 0.0
        skirt = vary(rng, paint, 0.4)
    else:
        length, half, height, low, high, taper = rng.uniform(7, 10), 1.2, 3.5, 1.5, 2.75, 0.35
        skirt = vary(rng, STEEL)
    panes, doors = np.arange(0.3, length - 1.5, 1.5), np.array((0.25, 0.75)) * length
    lean, lamps = ((0, floor), (taper / 2, 1.3), (taper, height)), pair(half - 0.45, 0.6, half - 0.1, 0.85)
    ends = (
        (RUBBER, rectangle(-half, 0.05, half, floor + 0.15)),
        (GLASS, rectangle(0.15 - half, 1.35, half - 0.15, 2.6)),
        (AMBER, rectangle(-0.7, height - 0.42, 0.7, height - 0.14)),
    )
    sides = (
        (GLASS, rectangle(panes, low, panes + 1.3, high)),
        (skirt, rectangle(0, floor, length, floor + 0.5)),
        ((70, 76, 82), rectangle(doors, floor + 0.1, doors + 1.2, high)),
    )
    body = Body(
        label,
        length,
        2 * half,
        paint,
        (*lean, *((length - s, y) for s, y in lean[::-1])),
        sides=sides,
        rear=(*ends, (RED, lamps)),
        front=(*ends, (LAMP, lamps)),
        wheels=(1.8, length - 2.2) if label == BUS else (),
        radius=0.48,
    )
    return [body] * (1 if label == BUS else int(rng.integers(2, 4)))


def some_vehicle(rng: np.random.Generator, mix: Sequence[float]) -> list[Body]:
    """A car, a truck, a bus or a tram, with these probabilities."""
    kind = rng.choice(4, p=mix)
    return (car, truck)[kind](rng) if kind < 2 else coach(rng, (BUS, TRAIN)[kind - 2])


def draw_body(stage: Stage, body: Body, x: float, z: float, heading: float) -> None:
    """Draw a body, its rear at (x, z): heading 0 drives away from the camera, pi towards it."""
    sin, cos, half, label = math.sin(heading), math.cos(heading), 0.5 * body.width, body.label
    middle = z + 0.5 * body.length * cos
    outlines = []
    for way in (-1, 1):
        px, pz = x + way * half * cos, z - way * half * sin
        panel = Panel(stage, px, pz, (sin, cos), stage.shade(way * cos, 0, -way * sin), max(1.0, middle))
        outlines.append(panel.points(body.profile))
        if way * (px * cos - pz * sin) >= 0:  # the camera is on the other side
            continue
        stage.fill(outlines[-1], panel.ink(label, body.paint))
        for colour, shape in body.sides:
            panel.fill(label, colour, shape)
        if body.wheels:
            hubs = np.stack((body.wheels, np.full(len(body.wheels), body.radius)), -1)[:, None]
            panel.fill(label, RUBBER, hubs + body.radius * RIM)
            panel.fill(label, STEEL, hubs + 0.5 * (body.radius * RIM))
    draw_hull(stage, body, outlines[0], outlines[1], (sin, cos), middle)
    for way, s, details in ((-1, 0.0, body.rear), (1, body.length, body.front)):
        px, pz = x + s * sin, z + s * cos
        if way * (px * sin + pz * cos) < 0:
            panel = Panel(stage, px, pz, (cos, -sin), stage.shade(way * sin, 0, way * cos), max(1.0, pz))
            for colour, shape in details:
                panel.fill(label, colour, shape)


def draw_hull(
    stage: Stage, body: Body, left: np.ndarray, right: np.ndarray, along: tuple[float, float], z: float
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
