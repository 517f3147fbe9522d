"""Dark scenes: the city by night, and space."""

from __future__ import annotations

import numpy as np
from PIL import Image

from companion.people.scenery.outdoors import street
from companion.people.scenery.sheet import RGB, Sheet, blurred, noise, palette, pick, screen, shade


def city_by_night(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw a street with lit windows and lights far out of focus."""
    walls = [(34, 36, 58), (44, 38, 52), (28, 34, 48), (52, 44, 60)]
    sky = [(0.0, (10, 12, 34)), (0.6, (52, 38, 84)), (1.0, (18, 18, 30))]
    image = street(size, rng, blur, sky, walls, (44, 36, 76), 0.8)
    sheet = Sheet(size)
    lamps = palette("ffbe5a ff5a46 6eaaff ffe6aa ff5ab4 5ae6dc")
    for _ in range(30):  # lights far out of focus are discs with a brighter rim
        x, y, r = rng.uniform(0, 1), rng.normal(0.6, 0.16), rng.uniform(0.015, 0.042)
        lamp = pick(rng, lamps)
        alpha = int(rng.uniform(110, 200))
        sheet.disc(x, y, r, lamp, alpha)
        sheet.disc(x, y, 0.86 * r, shade(lamp, 0.95), int(0.85 * alpha))
    return sheet.over(image, 0.004 * blur)


def space(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw stars and nebulae with one or two planets."""
    tints = [
        ((90, 40, 130), (30, 80, 160)),
        ((150, 50, 90), (50, 40, 130)),
        ((30, 110, 130), (60, 40, 120)),
    ]
    warm, cold = tints[int(rng.integers(3))]
    image = Image.new("RGBA", (size, size), (6, 7, 18, 255))
    image = screen(image, np.clip(0.25 + 0.45 * noise(size, rng, 2, 4), 0, 1), warm)
    image = screen(image, np.clip(0.15 + 0.4 * noise(size, rng, 3, 4), 0, 1), cold)
    sheet = Sheet(size)
    for _ in range(170):
        x, y, bright = rng.uniform(0, 1), rng.uniform(0, 1), rng.random() ** 3
        sheet.disc(
            x,
            y,
            0.0022 + 0.0055 * bright,
            pick(rng, [(255, 255, 255), (190, 214, 255), (255, 226, 190)]),
            int(150 + 105 * bright),
        )
    image = sheet.over(image, 0.0015 * max(blur, 0.5))
    spread = [(0.86, 0.22, 0.17), (0.14, 0.24, 0.19), (0.06, 0.80, 0.30), (0.94, 0.78, 0.32)]
    for k in rng.permutation(4)[: int(rng.integers(1, 3))]:
        x, y, r = spread[int(k)]
        image = _planet(image, rng, x + rng.uniform(-0.04, 0.04), y, r * rng.uniform(0.85, 1.15))
    return blurred(image, 0.0025 * blur * size)


def _planet(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, r: float
) -> Image.Image:
    """Draw a planet: like the earth, striped with a ring, or barren."""
    size, kind = image.width, rng.random()
    left, top, side = int((x - 1.3 * r) * size), int((y - 1.3 * r) * size), int(2.6 * r * size) + 1
    row = (np.arange(side, dtype=np.float32) + 0.5) / size
    u = np.broadcast_to((row[None] + left / size - x) / r, (side, side))
    v = np.broadcast_to((row[:, None] + top / size - y) / r, (side, side))
    out = np.hypot(u, v)
    inside = np.clip((1 - out) * r * size, 0, 1)[..., None]
    sun = np.clip(-0.75 * u - 0.45 * v + 0.5 * np.sqrt(np.clip(1 - out**2, 0, 1)), 0, 1) + 0.03
    field = noise(side, rng, 5, 4)
    if kind < 0.45:  # like the earth
        land = np.clip(4 * field - 1.2, 0, 1)[..., None]
        color = (1 - land) * [28, 84, 170] + land * [84, 124, 66]
        cloud = np.clip(1.5 * noise(side, rng, 6, 4) - 0.8, 0, 0.9)[..., None]
        color = (1 - cloud) * color + cloud * 250
    else:  # striped, or barren
        stones: list[RGB] = [(224, 168, 110), (198, 96, 64), (170, 176, 190), (210, 190, 150)]
        bands = np.sin(9 * v + 0.6 * field) if kind < 0.8 else 1.3 * field
        color = np.asarray(pick(rng, stones), float) * (1 + 0.16 * bands)[..., None]
    rim = np.exp(-160 * np.clip(out - 1, 0, 9) ** 2) * np.clip(0.4 - u - 0.6 * v, 0, 1)
    box = (left, top, left + side, top + side)
    pixels = np.asarray(image.crop(box).convert("RGB"), np.float32)
    pixels = pixels + inside * (color * sun[..., None] - pixels)
    pixels = pixels + 0.5 * (1 - inside) * rim[..., None] * [110, 160, 255]
    image = image.copy()
    image.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), (left, top))
    if 0.45 <= kind < 0.8:  # a ring, open behind the upper half
        sheet, t = Sheet(size), np.linspace(-0.35, np.pi + 0.35, 40)
        for k, width in ((1.45, 0.16), (1.62, 0.16), (1.80, 0.10)):
            across, along = k * r * np.cos(t), k * r * np.sin(t)
            ring = np.stack([x + across, y + 0.32 * along - 0.15 * across], 1)
            sheet.line(ring, (214, 194, 164), width * r, 170)
        image = sheet.over(image, 0.001)
    return image
