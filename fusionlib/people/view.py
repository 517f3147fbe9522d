"""How one picture of a person differs from another: sampled from integers alone.

`sample_view(seed, index, view)` fixes everything that belongs to one picture (pose, expression,
light, background, style, clothes) and nothing that belongs to the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusionlib.people.sampling import Color, jitter_color, stream

EXPRESSIONS = ("neutral", "laughing", "angry", "crying")
STYLES = ("photo", "noir", "line art", "watercolor", "faded film")
STYLE_WEIGHTS = (0.70, 0.075, 0.075, 0.075, 0.075)
BACKGROUNDS = ("studio", "beach", "forest", "city", "snow", "night", "garden", "library")


@dataclass(frozen=True)
class View:
    """One picture of a person: angles in degrees, offsets as a fraction of the picture."""

    index: int
    yaw: float
    pitch: float
    roll: float
    expression: str
    intensity: float
    jitter: tuple[float, float, float]
    gaze: tuple[float, float]
    light_azimuth: float
    light_elevation: float
    light_strength: float
    light_warmth: float
    background: str
    style: str
    garment: Color
    caption_seed: int
    headwear: str = "none"
    headwear_color: Color = (0.16, 0.22, 0.38)


def sample_view(seed: int, index: int, view: int) -> View:
    """Sample picture number `view` of person number `index`.

    View 0 is always the reference: neutral, frontal (|yaw| < 5 degrees), even light, photo.
    The expressions of views 1, 2, 3, ... run through a shuffled list of all four, so that any
    few views of a person differ in expression.
    """
    reference = view == 0
    rng = stream("view", seed, index, view)
    order = stream("order", seed, index, (view - 1) // 4 if view else 0).permutation(4)
    expression = "neutral" if reference else EXPRESSIONS[int(order[(view - 1) % 4])]
    warmth = float(rng.normal(0.0, 0.10))
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    style = "photo" if reference else STYLES[int(rng.choice(len(STYLES), p=STYLE_WEIGHTS))]
    return View(
        index=view,
        yaw=float(rng.uniform(-4.5, 4.5) if reference else rng.uniform(-20.0, 20.0)),
        pitch=float(rng.uniform(-2.0, 2.0) if reference else rng.uniform(-8.0, 8.0)),
        roll=0.0 if reference else float(rng.normal(0.0, 2.0)),
        expression=expression,
        intensity=float(rng.uniform(0.8, 1.0)),
        jitter=(
            float(rng.normal(0.0, 0.008)),
            float(rng.normal(0.0, 0.008)),
            float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05)),
        ),
        gaze=(float(rng.normal(0.0, 4.0)), float(rng.normal(0.0, 2.0))),
        light_azimuth=float(rng.uniform(-15, 15) if reference else rng.uniform(-65, 65)),
        light_elevation=float(rng.uniform(20, 50)),
        light_strength=float(rng.uniform(0.45, 0.55) if reference else rng.uniform(0.45, 0.85)),
        light_warmth=0.0 if reference else float(np.clip(warmth, -0.2, 0.2)),
        background=background if style != "line art" else "studio",
        style=style,
        garment=_sample_garment(rng),
        caption_seed=int(rng.integers(2**31)),
    )


def _sample_garment(rng: np.random.Generator) -> Color:
    palette = [
        (0.12, 0.13, 0.16),
        (0.90, 0.90, 0.88),
        (0.20, 0.30, 0.55),
        (0.60, 0.14, 0.16),
        (0.18, 0.40, 0.26),
        (0.80, 0.62, 0.22),
        (0.45, 0.30, 0.50),
        (0.50, 0.50, 0.52),
    ]
    return jitter_color(palette[int(rng.integers(len(palette)))], rng, 0.06)
