"""What a person looks like, sampled from integers alone.

`sample_person(seed, index)` fixes everything that is the same in all pictures of a person: the
shape of the face, skin, eyes, hair, brows, beard and glasses. It depends on nothing but its
arguments, so any picture of the data set can be made again by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from companion.people.colors import Color, choose, jitter_color, stream
from companion.people.hairstyle import Hair, sample_hair

EYE_COLORS: dict[str, Color] = {
    "brown": (0.30, 0.16, 0.07),
    "dark": (0.13, 0.08, 0.05),
    "blue": (0.27, 0.48, 0.72),
    "green": (0.30, 0.48, 0.28),
    "gray": (0.48, 0.55, 0.58),
}
# Human skin colours, from very light to very dark, lie close to one line in colour space.
_SKIN_STEPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_SKIN_RGB = np.array(
    [
        (0.97, 0.82, 0.74),
        (0.90, 0.71, 0.58),
        (0.76, 0.55, 0.41),
        (0.54, 0.36, 0.25),
        (0.31, 0.20, 0.145),
    ]
)
# Standard deviations of the parameters of `anny` that shape the face. Both sides of the face share
# a value, up to a small asymmetry. In `anny`, 1 is the limit of the model, not of human faces:
# parameters that soon look like a caricature (turned-up noses, long chins, tiny mouths) vary
# little, and those that distinguish faces and stay natural vary more.
SHAPE_SPREAD: dict[str, float] = {
    "cheek-trans-up": 0.50,
    "cheek-volume-incr": 0.62,
    "cheek-inner-incr": 0.45,
    "cheek-bones-incr": 0.68,
    "chin-jaw-drop-incr": 0.22,
    "chin-height-incr": 0.42,
    "chin-prominent-incr": 0.42,
    "chin-bones-incr": 0.58,
    "chin-width-incr": 0.62,
    "chin-cleft-incr": 0.35,
    "chin-prognathism-incr": 0.20,
    "ear-lobe-incr": 0.45,
    "ear-shape-round": 0.45,
    "ear-rot-forward": 0.25,
    "ear-trans-up": 0.30,
    "ear-scale-vert-incr": 0.35,
    "ear-flap-incr": 0.35,
    "ear-scale-incr": 0.30,
    "ear-wing-incr": 0.35,
    "eyebrows-angle-up": 0.55,
    "eyebrows-trans-up": 0.60,
    "eyebrows-trans-forward": 0.60,
    "eye-corner1-up": 0.55,
    "eye-height1-incr": 0.32,
    "eye-scale-incr": 0.50,
    "eye-push1-out": 0.28,
    "eye-eyefold-up": 0.28,
    "eye-height3-incr": 0.32,
    "eye-height2-incr": 0.32,
    "eye-bag-incr": 0.45,
    "eye-push2-out": 0.28,
    "eye-trans-up": 0.48,
    "eye-bag-height-incr": 0.28,
    "eye-epicanthus-out": 0.50,
    "eye-eyefold-angle-up": 0.30,
    "eye-bag-out": 0.35,
    "eye-corner2-up": 0.60,
    "eye-trans-out": 0.52,
    "forehead-temple-incr": 0.55,
    "forehead-trans-forward": 0.45,
    "forehead-scale-vert-incr": 0.40,
    "forehead-nubian-incr": 0.38,
    "head-scale-vert-incr": 0.36,
    "head-fat-incr": 0.55,
    "head-back-scale-depth-incr": 0.25,
    "head-scale-depth-incr": 0.30,
    "head-scale-horiz-incr": 0.52,
    "mouth-lowerlip-height-incr": 0.42,
    "mouth-scale-horiz-incr": 0.34,
    "mouth-cupidsbow-incr": 0.42,
    "mouth-laugh-lines-out": 0.35,
    "mouth-scale-depth-incr": 0.25,
    "mouth-lowerlip-volume-incr": 0.48,
    "mouth-angles-up": 0.22,
    "mouth-upperlip-ext-up": 0.22,
    "mouth-lowerlip-width-incr": 0.35,
    "mouth-trans-forward": 0.28,
    "mouth-upperlip-width-incr": 0.35,
    "mouth-scale-vert-incr": 0.35,
    "mouth-dimples-out": 0.32,
    "mouth-upperlip-height-incr": 0.42,
    "mouth-upperlip-volume-incr": 0.48,
    "mouth-cupidsbow-width-incr": 0.35,
    "mouth-upperlip-middle-up": 0.22,
    "mouth-trans-up": 0.48,
    "mouth-philtrum-volume-incr": 0.35,
    "neck-scale-depth-incr": 0.28,
    "neck-double-incr": 0.28,
    "neck-scale-horiz-incr": 0.38,
    "nose-nostrils-angle-up": 0.20,
    "nose-flaring-incr": 0.48,
    "nose-curve-convex": 0.48,
    "nose-scale-depth-incr": 0.36,
    "nose-scale-vert-incr": 0.30,
    "nose-point-width-incr": 0.38,
    "nose-scale-horiz-incr": 0.52,
    "nose-width1-incr": 0.52,
    "nose-trans-forward": 0.25,
    "nose-trans-up": 0.36,
    "nose-hump-incr": 0.50,
    "nose-nostrils-width-incr": 0.42,
    "nose-greek-incr": 0.42,
    "nose-point-up": 0.20,
    "nose-width2-incr": 0.52,
    "nose-width3-incr": 0.52,
    "nose-septumangle-incr": 0.20,
    "nose-base-up": 0.18,
    "nose-compression-uncompress": 0.22,
    "nose-volume-incr": 0.34,
}
# Several parameters of one part of the face add up, so the norm of their standard scores is at most
# this times the square root of their number.
_PART_BOUND = 1.12
# Means that differ from zero, so that eyes look less tired and mouths less stern.
SHAPE_MEAN = {
    "eye-scale-incr": 0.20,
    "eye-height1-incr": 0.15,
    "eye-height2-incr": 0.30,
    "eye-height3-incr": 0.15,
    "mouth-angles-up": 0.25,
    "mouth-scale-horiz-incr": 0.12,
}
# Shifts of the mean for women, beyond what the phenotype `gender` does.
FEMININE_SHIFT = {
    "chin-width-incr": -0.3,
    "chin-bones-incr": -0.3,
    "chin-prominent-incr": -0.2,
    "nose-scale-horiz-incr": -0.25,
    "nose-volume-incr": -0.25,
    "nose-hump-incr": -0.2,
    "eye-scale-incr": 0.25,
    "mouth-upperlip-volume-incr": 0.15,
    "mouth-lowerlip-volume-incr": 0.15,
    "head-fat-incr": -0.15,
    "neck-scale-horiz-incr": -0.3,
    "eyebrows-trans-up": 0.25,
}
_SIDED = ("cheek-", "ear-", "eye-")
# Weights of the kinds of beard (among men) and of glasses, and colours of frames.
_BEARDS = {
    "none": 0.48,
    "stubble": 0.13,
    "short": 0.13,
    "full": 0.10,
    "goatee": 0.08,
    "moustache": 0.08,
}
_GLASSES = {
    "none": 0.74,
    "round": 0.07,
    "square": 0.08,
    "rimless": 0.04,
    "cat-eye": 0.05,  # worn by women only
    "aviator": 0.03,
}
_FRAMES: tuple[Color, ...] = (
    (0.05, 0.05, 0.06),
    (0.35, 0.18, 0.08),
    (0.55, 0.1, 0.1),
    (0.7, 0.6, 0.3),
)


@dataclass(frozen=True)
class Brows:
    """Shape of a person's eyebrows.

    Attributes:
        thickness: Half thickness in metres.
        height: Offset upwards in metres.
        length: Factor on the usual length.
        slope: Slope along the brow, positive upwards to the temple.
        arch: Strength of the arch in 0..1.
        strength: Density in 0..1.
    """

    thickness: float
    height: float
    length: float
    slope: float
    arch: float
    strength: float


@dataclass(frozen=True)
class Appearance:
    """What one synthetic person looks like, the same in all their pictures.

    Attributes:
        index: Number of the person in the data set.
        seed: Seed of the data set.
        gender: `woman` or `man`.
        age: Age in years.
        phenotypes: Parameters of the whole body in `anny`, 0..1.
        shape: Parameters of the face's shape in `anny`, -1..1.
        skin: Colour of the skin, 0..1.
        lips: Colour of the lips.
        eye_name: Colour of the eyes in words, one of `EYE_COLORS`.
        eye: Colour of the eyes.
        hair: Hair of the head.
        brows: Eyebrows.
        beard: Kind of beard, or `none`.
        glasses: Kind of glasses, or `none`.
        glasses_color: Colour of the frame.
        freckles: Density of freckles in 0..1.
        blush: Redness of the cheeks in 0..1.
        moles: Places of moles, metres to the person's left and above the eyes.
    """

    index: int
    seed: int
    gender: str
    age: int
    phenotypes: dict[str, float]
    shape: dict[str, float]
    skin: Color
    lips: Color
    eye_name: str
    eye: Color
    hair: Hair
    brows: Brows
    beard: str
    glasses: str
    glasses_color: Color
    freckles: float
    blush: float
    moles: tuple[tuple[float, float], ...] = field(default=())

    @property
    def age_word(self) -> str:
        """Return `young` (below 35), `middle-aged` or `old` (from 60)."""
        return "young" if self.age < 35 else "old" if self.age >= 60 else "middle-aged"


def skin_color(tone: float) -> Color:
    """Return the skin colour of a tone from 0 (very light) to 1 (very dark)."""
    r, g, b = (float(np.interp(tone, _SKIN_STEPS, _SKIN_RGB[:, i])) for i in range(3))
    return r, g, b


def _sample_shape(rng: np.random.Generator, gender: str) -> dict[str, float]:
    labels = list(SHAPE_SPREAD)
    z = np.clip(rng.normal(0.0, 1.0, len(labels)), -2.0, 2.0)
    parts = np.array([label.split("-")[0] for label in labels])
    for part in np.unique(parts):
        inside = parts == part
        bound = _PART_BOUND * np.sqrt(inside.sum())
        z[inside] *= min(1.0, bound / np.linalg.norm(z[inside]))
    shape: dict[str, float] = {}
    for label, spread, score in zip(labels, SHAPE_SPREAD.values(), z, strict=True):
        mean = SHAPE_MEAN.get(label, 0.0)
        mean += FEMININE_SHIFT.get(label, 0.0) if gender == "woman" else 0.0
        value = float(np.clip(mean + spread * score, -1.0, 1.0))
        if label.startswith(_SIDED):
            for side in "lr":
                shape[f"{side}-{label}"] = float(np.clip(value + rng.normal(0.0, 0.05), -1.0, 1.0))
        else:
            shape[label] = value
    return shape


def sample_person(seed: int, index: int) -> Appearance:
    """Sample the appearance of one person in a data set.

    Args:
        seed: Seed of the data set, >= 0.
        index: Number of the person, >= 0. The same pair always gives the same appearance.
    """
    rng = stream("person", seed, index)
    gender = "woman" if rng.random() < 0.5 else "man"
    age = int(rng.integers(18, 81))
    ancestry = rng.dirichlet([0.45, 0.45, 0.45])  # african, asian, caucasian
    tone = float(np.clip(ancestry @ np.array([0.82, 0.34, 0.16]) + rng.normal(0.0, 0.09), 0.0, 1.0))
    phenotypes = _sample_phenotypes(rng, gender, age, ancestry)
    shape = _sample_shape(rng, gender)
    shape["head-age-incr"] = float(np.interp(age, [18, 50, 80], [-0.2, 0.2, 0.9]))
    shape["neck-double-incr"] += 0.4 * (phenotypes["weight"] - 0.5)
    skin = jitter_color(skin_color(tone), rng, 0.035)
    lips = _sample_lips(rng, gender, skin)
    eye_colors = {
        "brown": 0.45,
        "dark": 0.15 + 0.6 * tone,
        "blue": 0.5 * max(0.0, 1 - 2.6 * tone),
        "green": 0.3 * max(0.0, 1 - 2.2 * tone),
        "gray": 0.2 * max(0.0, 1 - 2.2 * tone),
    }
    eye_name = choose(rng, eye_colors)
    beard = choose(rng, _BEARDS) if gender == "man" else "none"
    glasses = choose(rng, _GLASSES if gender == "woman" else _GLASSES | {"cat-eye": 0.0})
    moles = tuple(
        (float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.09, 0.03)))
        for _ in range(int(rng.choice([0, 1, 2], p=[0.6, 0.28, 0.12])))
    )
    # The random values below are drawn in the order in which they are written.
    return Appearance(
        index=index,
        seed=seed,
        gender=gender,
        age=age,
        hair=sample_hair(stream("hair style", seed, index), gender, age, ancestry, tone),
        phenotypes=phenotypes,
        shape=shape,
        skin=skin,
        lips=lips,
        eye_name=eye_name,
        eye=jitter_color(EYE_COLORS[eye_name], rng, 0.12),
        brows=_sample_brows(rng, gender),
        beard=beard,
        glasses=glasses,
        glasses_color=_FRAMES[int(rng.integers(len(_FRAMES)))],
        freckles=float(rng.uniform(0.3, 1.0)) if tone < 0.3 and rng.random() < 0.2 else 0.0,
        blush=float(rng.uniform(0.35, 1.0)),
        moles=moles,
    )


def _sample_phenotypes(
    rng: np.random.Generator, gender: str, age: int, ancestry: np.ndarray
) -> dict[str, float]:
    return {
        "gender": float(np.clip((0.88 if gender == "woman" else 0.12) + rng.normal(0, 0.08), 0, 1)),
        "age": float(np.interp(age, [18, 25, 80], [0.65, 0.68, 1.0])),
        "muscle": float(rng.uniform(0.3, 0.75)),
        "weight": float(np.clip(rng.normal(0.5, 0.22), 0.08, 0.98)),
        "height": 0.5,
        "proportions": float(rng.uniform(0.3, 0.9)),
        "african": float(ancestry[0]),
        "asian": float(ancestry[1]),
        "caucasian": float(ancestry[2]),
    }


def _sample_lips(rng: np.random.Generator, gender: str, skin: Color) -> Color:
    red = float(rng.uniform(0.05, 0.35)) if gender == "woman" else float(rng.uniform(0.0, 0.12))
    if gender == "woman" and rng.random() < 0.25:  # lipstick
        red = float(rng.uniform(0.5, 0.85))
    lip = np.asarray(skin) * np.array([0.88, 0.64, 0.63])
    lips = (1 - red) * lip + red * np.array([0.68, 0.20, 0.24]) * (0.5 + 0.5 * skin[0])
    return float(lips[0]), float(lips[1]), float(lips[2])


def _sample_brows(rng: np.random.Generator, gender: str) -> Brows:
    scale = 1.0 if gender == "man" else 0.75
    return Brows(
        thickness=float(rng.uniform(0.0026, 0.0048)) * scale,
        height=float(rng.normal(0.0, 0.0016)),
        length=float(rng.uniform(0.9, 1.1)),
        slope=float(rng.normal(-0.05, 0.07)),
        arch=float(rng.uniform(0.1, 0.9)),
        strength=float(rng.uniform(0.7, 1.0)),
    )
