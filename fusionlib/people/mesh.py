"""Triangle meshes: the pieces of which people, hats and glasses are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh: (V, 3) points, (F, 3) faces, (V, 3) colours in 0..1.

    `normals`: (V, 3) unit vectors where they are not those of the faces.
    """

    points: Array
    faces: Array
    colors: Array
    normals: Array | None = None


def grid_faces(rows: int, columns: int, closed: bool = False) -> Array:
    """(F, 3) triangles of a grid; `closed` joins the last column to the first."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - (not closed)), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.concatenate(
        [np.stack([a, b, e], -1).reshape(-1, 3), np.stack([a, e, d], -1).reshape(-1, 3)]
    )


def join(meshes: list[Mesh]) -> Mesh:
    """Several meshes as one; it has normals if all of them have."""
    starts = np.cumsum([0] + [len(m.points) for m in meshes[:-1]])
    normals = [m.normals for m in meshes if m.normals is not None]
    return Mesh(
        np.concatenate([m.points for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]),
        np.concatenate([m.colors for m in meshes]),
        np.concatenate(normals) if len(normals) == len(meshes) else None,
    )
