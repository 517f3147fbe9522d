"""Hair as a mesh over the head.

Hair is a grid of longitudes and rows: the upper rows follow the skull (each point is a fixed
mix of three scalp vertices, so the shell fits every head), the lower rows of long hair fall
straight down. The shell's thickness goes to slightly below zero at the hairline, so that its
edge sinks smoothly into the skin.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from fusionlib.people.head import load_head_model
from fusionlib.people.identity import Person
from fusionlib.people.sampling import stream
from fusionlib.people.skin import HEAD_CENTRE, hairline_margin, smoothstep, spherical

Array = np.ndarray

COLUMNS, SKULL_ROWS, FALL_ROWS = 96, 40, 16
_LONG = ("bob", "long")


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh: (V, 3) points, (F, 3) faces, (V, 3) colours in 0..1."""

    points: Array
    faces: Array
    colors: Array


@dataclass(frozen=True)
class _Scalp:
    """The grid's binding to the head: for (R, C) points three vertices and their weights."""

    vertices: Array
    weights: Array
    longitude: Array
    polar: Array
    directions: Array


@functools.lru_cache(maxsize=2)
def _scalp(max_polar: float) -> _Scalp:
    """Bind the skull rows, from the crown to `max_polar` degrees, to the head's vertices."""
    from scipy.spatial import ConvexHull

    model = load_head_model()
    head = np.unique(np.concatenate([model.faces["head"], model.faces["neck"]]))
    inner = np.unique(np.concatenate([model.faces["mouth"], model.faces["socket"]]))
    head = np.setdiff1d(head, inner)
    head = head[np.abs(model.template[head, 0]) < 0.0775]
    # Ears stand out from the skull: leave out what lies beyond the skull beside them.
    longitude, polar = spherical(model.template[head])
    offsets = model.template[head] - HEAD_CENTRE
    radius = np.linalg.norm(offsets, axis=1)
    ear = (longitude > 78) & (longitude < 128) & (polar > 78) & (polar < 135)
    head = head[~ear]
    offsets, radius = offsets[~ear], radius[~ear]
    directions = offsets / radius[:, None]
    triangles = ConvexHull(directions).simplices
    inverse = np.linalg.inv(np.swapaxes(directions[triangles], 1, 2) + 1e-9 * np.eye(3))

    theta = np.radians(np.linspace(1.5, max_polar, SKULL_ROWS))[:, None]
    phi = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)[None, :]
    grid = np.stack(
        [np.sin(theta) * np.sin(phi), -np.sin(theta) * np.cos(phi), np.cos(theta) + 0 * phi], -1
    )
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
    degrees = np.abs(np.degrees(phi)) + 0 * theta
    return _Scalp(
        vertices=head[triangles[chosen]].reshape(*grid.shape),
        weights=weights.reshape(*grid.shape),
        longitude=degrees,
        polar=np.degrees(theta) + 0 * phi,
        directions=grid,
    )


def _smooth(points: Array, rounds: int) -> Array:
    """Relax a (R, C, 3) grid, periodic in C, with its first and last row kept."""
    for _ in range(rounds):
        side = (np.roll(points, 1, 1) + np.roll(points, -1, 1)) / 2
        middle = (points[:-2] + points[2:]) / 2
        points = np.concatenate(
            [
                side[:1],
                (
                    0.5 * points
                    + 0.25 * side
                    + 0.25 * np.pad(middle, ((1, 1), (0, 0), (0, 0)), "edge")
                )[1:-1],
                points[-1:],
            ]
        )
    return points


