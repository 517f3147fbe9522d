"""Who a person is: sampled from integers alone.

`sample_person(seed, index)` fixes everything that belongs to the identity (shape of the face,
skin, eyes, hair, brows, beard, glasses) and depends on nothing but its arguments, so any picture
of the data set can be made again by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fusionlib.people.hairstyle import Hair, sample_hair
from fusionlib.people.sampling import Color, choose, jitter_color, stream

EYE_COLORS: dict[str, Color] = {
    "brown": (0.30, 0.16, 0.07),
    "dark": (0.13, 0.08, 0.05),
    "blue": (0.27, 0.48, 0.72),
    "green": (0.30, 0.48, 0.28),
    "gray": (0.48, 0.55, 0.58),
}
# Human skin runs from very light to very dark along nearly one line in colour space.
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
# Parameters (the part before "-incr" and the like) that shape the face, with their spread.
# The two sides of the face share a value, up to a small asymmetry.
SHAPE_SPREAD: dict[str, float] = {
    "cheek-trans-up": 0.5,
    "cheek-volume-incr": 0.55,
    "cheek-inner-incr": 0.4,
    "cheek-bones-incr": 0.6,
    "chin-jaw-drop-incr": 0.45,
    "chin-height-incr": 0.5,
    "chin-prominent-incr": 0.5,
    "chin-bones-incr": 0.6,
    "chin-width-incr": 0.6,
    "chin-cleft-incr": 0.4,
    "chin-prognathism-incr": 0.4,
    "ear-lobe-incr": 0.5,
    "ear-shape-round": 0.5,
    "ear-rot-forward": 0.4,
    "ear-trans-up": 0.4,
    "ear-scale-vert-incr": 0.5,
    "ear-flap-incr": 0.5,
    "ear-scale-incr": 0.5,
    "ear-wing-incr": 0.6,
    "eyebrows-angle-up": 0.5,
    "eyebrows-trans-up": 0.5,
    "eyebrows-trans-forward": 0.5,
    "eye-corner1-up": 0.5,
    "eye-height1-incr": 0.35,
    "eye-scale-incr": 0.5,
    "eye-push1-out": 0.3,
    "eye-eyefold-up": 0.4,
    "eye-height3-incr": 0.35,
    "eye-height2-incr": 0.35,
    "eye-bag-incr": 0.4,
    "eye-push2-out": 0.3,
    "eye-trans-up": 0.4,
    "eye-bag-height-incr": 0.3,
    "eye-epicanthus-out": 0.4,
    "eye-eyefold-angle-up": 0.4,
    "eye-bag-out": 0.4,
    "eye-corner2-up": 0.5,
    "eye-trans-out": 0.45,
    "forehead-temple-incr": 0.5,
    "forehead-trans-forward": 0.4,
    "forehead-scale-vert-incr": 0.35,
    "forehead-nubian-incr": 0.3,
    "head-scale-vert-incr": 0.3,
    "head-fat-incr": 0.5,
    "head-back-scale-depth-incr": 0.3,
    "head-scale-depth-incr": 0.35,
    "head-scale-horiz-incr": 0.45,
    "mouth-lowerlip-height-incr": 0.5,
    "mouth-scale-horiz-incr": 0.55,
    "mouth-cupidsbow-incr": 0.5,
    "mouth-laugh-lines-out": 0.4,
    "mouth-scale-depth-incr": 0.3,
    "mouth-lowerlip-volume-incr": 0.55,
    "mouth-angles-up": 0.3,
    "mouth-upperlip-ext-up": 0.3,
    "mouth-lowerlip-width-incr": 0.4,
    "mouth-trans-forward": 0.35,
    "mouth-upperlip-width-incr": 0.4,
    "mouth-scale-vert-incr": 0.45,
    "mouth-dimples-out": 0.4,
    "mouth-upperlip-height-incr": 0.5,
    "mouth-upperlip-volume-incr": 0.55,
    "mouth-cupidsbow-width-incr": 0.4,
    "mouth-upperlip-middle-up": 0.3,
    "mouth-trans-up": 0.45,
    "mouth-philtrum-volume-incr": 0.4,
    "neck-scale-depth-incr": 0.3,
    "neck-double-incr": 0.3,
    "neck-scale-horiz-incr": 0.4,
    "nose-nostrils-angle-up": 0.45,
    "nose-flaring-incr": 0.5,
    "nose-curve-convex": 0.55,
    "nose-scale-depth-incr": 0.5,
    "nose-scale-vert-incr": 0.5,
    "nose-point-width-incr": 0.55,
    "nose-scale-horiz-incr": 0.5,
    "nose-width1-incr": 0.5,
    "nose-trans-forward": 0.35,
    "nose-trans-up": 0.4,
    "nose-hump-incr": 0.5,
    "nose-nostrils-width-incr": 0.5,
    "nose-greek-incr": 0.45,
    "nose-point-up": 0.5,
    "nose-width2-incr": 0.5,
    "nose-width3-incr": 0.5,
    "nose-septumangle-incr": 0.4,
    "nose-base-up": 0.4,
    "nose-compression-uncompress": 0.3,
    "nose-volume-incr": 0.5,
}
# What tells the genders apart beyond the phenotype: a shift of the mean.
FEMININE_SHIFT = {
    "chin-width-incr": -0.3,
    "chin-bones-incr": -0.3,
    "chin-prominent-incr": -0.2,
    "nose-scale-horiz-incr": -0.25,
    "nose-volume-incr": -0.25,
    "nose-hump-incr": -0.2,
    "eye-scale-incr": 0.3,
    "mouth-upperlip-volume-incr": 0.15,
    "mouth-lowerlip-volume-incr": 0.15,
    "head-fat-incr": -0.15,
    "neck-scale-horiz-incr": -0.3,
    "eyebrows-trans-up": 0.25,
}
_SIDED = ("cheek-", "ear-", "eye-")


@dataclass(frozen=True)
class Brows:
    """Eyebrows: half thickness and lengths in metres, angle as a slope, darkness in [0, 1]."""

    thickness: float
    height: float
    length: float
    slope: float
    arch: float
    strength: float


@dataclass(frozen=True)
class Person:
    """One synthetic identity. Lengths in metres, colours in linear 0..1 sRGB."""

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
    moles: tuple[tuple[float, float], ...] = field(default=())

    @property
    def age_word(self) -> str:
        """`young` below 35, `old` from 60 on, `middle-aged` between."""
        return "young" if self.age < 35 else "old" if self.age >= 60 else "middle-aged"


def skin_color(tone: float) -> Color:
    """Skin colour for a tone from 0 (very light) to 1 (very dark)."""
    r, g, b = (float(np.interp(tone, _SKIN_STEPS, _SKIN_RGB[:, i])) for i in range(3))
    return r, g, b


def _sample_shape(rng: np.random.Generator, gender: str) -> dict[str, float]:
    shape: dict[str, float] = {}
    for label, spread in SHAPE_SPREAD.items():
        mean = FEMININE_SHIFT.get(label, 0.0) if gender == "woman" else 0.0
        value = float(np.clip(rng.normal(mean, spread), -1.0, 1.0))
        if label.startswith(_SIDED):
            for side in "lr":
                shape[f"{side}-{label}"] = float(np.clip(value + rng.normal(0.0, 0.05), -1.0, 1.0))
        else:
            shape[label] = value
    return shape


def sample_person(seed: int, index: int) -> Person:
    """Sample the identity number `index` of the data set with this `seed`.

    Args:
        seed: Seed of the data set, >= 0.
        index: Number of the person, >= 0. The same pair always gives the same person.

    Returns:
        The person: about 100 face-shape parameters in [-1, 1] and everything that stays the
        same in all their pictures.
    """
    rng = stream("person", seed, index)
    gender = "woman" if rng.random() < 0.5 else "man"
    age = int(rng.integers(18, 81))
    ancestry = rng.dirichlet([0.45, 0.45, 0.45])  # african, asian, caucasian
    tone = float(np.clip(ancestry @ np.array([0.82, 0.34, 0.16]) + rng.normal(0.0, 0.09), 0.0, 1.0))
    phenotypes = {
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
    shape = _sample_shape(rng, gender)
    shape["head-age-incr"] = float(np.interp(age, [18, 50, 80], [-0.2, 0.2, 0.9]))
    shape["neck-double-incr"] += 0.4 * (phenotypes["weight"] - 0.5)
    skin = jitter_color(skin_color(tone), rng, 0.035)
    red = float(rng.uniform(0.25, 0.8)) if gender == "woman" else float(rng.uniform(0.1, 0.35))
    lip = np.asarray(skin) * np.array([0.86, 0.62, 0.62])
    lips = (1 - red) * lip + red * np.array([0.66, 0.18, 0.22]) * (0.55 + 0.45 * skin[0])
    eye_name = choose(
        rng,
        {
            "brown": 0.45,
            "dark": 0.15 + 0.6 * tone,
            "blue": 0.5 * max(0.0, 1 - 2.6 * tone),
            "green": 0.3 * max(0.0, 1 - 2.2 * tone),
            "gray": 0.2 * max(0.0, 1 - 2.2 * tone),
        },
    )
    hair = sample_hair(stream("hair style", seed, index), gender, age, ancestry, tone)
    beards = {"none": 0.5, "stubble": 0.13, "moustache": 0.1, "goatee": 0.1, "full": 0.17}
    beard = choose(rng, beards) if gender == "man" else "none"
    glasses = choose(rng, {"none": 0.74, "round": 0.13, "square": 0.13})
    frames: list[Color] = [
        (0.05, 0.05, 0.06),
        (0.35, 0.18, 0.08),
        (0.55, 0.1, 0.1),
        (0.7, 0.6, 0.3),
    ]
    brow_scale = 1.0 if gender == "man" else 0.75
    moles = tuple(
        (float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.09, 0.03)))
        for _ in range(int(rng.choice([0, 1, 2], p=[0.6, 0.28, 0.12])))
    )
    return Person(
        index=index,
        seed=seed,
        gender=gender,
        age=age,
        phenotypes=phenotypes,
        shape=shape,
        skin=skin,
        lips=(float(lips[0]), float(lips[1]), float(lips[2])),
        eye_name=eye_name,
        eye=jitter_color(EYE_COLORS[eye_name], rng, 0.12),
        hair=hair,
        brows=Brows(
            thickness=float(rng.uniform(0.0026, 0.0052)) * brow_scale,
            height=float(rng.normal(0.0, 0.0012)),
            length=float(rng.uniform(0.9, 1.1)),
            slope=float(rng.normal(-0.08, 0.09)),
            arch=float(rng.uniform(0.1, 0.9)),
            strength=float(rng.uniform(0.7, 1.0)),
        ),
        beard=beard,
        glasses=glasses,
        glasses_color=frames[int(rng.integers(len(frames)))],
        freckles=float(rng.uniform(0.3, 1.0)) if tone < 0.3 and rng.random() < 0.2 else 0.0,
        moles=moles,
    )
