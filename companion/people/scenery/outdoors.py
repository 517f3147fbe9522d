"""Outdoor scenes: beach, city, snow, jungle, forest, garden, desert, mountains and farm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from companion.people.scenery.sheet import (
    RGB,
    Array,
    Point,
    Sheet,
    Stops,
    clouds,
    fill_below,
    frond,
    gradient,
    halo,
    leaf,
    mix,
    palette,
    pick,
    ridge,
    screen,
    shade,
    shafts,
)


def beach(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw sea and sand with palms or a parasol."""
    h, sunset = rng.uniform(0.38, 0.52), time == "sunset"
    shore, sand = h + rng.uniform(0.14, 0.22), (224, 178, 132) if sunset else (240, 220, 172)
    if sunset:
        sky = [(0.0, (92, 84, 150)), (0.6 * h, (238, 140, 110)), (h, (255, 206, 120))]
        sea = [(h + 0.004, (196, 120, 110)), (shore, (96, 96, 140))]
    else:
        sky = [(0.0, (62, 142, 222)), (h, (196, 230, 248))]
        sea = [(h + 0.004, (18, 96, 156)), (shore, (64, 190, 196))]
    image = gradient(size, [*sky, *sea, (shore + 0.03, shade(sand, 0.86)), (1, sand)])
    image = clouds(image, rng, h, (255, 220, 190) if sunset else (255, 255, 255))
    sun = float(rng.choice([rng.uniform(0.05, 0.25), rng.uniform(0.75, 0.95)]))
    if sunset:
        image = screen(image, 1.2 * np.clip(halo(size, sun, h - 0.05, 0.10), 0, 1), (255, 236, 170))
    sheet = Sheet(size)
    far = np.abs(ridge(rng, 0.05))
    fade = np.clip(np.linspace(1.2, -0.8, len(far))[:: 1 if sun > 0.5 else -1], 0, 1)
    _ground_strip(
        sheet,
        h + 0.004 - far * fade - 0.03 * fade,
        h + 0.004,
        mix((70, 110, 120), sky[-1][1], 0.35),
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
    sheet = Sheet(size)
    fill_below(sheet, edge - 0.012, (250, 252, 252))
    fill_below(sheet, edge + 0.012, shade(sand, 0.80))
    fill_below(sheet, edge + 0.07, sand)
    for _ in range(40):
        sheet.disc(
            rng.uniform(0, 1),
            rng.uniform(shore + 0.08, 1),
            rng.uniform(0.01, 0.03),
            shade(sand, rng.uniform(0.86, 1.08)),
            150,
            0.3,
        )
    image = sheet.over(image, 0.009 * blur)
    sheet = Sheet(size)
    kind, left = rng.random(), bool(rng.random() < 0.5)
    dark = 0.5 if sunset else 1.0
    if kind < 0.75:
        _palm(sheet, rng, 0.06 if left else 0.94, rng.uniform(0.10, 0.22), dark)
        if rng.random() < 0.5:
            _palm(sheet, rng, 0.97 if left else 0.03, rng.uniform(0.02, 0.15), dark)
    if kind > 0.55:  # a parasol
        x, y, r = (0.86 if left else 0.14), shore + 0.02, rng.uniform(0.15, 0.2)
        sheet.line([(x, y), (x + 0.01, 0.99)], (235, 235, 230), 0.012)
        stripe = pick(rng, [(222, 60, 58), (40, 110, 190), (240, 170, 40)])
        for k in range(6):
            a, b = np.pi * (1 + k / 6), np.pi * (1 + (k + 1) / 6)
            arc = [(x + r * np.cos(u), y + 0.8 * r * np.sin(u)) for u in np.linspace(a, b, 5)]
            sheet.polygon(
                [(x, y - 0.1 * r), *arc], shade((248, 246, 240) if k % 2 else stripe, dark**0.5)
            )
    return sheet.over(image, 0.010 * blur)


def _palm(sheet: Sheet, rng: np.random.Generator, x: float, top: float, dark: float) -> None:
    """Draw a palm at the edge of the picture; `dark` below 1 makes it a silhouette."""
    lean = rng.uniform(0.05, 0.16) * (1 if x < 0.5 else -1)
    t = np.linspace(0, 1, 10)
    trunk = np.stack([x + lean * t**1.6, 1.0 - (1.0 - top) * t], 1)
    sheet.line(trunk, shade((118, 88, 62), dark), 0.028)
    for ring in trunk[2::2]:
        sheet.line([ring - [0.014, 0], ring + [0.014, 0.004]], shade((80, 58, 42), dark), 0.005)
    for angle in np.linspace(-3.3, 0.2, 9) + rng.uniform(-0.15, 0.15, 9):
        color = shade((52, 118, 52), dark * rng.uniform(0.75, 1.25))
        frond(sheet, rng, (float(trunk[-1, 0]), top), rng.uniform(0.24, 0.34), float(angle), color)


def _ground_strip(sheet: Sheet, top: Array, bottom: float, color: RGB) -> None:
    """Fill the strip between a line of heights and a horizontal one below it."""
    x = np.linspace(-0.02, 1.02, len(top))
    sheet.polygon(
        [(-0.02, bottom), *zip(x, np.minimum(top, bottom), strict=True), (1.02, bottom)], color
    )


def city(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw a street by day or at sunset, sometimes with a tree."""
    walls = palette("a8806c bcb2a4 965c4c 8c949e cebea0 787c84")
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
    image = street(size, rng, blur, sky, walls, haze, 0.0)
    if rng.random() < 0.5:  # a street tree
        sheet = Sheet(size)
        x = float(rng.choice([0.04, 0.96]))
        sheet.line([(x, 1), (x + 0.01, 0.5)], (70, 54, 42), 0.02)
        for _ in range(60):
            angle, r = rng.uniform(0, 6.3), 0.17 * np.sqrt(rng.random())
            sheet.polygon(
                leaf(
                    x + r * np.cos(angle),
                    0.42 + r * np.sin(angle),
                    0.06,
                    0.035,
                    rng.uniform(0, 6.3),
                    0,
                ),
                pick(rng, [(84, 140, 62), (120, 168, 76), (58, 104, 50)]),
            )
        image = sheet.over(image, 0.010 * blur)
    return image


def street(
    size: int,
    rng: np.random.Generator,
    blur: float,
    sky: Stops,
    walls: Sequence[RGB],
    haze: RGB,
    lit: float,
) -> Image.Image:
    """Draw facades on both sides of a street; a share `lit` of the windows glows."""
    image = gradient(size, sky)
    vx, vy = rng.uniform(0.42, 0.58), rng.uniform(0.55, 0.66)
    sheet = Sheet(size)
    for _ in range(9):  # the skyline at the end of the street
        x, w, h = vx + rng.uniform(-0.32, 0.32), rng.uniform(0.04, 0.08), rng.uniform(0.12, 0.42)
        wall = mix(pick(rng, walls), haze, 0.6)
        sheet.box(x - w, vy - h, x + w, vy + 0.1, wall)
        for wx in np.arange(x - w + 0.012, x + w - 0.01, 0.024):
            for wy in np.arange(vy - h + 0.02, vy, 0.035):
                if rng.random() < 0.6:
                    glass = (255, 214, 140) if rng.random() < lit else shade(wall, 0.8)
                    sheet.box(wx, wy, wx + 0.012, wy + 0.018, glass)
    image = sheet.over(image, 0.010 * blur)
    sheet = Sheet(size)
    ground = mix((92, 92, 98), (22, 24, 40), lit)
    sheet.polygon([(-0.5, 1.3), (vx - 0.02, vy + 0.02), (vx + 0.02, vy + 0.02), (1.5, 1.3)], ground)
    for side in (-1, 1):
        depths = np.cumsum([1.0, *rng.uniform(0.35, 0.8, 5)])
        for near, far in reversed(list(zip(depths[:-1], depths[1:], strict=True))):
            t = (near - 1) / 2.6
            wall = mix(pick(rng, walls), haze, min(0.75, 0.1 + 0.7 * t))
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

            sheet.polygon(quad(0, 0, 1, 1), shade(wall, 0.92 if side > 0 else 1.05))
            columns, rows = int(rng.integers(3, 5)), int(rng.integers(7, 10))
            for r in range(rows):
                v0 = 0.05 + 0.78 * r / rows
                sheet.polygon(quad(0, v0 - 0.012, 1, v0 - 0.004), shade(wall, 1.14))
                for c in range(columns):
                    u0 = (c + 0.22) / columns
                    glow = rng.random() < lit * 0.6
                    glass = (
                        pick(rng, [(255, 206, 120), (255, 232, 180), (160, 214, 255)])
                        if glow
                        else mix(shade(wall, 0.52), (120, 150, 180), 0.25 * (1 - lit))
                    )
                    sheet.polygon(quad(u0, v0 + 0.01, u0 + 0.56 / columns, v0 + 0.6 / rows), glass)
            if rng.random() < 0.8:  # the shop below, with an awning or a sign
                color = pick(rng, [(186, 52, 46), (38, 96, 72), (40, 74, 128), (214, 160, 60)])
                neon = pick(rng, [(255, 70, 170), (60, 220, 255), (255, 170, 60), (150, 90, 255)])
                sheet.polygon(quad(0.05, 0.84, 0.95, 0.885), neon if lit else color)
                sheet.polygon(
                    quad(0.05, 0.885, 0.95, 0.99), (250, 214, 150) if lit else shade(wall, 0.4)
                )
    return sheet.over(image, 0.010 * blur)


def snow(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw snowy firs in three depths."""
    sunset, base = time == "sunset", rng.uniform(0.55, 0.66)
    sky = (
        [(0.0, (130, 140, 190)), (base, (250, 206, 186))]
        if sunset
        else [(0.0, (150, 178, 214)), (base, (228, 236, 246))]
    )
    image = gradient(size, [*sky, (base + 0.01, (232, 238, 248)), (1, (250, 252, 255))])
    haze = sky[-1][1]
    for depth, count in ((0.72, 16), (0.42, 9), (0.08, 5)):
        sheet = Sheet(size)
        line = base + 0.05 * (1 - depth) + 0.4 * ridge(rng, 0.05)
        for k in range(count):
            x = (k + rng.uniform(0, 1)) / count
            if depth < 0.1:  # the nearest stand at the sides
                x = 0.22 * x if k % 2 else 1 - 0.22 * x
            height = rng.uniform(0.8, 1.25) * (0.24 + 0.55 * (1 - depth) ** 1.5)
            green = mix((38, 66, 60), haze, depth)
            _conifer(
                sheet,
                rng,
                x,
                base + 0.06 + 0.22 * (1 - depth) ** 2,
                height,
                green,
                0.85 * (1 - depth) + 0.1,
            )
        drift = mix((246, 249, 255), haze, 0.5 * depth)
        fill_below(sheet, line + 0.18 * (1 - depth), drift)
        fill_below(sheet, line + 0.18 * (1 - depth) + 0.05, shade(drift, 0.965))
        image = sheet.over(image, (0.006 + 0.006 * (depth < 0.1)) * blur)
    return image


def _conifer(
    sheet: Sheet,
    rng: np.random.Generator,
    x: float,
    base: float,
    height: float,
    green: RGB,
    snow: float,
) -> None:
    """Draw a fir tree, with `snow` (0..1) on its branches."""
    half = 0.24 * height
    for k in range(6):
        y0, y1 = base - height * (1 - k / 7.2), base - height * (0.78 - k / 7.2)
        w = half * (0.25 + 0.75 * k / 5)
        jag = [
            (x + w * u, y1 + height * 0.03 * rng.uniform(-1, 1))
            for u in (1, 0.6, 0.25, -0.25, -0.6, -1)
        ]
        sheet.polygon([(x, y0), *jag], shade(green, 0.75 + 0.07 * k))
        if snow:
            ends = [
                (x - w, y1),
                (x - 0.55 * w, y1 - 0.055 * height),
                (x - 0.1 * w, y1 - 0.03 * height),
            ]
            ends += [(x + 0.45 * w, y1 - 0.065 * height), (x + w, y1)]
            sheet.polygon([(x, y0), *ends[::-1]], (236, 242, 250), int(200 * snow))


def snowfall(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Let snow fall over a finished picture."""
    for count, r, alpha in ((80, 0.0042, 220), (30, 0.008, 180), (8, 0.018, 110)):
        sheet = Sheet(image.width)
        for _ in range(count):
            x, y = rng.uniform(0, 1, 2)
            # Few flakes fall in front of the face, so that it stays readable.
            if np.hypot((x - 0.5) / 0.24, (y - 0.5) / 0.34) < 1 and rng.random() < 0.85:
                continue
            sheet.disc(x, y, r * rng.uniform(0.7, 1.2), (255, 255, 255), alpha, 1.2)
        image = sheet.over(image, 0.3 * r)
    return image


def jungle(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw large leaves in three depths, with shafts of light."""
    image = gradient(size, [(0.0, (206, 232, 150)), (0.4, (92, 150, 70)), (1.0, (18, 56, 30))])
    image = screen(image, 0.5 * halo(size, rng.uniform(0.2, 0.8), 0.1, 0.4), (240, 255, 190))
    for depth in (0.75, 0.4, 0.0):
        sheet = Sheet(size)
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
            green = pick(rng, [(44, 128, 50), (26, 96, 48), (96, 160, 56), (20, 78, 52)], 0.25)
            green = shade(mix(green, (140, 190, 100), 0.6 * depth), 0.72 + 0.28 * depth)
            kind = rng.random()
            if kind < 0.35:
                frond(sheet, rng, (x, y), length * 1.1, inward, green)
                continue
            bend = rng.uniform(-0.25, 0.25)
            blade = leaf(x, y, length, length * (0.34 if kind < 0.75 else 0.7), inward, bend)
            sheet.polygon(blade, green)
            rib = np.array([blade[0], (blade[2] + blade[6]) / 2, blade[4]])
            sheet.polygon([*blade[:5], *rib[1:0:-1]], shade(green, 1.22))
            sheet.line(rib, shade(green, 1.5), 0.005)
        image = sheet.over(image, (0.004 + 0.008 * depth) * blur)
        if depth == 0.4:
            image = shafts(image, rng, (236, 255, 180), 0.75)
    return image


def forest(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw tree trunks in mist, in green or autumn leaves."""
    autumn = time == "autumn"
    leaves = (
        [(226, 140, 40), (204, 84, 36), (236, 186, 64)]
        if autumn
        else [(84, 140, 50), (52, 106, 44), (136, 176, 60)]
    )
    mist = (250, 224, 170) if autumn else (190, 216, 150)
    floor = (122, 78, 42) if autumn else (72, 84, 44)
    base = rng.uniform(0.66, 0.76)
    image = gradient(
        size,
        [
            (0.0, mix(leaves[2], mist, 0.45)),
            (0.5, mist),
            (base, mix(floor, mist, 0.5)),
            (1.0, floor),
        ],
    )
    birch = rng.random() < 0.2
    bark = (214, 210, 200) if birch else (70, 54, 42)
    for depth, count in ((0.7, 16), (0.4, 9), (0.05, 4)):
        sheet = Sheet(size)
        for k in range(count):
            x = (k + rng.uniform(0.1, 0.9)) / count
            if depth < 0.2:
                x = float(rng.choice([rng.uniform(-0.02, 0.2), rng.uniform(0.8, 1.02)]))
            w = 0.012 + 0.07 * (1 - depth) ** 2 * rng.uniform(0.7, 1.2)
            foot, lean = base + 0.3 * (1 - depth) ** 2, rng.uniform(-0.03, 0.03)
            color = mix(shade(bark, rng.uniform(0.8, 1.15)), mist, depth)
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
                shade(color, 0.72),
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
            color = mix(pick(rng, leaves, 0.3), mist, 0.75 * depth)
            sheet.polygon(leaf(x, y, length, 0.55 * length, rng.uniform(0, 6.3), 0.1), color, 230)
        for _ in range(40 if depth < 0.6 else 0):  # ferns and fallen leaves
            x, y = rng.uniform(0, 1), base + (1 - base) * rng.random()
            color = pick(rng, leaves if autumn else [(86, 128, 54), (60, 96, 44)], 0.3)
            sheet.polygon(leaf(x, y, 0.06, 0.02, rng.uniform(-2.6, -0.5), 0.3), shade(color, 0.85))
        image = sheet.over(image, (0.006 + 0.006 * depth) * blur)
        if depth == 0.4:
            image = shafts(image, rng, (255, 246, 200), 0.8)
    return image


def garden(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw a hedge and flower beds, with a fence, an arch of roses or a branch in blossom."""
    hedge = rng.uniform(0.30, 0.42)
    image = gradient(size, [(0.0, (110, 176, 236)), (hedge, (206, 232, 248)), (1, (110, 170, 70))])
    image = clouds(image, rng, hedge, (255, 255, 255))
    greens = [(62, 124, 52), (88, 150, 62), (46, 100, 46), (120, 172, 80)]
    sheet = Sheet(size)
    for _ in range(12):  # trees beyond the hedge
        x, y, r = rng.uniform(0, 1), hedge - rng.uniform(-0.02, 0.1), rng.uniform(0.06, 0.14)
        sheet.disc(x, y, r, mix(pick(rng, greens), (180, 214, 200), 0.35))
    fill_below(sheet, hedge + 0.05 + 0.3 * ridge(rng, 0.03), (52, 104, 48))
    image = sheet.over(image, 0.014 * blur)
    sheet = Sheet(size)
    for _ in range(120):
        x, y = rng.uniform(0, 1), hedge + rng.uniform(0.02, 0.22)
        sheet.polygon(leaf(x, y, 0.05, 0.025, rng.uniform(0, 6.3), 0), pick(rng, greens, 0.3))
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
            sheet.polygon(leaf(x, y, 0.09, 0.05, rng.uniform(0, 6.3), 0), pick(rng, greens, 0.3))
        for x in (0.06, 0.94):
            sheet.box(x - 0.02, 0.5, x + 0.02, 1, (230, 228, 220))
    image = sheet.over(image, 0.010 * blur)
    blooms = palette("e83e6e face3c f6f4f8 b054ce f07834 d62832 fa96be")
    chosen = [blooms[int(k)] for k in rng.choice(len(blooms), 3, replace=False)]
    arch = 0.4 <= kind < 0.7
    for near in (0.0, 0.45, 1.0):
        sheet = Sheet(size)
        for _ in range(int(60 - 25 * near)):
            x, y = rng.uniform(-0.02, 1.02), 0.64 + 0.20 * near + rng.uniform(-0.03, 0.15)
            sheet.polygon(
                leaf(x, y, 0.06 + 0.09 * near, 0.018 + 0.02 * near, rng.uniform(-2.4, -0.7), 0.2),
                pick(rng, greens, 0.25),
            )
        for k in range(int(22 - 12 * near)):
            x = (
                rng.uniform(0, 1)
                if near < 1
                else (0.24 * rng.random() if k % 2 else 1 - 0.24 * rng.random())
            )
            y = 0.62 + 0.14 * near + rng.uniform(-0.05, 0.14)
            _flower(sheet, rng, x, y, 0.022 + 0.036 * near, pick(rng, chosen))
        if arch and near == 0.45:
            for t in rng.uniform(0, 1, 26):
                x, y = 0.5 - 0.44 * np.cos(np.pi * t), 0.52 - 0.46 * np.sin(np.pi * t)
                _flower(
                    sheet,
                    rng,
                    x + rng.normal(0, 0.02),
                    y + rng.normal(0, 0.02),
                    0.035,
                    pick(rng, chosen[:1]),
                )
        image = sheet.over(image, (0.006 + 0.005 * near) * blur)
    if not arch and rng.random() < 0.6:  # a blossoming branch in a corner
        sheet, side = Sheet(size), float(rng.integers(2))
        for _ in range(34):
            x, y = abs(side - 0.4 * rng.random()), 0.26 * rng.random() ** 1.3
            if rng.random() < 0.4:
                sheet.polygon(leaf(x, y, 0.06, 0.03, rng.uniform(0, 6.3), 0), pick(rng, greens))
            else:
                _flower(sheet, rng, x, y, 0.03, (252, 214, 226))
        image = sheet.over(image, 0.009 * blur)
    return image


def _flower(
    sheet: Sheet, rng: np.random.Generator, x: float, y: float, r: float, petal: RGB
) -> None:
    """Draw a flower with five to seven petals."""
    count, turn = int(rng.integers(5, 8)), rng.uniform(0, 1)
    for k in range(count):
        a = turn + 2 * np.pi * k / count
        sheet.disc(
            x + 0.6 * r * np.cos(a),
            y + 0.6 * r * np.sin(a),
            0.5 * r,
            shade(petal, 0.86 + 0.14 * (k % 2)),
        )
    sheet.disc(x, y, 0.34 * r, (246, 206, 70) if petal[2] > 90 else (120, 70, 30))


def desert(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw dunes, often with table mountains and cactuses."""
    sunset, h = time == "sunset", rng.uniform(0.48, 0.58)
    sky = (
        [(0.0, (100, 72, 130)), (0.6 * h, (240, 120, 84)), (h, (255, 200, 120))]
        if sunset
        else [(0.0, (52, 136, 214)), (h, (226, 232, 220))]
    )
    sand = (206, 122, 78) if sunset else (232, 184, 116)
    image = gradient(size, [*sky, (1, sand)])
    side = float(rng.choice([0.15, 0.85]))
    if sunset or rng.random() < 0.4:
        image = screen(
            image, np.clip(1.4 * halo(size, side, h - 0.18, 0.07), 0, 1), (255, 244, 200)
        )
    sheet = Sheet(size)
    rock = mix((176, 92, 62), sky[-1][1], 0.3)
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
                shade(rock, rng.uniform(0.85, 1.1)),
            )
            sheet.polygon(
                [
                    (x - w, top + 0.05),
                    (x + w, top + 0.05),
                    (x + w, top + 0.065),
                    (x - w, top + 0.065),
                ],
                shade(rock, 0.8),
            )
    across = np.linspace(0, 1, 65)
    for k in range(4):  # dunes: a bright and a shaded flank
        crest, y = rng.uniform(0.1, 0.9), h + 0.03 + 0.12 * k
        line = (
            y + 0.10 * np.abs(across - crest) ** 1.3 + 0.012 * np.sin(9 * across + 5 * rng.random())
        )
        bright = mix(shade(sand, 0.9 + 0.05 * k), sky[-1][1], 0.3 - 0.1 * k)
        fill_below(sheet, line, bright)
        peak = line.min()
        tail = [
            (crest, peak),
            (crest + 0.10, peak + 0.10),
            (crest + 0.06, peak + 0.2),
            (crest + 0.22, peak + 0.36),
            (1.3, peak + 0.5),
            (1.1, line[-1]),
        ]
        sheet.polygon(tail, shade(bright, 0.76), 190)
    for y in np.linspace(h + 0.3, 1, 16):  # ripples of the wind
        sheet.line(
            np.stack([across, y + 0.008 * np.sin(20 * across + 30 * y) + 0.02 * across], 1),
            shade(sand, 0.86),
            0.004,
            130,
        )
    image = sheet.over(image, 0.007 * blur)
    if rng.random() < 0.75:
        sheet = Sheet(size)
        green = shade((76, 112, 66), 0.5 if sunset else 1.0)
        for x0 in rng.permutation([0.08, 0.91])[: int(rng.integers(1, 3))]:
            _cactus(
                sheet, rng, float(x0) + rng.uniform(-0.04, 0.04), rng.uniform(0.25, 0.42), green
            )
        image = sheet.over(image, 0.008 * blur)
    return image


def _cactus(sheet: Sheet, rng: np.random.Generator, x: float, top: float, green: RGB) -> None:
    """Draw a cactus with two arms."""
    arms = [[(x, 1.02), (x, top)]]
    for side, y in ((-1, rng.uniform(0.5, 0.65)), (1, rng.uniform(0.5, 0.65))):
        reach = x + side * 0.085
        arms.append([(x, y), (reach, y - 0.01), (reach, y - rng.uniform(0.12, 0.2))])
    for k, arm in enumerate(arms):
        w = 0.068 if k == 0 else 0.046
        sheet.line(arm, green, w)
        sheet.disc(*arm[-1], w / 2, green)
        lit = np.asarray(arm) - [0.22 * w, 0]
        sheet.line(lit, shade(green, 1.35), 0.16 * w)
        sheet.line(lit + [0.5 * w, 0], shade(green, 0.72), 0.16 * w)


def mountains(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw snow-capped mountains behind conifers, above a lake or a meadow."""
    sunset = time == "sunset"
    sky = (
        [(0.0, (96, 104, 170)), (0.5, (250, 184, 160))]
        if sunset
        else [(0.0, (48, 120, 204)), (0.5, (190, 218, 242))]
    )
    image = gradient(size, [*sky, (1, sky[-1][1])])
    image = clouds(image, rng, 0.4, (255, 224, 214) if sunset else (255, 255, 255))
    haze = sky[-1][1]
    x = np.linspace(-0.02, 1.02, 65)
    for depth, height in ((0.65, 0.34), (0.3, 0.40)):
        sheet = Sheet(size)
        rock = mix((84, 94, 116), haze, depth)
        peaks = [rng.uniform(-0.02, 0.26), rng.uniform(0.74, 1.02), rng.uniform(0.3, 0.7)]
        tops = rng.uniform(0.75, 1.15, 3) * [1, 1, 0.7] * height
        shape = np.max([t - 1.15 * np.abs(x - p) for p, t in zip(peaks, tops, strict=True)], 0)
        line = 0.56 + 0.08 * (1 - depth) - np.maximum(shape, 0.03) + ridge(rng, 0.05)
        fill_below(sheet, line, rock)
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
            sheet.polygon(flank, shade(rock, 0.78))
        cap = 0.55 + 0.45 * rng.random()
        drop = 0.07 * cap + 0.035 * np.abs(ridge(rng, 0.9)) + 0.03 * np.abs(np.sin(47 * x))
        inside = line < 0.44
        snow = mix((255, 222, 206) if sunset else (248, 250, 255), haze, 0.5 * depth)
        below = np.where(inside, np.minimum(line + drop, 0.46), line)
        outline = [*zip(x, line - 0.002, strict=True), *zip(x[::-1], below[::-1], strict=True)]
        sheet.polygon(outline, snow)
        image = sheet.over(image, (0.004 + 0.005 * depth) * blur)
    sheet = Sheet(size)
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
    sheet = Sheet(size)
    if rng.random() < 0.5:  # a lake or a meadow in front
        fill_below(sheet, np.full(9, 0.70), mix((70, 128, 158), haze, 0.3))
        for _ in range(24):
            sheet.disc(
                rng.random(),
                rng.uniform(0.72, 1),
                rng.uniform(0.03, 0.12),
                mix((70, 128, 158), haze, 0.65),
                110,
                0.05,
            )
    else:
        fill_below(sheet, 0.72 + 0.3 * ridge(rng, 0.04), (112, 148, 70))
        for _ in range(70):
            x0, y = rng.random(), rng.uniform(0.74, 1)
            sheet.polygon(
                leaf(x0, y, 0.05, 0.01, rng.uniform(-2.2, -0.9), 0.2),
                pick(rng, [(92, 134, 60), (140, 166, 84)], 0.2),
            )
            if rng.random() < 0.4:
                sheet.disc(
                    x0,
                    y - 0.02,
                    0.009,
                    pick(rng, [(250, 240, 120), (246, 246, 250), (190, 120, 200)]),
                )
    return sheet.over(image, 0.008 * blur)


def farm(size: int, rng: np.random.Generator, time: str, blur: float) -> Image.Image:
    """Draw a red barn and a field, sometimes with a wind wheel."""
    sunset, h = time == "sunset", rng.uniform(0.46, 0.56)
    sky = (
        [(0.0, (120, 120, 180)), (h, (255, 206, 140))]
        if sunset
        else [(0.0, (72, 150, 226)), (h, (214, 236, 250))]
    )
    image = gradient(size, [*sky, (1, (196, 160, 70))])
    image = clouds(image, rng, h, (255, 226, 200) if sunset else (255, 255, 255))
    sheet = Sheet(size)
    fill_below(sheet, h - 0.02 + 0.4 * ridge(rng, 0.05), mix((92, 130, 74), sky[-1][1], 0.35))
    fill_below(sheet, h + 0.03 + 0.3 * ridge(rng, 0.03), (124, 156, 72))
    left = bool(rng.random() < 0.5)
    x, w = (0.13 if left else 0.87), rng.uniform(0.13, 0.17)
    red = shade((172, 44, 38), 0.8 if sunset else 1.0)
    sheet.box(x - w, 0.36, x + w, 0.66, red)  # the barn
    sheet.polygon(
        [(x - w, 0.36), (x - 0.6 * w, 0.24), (x, 0.19), (x + 0.6 * w, 0.24), (x + w, 0.36)], red
    )
    for u in np.linspace(-0.9, 0.9, 9):
        sheet.line([(x + u * w, 0.34), (x + u * w, 0.66)], shade(red, 0.82), 0.004)
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
    sheet.box(x - 0.34 * w, 0.495, x + 0.34 * w, 0.66, shade(red, 0.7))
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
                leaf(other, 0.28, 0.11, 0.04, a, 0), (222, 222, 218) if k % 2 else (190, 192, 194)
            )
    image = sheet.over(image, 0.008 * blur)
    crop = (
        [(222, 180, 80), (238, 202, 112), (196, 150, 58)]
        if rng.random() < 0.65
        else [(96, 150, 60), (130, 176, 76), (72, 120, 50)]
    )
    sheet = Sheet(size)
    for near in np.linspace(0, 1, 7):
        y = 0.62 + 0.34 * near
        fill_below(sheet, y + 0.2 * ridge(rng, 0.03), shade(crop[0], 0.72 + 0.25 * near))
        for _ in range(34):
            x0, length = rng.uniform(0, 1), 0.06 + 0.10 * near
            sheet.polygon(
                leaf(x0, y + 0.04, length, 0.016 + 0.012 * near, rng.uniform(-1.9, -1.2), 0.12),
                pick(rng, crop, 0.2),
            )
    return sheet.over(image, 0.006 * blur)