def _grid_faces(rows: int, columns: int, keep: Array) -> Array:
    """Triangles of a grid that is periodic in its columns, where all corners are kept."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    quads = np.stack([a, b, e, d], -1).reshape(-1, 4)
    quads = quads[keep.ravel()[quads].all(1)]
    return np.concatenate([quads[:, [0, 2, 1]], quads[:, [0, 3, 2]]])


def _bumps(points: Array, wavelength: float, rng: np.random.Generator, waves: int = 14) -> Array:
    """Smooth pseudo-random field over points, about -1..1."""
    k = rng.normal(0.0, 1.0, (waves, 3))
    k *= 2 * np.pi / wavelength / np.linalg.norm(k, axis=1, keepdims=True)
    phase = rng.uniform(0, 2 * np.pi, waves)
    return np.sin(points @ k.T + phase).sum(-1) / np.sqrt(waves / 2)


def hair_mesh(person: Person, vertices: Array) -> Mesh | None:
    """The person's hair over a head with these vertices, or None (bald, cropped).

    Args:
        person: Whose hair.
        vertices: (V, 3) vertices of the head model, metres.
    """
    if person.hair_style in ("bald", "cropped"):
        return None
    covers_ears = person.hair_style in _LONG
    rng = stream("hair", person.seed, person.index)
    scalp = _scalp(96.0 if covers_ears else 140.0)
    points = (vertices[scalp.vertices] * scalp.weights[..., None]).sum(2)
    points = _smooth(points.astype(np.float64), 3)
    margin = hairline_margin(person, scalp.longitude, scalp.polar, covers_ears)

    volume = person.hair_volume
    base = {"short": 0.010, "bob": 0.018, "long": 0.017, "curly": 0.026, "bun": 0.006}
    thickness = base[person.hair_style] * (0.6 + 0.4 * volume)
    side = np.sign(np.sin(np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)))[None, :]
    top = np.clip(1 - scalp.polar / 80.0, 0, 1)
    lift = 1 + 0.5 * top * (person.hair_style == "short")
    lift = lift + 0.25 * person.parting * side * np.sin(np.radians(scalp.longitude)) * (1 - top)
    if person.hair_style == "curly":
        lift = lift + 0.20 * _bumps(points, 0.026, rng)
    if covers_ears:  # room for the ears below the hair
        ear = np.exp(-(((scalp.longitude - 100) / 30) ** 2)) * smoothstep(scalp.polar, 55, 85)
        lift = lift + 0.55 * ear
    ramp = 16.0 if person.hair_style in ("curly", "short") else 10.0
    depth = thickness * lift * np.sqrt(smoothstep(margin, 0.0, ramp)) - 0.004 * smoothstep(
        margin, 3.0, -3.0
    )
    outward = points - HEAD_CENTRE - [0, 0, -0.02]
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    shell = points + depth[..., None] * outward
    keep = margin > -14.0

    streaks = rng.normal(0.0, 1.0, COLUMNS)
    streaks = (streaks + np.roll(streaks, 1)) / 2
    tone = 1 + 0.16 * streaks[None, :] * smoothstep(scalp.polar, 5, 30)
    if person.hair_style == "curly":
        tone = 1 + 0.22 * _bumps(points, 0.018, rng)

    if covers_ears:
        shell, keep, tone = _fall(person, shell, keep, tone, scalp.longitude[0])
    rows = len(shell)
    colors = np.clip(np.asarray(person.hair) * tone[..., None], 0, 1).reshape(-1, 3)
    mesh = Mesh(shell.reshape(-1, 3), _grid_faces(rows, COLUMNS, keep), colors)
    if person.hair_style == "bun":
        mesh = _join(mesh, _bun(person, points, rng))
    return mesh


def _fall(
    person: Person, shell: Array, keep: Array, tone: Array, longitude: Array
) -> tuple[Array, Array, Array]:
    """Let the shell's last row fall down as a curtain that leaves the face free.

    Takes and gives back the grid's (R, C, 3) points, (R, C) kept points and (R, C) tones;
    `longitude`: (C,) degrees of the columns.
    """
    marks = load_head_model().landmarks
    edge = shell[-1]
    drop_to = {"long": -0.20, "bob": -0.085 - 0.045 * person.hair_length}[person.hair_style]
    t = np.linspace(0, 1, FALL_ROWS + 1)[1:, None]
    z = edge[None, :, 2] + (marks.eyes[2] + drop_to - edge[None, :, 2]) * t
    open_at = 72.0
    tuck = smoothstep(longitude, open_at - 6, open_at + 10)[None, :]
    curl = -0.10 * t**2 if person.hair_style == "bob" else 0.03 * np.sin(np.pi * t)
    wave = 0.012 * person.hair_volume * np.sin(9 * t + 0.4 * np.arange(COLUMNS)[None, :] ** 0.5)
    factor = (1 + curl + wave * t) * (0.80 + 0.20 * tuck)
    axis = np.array([0.0, HEAD_CENTRE[1]])
    xy = axis + (edge[None, :, :2] - axis) * factor[..., None]
    fall = np.concatenate([xy, z[..., None]], -1)
    shell = np.concatenate([shell, fall])
    keep = np.concatenate([keep, np.repeat((longitude > open_at - 5)[None], FALL_ROWS, 0)])
    tone = np.concatenate([tone, np.repeat(tone[-1:], FALL_ROWS, 0) * (1 - 0.22 * t)])
    return shell, keep, tone


def _bun(person: Person, points: Array, rng: np.random.Generator) -> Mesh:
    crown = points[0].mean(0)
    theta = np.linspace(0.05, np.pi - 0.05, 18)[:, None]
    phi = np.linspace(0, 2 * np.pi, COLUMNS // 2, endpoint=False)[None, :]
    ball = np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi], -1
    )
    size = 0.030 + 0.008 * person.hair_volume
    tone = 1 + 0.15 * _bumps(ball, 0.6, rng)
    colors = np.clip(np.asarray(person.hair) * tone[..., None], 0, 1).reshape(-1, 3)
    centre = crown + [0.0, 0.0, 0.45 * size]
    faces = _grid_faces(18, COLUMNS // 2, np.ones(tone.shape, bool))
    return Mesh((centre + size * ball * [1.1, 1.1, 0.85]).reshape(-1, 3), faces, colors)


def _join(a: Mesh, b: Mesh) -> Mesh:
    return Mesh(
        np.concatenate([a.points, b.points]),
        np.concatenate([a.faces, b.faces + len(a.points)]),
        np.concatenate([a.colors, b.colors]),
    )
