"""Colours and random choices that depend on their keys alone."""

from __future__ import annotations

import zlib

import numpy as np

Color = tuple[float, float, float]


def stream(*keys: int | str) -> np.random.Generator:
    """Return a random generator that depends on `keys` alone, in every process."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in keys]
    return np.random.default_rng(words)


def jitter_color(color: Color, rng: np.random.Generator, amount: float) -> Color:
    """Make a colour a little lighter or darker; `amount` is the relative standard deviation."""
    shift = rng.normal(0.0, amount) + rng.normal(0.0, amount / 5, 3)
    r, g, b = (float(c) for c in np.clip(np.asarray(color) * (1 + shift), 0.02, 0.98))
    return r, g, b


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """Draw one of the names with probabilities proportional to their `weights`."""
    names = list(weights)
    p = np.array([weights[n] for n in names])
    return names[int(rng.choice(len(names), p=p / p.sum()))]
