"""Drawing helpers of all scenes: the sheet, colours, noise, light and simple shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Array = np.ndarray
RGB = tuple[int, int, int]
Point = tuple[float, float]
Stops = Sequence[tuple[float, RGB]]


class Sheet:
    """A transparent sheet to draw on in unit coordinates (0 to 1, y down)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGBA", (size, size))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point] | Array, color: RGB, alpha: int = 255) -> None:
        """Fill a polygon."""
        flat = (np.asarray(points, float) * self.size).ravel().tolist()
        self.draw.polygon(flat, fill=(*color, alpha))

    def box(self, x0: float, y0: float, x1: float, y1: float, color: RGB, alpha: int = 255) -> None:
        """Fill a rectangle, if it is not empty."""
        s = self.size
        if x1 > x0 and y1 > y0:
            self.draw.rectangle([x0 * s, y0 * s, x1 * s, y1 * s], fill=(*color, alpha))

    def disc(
        self, x: float, y: float, r: float, color: RGB, alpha: int = 255, tall: float = 1
    ) -> None:
        """Fill an ellipse: radius `r` across, `tall` times that upwards."""
        s = self.size
        box = [(x - r) * s, (y - r * tall) * s, (x + r) * s, (y + r * tall) * s]
        self.draw.ellipse(box, fill=(*color, alpha))

    def line(
        self, points: Sequence[Point] | Array, color: RGB, width: float, alpha: int = 255
    ) -> None:
        """Draw a line through the points."""
        flat = (np.asarray(points, float) * self.size).ravel().tolist()
        self.draw.line(
            flat, fill=(*color, alpha), width=max(1, round(width * self.size)), joint="curve"
        )

    def over(self, below: Image.Image, blur: float = 0.0) -> Image.Image:
        """Lay the sheet over a picture, blurred by this fraction of its side."""
        return Image.alpha_composite(below, blurred(self.image, blur * self.size))


def blurred(image: Image.Image, radius: float) -> Image.Image:
    """Blur by `radius` pixels; a wide blur is computed at half size, which is faster."""
    if radius < 0.3:
        return image
    soft = image.convert("RGBa")  # colours weighted by alpha, or edges would blur to black
    if radius < 1.2:
        return soft.filter(ImageFilter.GaussianBlur(radius)).convert(image.mode)
    half = soft.reduce(2).filter(ImageFilter.GaussianBlur(radius / 2))
    return half.resize(image.size, Image.Resampling.BILINEAR).convert(image.mode)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """Return the colour at fraction `t` on the way from `a` to `b`."""
    r, g, c = (min(255, max(0, int(x + (y - x) * t))) for x, y in zip(a, b, strict=True))
    return r, g, c


def shade(color: RGB, factor: float) -> RGB:
    """Return a colour made lighter or darker."""
    r, g, b = (min(255, max(0, int(c * factor))) for c in color)
    return r, g, b


def palette(colors: str) -> list[RGB]:
    """Return the colours of a string of hexadecimal RGB values, such as "cdcdcd 7890a5"."""
    triples = (bytes.fromhex(color) for color in colors.split())
    return [(r, g, b) for r, g, b in triples]


def pick(rng: np.random.Generator, colors: Sequence[RGB], spread: float = 0.12) -> RGB:
    """Choose one of the colours and make it a little lighter or darker."""
    return shade(colors[int(rng.integers(len(colors)))], 1 + rng.uniform(-spread, spread))


def gradient(size: int, stops: Stops) -> Image.Image:
    """Return a picture whose colour changes from top to bottom, by (height, colour) stops."""
    rows, at = np.linspace(0, 1, size), [s for s, _ in stops]
    column = np.stack([np.interp(rows, at, [c[i] for _, c in stops]) for i in range(3)], -1)
    return Image.fromarray(np.repeat(column[:, None], size, 1).astype(np.uint8)).convert("RGBA")


def noise(size: int, rng: np.random.Generator, cells: int, octaves: int = 3) -> Array:
    """Return a smooth (size, size) random field of mean 0 and deviation 1.

    The coarsest octave has `cells` cells across.
    """
    half = (size + 1) // 2
    small = np.zeros((half, half), np.float32)
    for octave in range(octaves):
        count = cells * 2**octave
        grid = rng.normal(0, 0.5**octave, (count + 3, count + 3)).astype(np.float32)
        small += np.asarray(Image.fromarray(grid).resize((half, half), Image.Resampling.BICUBIC))
    total = np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BILINEAR))
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def screen(image: Image.Image, light: Array, color: RGB) -> Image.Image:
    """Add coloured light, (size, size) in 0..1; bright places stay within the range."""
    level = Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8))
    bands = [level.point([i * c // 255 for i in range(256)]) for c in color]
    lit = ImageChops.screen(image.convert("RGB"), Image.merge("RGB", bands))
    return lit.convert("RGBA")


def halo(size: int, x: float, y: float, radius: float) -> Array:
    """Return (size, size) light around a point, 1 in its middle."""
    row = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return np.exp(-(((row[None] - x) ** 2 + (row[:, None] - y) ** 2) / radius**2))


def clouds(image: Image.Image, rng: np.random.Generator, horizon: float, color: RGB) -> Image.Image:
    """Add clouds above the horizon."""
    size = image.width
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    field = noise(size, rng, 3)
    wide = np.asarray(Image.fromarray(field).resize((2 * size, size)).crop((0, 0, size, size)))
    cover = np.clip(wide - rng.uniform(0.0, 0.7), 0, 1) * np.clip((horizon - rows) * 6, 0, 1)
    return screen(image, 0.85 * cover, color)


def shafts(
    image: Image.Image, rng: np.random.Generator, color: RGB, strength: float
) -> Image.Image:
    """Add slanting shafts of light."""
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
    return screen(image, np.asarray(soft, np.float32) / 255 * fade * strength, color)


def leaf(x: float, y: float, length: float, width: float, angle: float, bend: float) -> Array:
    """Return the (N, 2) outline of a leaf from its stem at (x, y) towards `angle` in radians."""
    t = np.array([0, 0.2, 0.45, 0.75, 1, 0.75, 0.45, 0.2])
    side = np.array([0, 0.75, 1, 0.6, 0, -0.6, -1, -0.75]) * width / 2
    along, across = t * length, side + bend * t**2 * length
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([x + along * c - across * s, y + along * s + across * c], 1)


def frond(
    sheet: Sheet, rng: np.random.Generator, at: Point, length: float, angle: float, color: RGB
) -> None:
    """Draw a palm leaf: blades that hang from a curved rib."""
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
            outline = leaf(x, y, blade, 0.17 * blade, along + turn, 0.15)
            sheet.polygon(outline, shade(color, rng.uniform(0.75, 1.2)))
    sheet.line(rib, shade(color, 0.8), 0.006)


def ridge(rng: np.random.Generator, rough: float, points: int = 65) -> Array:
    """Return a jagged line around 0 by midpoint displacement; `rough` is the first step."""
    line = rng.normal(0, rough * 0.5, 2)
    while len(line) < points:
        rough *= 0.52
        middle = (line[1:] + line[:-1]) / 2 + rng.normal(0, rough, len(line) - 1)
        line = np.insert(line, np.arange(1, len(line)), middle)
    return line


def fill_below(sheet: Sheet, line: Array, color: RGB) -> None:
    """Fill everything below a line of heights that runs across the picture."""
    x = np.linspace(-0.02, 1.02, len(line))
    sheet.polygon([(-0.02, 1.1), *zip(x, line, strict=True), (1.02, 1.1)], color)
