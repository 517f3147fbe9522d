"""Hair as a mesh: many thin locks that grow from the scalp, over a dark shell.

A lock is a ribbon. It starts at its root, follows the style's combing direction along the skull,
then hangs, and stays clear of skull, ears, neck and face. Curls, clumps, cuts and a little disorder
are added to its path. All locks grow at once, as arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from companion.people.appearance import Appearance
from companion.people.colors import stream
from companion.people.hairstyle import Hair, covers_ears, hairline_margin
from companion.people.head import load_head_model
from companion.people.headwear import hair_room
from companion.people.mesh import Mesh, dot, grid_faces, join, unit
from companion.people.scalp import (
    COLUMNS,
    HEAD_CENTRE,
    MAX_POLAR,
    ROWS,
    Skull,
    direction,
    skull,
    smoothstep,
)

Array = np.ndarray

_DOWN = np.array([0.0, 0.0, -1.0], np.float32)
_CENTRE = HEAD_CENTRE.astype(np.float32)
_WHORL = np.array([0.10, 0.52, 0.85], np.float32)  # the hair radiates from here


@dataclass(frozen=True)
class _Growth:
    """How the locks of a style grow. Lengths are in metres.

    Attributes:
        top: Length of the locks at the top.
        side: Length at the sides.
        back: Length at the back.
        comb: Name of the combing direction (see `_combing`).
        thick: Height of the uppermost locks above the skull.
        gravity: Length after which a lock hangs.
        lift: Steepness with which it leaves the skull.
        mess: Disorder of the directions in radians.
        wave: Amplitude of the curls.
        wavelength: Length of a curl.
        coil: Whether curls are helices rather than waves.
        count: Number of locks.
        steps: Number of steps along a lock.
        width: Width of a lock.
        clump: Strength with which neighbours stick together, 0..1.
    """

    top: float
    side: float
    back: float
    comb: str
    thick: float = 0.012
    gravity: float = 0.08
    lift: float = 0.0
    mess: float = 0.12
    wave: float = 0.0
    wavelength: float = 0.06
    coil: bool = False
    count: int = 2000
    steps: int = 8
    width: float = 0.0042
    clump: float = 0.35


_GROWTH: dict[str, _Growth] = {
    "horseshoe": _Growth(0.032, 0.030, 0.025, "whorl", 0.012, lift=0.5, mess=0.35, steps=6),
    "buzz": _Growth(0.005, 0.004, 0.004, "whorl", 0.002, lift=0.8, mess=0.4, count=2600, steps=2,
                    width=0.0022, clump=0.0),
    "cropped": _Growth(0.016, 0.010, 0.010, "whorl", 0.005, lift=0.7, mess=0.35, count=3200,
                       steps=4, width=0.0030, clump=0.15),
    "side part": _Growth(0.070, 0.026, 0.028, "side", 0.017, lift=0.6, gravity=0.3),
    "messy": _Growth(0.060, 0.032, 0.032, "whorl", 0.016, lift=0.75, mess=0.65, wave=0.003,
                     clump=0.55),
    "slicked back": _Growth(0.14, 0.10, 0.07, "back", 0.009, gravity=0.4, mess=0.05),
    "quiff": _Growth(0.085, 0.018, 0.018, "quiff", 0.020, lift=0.7, gravity=0.5, clump=0.4,
                     count=2500),
    "fringe crop": _Growth(0.055, 0.022, 0.022, "whorl", 0.011, lift=0.4, mess=0.25),
    "pixie": _Growth(0.085, 0.055, 0.045, "side", 0.015, lift=0.4, mess=0.2, gravity=0.09),
    "short afro": _Growth(0.012, 0.011, 0.011, "afro", 0.018, mess=1.5, wave=0.0016,
                          wavelength=0.008, coil=True, count=2600, steps=8, width=0.0022),
    "afro": _Growth(0.018, 0.018, 0.018, "afro", 0.055, mess=1.5, wave=0.0020,
                    wavelength=0.010, coil=True, count=2800, steps=8, width=0.0024),
    "curly": _Growth(0.085, 0.060, 0.060, "whorl", 0.026, lift=0.9, mess=0.6, wave=0.0075,
                     wavelength=0.026, coil=True, count=850, steps=22, width=0.0058, clump=0.0),
    "long curly": _Growth(0.30, 0.27, 0.25, "side", 0.026, lift=0.8, mess=0.30, wave=0.0095,
                          wavelength=0.034, coil=True, count=460, steps=18, width=0.0060,
                          gravity=0.05, clump=0.0),
    "bob": _Growth(0.30, 0.22, 0.14, "side", 0.015, lift=0.4, mess=0.05, steps=10, count=1800,
                   gravity=0.06),
    "shoulder": _Growth(0.34, 0.27, 0.2, "side", 0.016, lift=0.4, mess=0.07, steps=12,
                        count=1700, gravity=0.06, wave=0.006, wavelength=0.12),
    "long straight": _Growth(0.42, 0.36, 0.32, "side", 0.014, lift=0.35, mess=0.05, steps=12,
                             count=1600, gravity=0.06),
    "long wavy": _Growth(0.40, 0.34, 0.30, "side", 0.020, lift=0.5, mess=0.08, wave=0.020,
                         wavelength=0.10, steps=20, count=1150, gravity=0.06, width=0.0052,
                         clump=0.5),
    "ponytail": _Growth(0.24, 0.24, 0.20, "tie", 0.006, mess=0.04, steps=9, count=1700),
    "bun": _Growth(0.24, 0.24, 0.20, "tie", 0.006, mess=0.04, steps=9, count=1700),
    "plaits": _Growth(0.24, 0.24, 0.2, "plaits", 0.006, mess=0.03, steps=9, count=1700),
    "braids": _Growth(0.38, 0.34, 0.30, "side", 0.012, lift=0.3, mess=0.04, steps=16, count=240,
                      width=0.0080, gravity=0.05, clump=0.0),
}  # fmt: skip


def _bumps(points: Array, wavelength: float, rng: np.random.Generator, waves: int = 14) -> Array:
    """Return a smooth random field over points, about -1..1."""
    k = rng.normal(0.0, 1.0, (waves, 3))
    k *= 2 * np.pi / wavelength / np.linalg.norm(k, axis=1, keepdims=True)
    phase = rng.uniform(0, 2 * np.pi, waves)
    return np.sin(points @ k.T + phase).sum(-1) / np.sqrt(waves / 2)


@functools.lru_cache(maxsize=2)
def _roots(count: int) -> tuple[Array, Array, Array]:
    """Return even directions over the upper head: unit vectors, longitudes, polar angles."""
    index = np.arange(count) + 0.5
    z = 1 - index / count * (1 - np.cos(np.radians(140.0)))
    phi = np.pi * (1 + 5**0.5) * index
    r = np.sqrt(1 - z * z)
    d = np.stack([r * np.sin(phi), -r * np.cos(phi), z], -1).astype(np.float32)
    longitude = np.degrees(np.arctan2(d[:, 0], -d[:, 1])).astype(np.float32)
    return d, longitude, np.degrees(np.arccos(z)).astype(np.float32)


@dataclass(frozen=True)
class _Locks:
    """Roots and properties of N locks."""

    direction: Array  # (N, 3)
    longitude: Array  # signed degrees
    polar: Array
    margin: Array  # degrees inside the hairline
    side: Array  # +1 or -1, the side of the parting
    length: Array  # metres
    height: Array  # metres above the skull
    fringe: Array  # bool


def _sow(person: Appearance, growth: _Growth, rng: np.random.Generator) -> _Locks:
    """Choose the roots, densest inside the hairline, and each lock's length and height."""
    hair = person.hair
    d, longitude, polar = _roots(9000)
    margin = hairline_margin(hair, np.abs(longitude), polar).astype(np.float32)
    margin = margin + 1.6 * rng.standard_normal(len(d)).astype(np.float32)
    edge = np.interp(np.abs(longitude), [50, 65], [-3.0, 1.0])
    dense = smoothstep((margin - edge) / 9.0, 0.0, 1.0)
    if hair.style == "horseshoe":
        dense = dense * 0.8
    keep = np.flatnonzero(rng.random(len(d)) < dense)
    if len(keep) > growth.count:
        keep = rng.permutation(keep)[: growth.count]
    d, longitude, polar, margin = d[keep], longitude[keep], polar[keep], margin[keep]
    n = len(d)
    # A side parting stays away from the middle.
    part = 0.30 * hair.parting
    if hair.style == "side part":
        part = (0.25 + 0.15 * abs(hair.parting)) * (1.0 if hair.parting > 0 else -1.0)
    side = np.where(d[:, 0] - part + rng.normal(0.0, 0.02, n) > 0, 1.0, -1.0).astype(np.float32)

    away = np.abs(longitude)
    top = smoothstep(polar, 78, 48)
    back = smoothstep(away, 95, 135)
    length = growth.top * top + (1 - top) * (growth.side + (growth.back - growth.side) * back)
    spread = 0.10 if covers_ears(hair) else 0.22
    length = (
        length * (0.8 + 0.4 * hair.length) * (1 + spread * rng.standard_normal(n)).clip(0.4, 1.4)
    )
    # Short hairs at the hairline soften its edge.
    if growth.comb not in ("tie", "plaits", "back"):
        length = np.minimum(length, 0.010 + 0.5 * smoothstep(margin, -1.0, 7.0) ** 2)

    # Locks from higher roots lie above those from lower ones.
    layer = 0.35 + 0.45 * smoothstep(polar, 110, 15) + 0.35 * rng.random(n)
    if growth.comb == "afro":  # only locks near its surface are seen
        layer = 0.72 + 0.40 * rng.random(n)
    thick = growth.thick * (0.55 + 0.45 * hair.volume)
    height = thick * layer * (0.25 + 0.75 * smoothstep(margin, 0, 16))
    fringe = np.zeros(n, bool)
    if hair.fringe and growth.comb != "whorl":
        fringe = (away < 40) & (polar > 26) & (polar < 90)
        height = np.where(fringe, 0.004 + 0.006 * rng.random(n), height)
    return _Locks(d, longitude, polar, margin, side, length.astype(np.float32),
                  height.astype(np.float32), fringe)  # fmt: skip


