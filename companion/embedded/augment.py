"""Changes of a picture that do not change whom or what it shows.

The judges, `companion.embedded.recogniser` and `companion.embedded.classifier`, learn from renders
and are asked about generated pictures, which are softer, of other colours and less tidily framed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TURN = 0.12
"""Largest rotation, radians."""

SHIFT = 0.06
"""Largest shift, as a share of the side."""

SCALE = 0.1
"""Largest change of size, as a share."""

COLOUR = 0.25
"""Largest change of brightness, contrast and saturation, as a share; half of it for each channel's
brightness alone."""

NOISE = 0.06
"""Largest standard deviation of pixel noise, where the whole range of a pixel is 2."""

BLURS = (2, 3)
"""How many times smaller a picture may have been before it was enlarged."""


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, turn, shift, scale, recolour, soften and add noise, each picture in its own way.

    Args:
        pixels: ``(batch, 3, height, width)`` in [-1, 1].
        generator: on the pictures' device; what is drawn depends on it and on the batch's size
            alone.

    Returns:
        Pictures of the same shape and range.
    """
    return noisy(softened(recoloured(moved(pixels, generator), generator), generator), generator)


def moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures; turn, shift and scale all a little. Edges are repeated."""
    count = len(pixels)
    flip = torch.where(_rand((count,), generator) < 0.5, -1.0, 1.0)
    angle, across, down, scale = _uniform((4, count), generator)
    cos, sin = (angle * TURN).cos(), (angle * TURN).sin()
    size = 1 + scale * SCALE
    # Rows of the map from a place in the new picture to the place in the old one.
    x = torch.stack([flip * size * cos, flip * -size * sin, across * 2 * SHIFT], dim=1)
    y = torch.stack([size * sin, size * cos, down * 2 * SHIFT], dim=1)
    grid = F.affine_grid(torch.stack([x, y], dim=1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def recoloured(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Other brightness, contrast, saturation and tint."""
    count = len(pixels)
    brightness, contrast, saturation = _uniform((3, count, 1, 1, 1), generator) * COLOUR
    tint = _uniform((count, 3, 1, 1), generator) * COLOUR / 2
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = grey + (pixels - grey) * (1 + saturation)
    middle = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * (1 + contrast)
    return (pixels + brightness + tint).clamp(-1, 1)


def softened(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mix two thirds of the pictures with themselves shrunk by one of `BLURS` and enlarged."""
    count, side = len(pixels), pixels.shape[-2:]
    kind = torch.randint(len(BLURS) + 1, (count,), generator=generator, device=generator.device)
    share = _rand((count, 1, 1, 1), generator)
    result = pixels.clone()
    for number, times in enumerate(BLURS):
        chosen = kind == number
        if not chosen.any():
            continue
        small = F.interpolate(pixels[chosen], scale_factor=1 / times, mode="area")
        blurred = F.interpolate(small, size=side, mode="bilinear", align_corners=False)
        result[chosen] = torch.lerp(pixels[chosen], blurred, share[chosen])
    return result


def noisy(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise, of another strength in each picture."""
    strength = _rand((len(pixels), 1, 1, 1), generator).square() * NOISE
    noise = torch.randn(pixels.shape, generator=generator, device=generator.device)
    return (pixels + strength * noise).clamp(-1, 1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in [-1, 1]."""
    return _rand(shape, generator) * 2 - 1


def _rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)
