"""Depth maps as a depth ControlNet takes them: near is bright, the background is black."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray

FARTHEST = 64  # grey level of a figure's farthest point: well above the background's 0


def read_distance(plotter: Any) -> Array:
    """(P, P) float32 distance along the camera's axis of what was drawn last, metres.

    Args:
        plotter: a `pyvista.Plotter` whose window was just rendered; its z-buffer is read.

    Returns:
        Infinite where nothing was drawn.
    """
    return -np.asarray(plotter.get_image_depth(fill_value=-np.inf), np.float32)


def halve(distance: Array) -> Array:
    """(P / 2, P / 2) the nearest of each four: a mean with an infinite distance is none."""
    half = len(distance) // 2
    return distance.reshape(half, 2, half, 2).min((1, 3))


def inverse_depth(distance: Array) -> Array:
    """A depth map: inverse distance, stretched over the people of the picture.

    Args:
        distance: (H, W) metres, > 0; infinite where the background is.

    Returns:
        (H, W) uint8: 255 for the nearest point, `FARTHEST` for the farthest of a figure, linear in
        1 / metres between; 0 for the background. Like the relative depth that estimators such as
        MiDaS give, it has no unit.
    """
    seen = np.isfinite(distance)
    level = np.zeros(distance.shape, np.uint8)
    if seen.any():
        inverse = 1 / distance[seen].astype(np.float64)
        span = max(float(np.ptp(inverse)), 1e-9)
        level[seen] = np.round(FARTHEST + (255 - FARTHEST) * (inverse - inverse.min()) / span)
    return level