def _tie_point(hair: Hair) -> Array:
    """Return where tied hair comes together, a unit direction from the head's centre."""
    if hair.style == "bun":  # on top of the head or at its back
        polar, longitude = (38.0, 172.0) if hair.length > 0.45 else (92.0, 178.0)
    else:
        polar, longitude = 62.0 + 25.0 * hair.length, 178.0
    return direction(np.array(longitude), np.array(polar)).astype(np.float32)


def _combing(hair: Hair, growth: _Growth, locks: _Locks) -> Callable[[Array], Array]:
    """Return a function from (N, 3) unit directions to the combing directions there."""
    side = locks.side
    n = len(side)
    radial = lambda u: u - _WHORL * [np.sign(hair.parting) or 1.0, 1, 1]  # noqa: E731

    def whorl(u: Array) -> Array:
        c = unit(radial(u))
        front = smoothstep(u[:, 1], 0.35, -0.1) * smoothstep(u[:, 2], 0.35, 0.7)
        sweep = np.array([0.45 * hair.parting, -1.0, 0.0])
        c = c * (1 - front)[:, None] + front[:, None] * sweep
        sides = smoothstep(u[:, 2], 0.55, 0.1)[:, None]
        return c * (1 - sides) + sides * np.array([0.0, -0.15, -1.0])

    def part(u: Array) -> Array:
        behind = smoothstep(u[:, 1], 0.05, 0.55)[:, None]
        sweep = 0.55 if covers_ears(hair) else 0.5
        c = np.stack([side, np.full(n, sweep), np.full(n, -0.15)], 1)
        c = c * (1 - behind) + behind * unit(radial(u))
        sides = smoothstep(u[:, 2], 0.5, 0.1)[:, None] * 0.8
        return c * (1 - sides) + sides * np.array([0.0, 0.2 if covers_ears(hair) else 0.6, -1.0])

    def back(u: Array) -> Array:
        c = np.stack([0.10 * np.sign(u[:, 0]), np.ones(n), np.full(n, -0.25)], 1)
        behind = smoothstep(u[:, 1], 0.35, 0.75)[:, None]
        return c * (1 - behind) + behind * np.array([0.0, 0.1, -1.0])

    def quiff(u: Array) -> Array:
        top = smoothstep(locks.polar, 75, 60)[:, None]
        c = np.stack([0.25 * hair.parting + 0 * side, np.full(n, 0.8), np.zeros(n)], 1)
        return c * top + (1 - top) * whorl(u)

    def tie(u: Array) -> Array:
        return _tie_point(hair) - u

    def plaits(u: Array) -> Array:
        knot = np.stack([0.80 * side, np.full(n, 0.42), np.full(n, -0.42)], 1)
        return knot - u

    fields = {"whorl": whorl, "side": part, "back": back, "quiff": quiff, "tie": tie,
              "plaits": plaits, "afro": whorl}  # fmt: skip
    chosen = fields[growth.comb]
    if not locks.fringe.any():
        return chosen
    across = 0.9 * (np.sign(hair.parting) or 1.0) if hair.style == "pixie" else 0.35 * hair.parting
    sweep = np.array([across, -1.0, -0.35])
    return lambda u: np.where(locks.fringe[:, None], sweep, chosen(u))


