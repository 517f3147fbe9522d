"""What a picture shows, in words and as fields."""

from __future__ import annotations

from typing import Any

from fusionlib.people.hairstyle import hair_phrase
from fusionlib.people.identity import Person
from fusionlib.people.sampling import stream
from fusionlib.people.view import View

STYLE_PHRASES = {
    "photo": ("a photo of", "a portrait photo of", "a picture of"),
    "noir": ("a black and white film noir picture of", "a black and white photo of"),
    "line art": ("line art of", "a line drawing of"),
    "watercolor": ("a watercolor painting of", "a watercolor of"),
    "faded film": ("a faded film photo of", "an old faded photo of"),
}
BACKGROUND_PHRASES = {
    "studio": ("in a studio", "in front of a plain wall"),
    "beach": ("on a beach", "at the beach"),
    "forest": ("in a forest", "in the jungle"),
    "city": ("in a city", "on a city street"),
    "snow": ("in the snow", "in a snowy landscape"),
    "night": ("at night", "in the city lights at night"),
    "garden": ("in a garden", "in a garden with flowers"),
    "library": ("in a library", "in front of bookshelves"),
}
BEARD_PHRASES = {
    "stubble": "stubble",
    "moustache": "a moustache",
    "goatee": "a goatee",
    "full": "a full beard",
}


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def describe(person: Person, view: View, wording: int = 0) -> str:
    """A caption of the picture; its words are chosen by the view's `caption_seed` and `wording`.

    It says style, expression and background, usually gender, age, hair, beard and glasses. Some
    captions leave attributes out, or say "person", as prompts do.
    """
    rng = stream("caption", view.caption_seed, *([wording] if wording else []))
    style_words = STYLE_PHRASES[view.style]
    style = style_words[int(rng.integers(len(style_words)))]
    place_words = BACKGROUND_PHRASES[view.background]
    place = place_words[int(rng.integers(len(place_words)))]
    words = [person.age_word] if rng.random() < 0.7 else []
    # A bald head is said before the noun, hair after it.
    bald = person.hair.style == "bald"
    if bald and rng.random() < 0.85:
        words.append("bald")
    traits = []
    if not bald and rng.random() < 0.7:
        traits.append(hair_phrase(person.hair))
    if person.beard != "none" and rng.random() < 0.85:
        traits.append(BEARD_PHRASES[person.beard])
    if person.glasses != "none" and rng.random() < 0.85:
        traits.append("glasses")
    expression_first = rng.random() < 0.5
    if view.expression == "neutral":
        expression = "with a neutral expression" if rng.random() < 0.3 else ""
    else:
        expression = view.expression
    if expression_first and view.expression != "neutral":
        words.insert(0, expression)
        expression = ""
    # Line art has no scenery to speak of.
    say_place = view.style != "line art" and rng.random() < 0.85
    noun = person.gender if rng.random() < 0.7 else "person"
    subject = _article(" ".join([*words, noun]))
    text = f"{style} {subject}"
    if traits:
        text += f" with {_listed(traits)}"
    if say_place:
        text += f" {place}"
    if expression:
        text += f", {expression}"
    return text


def attributes(person: Person, view: View) -> dict[str, Any]:
    """The fields that the picture's JSON holds beside its caption."""
    return {
        "expression": view.expression,
        "style": view.style,
        "background": view.background,
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
    }
