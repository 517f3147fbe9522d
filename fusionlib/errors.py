"""The error type that this library raises for what a user can put right."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_EXPLAINED = 3
"""A file of another kind misses everything: more than these are only counted."""


class FusionError(ValueError):
    """What was wrong, which file or argument, and what to do, in one sentence.

    A ``ValueError``, so that callers who know nothing of this library still catch it; the command
    line prints it without a traceback.

    Example:
        >>> from fusionlib import FusionError, masks_from_boxes
        >>> try:
        ...     masks_from_boxes([(100, 0, 150, 64)], size=(128, 128))
        ... except FusionError as error:
        ...     print(error)  # doctest: +NORMALIZE_WHITESPACE
        boxes[0] (100, 0, 150, 64) must have its left before its right, its top above its bottom,
        and lie in the picture of 128 x 128 pixels.
    """


class NoFaceError(FusionError):
    """A picture shows no face that a method can find, though it needs one.

    Where the picture is one of many, as in a study, it is left out and counted.
    """


def explain_validation(error: ValidationError) -> str:
    """Where a file does not fit its schema and why, without pydantic's types and addresses.

    Args:
        error: of a model's ``model_validate``.

    Returns:
        As in ``training.adapter.steps: Input should be greater than 0; ...``.
    """
    found = []
    for one in error.errors():
        where = ".".join(map(str, one["loc"])) or "the whole"
        unknown = one["type"] == "extra_forbidden"
        why = "there is no such entry" if unknown else one["msg"].removeprefix("Value error, ")
        found.append(f"{where}: {why}")
    more = len(found) - MOST_EXPLAINED
    return "; ".join(found[:MOST_EXPLAINED]) + (f"; and {more} more" if more > 0 else "")


def first_line(error: Exception) -> str:
    """What an error says, or what it is called if it says nothing."""
    said = str(error).strip().split("\n")[0].rstrip(".")
    return said or type(error).__name__
