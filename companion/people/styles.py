"""Picture styles: filters over a finished picture with numpy, scipy and Pillow.

Widths are in units of 1/256 of the picture, so that a style looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from companion.people.scenery.sheet import noise
from fusionlib.errors import FusionError

Array = np.ndarray

LENS_STYLES = ("photo", "noir", "faded film", "neon")
"""Photographic styles; the others are drawn, so their scenes are sharper."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _blur(x: Array, sigma: float) -> Array:
    """Blur (H, W) or (H, W, 3) floats; wide blurs are computed on fewer pixels."""
    from scipy.ndimage import gaussian_filter

    if sigma < 3:
        return np.asarray(gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], truncate=3.0))
    height, width = x.shape[:2]
    step = 2 if sigma < 8 else 4
    bands = [x] if x.ndim == 2 else [x[..., k] for k in range(3)]
    soft = []
    for band in bands:
        small = Image.fromarray(np.ascontiguousarray(band, np.float32)).reduce(step)
        smooth = gaussian_filter(np.asarray(small), sigma / step, truncate=3.0)
        big = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
        soft.append(np.asarray(big))
    return soft[0] if x.ndim == 2 else np.stack(soft, -1)


def _smooth(image: Array, unit: float) -> Array:
    """Smooth (H, W, 3) floats in 0..1 by a median, which removes detail and keeps edges."""
    picture = Image.fromarray((image * 255).astype(np.uint8))
    step = max(1, round(unit))
    flat = picture.reduce(step).filter(ImageFilter.MedianFilter(3))
    whole = flat.resize(picture.size, Image.Resampling.BICUBIC)
    return np.asarray(whole, np.float32) / 255


def _ink(gray: Array, unit: float, width: float = 1.1, gain: float = 26.0) -> Array:
    """Return (H, W) pen lines, 0 (none) to 1 (black), from a difference of Gaussians."""
    fine, broad = _blur(gray, width * unit), _blur(gray, 1.7 * width * unit)
    # The difference is relative to the tone, so dark hair and light skin get equal lines.
    dip = (broad - fine) / (broad + 0.12)
    return np.clip(gain * (dip - 0.018), 0, 1)


def _outline(figure: Array | None, unit: float, width: float) -> Array:
    """Return an (H, W) line along the figure's silhouette in 0..1; 0 without a figure."""
    if figure is None:
        return np.zeros((), np.float32)
    soft = _blur(figure, width * unit)
    return np.clip((4 * soft * (1 - soft) - 0.45) * 3.0, 0, 1)


def _noir(x: Array, unit: float, rng: np.random.Generator, figure: Array | None) -> Array:
    gray = x @ np.array([0.40, 0.50, 0.10], np.float32)  # close to orthochromatic film
    height, width = gray.shape
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    side = rng.choice([-1, 1])
    light = 0.74 + 0.42 * np.clip(side * u * 0.9 - 0.25 * v, -1, 0.7)
    blinds = 0.0
    if rng.random() < 0.5:  # light through a blind, on the wall
        slats = np.sin((v + 0.22 * u) * rng.uniform(16, 22) + rng.uniform(0, 6))
        blinds = 0.22 * np.clip(4 * slats, -1, 1)
    if figure is not None:
        light = light + blinds * (1 - figure)
        gray = gray * (1 - 0.35 * (1 - figure))
    bright = np.clip(gray * light * 1.25, 0, 1)
    tone = bright**1.25 / (bright**1.25 + 0.30 * (1 - bright) ** 1.1 + 1e-6)
    tone = tone + 0.25 * _blur(np.clip(tone - 0.75, 0, 1), 7 * unit)  # bright places bloom
    vignette = 1 - 0.55 * np.clip(u**2 + v**2 - 0.5, 0, 2) / 1.5
    grain = 0.030 * _blur(rng.standard_normal((height, width), np.float32), 0.7 * unit)
    out = tone * vignette + grain / (0.3 + 0.7 * unit)
    return np.repeat(out[..., None], 3, 2)


def _line_art(x: Array, unit: float, rng: np.random.Generator, figure: Array | None) -> Array:
    gray = _blur(x @ _LUMA, 0.5 * unit)
    pen = np.maximum(_ink(gray, unit, 0.75, 34), 0.55 * _ink(gray, unit, 1.5, 16))
    if figure is not None:  # the scene has lighter lines
        pen = pen * (0.40 + 0.60 * np.clip(1.2 * figure, 0, 1))
    pen = np.maximum(pen, _outline(figure, unit, 0.9))
    pen = np.clip(1.3 * _blur(pen, 0.4 * unit), 0, 1)
    paper = rng.uniform(0.97, 1.0)
    return np.repeat((paper * (1 - 0.93 * pen))[..., None], 3, 2)


