"""Picture styles: filters over a finished picture, in plain numpy, scipy and Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from fusionlib.errors import FusionError
from fusionlib.people.scenery import noise
from fusionlib.people.view import STYLES

Array = np.ndarray

LENS_STYLES = ("photo", "noir", "faded film", "neon")
"""Styles that a camera makes; the others are drawn."""


def apply_style(
    image: Array, style: str, rng: np.random.Generator, *, figure: Array | None = None
) -> Array:
    """Filter an (H, W, 3) uint8 picture into one of the styles."""
    return image
