"""Indoor scenes: studio, library and kitchen."""

from __future__ import annotations

import numpy as np
from PIL import Image

from companion.people.scenery.sheet import (
    Sheet,
    blurred,
    halo,
    mix,
    noise,
    palette,
    pick,
    screen,
    shade,
)


def studio(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw a plain wall, lit from one side."""
    wall = pick(rng, palette("cdcdcd ded4c6 788ca5 62807a b07058 484a50 e8e2dc beb2c8"), 0.06)
    x, y = rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.55)
    light = 0.72 + 0.38 * halo(size, x, y, rng.uniform(0.4, 0.7)) + 0.018 * noise(size, rng, 3)
    canvas = np.clip(light[..., None] * np.asarray(wall, np.float32), 0, 255)
    return Image.fromarray(canvas.astype(np.uint8)).convert("RGBA")


def library(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw bookshelves seen at an angle, sometimes with a lamp."""
    wood = pick(rng, [(112, 70, 40), (84, 52, 32), (142, 98, 60)])
    wall = Sheet(2 * size)  # drawn large: the turn below enlarges one side
    wall.box(0, 0, 1, 1, shade(wood, 0.28))
    rows = int(rng.integers(5, 7))
    height = 1 / rows
    books = palette("8c2622 22543e 283a70 b08a46 cec2a6 5e284a 3c2e28 c4602c")
    for row in range(rows):
        top, floor = row * height, (row + 0.9) * height
        x = 0.0
        while x < 1:
            if rng.random() < 0.03:
                x += 0.04
            w, tall = rng.uniform(0.016, 0.032), rng.uniform(0.62, 0.92)
            color = pick(rng, books, 0.25)
            y = floor - tall * 0.9 * height
            wall.box(x, y, x + w - 0.002, floor, color)
            wall.box(x, y, x + 0.3 * w, floor, shade(color, 1.25))
            band = (222, 188, 110) if rng.random() < 0.5 else shade(color, 0.6)
            for t in (0.15, 0.22, 0.78):
                wall.box(x, y + t * (floor - y), x + w - 0.002, y + (t + 0.035) * (floor - y), band)
            x += w
        wall.box(0, floor, 1, top + height, wood)
        wall.box(0, floor, 1, floor + 0.03 * height, shade(wood, 1.4))
        wall.box(0, top, 1, top + 0.06 * height, shade(wood, 0.25), 150)
    for x in rng.uniform(0.02, 0.1) + np.arange(0, 1.1, 0.34):
        wall.box(x, 0, x + 0.024, 1, shade(wood, 0.9))
        wall.box(x, 0, x + 0.008, 1, shade(wood, 1.3))
    s, near = 2.0 * size, rng.uniform(0.18, 0.30)  # seen from the side: one end is nearer
    quad = (0.0, near * s, 0.0, (1 - near) * s, s, s, s, 0.0)
    if rng.random() < 0.5:
        quad = (0.0, 0.0, 0.0, s, s, (1 - near) * s, s, near * s)
    image = wall.image.convert("RGB").transform(
        (size, size), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR
    )
    image = blurred(image.convert("RGBA"), 0.007 * blur * size).convert("RGB")
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.0, 0.25)
    lit = np.clip(0.62 + 0.75 * halo(size, x, y, 0.6), 0, 1.35)[..., None]
    pixels = np.clip(np.asarray(image, np.float32) * lit * [1.06, 1.0, 0.88], 0, 255)
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGBA")
    if rng.random() < 0.6:  # a lamp
        x = float(rng.choice([0.12, 0.88])) + rng.uniform(-0.05, 0.05)
        sheet = Sheet(size)
        sheet.line([(x, 0), (x, 0.12)], (60, 44, 30), 0.008)
        sheet.polygon(
            [(x - 0.03, 0.11), (x + 0.03, 0.11), (x + 0.08, 0.2), (x - 0.08, 0.2)], (64, 110, 76)
        )
        sheet.disc(x, 0.205, 0.055, (255, 240, 200), 255, 0.35)
        image = sheet.over(image, 0.008 * blur)
        image = screen(image, 0.7 * halo(size, x, 0.24, 0.16), (255, 214, 140))
    return image