def _keep_clear(
    u: Array, r: Array, least: Array, locks: _Locks, over_ears: bool, settling: float
) -> Array:
    """Return points in directions `u` at distances `r`, moved out of skull, ears, neck and face.

    On the upper head, a share `settling` of the distance above (N,) `least` is removed.
    """
    above = np.maximum(r - least, 0)
    settle = smoothstep(u[:, 2], -0.1, 0.35) * settling
    out = least + above * (1 - settle)
    p = _CENTRE + u * out[:, None]
    low = smoothstep(p[:, 2], 0.72, 0.67)
    axis = p[:, :2] - np.array([0.0, -0.03], np.float32)
    distance = np.maximum(np.hypot(axis[:, 0], axis[:, 1]), 1e-6)
    need = low * (0.058 + 0.5 * locks.height)
    push = np.maximum(need - distance, 0) / distance
    p[:, :2] += axis * push[:, None]
    if over_ears:
        # In front of the ears, hair stays beside the face.
        lower = smoothstep(p[:, 2], 0.800, 0.745)
        jaw = np.interp(p[:, 2], [0.60, 0.66, 0.73, 0.80], [0.056, 0.064, 0.072, 0.062])
        front = smoothstep(p[:, 1], -0.045, -0.075)
        short = np.maximum(jaw - p[:, 0] * locks.side, 0) * lower * front
        p[:, 0] += np.where(locks.fringe, 0, short * locks.side)
    return p


