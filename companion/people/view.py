"""What one picture of a person shows, sampled from integers alone.

`sample_view(seed, index, view)` fixes everything that may differ between pictures of a person
(pose, expression, light, scene, role, clothes, style) and nothing of their appearance.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from companion.people.colors import Color, choose, stream
from companion.people.outfit import ROLES, Clothes, sample_clothes, sample_headwear
from companion.people.scenery import SCENES

EXPRESSIONS = ("neutral", "laughing", "angry", "crying", "surprised", "disgusted")
STYLES = ("photo", "noir", "line art", "watercolor", "faded film", "neon", "comic")
STYLE_WEIGHTS = (0.52, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08)
PERSON_SHARE = 0.55  # share of pictures in everyday clothes; the other roles share the rest

ALWAYS_TRAINED = frozenset(
    {("photo", "garden", "laughing"), ("photo", "snow", "angry"), ("astronaut", "garden")}
)
"""Combinations that the prompts of the paper and the notebooks ask for, which are never held out.
A hash decides about all others, so that nobody can choose what the model is tested on."""


def is_held_out(style: str, scene: str, expression: str, role: str = "person") -> bool:
    """Return whether a combination is held out from training.

    About a tenth of the (style, scene, expression) triples and of the (role, scene) pairs are, each
    decided by a checksum of its names. The model sees every name in training, but never these
    together, so they test whether it composes rather than remembers.
    """
    return _hashed_out(style, scene, expression) or (role != "person" and _hashed_out(role, scene))


def _hashed_out(*names: str) -> bool:
    if names in ALWAYS_TRAINED:
        return False
    return zlib.crc32(" / ".join(names).encode()) % 10 == 0


@dataclass(frozen=True)
class View:
    """What one picture of a person shows. Angles are in degrees and colours in 0..1.

    Attributes:
        index: Number of the view.
        yaw: Turn of the head to the side.
        pitch: Tilt of the head up or down.
        roll: Tilt of the head to the side.
        expression: One of `EXPRESSIONS`.
        intensity: Strength of the expression, 0..1.
        jitter: Offset right and up as fractions of the picture, and factor on its field.
        gaze: Direction of the eyes beyond the head's, to the person's left and downwards.
        light_azimuth: Angle of the main light from the front.
        light_elevation: Angle of the main light above the horizon.
        light_strength: Share of the main light, 0..1.
        light_color: Colour of the main light.
        fill_color: Colour of the light from the camera's side.
        scene: One of `SCENES`.
        time: One of the scene's times.
        style: One of `STYLES`.
        role: One of `ROLES`.
        clothes: Clothes that the person wears.
        caption_seed: Seed of the caption's words.
        headwear: One of `companion.people.outfit.HEADWEAR`.
        headwear_color: Colour of the headwear.
        rim_strength: Strength of the light from behind.
        softness: Distance in metres over which shadows fade.
        lens: Field of view, from 10 (a long lens) to 28 (a wide one).
        play: Seed of the variation between two pictures of one expression.
    """

    index: int
    yaw: float
    pitch: float
    roll: float
    expression: str
    intensity: float
    jitter: tuple[float, float, float]
    gaze: tuple[float, float]
    light_azimuth: float
    light_elevation: float
    light_strength: float
    light_color: Color
    fill_color: Color
    scene: str
    time: str
    style: str
    role: str
    clothes: Clothes
    caption_seed: int
    headwear: str = "none"
    headwear_color: Color = (0.5, 0.5, 0.5)
    rim_strength: float = 0.3
    softness: float = 0.008
    lens: float = 14.0
    play: int = 0


def sample_view(seed: int, index: int, view: int, *, split: str = "train") -> View:
    """Sample picture number `view` of person number `index`.

    View 0 is always the reference: a frontal photo (|yaw| < 5 degrees) in even light with a neutral
    expression, everyday clothes and a bare head. The expressions of views 1, 2, 3, ... go through a
    shuffled list of all, so that consecutive views of a person differ in expression.

    Args:
        seed: Seed of the data set.
        index: Number of the person.
        view: Number of the view.
        split: Split of the data set. In `train`, style, scene and role are drawn again while their
            combination is held out (`is_held_out`); other splits show all combinations.
    """
    reference, count = view == 0, len(EXPRESSIONS)
    rng = stream("view", seed, index, view)
    order = stream("order", seed, index, (view - 1) // count if view else 0).permutation(count)
    expression = "neutral" if reference else EXPRESSIONS[int(order[(view - 1) % count])]
    face = stream("face", seed, index, view)
    # These draws have their own stream, so that repeating them changes nothing else.
    shown = stream("shown", seed, index, view)
    while True:
        style = (
            "photo" if reference else choose(shown, dict(zip(STYLES, STYLE_WEIGHTS, strict=True)))
        )
        scene = list(SCENES)[int(shown.integers(len(SCENES)))]
        others = ROLES[1:]
        everyday = reference or shown.random() < PERSON_SHARE
        role = "person" if everyday else others[int(shown.integers(len(others)))]
        if split != "train" or not is_held_out(style, scene, expression, role):
            break
    times = list(SCENES[scene])
    time = times[int(shown.integers(len(times)))]
    clothes = sample_clothes(shown, role, scene)
    hat = sample_headwear(shown, role, scene)
    light = SCENES[scene][time]
    side = 1 if shown.random() < 0.5 else -1
    azimuth = side * shown.uniform(*light.azimuth)
    return View(
        index=view,
        yaw=float(rng.uniform(-4.5, 4.5) if reference else rng.uniform(-20.0, 20.0)),
        pitch=float(rng.uniform(-2.0, 2.0) if reference else rng.uniform(-8.0, 8.0)),
        roll=0.0 if reference else float(rng.normal(0.0, 2.0)),
        expression=expression,
        intensity=float(rng.uniform(0.7, 1.0)),
        jitter=(
            float(rng.normal(0.0, 0.008)),
            float(rng.normal(0.0, 0.008)),
            float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05)),
        ),
        gaze=(float(rng.normal(0.0, 2.5)), float(rng.normal(0.0, 1.5))),
        light_azimuth=float(rng.uniform(-15, 15) if reference else azimuth),
        light_elevation=float(
            rng.uniform(20, 50) if reference else shown.uniform(*light.elevation)
        ),
        light_strength=float(
            rng.uniform(0.45, 0.55) if reference else shown.uniform(*light.strength)
        ),
        light_color=(1.0, 1.0, 1.0) if reference else light.key,
        fill_color=(1.0, 1.0, 1.0) if reference else light.fill,
        scene=scene,
        time=time,
        style=style,
        role=role,
        clothes=clothes,
        caption_seed=int(rng.integers(2**31)),
        headwear="none" if reference else hat.kind,
        headwear_color=hat.color,
        rim_strength=float(face.uniform(0.1, 0.3) if reference else face.uniform(0.1, 0.9)),
        softness=float(face.uniform(0.008, 0.014) if reference else face.uniform(0.003, 0.014)),
        lens=float(
            face.uniform(12.0, 16.0)
            if reference
            else np.exp(face.uniform(np.log(10.0), np.log(28.0)))
        ),
        play=int(face.integers(2**31)),
    )
