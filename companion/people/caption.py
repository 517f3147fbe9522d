"""Captions and labels of a picture.

A caption is built from phrases in one of several orders, and chance decides what it mentions, so
that the text model learns words rather than templates. The words are those of the prompts in the
paper and the notebooks: "a photo of a laughing person", "astronaut in a garden", "line art of ...".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from companion.people.appearance import Appearance
from companion.people.colors import stream
from companion.people.hairstyle import hair_phrase
from companion.people.view import View, is_held_out

MOST_WORDS = 20
"""Largest number of words in a caption, at most about 31 tokens of a small BPE."""

# For each style: how a caption begins, or what may stand at its end instead.
STYLE_PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "photo": (
        (
            "a photo of",
            "a photo of",
            "a photo of",
            "a portrait photo of",
            "a picture of",
            "photo of",
        ),
        ("photo", "portrait photo", "photograph"),
    ),
    "noir": (
        ("a film noir picture of", "a black and white photo of", "a film noir portrait of"),
        ("film noir", "black and white film noir", "film noir style"),
    ),
    "line art": (
        ("line art of", "line art of", "a line drawing of", "a line art drawing of"),
        ("line art", "line drawing", "line art style"),
    ),
    "watercolor": (
        ("a watercolor painting of", "a watercolor of", "watercolor of"),
        ("watercolor", "watercolor painting", "watercolor style"),
    ),
    "faded film": (
        ("a faded film photo of", "an old faded photo of", "a faded film picture of"),
        ("faded film", "faded film photo", "old faded film"),
    ),
    "neon": (
        ("a neon portrait of", "a neon photo of", "a neon picture of"),
        ("neon", "neon lights", "neon style"),
    ),
    "comic": (
        ("a comic of", "a comic book drawing of", "a comic drawing of"),
        ("comic", "comic book style", "comic style"),
    ),
}
SCENE_PHRASES: dict[str, tuple[str, ...]] = {
    "studio": ("in a studio", "in front of a plain wall"),
    "beach": ("on a beach", "at the beach", "by the sea"),
    "city": ("in a city", "on a city street", "in the city"),
    "night": ("at night", "in the city at night", "on a city street at night"),
    "snow": ("in the snow", "in the snow", "in a snowy forest"),
    "jungle": ("in a jungle", "in the jungle"),
    "forest": ("in a forest", "in the forest", "in the woods"),
    "garden": ("in a garden", "in a garden", "in a flower garden"),
    "library": ("in a library", "in front of bookshelves"),
    "desert": ("in a desert", "in the desert"),
    "mountains": ("in the mountains", "in front of mountains"),
    "kitchen": ("in a kitchen", "in the kitchen"),
    "farm": ("on a farm", "in a field on a farm"),
    "space": ("in space", "in outer space", "among the stars"),
}
TIME_PHRASES = {"sunset": "at sunset", "autumn": "in autumn"}
# For each expression: words before the noun, or at the end of the caption.
EXPRESSION_PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "neutral": (("calm", "serious"), ("with a neutral expression", "with a neutral face")),
    "laughing": (
        ("laughing", "laughing", "laughing", "smiling", "happy"),
        ("laughing", "laughing", "smiling broadly"),
    ),
    "angry": (("angry", "angry", "angry", "furious"), ("looking angry", "with an angry face")),
    "crying": (("crying", "crying", "crying", "sad"), ("crying", "crying", "in tears")),
    "surprised": (
        ("surprised", "surprised", "surprised", "astonished"),
        ("looking surprised", "with a surprised face"),
    ),
    "disgusted": (("disgusted",), ("looking disgusted", "disgusted", "with a disgusted face")),
}
BEARD_PHRASES = {
    "stubble": "stubble",
    "short": "a short beard",
    "moustache": "a moustache",
    "goatee": "a goatee",
    "full": "a full beard",
}


def role_name(person: Appearance, view: View) -> str:
    """Return the role as a word: `royal` is a king or a queen."""
    if view.role == "royal":
        return "queen" if person.gender == "woman" else "king"
    return view.role


def article(words: str) -> str:
    """Put `a` or `an` before the words."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def listed(parts: list[str]) -> str:
    """Join phrases as a list in a sentence: `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def one_of(rng: np.random.Generator, phrases: tuple[str, ...]) -> str:
    """Draw one of the phrases with equal probabilities."""
    return phrases[int(rng.integers(len(phrases)))]


def count_words(text: str) -> int:
    """Count words; hyphens separate them."""
    return len(text.replace("-", " ").split())


def place_phrase(rng: np.random.Generator, view: View, probability: float) -> str:
    """Return, with this probability, words for a view's scene and sometimes its time."""
    if rng.random() >= probability:
        return ""
    place = one_of(rng, SCENE_PHRASES[view.scene])
    if view.time in TIME_PHRASES and rng.random() < 0.5:
        place += f" {TIME_PHRASES[view.time]}"
    return place


def _clothes_phrase(view: View) -> str:
    c = view.clothes
    pattern = "" if c.pattern in ("plain", "knitted") else f"{c.pattern} "
    return article(f"{pattern or c.color_name + ' '}{c.kind}")


