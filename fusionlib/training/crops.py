"""The crops of a picture in training: the target's square, and the reference's.

The paper describes neither; these are ours. A reference is cut like a user's photograph
(`fusionlib.inputs.photos.prepare_photo`). A target is a square with the face and a part of the
scene, since the prompt describes both. Where a set has one picture of each person, like LAION-Face,
that picture is also the reference, which then has to look different, or the adapter would learn to
copy pixels rather than to recognise a face.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from fusionlib.errors import FusionError
from fusionlib.inputs.photos import FRAME, Face, crop_face
from fusionlib.training.shards import Sample

Rng = np.random.Generator

SHARE = (0.2, 0.5)
"""Range of the face's side as a share of the target's, log-uniform; larger in small pictures."""

MARGIN = (0.3, 0.7)
"""Range of the margin around an augmented reference's face, in sides of the face. A prepared
photograph has `FRAME`."""

TILT = 10.0
"""Largest tilt of an augmented reference to either side, degrees."""

JITTER = 0.2
"""Largest change of an augmented reference's brightness, contrast and colour, as a share."""


@dataclass(frozen=True)
class Shown:
    """A picture as the models see it.

    Attributes:
        pixels: Picture, uint8 ``(size, size, 3)``.
        mask: Face mask, 0 or 1, ``(size, size)``; all 0 where the set has none.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Crops:
    """How pictures are cut and changed.

    Attributes:
        size: Side of the crops in pixels.
        crop: ``whole`` for the largest central square, for sets that are cropped already; ``face``
            for a square around the face that `fusionlib data prepare` recorded.
        augment: Whether references are changed in place, size, tilt, colour and sharpness.
    """

    size: int
    crop: Literal["whole", "face"] = "whole"
    augment: bool = False

    def target(self, sample: Sample, rng: Rng) -> Shown:
        """The picture that the UNet learns to paint; mirrored in half of all cases.

        Raises:
            FusionError: The picture cannot be read, or no face was recorded.
        """
        image = sample.picture()
        mirror = rng.random() < 0.5
        if self.crop == "face":
            box = _around(recorded_face(sample), image.size, rng)
        else:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
        mask = np.zeros((self.size, self.size), np.uint8)
        if "mask.png" in sample.files:
            drawn = _decoded_mask(sample, image.size).crop(box).resize((self.size, self.size))
            mask = (np.asarray(drawn) > 127).astype(np.uint8)
        pixels = np.asarray(_resized(image.crop(box), self.size))
        return Shown(pixels[:, ::-1], mask[:, ::-1]) if mirror else Shown(pixels, mask)

    def reference(self, sample: Sample, rng: Rng) -> NDArray[np.uint8]:
        """The picture that shows the identity, uint8 ``(size, size, 3)``; mirrored likewise.

        Raises:
            FusionError: The picture cannot be read, or no face was recorded.
        """
        image = sample.picture()
        mirror = rng.random() < 0.5
        if self.crop == "face":
            face, margin = recorded_face(sample), FRAME
            if self.augment:
                margin = rng.uniform(*MARGIN)
                face = _moved(face, rng)
            image = crop_face(image, face, margin=margin)
        elif self.augment:
            # Up to a tenth of the side is cut off at each edge.
            image = ImageOps.fit(image, (min(image.size),) * 2)
            left, top, right, bottom = rng.uniform(0, 0.1, 4) * image.width
            image = image.crop((left, top, image.width - right, image.height - bottom))
        image = _resized(image, self.size)
        if self.augment:
            image = _recoloured(image, rng)
        pixels = np.asarray(image)
        return pixels[:, ::-1] if mirror else pixels


def face_record(face: Face) -> dict[str, Any]:
    """A face as a JSON record."""
    return {"eyes": face.eyes, "nose": face.nose, "score": round(face.score, 3)}


def recorded_face(sample: Sample) -> Face:
    """The largest recorded face of a sample."""
    if not sample.faces:
        raise FusionError(
            "no face is recorded for it: run `fusionlib data prepare` on the set, or set "
            "training.crop: whole"
        )
    try:
        return max(map(face_from_record, sample.faces), key=lambda face: face.side)
    except (KeyError, TypeError, ValueError) as error:
        raise FusionError(f"its recorded faces cannot be read ({error!r})") from error


def face_from_record(record: dict[str, Any]) -> Face:
    """The face of a record that `face_record` made."""
    left, right = (tuple(eye) for eye in record["eyes"])
    return Face((left, right), tuple(record["nose"]), float(record["score"]))


def _around(face: Face, size: tuple[int, int], rng: Rng) -> tuple[int, int, int, int]:
    """A square within the picture that contains the face at a random place."""
    share = np.exp(rng.uniform(*np.log(SHARE)))
    side = round(min(max(face.side / share, face.side), min(size)))
    corner = []
    for low, high, length in zip(face.box[:2], face.box[2:], size, strict=True):
        # The face lies inside, or, where it is larger than the square, covers it.
        first, last = sorted((high - side, low))
        first, last = np.clip([first, last], 0, length - side)
        corner.append(round(rng.uniform(first, last)))
    left, top = corner
    return left, top, left + side, top + side


def _moved(face: Face, rng: Rng) -> Face:
    """The face with shifted and tilted landmarks, so that its crop is shifted and tilted."""
    shift = rng.uniform(-0.1, 0.1, 2) * face.side
    angle = np.radians(rng.uniform(-TILT, TILT))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.asarray(face.centre)
    left, right, nose = (
        tuple((turn @ (np.asarray(point) - middle) + middle + shift).tolist())
        for point in (*face.eyes, face.nose)
    )
    return replace(face, eyes=(left, right), nose=nose)


def _recoloured(image: Image.Image, rng: Rng) -> Image.Image:
    """Change the light, and add the blur of a smaller picture or a strong JPEG's artefacts."""
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    kind = rng.integers(4)
    if kind == 0:
        small = max(1, round(image.width * rng.uniform(0.4, 0.8)))
        size = image.size
        image = image.resize((small, small), Image.Resampling.BICUBIC)
        image = image.resize(size, Image.Resampling.BICUBIC)
    elif kind == 1:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(40, 80)))
        image = Image.open(buffer).convert("RGB")
    return image


def _decoded_mask(sample: Sample, size: tuple[int, int]) -> Image.Image:
    try:
        mask = Image.open(io.BytesIO(sample.content("mask.png"))).convert("L")
    except (OSError, SyntaxError, ValueError) as error:
        raise FusionError(f"its mask.png cannot be read ({error})") from error
    return mask if mask.size == size else mask.resize(size)


def _resized(image: Image.Image, size: int) -> Image.Image:
    """The largest central square, resized."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