def _ear_bump(u: Array) -> Array:
    """Return the metres by which ears stand out from the skull in unit directions."""
    centre = direction(np.array(100.0), np.array(102.0)).astype(np.float32)
    mirrored = np.stack([np.abs(u[:, 0]), u[:, 1], u[:, 2]], 1)
    return 0.015 * smoothstep(mirrored @ centre, 0.90, 0.99)


def _grow(
    hair: Hair, growth: _Growth, head: Skull, locks: _Locks, rng: np.random.Generator
) -> Array:
    """Return the (N, K + 1, 3) paths of the locks from root to tip, in metres."""
    n, steps = len(locks.side), growth.steps
    comb = _combing(hair, growth, locks)
    over_ears = covers_ears(hair)
    # Short hairs at the hairline grow in all directions.
    mess = growth.mess + 0.45 * smoothstep(locks.margin, 4.0, -1.0)
    twist = (mess * rng.standard_normal(n)).astype(np.float32)
    cos, sin = np.cos(twist)[:, None], np.sin(twist)[:, None]
    lift = growth.lift * (0.5 + rng.random(n)) * (0.3 + 0.7 * smoothstep(locks.margin, 2, 12))
    if growth.comb == "quiff":
        front = smoothstep(np.abs(locks.longitude), 75, 30) * smoothstep(locks.polar, 25, 45)
        lift = lift * (0.25 + 1.6 * front * smoothstep(locks.polar, 75, 62))
    p = head.surface(locks.direction).astype(np.float32)
    step = (locks.length / steps)[:, None]
    path = np.empty((n, steps + 1, 3), np.float32)
    path[:, 0] = p
    reach = 0.065 if growth.comb == "quiff" else 0.04  # metres along which a lock rises
    hold = growth.comb in ("tie", "plaits")
    settling = 0.0 if growth.comb == "afro" else 0.75 * max(0.0, 1 - 0.75 * growth.lift)
    u, r, radius = head.reach(p)
    for k in range(steps):
        c = comb(u).astype(np.float32)
        if hold:  # straight to the knot, except a fringe
            aim = unit(u + c * ~locks.fringe[:, None] / (steps - k))
            tied = head.surface(aim, locks.height * min(1.0, (k + 1) / 3)).astype(np.float32)
        c = unit(c - dot(c, u)[:, None] * u)
        c = c * cos + np.cross(u, c) * sin
        s = (k + 0.5) / steps
        # Hair hangs once it is over the edge of the head.
        hang = smoothstep(s * locks.length / growth.gravity, 0.3, 1.6) * smoothstep(
            u[:, 2], 0.8, 0.35
        )
        hang = 0 * hang if hold else hang
        move = c * (1 - hang)[:, None] + _DOWN * hang[:, None]
        rise = 1.0 if growth.comb == "afro" else np.clip(1 - s * locks.length / reach, 0, 1)
        move = move + (lift * rise)[:, None] * u
        # Near the skull, the part of a move that would enter it is removed.
        height = locks.height * min(1.0, 0.15 + 2.2 * (k + 1) / steps * max(1.0, steps / 8))
        least = radius + height
        if over_ears:
            least = least + _ear_bump(u)
        inward = np.minimum(dot(move, u), 0) * (r < least + 0.003)
        move = unit(move - inward[:, None] * u)
        p = p + step * move
        u, r, radius = head.reach(p)
        least = radius + height + (_ear_bump(u) if over_ears else 0)
        p = _keep_clear(u, r, least, locks, over_ears, settling).astype(np.float32)
        if hold:
            p = np.where(locks.fringe[:, None], p, tied)
            u, r, radius = head.reach(p)
        else:  # the point moved mostly along u
            r = np.maximum(r, least)
        path[:, k + 1] = p
    return path


def _cut(path: Array, height: Array) -> Array:
    """End paths where they first fall below (N,) heights; the number of points stays."""
    n, points, _ = path.shape
    below = path[:, :, 2] < height[:, None]
    below[:, 0] = False
    ends = below.any(1)
    if not ends.any():
        return path
    first = below[ends].argmax(1)
    rows = np.flatnonzero(ends)
    a, b = path[rows, first - 1, 2], path[rows, first, 2]
    last = first - 1 + np.clip((a - height[rows]) / np.maximum(a - b, 1e-6), 0.05, 1)
    at = np.linspace(0, 1, points)[None] * last[:, None]
    low = np.minimum(at.astype(int), points - 2)
    t = (at - low)[..., None].astype(np.float32)
    path = path.copy()
    path[rows] = path[rows[:, None], low] * (1 - t) + path[rows[:, None], low + 1] * t
    return path


