"""Augmentation: changes of a picture that leave its identity and labels as they are.

The judges, `companion.embedded.recogniser` and `companion.embedded.classifier`, learn from renders
and are applied to generated pictures, which are softer, less regularly framed and differ in colour.
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
"""Largest change of brightness, contrast and saturation, as a share. The tint, a change of each
channel's brightness, is at most half as large."""

NOISE = 0.06
"""Largest standard deviation of pixel noise; pixels range from -1 to 1."""

BLURS = (2, 3)
"""Factors by which a picture may be shrunk and enlarged again."""


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, turn, shift, scale, recolour, soften and add noise, independently for each picture.

    Args:
        pixels: Pictures ``(batch, 3, height, width)`` in [-1, 1].
        generator: Generator on the pictures' device. The changes depend on it and on the size of
            the batch alone.

    Returns:
        Pictures of the same shape and range.
    """
    return noisy(softened(recoloured(moved(pixels, generator), generator), generator), generator)


def moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures; turn, shift and scale all slightly, with repeated edges."""
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
    """Change brightness, contrast, saturation and tint."""
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
    """Add noise of a different strength to each picture."""
    strength = _rand((len(pixels), 1, 1, 1), generator).square() * NOISE
    noise = torch.randn(pixels.shape, generator=generator, device=generator.device)
    return (pixels + strength * noise).clamp(-1, 1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [-1, 1]."""
    return _rand(shape, generator) * 2 - 1


def _rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)
