"""Clothes as meshes: how they are cut, painted and put on.

A garment is the body's surface, made a little wider, with a picture painted on it from the front
(`paint_cloth`). Whatever stands off the body (collars, a hood, fur, the space suit's ring) is a
band around the neck, on a grid of directions from a point inside it, so that it fits every body.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from companion.people.colors import Color, stream
from companion.people.head import load_head_model
from companion.people.mesh import Mesh, grid_mesh, vertex_normals
from companion.people.outfit import CLOTHES, Clothes
from fusionlib.errors import FusionError

Array = np.ndarray

# Bounds of the painted part of the body as seen from the front, in metres of the template.
X0, X1, Z0, Z1 = -0.46, 0.46, 0.26, 0.66
TEXEL = 0.001
# Directions start at this point inside the neck: `phi` is the angle from the front to the person's
# left, `up` the angle from the horizontal, both in degrees.
NECK = np.array([0.0, -0.030, 0.600])
_PHI = np.arange(-180, 180, 5.0)
_UP = np.arange(-60, 41, 4.0)
_BODY_FROM = 0.28  # metres; no picture shows anything below, not even of several people


@dataclass(frozen=True)
class _Body:
    """The template's upper body with finer triangles.

    Attributes:
        index: (W, 3) vertices of the head model that each new vertex mixes.
        weights: (W, 3) weights of them.
        faces: (F, 3) triangles of new vertices.
        place: (W, 3) new vertices of the template in metres.
        phi: (W,) directions around the neck in degrees.
        up: (W,) elevations seen from the neck in degrees.
    """

    index: Array
    weights: Array
    faces: Array
    place: Array
    phi: Array
    up: Array


def _angles(points: Array) -> tuple[Array, Array]:
    d = points - NECK
    level = np.hypot(d[:, 0], d[:, 1])
    return np.degrees(np.arctan2(d[:, 0], -d[:, 1])), np.degrees(np.arctan2(d[:, 2], level))


@functools.lru_cache(maxsize=1)
def _body() -> _Body:
    """Split each triangle of the upper body into sixteen, as fine as hems and folds need."""
    from scipy.sparse import csr_matrix, identity

    model = load_head_model()
    t = model.template
    faces = model.faces["body"]
    faces = faces[t[faces][:, :, 2].max(1) > _BODY_FROM]
    used, flat = np.unique(faces, return_inverse=True)
    faces = flat.reshape(-1, 3)
    spread = identity(len(used), format="csr")
    for _ in range(2):
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
        pairs, number = np.unique(edges, axis=0, return_inverse=True)
        count, n = spread.shape[0], len(faces)
        row = np.repeat(np.arange(len(pairs)), 2)
        halves = csr_matrix((np.full(len(row), 0.5), (row, pairs.ravel())), (len(pairs), count))
        from scipy.sparse import vstack

        spread = vstack([spread, halves @ spread]).tocsr()
        ab, bc, ca = (number.ravel()[k * n : (k + 1) * n] + count for k in range(3))
        a, b, c = faces.T
        faces = np.concatenate(
            [np.stack(x, 1) for x in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        )
    # A new vertex lies in one triangle, so it mixes at most three vertices.
    count = np.diff(spread.indptr)
    row, slot = np.repeat(np.arange(len(count)), count), np.arange(spread.nnz)
    slot -= np.repeat(spread.indptr[:-1], count)
    top, weights = np.zeros((len(count), 3), int), np.zeros((len(count), 3))
    top[row, slot], weights[row, slot] = spread.indices, spread.data
    place = np.einsum("vk,vkc->vc", weights, t[used][top])
    return _Body(used[top], weights, faces, place, *_angles(place))


@functools.lru_cache(maxsize=1)
def _neck_binding() -> tuple[Array, Array]:
    """Return three vertices of the skin and their weights for each direction of the grid."""
    model = load_head_model()
    t = model.template
    faces = np.concatenate([model.faces["neck"], model.faces["body"]])
    corners = t[faces] - NECK
    inverse = np.linalg.pinv(np.swapaxes(corners, 1, 2))
    phi, up = np.radians(np.meshgrid(_PHI, _UP))
    rays = _directions(phi, up).reshape(-1, 3)
    b = np.einsum("tij,nj->nti", inverse, rays)
    total = b.sum(-1)
    share = b / np.where(np.abs(total) < 1e-9, 1e-9, total)[..., None]
    # Take the first surface that a ray meets, with a small tolerance at the triangles' edges.
    reach = np.where((share.min(-1) > -0.02) & (total > 1e-6), 1 / np.maximum(total, 1e-6), np.inf)
    first = reach.argmin(1)
    missed = ~np.isfinite(reach.min(1))
    first[missed] = share[missed].min(-1).argmax(1)
    weights = np.clip(share[np.arange(len(rays)), first], 0, 1)
    weights /= weights.sum(-1, keepdims=True)
    return faces[first].reshape(*phi.shape, 3), weights.reshape(*phi.shape, 3)


def _directions(phi: Array, up: Array) -> Array:
    return np.stack([np.cos(up) * np.sin(phi), -np.cos(up) * np.cos(phi), np.sin(up)], -1)


@dataclass(frozen=True)
class _Neck:
    """A person's neck as (U, P) distances from its inner point in all directions."""

    centre: Array
    reach: Array

    def at(self, phi: Array, up: Array, lift: Array | float) -> Array:
        """Return points `lift` metres above the skin in directions in degrees; shapes broadcast."""
        from scipy.ndimage import map_coordinates

        phi, up = np.broadcast_arrays(np.asarray(phi, float), np.asarray(up, float))
        rows, columns = (up - _UP[0]) / (_UP[1] - _UP[0]), (phi - _PHI[0]) / (_PHI[1] - _PHI[0])
        wide = np.concatenate([self.reach, self.reach[:, :1]], 1)
        where = [np.clip(rows, 0, len(_UP) - 1), columns % len(_PHI)]
        reach = map_coordinates(wide, where, order=1, mode="nearest")
        d = _directions(np.radians(phi), np.radians(up))
        points: Array = self.centre + d * (reach + lift)[..., None]
        return points


