"""Hats, scarves and helmets as meshes that fit every head.

Each is laid over the person's skull (`scalp.Skull`) from the crown to a rim. `hair_room` says how
much room it leaves for the hair, and `hair.hair_mesh` keeps to that.
"""

from __future__ import annotations

import numpy as np

from companion.people.colors import Color
from companion.people.mesh import Mesh, grid_mesh, join
from companion.people.scalp import HEAD_CENTRE, Skull, direction, skull, smoothstep
from fusionlib.errors import FusionError

Array = np.ndarray

# Course of the rim: polar angles from the crown at the longitudes 0, 45, 90, 135, 180 (degrees).
_RIMS: dict[str, tuple[float, ...]] = {
    "beanie": (50, 60, 84, 108, 116),
    "cap": (50, 58, 80, 98, 102),
    "straw hat": (48, 55, 70, 82, 86),
    "brimmed hat": (50, 57, 74, 88, 92),
    "hard hat": (46, 53, 72, 86, 90),
    "chef hat": (44, 51, 66, 76, 80),
    "crown": (40, 43, 50, 54, 54),
    "headscarf": (180, 180, 180, 180, 180),
    "helmet": (180, 180, 180, 180, 180),
}
SHINY = ("hard hat", "crown", "helmet")  # the others are made of cloth
_COLUMNS = 144
_GOLD, _STRAW, _WHITE = np.array([[0.83, 0.62, 0.20], [0.82, 0.66, 0.38], [0.90, 0.90, 0.88]])


def _check_kind(kind: str) -> None:
    if kind not in _RIMS:
        raise FusionError(f"Unknown headwear '{kind}': choose one of {', '.join(_RIMS)}.")


def _rim(kind: str, longitude: Array | float) -> Array:
    """Return the polar angle of the rim at longitudes on either side, in degrees."""
    from scipy.interpolate import PchipInterpolator

    values: Array = PchipInterpolator([0, 45, 90, 135, 180], _RIMS[kind])(np.abs(longitude))
    return values


def hair_room(kind: str, longitude: Array | float, polar: Array | float) -> Array:
    """Return the room (metres above the skull) that headwear leaves for the hair.

    Args:
        kind: Headwear, not `none`.
        longitude: Signed degrees from the front.
        polar: Degrees from the crown.

    Raises:
        FusionError: If the kind is unknown.
    """
    _check_kind(kind)
    if kind == "headscarf":
        return np.full(np.shape(polar), 0.002)
    if kind == "helmet":
        return np.full(np.shape(polar), 0.022)
    room = 0.010 if kind == "crown" else 0.003
    return room + 0.08 * smoothstep(polar - _rim(kind, longitude), -1.0, 22.0)


def _closed(points: Array, colors: Array) -> Mesh:
    """Return a mesh over (R, C, 3) points whose columns run all around the head."""
    return grid_mesh(points, colors, closed=True)


def _dome(head: Skull, kind: str, rows: int = 26) -> tuple[Array, Array, Array]:
    """Return fractions of the way from crown to rim, longitudes, and unit directions.

    Their shapes are (R, 1), (1, C) and (R, C, 3).
    """
    longitude = np.arange(_COLUMNS)[None] * (360.0 / _COLUMNS) - 180.0
    t = np.linspace(0.0, 1.0, rows)[:, None]
    return t, longitude, direction(longitude, np.maximum(t * _rim(kind, longitude), 0.4))


def _beanie(head: Skull, color: Array) -> Mesh:
    t, longitude, u = _dome(head, "beanie", 40)
    cuff = smoothstep(t, 0.74, 0.77)
    rib = np.cos(np.radians(longitude) * 36)
    height = 0.010 + 0.016 * (1 - t) ** 2 + 0.0045 * cuff + 0.0011 * rib * smoothstep(t, 0.1, 0.4)
    height = height - 0.006 * smoothstep(t, 0.975, 1.0)
    stitch = np.cos(np.pi * np.arange(40))[:, None]
    tone = 0.90 + 0.16 * rib + 0.05 * stitch - 0.25 * np.exp(-(((t - 0.745) / 0.02) ** 2))
    return _closed(head.surface(u, height), color * tone[..., None])


def _outward(ring: Array) -> Array:
    """Return horizontal unit vectors from the head's axis to (C, 3) points."""
    out = ring - [0.0, HEAD_CENTRE[1], 0.0]
    out[:, 2] = 0
    return out / np.linalg.norm(out, axis=1)[:, None]


