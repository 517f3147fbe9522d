"""A person's hair in numbers and in words: style, colour, length and hairline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from companion.people.colors import Color, choose, jitter_color

Array = np.ndarray

HAIR_COLORS: dict[str, Color] = {
    "black": (0.055, 0.045, 0.045),
    "dark brown": (0.15, 0.085, 0.055),
    "brown": (0.27, 0.16, 0.095),
    "light brown": (0.45, 0.31, 0.19),
    "blond": (0.74, 0.60, 0.39),
    "strawberry blond": (0.68, 0.44, 0.26),
    "red": (0.50, 0.22, 0.11),
    "auburn": (0.34, 0.11, 0.06),
    "gray": (0.52, 0.52, 0.53),
    "white": (0.83, 0.82, 0.80),
    "blue": (0.14, 0.30, 0.62),
    "pink": (0.82, 0.38, 0.56),
    "purple": (0.38, 0.18, 0.50),
    "green": (0.16, 0.44, 0.28),
}
DYED = ("blue", "pink", "purple", "green")

# For each style: its phrase ({} is the colour), its weight among women and among men, and its mean
# curl (0 straight, 1 tight).
_STYLES: dict[str, tuple[str, float, float, float]] = {
    "bald": ("", 0.0, 6.0, 0.0),
    "horseshoe": ("receding {} hair", 0.0, 3.0, 0.0),
    "buzz": ("a {} buzz cut", 1.0, 7.0, 0.0),
    "cropped": ("very short {} hair", 2.0, 10.0, 0.0),
    "side part": ("short {} hair with a side parting", 2.0, 13.0, 0.1),
    "messy": ("short messy {} hair", 3.0, 12.0, 0.3),
    "slicked back": ("{} hair combed back", 3.0, 8.0, 0.0),
    "quiff": ("short {} hair with a quiff", 1.0, 8.0, 0.1),
    "fringe crop": ("short {} hair with a fringe", 3.0, 8.0, 0.1),
    "pixie": ("a {} pixie cut", 9.0, 0.0, 0.1),
    "short afro": ("a short {} afro", 1.5, 2.5, 1.0),
    "afro": ("a big {} afro", 2.0, 1.5, 1.0),
    "curly": ("curly {} hair", 7.0, 8.0, 0.8),
    "long curly": ("long curly {} hair", 9.0, 1.0, 0.7),
    "bob": ("a {} bob", 13.0, 0.5, 0.1),
    "shoulder": ("shoulder-length {} hair", 11.0, 4.0, 0.2),
    "long straight": ("long straight {} hair", 14.0, 2.0, 0.0),
    "long wavy": ("long wavy {} hair", 14.0, 2.0, 0.5),
    "ponytail": ("{} hair in a ponytail", 8.0, 1.5, 0.1),
    "bun": ("{} hair in a bun", 8.0, 1.5, 0.1),
    "plaits": ("{} hair in two plaits", 5.0, 0.0, 0.1),
    "braids": ("long {} braids", 2.0, 0.8, 0.0),
}
HAIR_STYLES: tuple[str, ...] = tuple(_STYLES)
LONG_STYLES = ("long curly", "bob", "shoulder", "long straight", "long wavy", "braids")
AFRO_STYLES = ("short afro", "afro")
_MAY_HAVE_FRINGE = ("bob", "shoulder", "long straight", "long wavy", "ponytail", "bun", "plaits")

# The hairline: polar angles from the crown (degrees) at longitudes from the front (0) to the nape
# (180), for hair that leaves the ears free and for hair that covers them.
_LONGITUDE = np.array([0, 15, 30, 45, 56, 66, 78, 92, 105, 122, 140, 180])
_LINE_SHORT = np.array([55, 56, 59, 66, 75, 87, 99, 91, 87, 110, 130, 134])
_LINE_LONG = np.array([55, 56, 59, 66, 74, 83, 92, 91, 92, 116, 130, 134])


@dataclass(frozen=True)
class Hair:
    """A person's hair, the same in all their pictures.

    Attributes:
        style: One of `HAIR_STYLES`.
        color_name: One of `HAIR_COLORS`.
        color: Colour of most strands, 0..1.
        length: Length within the style, from the shortest (0) to the longest (1).
        volume: Factor on the style's usual thickness, about 0.6 to 1.5.
        parting: Place of the parting, from -1 (the person's right) to 1.
        fringe: Length of a fringe, from 0 (none) to 1 (down to the brows).
        hairline: Shift of the hairline, up (negative) or down, about -4 to 2.
        curl: Curl from 0 (straight) to 1 (tight).
        gray: Share of gray strands, 0..1.
        highlights: Variation of colour between strands, 0..1.
    """

    style: str
    color_name: str
    color: Color
    length: float
    volume: float
    parting: float
    fringe: float
    hairline: float
    curl: float
    gray: float
    highlights: float

    @property
    def natural(self) -> Color:
        """Return the colour of brows and beard: brown under dyed hair, grayer with gray strands."""
        own = HAIR_COLORS["dark brown"] if self.color_name in DYED else self.color
        share = 0.0 if self.color_name in ("gray", "white") else 0.6 * self.gray
        r, g, b = (c + share * (0.55 - c) for c in own)
        return r, g, b


def hair_phrase(hair: Hair) -> str:
    """Return words such as `long wavy red hair` or `a brown bob with a fringe`; empty if bald."""
    color = hair.color_name
    if 0.25 <= hair.gray < 0.75 and color not in ("gray", "white"):
        color = "graying " + color
    text = _STYLES[hair.style][0].format(color)
    if hair.fringe and hair.style in _MAY_HAVE_FRINGE:
        text += (" and" if " in " in text else " with") + " a fringe"
    return text


def _sample_color(
    rng: np.random.Generator, gender: str, age: int, tone: float
) -> tuple[str, Color, float]:
    """Sample a colour's name, the colour, and the share of gray strands.

    Fair hair comes with fair skin only, and gray strands come with age.
    """
    light = max(0.0, 1.0 - 2.2 * tone)
    fair = {
        "black": 0.22 + 1.3 * tone,
        "dark brown": 0.40,
        "brown": 0.45 * (1 - 0.6 * tone),
        "light brown": 0.32 * light,
        "blond": 0.50 * light,
        "strawberry blond": 0.10 * light,
        "red": 0.17 * light,
        "auburn": 0.13 * light + 0.03,
    }
    dyed = float(np.interp(age, [18, 40, 60], [0.05, 0.025, 0.005])) / len(DYED)
    total = sum(fair.values())
    weights = {k: v / total for k, v in fair.items()} | dict.fromkeys(DYED, dyed)
    name = choose(rng, weights)
    onset = float(np.interp(age, [34, 48, 60, 72, 80], [0.0, 0.12, 0.45, 0.8, 0.95]))
    gray = float(np.clip(onset + rng.normal(0.0, 0.22), 0, 1)) if onset > 0 else 0.0
    if gender == "woman" and rng.random() < 0.4:  # many dye gray hair in a natural colour
        gray *= 0.15
    if name in DYED:
        gray = 0.0
    if gray > 0.72:
        name = "white" if age > 55 and rng.random() < 0.35 + 0.5 * (gray - 0.72) / 0.28 else "gray"
        gray = 1.0
    return name, jitter_color(HAIR_COLORS[name], rng, 0.10), gray


def sample_hair(
    rng: np.random.Generator, gender: str, age: int, ancestry: Array, tone: float
) -> Hair:
    """Sample the hair of a person.

    Args:
        rng: Random generator.
        gender: `woman` or `man`.
        age: Age in years. Men lose hair with age, and everyone's hair turns gray.
        ancestry: (3,) shares of African, Asian and European ancestry.
        tone: Skin tone from 0 (very light) to 1 (very dark).
    """
    column = 1 if gender == "woman" else 2
    weights = {name: float(row[column]) for name, row in _STYLES.items()}
    african, asian = float(ancestry[0]), float(ancestry[1])
    for name in AFRO_STYLES:
        weights[name] *= 6.0 * african**2
    weights["braids"] *= 0.2 + 3.5 * african
    weights["curly"] *= 0.5 + 2.0 * african + (0 if asian > 0.6 else 0.5)
    weights["long curly"] *= 0.2 if asian > 0.6 else 1.0
    if african > 0.6:
        for name in ("long straight", "long wavy", "slicked back", "side part", "messy"):
            weights[name] *= 0.3
        weights["buzz"] *= 1.8
        weights["cropped"] *= 1.8
    if gender == "man":
        loss = float(np.interp(age, [25, 45, 70], [0.4, 1.3, 2.6]))
        weights["bald"] *= loss
        weights["horseshoe"] *= float(np.interp(age, [35, 50, 70], [0.0, 1.0, 3.5]))
    if age > 60:
        for name in ("long straight", "long wavy", "plaits", "braids", "quiff"):
            weights[name] *= 0.4
    style = choose(rng, weights)
    color_name, color, gray = _sample_color(rng, gender, age, tone)
    recede = float(np.interp(age, [28, 50, 75], [0.0, 1.5, 3.0])) if gender == "man" else 0.0
    hairline = float(np.clip(rng.normal(-recede, 0.9 + 0.4 * recede), -5.0, 1.5))
    if style in ("fringe crop", "pixie"):
        fringe = float(rng.uniform(0.3, 0.9))
    else:
        wears = style in _MAY_HAVE_FRINGE and rng.random() < (0.33 if gender == "woman" else 0.1)
        fringe = float(rng.uniform(0.7, 1.0)) if wears else 0.0
    curl = _STYLES[style][3]
    return Hair(
        style=style,
        color_name=color_name,
        color=color,
        length=float(rng.uniform(0.0, 1.0)),
        volume=float(rng.uniform(0.65, 1.4)),
        parting=float(rng.choice([-1, 1]) * rng.uniform(0.0, 1.0)),
        fringe=fringe,
        hairline=hairline,
        curl=float(np.clip(curl * rng.uniform(0.7, 1.3) + rng.uniform(0, 0.1), 0.0, 1.0)),
        gray=gray,
        highlights=float(rng.beta(1.6, 3.0)),
    )


def hairline_margin(hair: Hair, longitude: Array, polar: Array) -> Array:
    """Return how many degrees points lie inside the hairline; negative is outside.

    Args:
        hair: Hair with the hairline; a bald head is outside everywhere.
        longitude: Degrees from the front (0) to the nape (180), on either side.
        polar: Degrees from the crown.
    """
    if hair.style == "bald":
        return np.full(np.broadcast(longitude, polar).shape, -90.0)
    line = np.interp(longitude, _LONGITUDE, _LINE_LONG if covers_ears(hair) else _LINE_SHORT)
    front = np.clip(1 - longitude / 55.0, 0, 1)
    temple = np.exp(-(((longitude - 31.0) / 13.0) ** 2))
    recede = np.clip(-hair.hairline, 0, 5)
    line = line + front * (1.5 * hair.hairline) - temple * 2.6 * recede
    margin = line - polar
    if hair.style == "horseshoe":
        bare = np.interp(longitude, [0, 58, 70, 110, 180], [100, 84, 58, 50, 50]) - 2 * hair.length
        margin = np.minimum(margin, polar - bare)
    return margin


def covers_ears(hair: Hair) -> bool:
    """Return whether the hair covers the ears."""
    return hair.style in LONG_STYLES