def _neck(points: Array) -> _Neck:
    from scipy.ndimage import gaussian_filter

    index, weights = _neck_binding()
    surface = np.einsum("upk,upkc->upc", weights, points[index])
    ring = surface[np.abs(_UP) <= 12].reshape(-1, 3)
    centre = np.array([0.0, NECK[1] + 0 * ring[0, 1], NECK[2]])
    reach = gaussian_filter(
        np.linalg.norm(surface - centre, axis=-1), 0.8, mode=("nearest", "wrap")
    )
    return _Neck(centre, reach)


def _roll(
    neck: _Neck,
    color: Array,
    *,
    up: float | Array,
    height: float,
    lift: float | Array,
    around: tuple[float, float] = (-180, 180),
    rough: float = 0.0,
    seed: int = 0,
) -> Mesh:
    """Return a roll around the neck, `height` degrees high and `lift` metres thick."""
    closed = around == (-180, 180)
    phi = np.linspace(*around, 97)[: -1 if closed else None]
    turn = np.linspace(-0.55 * np.pi, 0.55 * np.pi, 11)[:, None]
    thick = np.broadcast_to(lift, phi.shape) * np.ones((11, 1))
    if rough:
        thick = thick * (1 + rough * stream("roll", seed).normal(0, 1, (11, len(phi))))
    points = neck.at(
        phi[None] + 0 * turn, up + height / 2 * np.sin(turn), thick * np.cos(turn) - 0.002
    )
    return grid_mesh(points, color, closed)


