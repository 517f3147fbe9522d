"""Backgrounds and picture styles: plain numpy and Pillow, no files.

A background is soft colour fields and a few shapes, out of focus; enough for "at the beach" to
be seen and said. A style is a filter over the finished picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fusionlib.errors import FusionError
from fusionlib.people.view import BACKGROUNDS, STYLES

Array = np.ndarray
RGB = tuple[int, int, int]


def _gradient(size: int, stops: list[tuple[float, RGB]]) -> Image.Image:
    rows = np.linspace(0, 1, size)
    at = [s for s, _ in stops]
    column = np.stack([np.interp(rows, at, [c[i] for _, c in stops]) for i in range(3)], -1)
    return Image.fromarray(np.repeat(column[:, None], size, 1).astype(np.uint8), "RGB")


def _shade(color: RGB, factor: float) -> RGB:
    r, g, b = (int(np.clip(c * factor, 0, 255)) for c in color)
    return r, g, b


def draw_background(name: str, size: int, rng: np.random.Generator) -> Array:
    """(size, size, 3) uint8 background of one of the eight kinds.

    Raises:
        FusionError: For an unknown name.
    """
    if name not in BACKGROUNDS:
        raise FusionError(f"Unknown background '{name}': choose one of {', '.join(BACKGROUNDS)}.")
    s = float(size)
    blur = 0.03  # of the side: a portrait lens, wide open
    if name == "studio":
        v = int(rng.uniform(170, 235))
        image = _gradient(size, [(0, (v, v, v)), (1, (v - 35, v - 35, v - 32))])
    elif name == "beach":
        h = rng.uniform(0.45, 0.6)
        image = _gradient(
            size,
            [
                (0, (120, 185, 235)),
                (h, (200, 228, 245)),
                (h + 0.01, (30, 120, 165)),
                (h + 0.2, (70, 170, 190)),
                (h + 0.22, (235, 215, 165)),
                (1, (215, 185, 130)),
            ],
        )
    elif name == "forest":
        image = _gradient(size, [(0, (110, 150, 80)), (0.6, (40, 85, 40)), (1, (25, 50, 25))])
        draw = ImageDraw.Draw(image)
        for _ in range(9):
            x, w = rng.uniform(0, s), rng.uniform(0.02, 0.06) * s
            draw.rectangle([x, 0, x + w, s], fill=_shade((62, 45, 30), rng.uniform(0.7, 1.3)))
        for _ in range(26):
            x, y, r = rng.uniform(0, s), rng.uniform(0, 0.7 * s), rng.uniform(0.04, 0.1) * s
            draw.ellipse(
                [x - r, y - r, x + r, y + r], fill=_shade((60, 120, 50), rng.uniform(0.5, 1.4))
            )
    elif name == "city":
        image = _gradient(size, [(0, (165, 190, 215)), (1, (205, 205, 205))])
        draw = ImageDraw.Draw(image)
        x = -0.05 * s
        while x < s:
            w, h = rng.uniform(0.12, 0.22) * s, rng.uniform(0.35, 0.85) * s
            wall = _shade((120, 112, 110), rng.uniform(0.6, 1.2))
            draw.rectangle([x, s - h, x + w, s], fill=wall)
            for wx in np.arange(x + 0.02 * s, x + w - 0.03 * s, 0.05 * s):
                for wy in np.arange(s - h + 0.03 * s, s, 0.07 * s):
                    draw.rectangle([wx, wy, wx + 0.025 * s, wy + 0.035 * s], fill=_shade(wall, 1.5))
            x += w
        blur = 0.028
    elif name == "snow":
        image = _gradient(
            size, [(0, (185, 200, 222)), (0.55, (225, 232, 242)), (1, (250, 251, 254))]
        )
        draw = ImageDraw.Draw(image)
        for _ in range(7):
            x, h, w = rng.uniform(0, s), rng.uniform(0.25, 0.5) * s, rng.uniform(0.06, 0.12) * s
            base = 0.62 * s
            draw.polygon([(x - w, base), (x + w, base), (x, base - h)], fill=(110, 135, 140))
        for _ in range(60):
            x, y, r = rng.uniform(0, s), rng.uniform(0, s), rng.uniform(0.006, 0.014) * s
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))
        blur = 0.026
    elif name == "night":
        image = _gradient(size, [(0, (10, 12, 32)), (1, (28, 24, 52))])
        draw = ImageDraw.Draw(image)
        for _ in range(34):
            x, y, r = rng.uniform(0, s), rng.uniform(0, s), rng.uniform(0.015, 0.04) * s
            lamp = [(255, 190, 90), (240, 110, 80), (120, 170, 255), (255, 230, 170)][
                rng.integers(4)
            ]
            draw.ellipse([x - r, y - r, x + r, y + r], fill=_shade(lamp, rng.uniform(0.5, 1.0)))
    elif name == "garden":
        image = _gradient(size, [(0, (150, 205, 240)), (0.3, (150, 205, 120)), (1, (80, 150, 60))])
        draw = ImageDraw.Draw(image)
        for _ in range(46):
            x, y, r = rng.uniform(0, s), rng.uniform(0.25 * s, s), rng.uniform(0.015, 0.032) * s
            bloom = [(235, 80, 120), (250, 215, 70), (240, 240, 240), (190, 90, 200)][
                rng.integers(4)
            ]
            draw.ellipse([x - r, y - r, x + r, y + r], fill=bloom)
        blur = 0.03
    else:  # library
        image = _gradient(size, [(0, (95, 62, 38)), (1, (60, 38, 24))])
        draw = ImageDraw.Draw(image)
        for shelf in range(4):
            top = (0.02 + 0.25 * shelf) * s
            x = 0.0
            while x < s:
                w = rng.uniform(0.025, 0.05) * s
                book = [(140, 40, 35), (40, 80, 60), (45, 60, 110), (170, 135, 70), (200, 190, 165)]
                draw.rectangle(
                    [x, top + rng.uniform(0, 0.04) * s, x + w, top + 0.21 * s],
                    fill=_shade(book[rng.integers(5)], rng.uniform(0.7, 1.1)),
                )
                x += w + 1
        blur = 0.026
    return np.asarray(image.filter(ImageFilter.GaussianBlur(blur * s)))


def apply_style(image: Array, style: str, rng: np.random.Generator) -> Array:
    """Filter an (H, W, 3) uint8 picture into one of the styles.

    Raises:
        FusionError: For an unknown style.
    """
    from scipy.ndimage import gaussian_filter

    if style not in STYLES:
        raise FusionError(f"Unknown style '{style}': choose one of {', '.join(STYLES)}.")
    if style == "photo":
        return image
    x = image.astype(np.float32) / 255
    height, width = x.shape[:2]
    gray = x @ np.array([0.299, 0.587, 0.114], np.float32)
    unit = height / 256  # filter widths were chosen on 256 pixels
    if style == "noir":
        yy, xx = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        vignette = 1 - 0.40 * np.clip(xx**2 + yy**2 - 0.35, 0, 2) / 1.65
        g = np.clip((gray - 0.5) * 1.45 + 0.46, 0, 1) * vignette
        out = np.repeat(g[..., None], 3, 2)
    elif style == "line art":
        fine = gaussian_filter(gray, 1.0 * unit)
        broad = gaussian_filter(gray, 2.4 * unit)
        edge = np.clip(1 - 16 * np.clip(broad - fine - 0.006, 0, 1), 0, 1)
        tone = np.where(gaussian_filter(gray, 1.5 * unit) < 0.28, 0.55, 1.0)
        out = np.repeat((edge * gaussian_filter(tone, 0.8 * unit))[..., None], 3, 2)
    elif style == "watercolor":
        soft = Image.fromarray(image).filter(
            ImageFilter.MedianFilter(2 * max(1, round(2 * unit)) + 1)
        )
        y = gaussian_filter(np.asarray(soft, np.float32) / 255, (1.0 * unit, 1.0 * unit, 0))
        mean = y.mean(-1, keepdims=True)
        flat = 0.5 * mean + 0.5 * np.round(mean * 5) / 5  # washes of paint: few tones, own hue
        y = y * flat / np.maximum(mean, 0.02)
        mean = flat
        wash = gaussian_filter(rng.normal(0, 1, (height, width)).astype(np.float32), 6 * unit)
        wash = wash / max(float(wash.std()), 1e-6)
        out = np.clip(mean + 1.35 * (y - mean), 0, 1)
        out = 0.14 + 0.86 * out**0.85 + 0.030 * wash[..., None]
    else:  # faded film
        mean = gray[..., None]
        y = mean + 0.6 * (x - mean)
        out = (0.16 + 0.74 * y) * np.array([1.08, 1.0, 0.84], np.float32)
        out = out + rng.normal(0, 0.012, (height, width, 1))
    return (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8)
