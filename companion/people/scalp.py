"""The skull in polar coordinates, on which hair grows and headwear lies.

Directions from `HEAD_CENTRE` are bound to the template's vertices once. The skull of a person is
then a map of radii over longitude and polar angle, computed with one product.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from companion.people.hairstyle import Hair, hairline_margin
from companion.people.head import load_head_model

Array = np.ndarray

HEAD_CENTRE = np.array([0.0, -0.055, 0.745])
ROWS, COLUMNS = 51, 120
MAX_POLAR = 150.0
_STEP = MAX_POLAR / (ROWS - 1)


def smoothstep(x: Array | float, low: float, high: float) -> Array:
    """Rise smoothly from 0 at `low` to 1 at `high`; `low` may be the larger."""
    t = np.clip((np.asarray(x) - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def spherical(points: Array) -> tuple[Array, Array]:
    """Return longitudes (0 front, 180 nape) and polar angles from the crown, in degrees."""
    d = points - HEAD_CENTRE
    radius = np.hypot(d[..., 0], d[..., 1])
    longitude = np.degrees(np.arctan2(np.abs(d[..., 0]), -d[..., 1]))
    return longitude, np.degrees(np.arctan2(radius, d[..., 2]))


def direction(longitude: Array, polar: Array) -> Array:
    """Return (..., 3) unit vectors at angles in degrees; the person's left is positive."""
    phi, theta = np.radians(longitude), np.radians(polar)
    return np.stack(
        [np.sin(theta) * np.sin(phi), -np.sin(theta) * np.cos(phi), np.cos(theta) + 0 * phi], -1
    )


@functools.lru_cache(maxsize=1)
def _binding() -> tuple[Array, Array]:
    """Return three head vertices and their weights for each direction of the grid."""
    from scipy.spatial import ConvexHull

    model = load_head_model()
    head = np.unique(np.concatenate([model.faces["head"], model.faces["neck"]]))
    inner = np.unique(np.concatenate([model.faces["mouth"], model.faces["socket"]]))
    head = np.setdiff1d(head, inner)
    head = head[np.abs(model.template[head, 0]) < 0.0775]
    # Ears stand out from the skull, so their vertices are left out.
    longitude, polar = spherical(model.template[head])
    ear = (longitude > 78) & (longitude < 128) & (polar > 78) & (polar < 135)
    head = head[~ear]
    offsets = model.template[head] - HEAD_CENTRE
    directions = offsets / np.linalg.norm(offsets, axis=1)[:, None]
    triangles = ConvexHull(directions).simplices
    inverse = np.linalg.inv(np.swapaxes(directions[triangles], 1, 2) + 1e-9 * np.eye(3))

    polar = np.maximum(np.arange(ROWS) * _STEP, 0.5)[:, None]
    grid = direction(np.arange(COLUMNS)[None] * (360.0 / COLUMNS) - 180.0 + 0 * polar, polar)
    flat = grid.reshape(-1, 3)
    best = np.full(len(flat), -np.inf)
    chosen = np.zeros(len(flat), int)
    weights = np.zeros((len(flat), 3))
    for index in range(0, len(triangles), 256):
        b = np.einsum("tij,nj->nti", inverse[index : index + 256], flat)
        b = b / np.maximum(b.sum(-1, keepdims=True), 1e-9)
        worst = b.min(-1)
        k = worst.argmax(1)
        value = worst[np.arange(len(flat)), k]
        better = value > best
        best[better], chosen[better] = value[better], index + k[better]
        weights[better] = b[np.flatnonzero(better), k[better]]
    weights = np.clip(weights, 0, 1)
    weights /= weights.sum(1, keepdims=True)
    return head[triangles[chosen]].reshape(grid.shape), weights.reshape(grid.shape)


