"""Covered faces: the references of Section 3.3, where more of them should help.

A mask of cloth is drawn over the first reference; the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from companion.faces.aligned import Eyes, find_face
from companion.methods import Method, Models
from companion.methods.fusion import build_fused
from fusionlib.errors import NoFaceError

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


DETECTOR = "dlib"
"""Detector that finds the eyes of a face to cover."""


def build_covered(models: Models, **options: Any) -> Method:
    """`fused` attention over references of which the first one is covered, for a study's file.

    A person in whose first reference no face is found is left out.

    Args:
        models: Profile, device and what a study's methods share.
        options: Options of `companion.methods.fusion.build_fused`.
    """
    method = build_fused(models, **options)

    def prepare(images: Sequence[Image.Image]) -> Any:
        face = find_face(images[0], DETECTOR)
        if face is None or face.eyes is None:
            raise NoFaceError("Reference 1 shows no face to cover.")
        return method.prepare([cover_face(images[0], face.eyes), *images[1:]])

    return replace(method, prepare=prepare, settings={**method.settings, "covered": DETECTOR})