def _stand(
    neck: _Neck,
    color: Array,
    *,
    low: tuple[float, float],
    high: tuple[float, float],
    lift: float,
    open_at: float = 0.0,
) -> Mesh:
    """Return an upright collar, `lift` metres off the neck and folded in at the top.

    `low` and `high` are the elevations of its edges in degrees, in front and at the nape.
    """
    closed = open_at == 0
    phi = np.linspace(open_at - 180, 180 - open_at, 97)[: -1 if closed else None] + 180
    profile = [(0, 0.5), (0.2, 0.9), (0.6, 1.0), (0.92, 1.05), (1.0, 0.9), (0.98, 0.6), (0.7, 0.3)]
    behind = (1 - np.cos(np.radians(phi))) / 2
    rows = [
        neck.at(
            phi,
            np.interp(behind, [0, 1], low) * (1 - t) + np.interp(behind, [0, 1], high) * t,
            f * lift,
        )
        for t, f in profile
    ]
    tone = np.array([0.9, 1.0, 1.0, 1.0, 0.95, 0.6, 0.45])[:, None, None]
    return grid_mesh(np.stack(rows), tone * np.asarray(color), closed)


def _collar(neck: _Neck, color: Array, point: float = 24.0, open_at: float = 7.0) -> Mesh:
    """Return a folded collar with two points in front, `point` degrees long."""
    phi = np.linspace(open_at, 360 - open_at, 91)
    front = np.minimum(phi, 360 - phi)
    rise = 7 * (1 - np.cos(np.radians(front))) / 2
    low = -12 + rise - point * np.exp(-(((front - 24) / 13) ** 2))
    high = 4 + rise - 12 * np.exp(-((front / 16) ** 2))
    stand = [(0.0, 0.002), (0.6, 0.004), (1.0, 0.006), (0.96, 0.0095), (0.5, 0.0115), (0.0, 0.013)]
    rows = []
    for k, (t, lift) in enumerate(stand):
        base = -16 + rise if k < 2 else low
        rows.append(neck.at(phi, base + (high - base) * t, lift))
    tone = np.array([0.72, 0.8, 1.0, 1.0, 1.0, 0.94])[:, None, None]
    return grid_mesh(np.stack(rows), tone * np.asarray(color))


def _tie(neck: _Neck, color: Array, stripe: Array) -> Mesh:
    up = np.linspace(-4, -58, 15)[:, None]
    half = np.interp(up, [-58, -22, -18, -4], [13, 7, 6, 9])
    across = np.linspace(-1, 1, 7)[None]
    lift = 0.008 + 0.004 * (1 - across**2) + 0.003 * (up > -20)
    points = neck.at(across * half, up + 0 * across, lift)
    band = (np.sin(0.55 * up + 2.2 * across) > 0.75)[..., None]
    return grid_mesh(
        points, np.where(band, stripe, color) * np.where(up > -20, 0.88, 1.0)[..., None]
    )


def _bow(neck: _Neck, color: Array) -> Mesh:
    across = np.linspace(-1, 1, 21)[None]
    tall = (3.5 + 9 * np.abs(across) ** 0.8) * np.linspace(-1, 1, 7)[:, None]
    points = neck.at(26 * across + 0 * tall, -14 + tall, 0.010 + 0.004 * np.sin(9 * across))
    return grid_mesh(
        points, np.asarray(color) * np.where(np.abs(across) < 0.16, 0.75, 1.0)[..., None]
    )


def _tube(path: Array, radius: float, color: Sequence[float]) -> Mesh:
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.cross(along, [0.0, 0.3, 1.0])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(along, side)
    turn = np.linspace(0, 2 * np.pi, 9)[:-1]
    ring = np.cos(turn)[:, None, None] * side + np.sin(turn)[:, None, None] * other
    return grid_mesh(np.swapaxes(path + radius * ring, 0, 1), np.asarray(color), True)


def _stethoscope(neck: _Neck) -> Mesh:
    phi = np.array([28, 30, 38, 60, 100, 140, 180, 220, 260, 300, 322, 330, 332.0])
    up = np.array([-58, -46, -34, -20, -8, -4, -3, -4, -8, -20, -34, -46, -58.0])
    t, fine = np.linspace(0, 1, len(phi)), np.linspace(0, 1, 70)
    path = neck.at(np.interp(fine, t, phi), np.interp(fine, t, up), 0.017)
    return _tube(path, 0.0042, (0.10, 0.11, 0.13))