def _refined(path: Array, factor: int) -> Array:
    """Return the same (N, K, 3) paths with `factor` times as many steps."""
    t = np.arange((path.shape[1] - 1) * factor + 1) / factor
    low = np.minimum(t.astype(int), path.shape[1] - 2)
    part = (t - low)[None, :, None].astype(np.float32)
    return path[:, low] * (1 - part) + path[:, low + 1] * part


def _frames(path: Array) -> tuple[Array, Array, Array]:
    """Return the tangents, outward normals and directions across of paths, each (N, K, 3)."""
    tangent = np.empty_like(path)
    tangent[:, 1:-1] = path[:, 2:] - path[:, :-2]
    tangent[:, 0], tangent[:, -1] = path[:, 1] - path[:, 0], path[:, -1] - path[:, -2]
    tangent = unit(tangent)
    core = np.broadcast_to(_CENTRE, path.shape).copy()
    core[..., 2] = np.minimum(path[..., 2], _CENTRE[2])
    outward = path - core
    across = unit(np.cross(tangent, outward))
    return tangent, unit(np.cross(across, tangent)), across


def _curl(hair: Hair, growth: _Growth, path: Array, rng: np.random.Generator) -> Array:
    """Add waves or coils to the paths."""
    if not growth.wave:
        return path
    n = len(path)
    _, normal, across = _frames(path)
    run = np.cumsum(np.linalg.norm(np.diff(path, axis=1, prepend=path[:, :1]), axis=-1), 1)
    size = growth.wave * (0.5 + 0.7 * hair.curl) * (0.8 + 0.4 * rng.random(n))
    wavelength = growth.wavelength * (0.85 + 0.3 * rng.random(n))
    if growth.coil:
        phase = rng.uniform(0, 2 * np.pi, n)
    else:  # neighbours wave together
        phase = 1.5 * np.sin(path[:, 0] @ np.array([24.0, 31.0, 19.0])) + rng.normal(0, 0.35, n)
        wavelength = growth.wavelength * (0.96 + 0.08 * rng.random(n))
    angle = 2 * np.pi * run / wavelength[:, None] + phase[:, None]
    ramp = size[:, None] * smoothstep(run, 0.0, 0.6 * growth.wavelength)
    turn = rng.choice([-1.0, 1.0], n) if growth.coil else np.ones(n)
    sideways: Array = np.sin(angle) * ramp * turn[:, None]
    outwards: Array = np.cos(angle) * ramp * (1.0 if growth.coil else 0.3)
    return (path + sideways[..., None] * across + outwards[..., None] * normal).astype(np.float32)