def _noun(rng: np.random.Generator, person: Appearance, view: View) -> tuple[str, str]:
    """Return the noun and what follows: ("woman", ""), ("astronaut", ""), ("man", "as a chef")."""
    role, gender = role_name(person, view), person.gender
    if view.role == "person":
        return (gender if rng.random() < 0.65 else "person"), ""
    if view.role == "royal" or rng.random() < 0.6:
        return role, ""
    if rng.random() < 0.5:
        return f"{'female' if gender == 'woman' else 'male'} {role}", ""
    return (gender if rng.random() < 0.6 else "person"), f"as {article(role)}"


def _traits(rng: np.random.Generator, person: Appearance, view: View) -> list[str]:
    """Return phrases for `with ...`: hair, beard and glasses, each of them mentioned or not."""
    traits = []
    hatted = view.headwear not in ("none", "helmet")
    if person.hair.style != "bald" and rng.random() < (0.3 if hatted else 0.5):
        traits.append(hair_phrase(person.hair))
    if person.beard != "none" and rng.random() < 0.6:
        traits.append(BEARD_PHRASES[person.beard])
    if person.glasses != "none" and rng.random() < 0.65:
        traits.append("glasses")
    return traits


def _worn(rng: np.random.Generator, view: View) -> list[str]:
    worn = []
    # The name of a role implies its clothes.
    if view.role == "person" and view.style not in ("noir", "line art") and rng.random() < 0.3:
        worn.append(_clothes_phrase(view))
    if view.headwear != "none" and rng.random() < 0.4:
        worn.append(article(view.headwear))
    return worn


def describe(person: Appearance, view: View, wording: int = 0) -> str:
    """Describe a picture in words chosen by the view's `caption_seed` and `wording`.

    The caption names the style (optional for a photo), nearly always the expression, usually the
    scene, and sometimes gender, age, hair, beard, glasses, clothes and headwear. It has at most
    `MOST_WORDS` words.
    """
    rng = stream("caption", view.caption_seed, *([wording] if wording else []))
    before, after = EXPRESSION_PHRASES[view.expression]
    plain = rng.random() < 0.2  # as short as a prompt: "a photo of a laughing person"
    adjectives, last = [], ""
    if view.expression == "neutral":
        if plain:
            pass
        elif rng.random() < 0.2:
            last = one_of(rng, after)
        elif rng.random() < 0.1:
            adjectives.append(one_of(rng, before))
    elif plain or rng.random() < 0.7:
        adjectives.append(one_of(rng, before))
    else:
        last = one_of(rng, after)
    if not plain and rng.random() < 0.45:
        adjectives.append(person.age_word)
    if person.hair.style == "bald" and view.headwear == "none" and not plain and rng.random() < 0.7:
        adjectives.append("bald")
    noun, role = _noun(rng, person, view)
    traits, worn = ([], []) if plain else (_traits(rng, person, view), _worn(rng, view))
    if plain and view.role == "person":
        noun = "person"
    place = place_phrase(rng, view, 0.6 if plain else 0.9)
    begin, follow = STYLE_PHRASES[view.style]
    start, end = one_of(rng, begin), ""
    order = rng.random()
    bare = rng.random() < 0.4  # without the article: "astronaut in a garden"
    if order > 0.62:
        start, end = "", one_of(rng, follow)
        if view.style == "photo" and rng.random() < 0.5:
            end = ""
    if order > 0.88:
        start, bare = one_of(rng, ("portrait of", "a close-up of", "a portrait of")), False
    place_first = rng.random() < 0.3
    text = ""
    # Where there are too many words, the least important ones go first.
    for drop in (None, worn, traits, traits, traits):
        if drop:
            drop.pop()
        subject = " ".join([*adjectives, noun])
        subject = subject if bare and not start else article(subject)
        details = [role] if role else []
        details += [f"with {listed(traits)}"] if traits else []
        details += [f"wearing {listed(worn)}"] if worn else []
        details = [place, *details] if place_first else [*details, place]
        words = " ".join(w for w in (start, subject, *details) if w)
        text = ", ".join(w for w in (words, last, end) if w)
        if count_words(text) <= MOST_WORDS:
            break
    return text


def attributes(person: Appearance, view: View) -> dict[str, Any]:
    """Return the labels of a picture, which its JSON holds besides the caption."""
    return {
        "expression": view.expression,
        "style": view.style,
        "scene": view.scene,
        "time": view.time,
        "role": role_name(person, view),
        "clothes": view.clothes.kind,
        "clothes_pattern": view.clothes.pattern,
        "clothes_color": view.clothes.color_name,
        "headwear": view.headwear,
        "gender": person.gender,
        "age": person.age,
        "age_word": person.age_word,
        "hair": hair_phrase(person.hair) or "bald",
        "hair_style": person.hair.style,
        "hair_color": person.hair.color_name,
        "beard": person.beard,
        "glasses": person.glasses,
        "eyes": person.eye_name,
        "yaw": round(view.yaw, 3),
        "pitch": round(view.pitch, 3),
        "light_azimuth": round(view.light_azimuth, 3),
        "light_elevation": round(view.light_elevation, 3),
        "light_strength": round(view.light_strength, 3),
        "held_out": is_held_out(view.style, view.scene, view.expression, view.role),
    }