def _space_ring(neck: _Neck, color: Array) -> dict[str, Mesh]:
    """Return the ring that a space helmet locks into, a hoop around the neck."""
    turn, tube = np.radians(np.arange(0, 360, 5.0)), np.linspace(0, 2 * np.pi, 13)
    middle = neck.centre + [0, 0.004, -0.004]

    def hoop(radius: float, width: float, tall: float, lift: float, tone: Array) -> Mesh:
        r = radius + width * np.cos(tube)[:, None]
        z = lift + tall * np.sin(tube)[:, None] + 0 * turn
        tilt = 0.22 * r * np.cos(turn) * -1
        points = np.stack([1.08 * r * np.sin(turn), -r * np.cos(turn), z + tilt], -1)
        return grid_mesh(middle + points, tone, True)

    steel = np.array([0.60, 0.63, 0.67])
    return {
        "ring": hoop(0.098, 0.009, 0.010, 0.006, steel),
        "seal": hoop(0.101, 0.010, 0.004, -0.002, np.array([0.75, 0.16, 0.12])),
        "cushion": hoop(0.103, 0.020, 0.022, -0.024, np.asarray(color) * 0.94),
        "inside": hoop(0.082, 0.012, 0.010, -0.010, np.array([0.20, 0.21, 0.24])),
    }


class _Paint:
    """A canvas over the front of the body, in metres to the right of the middle and up."""

    def __init__(self, color: Color | Array) -> None:
        size = round((X1 - X0) / TEXEL), round((Z1 - Z0) / TEXEL)
        self.image = Image.new("RGB", size, _rgb(color))
        self.draw = ImageDraw.Draw(self.image)

    def _to(self, points: Sequence[tuple[float, float]] | Array) -> list[float]:
        p = np.asarray(points, float)
        return np.stack([(p[:, 0] - X0) / TEXEL, (Z1 - p[:, 1]) / TEXEL], 1).ravel().tolist()

    def polygon(
        self, points: Sequence[tuple[float, float]], color: Color | Array, mirror: bool = False
    ) -> None:
        self.draw.polygon(self._to(points), fill=_rgb(color))
        if mirror:
            self.draw.polygon(self._to([(-x, z) for x, z in points]), fill=_rgb(color))

    def line(
        self,
        points: Sequence[tuple[float, float]] | Array,
        color: Color | Array,
        width: float,
        mirror: bool = False,
    ) -> None:
        w = max(1, round(width / TEXEL))
        p = np.asarray(points, float)
        self.draw.line(self._to(p), fill=_rgb(color), width=w, joint="curve")
        if mirror:
            self.draw.line(self._to(p * [-1, 1]), fill=_rgb(color), width=w, joint="curve")

    def dot(self, x: float, z: float, r: float, color: Color | Array) -> None:
        a, b = self._to([(x - r, z + r), (x + r, z - r)])[:2], self._to([(x + r, z - r)])
        self.draw.ellipse([*a, *b], fill=_rgb(color))

    def box(self, x0: float, z0: float, x1: float, z1: float, color: Color | Array) -> None:
        self.polygon([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], color)


def _rgb(color: Color | Array) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, 255 * c))) for c in color)
    return r, g, b


def _mul(color: Color | Array, factor: float) -> Array:
    return np.clip(np.asarray(color) * factor, 0, 1)


def _pattern(paint: _Paint, clothes: Clothes) -> None:
    if clothes.pattern == "striped":
        for k, z in enumerate(np.arange(Z0, Z1, 0.011)):
            if k % 2:
                paint.box(X0, z, X1, z + 0.011, clothes.accent)
    elif clothes.pattern == "checked":
        a, b = np.asarray(clothes.color), np.asarray(clothes.accent)
        for x in np.arange(X0, X1, 0.024):
            paint.box(x, Z0, x + 0.012, Z1, 0.5 * (a + b))
        for z in np.arange(Z0, Z1, 0.024):
            paint.box(X0, z, X1, z + 0.012, 0.5 * (a + b))
            for x in np.arange(X0, X1, 0.024):
                paint.box(x, z, x + 0.012, z + 0.012, b)
    elif clothes.pattern == "dotted":
        for k, z in enumerate(np.arange(Z0, Z1, 0.011)):
            for x in np.arange(X0 + 0.007 * (k % 2), X1, 0.014):
                paint.dot(float(x), float(z), 0.0028, clothes.accent)
    elif clothes.pattern == "knitted":
        dark = _mul(clothes.color, 0.86)
        for x in np.arange(X0, X1, 0.0072):
            paint.line([(x, Z0), (x, Z1)], dark, 0.0016)


