"""Scenes: what is behind a person, and the light it casts on them, drawn with numpy and Pillow.

A scene is a function of (size, rng, time, blur) in `outdoors`, `indoors` or `night`; a new one also
needs an entry in `SCENES` and `_DRAW` below. It lays a few sheets (`sheet`) over each other, far to
near, in unit coordinates (x right, y down, 0 to 1), so it looks the same at every size. The head
covers the middle, so what identifies a scene stands at the sides and at the top. Photographs show
it out of focus; drawn styles show it sharper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from companion.people.colors import Color
from companion.people.scenery import indoors, night, outdoors
from fusionlib.errors import FusionError

Array = np.ndarray


@dataclass(frozen=True)
class SceneLight:
    """How a scene lights a person. Colours are in 0..1; ranges are (smallest, largest).

    Attributes:
        key: Colour of the main light.
        azimuth: Range of the main light's angle from the front, on either side, in degrees.
        elevation: Range of its angle above the horizon, in degrees.
        strength: Range of its share in the light, 0..1; the rest is fill light.
        fill: Colour of the fill light, which comes from the camera's side.
    """

    key: Color
    azimuth: tuple[float, float]
    elevation: tuple[float, float]
    strength: tuple[float, float]
    fill: Color


_INDOOR = SceneLight((1.0, 0.97, 0.93), (10, 55), (25, 50), (0.5, 0.75), (0.97, 0.98, 1.0))
_SUN = SceneLight((1.0, 0.96, 0.88), (15, 65), (30, 55), (0.6, 0.85), (0.88, 0.94, 1.0))
_LOW_SUN = SceneLight((1.0, 0.76, 0.50), (35, 70), (8, 25), (0.6, 0.8), (0.93, 0.84, 0.90))
_SHADE = SceneLight((0.98, 1.0, 0.86), (10, 60), (35, 60), (0.5, 0.75), (0.84, 0.95, 0.82))
_OVERCAST = SceneLight((0.95, 0.98, 1.0), (0, 50), (40, 65), (0.4, 0.6), (0.93, 0.97, 1.0))
_NIGHT = SceneLight((1.0, 0.80, 0.58), (25, 70), (10, 40), (0.55, 0.8), (0.62, 0.72, 1.0))
_LAMP = SceneLight((1.0, 0.86, 0.66), (15, 60), (25, 50), (0.5, 0.8), (0.98, 0.90, 0.80))
_SPACE = SceneLight((1.0, 1.0, 1.0), (35, 72), (10, 40), (0.75, 0.88), (0.66, 0.78, 1.0))


SCENES: dict[str, dict[str, SceneLight]] = {
    "studio": {"day": _INDOOR},
    "beach": {"day": _SUN, "sunset": _LOW_SUN},
    "city": {"day": _OVERCAST, "sunset": _LOW_SUN},
    "night": {"night": _NIGHT},
    "snow": {"day": _OVERCAST, "sunset": _LOW_SUN},
    "jungle": {"day": _SHADE},
    "forest": {"day": _SHADE, "autumn": _LOW_SUN},
    "garden": {"day": _SUN},
    "library": {"day": _LAMP},
    "desert": {"day": _SUN, "sunset": _LOW_SUN},
    "mountains": {"day": _SUN, "sunset": _LOW_SUN},
    "kitchen": {"day": _INDOOR},
    "farm": {"day": _SUN, "sunset": _LOW_SUN},
    "space": {"night": _SPACE},
}
"""The scenes; for each, the times at which it is shown and their light."""


_DRAW: dict[str, Callable[[int, np.random.Generator, str, float], Image.Image]] = {
    "studio": indoors.studio,
    "beach": outdoors.beach,
    "city": outdoors.city,
    "night": night.city_by_night,
    "snow": outdoors.snow,
    "jungle": outdoors.jungle,
    "forest": outdoors.forest,
    "garden": outdoors.garden,
    "library": indoors.library,
    "desert": outdoors.desert,
    "mountains": outdoors.mountains,
    "kitchen": indoors.kitchen,
    "farm": outdoors.farm,
    "space": night.space,
}


def draw_background(
    scene: str, size: int, rng: np.random.Generator, *, time: str | None = None, blur: float = 1.0
) -> Array:
    """Draw a scene.

    Args:
        scene: One of `SCENES`.
        size: Height and width in pixels.
        rng: Source of the layout.
        time: One of the scene's times in `SCENES`; the first by default.
        blur: Amount of defocus: 1 as behind a portrait, 0 sharp.

    Returns:
        (size, size, 3) uint8 picture.

    Raises:
        FusionError: For an unknown scene or time.
    """
    if scene not in SCENES:
        raise FusionError(f"Unknown scene '{scene}': choose one of {', '.join(SCENES)}.")
    times = list(SCENES[scene])
    if time is not None and time not in times:
        raise FusionError(f"There is no {scene} at '{time}': choose one of {', '.join(times)}.")
    return np.asarray(_DRAW[scene](size, rng, time or times[0], blur).convert("RGB"))


def surround(
    image: Array, cover: Array, background: Array, scene: str, rng: np.random.Generator
) -> Array:
    """Let a scene act on the figures in front of it: its light wraps their edges, and snow falls.

    Args:
        image: (H, H, 3) uint8 picture of the figures in front of their background.
        cover: (H, H) share of each pixel that the figures cover, 0..1.
        background: (H, H, 3) uint8 picture of the scene.
        scene: One of `SCENES`.
        rng: Source of the snowflakes' places.

    Returns:
        (H, H, 3) uint8 picture.
    """
    size = len(image)
    a = cover[..., None].astype(np.float32)
    near = Image.fromarray((cover * 255).astype(np.uint8))
    near = near.filter(ImageFilter.GaussianBlur(0.012 * size))
    soft = Image.fromarray(background).resize((32, 32), Image.Resampling.BOX)
    around = np.asarray(soft.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    edge = a * (1 - np.asarray(near, np.float32)[..., None] / 255)
    bent = image + 0.5 * edge * (around - 0.6 * image)
    done = Image.fromarray(np.clip(bent, 0, 255).astype(np.uint8))
    if scene == "snow":
        done = outdoors.snowfall(done.convert("RGBA"), rng).convert("RGB")
    return np.asarray(done)
