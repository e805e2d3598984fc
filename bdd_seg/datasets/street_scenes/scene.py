"""One street scene: what is drawn when, and what the camera makes of it."""

from collections.abc import Callable

import cv2
import numpy as np

from .background import draw_ground, draw_sky, settle_ground
from .canvas import Stage
from .colours import CARS, pick
from .labels import IGNORED, TEXTURE
from .street import place_blocks, place_furniture, place_people, place_traffic, plan_street

MIN_SIZE, MAX_SIZE = 32, 8192


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
    texture += mottle * stage.smooth_noise(height // 3, width // 3)
    texture += streak * stage.smooth_noise(height // 2, width // 16)
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