def _buttons(paint: _Paint, x: float, color: Color | Array, radius: float = 0.0026) -> None:
    for z in np.arange(0.495, 0.60, 0.019):
        paint.dot(x, float(z), radius, color)


def _suit(paint: _Paint, c: Clothes) -> None:
    shirt = (0.93, 0.93, 0.95)
    paint.polygon([(-0.052, 0.64), (0.052, 0.64), (0.0, 0.47)], shirt)
    # The lower part of the tie is painted: the shirt would show through a mesh so close to it.
    tie = [(-0.014, 0.545), (0.014, 0.545), (0.018, 0.482), (0.0, 0.462), (-0.018, 0.482)]
    paint.polygon(tie, c.accent)
    edge, cloth = _mul(c.color, 0.55), _mul(c.color, 1.12)
    for outline, tone in ((0.0026, edge), (0.0, cloth)):
        d = outline
        lapel = [(0.040, 0.64), (0.062, 0.62), (0.083 + d, 0.566 + d), (0.066 + d, 0.556 - d)]
        paint.polygon([*lapel, (0.078 + d, 0.545 - d), (0.0, 0.46), (0.0, 0.475)], tone, True)


def _coat(paint: _Paint, c: Clothes) -> None:
    """Paint a doctor's open coat over scrubs."""
    paint.polygon([(-0.046, 0.64), (0.046, 0.64), (0.022, 0.47), (-0.022, 0.47)], c.accent)
    paint.polygon([(-0.034, 0.64), (0.034, 0.64), (0.0, 0.56)], _mul(c.accent, 0.8))
    for d, tone in ((0.002, _mul(c.color, 0.72)), (0.0, _mul(c.color, 1.0))):
        lapel = [(0.040, 0.64), (0.060, 0.62), (0.075 + d, 0.57), (0.060 + d, 0.561 - d)]
        paint.polygon([*lapel, (0.066 + d, 0.553 - d), (0.020, 0.47), (0.018, 0.50)], tone, True)


def _vest(paint: _Paint, c: Clothes) -> None:
    """Paint a high-visibility vest over a dark shirt."""
    paint.polygon(
        [(0.040, 0.66), (0.125, 0.66), (0.138, 0.56), (0.14, 0.46), (0, 0.46), (0, 0.525)],
        c.color,
        True,
    )
    paint.line([(0.088, 0.66), (0.088, 0.46)], (0.86, 0.88, 0.50), 0.026, True)
    paint.line([(0.088, 0.66), (0.088, 0.46)], (0.88, 0.90, 0.92), 0.014, True)
    paint.line([(0.0, 0.527), (0.0, 0.46)], _mul(c.color, 0.6), 0.003)


def _turnout(paint: _Paint, c: Clothes) -> None:
    """Paint a firefighter's coat, dark with reflective stripes."""
    paint.line([(0.0, 0.62), (0.0, 0.46)], _mul(c.color, 0.5), 0.004)
    for z, x in ((0.520, 0.26), (0.556, 0.26)):
        paint.line([(-x, z), (x, z)], c.accent, 0.017)
        paint.line([(-x, z), (x, z)], (0.90, 0.92, 0.92), 0.007)
    paint.line([(0.082, 0.66), (0.082, 0.55)], c.accent, 0.018, True)
    paint.line([(0.082, 0.66), (0.082, 0.55)], (0.90, 0.92, 0.92), 0.007, True)


def _chef(paint: _Paint, c: Clothes) -> None:
    paint.line([(0.040, 0.61), (0.046, 0.56), (0.044, 0.46)], _mul(c.color, 0.74), 0.0028)
    for x in (-0.030, 0.030):
        _buttons(paint, x, (0.16, 0.17, 0.20), 0.0042)