def _brim(rim: Array, width: Array | float, droop: Array | float, rows: int = 7) -> Array:
    """Return a brim, (R, C, 3), that leaves the (C, 3) rim and falls `droop` metres to its edge."""
    t = np.linspace(0, 1, rows)[:, None, None]
    drop = np.broadcast_to(droop, len(rim))[:, None] * np.array([0.0, 0.0, -1.0])
    return rim + t * np.broadcast_to(width, len(rim))[:, None] * _outward(rim) + t**2 * drop


def _cap(head: Skull, color: Array) -> Mesh:
    t, longitude, u = _dome(head, "cap")
    seam = np.minimum(1, np.abs((longitude + 30) % 60 - 30) / 2.6)
    front_panel = np.cos(np.radians(longitude) / 2) ** 2
    grid = head.surface(u, 0.009 + 0.020 * np.sin(np.pi * t**0.8) * (0.4 + 0.6 * front_panel))
    tone = 0.80 + 0.20 * seam + 0 * t - 0.2 * smoothstep(t, 0.05, 0.02)
    crown = _closed(grid, color * tone[..., None])
    front = np.flatnonzero(np.abs(longitude[0]) <= 62)
    edge = grid[-1, front]
    reach = 0.066 * np.sqrt(np.clip(1 - (longitude[0, front] / 63.0) ** 2, 0, 1))
    t2 = np.linspace(0, 1, 9)[:, None, None]
    forward = np.array([0.0, -0.92, -0.40]) * reach[:, None]
    bow = np.array([0.0, 0.0, 0.016]) * np.cos(np.radians(longitude[0, front]) * 1.4)[:, None]
    visor = edge + np.array([0, 0.004, 0.002]) + t2 * forward + bow * np.sin(np.pi * t2 * 0.7)
    thick = np.concatenate([visor, visor[::-1] - [0, 0, 0.0025]])
    return join([crown, grid_mesh(thick, color * 0.85)])


def _straw(head: Skull, color: Array) -> Mesh:
    t, longitude, u = _dome(head, "straw hat", 34)
    grid = head.surface(u, 0.011 + 0.030 * smoothstep(t, 0.9, 0.45))
    # The top is flat: whatever would stand higher is pressed down.
    top = grid[0, 0, 2] - 0.016
    grid[..., 2] = np.minimum(grid[..., 2], top) + 0.3 * np.maximum(grid[..., 2] - top, 0)
    weave = 0.10 * np.cos(np.pi * np.arange(34))[:, None] * np.cos(np.radians(longitude) * 48)
    rings = 0.10 * np.cos(2 * np.pi * np.arange(34) / 3.0)[:, None]
    colors = _STRAW * (0.92 + weave + rings)[..., None]
    band = smoothstep(t, 0.76, 0.79)[..., None]
    colors = colors * (1 - band) + band * color
    lon = np.radians(longitude[0])
    brim = _brim(grid[-1], 0.064 + 0.004 * np.sin(3 * lon), 0.012 + 0.010 * np.cos(2 * lon), 14)
    r = np.arange(14)[:, None]
    tone = 0.90 + 0.10 * np.cos(np.pi * r) * np.cos(lon * 48) + 0.09 * np.cos(2 * np.pi * r / 3)
    return join([_closed(grid, colors), _closed(brim, _STRAW * tone[..., None])])


def _brimmed(head: Skull, color: Array) -> Mesh:
    t, longitude, u = _dome(head, "brimmed hat", 34)
    lon = np.radians(longitude)
    grid = head.surface(u, 0.011 + 0.036 * smoothstep(t, 0.95, 0.5))
    # The crown is pinched in front and creased along its top.
    crease = smoothstep(t, 0.55, 0.1) * np.exp(-((grid[..., 0] / 0.022) ** 2))
    grid[..., 2] -= 0.016 * crease
    pinch = smoothstep(t, 0.7, 0.3) * np.exp(-(((np.abs(longitude) - 32) / 22) ** 2))
    grid[..., :2] -= 0.10 * pinch[..., None] * (grid[..., :2] - HEAD_CENTRE[:2])
    band = smoothstep(t, 0.77, 0.79)[..., None]
    colors = color * (1 - 0.15 * crease[..., None]) * (1 - band) + band * (0.35 * color)
    brim = _brim(grid[-1], 0.047 + 0 * lon[0], 0.006 + 0.010 * np.cos(2 * lon[0]), 8)
    under = np.concatenate([brim, brim[::-1] - [0, 0, 0.002]])
    return join([_closed(grid, colors), _closed(under, color * 0.95)])


