"""Roles, and the clothes and headwear sampled for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from companion.people.colors import Color, choose, jitter_color

ROLES = (
    "person",
    "astronaut",
    "doctor",
    "chef",
    "royal",
    "farmer",
    "builder",
    "firefighter",
    "sailor",
)
"""Roles that people play; `royal` is a king or a queen, and a `person` wears everyday clothes."""

CLOTHES = (
    "t-shirt",
    "shirt",
    "sweater",
    "turtleneck",
    "hoodie",
    "tank top",
    "suit",
    "winter jacket",
    "space suit",
    "white coat",
    "chef jacket",
    "royal robe",
    "overalls",
    "safety vest",
    "fire coat",
    "sailor suit",
)
HEADWEAR = (
    "none",
    "beanie",
    "straw hat",
    "brimmed hat",
    "cap",
    "headscarf",
    "hard hat",
    "crown",
    "helmet",
    "chef hat",
)

_DYES: dict[str, Color] = {
    "black": (0.09, 0.09, 0.11),
    "white": (0.92, 0.92, 0.90),
    "blue": (0.16, 0.30, 0.62),
    "navy": (0.09, 0.13, 0.28),
    "red": (0.68, 0.12, 0.14),
    "green": (0.15, 0.42, 0.25),
    "yellow": (0.88, 0.68, 0.18),
    "purple": (0.42, 0.24, 0.52),
    "gray": (0.48, 0.49, 0.52),
    "pink": (0.88, 0.52, 0.62),
    "orange": (0.90, 0.45, 0.12),
    "brown": (0.38, 0.25, 0.16),
}


@dataclass(frozen=True)
class Clothes:
    """Clothes of a person in one picture.

    Attributes:
        kind: One of `CLOTHES`.
        pattern: Pattern of the cloth, `plain` for none.
        color_name: Colour in words, for captions.
        color: Colour in 0..1.
        accent: Colour of the pattern and of details, in 0..1.
        seed: Seed of the folds.
    """

    kind: str
    pattern: str
    color_name: str
    color: Color
    accent: Color
    seed: int


@dataclass(frozen=True)
class Headwear:
    """Headwear of a person in one picture: one of `HEADWEAR`, and its colour in 0..1."""

    kind: str
    color: Color


_COSTUME: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "astronaut": ("space suit", ("white", "white", "orange"), ("red", "blue", "gray")),
    "doctor": ("white coat", ("white",), ("blue", "green", "navy")),
    "chef": ("chef jacket", ("white",), ("red", "navy", "black")),
    "royal": ("royal robe", ("red", "red", "purple", "blue"), ("white",)),
    "farmer": ("overalls", ("red", "blue", "green"), ("white",)),
    "builder": ("safety vest", ("orange", "yellow"), ("navy", "gray", "black")),
    "firefighter": ("fire coat", ("navy", "black", "brown"), ("yellow",)),
    "sailor": ("sailor suit", ("white",), ("red", "navy")),
}
_ROLE_HEADWEAR: dict[str, tuple[str, float, tuple[str, ...]]] = {
    "astronaut": ("helmet", 0.6, ("white",)),
    "chef": ("chef hat", 0.85, ("white",)),
    "royal": ("crown", 0.9, ("yellow",)),
    "farmer": ("straw hat", 0.85, ("yellow",)),
    "builder": ("hard hat", 0.95, ("yellow", "white", "orange", "blue")),
    "firefighter": ("hard hat", 0.9, ("red", "black")),
    "sailor": ("cap", 0.7, ("white", "navy")),
}
_STRAW: Color = (0.82, 0.68, 0.42)
_GOLD: Color = (0.90, 0.70, 0.24)


def _dye(
    rng: np.random.Generator, names: tuple[str, ...], amount: float = 0.06
) -> tuple[str, Color]:
    name = names[int(rng.integers(len(names)))]
    return name, jitter_color(_DYES[name], rng, amount)


def sample_clothes(rng: np.random.Generator, role: str, scene: str) -> Clothes:
    """Sample clothes for a role; everyday clothes suit the scene, such as jackets in the snow."""
    seed = int(rng.integers(2**31))
    if role in _COSTUME:
        kind, colors, accents = _COSTUME[role]
        name, color = _dye(rng, colors, 0.04)
        pattern = "checked" if role == "farmer" else "plain"
        return Clothes(kind, pattern, name, color, _dye(rng, accents, 0.04)[1], seed)
    everyday = {
        "t-shirt": 3.0,
        "shirt": 3.0,
        "sweater": 2.0,
        "turtleneck": 1.0,
        "hoodie": 1.5,
        "tank top": 1.2,
        "suit": 2.0,
        "winter jacket": 0.2,
    }
    if scene == "snow":
        everyday |= {"winter jacket": 9.0, "t-shirt": 0.1, "tank top": 0.1, "sweater": 4.0}
    elif scene in ("beach", "desert"):
        everyday |= {"t-shirt": 8.0, "suit": 0.3, "sweater": 0.2, "turtleneck": 0.1, "hoodie": 0.4}
    kind = choose(rng, everyday)
    patterns = {"plain": 1.0}
    if kind == "shirt":
        patterns |= {"checked": 0.5, "striped": 0.25}
    elif kind in ("t-shirt", "tank top"):
        patterns |= {"striped": 0.35, "dotted": 0.25}
    elif kind in ("sweater", "turtleneck"):
        patterns = {"knitted": 1.0, "striped": 0.4 * (kind == "sweater")}
    dark = ("black", "navy", "gray", "blue", "brown")
    name, color = _dye(rng, dark if kind == "suit" else tuple(_DYES))
    light = ("white",) if sum(color) < 1.6 else ("navy", "red", "black", "green")
    accents = ("red", "blue", "yellow", "purple", "green") if kind == "suit" else light
    if kind == "winter jacket":
        accents = tuple(_DYES)
    return Clothes(kind, choose(rng, patterns), name, color, _dye(rng, accents)[1], seed)


def sample_headwear(rng: np.random.Generator, role: str, scene: str) -> Headwear:
    """Sample headwear for a role and a scene; everyday clothes mostly come without."""
    draw = rng.random()
    if role in _ROLE_HEADWEAR:
        kind, share, colors = _ROLE_HEADWEAR[role]
        color = {"straw hat": _STRAW, "crown": _GOLD}.get(kind) or _dye(rng, colors, 0.04)[1]
        return Headwear(kind, color) if draw < share else Headwear("none", color)
    weights = {
        "none": 0.84,
        "cap": 0.06,
        "headscarf": 0.03,
        "beanie": 0.03,
        "straw hat": 0.02,
        "brimmed hat": 0.02,
    }
    if scene == "snow":
        weights |= {"none": 0.5, "beanie": 0.45}
    elif scene in ("beach", "farm", "desert", "garden"):
        weights |= {"none": 0.65, "straw hat": 0.18, "brimmed hat": 0.06}
    kind = choose(rng, weights if role == "person" else {"none": 1.0})
    color = _STRAW if kind == "straw hat" else _dye(rng, tuple(_DYES))[1]
    return Headwear(kind, color)
