"""Deferred shading: soft shadows, ambient occlusion and subsurface scattering in numpy.

The rasteriser returns colour, normal, material and distance of each pixel, and light is computed on
those maps. That allows effects that would be costly in a rasteriser: skin scatters red further than
blue, eyelids shade the eyeball, and the colours of the surroundings fall on the face. Colours are
linear here; `develop` turns them into a picture.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from companion.people.mesh import dot, unit

Array = np.ndarray

# Materials, as the blue channel of the code pass stores them. Values up to SKIN_MAX are skin and
# give its gloss.
SKIN_MAX, EYE, WET, HAIR, CLOTH, FRAME = 120, 144, 160, 176, 208, 224

# Radius in metres by which skin scatters red, green and blue light, and how far light wraps around
# to the dark side.
SCATTER = (0.0024, 0.0011, 0.0007)
SKIN_WRAP = np.array([0.26, 0.15, 0.11], np.float32)
HOLLOW_RADII = (0.004, 0.009, 0.020, 0.040)


@dataclass(frozen=True)
class Camera:
    """A camera in world coordinates.

    Attributes:
        position: (3,) position in metres.
        toward: (3,) unit vector from the scene to the camera.
        right: (3,) unit vector to the right of the picture.
        up: (3,) unit vector to its top.
        angle: Field of view in degrees.
        near: Smallest distance seen in metres.
        far: Largest distance seen in metres.
    """

    position: Array
    toward: Array
    right: Array
    up: Array
    angle: float
    near: float
    far: float


@dataclass(frozen=True)
class Light:
    """The light of a picture.

    Attributes:
        key: (3,) unit direction to the main lamp.
        key_color: (3,) linear colour of its light.
        fill: (3,) unit direction to the fill lamp.
        fill_color: (3,) linear colour of its light.
        rim: (3,) unit direction to the lamp behind.
        rim_color: (3,) linear colour of its light.
        ambient: Level of the light from all around.
        softness: Distance in metres over which shadows fade.
    """

    key: Array
    key_color: Array
    fill: Array
    fill_color: Array
    rim: Array
    rim_color: Array
    ambient: float
    softness: float


@dataclass(frozen=True)
class Maps:
    """What each pixel shows; row 0 is at the top.

    Attributes:
        color: (H, W, 3) uint8 sRGB colours.
        normal: (H, W, 3) unit normals.
        material: (H, W) uint8 codes of materials.
        depth: (H, W) distances in metres along the camera's axis, infinite in the background.
        cover: (H, W) bool, False in the background.
    """

    color: Array
    normal: Array
    material: Array
    depth: Array
    cover: Array


@dataclass(frozen=True)
class ShadowMap:
    """What the key light sees.

    Attributes:
        depth: (N, N) distances in metres from `centre`, away from the light.
        centre: (3,) middle of the map in metres.
        toward: (3,) unit vector to the light.
        right: (3,) unit vector along the map's rows.
        up: (3,) unit vector along its columns.
        reach: Distance in metres that the map shows on each side of `centre`.
    """

    depth: Array
    centre: Array
    toward: Array
    right: Array
    up: Array
    reach: float


@functools.lru_cache(maxsize=1)
def _linear_of_byte() -> Array:
    return ((np.arange(256) / 255.0) ** 2.2).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _byte_of_linear() -> Array:
    """Return the tone curve: light 0..4 in 4096 steps to 0..255, with a soft shoulder."""
    x = np.arange(4096, dtype=np.float32) / 1023.75
    soft = np.where(x < 0.55, x, 0.55 + 0.45 * (1 - np.exp(-(x - 0.55) / 0.45)))
    return (255 * soft ** (1 / 2.2)).astype(np.float32)


def linear(color: Array) -> Array:
    """Convert uint8 sRGB to linear light in 0..1, float32."""
    return _linear_of_byte()[color]


def develop(light: Array) -> Array:
    """Convert linear light, 1 for white paper in the key light, to sRGB in 0..255, float32."""
    return _byte_of_linear()[np.clip(light * 1023.75, 0, 4095).astype(np.int16)]


def positions(depth: Array, camera: Camera) -> Array:
    """Return (H, W, 3) world coordinates of the pixels; undefined where depth is infinite."""
    height, width = depth.shape
    reach = np.tan(np.radians(camera.angle / 2))
    across = ((np.arange(width) + 0.5) / width * 2 - 1) * reach * width / height
    down = ((np.arange(height) + 0.5) / height * 2 - 1) * reach
    rays = (
        -camera.toward + across[None, :, None] * camera.right - down[:, None, None] * camera.up
    ).astype(np.float32)
    far = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    return camera.position.astype(np.float32) + far[..., None] * rays


def _shifted(image: Array, dy: int, dx: int) -> Array:
    height, width = image.shape
    padded = np.pad(image, ((abs(dy), abs(dy)), (abs(dx), abs(dx))), "edge")
    top, left = abs(dy) + dy, abs(dx) + dx
    return padded[top : top + height, left : left + width]


def hollows(depth: Array, metres: float) -> Array:
    """Return (H, W) ambient visibility: 1 on a plane or a ridge, less in a hollow.

    A pixel is compared with the mean of two opposite neighbours, so that slopes cancel. `metres`
    is the size of a pixel.
    """
    finite = np.isfinite(depth)
    ground = float(depth[finite].max()) + 0.1 if finite.any() else 1.0
    d = np.where(finite, depth, ground).astype(np.float32)
    closed = np.zeros_like(d)
    for radius in HOLLOW_RADII:
        for angle in np.arange(4) * np.pi / 4 + radius * 40:
            dy = round(radius / metres * np.sin(angle))
            dx = round(radius / metres * np.cos(angle))
            if not (dy or dx):
                continue
            one, two = _shifted(d, dy, dx), _shifted(d, -dy, -dx)
            limit = 1.6 * radius
            # Whatever is far in front is another object, so its effect is bounded.
            sum_ = np.clip(d - one, -limit, limit) + np.clip(d - two, -limit, limit)
            closed += np.clip(sum_ / (2 * radius), 0, 1)
    return np.exp(-0.36 * closed)


@functools.lru_cache(maxsize=1)
def _disc() -> Array:
    """Return (16, 2) points spread evenly over the unit disc."""
    n = np.arange(16) + 0.5
    angle = n * np.pi * (3 - np.sqrt(5))
    return np.sqrt(n / 16)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def shadow(points: Array, normals: Array, map_: ShadowMap, softness: float) -> Array:
    """Return the share of the key light, 0..1, that reaches (N, 3) points."""
    side = len(map_.depth)
    offset = points + 0.0025 * normals - map_.centre.astype(np.float32)
    away = -(offset @ map_.toward.astype(np.float32)) - 0.0015
    column = (offset @ map_.right.astype(np.float32) / map_.reach + 1) * side / 2
    row = (1 - offset @ map_.up.astype(np.float32) / map_.reach) * side / 2
    lit = np.zeros(len(points), np.float32)
    spread = softness / map_.reach * side / 2
    for dx, dy in _disc():
        c = np.clip(column + spread * dx, 0, side - 1).astype(np.int32)
        r = np.clip(row + spread * dy, 0, side - 1).astype(np.int32)
        lit += map_.depth[r, c] > away
    return lit / len(_disc())


def _scatter(light: Array, skin: Array, metres: float) -> Array:
    """Scatter (H, W, 3) light within the skin, an (H, W) mask in 0..1."""
    from scipy.ndimage import gaussian_filter

    out = np.empty_like(light)
    for channel, radius in enumerate(SCATTER):
        sigma = radius / metres
        weight = gaussian_filter(skin, sigma, truncate=2.0)
        spread = gaussian_filter(light[..., channel] * skin, sigma, truncate=2.0)
        out[..., channel] = spread / np.maximum(weight, 1e-4)
    # Some light leaves where it entered, so fine relief stays visible.
    return 0.75 * out + 0.25 * light


def surroundings(background: Array) -> tuple[Array, Array, Array]:
    """Return the mean linear light of a picture and its change to the right and to the top."""
    light = linear(background[::8, ::8])
    height, width = light.shape[:2]
    mean = light.mean((0, 1))
    across = light[:, width // 2 :].mean((0, 1)) - light[:, : width // 2].mean((0, 1))
    upward = light[: height // 2].mean((0, 1)) - light[height // 2 :].mean((0, 1))
    return mean, across, upward


def shade(maps: Maps, camera: Camera, light: Light, shadows: ShadowMap, background: Array) -> Array:
    """Return the (H, W, 3) linear light of the pixels, 0 in the background.

    Args:
        maps: Maps of what the camera sees.
        camera: Camera of the picture.
        light: Lamps.
        shadows: Shadow map of the key light.
        background: (H, W, 3) uint8 picture behind, which colours the ambient light.
    """
    from scipy.ndimage import gaussian_filter

    seen = maps.cover
    out = np.zeros((*seen.shape, 3), np.float32)
    if not seen.any():
        return out
    middle = float(np.median(maps.depth[seen]))
    metres = 2 * middle * np.tan(np.radians(camera.angle / 2)) / len(seen)
    open_ = gaussian_filter(hollows(maps.depth, metres), 0.0010 / metres)[seen]
    # From here on, arrays hold the N visible pixels only.
    n, material = maps.normal[seen], maps.material[seen]
    points = positions(maps.depth, camera)[seen]
    view = unit(camera.position.astype(np.float32) - points)
    # Back faces that the camera sees (strands, the inside of a sleeve) are lit like front faces.
    n = np.where((dot(n, view) < -0.05)[:, None], -n, n)
    skin, hair, eye = material <= SKIN_MAX, material == HAIR, material == EYE

    lit = np.ones(seen.shape, np.float32)
    lit[seen] = shadow(points, n, shadows, light.softness)
    lit = gaussian_filter(lit, 0.0016 / metres)[seen]
    # Eyeballs and teeth are translucent and collect light from all directions.
    clear = eye | (material == WET)
    open_ = np.where(clear, 0.55 + 0.45 * open_, open_)
    lit = np.where(clear, 0.45 + 0.55 * lit, lit)

    mean, across, upward = surroundings(background)
    level = light.ambient / max(float(mean.mean()), 0.12)
    mean, across, upward = (0.55 * c + 0.45 * c.mean() for c in (mean, across, upward))
    around = (
        mean
        + 0.5 * (n @ camera.right.astype(np.float32))[:, None] * across
        + 0.5 * (n @ camera.up.astype(np.float32))[:, None] * upward
    )
    dome = (level * (0.75 + 0.25 * n[:, 2]) * open_**1.3)[:, None].astype(np.float32)
    diffuse = np.clip(around, 0, None) * dome

    wrap = np.full((len(n), 3), 0.12, np.float32)
    wrap[skin] = SKIN_WRAP
    wrap[hair] = 0.35
    for direction, color, amount, reach in (
        (light.key, light.key_color, lit * (0.45 + 0.55 * open_), wrap),
        (light.fill, light.fill_color, open_, wrap + 0.3),
        (light.rim, light.rim_color, 0.3 + 0.7 * open_, 0.5 * wrap),
    ):
        facing = (n @ direction.astype(np.float32))[:, None]
        fall = np.clip((facing + reach) / (1 + reach), 0, None)
        diffuse += fall * (amount[:, None] * color.astype(np.float32))

    if skin.any():
        whole, inside = np.zeros_like(out), np.zeros(seen.shape, np.float32)
        whole[seen], inside[seen] = diffuse, skin
        scattered = _scatter(whole, inside, metres)[seen]
        # In hollows, light bounces between skin and takes on its colour.
        closed = 1 + (1 - open_)[:, None] * np.array([0.30, 0.02, -0.08], np.float32)
        diffuse = np.where(skin[:, None], scattered * closed, diffuse)
    color = linear(maps.color[seen])
    out[seen] = color * diffuse + _shine(material, color, n, view, light, lit, open_)
    return out


def _shine(
    material: Array, color: Array, n: Array, view: Array, light: Light, lit: Array, open_: Array
) -> Array:
    """Return (N, 3) reflections: the sheen of skin and hair, wet eyes, lips and teeth."""
    gloss = np.where(material <= SKIN_MAX, material / np.float32(SKIN_MAX), 0).astype(np.float32)
    for code, value in ((EYE, 1.0), (WET, 0.55), (CLOTH, 0.04), (FRAME, 0.8)):
        gloss[material == code] = value
    eye, hair = material == EYE, material == HAIR
    facing = np.clip(dot(n, view), 0, 1)
    edge = 0.35 * gloss * (1 - facing) ** 5
    shine = np.zeros_like(n)
    if hair.any():
        # Strands hang down the surface; their sheen lies across them and shifts between strands.
        down = np.array([0.0, 0.12, -1.0], np.float32)
        nh, tone = n[hair], color[hair]
        strand = unit(down - (nh @ down)[:, None] * nh)
        bright = tone.mean(-1)
        shift = 0.5 * (bright / max(float(np.median(bright)), 1e-3) - 1)
        strand = unit(strand + np.clip(shift, -0.3, 0.3)[:, None] * nh)
    for direction, lamp_color, amount in (
        (light.key, light.key_color, lit * open_),
        (light.fill, light.fill_color, open_),
        (light.rim, light.rim_color, open_),
    ):
        direction, lamp_color = direction.astype(np.float32), lamp_color.astype(np.float32)
        half = unit(view + direction)
        c = np.clip(dot(n, half), 0, 1)
        lamp = np.clip(6 * (n @ direction) + 0.6, 0, 1)
        c8 = ((c * c) ** 2) ** 2
        c40 = ((c8 * c8) ** 2) * c8
        s = gloss * (0.10 * c8 + 0.34 * gloss * c40) + edge * c8
        s[eye] = 1.5 * ((c40[eye] ** 2) ** 2) ** 2 + 0.05 * c40[eye]
        s[hair] = 0
        shine += (s * amount * lamp)[:, None] * lamp_color
        if hair.any():
            along = dot(strand, half[hair])
            sheen = np.clip(1 - along * along, 0, 1) ** 4
            glow = 0.016 * sheen[:, None] + (0.55 * sheen**6)[:, None] * (0.06 + tone)
            reached = amount[hair] * np.clip(2 * (nh @ direction) + 0.3, 0, 1)
            shine[hair] += glow * reached[:, None] * lamp_color
    return shine
