"""Eyeballs with a structured iris, and lashes that follow the lids."""

from __future__ import annotations

import functools

import numpy as np

from companion.people.appearance import Appearance
from companion.people.colors import stream
from companion.people.head import HeadModel, load_head_model
from companion.people.mesh import Mesh, grid_faces, join, ribbons
from companion.people.scalp import smoothstep

Array = np.ndarray

IRIS_ANGLE, PUPIL_ANGLE = 25.5, 9.5  # degrees from the gaze axis
_SPOKES = 64


@functools.lru_cache(maxsize=1)
def _eyeball() -> tuple[Array, Array, Array, Array]:
    """Return a unit sphere around the gaze axis -y: points, normals, faces, and polar angles.

    It is finest around the iris. The normals bulge over the iris like the cornea, so that it
    reflects the lamps.
    """
    rings = np.concatenate([np.linspace(0.5, 40, 36), np.linspace(45, 150, 16)])
    phi = np.linspace(0, 2 * np.pi, _SPOKES, endpoint=False)[None]

    def sphere(degrees: Array) -> Array:
        theta = np.radians(degrees)[:, None]
        x, z = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)
        return np.stack([x, -np.cos(theta) + 0 * phi, z], -1).reshape(-1, 3)

    bulge = rings * (1 + 0.45 * smoothstep(rings, IRIS_ANGLE + 6, IRIS_ANGLE - 8))
    faces = grid_faces(len(rings), _SPOKES, closed=True)
    return sphere(rings), sphere(bulge), faces, np.repeat(rings, _SPOKES)


def eye_mesh(person: Appearance, centre: Array, radius: float, gaze: tuple[float, float]) -> Mesh:
    """Return one eyeball.

    Args:
        person: Person whose eye it is.
        centre: (3,) centre in metres.
        radius: Radius in metres.
        gaze: Direction of the gaze, degrees to the person's left and downwards.
    """
    points, normals, faces, polar = _eyeball()
    yaw, pitch = np.radians(gaze)
    turn = np.array(
        [[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
    ) @ np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])

    rng = stream("iris", person.seed, person.index)
    iris = np.asarray(person.eye)
    fibre = rng.normal(0, 1, _SPOKES)
    fibre = 0.7 * fibre + 0.3 * np.roll(fibre, 1)
    spoke = np.tile(fibre, len(polar) // _SPOKES)
    inner = np.interp(polar, [PUPIL_ANGLE, 15.0, 20.0, IRIS_ANGLE], [0.85, 1.35, 1.15, 0.75])
    ring = 1 - 0.72 * np.exp(-(((polar - IRIS_ANGLE) / 2.6) ** 2))
    tone = (inner * ring * (1 + 0.13 * spoke))[:, None]
    # Most eyes have a warmer colour near the pupil.
    warm = smoothstep(polar, 18.0, 12.0)[:, None] * 0.25
    colored = iris * tone * (1 - warm) + warm * tone * iris * [1.25, 1.0, 0.7]
    white = np.array([0.92, 0.905, 0.89])
    red = smoothstep(np.abs(points[:, 0]), 0.45, 0.95)[:, None] * [0.02, 0.14, 0.13]
    edge = smoothstep(polar, IRIS_ANGLE - 0.8, IRIS_ANGLE + 1.6)[:, None]
    colors = colored * (1 - edge) + (white - red) * edge
    pupil = smoothstep(polar, PUPIL_ANGLE + 0.9, PUPIL_ANGLE - 0.5)[:, None]
    colors = colors * (1 - pupil) + 0.015 * pupil
    points, normals = points @ turn.T, normals @ turn.T
    # The upper lid and its lashes cast a shadow on the eyeball.
    shade = (
        1
        - 0.36 * smoothstep(points[:, 2], 0.10, 0.48)
        - 0.12 * smoothstep(points[:, 2], -0.15, -0.5)
    )
    colors = np.clip(colors * shade[:, None], 0, 1)
    return Mesh(centre + radius * points, faces, colors, normals)


@functools.lru_cache(maxsize=1)
def _lid_rims() -> list[tuple[float, Array, Array]]:
    """Return each eye's side (+1 left) and the vertices of its upper and lower lid's edges."""
    model: HeadModel = load_head_model()
    rim = model.lid_edge
    rims = []
    for sign in (1.0, -1.0):
        vertices = rim[sign * model.template[rim, 0] > 0]
        p = model.template[vertices]
        order = np.argsort(sign * p[:, 0])
        vertices, p = vertices[order], p[order]
        t = (p[:, 0] - p[0, 0]) / (p[-1, 0] - p[0, 0])
        line = p[0, 2] + t * (p[-1, 2] - p[0, 2])
        upper = vertices[p[:, 2] >= line - 1e-6]
        lower = np.unique(np.concatenate([vertices[p[:, 2] < line], vertices[[0, -1]]]))
        lower = lower[np.argsort(sign * model.template[lower, 0])]
        rims.append((sign, upper, lower))
    return rims


def _along(points: Array, t: Array) -> tuple[Array, Array]:
    """Return points and tangents of an (N, 3) polyline at fractions t of its length."""
    step = np.linalg.norm(np.diff(points, axis=0), axis=1)
    at = np.concatenate([[0], np.cumsum(step)]) / step.sum()
    out = np.stack([np.interp(t, at, points[:, i]) for i in range(3)], 1)
    ahead = np.stack([np.interp(np.clip(t + 0.05, 0, 1), at, points[:, i]) for i in range(3)], 1)
    back = np.stack([np.interp(np.clip(t - 0.05, 0, 1), at, points[:, i]) for i in range(3)], 1)
    tangent = ahead - back
    return out, tangent / np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)


def lash_mesh(person: Appearance, points: Array, neutral: Array) -> Mesh:
    """Return the upper and lower lashes of both eyes.

    Args:
        person: Person whose lashes they are.
        points: (V, 3) vertices of the head with its expression.
        neutral: (V, 3) vertices without expression, which tell how far the lids are open.
    """
    rng = stream("lashes", person.seed, person.index)
    woman = person.gender == "woman"
    meshes = []
    for sign, upper, lower in _lid_rims():
        gap = points[upper, 2].mean() - points[lower, 2].mean()
        open_ = np.clip(gap / max(neutral[upper, 2].mean() - neutral[lower, 2].mean(), 1e-4), 0, 1)
        for rim, count, length, lift, strength in (
            (upper, 34, 0.0072 if woman else 0.0052, 0.75 * open_ - 0.35 * (1 - open_), 1.0),
            (lower, 20, 0.0034 if woman else 0.0024, -0.5, 0.5),
        ):
            t = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
            root, tangent = _along(points[rim], t)
            fan = (0.75 * (t - 0.35))[:, None] * np.array([sign, 0, 0])
            out = fan + np.array([0.0, -0.9, 0.0]) + rng.normal(0, 0.10, (count, 3))
            reach = length * np.interp(t, [0, 0.25, 0.7, 1], [0.45, 0.8, 1.0, 0.75])
            reach = (reach * rng.uniform(0.8, 1.1, count))[:, None]
            middle = root + reach * 0.5 * (out + [0, 0, 0.35 * lift])
            tip = root + reach * (0.85 * out + [0, 0, lift])
            width = np.full(count, 0.00055 if woman else 0.00045) * (0.7 + 0.3 * strength)
            dark = np.asarray([0.045, 0.035, 0.03])
            color = dark + (1 - strength) * 0.35 * np.asarray(person.skin)
            paths = np.stack([root, middle, tip], 1)
            meshes.append(ribbons(paths, tangent, width, np.tile(color, (count, 1))))
    return join(meshes)