def _robe(paint: _Paint, c: Clothes) -> None:
    gold = np.array([0.86, 0.68, 0.26])
    paint.polygon([(-0.03, 0.64), (0.03, 0.64), (0.016, 0.46), (-0.016, 0.46)], _mul(c.color, 0.6))
    paint.line([(0.032, 0.64), (0.020, 0.46)], gold, 0.007, True)
    for x in np.arange(-0.24, 0.25, 0.04):
        for k, z in enumerate(np.arange(0.49, 0.64, 0.034)):
            if abs(x) > 0.045:
                paint.dot(float(x) + 0.02 * (k % 2), float(z), 0.004, _mul(c.color, 0.72))
    for z in np.arange(0.485, 0.62, 0.022):
        paint.dot(0.0, float(z), 0.004, gold)


def _overalls(paint: _Paint, c: Clothes) -> None:
    """Paint the straps and bib of blue overalls over a shirt."""
    denim = np.array([0.22, 0.33, 0.52])
    for width, tone in ((0.036, 0.7), (0.033, 1.0)):
        paint.line([(0.070, 0.66), (0.074, 0.56), (0.060, 0.46)], denim * tone, width, True)
    paint.box(-0.09, 0.46, 0.09, 0.528, denim)
    paint.line([(-0.09, 0.527), (0.09, 0.527)], denim * 1.35, 0.0025)
    for x in (-0.068, 0.068):
        paint.dot(x, 0.538, 0.006, (0.84, 0.70, 0.34))


def _space_suit(paint: _Paint, c: Clothes) -> None:
    grey = _mul(c.color, 0.72)
    for x in (0.05, 0.13, 0.20):
        paint.line([(x, 0.66), (1.08 * x, 0.46)], grey, 0.0022, True)
    paint.line([(0.150, 0.66), (0.165, 0.46)], c.accent, 0.014, True)
    paint.dot(-0.095, 0.553, 0.0165, (0.12, 0.22, 0.52))
    paint.dot(-0.095, 0.553, 0.010, (0.90, 0.92, 0.96))
    paint.dot(-0.092, 0.555, 0.005, (0.84, 0.2, 0.16))
    for k in range(4):
        tone = (0.80, 0.15, 0.16) if k % 2 == 0 else (0.95, 0.95, 0.95)
        paint.box(0.080, 0.541 + 0.006 * k, 0.112, 0.547 + 0.006 * k, tone)
    paint.box(0.080, 0.553, 0.094, 0.565, (0.14, 0.22, 0.50))


def _sailor(paint: _Paint, c: Clothes) -> None:
    navy = np.array([0.10, 0.15, 0.34])
    paint.polygon(
        [(0.034, 0.66), (0.15, 0.66), (0.13, 0.575), (0.0, 0.50), (0.0, 0.53)], navy, True
    )
    for d in (0.010, 0.017):
        path = [(0.15 - d, 0.66), (0.128 - d, 0.578 + 0.3 * d), (0.0, 0.503 + 1.0 * d)]
        paint.line(path, (0.95, 0.95, 0.95), 0.0026, True)


def _shirt(paint: _Paint, c: Clothes) -> None:
    for x in (-0.013, 0.013):
        paint.line([(x, 0.62), (x, 0.46)], _mul(c.color, 0.8), 0.0016)
    _buttons(paint, 0.0, _mul(c.color, 1.4 if sum(c.color) < 1.5 else 0.6))


def _hooded(paint: _Paint, c: Clothes) -> None:
    for x in (-0.03, 0.03):
        paint.line([(x, 0.60), (1.15 * x, 0.53)], c.accent, 0.0042)


def _jacket(paint: _Paint, c: Clothes) -> None:
    """Paint a quilted winter jacket with a zip."""
    for z in np.arange(0.49, 0.66, 0.026):
        paint.line([(X0, z), (X1, z)], _mul(c.color, 0.72), 0.0034)
        paint.line([(X0, z + 0.004), (X1, z + 0.004)], _mul(c.color, 1.12), 0.005)
    paint.line([(0, 0.62), (0, 0.46)], (0.75, 0.76, 0.78), 0.0045)


