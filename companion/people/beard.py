"""A beard's hairs as thin strands that stand off the chin, for its outline and shadows."""

from __future__ import annotations

import functools

import numpy as np

from companion.people.appearance import Appearance
from companion.people.colors import stream
from companion.people.head import load_head_model
from companion.people.mesh import Mesh, ribbons
from companion.people.skin import beard_color, beard_weight, lip_weight

Array = np.ndarray

# Number of strands, and their lengths at the chin and on the upper lip in metres.
_GROWTH: dict[str, tuple[int, float, float]] = {
    "short": (1500, 0.0042, 0.0036),
    "full": (2200, 0.0115, 0.0068),
    "goatee": (900, 0.0100, 0.0062),
    "moustache": (420, 0.0060, 0.0068),
}


@functools.lru_cache(maxsize=8)
def _candidates(beard: str) -> tuple[Array, Array, Array]:
    """Return the head's triangles where a beard grows, their shares of the strands, and weights."""
    model = load_head_model()
    faces = model.faces["head"]
    t = model.template
    lips = np.zeros(len(t))
    np.maximum.at(lips, model.uv_vertex, lip_weight())
    centre = t[faces].mean(1)
    weight = beard_weight(beard, centre[:, 0], centre[:, 1], centre[:, 2])
    weight = weight * (lips[faces].max(1) < 0.25)
    inner = np.unique(model.faces["mouth"])
    weight = weight * ~np.isin(faces, inner).any(1)
    a, b = t[faces[:, 1]] - t[faces[:, 0]], t[faces[:, 2]] - t[faces[:, 0]]
    share = weight * np.linalg.norm(np.cross(a, b), axis=1)
    kept = share > 0
    return faces[kept], share[kept] / max(share.sum(), 1e-12), weight[kept]


def beard_mesh(person: Appearance, points: Array, normals: Array) -> Mesh | None:
    """Return the strands of a beard, or None if there is none long enough to stand off.

    Args:
        person: Person whose beard it is.
        points: (V, 3) vertices of the head model in metres.
        normals: (V, 3) unit normals.
    """
    if person.beard not in _GROWTH:
        return None
    count, chin_length, lip_length = _GROWTH[person.beard]
    faces, share, weight = _candidates(person.beard)
    rng = stream("beard", person.seed, person.index)
    chosen = rng.choice(len(faces), count, p=share)
    mix = rng.dirichlet([1.0, 1.0, 1.0], count)
    corners = faces[chosen]
    root = (points[corners] * mix[..., None]).sum(1)
    outward = (normals[corners] * mix[..., None]).sum(1)

    marks = load_head_model().landmarks
    above = root[:, 2] > marks.mouth[2] - 0.001
    side = np.sign(root[:, 0]) * np.clip(np.abs(root[:, 0]) / 0.02, 0, 1)
    fall = np.stack([0.25 * side, 0 * side - 0.15, -np.ones(count)], 1)
    fall[above, 0] = 0.9 * side[above]
    fall = fall + rng.normal(0, 0.17, (count, 3))
    length = np.where(above, lip_length, chin_length * np.clip(weight[chosen], 0.25, 1) ** 1.2)
    # The chin's hair is the longest.
    length = length * np.where(above, 1, np.interp(np.abs(root[:, 0]), [0.0, 0.05], [1.15, 0.6]))
    length = (length * rng.uniform(0.55, 1.1, count))[:, None]
    middle = root + length * (0.28 * outward + 0.35 * fall)
    tip = root + length * (0.24 * outward + 0.85 * fall)
    across = np.cross(outward, fall)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    tone = 1 + rng.normal(0, 0.16, (count, 1))
    color = np.clip(beard_color(person) * tone, 0.02, 1)
    gray = rng.random(count) < np.interp(person.age, [40, 70], [0.0, 0.35])
    color[gray] = 0.5 * color[gray] + 0.5 * np.array([0.62, 0.61, 0.60])
    width = rng.uniform(0.0005, 0.0009, count)
    return ribbons(np.stack([root - 0.001 * outward, middle, tip], 1), across, width, color)
