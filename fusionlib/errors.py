"""The errors that this library raises for mistakes that a user can correct."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_EXPLAINED = 3
"""Number of misfits of a file that are explained; the others are only counted."""


class FusionError(ValueError):
    """An error that says what was wrong, with which file or argument, and what to do.

    It is a ``ValueError``, so that callers who do not know this library catch it, too. The command
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
    """A method found no face in a picture, though it needs one.

    Where the picture is one of many, as in a study, it is left out and counted.
    """


def explain_validation(error: ValidationError) -> str:
    """Explain where a file does not fit its schema and why, without pydantic's types and addresses.

    Args:
        error: Error that ``model_validate`` raised.

    Returns:
        Text such as ``training.adapter.steps: Input should be greater than 0; ...``.
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
    """What an error says, or what it is called if it says nothing.

    The first line, and the next one as long as a line ends in a colon, which announces the cause.
    """
    said = ""
    for line in str(error).strip().splitlines():
        said = f"{said} {line.strip()}".strip()
        if said and not said.endswith(":"):
            break
    return said.rstrip(".") or type(error).__name__
