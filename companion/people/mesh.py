"""Triangle meshes, of which people, clothes, hats and glasses are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        points: (V, 3) vertices in metres.
        faces: (F, 3) vertex indices.
        colors: (V, 3) colours in 0..1.
        normals: (V, 3) unit vectors; None if they follow from the faces.
        uv: (V, 2) texture coordinates, if there is a texture.
        texture: (H, W, 3) uint8 picture that replaces the colours.
    """

    points: Array
    faces: Array
    colors: Array
    normals: Array | None = None
    uv: Array | None = None
    texture: Array | None = None


def dot(a: Array, b: Array) -> Array:
    """Return the scalar products along the last axis."""
    return np.asarray(np.einsum("...i,...i->...", a, b))  # several times as fast as a sum


def unit(vector: Array) -> Array:
    """Return (..., 3) vectors scaled to length one."""
    return vector / np.maximum(np.sqrt(dot(vector, vector)), 1e-9)[..., None]


def vertex_normals(points: Array, faces: Array) -> Array:
    """Return (V, 3) unit normals, weighted by the areas of the faces."""
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    n = np.cross(b - a, c - a)
    total = np.zeros_like(points)
    for i in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(faces[:, i], n[:, axis], len(points))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def grid_faces(rows: int, columns: int, closed: bool = False) -> Array:
    """Return the (F, 3) triangles of a grid; `closed` joins the last column to the first."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - (not closed)), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.concatenate(
        [np.stack([a, b, e], -1).reshape(-1, 3), np.stack([a, e, d], -1).reshape(-1, 3)]
    )


def grid_mesh(points: Array, colors: Array, closed: bool = False) -> Mesh:
    """Return a mesh over (R, C, 3) points; colours broadcast against them."""
    rows, columns = points.shape[:2]
    flat, faces = points.reshape(-1, 3), grid_faces(rows, columns, closed)
    colors = np.clip(np.broadcast_to(colors, points.shape), 0, 1).reshape(-1, 3)
    return Mesh(flat, faces, colors, vertex_normals(flat, faces))


def join(meshes: list[Mesh]) -> Mesh:
    """Join meshes into one, which has normals if all of them have."""
    starts = np.cumsum([0] + [len(m.points) for m in meshes[:-1]])
    normals = [m.normals for m in meshes if m.normals is not None]
    return Mesh(
        np.concatenate([m.points for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]),
        np.concatenate([m.colors for m in meshes]),
        np.concatenate(normals) if len(normals) == len(meshes) else None,
    )


def tube(path: Array, radius: float, color: Array | tuple[float, float, float]) -> Mesh:
    """Return a tube with eight sides along (N, 3) points."""
    sides = 8
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    up = np.where(np.abs(tangent[:, 1:2]) < 0.9, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    first = np.cross(tangent, up)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangent, first)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = path[:, None] + radius * (
        np.cos(angle)[None, :, None] * first[:, None]
        + np.sin(angle)[None, :, None] * second[:, None]
    )
    colors = np.tile(np.asarray(color), (len(path) * sides, 1))
    return Mesh(ring.reshape(-1, 3), grid_faces(len(path), sides, closed=True), colors)


def ribbons(paths: Array, across: Array, width: Array, colors: Array) -> Mesh:
    """Return flat strands that taper to a point.

    Args:
        paths: (N, K, 3) points of the strands from root to tip.
        across: (N, 3) unit vectors along the strands' width.
        width: (N,) widths at the root, in the unit of the paths.
        colors: (N, 3) or (N, K, 3) colours in 0..1.
    """
    n, k, _ = paths.shape
    taper = np.linspace(1.0, 0.12, k)[None, :, None] * width[:, None, None] / 2
    pair = np.stack([paths - taper * across[:, None], paths + taper * across[:, None]], 2)
    strip = grid_faces(k, 2)
    faces = (strip[None] + (np.arange(n) * 2 * k)[:, None, None]).reshape(-1, 3)
    colors = np.broadcast_to(colors[:, None] if colors.ndim == 2 else colors, (n, k, 3))
    return Mesh(pair.reshape(-1, 3), faces, np.repeat(colors.reshape(-1, 3), 2, 0))