def _watercolor(x: Array, unit: float, rng: np.random.Generator, figure: Array | None) -> Array:
    from scipy.ndimage import map_coordinates

    size = len(x)
    wobble = [1.3 * unit * noise(size, rng, 18, 1) for _ in range(2)]
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    y = _smooth(x, unit)
    face = 0.0 if figure is None else figure
    keep = 1 - 0.6 * face  # less distortion on the face
    where = [rows + keep * wobble[0], columns + keep * wobble[1]]
    y = np.stack([map_coordinates(y[..., k], where, order=1, mode="nearest") for k in range(3)], -1)
    mean = y.mean(-1, keepdims=True)
    # Washes are a few tones with soft steps between them, in stronger hues.
    steps = 6 * mean
    washed = (np.floor(steps) + np.clip(4 * (steps % 1) - 1.5, 0, 1)) / 6
    tone = 0.55 * mean + 0.45 * washed
    y = np.clip(tone + 1.3 * (y - mean), 0, 1)
    # Pigment collects at the edge of a wash and settles unevenly in the paper.
    edge = np.abs(y.mean(-1) - _blur(y.mean(-1), 2.2 * unit))
    paper = noise(size, rng, 90, 1)
    flow = noise(size, rng, 5, 2)
    density = 1 + 2.2 * np.clip(edge - 0.015, 0, 0.12) + 0.09 * flow + 0.045 * paper
    y = np.clip(0.10 + 0.92 * y, 0.02, 1) ** (1.05 * density[..., None])
    v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    rim = np.maximum(np.abs(u), np.abs(v)) + 0.026 * noise(size, rng, 5, 3)
    margin = np.clip(16 * (rim - 0.91), 0, 1)
    brim = np.exp(-(((rim - 0.90) / 0.013) ** 2))  # the last drop dries darker
    sheet = (0.975 + 0.012 * paper)[..., None] * np.array([1.0, 0.995, 0.975])
    y = y * (1 - 0.12 * brim[..., None])
    return y + margin[..., None] * (sheet - y)


def _faded_film(x: Array, unit: float, rng: np.random.Generator, figure: Array | None) -> Array:
    height, width = x.shape[:2]
    mean = (x @ _LUMA)[..., None]
    y = _blur(mean + 0.55 * (x - mean), 0.7 * unit)
    y = y + 0.15 * _blur(np.clip(y - 0.7, 0, 1), 8 * unit)
    out = (0.19 + 0.70 * y) * np.array([1.10, 1.0, 0.80], np.float32)
    out = out + np.array([0.0, 0.0, 0.055], np.float32) * (1 - y)  # shadows turn blue
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    out = out * (1 - 0.16 * np.clip(u**2 + v**2 - 0.4, 0, 2))[..., None]
    if rng.random() < 0.6:  # a light leak at one side
        leak = np.exp(-(((u * rng.choice([-1, 1]) - 1.05) / 0.22) ** 2)) * (
            0.7 + 0.3 * np.cos(2 * v)
        )
        out = out + 0.42 * leak[..., None] * np.array([1.0, 0.45, 0.12])
    grain = _blur(rng.standard_normal((height, width), np.float32), 0.6 * unit)
    return out + 0.032 * grain[..., None]