_PAINT: dict[str, Callable[[_Paint, Clothes], None]] = {
    "suit": _suit,
    "white coat": _coat,
    "safety vest": _vest,
    "fire coat": _turnout,
    "chef jacket": _chef,
    "royal robe": _robe,
    "overalls": _overalls,
    "space suit": _space_suit,
    "sailor suit": _sailor,
    "shirt": _shirt,
    "hoodie": _hooded,
    "winter jacket": _jacket,
}
# Distance of the cloth from the skin in metres.
_THICK = {
    "t-shirt": 0.006,
    "tank top": 0.004,
    "shirt": 0.007,
    "sweater": 0.010,
    "turtleneck": 0.008,
    "hoodie": 0.013,
    "winter jacket": 0.018,
    "fire coat": 0.015,
    "space suit": 0.022,
    "royal robe": 0.014,
}


def paint_cloth(clothes: Clothes) -> Array:
    """Paint the front of a garment with its pattern and folds, (H, W, 3) uint8."""
    ground: Color | Array = clothes.color
    if clothes.kind == "safety vest":
        ground = clothes.accent
    paint = _Paint(ground)
    _pattern(paint, clothes)
    if clothes.kind in _PAINT:
        _PAINT[clothes.kind](paint, clothes)
    image = np.asarray(paint.image, np.float32)
    height, width = image.shape[:2]
    rng = stream("folds", clothes.seed)
    angle, radius = _polar(height // 2, width // 2)
    folds = np.zeros_like(angle)
    for _ in range(4):
        phase, count = rng.uniform(0, 2 * np.pi), rng.uniform(5, 15)
        folds += np.sin(count * angle + 1.5 * np.sin(2 * radius + 5 * phase) + phase) / 4
    grain = 0.02 * rng.standard_normal(angle.shape, np.float32)
    shade = Image.fromarray(1 + grain + 0.09 * folds * np.clip(radius - 0.3, 0, 1))
    image = image * np.asarray(shade.resize((width, height), Image.Resampling.BILINEAR))[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _polar(height: int, width: int) -> tuple[Array, Array]:
    """Return angles and radii (in 10 cm) around the neck, from which folds radiate."""
    x = np.linspace(X0, X1, width, dtype=np.float32)[None] / 0.1
    z = (np.linspace(Z1, Z0, height, dtype=np.float32)[:, None] - 0.60) / 0.1
    return np.arctan2(x, -z), np.hypot(x, z)


def _hem(clothes: Clothes, phi: Array) -> Array:
    """Return the elevation in degrees that a garment reaches in each direction `phi`."""
    front = np.abs(phi)
    crew = -14 + 9 * (1 - np.cos(np.radians(phi))) / 2
    deep = np.exp(-((front / 34) ** 2))
    if clothes.kind == "tank top":
        return crew - 10 - 34 * np.exp(-((front / 46) ** 2))
    if clothes.kind in ("suit", "white coat", "safety vest", "shirt", "overalls"):
        return crew + 4
    if clothes.kind == "sailor suit":
        return crew - 4 - 22 * deep
    return crew + 4


def dress(clothes: Clothes, points: Array) -> dict[str, Mesh]:
    """Put clothes on a body.

    Args:
        clothes: Clothes to put on.
        points: (V, 3) posed vertices of the head model in metres.

    Returns:
        The pieces by name: `garment` has the painted texture, the others are collars and the like.

    Raises:
        FusionError: If the kind of clothes is unknown.
    """
    if clothes.kind not in CLOTHES:
        raise FusionError(f"Unknown clothes '{clothes.kind}': choose one of {', '.join(CLOTHES)}.")
    body = _body()
    base = np.einsum("vk,vkc->vc", body.weights, points[body.index])
    normals = vertex_normals(base, body.faces)
    reach = np.linalg.norm(body.place - NECK, axis=1)
    thick = _THICK.get(clothes.kind, 0.008)
    inside = np.radians(_hem(clothes, body.phi) - body.up) * reach
    offset = np.clip(0.9 * inside, -0.006, thick)
    placed = base + offset[:, None] * normals
    uv = np.stack([(body.place[:, 0] - X0) / (X1 - X0), (body.place[:, 2] - Z0) / (Z1 - Z0)], 1)
    colors, normals = np.tile(clothes.color, (len(placed), 1)), vertex_normals(placed, body.faces)
    garment = Mesh(placed, body.faces, colors, normals, uv, paint_cloth(clothes))
    return {"garment": garment, **_trim(clothes, _neck(points), thick)}


def _trim(c: Clothes, neck: _Neck, thick: float) -> dict[str, Mesh]:
    """Return what stands off the garment at the neck."""
    color, accent, white = np.asarray(c.color), np.asarray(c.accent), np.array([0.93, 0.93, 0.95])
    phi = np.linspace(-180, 180, 97)[:-1]
    behind = (1 - np.cos(np.radians(phi))) / 2  # 0 in front, 1 at the nape
    crew = -14 + 9 * behind
    if c.kind in ("t-shirt", "sweater"):
        rib = 0.85 if c.kind == "sweater" else 0.92
        lift = 0.45 * thick + 0.004
        return {"rib": _roll(neck, rib * color, up=crew - 1, height=9 + 500 * thick, lift=lift)}
    if c.kind == "turtleneck":
        roll = _stand(neck, color, low=(-26, -10), high=(14, 20), lift=0.007)
        fold = _stand(neck, 0.95 * color, low=(-2, 4), high=(15, 21), lift=0.010)
        return {"roll": roll, "fold": fold}
    if c.kind in ("shirt", "overalls"):
        return {"collar": _collar(neck, color if c.pattern == "plain" else 0.5 * (color + accent))}
    if c.kind == "suit":
        tie = _tie(neck, accent, np.clip(accent * 0.5 + 0.35, 0, 1))
        return {"collar": _collar(neck, white, 18, 5), "tie": tie}
    if c.kind == "white coat":
        return {"collar": _collar(neck, color, 32, 15), "stethoscope": _stethoscope(neck)}
    if c.kind == "chef jacket":
        stand = _stand(neck, color, low=(-26, -8), high=(5, 14), lift=0.008, open_at=5)
        return {"stand": stand, "scarf": _bow(neck, accent)}
    if c.kind == "hoodie":
        full = 0.012 + 0.026 * behind
        return {"hood": _roll(neck, 0.93 * color, up=-12 + 10 * behind, height=30, lift=full)}
    if c.kind == "winter jacket":
        stand = _stand(neck, 0.95 * color, low=(-30, -10), high=(2, 12), lift=0.024, open_at=14)
        folds = (0.9 + 0.1 * np.sin(40 * np.radians(phi) + 2 * c.seed % 7))[None, :, None]
        scarf = _roll(neck, folds * accent, up=2 + 7 * behind, height=24, lift=0.017)
        return {"stand": stand, "scarf": scarf}
    if c.kind == "fire coat":
        stand = _stand(neck, color, low=(-34, -12), high=(8, 18), lift=0.017, open_at=8)
        band = _stand(neck, accent, low=(-10, 0), high=(-3, 7), lift=0.0185, open_at=9)
        return {"stand": stand, "band": band}
    if c.kind == "safety vest":
        return {"collar": _collar(neck, accent)}
    if c.kind == "royal robe":
        rng = stream("ermine", c.seed)
        spots = rng.random((11, 96)) < 0.045
        fur = np.where(
            spots[..., None], 0.12, np.array([0.96, 0.95, 0.92]) * rng.uniform(0.88, 1, (11, 96, 1))
        )
        return {
            "fur": _roll(
                neck, fur, up=-11 + 12 * behind, height=34, lift=0.033, rough=0.05, seed=c.seed
            )
        }
    if c.kind == "space suit":
        return _space_ring(neck, color)
    if c.kind == "sailor suit":
        return {"scarf": _bow_low(neck, accent)}
    return {}


def _bow_low(neck: _Neck, color: Array) -> Mesh:
    across = np.linspace(-1, 1, 15)[None]
    up = np.linspace(-38, -60, 7)[:, None]
    half = np.interp(up, [-60, -46, -38], [12, 7, 10])
    return grid_mesh(
        neck.at(across * half, up + 0 * across, 0.012 + 0.004 * (1 - across**2)), color
    )