@dataclass(frozen=True)
class Skull:
    """A person's skull as (ROWS, COLUMNS + 1) radii in metres over polar angle and longitude."""

    radius: Array

    def reach(self, points: Array) -> tuple[Array, Array, Array]:
        """Return unit directions to (N, 3) points, their distances, and the skull's there."""
        from scipy.ndimage import map_coordinates

        d = points - HEAD_CENTRE.astype(points.dtype)
        distance = np.sqrt(np.einsum("...i,...i->...", d, d))
        n = d / np.maximum(distance, 1e-9)[..., None]
        polar = np.degrees(np.arccos(np.clip(n[..., 2], -1, 1)))
        longitude = np.degrees(np.arctan2(n[..., 0], -n[..., 1]))
        at = np.stack([polar / _STEP, (longitude + 180.0) * (COLUMNS / 360.0)])
        return n, distance, map_coordinates(self.radius, at, order=1, mode="nearest")

    def surface(self, directions: Array, height: Array | float = 0.0) -> Array:
        """Return (..., 3) points in unit `directions`, `height` metres above the skull."""
        flat = directions.reshape(-1, 3)
        radius = self.reach(HEAD_CENTRE + 0.1 * flat)[2].reshape(directions.shape[:-1])
        return HEAD_CENTRE + (radius + height)[..., None] * directions


def skull(vertices: Array) -> Skull:
    """Return the skull of a head with these (V, 3) vertices in metres."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    chosen, weights = _binding()
    points = np.einsum("rckd,rck->rcd", vertices[chosen], weights)
    d = points - HEAD_CENTRE
    radius = np.linalg.norm(d, axis=-1)
    # Vertices of this head lie in slightly other directions than the template's, so interpolate.
    polar = np.degrees(np.arccos(np.clip(d[..., 2] / radius, -1, 1)))
    longitude = np.degrees(np.arctan2(d[..., 0], -d[..., 1]))
    row, column = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    turned = (longitude + 180.0) * (COLUMNS / 360.0) - column
    turned = (turned + COLUMNS / 2) % COLUMNS - COLUMNS / 2
    turned[:3] = 0
    at = np.stack([2 * row - polar / _STEP, column - turned + COLUMNS])
    radius = map_coordinates(np.tile(radius, (1, 3)), at, order=1, mode="nearest")
    radius[0] = radius[0].mean()
    radius = gaussian_filter(radius, 0.8, mode=("nearest", "wrap"))
    return Skull(np.concatenate([radius, radius[:, :1]], 1).astype(np.float32))


def paint_scalp(
    color: Array, hair: Hair, points: Array, ears: Array, rng: np.random.Generator
) -> Array:
    """Paint the roots of the hair, and very short hair, over the skin.

    Args:
        color: (H, W, 3) colour of the skin.
        hair: Hair to paint.
        points: (H, W, 3) template points of the texels in metres.
        ears: (H, W) mask of the ears in 0..1.
        rng: Random generator.
    """
    from scipy.ndimage import gaussian_filter

    longitude, polar = spherical(points)
    ragged = gaussian_filter(rng.standard_normal(polar.shape, np.float32), 1.6) * 4.0
    margin = hairline_margin(hair, longitude, polar) + 1.6 * ragged
    cover = {"buzz": 0.80, "cropped": 0.85, "horseshoe": 0.75}.get(hair.style, 0.9)
    weight = cover * smoothstep(margin, -2.5, 5.0) * (1 - smoothstep(ears, 0.05, 0.3))
    fine = 1 + 0.13 * gaussian_filter(rng.standard_normal(polar.shape, np.float32), 0.7) * 2.0
    fade = np.ones_like(polar)
    if hair.style in ("buzz", "cropped", "quiff", "fringe crop"):  # clipped shorter at the sides
        fade = 1 - 0.35 * smoothstep(polar, 62, 95)
    base = np.asarray(hair.color) * (1 - hair.gray) + np.array([0.55, 0.55, 0.55]) * hair.gray
    target = base * 0.8 * fine[..., None]
    return color + (target - color) * (weight * fade)[..., None]
