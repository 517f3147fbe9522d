"""Prompts of the paper's figures, in words that the embedded models know, and lists of prompts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from fusionlib.errors import FusionError
from fusionlib.support.paths import user_path
from fusionlib.support.texts import read_text, same_name

EXPRESSIONS = {
    "neutral": "a person with a neutral expression",
    "laughing": "a laughing person",
    "angry": "an angry person",
    "crying": "a crying person",
    "surprised": "a surprised person",
    "disgusted": "a disgusted person",
}
"""How a prompt asks for each expression."""

STYLES = {
    "photo": "a photo of",
    "noir": "a film noir picture of",
    "line art": "line art of",
    "watercolor": "a watercolor painting of",
    "faded film": "a faded film photo of",
    "neon": "a neon portrait of",
    "comic": "a comic of",
}
"""How a prompt asks for each style."""


def expression_prompts(expressions: Sequence[str]) -> list[str]:
    """One photograph for each expression: `a photo of a laughing person`.

    Raises:
        FusionError: There is no such expression.
    """
    return [f"{STYLES['photo']} {_known('expression', EXPRESSIONS, name)}" for name in expressions]


def style_prompts(styles: Sequence[str], who: str = "a person") -> list[str]:
    """One picture for each style: `line art of a person`.

    Raises:
        FusionError: There is no such style.
    """
    return [f"{_known('style', STYLES, name)} {who}" for name in styles]


def _known(what: str, table: dict[str, str], name: str) -> str:
    if name not in table:
        raise FusionError(f"There is no {what} {name!r}: use one of {', '.join(table)}.")
    return table[name]


def read_pairs(
    path: str | Path, count: int | None = None, *, names: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Read a list of pairs of a person and a prompt.

    Args:
        path: A CSV file with the columns person and prompt.
        count: Number of pairs, the first ones.
        names: Names of the people there are. Where the list names others, these take their places
            in turn, whether or not a prompt fits them.

    Returns:
        The prompts of each person, by name, in the order of the file.

    Raises:
        FusionError: There is no such file, it lacks a column, or it has too few pairs.
    """
    try:
        with io.StringIO(read_text(user_path(path)), newline="") as file:
            rows = [
                (same_name(row["person"] or ""), row["prompt"] or "")
                for row in csv.DictReader(file)
            ]
    except OSError as error:
        raise FusionError(
            f"The list of prompts {path} cannot be read ({error.strerror}): check the path."
        ) from error
    except (KeyError, FusionError, csv.Error) as error:
        reason = f"it has no column {error}" if isinstance(error, KeyError) else error
        raise FusionError(f"The list {path} needs columns person and prompt: {reason}.") from error
    if not rows or (count is not None and count > len(rows)):
        raise FusionError(f"The list {path} has {len(rows)} pairs, fewer than asked for.")
    for number, row in enumerate(rows[:count], start=1):
        if not all(text.strip() for text in row):
            raise FusionError(f"The list {path} lacks a person or a prompt in its pair {number}.")
    pairs: dict[str, list[str]] = {}
    known = {person for person, _ in rows[:count]}
    if names and not known <= set(names):
        places = dict(zip(dict.fromkeys(person for person, _ in rows), cycle(names), strict=False))
        rows = [(places[person], prompt) for person, prompt in rows]
    for person, prompt in rows[:count]:
        pairs.setdefault(person, []).append(prompt)
    return pairs