def _hard_hat(head: Skull, color: Array) -> Mesh:
    t, longitude, u = _dome(head, "hard hat", 30)
    grid = head.surface(u, 0.020 + 0.008 * (1 - t))
    x = grid[..., 0]
    ridge = sum(np.exp(-(((x - c) / 0.006) ** 2)) for c in (-0.024, 0.0, 0.024))
    grid[..., 2] += 0.005 * ridge * smoothstep(t, 0.95, 0.6)
    colors = color * (1 - 0.10 * ridge * smoothstep(t, 0.95, 0.6))[..., None]
    lon = np.radians(longitude[0])
    width = 0.010 + 0.024 * np.clip(np.cos(lon), 0, 1) ** 1.5
    brim = _brim(grid[-1], width, 0.3 * width, 6)
    under = np.concatenate([brim, brim[::-1] - [0, 0, 0.003]])
    return join([_closed(grid, colors), _closed(under, color * 0.92)])


def _chef(head: Skull, color: Array) -> Mesh:
    t, longitude, u = _dome(head, "chef hat", 6)
    lon = np.radians(longitude[0])
    rim = head.surface(u[-1], 0.010)
    axis = np.array([0.0, HEAD_CENTRE[1] + 0.004, 0.0])
    out = rim - axis
    out[:, 2] = 0
    z0 = rim[:, 2]
    top = HEAD_CENTRE[2] + 0.105
    fold = 1 + 0.045 * np.cos(lon * 15)
    rows, tones = [], []
    for f in (0.0, 0.5, 1.0):
        rows.append(np.c_[(axis + out)[:, :2], z0 + f * (top - z0)])
        tones.append(np.full(_COLUMNS, 0.96))
    rises = (0.004, 0.020, 0.042, 0.062, 0.072, 0.074, 0.074)
    widths = (1.05, 1.26, 1.34, 1.22, 0.85, 0.3, 0.01)
    for rise, wide in zip(rises, widths, strict=True):
        spread = axis + (wide * fold)[:, None] * out
        rows.append(np.c_[spread[:, :2], np.full(_COLUMNS, top + rise)])
        tones.append(0.97 + 0.05 * np.cos(lon * 15))
    base = 0.85 * _WHITE + 0.15 * color if color.mean() > 0.6 else _WHITE
    return _closed(np.stack(rows[::-1]), base * np.stack(tones[::-1])[..., None])


def _crown(head: Skull, color: Array) -> Mesh:
    longitude = np.arange(_COLUMNS)[None] * (360.0 / _COLUMNS) - 180.0
    ring = head.surface(direction(longitude, _rim("crown", longitude))[0], 0.015)
    out = _outward(ring)
    tooth = np.abs(((longitude[0] / 30.0) % 1) - 0.5) * 2  # 1 at the tips of twelve teeth
    height = 0.026 + 0.026 * tooth**1.3
    t = np.linspace(0, 1, 9)[:, None]
    wall = ring + t[..., None] * (height[:, None] * [0.0, 0.0, 1.0] + 0.010 * out)
    tone = (
        0.92
        + 0.16 * np.cos(np.radians(longitude) * 24) * (t > 0.2)
        - 0.25 * np.exp(-(((t - 0.22) / 0.06) ** 2))
    )
    colors = np.broadcast_to(_GOLD * tone[..., None], wall.shape).copy()
    gems = np.hypot((tooth - 1)[None] * 2.3, (t - 0.42) * 5) < 0.75
    colors[gems] = color
    inside = wall[::-1] - 0.002 * out
    parts = [_closed(wall[::-1], colors[::-1]), _closed(inside[::-1], _GOLD * 0.5)]
    tips = np.flatnonzero(tooth > 0.99)
    ball = _ball(0.0042)
    parts += [
        Mesh(ball.points + wall[-1, i] + [0, 0, 0.002], ball.faces, ball.colors * 0 + _GOLD,
             ball.normals)
        for i in tips
    ]  # fmt: skip
    return join(parts)


def _ball(radius: float, rows: int = 8, columns: int = 12) -> Mesh:
    polar = np.linspace(2, 178, rows)[:, None]
    longitude = np.arange(columns)[None] * (360.0 / columns)
    return _closed(radius * direction(longitude, polar), np.ones(3))


def _ring(centre: Array, first: Array, second: Array, radius: float, tube: float) -> Array:
    """Return a torus, (R, C, 3), around `centre` in the plane of two unit vectors."""
    a = np.linspace(0, 2 * np.pi, 13)[:, None, None]
    b = np.linspace(0, 2 * np.pi, _COLUMNS, endpoint=False)[None, :, None]
    spoke = np.cos(b) * first + np.sin(b) * second
    return centre + (radius + tube * np.cos(a)) * spoke - tube * np.sin(a) * np.cross(first, second)


