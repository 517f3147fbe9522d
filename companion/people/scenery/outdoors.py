"""Scenes: what is behind a person and how it lights them, drawn by numpy and Pillow, no files.

Each scene is a few sheets laid over each other, far to near, in unit coordinates (x right, y down,
0 to 1), so a scene looks the same at every size. The head covers the middle: what tells a scene
stands at the sides and on top. A photograph shows it out of focus; drawn styles show it sharper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from companion.people.colors import Color
from fusionlib.errors import FusionError

Array = np.ndarray
RGB = tuple[int, int, int]
Point = tuple[float, float]
Stops = Sequence[tuple[float, RGB]]


@dataclass(frozen=True)
class SceneLight:
    """How a scene lights a person: colours in 0..1, ranges in degrees, strength in 0..1.

    Attributes:
        key: Colour of the main light.
        azimuth: Where it stands, 0 in front, either side: the least and the largest angle.
        elevation: How high it stands, least and largest.
        strength: Share of the main light, least and largest; the rest is fill.
        fill: Colour of the light from the camera's side.
    """

    key: Color
    azimuth: tuple[float, float]
    elevation: tuple[float, float]
    strength: tuple[float, float]
    fill: Color


_INDOOR = SceneLight((1.0, 0.97, 0.93), (10, 55), (25, 50), (0.5, 0.75), (0.97, 0.98, 1.0))
_SUN = SceneLight((1.0, 0.96, 0.88), (15, 65), (30, 55), (0.6, 0.85), (0.88, 0.94, 1.0))
_LOW_SUN = SceneLight((1.0, 0.76, 0.50), (35, 70), (8, 25), (0.6, 0.8), (0.93, 0.84, 0.90))
_SHADE = SceneLight((0.98, 1.0, 0.86), (10, 60), (35, 60), (0.5, 0.75), (0.84, 0.95, 0.82))
_OVERCAST = SceneLight((0.95, 0.98, 1.0), (0, 50), (40, 65), (0.4, 0.6), (0.93, 0.97, 1.0))
_NIGHT = SceneLight((1.0, 0.80, 0.58), (25, 70), (10, 40), (0.55, 0.8), (0.62, 0.72, 1.0))
_LAMP = SceneLight((1.0, 0.86, 0.66), (15, 60), (25, 50), (0.5, 0.8), (0.98, 0.90, 0.80))
_SPACE = SceneLight((1.0, 1.0, 1.0), (35, 72), (10, 40), (0.75, 0.88), (0.66, 0.78, 1.0))

SCENES: dict[str, dict[str, SceneLight]] = {
    "studio": {"day": _INDOOR},
    "beach": {"day": _SUN, "sunset": _LOW_SUN},
    "city": {"day": _OVERCAST, "sunset": _LOW_SUN},
    "night": {"night": _NIGHT},
    "snow": {"day": _OVERCAST, "sunset": _LOW_SUN},
    "jungle": {"day": _SHADE},
    "forest": {"day": _SHADE, "autumn": _LOW_SUN},
    "garden": {"day": _SUN},
    "library": {"day": _LAMP},
    "desert": {"day": _SUN, "sunset": _LOW_SUN},
    "mountains": {"day": _SUN, "sunset": _LOW_SUN},
    "kitchen": {"day": _INDOOR},
    "farm": {"day": _SUN, "sunset": _LOW_SUN},
    "space": {"night": _SPACE},
}
"""The scenes and, for each, the times it is shown at with their light."""


class _Sheet:
    """A transparent sheet to draw on in unit coordinates."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGBA", (size, size))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point] | Array, color: RGB, alpha: int = 255) -> None:
        flat = (np.asarray(points, float) * self.size).ravel().tolist()
        self.draw.polygon(flat, fill=(*color, alpha))

    def box(self, x0: float, y0: float, x1: float, y1: float, color: RGB, alpha: int = 255) -> None:
        s = self.size
        if x1 > x0 and y1 > y0:
            self.draw.rectangle([x0 * s, y0 * s, x1 * s, y1 * s], fill=(*color, alpha))

    def disc(
        self, x: float, y: float, r: float, color: RGB, alpha: int = 255, tall: float = 1
    ) -> None:
        s = self.size
        box = [(x - r) * s, (y - r * tall) * s, (x + r) * s, (y + r * tall) * s]
        self.draw.ellipse(box, fill=(*color, alpha))

    def line(
        self, points: Sequence[Point] | Array, color: RGB, width: float, alpha: int = 255
    ) -> None:
        flat = (np.asarray(points, float) * self.size).ravel().tolist()
        self.draw.line(
            flat, fill=(*color, alpha), width=max(1, round(width * self.size)), joint="curve"
        )

    def over(self, below: Image.Image, blur: float = 0.0) -> Image.Image:
        """Lay the sheet, `blur` out of focus (fraction of the side), over a picture."""
        return Image.alpha_composite(below, _blurred(self.image, blur * self.size))


def _blurred(image: Image.Image, radius: float) -> Image.Image:
    """Gaussian blur by `radius` pixels; what is soft anyway is done at half size, which is fast."""
    if radius < 0.3:
        return image
    soft = image.convert("RGBa")  # colours weighted by alpha, or edges would blur to black
    if radius < 1.2:
        return soft.filter(ImageFilter.GaussianBlur(radius)).convert(image.mode)
    half = soft.reduce(2).filter(ImageFilter.GaussianBlur(radius / 2))
    return half.resize(image.size, Image.Resampling.BILINEAR).convert(image.mode)


def _mix(a: RGB, b: RGB, t: float) -> RGB:
    r, g, c = (min(255, max(0, int(x + (y - x) * t))) for x, y in zip(a, b, strict=True))
    return r, g, c


def _shade(color: RGB, factor: float) -> RGB:
    r, g, b = (min(255, max(0, int(c * factor))) for c in color)
    return r, g, b


def _pick(rng: np.random.Generator, colors: Sequence[RGB], spread: float = 0.12) -> RGB:
    return _shade(colors[int(rng.integers(len(colors)))], 1 + rng.uniform(-spread, spread))


def _gradient(size: int, stops: Stops) -> Image.Image:
    rows, at = np.linspace(0, 1, size), [s for s, _ in stops]
    column = np.stack([np.interp(rows, at, [c[i] for _, c in stops]) for i in range(3)], -1)
    return Image.fromarray(np.repeat(column[:, None], size, 1).astype(np.uint8)).convert("RGBA")