def _neon(x: Array, unit: float, rng: np.random.Generator, figure: Array | None) -> Array:
    height, width = x.shape[:2]
    gray = x @ _LUMA
    u = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.ones((height, 1), np.float32)
    pairs = [
        ((1.0, 0.12, 0.62), (0.05, 0.78, 1.0)),
        ((0.62, 0.2, 1.0), (0.1, 1.0, 0.75)),
        ((1.0, 0.3, 0.2), (0.25, 0.4, 1.0)),
    ]
    left, right = (np.asarray(c, np.float32) for c in pairs[int(rng.choice(3, p=[0.6, 0.2, 0.2]))])
    if rng.random() < 0.5:
        left, right = right, left
    body = np.ones_like(gray) if figure is None else figure
    middle = float((u * body).sum() / max(float(body.sum()), 1e-6))
    side = np.clip(0.5 + 1.1 * (u - middle) / 0.9, 0, 1)[..., None]
    lamp = left + side * (right - left)
    # Between the two lamps, one at each side, the face keeps some of its own colour.
    form = np.clip(1.15 * gray, 0, 0.92) ** 1.3
    between = np.exp(-(((u - middle) / 0.34) ** 2))[..., None]
    own = x * np.array([0.92, 0.80, 1.0], np.float32)
    person = form[..., None] * (0.18 + 0.95 * lamp) * (1 - 0.55 * between) + 0.75 * between * own
    dark = np.array([0.10, 0.07, 0.20], np.float32) * (0.35 + gray[..., None])
    glow = np.clip(_ink(1 - gray, unit, 1.6, 12) + 1.6 * np.clip(gray - 0.72, 0, 1), 0, 1)
    scene = dark + 0.75 * glow[..., None] * lamp
    y = scene + body[..., None] * (person - scene)
    if figure is not None:
        soft = _blur(figure, 4.5 * unit)
        rim = np.clip((1 - soft) * 2.2 - 0.25, 0, 1) * figure
        y = y + 1.1 * rim[..., None] * lamp
        y = y + 0.30 * (soft * (1 - figure))[..., None] * lamp
    bright = np.clip(y - 0.45, 0, 1)
    return y * 0.94 + 0.30 * _blur(bright, 5 * unit) + 0.35 * _blur(bright, 14 * unit)


def _comic(x: Array, unit: float, rng: np.random.Generator, figure: Array | None) -> Array:
    size = len(x)
    y = _smooth(x, unit)
    gray = _blur(y @ _LUMA, 0.8 * unit)[..., None]
    levels = np.array([0.14, 0.38, 0.62, 0.84, 1.0], np.float32)
    edges = np.array([0.16, 0.36, 0.56, 0.76], np.float32)
    steps = np.clip((gray - edges) * 14 + 0.5, 0, 1)  # four slightly soft steps
    flat = levels[0] + (steps * np.diff(levels)).sum(-1, keepdims=True)
    color = np.clip(flat * (1 + 1.35 * (y - gray) / np.maximum(gray, 0.18)), 0, 1)
    # Halftone dots lie on a rotated grid and grow with darkness; light and black have none.
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    pitch = 5.0 * unit
    a, b = (rows + columns) * (0.7071 / pitch), (rows - columns) * (0.7071 / pitch)
    wave = 0.5 + 0.25 * (np.cos(2 * np.pi * a) + np.cos(2 * np.pi * b))
    tone = gray[..., 0]
    room = np.clip(4 * (tone - 0.16), 0, 1) * np.clip(6 * (0.80 - tone), 0, 1)
    dots = np.clip(9 * (wave - (0.45 + 0.55 * tone)), 0, 1) * room
    strength = 0.30 if figure is None else 0.42 - 0.24 * figure
    color = color * (1 - (strength * dots)[..., None])
    line = _blur(x @ _LUMA, 0.7 * unit)
    ink = np.maximum(_ink(line, unit, 1.5, 30), _outline(figure, unit, 2.0))
    if figure is not None:
        ink = ink * (0.55 + 0.45 * np.clip(1.3 * _blur(figure, 2 * unit), 0, 1))
    return color * (1 - 0.96 * np.clip(1.3 * _blur(ink, 0.5 * unit), 0, 1))[..., None]


_FILTER: dict[str, Callable[[Array, float, np.random.Generator, Array | None], Array]] = {
    "noir": _noir,
    "line art": _line_art,
    "watercolor": _watercolor,
    "faded film": _faded_film,
    "neon": _neon,
    "comic": _comic,
}


def apply_style(
    image: Array, style: str, rng: np.random.Generator, *, figure: Array | None = None
) -> Array:
    """Filter a picture into one of the styles.

    Args:
        image: (H, H, 3) uint8 picture.
        style: `photo` (unchanged), `noir`, `line art`, `watercolor`, `faded film`, `neon`, `comic`.
        rng: Source of the grain, the washes and the side of the lamps.
        figure: (H, H) share of each pixel that people cover, 0..1, which outlines and rim lights
            follow.

    Returns:
        (H, H, 3) uint8 picture.

    Raises:
        FusionError: If the style is unknown.
    """
    if style == "photo":
        return image
    if style not in _FILTER:
        raise FusionError(f"Unknown style '{style}': choose one of photo, {', '.join(_FILTER)}.")
    cover = None if figure is None else figure.astype(np.float32)
    out = _FILTER[style](image.astype(np.float32) / 255, len(image) / 256, rng, cover)
    return (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8)