def _scarf(head: Skull, color: Array) -> Mesh:
    """Return a scarf around the face and over the head, with folds down the neck."""
    a = np.linspace(0, 2 * np.pi, _COLUMNS, endpoint=False)
    # The opening shows the face from the hairline to the chin and hides the ears.
    start = direction(
        58.0 * np.sign(np.sin(a)) * np.abs(np.sin(a)) ** 0.8, 103.5 - 44.5 * np.cos(a)
    )
    pole = np.array([0.0, 0.97, -0.24])
    angle = np.arccos(np.clip(start @ pole, -1, 1))[None, :, None]
    t = np.linspace(0, 1, 40)[:, None, None]
    u = (np.sin((1 - t) * angle) * start + np.sin(t * angle) * pole) / np.sin(angle)
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    s = t[..., 0]
    crease = np.sin(38 * s + 2.2 * np.cos(a) + 1.5 * np.sin(2 * a))
    fold = 0.0022 * crease * smoothstep(s, 0.05, 0.3)
    height = 0.004 + 0.012 * smoothstep(s, 0.0, 0.16) + fold - 0.004 * smoothstep(s, 0.03, 0.0)
    ear = direction(np.array(100.0), np.array(102.0))
    beside = np.stack([np.abs(u[..., 0]), u[..., 1], u[..., 2]], -1) @ ear
    hood = head.surface(u, height + 0.014 * smoothstep(beside, 0.62, 0.97))
    tone = 0.94 + 0.07 * crease
    drop = np.linspace(0, 1, 24)[:, None]
    folds = 1 + 0.05 * np.sin(7 * a + 9 * drop) + 0.03 * np.sin(13 * a - 5 * drop)
    wide = (0.080 + 0.072 * drop**1.5) * folds
    neck = np.stack(
        [
            wide * np.sin(a),
            -0.045 - wide * np.cos(a) * 0.95,
            0.668 - 0.022 * np.cos(a) - 0.145 * drop,
        ],
        -1,
    )
    shade = 0.92 + 0.09 * np.sin(7 * a + 9 * drop + 0.8)
    return join([_closed(hood, color * tone[..., None]), _closed(neck, color * shade[..., None])])


def _helmet(head: Skull, color: Array) -> Mesh:
    """Return a space helmet with its visor up: a bowl behind the head, a rim and a neck ring."""
    centre = np.array([0.0, -0.046, 0.737])
    radius, opening = 0.137, 113.0
    angle = np.linspace(1.0, opening, 36)[:, None]
    turn = np.linspace(0, 2 * np.pi, _COLUMNS, endpoint=False)[None]
    theta = np.radians(angle)
    bowl = np.stack(
        [np.sin(theta) * np.sin(turn), np.cos(theta) + 0 * turn, np.sin(theta) * np.cos(turn)], -1
    )
    dark = np.array([0.30, 0.33, 0.38]) * (0.65 + 0.5 * smoothstep(angle, 60, 118))[..., None]
    inside = _closed(centre + (radius - 0.004) * bowl, dark)
    outside = _closed(centre + radius * bowl[::-1], _WHITE)
    rim_at = centre + [0.0, radius * np.cos(np.radians(opening)), 0.0]
    x, y, z = np.eye(3)
    width = radius * np.sin(np.radians(opening))
    rim = _closed(_ring(rim_at, x, z, width, 0.0085), 0.5 * _WHITE + 0.5 * color)
    band = _closed(_ring(rim_at - [0, 0.007, 0], x, z, width - 0.005, 0.004), np.full(3, 0.45))
    collar = _closed(
        _ring(np.array([0.0, -0.045, 0.592]), x, y, 0.108, 0.013), np.array([0.62, 0.64, 0.68])
    )
    return join([inside, outside, rim, band, collar])


_MAKERS = {
    "beanie": _beanie,
    "cap": _cap,
    "straw hat": _straw,
    "brimmed hat": _brimmed,
    "hard hat": _hard_hat,
    "chef hat": _chef,
    "crown": _crown,
    "headscarf": _scarf,
    "helmet": _helmet,
}


def headwear_mesh(kind: str, color: Color, vertices: Array) -> Mesh | None:
    """Return the headwear on a head, or None for `none`.

    Args:
        kind: One of `outfit.HEADWEAR`.
        color: Colour in 0..1 of the whole (beanie, cap, brimmed hat, hard hat, headscarf), of the
            band (straw hat), the gems (crown) or the rim (helmet). A chef's hat stays white.
        vertices: (V, 3) vertices of the head model in metres.

    Raises:
        FusionError: If the kind is unknown.
    """
    if kind == "none":
        return None
    _check_kind(kind)
    return _MAKERS[kind](skull(vertices), np.asarray(color, float))