def noise(size: int, rng: np.random.Generator, cells: int, octaves: int = 3) -> Array:
    """(size, size) smooth random field, mean 0 and spread 1; `cells` across at the coarsest."""
    half = (size + 1) // 2
    small = np.zeros((half, half), np.float32)
    for octave in range(octaves):
        count = cells * 2**octave
        grid = rng.normal(0, 0.5**octave, (count + 3, count + 3)).astype(np.float32)
        small += np.asarray(Image.fromarray(grid).resize((half, half), Image.Resampling.BICUBIC))
    total = np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BILINEAR))
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def _screen(image: Image.Image, light: Array, color: RGB) -> Image.Image:
    """Add light (size, size), 0..1, of a colour; bright places stay within the range."""
    level = Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8))
    bands = [level.point([i * c // 255 for i in range(256)]) for c in color]
    lit = ImageChops.screen(image.convert("RGB"), Image.merge("RGB", bands))
    return lit.convert("RGBA")


def _glow(size: int, x: float, y: float, radius: float) -> Array:
    row = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return np.exp(-(((row[None] - x) ** 2 + (row[:, None] - y) ** 2) / radius**2))


def _clouds(
    image: Image.Image, rng: np.random.Generator, horizon: float, color: RGB
) -> Image.Image:
    size = image.width
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    field = noise(size, rng, 3)
    wide = np.asarray(Image.fromarray(field).resize((2 * size, size)).crop((0, 0, size, size)))
    cover = np.clip(wide - rng.uniform(0.0, 0.7), 0, 1) * np.clip((horizon - rows) * 6, 0, 1)
    return _screen(image, 0.85 * cover, color)


def _shafts(
    image: Image.Image, rng: np.random.Generator, color: RGB, strength: float
) -> Image.Image:
    size, side = image.width, rng.choice([-1, 1])
    sheet = Image.new("L", (size // 2, size // 2))
    draw, s = ImageDraw.Draw(sheet), size / 2
    for _ in range(6):
        x, w = rng.uniform(-0.1, 1.1), rng.uniform(0.03, 0.10)
        lean = side * rng.uniform(0.25, 0.4)
        corners = [x, -0.05, x + w, -0.05, x + 1.6 * w + lean, 1.0, x - 0.6 * w + lean, 1.0]
        draw.polygon([c * s for c in corners], fill=int(rng.uniform(70, 170)))
    soft = sheet.filter(ImageFilter.GaussianBlur(0.018 * s)).resize((size, size))
    fade = np.linspace(1, 0.25, size, dtype=np.float32)[:, None]
    return _screen(image, np.asarray(soft, np.float32) / 255 * fade * strength, color)


def _leaf(x: float, y: float, length: float, width: float, angle: float, bend: float) -> Array:
    """(N, 2) outline of a leaf from its stem at (x, y), towards `angle` (radians, 0 is right)."""
    t = np.array([0, 0.2, 0.45, 0.75, 1, 0.75, 0.45, 0.2])
    side = np.array([0, 0.75, 1, 0.6, 0, -0.6, -1, -0.75]) * width / 2
    along, across = t * length, side + bend * t**2 * length
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([x + along * c - across * s, y + along * s + across * c], 1)


def _frond(
    sheet: _Sheet, rng: np.random.Generator, at: Point, length: float, angle: float, color: RGB
) -> None:
    """A palm leaf: blades hanging from a curved rib."""
    droop = 0.55 * length
    t = np.linspace(0, 1, 13)
    rib = np.stack(
        [at[0] + t * length * np.cos(angle), at[1] + t * length * np.sin(angle) + droop * t**2], 1
    )
    for k in range(1, 13):
        blade = 0.34 * length * (1 - 0.55 * t[k])
        along = np.arctan2(*(rib[k] - rib[k - 1])[::-1])
        for turn in (0.75, -0.75):
            x, y = float(rib[k, 0]), float(rib[k, 1])
            outline = _leaf(x, y, blade, 0.17 * blade, along + turn, 0.15)
            sheet.polygon(outline, _shade(color, rng.uniform(0.75, 1.2)))
    sheet.line(rib, _shade(color, 0.8), 0.006)


def _palm(sheet: _Sheet, rng: np.random.Generator, x: float, top: float, dark: float) -> None:
    lean = rng.uniform(0.05, 0.16) * (1 if x < 0.5 else -1)
    t = np.linspace(0, 1, 10)
    trunk = np.stack([x + lean * t**1.6, 1.0 - (1.0 - top) * t], 1)
    sheet.line(trunk, _shade((118, 88, 62), dark), 0.028)
    for ring in trunk[2::2]:
        sheet.line([ring - [0.014, 0], ring + [0.014, 0.004]], _shade((80, 58, 42), dark), 0.005)
    for angle in np.linspace(-3.3, 0.2, 9) + rng.uniform(-0.15, 0.15, 9):
        color = _shade((52, 118, 52), dark * rng.uniform(0.75, 1.25))
        _frond(sheet, rng, (float(trunk[-1, 0]), top), rng.uniform(0.24, 0.34), float(angle), color)


def _ridge(rng: np.random.Generator, rough: float, points: int = 65) -> Array:
    """(points,) a jagged line about 0 by repeated halving; `rough` is its first step."""
    line = rng.normal(0, rough * 0.5, 2)
    while len(line) < points:
        rough *= 0.52
        middle = (line[1:] + line[:-1]) / 2 + rng.normal(0, rough, len(line) - 1)
        line = np.insert(line, np.arange(1, len(line)), middle)
    return line


def _ground(sheet: _Sheet, line: Array, color: RGB) -> None:
    """Fill all below a line of heights (N,) that runs over the whole width."""
    x = np.linspace(-0.02, 1.02, len(line))
    sheet.polygon([(-0.02, 1.1), *zip(x, line, strict=True), (1.02, 1.1)], color)


def _conifer(
    sheet: _Sheet,
    rng: np.random.Generator,
    x: float,
    base: float,
    height: float,
    green: RGB,
    snow: float,
) -> None:
    half = 0.24 * height
    for k in range(6):
        y0, y1 = base - height * (1 - k / 7.2), base - height * (0.78 - k / 7.2)
        w = half * (0.25 + 0.75 * k / 5)
        jag = [
            (x + w * u, y1 + height * 0.03 * rng.uniform(-1, 1))
            for u in (1, 0.6, 0.25, -0.25, -0.6, -1)
        ]
        sheet.polygon([(x, y0), *jag], _shade(green, 0.75 + 0.07 * k))
        if snow:
            ends = [
                (x - w, y1),
                (x - 0.55 * w, y1 - 0.055 * height),
                (x - 0.1 * w, y1 - 0.03 * height),
            ]
            ends += [(x + 0.45 * w, y1 - 0.065 * height), (x + w, y1)]
            sheet.polygon([(x, y0), *ends[::-1]], (236, 242, 250), int(200 * snow))


def _studio(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    wall = _pick(
        rng,
        [
            (205, 205, 205),
            (222, 212, 198),
            (120, 140, 165),
            (98, 128, 122),
            (176, 112, 88),
            (72, 74, 80),
            (232, 226, 220),
            (190, 178, 200),
        ],
        0.06,
    )
    x, y = rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.55)
    light = 0.72 + 0.38 * _glow(size, x, y, rng.uniform(0.4, 0.7)) + 0.018 * noise(size, rng, 3)
    canvas = np.clip(light[..., None] * np.asarray(wall, np.float32), 0, 255)
    return Image.fromarray(canvas.astype(np.uint8)).convert("RGBA")


def _beach(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    h, sunset = rng.uniform(0.38, 0.52), time == "sunset"
    shore, sand = h + rng.uniform(0.14, 0.22), (224, 178, 132) if sunset else (240, 220, 172)
    if sunset:
        sky = [(0.0, (92, 84, 150)), (0.6 * h, (238, 140, 110)), (h, (255, 206, 120))]
        sea = [(h + 0.004, (196, 120, 110)), (shore, (96, 96, 140))]
    else:
        sky = [(0.0, (62, 142, 222)), (h, (196, 230, 248))]
        sea = [(h + 0.004, (18, 96, 156)), (shore, (64, 190, 196))]
    image = _gradient(size, [*sky, *sea, (shore + 0.03, _shade(sand, 0.86)), (1, sand)])
    image = _clouds(image, rng, h, (255, 220, 190) if sunset else (255, 255, 255))
    sun = float(rng.choice([rng.uniform(0.05, 0.25), rng.uniform(0.75, 0.95)]))
    if sunset:
        image = _screen(
            image, 1.2 * np.clip(_glow(size, sun, h - 0.05, 0.10), 0, 1), (255, 236, 170)
        )
    sheet = _Sheet(size)
    far = np.abs(_ridge(rng, 0.05))
    fade = np.clip(np.linspace(1.2, -0.8, len(far))[:: 1 if sun > 0.5 else -1], 0, 1)
    _ground_strip(
        sheet,
        h + 0.004 - far * fade - 0.03 * fade,
        h + 0.004,
        _mix((70, 110, 120), sky[-1][1], 0.35),
    )
    for _ in range(26):  # crests, larger towards the shore
        t = rng.random() ** 0.7
        x, w = rng.uniform(0, 1), 0.03 + 0.10 * t
        y = h + 0.01 + (shore - h) * t
        sheet.disc(x, y, w, (255, 244, 226) if sunset else (236, 250, 255), int(90 + 120 * t), 0.05)
    image = sheet.over(image, 0.005 * blur)
    across = np.linspace(0, 1, 65)
    phase = rng.uniform(0, 6)
    edge = shore + 0.02 * np.sin(7 * across + phase) + 0.008 * np.sin(19 * across + 2 * phase)
    sheet = _Sheet(size)
    _ground(sheet, edge - 0.012, (250, 252, 252))
    _ground(sheet, edge + 0.012, _shade(sand, 0.80))
    _ground(sheet, edge + 0.07, sand)
    for _ in range(40):
        sheet.disc(
            rng.uniform(0, 1),
            rng.uniform(shore + 0.08, 1),
            rng.uniform(0.01, 0.03),
            _shade(sand, rng.uniform(0.86, 1.08)),
            150,
            0.3,
        )
    image = sheet.over(image, 0.009 * blur)
    sheet = _Sheet(size)
    kind, left = rng.random(), bool(rng.random() < 0.5)
    dark = 0.5 if sunset else 1.0
    if kind < 0.75:
        _palm(sheet, rng, 0.06 if left else 0.94, rng.uniform(0.10, 0.22), dark)
        if rng.random() < 0.5:
            _palm(sheet, rng, 0.97 if left else 0.03, rng.uniform(0.02, 0.15), dark)
    if kind > 0.55:  # a parasol
        x, y, r = (0.86 if left else 0.14), shore + 0.02, rng.uniform(0.15, 0.2)
        sheet.line([(x, y), (x + 0.01, 0.99)], (235, 235, 230), 0.012)
        stripe = _pick(rng, [(222, 60, 58), (40, 110, 190), (240, 170, 40)])
        for k in range(6):
            a, b = np.pi * (1 + k / 6), np.pi * (1 + (k + 1) / 6)
            arc = [(x + r * np.cos(u), y + 0.8 * r * np.sin(u)) for u in np.linspace(a, b, 5)]
            sheet.polygon(
                [(x, y - 0.1 * r), *arc], _shade((248, 246, 240) if k % 2 else stripe, dark**0.5)
            )
    return sheet.over(image, 0.010 * blur)


def _ground_strip(sheet: _Sheet, top: Array, bottom: float, color: RGB) -> None:
    x = np.linspace(-0.02, 1.02, len(top))
    sheet.polygon(
        [(-0.02, bottom), *zip(x, np.minimum(top, bottom), strict=True), (1.02, bottom)], color
    )


def _street(
    size: int,
    rng: np.random.Generator,
    blur: float,
    sky: Stops,
    walls: Sequence[RGB],
    haze: RGB,
    lit: float,
) -> Image.Image:
    """Facades on both sides of a street that runs to a vanishing point; `lit` windows glow."""
    image = _gradient(size, sky)
    vx, vy = rng.uniform(0.42, 0.58), rng.uniform(0.55, 0.66)
    sheet = _Sheet(size)
    for _ in range(9):  # the skyline at the end of the street
        x, w, h = vx + rng.uniform(-0.32, 0.32), rng.uniform(0.04, 0.08), rng.uniform(0.12, 0.42)
        wall = _mix(_pick(rng, walls), haze, 0.6)
        sheet.box(x - w, vy - h, x + w, vy + 0.1, wall)
        for wx in np.arange(x - w + 0.012, x + w - 0.01, 0.024):
            for wy in np.arange(vy - h + 0.02, vy, 0.035):
                if rng.random() < 0.6:
                    glass = (255, 214, 140) if rng.random() < lit else _shade(wall, 0.8)
                    sheet.box(wx, wy, wx + 0.012, wy + 0.018, glass)
    image = sheet.over(image, 0.010 * blur)
    sheet = _Sheet(size)
    ground = _mix((92, 92, 98), (22, 24, 40), lit)
    sheet.polygon([(-0.5, 1.3), (vx - 0.02, vy + 0.02), (vx + 0.02, vy + 0.02), (1.5, 1.3)], ground)
    for side in (-1, 1):
        depths = np.cumsum([1.0, *rng.uniform(0.35, 0.8, 5)])
        for near, far in reversed(list(zip(depths[:-1], depths[1:], strict=True))):
            t = (near - 1) / 2.6
            wall = _mix(_pick(rng, walls), haze, min(0.75, 0.1 + 0.7 * t))
            top = rng.uniform(0.75, 1.25)
            x0, x1 = vx + side * 0.62 / near, vx + side * 0.62 / far

            def at(
                u: float,
                v: float,
                x0: float = x0,
                x1: float = x1,
                near: float = near,
                far: float = far,
                top: float = top,
            ) -> Point:
                depth = 1 / ((1 - u) / near + u / far)
                height = -top + (top + 0.42) * v
                return x0 + (x1 - x0) * u, vy + height / depth

            def quad(
                u0: float, v0: float, u1: float, v1: float, at: Callable[..., Point] = at
            ) -> list[Point]:
                return [at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)]

            sheet.polygon(quad(0, 0, 1, 1), _shade(wall, 0.92 if side > 0 else 1.05))
            columns, rows = int(rng.integers(3, 5)), int(rng.integers(7, 10))
            for r in range(rows):
                v0 = 0.05 + 0.78 * r / rows
                sheet.polygon(quad(0, v0 - 0.012, 1, v0 - 0.004), _shade(wall, 1.14))
                for c in range(columns):
                    u0 = (c + 0.22) / columns
                    glow = rng.random() < lit * 0.6
                    glass = (
                        _pick(rng, [(255, 206, 120), (255, 232, 180), (160, 214, 255)])
                        if glow
                        else _mix(_shade(wall, 0.52), (120, 150, 180), 0.25 * (1 - lit))
                    )
                    sheet.polygon(quad(u0, v0 + 0.01, u0 + 0.56 / columns, v0 + 0.6 / rows), glass)
            if rng.random() < 0.8:  # the shop below, with an awning or a sign
                color = _pick(rng, [(186, 52, 46), (38, 96, 72), (40, 74, 128), (214, 160, 60)])
                neon = _pick(rng, [(255, 70, 170), (60, 220, 255), (255, 170, 60), (150, 90, 255)])
                sheet.polygon(quad(0.05, 0.84, 0.95, 0.885), neon if lit else color)
                sheet.polygon(
                    quad(0.05, 0.885, 0.95, 0.99), (250, 214, 150) if lit else _shade(wall, 0.4)
                )
    return sheet.over(image, 0.010 * blur)


def _city(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    walls = [
        (168, 128, 108),
        (188, 178, 164),
        (150, 92, 76),
        (140, 148, 158),
        (206, 190, 160),
        (120, 124, 132),
    ]
    if time == "sunset":
        sky, haze = (
            [(0.0, (112, 132, 190)), (0.6, (255, 196, 140)), (1.0, (200, 170, 160))],
            (246, 196, 160),
        )
    else:
        sky, haze = (
            [(0.0, (110, 164, 222)), (0.6, (214, 228, 240)), (1.0, (190, 190, 190))],
            (208, 220, 232),
        )
    image = _street(size, rng, blur, sky, walls, haze, 0.0)
    if rng.random() < 0.5:  # a street tree
        sheet = _Sheet(size)
        x = float(rng.choice([0.04, 0.96]))
        sheet.line([(x, 1), (x + 0.01, 0.5)], (70, 54, 42), 0.02)
        for _ in range(60):
            angle, r = rng.uniform(0, 6.3), 0.17 * np.sqrt(rng.random())
            sheet.polygon(
                _leaf(
                    x + r * np.cos(angle),
                    0.42 + r * np.sin(angle),
                    0.06,
                    0.035,
                    rng.uniform(0, 6.3),
                    0,
                ),
                _pick(rng, [(84, 140, 62), (120, 168, 76), (58, 104, 50)]),
            )
        image = sheet.over(image, 0.010 * blur)
    return image


def _night(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    walls = [(34, 36, 58), (44, 38, 52), (28, 34, 48), (52, 44, 60)]
    sky = [(0.0, (10, 12, 34)), (0.6, (52, 38, 84)), (1.0, (18, 18, 30))]
    image = _street(size, rng, blur, sky, walls, (44, 36, 76), 0.8)
    sheet = _Sheet(size)
    lamps = [
        (255, 190, 90),
        (255, 90, 70),
        (110, 170, 255),
        (255, 230, 170),
        (255, 90, 180),
        (90, 230, 220),
    ]
    for _ in range(30):  # lights far out of focus are discs with a brighter rim
        x, y, r = rng.uniform(0, 1), rng.normal(0.6, 0.16), rng.uniform(0.015, 0.042)
        lamp = _pick(rng, lamps)
        alpha = int(rng.uniform(110, 200))
        sheet.disc(x, y, r, lamp, alpha)
        sheet.disc(x, y, 0.86 * r, _shade(lamp, 0.95), int(0.85 * alpha))
    return sheet.over(image, 0.004 * blur)


def _snow(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    sunset, base = time == "sunset", rng.uniform(0.55, 0.66)
    sky = (
        [(0.0, (130, 140, 190)), (base, (250, 206, 186))]
        if sunset
        else [(0.0, (150, 178, 214)), (base, (228, 236, 246))]
    )
    image = _gradient(size, [*sky, (base + 0.01, (232, 238, 248)), (1, (250, 252, 255))])
    haze = sky[-1][1]
    for depth, count in ((0.72, 16), (0.42, 9), (0.08, 5)):
        sheet = _Sheet(size)
        line = base + 0.05 * (1 - depth) + 0.4 * _ridge(rng, 0.05)
        for k in range(count):
            x = (k + rng.uniform(0, 1)) / count
            if depth < 0.1:  # the nearest stand at the sides
                x = 0.22 * x if k % 2 else 1 - 0.22 * x
            height = rng.uniform(0.8, 1.25) * (0.24 + 0.55 * (1 - depth) ** 1.5)
            green = _mix((38, 66, 60), haze, depth)
            _conifer(
                sheet,
                rng,
                x,
                base + 0.06 + 0.22 * (1 - depth) ** 2,
                height,
                green,
                0.85 * (1 - depth) + 0.1,
            )
        drift = _mix((246, 249, 255), haze, 0.5 * depth)
        _ground(sheet, line + 0.18 * (1 - depth), drift)
        _ground(sheet, line + 0.18 * (1 - depth) + 0.05, _shade(drift, 0.965))
        image = sheet.over(image, (0.006 + 0.006 * (depth < 0.1)) * blur)
    return image


def _jungle(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    image = _gradient(size, [(0.0, (206, 232, 150)), (0.4, (92, 150, 70)), (1.0, (18, 56, 30))])
    image = _screen(image, 0.5 * _glow(size, rng.uniform(0.2, 0.8), 0.1, 0.4), (240, 255, 190))
    for depth in (0.75, 0.4, 0.0):
        sheet = _Sheet(size)
        if depth == 0.4:
            for _ in range(4):  # trunks and lianas
                x, sway = rng.uniform(0, 1), rng.uniform(-0.08, 0.08)
                sheet.line(
                    [(x, -0.1), (x + sway, 0.5), (x - sway, 1.1)],
                    (62, 62, 38),
                    rng.uniform(0.008, 0.05),
                )
        for _ in range(18):
            angle = rng.uniform(0, 2 * np.pi)
            reach = 0.74 - 0.16 * depth  # stems out of the picture, blades pointing inwards
            x, y = 0.5 + reach * np.cos(angle), 0.5 + reach * np.sin(angle)
            inward = angle + np.pi + rng.normal(0, 0.5)
            length = rng.uniform(0.22, 0.42) * (1 - 0.25 * depth)
            green = _pick(rng, [(44, 128, 50), (26, 96, 48), (96, 160, 56), (20, 78, 52)], 0.25)
            green = _shade(_mix(green, (140, 190, 100), 0.6 * depth), 0.72 + 0.28 * depth)
            kind = rng.random()
            if kind < 0.35:
                _frond(sheet, rng, (x, y), length * 1.1, inward, green)
                continue
            bend = rng.uniform(-0.25, 0.25)
            blade = _leaf(x, y, length, length * (0.34 if kind < 0.75 else 0.7), inward, bend)
            sheet.polygon(blade, green)
            rib = np.array([blade[0], (blade[2] + blade[6]) / 2, blade[4]])
            sheet.polygon([*blade[:5], *rib[1:0:-1]], _shade(green, 1.22))
            sheet.line(rib, _shade(green, 1.5), 0.005)
        image = sheet.over(image, (0.004 + 0.008 * depth) * blur)
        if depth == 0.4:
            image = _shafts(image, rng, (236, 255, 180), 0.75)
    return image


def _forest(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    autumn = time == "autumn"
    leaves = (
        [(226, 140, 40), (204, 84, 36), (236, 186, 64)]
        if autumn
        else [(84, 140, 50), (52, 106, 44), (136, 176, 60)]
    )
    mist = (250, 224, 170) if autumn else (190, 216, 150)
    floor = (122, 78, 42) if autumn else (72, 84, 44)
    base = rng.uniform(0.66, 0.76)
    image = _gradient(
        size,
        [
            (0.0, _mix(leaves[2], mist, 0.45)),
            (0.5, mist),
            (base, _mix(floor, mist, 0.5)),
            (1.0, floor),
        ],
    )
    birch = rng.random() < 0.2
    bark = (214, 210, 200) if birch else (70, 54, 42)
    for depth, count in ((0.7, 16), (0.4, 9), (0.05, 4)):
        sheet = _Sheet(size)
        for k in range(count):
            x = (k + rng.uniform(0.1, 0.9)) / count
            if depth < 0.2:
                x = float(rng.choice([rng.uniform(-0.02, 0.2), rng.uniform(0.8, 1.02)]))
            w = 0.012 + 0.07 * (1 - depth) ** 2 * rng.uniform(0.7, 1.2)
            foot, lean = base + 0.3 * (1 - depth) ** 2, rng.uniform(-0.03, 0.03)
            color = _mix(_shade(bark, rng.uniform(0.8, 1.15)), mist, depth)
            sheet.polygon(
                [
                    (x - w / 2, foot),
                    (x - 0.4 * w + lean, -0.02),
                    (x + 0.4 * w + lean, -0.02),
                    (x + w / 2, foot),
                ],
                color,
            )
            sheet.polygon(
                [
                    (x + 0.1 * w, foot),
                    (x + 0.1 * w + lean, -0.02),
                    (x + 0.4 * w + lean, -0.02),
                    (x + w / 2, foot),
                ],
                _shade(color, 0.72),
            )
            if birch and depth < 0.5:
                for y in rng.uniform(0, foot, 8):
                    sheet.box(
                        x - 0.4 * w + lean * (1 - y),
                        y,
                        x + 0.1 * w + lean * (1 - y),
                        y + 0.008,
                        (60, 56, 52),
                    )
        for _ in range(int(34 + 50 * (1 - depth))):
            x, y = rng.uniform(-0.05, 1.05), 0.42 * rng.random() ** 1.4 - 0.05
            length = (0.03 + 0.05 * (1 - depth)) * rng.uniform(0.7, 1.4)
            color = _mix(_pick(rng, leaves, 0.3), mist, 0.75 * depth)
            sheet.polygon(_leaf(x, y, length, 0.55 * length, rng.uniform(0, 6.3), 0.1), color, 230)
        for _ in range(40 if depth < 0.6 else 0):  # ferns and fallen leaves
            x, y = rng.uniform(0, 1), base + (1 - base) * rng.random()
            color = _pick(rng, leaves if autumn else [(86, 128, 54), (60, 96, 44)], 0.3)
            sheet.polygon(
                _leaf(x, y, 0.06, 0.02, rng.uniform(-2.6, -0.5), 0.3), _shade(color, 0.85)
            )
        image = sheet.over(image, (0.006 + 0.006 * depth) * blur)
        if depth == 0.4:
            image = _shafts(image, rng, (255, 246, 200), 0.8)
    return image


def _flower(
    sheet: _Sheet, rng: np.random.Generator, x: float, y: float, r: float, petal: RGB
) -> None:
    count, turn = int(rng.integers(5, 8)), rng.uniform(0, 1)
    for k in range(count):
        a = turn + 2 * np.pi * k / count
        sheet.disc(
            x + 0.6 * r * np.cos(a),
            y + 0.6 * r * np.sin(a),
            0.5 * r,
            _shade(petal, 0.86 + 0.14 * (k % 2)),
        )
    sheet.disc(x, y, 0.34 * r, (246, 206, 70) if petal[2] > 90 else (120, 70, 30))


def _garden(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    hedge = rng.uniform(0.30, 0.42)
    image = _gradient(size, [(0.0, (110, 176, 236)), (hedge, (206, 232, 248)), (1, (110, 170, 70))])
    image = _clouds(image, rng, hedge, (255, 255, 255))
    greens = [(62, 124, 52), (88, 150, 62), (46, 100, 46), (120, 172, 80)]
    sheet = _Sheet(size)
    for _ in range(12):  # trees beyond the hedge
        x, y, r = rng.uniform(0, 1), hedge - rng.uniform(-0.02, 0.1), rng.uniform(0.06, 0.14)
        sheet.disc(x, y, r, _mix(_pick(rng, greens), (180, 214, 200), 0.35))
    _ground(sheet, hedge + 0.05 + 0.3 * _ridge(rng, 0.03), (52, 104, 48))
    image = sheet.over(image, 0.014 * blur)
    sheet = _Sheet(size)
    for _ in range(120):
        x, y = rng.uniform(0, 1), hedge + rng.uniform(0.02, 0.22)
        sheet.polygon(_leaf(x, y, 0.05, 0.025, rng.uniform(0, 6.3), 0), _pick(rng, greens, 0.3))
    kind = rng.random()
    if kind < 0.4:  # a white fence
        for x in np.arange(-0.02, 1.05, 0.075):
            sheet.polygon(
                [(x, 0.86), (x, 0.50), (x + 0.022, 0.465), (x + 0.044, 0.50), (x + 0.044, 0.86)],
                (244, 244, 238),
            )
        sheet.box(-0.1, 0.55, 1.1, 0.575, (232, 232, 226))
        sheet.box(-0.1, 0.75, 1.1, 0.775, (232, 232, 226))
    elif kind < 0.7:  # an arch of roses over the head
        for t in np.linspace(0, 1, 60):
            a = np.pi * t
            x, y = (
                0.5 - 0.44 * np.cos(a) + rng.normal(0, 0.015),
                0.52 - 0.46 * np.sin(a) + rng.normal(0, 0.02),
            )
            sheet.polygon(_leaf(x, y, 0.09, 0.05, rng.uniform(0, 6.3), 0), _pick(rng, greens, 0.3))
        for x in (0.06, 0.94):
            sheet.box(x - 0.02, 0.5, x + 0.02, 1, (230, 228, 220))
    image = sheet.over(image, 0.010 * blur)
    blooms = [
        (232, 62, 110),
        (250, 206, 60),
        (246, 244, 248),
        (176, 84, 206),
        (240, 120, 52),
        (214, 40, 50),
        (250, 150, 190),
    ]
    chosen = [blooms[int(k)] for k in rng.choice(len(blooms), 3, replace=False)]
    arch = 0.4 <= kind < 0.7
    for near in (0.0, 0.45, 1.0):
        sheet = _Sheet(size)
        for _ in range(int(60 - 25 * near)):
            x, y = rng.uniform(-0.02, 1.02), 0.64 + 0.20 * near + rng.uniform(-0.03, 0.15)
            sheet.polygon(
                _leaf(x, y, 0.06 + 0.09 * near, 0.018 + 0.02 * near, rng.uniform(-2.4, -0.7), 0.2),
                _pick(rng, greens, 0.25),
            )
        for k in range(int(22 - 12 * near)):
            x = (
                rng.uniform(0, 1)
                if near < 1
                else (0.24 * rng.random() if k % 2 else 1 - 0.24 * rng.random())
            )
            y = 0.62 + 0.14 * near + rng.uniform(-0.05, 0.14)
            _flower(sheet, rng, x, y, 0.022 + 0.036 * near, _pick(rng, chosen))
        if arch and near == 0.45:
            for t in rng.uniform(0, 1, 26):
                x, y = 0.5 - 0.44 * np.cos(np.pi * t), 0.52 - 0.46 * np.sin(np.pi * t)
                _flower(
                    sheet,
                    rng,
                    x + rng.normal(0, 0.02),
                    y + rng.normal(0, 0.02),
                    0.035,
                    _pick(rng, chosen[:1]),
                )
        image = sheet.over(image, (0.006 + 0.005 * near) * blur)
    if not arch and rng.random() < 0.6:  # a blossoming branch in a corner
        sheet, side = _Sheet(size), float(rng.integers(2))
        for _ in range(34):
            x, y = abs(side - 0.4 * rng.random()), 0.26 * rng.random() ** 1.3
            if rng.random() < 0.4:
                sheet.polygon(_leaf(x, y, 0.06, 0.03, rng.uniform(0, 6.3), 0), _pick(rng, greens))
            else:
                _flower(sheet, rng, x, y, 0.03, (252, 214, 226))
        image = sheet.over(image, 0.009 * blur)
    return image


def _library(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    wood = _pick(rng, [(112, 70, 40), (84, 52, 32), (142, 98, 60)])
    wall = _Sheet(2 * size)  # drawn large: the turn below enlarges one side
    wall.box(0, 0, 1, 1, _shade(wood, 0.28))
    rows = int(rng.integers(5, 7))
    height = 1 / rows
    books = [
        (140, 38, 34),
        (34, 84, 62),
        (40, 58, 112),
        (176, 138, 70),
        (206, 194, 166),
        (94, 40, 74),
        (60, 46, 40),
        (196, 96, 44),
    ]
    for row in range(rows):
        top, floor = row * height, (row + 0.9) * height
        x = 0.0
        while x < 1:
            if rng.random() < 0.03:
                x += 0.04
            w, tall = rng.uniform(0.016, 0.032), rng.uniform(0.62, 0.92)
            color = _pick(rng, books, 0.25)
            y = floor - tall * 0.9 * height
            wall.box(x, y, x + w - 0.002, floor, color)
            wall.box(x, y, x + 0.3 * w, floor, _shade(color, 1.25))
            band = (222, 188, 110) if rng.random() < 0.5 else _shade(color, 0.6)
            for t in (0.15, 0.22, 0.78):
                wall.box(x, y + t * (floor - y), x + w - 0.002, y + (t + 0.035) * (floor - y), band)
            x += w
        wall.box(0, floor, 1, top + height, wood)
        wall.box(0, floor, 1, floor + 0.03 * height, _shade(wood, 1.4))
        wall.box(0, top, 1, top + 0.06 * height, _shade(wood, 0.25), 150)
    for x in rng.uniform(0.02, 0.1) + np.arange(0, 1.1, 0.34):
        wall.box(x, 0, x + 0.024, 1, _shade(wood, 0.9))
        wall.box(x, 0, x + 0.008, 1, _shade(wood, 1.3))
    s, near = 2.0 * size, rng.uniform(0.18, 0.30)  # seen from the side: one end is nearer
    quad = (0.0, near * s, 0.0, (1 - near) * s, s, s, s, 0.0)
    if rng.random() < 0.5:
        quad = (0.0, 0.0, 0.0, s, s, (1 - near) * s, s, near * s)
    image = wall.image.convert("RGB").transform(
        (size, size), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR
    )
    image = _blurred(image.convert("RGBA"), 0.007 * blur * size).convert("RGB")
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.0, 0.25)
    lit = np.clip(0.62 + 0.75 * _glow(size, x, y, 0.6), 0, 1.35)[..., None]
    pixels = np.clip(np.asarray(image, np.float32) * lit * [1.06, 1.0, 0.88], 0, 255)
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGBA")
    if rng.random() < 0.6:  # a lamp
        x = float(rng.choice([0.12, 0.88])) + rng.uniform(-0.05, 0.05)
        sheet = _Sheet(size)
        sheet.line([(x, 0), (x, 0.12)], (60, 44, 30), 0.008)
        sheet.polygon(
            [(x - 0.03, 0.11), (x + 0.03, 0.11), (x + 0.08, 0.2), (x - 0.08, 0.2)], (64, 110, 76)
        )
        sheet.disc(x, 0.205, 0.055, (255, 240, 200), 255, 0.35)
        image = sheet.over(image, 0.008 * blur)
        image = _screen(image, 0.7 * _glow(size, x, 0.24, 0.16), (255, 214, 140))
    return image


def _desert(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    sunset, h = time == "sunset", rng.uniform(0.48, 0.58)
    sky = (
        [(0.0, (100, 72, 130)), (0.6 * h, (240, 120, 84)), (h, (255, 200, 120))]
        if sunset
        else [(0.0, (52, 136, 214)), (h, (226, 232, 220))]
    )
    sand = (206, 122, 78) if sunset else (232, 184, 116)
    image = _gradient(size, [*sky, (1, sand)])
    side = float(rng.choice([0.15, 0.85]))
    if sunset or rng.random() < 0.4:
        image = _screen(
            image, np.clip(1.4 * _glow(size, side, h - 0.18, 0.07), 0, 1), (255, 244, 200)
        )
    sheet = _Sheet(size)
    rock = _mix((176, 92, 62), sky[-1][1], 0.3)
    if rng.random() < 0.6:
        for _ in range(4):  # table mountains
            x, w, top = rng.uniform(0, 1), rng.uniform(0.07, 0.16), h - rng.uniform(0.08, 0.2)
            sheet.polygon(
                [
                    (x - 1.3 * w, h + 0.03),
                    (x - w, top + 0.04),
                    (x - 0.95 * w, top),
                    (x + 0.9 * w, top),
                    (x + w, top + 0.04),
                    (x + 1.3 * w, h + 0.03),
                ],
                _shade(rock, rng.uniform(0.85, 1.1)),
            )
            sheet.polygon(
                [
                    (x - w, top + 0.05),
                    (x + w, top + 0.05),
                    (x + w, top + 0.065),
                    (x - w, top + 0.065),
                ],
                _shade(rock, 0.8),
            )
    across = np.linspace(0, 1, 65)
    for k in range(4):  # dunes: a bright and a shaded flank
        crest, y = rng.uniform(0.1, 0.9), h + 0.03 + 0.12 * k
        line = (
            y + 0.10 * np.abs(across - crest) ** 1.3 + 0.012 * np.sin(9 * across + 5 * rng.random())
        )
        bright = _mix(_shade(sand, 0.9 + 0.05 * k), sky[-1][1], 0.3 - 0.1 * k)
        _ground(sheet, line, bright)
        peak = line.min()
        tail = [
            (crest, peak),
            (crest + 0.10, peak + 0.10),
            (crest + 0.06, peak + 0.2),
            (crest + 0.22, peak + 0.36),
            (1.3, peak + 0.5),
            (1.1, line[-1]),
        ]
        sheet.polygon(tail, _shade(bright, 0.76), 190)
    for y in np.linspace(h + 0.3, 1, 16):  # ripples of the wind
        sheet.line(
            np.stack([across, y + 0.008 * np.sin(20 * across + 30 * y) + 0.02 * across], 1),
            _shade(sand, 0.86),
            0.004,
            130,
        )
    image = sheet.over(image, 0.007 * blur)
    if rng.random() < 0.75:
        sheet = _Sheet(size)
        green = _shade((76, 112, 66), 0.5 if sunset else 1.0)
        for x0 in rng.permutation([0.08, 0.91])[: int(rng.integers(1, 3))]:
            _cactus(
                sheet, rng, float(x0) + rng.uniform(-0.04, 0.04), rng.uniform(0.25, 0.42), green
            )
        image = sheet.over(image, 0.008 * blur)
    return image


def _cactus(sheet: _Sheet, rng: np.random.Generator, x: float, top: float, green: RGB) -> None:
    arms = [[(x, 1.02), (x, top)]]
    for side, y in ((-1, rng.uniform(0.5, 0.65)), (1, rng.uniform(0.5, 0.65))):
        reach = x + side * 0.085
        arms.append([(x, y), (reach, y - 0.01), (reach, y - rng.uniform(0.12, 0.2))])
    for k, arm in enumerate(arms):
        w = 0.068 if k == 0 else 0.046
        sheet.line(arm, green, w)
        sheet.disc(*arm[-1], w / 2, green)
        lit = np.asarray(arm) - [0.22 * w, 0]
        sheet.line(lit, _shade(green, 1.35), 0.16 * w)
        sheet.line(lit + [0.5 * w, 0], _shade(green, 0.72), 0.16 * w)


def _mountains(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    sunset = time == "sunset"
    sky = (
        [(0.0, (96, 104, 170)), (0.5, (250, 184, 160))]
        if sunset
        else [(0.0, (48, 120, 204)), (0.5, (190, 218, 242))]
    )
    image = _gradient(size, [*sky, (1, sky[-1][1])])
    image = _clouds(image, rng, 0.4, (255, 224, 214) if sunset else (255, 255, 255))
    haze = sky[-1][1]
    x = np.linspace(-0.02, 1.02, 65)
    for depth, height in ((0.65, 0.34), (0.3, 0.40)):
        sheet = _Sheet(size)
        rock = _mix((84, 94, 116), haze, depth)
        peaks = [rng.uniform(-0.02, 0.26), rng.uniform(0.74, 1.02), rng.uniform(0.3, 0.7)]
        tops = rng.uniform(0.75, 1.15, 3) * [1, 1, 0.7] * height
        shape = np.max([t - 1.15 * np.abs(x - p) for p, t in zip(peaks, tops, strict=True)], 0)
        line = 0.56 + 0.08 * (1 - depth) - np.maximum(shape, 0.03) + _ridge(rng, 0.05)
        _ground(sheet, line, rock)
        for p in peaks:  # the flank away from the sun
            k = int(np.clip(np.argmin(np.abs(x - p)), 0, 64))
            y = float(line[k])
            flank = [
                (p, y),
                (p + 0.03, y + 0.1),
                (p + 0.01, y + 0.18),
                (p + 0.09, y + 0.34),
                (p + 0.36, y + 0.34),
            ]
            sheet.polygon(flank, _shade(rock, 0.78))
        cap = 0.55 + 0.45 * rng.random()
        drop = 0.07 * cap + 0.035 * np.abs(_ridge(rng, 0.9)) + 0.03 * np.abs(np.sin(47 * x))
        inside = line < 0.44
        snow = _mix((255, 222, 206) if sunset else (248, 250, 255), haze, 0.5 * depth)
        below = np.where(inside, np.minimum(line + drop, 0.46), line)
        outline = [*zip(x, line - 0.002, strict=True), *zip(x[::-1], below[::-1], strict=True)]
        sheet.polygon(outline, snow)
        image = sheet.over(image, (0.004 + 0.005 * depth) * blur)
    sheet = _Sheet(size)
    for k in range(30):
        _conifer(
            sheet,
            rng,
            (k + rng.random()) / 30,
            0.72 + rng.uniform(-0.02, 0.03),
            rng.uniform(0.08, 0.17),
            (44, 78, 62),
            0,
        )
    image = sheet.over(image, 0.006 * blur)
    sheet = _Sheet(size)
    if rng.random() < 0.5:  # a lake or a meadow in front
        _ground(sheet, np.full(9, 0.70), _mix((70, 128, 158), haze, 0.3))
        for _ in range(24):
            sheet.disc(
                rng.random(),
                rng.uniform(0.72, 1),
                rng.uniform(0.03, 0.12),
                _mix((70, 128, 158), haze, 0.65),
                110,
                0.05,
            )
    else:
        _ground(sheet, 0.72 + 0.3 * _ridge(rng, 0.04), (112, 148, 70))
        for _ in range(70):
            x0, y = rng.random(), rng.uniform(0.74, 1)
            sheet.polygon(
                _leaf(x0, y, 0.05, 0.01, rng.uniform(-2.2, -0.9), 0.2),
                _pick(rng, [(92, 134, 60), (140, 166, 84)], 0.2),
            )
            if rng.random() < 0.4:
                sheet.disc(
                    x0,
                    y - 0.02,
                    0.009,
                    _pick(rng, [(250, 240, 120), (246, 246, 250), (190, 120, 200)]),
                )
    return sheet.over(image, 0.008 * blur)


def _kitchen(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    paint = _pick(
        rng,
        [
            (96, 132, 120),
            (62, 88, 122),
            (214, 206, 190),
            (190, 120, 84),
            (226, 226, 222),
            (120, 90, 66),
        ],
    )
    tile = _pick(rng, [(240, 240, 236), (222, 232, 232), (244, 234, 216)], 0.03)
    counter = rng.uniform(0.72, 0.78)
    sheet = _Sheet(size)
    sheet.box(0, 0, 1, 1, _shade(tile, 0.84))
    for row in range(18):
        for column in range(9):
            x, y = (column - 0.5 * (row % 2)) * 0.14, row * 0.062
            sheet.box(
                x + 0.004, y + 0.004, x + 0.136, y + 0.058, _shade(tile, rng.uniform(0.95, 1.03))
            )
    left = bool(rng.random() < 0.5)
    if rng.random() < 0.7:  # a window
        x = 0.0 if left else 0.72
        sheet.box(x, 0.08, x + 0.28, 0.56, (250, 250, 248))
        sheet.box(x + 0.02, 0.10, x + 0.26, 0.54, (206, 232, 250))
        sheet.box(x + 0.02, 0.38, x + 0.26, 0.54, (150, 196, 130))
        sheet.box(x + 0.133, 0.10, x + 0.147, 0.54, (250, 250, 248))
        sheet.box(x + 0.02, 0.30, x + 0.26, 0.312, (250, 250, 248))
    else:  # a hood with pans below it
        x = 0.14 if left else 0.86
        sheet.polygon(
            [(x - 0.05, 0), (x + 0.05, 0), (x + 0.13, 0.28), (x - 0.13, 0.28)], (176, 180, 186)
        )
        sheet.polygon([(x, 0), (x + 0.05, 0), (x + 0.13, 0.28), (x + 0.02, 0.28)], (142, 146, 154))
        for k in range(3):
            px = x - 0.09 + 0.09 * k
            sheet.line([(px, 0.3), (px, 0.4)], (60, 60, 64), 0.008)
            sheet.disc(px, 0.44, 0.04, _pick(rng, [(190, 110, 70), (70, 72, 78), (150, 154, 160)]))
    at = 0.66 if left else 0.0
    jars = [
        (200, 70, 50),
        (230, 190, 90),
        (110, 140, 70),
        (250, 246, 238),
        (150, 96, 60),
        (70, 130, 160),
    ]
    for shelf in (0.24, 0.46):
        x = at + 0.02
        while x < at + 0.31:
            w, h = rng.uniform(0.03, 0.055), rng.uniform(0.07, 0.14)
            color = _pick(rng, jars)
            sheet.box(x, shelf - h, x + w, shelf, color)
            sheet.box(x + 0.006, shelf - h, x + 0.014, shelf, _mix(color, (255, 255, 255), 0.5))
            sheet.box(x + 0.004, shelf - h - 0.016, x + w - 0.004, shelf - h, _shade(color, 0.55))
            x += w + rng.uniform(0.006, 0.02)
        sheet.box(at - 0.02, shelf, at + 0.36, shelf + 0.026, (134, 92, 58))
        sheet.box(at - 0.02, shelf + 0.026, at + 0.36, shelf + 0.05, _shade(tile, 0.7), 130)
    sheet.box(0, counter, 1, counter + 0.04, (172, 126, 82))
    sheet.box(0, counter + 0.04, 1, 1, paint)
    for x in (0.0, 0.25, 0.5, 0.75):
        sheet.box(x + 0.015, counter + 0.06, x + 0.235, 1, _shade(paint, 1.12))
        sheet.box(x + 0.1, counter + 0.085, x + 0.15, counter + 0.095, (210, 190, 140))
    for _ in range(3):  # fruit and pots on the counter
        x, r = (
            abs((0.0 if rng.random() < 0.5 else 1.0) - rng.uniform(0.05, 0.25)),
            rng.uniform(0.025, 0.045),
        )
        sheet.disc(
            x,
            counter - 0.8 * r,
            r,
            _pick(rng, [(226, 120, 40), (196, 40, 40), (120, 160, 50), (240, 200, 70)]),
        )
    image = sheet.over(Image.new("RGBA", (size, size), (*tile, 255)), 0.009 * blur)
    if rng.random() < 0.7:
        x = rng.uniform(0.3, 0.7)
        sheet = _Sheet(size)
        sheet.line([(x, 0), (x, 0.06)], (50, 46, 44), 0.008)
        sheet.polygon(
            [(x - 0.02, 0.05), (x + 0.02, 0.05), (x + 0.09, 0.13), (x - 0.09, 0.13)], (60, 60, 62)
        )
        image = sheet.over(image, 0.006 * blur)
        image = _screen(image, 0.6 * _glow(size, x, 0.16, 0.13), (255, 226, 160))
    return image


def _farm(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    sunset, h = time == "sunset", rng.uniform(0.46, 0.56)
    sky = (
        [(0.0, (120, 120, 180)), (h, (255, 206, 140))]
        if sunset
        else [(0.0, (72, 150, 226)), (h, (214, 236, 250))]
    )
    image = _gradient(size, [*sky, (1, (196, 160, 70))])
    image = _clouds(image, rng, h, (255, 226, 200) if sunset else (255, 255, 255))
    sheet = _Sheet(size)
    _ground(sheet, h - 0.02 + 0.4 * _ridge(rng, 0.05), _mix((92, 130, 74), sky[-1][1], 0.35))
    _ground(sheet, h + 0.03 + 0.3 * _ridge(rng, 0.03), (124, 156, 72))
    left = bool(rng.random() < 0.5)
    x, w = (0.13 if left else 0.87), rng.uniform(0.13, 0.17)
    red = _shade((172, 44, 38), 0.8 if sunset else 1.0)
    sheet.box(x - w, 0.36, x + w, 0.66, red)  # the barn
    sheet.polygon(
        [(x - w, 0.36), (x - 0.6 * w, 0.24), (x, 0.19), (x + 0.6 * w, 0.24), (x + w, 0.36)], red
    )
    for u in np.linspace(-0.9, 0.9, 9):
        sheet.line([(x + u * w, 0.34), (x + u * w, 0.66)], _shade(red, 0.82), 0.004)
    sheet.line(
        [
            (x - 1.08 * w, 0.37),
            (x - 0.62 * w, 0.235),
            (x, 0.18),
            (x + 0.62 * w, 0.235),
            (x + 1.08 * w, 0.37),
        ],
        (110, 104, 104),
        0.024,
    )
    sheet.box(x - 0.4 * w, 0.48, x + 0.4 * w, 0.66, (240, 236, 228))
    sheet.box(x - 0.34 * w, 0.495, x + 0.34 * w, 0.66, _shade(red, 0.7))
    sheet.line([(x - 0.34 * w, 0.5), (x + 0.34 * w, 0.66)], (240, 236, 228), 0.008)
    sheet.line([(x + 0.34 * w, 0.5), (x - 0.34 * w, 0.66)], (240, 236, 228), 0.008)
    sheet.box(x - 0.16 * w, 0.27, x + 0.16 * w, 0.34, (240, 236, 228))
    other = 1 - x
    if rng.random() < 0.6:  # a wind wheel on the other side
        sheet.polygon(
            [
                (other - 0.06, 0.66),
                (other - 0.012, 0.3),
                (other + 0.012, 0.3),
                (other + 0.06, 0.66),
            ],
            (150, 146, 140),
        )
        for k in range(10):
            a = 2 * np.pi * k / 10
            sheet.polygon(
                _leaf(other, 0.28, 0.11, 0.04, a, 0), (222, 222, 218) if k % 2 else (190, 192, 194)
            )
    image = sheet.over(image, 0.008 * blur)
    crop = (
        [(222, 180, 80), (238, 202, 112), (196, 150, 58)]
        if rng.random() < 0.65
        else [(96, 150, 60), (130, 176, 76), (72, 120, 50)]
    )
    sheet = _Sheet(size)
    for near in np.linspace(0, 1, 7):
        y = 0.62 + 0.34 * near
        _ground(sheet, y + 0.2 * _ridge(rng, 0.03), _shade(crop[0], 0.72 + 0.25 * near))
        for _ in range(34):
            x0, length = rng.uniform(0, 1), 0.06 + 0.10 * near
            sheet.polygon(
                _leaf(x0, y + 0.04, length, 0.016 + 0.012 * near, rng.uniform(-1.9, -1.2), 0.12),
                _pick(rng, crop, 0.2),
            )
    return sheet.over(image, 0.006 * blur)


def _space(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    tints = [
        ((90, 40, 130), (30, 80, 160)),
        ((150, 50, 90), (50, 40, 130)),
        ((30, 110, 130), (60, 40, 120)),
    ]
    warm, cold = tints[int(rng.integers(3))]
    image = Image.new("RGBA", (size, size), (6, 7, 18, 255))
    image = _screen(image, np.clip(0.25 + 0.45 * noise(size, rng, 2, 4), 0, 1), warm)
    image = _screen(image, np.clip(0.15 + 0.4 * noise(size, rng, 3, 4), 0, 1), cold)
    sheet = _Sheet(size)
    for _ in range(170):
        x, y, bright = rng.uniform(0, 1), rng.uniform(0, 1), rng.random() ** 3
        sheet.disc(
            x,
            y,
            0.0022 + 0.0055 * bright,
            _pick(rng, [(255, 255, 255), (190, 214, 255), (255, 226, 190)]),
            int(150 + 105 * bright),
        )
    image = sheet.over(image, 0.0015 * max(blur, 0.5))
    spread = [(0.86, 0.22, 0.17), (0.14, 0.24, 0.19), (0.06, 0.80, 0.30), (0.94, 0.78, 0.32)]
    for k in rng.permutation(4)[: int(rng.integers(1, 3))]:
        x, y, r = spread[int(k)]
        image = _planet(image, rng, x + rng.uniform(-0.04, 0.04), y, r * rng.uniform(0.85, 1.15))
    return _blurred(image, 0.0025 * blur * size)


def _planet(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, r: float
) -> Image.Image:
    size, kind = image.width, rng.random()
    left, top, side = int((x - 1.3 * r) * size), int((y - 1.3 * r) * size), int(2.6 * r * size) + 1
    row = (np.arange(side, dtype=np.float32) + 0.5) / size
    u = np.broadcast_to((row[None] + left / size - x) / r, (side, side))
    v = np.broadcast_to((row[:, None] + top / size - y) / r, (side, side))
    out = np.hypot(u, v)
    inside = np.clip((1 - out) * r * size, 0, 1)[..., None]
    sun = np.clip(-0.75 * u - 0.45 * v + 0.5 * np.sqrt(np.clip(1 - out**2, 0, 1)), 0, 1) + 0.03
    field = noise(side, rng, 5, 4)
    if kind < 0.45:  # like the earth
        land = np.clip(4 * field - 1.2, 0, 1)[..., None]
        color = (1 - land) * [28, 84, 170] + land * [84, 124, 66]
        cloud = np.clip(1.5 * noise(side, rng, 6, 4) - 0.8, 0, 0.9)[..., None]
        color = (1 - cloud) * color + cloud * 250
    else:  # striped, or barren
        stones: list[RGB] = [(224, 168, 110), (198, 96, 64), (170, 176, 190), (210, 190, 150)]
        bands = np.sin(9 * v + 0.6 * field) if kind < 0.8 else 1.3 * field
        color = np.asarray(_pick(rng, stones), float) * (1 + 0.16 * bands)[..., None]
    rim = np.exp(-160 * np.clip(out - 1, 0, 9) ** 2) * np.clip(0.4 - u - 0.6 * v, 0, 1)
    box = (left, top, left + side, top + side)
    pixels = np.asarray(image.crop(box).convert("RGB"), np.float32)
    pixels = pixels + inside * (color * sun[..., None] - pixels)
    pixels = pixels + 0.5 * (1 - inside) * rim[..., None] * [110, 160, 255]
    image = image.copy()
    image.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), (left, top))
    if 0.45 <= kind < 0.8:  # a ring, open behind the upper half
        sheet, t = _Sheet(size), np.linspace(-0.35, np.pi + 0.35, 40)
        for k, width in ((1.45, 0.16), (1.62, 0.16), (1.80, 0.10)):
            across, along = k * r * np.cos(t), k * r * np.sin(t)
            ring = np.stack([x + across, y + 0.32 * along - 0.15 * across], 1)
            sheet.line(ring, (214, 194, 164), width * r, 170)
        image = sheet.over(image, 0.001)
    return image


_DRAW: dict[str, Callable[[int, np.random.Generator, str, float], Image.Image]] = {
    "studio": _studio,
    "beach": _beach,
    "city": _city,
    "night": _night,
    "snow": _snow,
    "jungle": _jungle,
    "forest": _forest,
    "garden": _garden,
    "library": _library,
    "desert": _desert,
    "mountains": _mountains,
    "kitchen": _kitchen,
    "farm": _farm,
    "space": _space,
}


def draw_background(
    scene: str, size: int, rng: np.random.Generator, *, time: str | None = None, blur: float = 1.0
) -> Array:
    """Draw a scene.

    Args:
        scene: One of `SCENES`.
        size: Height and width in pixels.
        rng: Decides the layout.
        time: One of the scene's times in `SCENES`; the first if not given.
        blur: How far out of focus: 1 as behind a portrait, 0 sharp.

    Returns:
        (size, size, 3) uint8 picture.

    Raises:
        FusionError: For an unknown scene or time.
    """
    if scene not in SCENES:
        raise FusionError(f"Unknown scene '{scene}': choose one of {', '.join(SCENES)}.")
    times = list(SCENES[scene])
    if time is not None and time not in times:
        raise FusionError(f"There is no {scene} at '{time}': choose one of {', '.join(times)}.")
    return np.asarray(_DRAW[scene](size, rng, time or times[0], blur).convert("RGB"))


def surround(
    image: Array, cover: Array, background: Array, scene: str, rng: np.random.Generator
) -> Array:
    """Let a scene act on the figures before it: its light bends round their edges, snow falls.

    Args:
        image: (H, H, 3) uint8 picture of the figures before their background.
        cover: (H, H) how much of each pixel the figures cover, 0..1.
        background: (H, H, 3) uint8.
        scene: One of `SCENES`.
        rng: Decides where the flakes fall.

    Returns:
        (H, H, 3) uint8 picture.
    """
    size = len(image)
    a = cover[..., None].astype(np.float32)
    near = Image.fromarray((cover * 255).astype(np.uint8))
    near = near.filter(ImageFilter.GaussianBlur(0.012 * size))
    soft = Image.fromarray(background).resize((32, 32), Image.Resampling.BOX)
    around = np.asarray(soft.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    edge = a * (1 - np.asarray(near, np.float32)[..., None] / 255)
    bent = image + 0.5 * edge * (around - 0.6 * image)
    done = Image.fromarray(np.clip(bent, 0, 255).astype(np.uint8))
    if scene == "snow":
        done = _snowfall(done.convert("RGBA"), rng).convert("RGB")
    return np.asarray(done)


def _snowfall(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for count, r, alpha in ((80, 0.0042, 220), (30, 0.008, 180), (8, 0.018, 110)):
        sheet = _Sheet(image.width)
        for _ in range(count):
            x, y = rng.uniform(0, 1, 2)
            # Hardly any before the face: it should stay readable.
            if np.hypot((x - 0.5) / 0.24, (y - 0.5) / 0.34) < 1 and rng.random() < 0.85:
                continue
            sheet.disc(x, y, r * rng.uniform(0.7, 1.2), (255, 255, 255), alpha, 1.2)
        image = sheet.over(image, 0.3 * r)
    return image
