"""The references and masks of ``fusionlib generate``: from what the options say to pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
Crop = str | tuple[float, ...]
"""``face``, ``none``, or a box ``(left, top, right, bottom)``."""


def for_each(option: str, given: Sequence[T] | None, default: T, references: int) -> list[T]:
    """What an option says of each reference: it is given once for all, or once for each."""
    if given and not references:
        raise FusionError(f"{option} needs a --reference: name the picture that it is about.")
    said = list(given or [default])
    if len(said) == 1:
        return said * references
    if len(said) != references:
        raise FusionError(
            f"{option} is given {len(said)} times for {references} references: give it once for "
            "all, or once for each."
        )
    return said


def strengths_of(given: Sequence[float] | None, references: int) -> list[float]:
    """The weight of each reference."""
    for strength in given or []:
        if not (math.isfinite(strength) and strength >= 0):
            raise FusionError(f"The strength {strength} must be a number of 0 or more.")
    return for_each("--strength", given, 1.0, references)


def prepare_references(
    paths: Sequence[Path], crop: Sequence[str] | None, face: Sequence[str] | None
) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """Cut each reference out as the options say.

    Args:
        paths: The references' files.
        crop: Of each or of all: ``face``, ``none``, or a box ``LEFT,TOP,RIGHT,BOTTOM``.
        face: Of each or of all: ``largest`` or the number of a face.

    Returns:
        The pictures as the pipeline is shown them, and for each, how it was cut out.

    Raises:
        FusionError: If an option cannot be read, or a picture shows no face, or several without a
            choice; the message names the option that helps.
    """
    crops = [_crop(text) for text in for_each("--crop", crop, "face", len(paths))]
    faces = [
        None if text is None else _face(text) for text in for_each("--face", face, None, len(paths))
    ]
    if face and "face" not in crops:
        raise FusionError("--face chooses among the faces found with --crop face: leave one out.")
    pictures = [_cut_out(*each) for each in zip(paths, crops, faces, strict=True)]
    records = [
        {"crop": crop, "face": face if crop == "face" else None}
        for crop, face in zip(crops, faces, strict=True)
    ]
    return pictures, records


def identities_of(given: Sequence[int] | None, references: int, masks: int) -> list[int]:
    """The number of the mask to which each reference's person belongs; empty without masks."""
    if not masks:
        if given:
            raise FusionError("--identity is the number of a mask: give a --mask for each person.")
        return []
    if not references:
        raise FusionError("--mask needs a --reference: name a picture of the person.")
    identities = list(range(references)) if given is None else list(given)
    if len(identities) != references or not all(0 <= number < masks for number in identities):
        raise FusionError(
            f"{references} reference(s) and {masks} mask(s) need one --identity for each "
            f"reference, a number from 0 to {masks - 1}, not {identities}."
        )
    return identities


def _crop(text: str) -> Crop:
    if text in ("face", "none"):
        return text
    try:
        box = tuple(float(edge) for edge in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise FusionError(
            f"--crop {text!r} must be face, none, or a box of four numbers LEFT,TOP,RIGHT,BOTTOM, "
            "as in 120,40,400,320."
        )
    return box


def _face(text: str) -> Any:
    if text == "largest":
        return text
    if not (text.isdecimal() and len(text) < 5):
        raise FusionError(f"--face {text!r} must be largest, or a number from the left, from 0.")
    return int(text)


def _cut_out(path: Path, crop: Crop, face: Any) -> Image.Image:
    from fusionlib.inputs.images import load_image
    from fusionlib.inputs.photos import FaceChoiceError, pixel_box, prepare_photo

    if crop == "none":
        return load_image(path)
    if not isinstance(crop, str):
        pixel_box(crop, load_image(path).size, f"--crop of {path}:")  # as the user called it
        return prepare_photo(path, box=crop)
    try:
        return prepare_photo(path, face=face)
    except FaceChoiceError as error:
        remedy = (
            f"choose one with --face 0 to --face {error.faces - 1} or --face largest"
            if error.faces
            else "take the whole picture with --crop none"
        )
        raise FusionError(
            f"{error.found}: {remedy}, or give your own box with --crop LEFT,TOP,RIGHT,BOTTOM."
        ) from error
