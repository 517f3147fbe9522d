"""The teeth: two rows, of which the lower follows the jaw."""

from __future__ import annotations

import functools

import numpy as np

from companion.people.appearance import Appearance
from companion.people.colors import stream
from companion.people.head import load_head_model
from companion.people.mesh import Mesh, grid_faces, join

Array = np.ndarray

# Widths of the teeth from the middle to the back, in metres.
_UPPER = np.array([0.0088, 0.0068, 0.0078, 0.0070, 0.0070, 0.0100])
_LOWER = np.array([0.0055, 0.0060, 0.0068, 0.0070, 0.0070, 0.0105])


def _row(widths: Array, height: float, down: float, tint: Array, rng: np.random.Generator) -> Mesh:
    """Return a row of teeth with its gum; `down` is 1 for the upper row and -1 for the lower.

    The teeth's edges are at z = 0. The arch's front is at the origin, its ends behind it (y > 0).
    """
    edges = np.concatenate([[0], np.cumsum(widths)])
    s = np.linspace(-edges[-1], edges[-1], 97)
    tooth = np.clip(np.searchsorted(edges, np.abs(s), "right") - 1, 0, len(widths) - 1)
    within = (np.abs(s) - edges[tooth]) / widths[tooth]
    # The arch is close to an ellipse.
    angle = s / 0.0275
    x, y = 0.0245 * np.sin(angle), 0.030 * (1 - np.cos(angle))
    bulge = 0.0009 * np.sqrt(np.clip(1 - (2 * within - 1) ** 2, 0, 1))
    uneven = rng.normal(0, 0.00022, (2, len(widths)))[(s > 0).astype(int), tooth]
    corner = 0.0007 * np.abs(2 * within - 1) ** 4
    shrink = np.interp(tooth, [0, 1, 2, 5], [0.0, 0.0007, 0.0003, 0.0016])
    gap = 1 - 0.16 * np.exp(-((np.minimum(within, 1 - within) / 0.06) ** 2))
    gap = np.where((tooth == 0) & (within < 0.5), np.maximum(gap, 0.85), gap)
    scallop = 0.0012 * np.abs(2 * within - 1) ** 2
    rows, colors = [], []
    gum = np.array([0.72, 0.36, 0.36])
    dim = np.interp(np.abs(s), [0, 0.016, 0.036], [1.0, 0.86, 0.45])[:, None]
    for part in (-0.02, 0.0, 0.25, 0.6, 0.92, 1.0, 1.02, 1.6):
        z = np.clip(part, 0, None) * height
        z = z + (corner + shrink + uneven) * (part < 0.3) - scallop * (0.9 < part < 1.3)
        depth = y - bulge * (0 <= part < 1.01) + 0.0035 * (part < 0)
        depth = depth + (0.0012 if down > 0 else 0.0050) * np.clip(part, 0, 1.1)
        rows.append(np.stack([x, depth, down * z], 1))
        white = tint * (1 - 0.10 * np.clip(part, 0, 1) * np.array([0.3, 0.6, 1.4]))
        color = gum if part > 1.005 else white * gap[:, None]
        colors.append(np.broadcast_to(color * dim, (len(s), 3)))
    faces = grid_faces(len(rows), len(s))
    return Mesh(np.concatenate(rows), faces, np.clip(np.concatenate(colors), 0, 1))


@functools.lru_cache(maxsize=1)
def _inner() -> tuple[Array, Array, Array, Array]:
    """Return vertices: the lips' upper and lower rim, the tongue's front, and the whole rim."""
    model = load_head_model()
    rim = np.intersect1d(model.faces["head"], model.faces["mouth"])
    p = model.template[rim]
    middle = rim[np.abs(p[:, 0]) < 0.012]
    z = model.template[middle, 2]
    tongue = np.unique(model.faces["tongue"])
    front = tongue[model.template[tongue, 1] < np.quantile(model.template[tongue, 1], 0.3)]
    return middle[z > z.mean()], middle[z <= z.mean()], front, rim


def teeth_mesh(person: Appearance, points: Array, neutral: Array) -> Mesh:
    """Return both rows of teeth behind the lips.

    Args:
        person: Person whose teeth they are; it decides their tint and evenness.
        points: (V, 3) vertices of the head with its expression.
        neutral: (V, 3) vertices without expression, which place the upper teeth.
    """
    rng = stream("teeth", person.seed, person.index)
    yellow = float(np.clip(rng.normal(0.3 + 0.005 * (person.age - 40), 0.2), 0, 1))
    tint = np.array([0.93, 0.91, 0.87]) - yellow * np.array([0.04, 0.07, 0.15])
    upper, lower, tongue, rim = _inner()
    line = neutral[rim][:, 2].mean()
    jaw = (points - neutral)[tongue].mean(0)
    front = float(neutral[upper, 1].min()) + 0.0055
    # The lower teeth stand behind the lower lip wherever it goes.
    lip = points[lower].mean(0)
    edge = float(np.clip(line - 0.0042 + jaw[2], lip[2] - 0.0030, lip[2] + 0.0030))
    behind = float(points[lower, 1].min()) + 0.0065
    width = float(np.ptp(neutral[rim, 0])) / 0.052
    scale = np.array([float(np.clip(width, 0.85, 1.15)), 1.0, 1.0])
    top = _row(_UPPER, 0.0100, 1.0, tint, rng)
    bottom = _row(_LOWER, 0.0085, -1.0, 0.96 * tint, rng)
    return join(
        [
            Mesh(top.points * scale + [0, front, line - 0.0030], top.faces, top.colors),
            Mesh(
                bottom.points * scale + [0, max(behind, front + 0.0022), edge],
                bottom.faces,
                bottom.colors,
            ),
        ]
    )
