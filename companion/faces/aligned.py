"""Faces found by DeepFace's detectors and turned upright, once for each picture.

Recognisers and picture quality alike are given the same face. A picture in which no face is found
is counted in every table, and scored in none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from companion.person import Person
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.inputs.photos import find_faces, packaged_models
from fusionlib.support.provenance import package_versions

PACKAGED_WEIGHTS = (
    "dlib_face_recognition_resnet_model_v1.dat",
    "shape_predictor_5_face_landmarks.dat",
)
"""Files of the package `face-recognition-models`, so that nothing is downloaded. Its 68-point
landmark file is not used: its licence forbids commercial use."""

Eyes = tuple[tuple[float, float], tuple[float, float]]
"""``(x, y)`` of the eye on the picture's left, and of that on its right, in pixels."""


@dataclass(frozen=True)
class AlignedFace:
    """The largest face of a picture.

    Attributes:
        crop: The detector's box, cut out after the picture was turned so that the eyes are level:
            ``(height, width, 3)``, RGB in [0, 1]. Recognisers see this.
        eyes: Places of the eyes in the picture, or None where the detector does not give them.
    """

    crop: NDArray[np.float64]
    eyes: Eyes | None


def align_faces(images: Iterable[Image.Image], detector: str = "dlib") -> list[AlignedFace | None]:
    """Find the largest face of each picture and turn it upright.

    Args:
        images: RGB pictures of any sizes.
        detector: Name of a detector of DeepFace.

    Returns:
        For each picture its face, or ``None`` where the detector sees none.

    Raises:
        FusionError: DeepFace has no such detector, or its weights are missing.
    """
    return [find_face(image, detector) for image in images]


def find_face(image: Image.Image, detector: str = "dlib") -> AlignedFace | None:
    """Find the largest face of one picture: see `align_faces`."""
    deepface = load_deepface(detector)
    from deepface.modules.exceptions import FaceNotDetected, ImgNotFound
    from deepface.modules.modeling import AVAILABLE_MODELS

    known = [*AVAILABLE_MODELS["face_detector"], "skip"]  # the last takes the picture for a face
    if detector not in known:
        raise FusionError(
            f"There is no detector {detector!r}: use one of DeepFace's ({', '.join(known)})."
        )
    bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    try:
        found = deepface.extract_faces(bgr, detector_backend=detector)
    except (FaceNotDetected, ImgNotFound):  # the second: found, but wholly outside the picture
        return None
    except Exception as error:
        raise FusionError(f"DeepFace's detector {detector!r} failed: {error}") from error
    face = max(found, key=lambda face: face["facial_area"]["w"] * face["facial_area"]["h"])
    # DeepFace names the eyes as the person would: the right one is on the picture's left.
    left, right = face["facial_area"]["right_eye"], face["facial_area"]["left_eye"]
    eyes = None if left is None or right is None or left == right else (tuple(left), tuple(right))
    return AlignedFace(face["face"], eyes)


def with_faces(people: Iterable[Person], count: int) -> list[Person]:
    """The first people in whose references dlib's detector finds a face, which many systems need.

    Args:
        people: People to choose from, in their order.
        count: Number of people to choose.

    Raises:
        FusionError: There are fewer.
    """
    chosen: list[Person] = []
    for person in people:
        if len(chosen) == count:
            break
        if all(find_faces(load_image(path)) for path in person.references):
            chosen.append(person)
    if len(chosen) < count:
        raise FusionError(
            f"A face is found in the references of {len(chosen)} people, fewer than the {count} "
            "asked for."
        )
    return chosen


class FaceFinder:
    """The instrument that tells whether a picture shows a face, and where its eyes are."""

    dimension = 4
    needs_face = True

    def __init__(self, detector: str) -> None:
        self.name = f"faces-{detector}"
        self.fingerprint = f"{detector} {package_versions(('deepface', 'dlib-bin'))}"

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32] | None:
        """Place of both eyes, ``(4,)``, NaN if the detector gives none; None without a face."""
        if face is None:
            return None
        return np.array(face.eyes or np.full((2, 2), np.nan), dtype=np.float32).ravel()


def load_deepface(*models: str) -> ModuleType:
    """Import DeepFace quietly; if one of the named models is dlib's, put its weights in place."""
    if any(model.lower() == "dlib" for model in models):
        link_packaged_weights()
    os.environ.setdefault("DEEPFACE_LOG_LEVEL", "40")
    os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "onnx")  # no TensorFlow, no noise
    with warnings.catch_warnings():  # importing DeepFace switches off every warning in the process
        from deepface import DeepFace
    return DeepFace


def link_packaged_weights() -> Path:
    """Put dlib's weights where DeepFace looks for them: ``$DEEPFACE_HOME/.deepface/weights``.

    Returns:
        The folder of DeepFace's weights.

    Raises:
        FusionError: The package is not installed, or the folder cannot be written.
    """
    models = packaged_models()
    home = Path(os.environ.get("DEEPFACE_HOME") or Path.home())
    folder = home / ".deepface" / "weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PACKAGED_WEIGHTS:
            target = folder / name
            if target.is_file():
                continue
            if target.is_symlink():  # left by an environment that was deleted
                target.unlink(missing_ok=True)
            # Another process may be doing the same at this moment; its link is as good as ours.
            with contextlib.suppress(FileExistsError):
                try:
                    target.symlink_to(models / name)
                except (NotImplementedError, PermissionError):  # file systems without links
                    shutil.copyfile(models / name, target)
    except OSError as error:
        raise FusionError(
            f"DeepFace's folder {folder} cannot be written ({error}): set DEEPFACE_HOME to another."
        ) from error
    return folder
