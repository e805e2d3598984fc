"""The colours of things, the light they are seen in, and chance variations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Colour = Sequence[float]

# fmt: off
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


def vary(rng: np.random.Generator, colour: Colour, spread: float = 0.12) -> list[float]:
    """A colour near this one: brighter or darker, and a little off in hue."""
    gain, shift = rng.uniform(1 - spread, 1 + spread), rng.uniform(-8, 8, 3).tolist()
    return [max(0.0, c * gain + s) for c, s in zip(colour, shift, strict=True)]


def pick(rng: np.random.Generator, colours: Sequence[Colour]) -> list[float]:
    """One of these colours, varied."""
    return vary(rng, colours[int(rng.integers(len(colours)))])


def some_weather(rng: np.random.Generator) -> Weather:
    """One of the weathers, varied."""
    weather = WEATHERS[rng.choice(len(WEATHERS), p=(0.45, 0.27, 0.14, 0.14))]
    warmth = rng.uniform(-0.07, 0.07)
    return weather._replace(
        zenith=vary(rng, weather.zenith),
        horizon=vary(rng, weather.horizon, 0.08),
        ambient=np.multiply(weather.ambient, (1 + warmth, 1.0, 1 - warmth)).tolist(),
        cloud=weather.cloud * rng.uniform(0, 2),
    )