def _clump(path: Array, strength: float, locks: _Locks, rng: np.random.Generator) -> Array:
    """Pull the tips of neighbouring locks together."""
    if not strength:
        return path
    from scipy.spatial import cKDTree

    n, points, _ = path.shape
    leaders = rng.choice(n, max(1, n // 9), replace=False)
    nearest = leaders[cKDTree(path[leaders, 0]).query(path[:, 0])[1]]
    alike = (locks.side[nearest] == locks.side) & (locks.fringe[nearest] == locks.fringe)
    pull = strength * np.linspace(0, 1, points, dtype=np.float32) ** 1.5
    return path + (alike[:, None] * pull)[..., None] * (path[nearest] - path)


def _tones(hair: Hair, n: int, rng: np.random.Generator) -> Array:
    """Return (N, 3) colours of single locks: some darker, some lighter, some gray."""
    base = np.asarray(hair.color)
    tone = np.exp((0.09 + 0.11 * hair.highlights) * rng.standard_normal(n))[:, None]
    warm = 1 + 0.05 * rng.standard_normal((n, 1)) * np.array([1.0, 0.0, -1.0])
    light = (rng.random(n) < 0.35 * hair.highlights)[:, None]
    colors = base * tone * warm
    colors = np.where(light, colors * 1.18 + 0.02, colors)
    if hair.gray and hair.color_name not in ("gray", "white"):
        share = np.clip(hair.gray + 0.25 * rng.standard_normal(n) * hair.gray, 0, 1)[:, None]
        silver = np.array([0.66, 0.66, 0.66]) * np.exp(0.12 * rng.standard_normal((n, 1)))
        mixed = 0.3 * (rng.random((n, 1)) < share) + 0.7 * share
        colors = colors + mixed * (silver - colors)
    return np.clip(colors, 0, 1)


def _ribbons(
    path: Array, width: Array, colors: Array, rng: np.random.Generator, roll: float = 0.25
) -> Mesh:
    """Return strips along (N, K, 3) paths, with normals as if they were round.

    Args:
        path: (N, K, 3) points from root to tip.
        width: (N, K) widths in metres.
        colors: (N, K, 3) colours in 0..1.
        rng: Random generator.
        roll: Standard deviation of a strip's turn about its path in radians.
    """
    n, points, _ = path.shape
    _, normal, across = _frames(path)
    angle = (roll * rng.standard_normal((n, 1, 1))).astype(np.float32)
    across, normal = (
        across * np.cos(angle) + normal * np.sin(angle),
        normal * np.cos(angle) - across * np.sin(angle),
    )
    half = across * (width[..., None] / 2).astype(np.float32)
    both = np.stack([path - half, path + half], 2)
    normals = unit(np.stack([normal - 0.55 * across, normal + 0.55 * across], 2))
    k = np.arange(points - 1)
    strip = np.concatenate(
        [np.stack([2 * k, 2 * k + 1, 2 * k + 2], 1), np.stack([2 * k + 1, 2 * k + 3, 2 * k + 2], 1)]
    )
    faces = (strip[None] + (np.arange(n) * 2 * points)[:, None, None]).reshape(-1, 3)
    return Mesh(
        both.reshape(-1, 3), faces, np.repeat(colors.reshape(-1, 3), 2, 0), normals.reshape(-1, 3)
    )


def _shell(
    person: Appearance, head: Skull, growth: _Growth, rng: np.random.Generator, under: str
) -> Mesh:
    """Return the dark surface under the locks, which sinks into the skin at the hairline."""
    hair = person.hair
    columns = COLUMNS
    polar = np.maximum(np.arange(ROWS) * (MAX_POLAR / (ROWS - 1)), 0.5)[:, None]
    longitude = np.arange(columns)[None] * (360.0 / columns) - 180.0
    u = direction(longitude, polar)
    margin = hairline_margin(hair, np.abs(longitude), polar)
    thick = growth.thick * (0.55 + 0.45 * hair.volume)
    share = {"short afro": 0.72, "afro": 0.72, "curly": 0.5}.get(hair.style, 0.30)
    bump = 1 + 0.10 * _bumps(u, 0.35, rng) if growth.comb == "afro" else 1.0
    rise = np.sqrt(smoothstep(margin, 1.0, 26.0 if growth.comb == "afro" else 14.0))
    depth = thick * share * bump * rise - 0.003 * smoothstep(margin, 4.0, 0.0)
    if under != "none":
        depth = np.minimum(depth, 0.6 * hair_room(under, longitude, polar))
    points = head.surface(u, depth)
    ground = 0.42 if growth.coil else 0.70  # seen between curls, or at a parting
    tone = ground * (1 + 0.12 * rng.standard_normal(columns))[None] + 0 * polar
    gray = np.array([0.5, 0.5, 0.5])
    base = np.asarray(hair.color) * (1 - hair.gray) + gray * hair.gray
    colors = np.clip(base * tone[..., None], 0, 1).reshape(-1, 3)
    normals = unit(u).reshape(-1, 3)
    faces = grid_faces(ROWS, columns, closed=True)[:, [0, 2, 1]]
    inside = (margin > -1.0).ravel()[faces].all(1).reshape(2, -1).all(0)  # both halves of a cell
    used, faces = np.unique(faces[np.tile(inside, 2)], return_inverse=True)
    return Mesh(points.reshape(-1, 3)[used], faces.reshape(-1, 3), colors[used], normals[used])


def _open(path: Array) -> Array:
    """Return (N, K) shares of light at the points; it is dark behind the face, at the neck."""
    y, z = path[..., 1], path[..., 2]
    below = smoothstep(z, 0.72, 0.66)
    behind = smoothstep(y, -0.075, -0.015)
    return 1 - 0.62 * below * behind


def _press(path: Array, head: Skull, kind: str) -> Array:
    """Press (N, K, 3) paths to the skull where headwear covers them."""
    flat = path.reshape(-1, 3)
    u, r, radius = head.reach(flat)
    longitude = np.degrees(np.arctan2(u[:, 0], -u[:, 1]))
    polar = np.degrees(np.arccos(np.clip(u[:, 2], -1, 1)))
    room = hair_room(kind, longitude, polar)
    lower = smoothstep(polar, 135, 120)  # hair below the head hangs free
    r = np.where(lower > 0, np.minimum(r, radius + room + 0.1 * (1 - lower)), r)
    return (_CENTRE + u * r[:, None]).reshape(path.shape).astype(np.float32)


def hair_mesh(person: Appearance, vertices: Array, under: str = "none") -> Mesh | None:
    """Return a person's hair, or None if none is to be seen.

    Args:
        person: Person whose hair it is.
        vertices: (V, 3) vertices of the head model in metres.
        under: Headwear that presses the hair down, one of `outfit.HEADWEAR`.
    """
    hair = person.hair
    if hair.style == "bald" or under == "headscarf":
        return None
    growth = _GROWTH[hair.style]
    rng = stream("hair", person.seed, person.index)
    head = skull(vertices)
    locks = _sow(person, growth, rng)
    path = _grow(hair, growth, head, locks, rng)
    path = _clump(path, growth.clump * (0.6 + 0.8 * rng.random()), locks, rng)
    path = _trim(hair, path, locks, rng)
    if hair.style == "long curly":
        path = _refined(path, 3)
    path = _curl(hair, growth, path, rng)
    if hair.style == "braids":
        path = _refined(path, 6)
    if under != "none":
        path = _press(path, head, under)
    n, points, _ = path.shape
    s = np.linspace(0, 1, points)[None]
    taper = (0.75 + 0.25 * smoothstep(s, 0, 0.2)) * (1 - 0.75 * smoothstep(s, 0.55, 1.0))
    if hair.style == "bob":
        taper = 1 - 0.35 * smoothstep(s, 0.8, 1.0)
    # Buried locks are wide and dark; those on top and the fringe are fine and light.
    rank = np.where(locks.fringe, 1.0, locks.height / max(locks.height.max(), 1e-6))
    lower = smoothstep(rank, 0.8, 0.3)[:, None]
    width = growth.width * (0.65 + 0.5 * rng.random((n, 1)) + 0.7 * lower) * taper
    width = width * np.clip(locks.length / 0.03, 0.45, 1)[:, None]
    run = s * locks.length[:, None]
    shade = (0.66 + 0.34 * smoothstep(run, 0.0, 0.03)) * (1 + 0.08 * smoothstep(s, 0.5, 1))
    buried = 0.70 + 0.30 * smoothstep(rank, 0.15, 0.7)
    if hair.style == "braids":  # strand over strand
        over = np.abs(np.sin(np.pi * (run / 0.015 + rng.random((n, 1)))))
        width, shade = width * (0.8 + 0.3 * over), shade * (0.45 + 0.65 * over)
    colors = _tones(hair, n, rng)[:, None] * (shade * buried[:, None] * _open(path))[..., None]
    mesh = _ribbons(path, width, np.clip(colors, 0, 1), rng)
    parts = [_shell(person, head, growth, rng, under), mesh]
    # A knot under a hat's rim is pressed flat and left out.
    knot = np.degrees(np.arccos(_tie_point(hair)[2]))
    if under == "none" or hair.style == "plaits" or hair_room(under, 180.0, knot) > 0.02:
        parts += _tied(hair, head, rng)
    return join(parts)


def _strands(hair: Hair, path: Array, size: float, rng: np.random.Generator) -> Mesh:
    """Return locks of one width along (N, K, 3) paths."""
    n, points, _ = path.shape
    s = np.linspace(0, 1, points)[None]
    width = size * (0.7 + 0.6 * rng.random((n, 1))) * (1 - 0.7 * smoothstep(s, 0.7, 1.0))
    colors = _tones(hair, n, rng)[:, None] * (0.75 + 0.25 * rng.random((n, 1, 1)))
    return _ribbons(path.astype(np.float32), width, np.broadcast_to(colors, path.shape), rng)


def _tied(hair: Hair, head: Skull, rng: np.random.Generator) -> list[Mesh]:
    """Return what tied hair has besides its locks: a tail, a bun or two plaits."""
    knot = head.surface(_tie_point(hair), 0.008)
    if hair.style == "bun":
        return [_bun(hair, knot, _tie_point(hair), rng)]
    if hair.style == "ponytail":
        n, t = 300, np.linspace(0, 1, 14)[None, :, None]
        start = knot + 0.008 * rng.standard_normal((n, 1, 3))
        swing = 0.05 * hair.parting + 0.020 * rng.standard_normal((n, 1))
        length = (0.20 + 0.08 * hair.length) * (1 + 0.12 * rng.standard_normal((n, 1)))
        t = t[..., 0]
        x = swing * np.sin(np.pi * 0.6 * t)
        y = (0.055 + 0.012 * rng.standard_normal((n, 1))) * np.sin(np.pi * np.minimum(1.2 * t, 0.7))
        z = 0.028 * np.sin(np.pi * np.minimum(2.2 * t, 1.0)) - length * t**1.4
        return [_strands(hair, start + np.stack([x, y, z], -1), 0.006, rng)]
    if hair.style == "plaits":
        return [_plait(hair, head, side, rng) for side in (1.0, -1.0)]
    return []


def _bun(hair: Hair, knot: Array, outward: Array, rng: np.random.Generator) -> Mesh:
    """Return a ball of hair wound around its axis."""
    size = 0.026 + 0.008 * hair.volume
    n, t = 170, np.linspace(0, 1, 12)[None]
    first = unit(np.cross(outward, [1.0, 0.1, 0.0]))
    second = np.cross(outward, first)
    layer = rng.uniform(0.80, 1.0, (n, 1))
    turn = rng.uniform(0, 2 * np.pi, (n, 1)) + t * rng.uniform(1.5, 3.2, (n, 1))
    latitude = rng.uniform(-0.9, 1.45, (n, 1)) + 0.5 * rng.standard_normal((n, 1)) * t
    flat = np.cos(latitude)[..., None] * (
        np.cos(turn)[..., None] * first + np.sin(turn)[..., None] * second
    )
    ball = flat * 1.15 + 0.85 * np.sin(latitude)[..., None] * outward
    centre = knot + 0.62 * size * outward
    path = (centre + size * layer[..., None] * ball).astype(np.float32)
    # Strips face away from the head's centre; those of a bun must face away from the bun's.
    mesh = _ribbons(
        path - centre.astype(np.float32) + _CENTRE + [0, 0, 1e-4],
        np.full((n, 12), 0.006),
        np.broadcast_to(
            _tones(hair, n, rng)[:, None] * (0.55 + 0.45 * (layer[..., None] - 0.8) / 0.2),
            path.shape,
        ),
        rng,
        0.2,
    )
    points = mesh.points + centre - _CENTRE
    return replace(mesh, points=points)


def _plait(hair: Hair, head: Skull, side: float, rng: np.random.Generator) -> Mesh:
    """Return a plait of three strands from behind the ear down over the shoulder."""
    length = 0.20 + 0.06 * hair.length
    t = np.linspace(0, 1, 90)
    start = head.surface(unit(np.array([0.80 * side, 0.42, -0.42])), 0.006)
    forward = smoothstep(t, 0.0, 0.55)
    x = start[0] + side * (0.012 * np.sin(np.pi * t) + 0.010 * t)
    y = start[1] + (-0.075 - start[1]) * forward
    spine = np.stack([x, y, start[2] - length * t], 1)
    size = 0.0085 * (0.85 + 0.25 * hair.volume) * (1 - 0.35 * t)
    paths = []
    for strand in range(3):
        turn = 2 * np.pi * (t * length / 0.055 + strand / 3)
        offset = np.stack([size * np.sin(turn), -0.55 * size * np.sin(2 * turn), 0 * t], 1)
        middle = spine + offset
        for _ in range(20):  # each strand is a bundle of locks
            a = rng.uniform(0, 2 * np.pi)
            r = 0.65 * size * np.sqrt(rng.random())
            paths.append(middle + np.stack([r * np.cos(a), r * np.sin(a), 0 * t], 1))
    path = np.asarray(paths)
    tail = spine[-1] + np.array([0, 0, -0.045]) * np.linspace(0, 1, 90)[:, None]
    brush = tail[None] + 0.012 * rng.standard_normal((14, 1, 3)) * np.linspace(0.2, 1, 90)[:, None]
    return _strands(hair, np.concatenate([path, brush])[:, ::2], 0.0055, rng)


def _trim(hair: Hair, path: Array, locks: _Locks, rng: np.random.Generator) -> Array:
    """Cut bobs at the chin and fringes above the eyes."""
    marks = load_head_model().landmarks
    n = len(path)
    line = np.full(n, -np.inf)
    if hair.style == "bob":
        line[:] = marks.mouth[2] + 0.005 - 0.04 * hair.length
        line += 0.004 * rng.standard_normal(n)
    elif hair.style == "shoulder":
        line[:] = marks.chin[2] - 0.015 - 0.04 * hair.length + 0.008 * rng.standard_normal(n)
    front = np.abs(locks.longitude) < 50
    if not covers_ears(hair):  # the eyes stay free
        above = marks.eyes[2] + (0.032 if hair.style == "curly" else 0.018)
        before = front | ((path[:, -1, 1] < -0.085) & (np.abs(path[:, -1, 0]) < 0.065))
        line = np.where(before, above + 0.005 * rng.random(n), line)
    if hair.fringe:
        brow = marks.eyes[2] + 0.022 + 0.026 * (1 - hair.fringe)
        brow = brow + 0.003 * np.abs(rng.standard_normal(n))
        line = np.where(locks.fringe | (front & (hair.style == "fringe crop")), brow, line)
    path = _cut(path, line)
    if hair.style in ("bob", "shoulder"):  # the ends curl inwards
        bend = np.linspace(0, 1, path.shape[1], dtype=np.float32) ** 4 * (0.22 - 0.1 * hair.curl)
        axis = np.array([0.0, -0.045], np.float32)
        hanging = ~locks.fringe[:, None] * bend
        path[..., :2] += hanging[..., None] * (axis - path[..., :2])
    return path
