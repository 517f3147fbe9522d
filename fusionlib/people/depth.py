"""Depth maps as a depth ControlNet takes them: near is bright, the background is black."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusionlib.errors import FusionError

Array = np.ndarray

BACKDROP = 0.4  # metres from the heads to the wall that the background is taken for


def read_distance(plotter: Any) -> Array:
    """(H, W) distance along the camera's axis of what was drawn last, metres; NaN for nothing.

    Args:
        plotter: a `pyvista.Plotter` whose window was just rendered; its z-buffer is read.
    """
    return -np.asarray(plotter.get_image_depth(fill_value=np.nan), np.float32)


def inverse_depth(distance: Array, wall: float) -> Array:
    """A depth map: inverse distance, stretched over the picture's own range.

    Args:
        distance: (H, W) metres, > 0; NaN where there is nothing.
        wall: distance of the background, metres: what lies there or behind is 0.

    Returns:
        (H, W) uint8: 255 for the nearest point of the picture, 0 for the background. Like the
        relative depth that estimators such as MiDaS give, it has no unit.

    Raises:
        FusionError: If nothing stands before the wall.
    """
    nearest = np.nanmin(distance) if np.isfinite(distance).any() else np.inf
    if not 0 < nearest < wall:
        raise FusionError(
            f"distance has no point before the wall at {wall:g} m (the nearest is at "
            f"{nearest:g} m): render the people first, or move the wall back."
        )
    shown = np.nan_to_num(distance, nan=wall)
    level = (1 / shown - 1 / wall) / (1 / nearest - 1 / wall)
    return (np.clip(level, 0, 1) * 255 + 0.5).astype(np.uint8)