def kitchen(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw tiles, shelves with jars and a counter, with a window or a hood."""
    paint = pick(rng, palette("608478 3e587a d6cebe be7854 e2e2de 785a42"))
    tile = pick(rng, [(240, 240, 236), (222, 232, 232), (244, 234, 216)], 0.03)
    counter = rng.uniform(0.72, 0.78)
    sheet = Sheet(size)
    sheet.box(0, 0, 1, 1, shade(tile, 0.84))
    for row in range(18):
        for column in range(9):
            x, y = (column - 0.5 * (row % 2)) * 0.14, row * 0.062
            sheet.box(
                x + 0.004, y + 0.004, x + 0.136, y + 0.058, shade(tile, rng.uniform(0.95, 1.03))
            )
    left = bool(rng.random() < 0.5)
    if rng.random() < 0.7:  # a window
        x = 0.0 if left else 0.72
        sheet.box(x, 0.08, x + 0.28, 0.56, (250, 250, 248))
        sheet.box(x + 0.02, 0.10, x + 0.26, 0.54, (206, 232, 250))
        sheet.box(x + 0.02, 0.38, x + 0.26, 0.54, (150, 196, 130))
        sheet.box(x + 0.133, 0.10, x + 0.147, 0.54, (250, 250, 248))
        sheet.box(x + 0.02, 0.30, x + 0.26, 0.312, (250, 250, 248))
    else:  # a hood with pans below it
        x = 0.14 if left else 0.86
        sheet.polygon(
            [(x - 0.05, 0), (x + 0.05, 0), (x + 0.13, 0.28), (x - 0.13, 0.28)], (176, 180, 186)
        )
        sheet.polygon([(x, 0), (x + 0.05, 0), (x + 0.13, 0.28), (x + 0.02, 0.28)], (142, 146, 154))
        for k in range(3):
            px = x - 0.09 + 0.09 * k
            sheet.line([(px, 0.3), (px, 0.4)], (60, 60, 64), 0.008)
            sheet.disc(px, 0.44, 0.04, pick(rng, [(190, 110, 70), (70, 72, 78), (150, 154, 160)]))
    at = 0.66 if left else 0.0
    jars = palette("c84632 e6be5a 6e8c46 faf6ee 96603c 4682a0")
    for shelf in (0.24, 0.46):
        x = at + 0.02
        while x < at + 0.31:
            w, h = rng.uniform(0.03, 0.055), rng.uniform(0.07, 0.14)
            color = pick(rng, jars)
            sheet.box(x, shelf - h, x + w, shelf, color)
            sheet.box(x + 0.006, shelf - h, x + 0.014, shelf, mix(color, (255, 255, 255), 0.5))
            sheet.box(x + 0.004, shelf - h - 0.016, x + w - 0.004, shelf - h, shade(color, 0.55))
            x += w + rng.uniform(0.006, 0.02)
        sheet.box(at - 0.02, shelf, at + 0.36, shelf + 0.026, (134, 92, 58))
        sheet.box(at - 0.02, shelf + 0.026, at + 0.36, shelf + 0.05, shade(tile, 0.7), 130)
    sheet.box(0, counter, 1, counter + 0.04, (172, 126, 82))
    sheet.box(0, counter + 0.04, 1, 1, paint)
    for x in (0.0, 0.25, 0.5, 0.75):
        sheet.box(x + 0.015, counter + 0.06, x + 0.235, 1, shade(paint, 1.12))
        sheet.box(x + 0.1, counter + 0.085, x + 0.15, counter + 0.095, (210, 190, 140))
    for _ in range(3):  # fruit and pots on the counter
        x, r = (
            abs((0.0 if rng.random() < 0.5 else 1.0) - rng.uniform(0.05, 0.25)),
            rng.uniform(0.025, 0.045),
        )
        sheet.disc(
            x,
            counter - 0.8 * r,
            r,
            pick(rng, [(226, 120, 40), (196, 40, 40), (120, 160, 50), (240, 200, 70)]),
        )
    image = sheet.over(Image.new("RGBA", (size, size), (*tile, 255)), 0.009 * blur)
    if rng.random() < 0.7:
        x = rng.uniform(0.3, 0.7)
        sheet = Sheet(size)
        sheet.line([(x, 0), (x, 0.06)], (50, 46, 44), 0.008)
        sheet.polygon(
            [(x - 0.02, 0.05), (x + 0.02, 0.05), (x + 0.09, 0.13), (x - 0.09, 0.13)], (60, 60, 62)
        )
        image = sheet.over(image, 0.006 * blur)
        image = screen(image, 0.6 * halo(size, x, 0.16, 0.13), (255, 226, 160))
    return image
