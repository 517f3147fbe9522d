"""Identity: cosine distance between face embeddings, through DeepFace (Section 4.2 of the paper).

A face is found and aligned once per picture; every recogniser then embeds the same crop. A picture
in which no face is found has no distance: it is NaN here and counted in every table.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.photos import packaged_models

PACKAGED_WEIGHTS = (
    "dlib_face_recognition_resnet_model_v1.dat",
    "shape_predictor_5_face_landmarks.dat",
)
"""Files that the package `face-recognition-models` brings, so that nothing is downloaded. Its
68-point landmark file is not among them: that one's licence forbids commercial use."""


def link_packaged_weights() -> Path:
    """Put dlib's weights where DeepFace looks for them: ``$DEEPFACE_HOME/.deepface/weights``.

    Returns:
        The folder of DeepFace's weights.

    Raises:
        FusionError: the package is not installed, or the folder cannot be written.
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


def _deepface(*models: str) -> ModuleType:
    """Import DeepFace quietly, with the weights of the named models at hand if they are dlib's."""
    if any(model.lower() == "dlib" for model in models):
        link_packaged_weights()
    os.environ.setdefault("DEEPFACE_LOG_LEVEL", "40")
    os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "onnx")  # no TensorFlow, no noise
    with warnings.catch_warnings():  # importing DeepFace switches off every warning in the process
        from deepface import DeepFace
    return DeepFace


def align_faces(
    images: Iterable[Image.Image], detector: str = "dlib"
) -> list[NDArray[np.float64] | None]:
    """Find the largest face of each picture and turn it upright.

    Args:
        images: RGB pictures of any sizes.
        detector: a detector of DeepFace, by name.

    Returns:
        For each picture the aligned crop, (height, width, 3), RGB in [0, 1], or ``None`` where the
        detector sees no face.

    Raises:
        FusionError: DeepFace has no such detector, or its weights are missing.
    """
    deepface = _deepface(detector)
    from deepface.modules.exceptions import FaceNotDetected, ImgNotFound

    faces: list[NDArray[np.float64] | None] = []
    for image in images:
        bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
        try:
            found = deepface.extract_faces(bgr, detector_backend=detector)
        except (FaceNotDetected, ImgNotFound):  # the second: found, but wholly outside the picture
            faces.append(None)
            continue
        except Exception as error:
            raise FusionError(f"DeepFace's detector {detector!r} failed: {error}") from error
        areas = [face["facial_area"]["w"] * face["facial_area"]["h"] for face in found]
        faces.append(found[int(np.argmax(areas))]["face"])
    return faces


def embed_aligned(
    faces: Sequence[NDArray[np.float64] | None], recogniser: str = "Dlib"
) -> NDArray[np.float64]:
    """Embed aligned faces (see `align_faces`) by one recogniser of DeepFace.

    Returns:
        (faces, dimension), a row of NaN where there was no face.

    Raises:
        FusionError: DeepFace has no such recogniser, or its weights are missing.
    """
    deepface = _deepface(recogniser)
    try:
        dimension = deepface.build_model(recogniser).output_shape
        embeddings = np.full((len(faces), dimension), np.nan)
        for row, face in zip(embeddings, faces, strict=True):
            if face is not None:
                found = deepface.represent(
                    face[:, :, ::-1], model_name=recogniser, detector_backend="skip"
                )
                row[:] = found[0]["embedding"]
    except Exception as error:
        raise FusionError(f"DeepFace's recogniser {recogniser!r} failed: {error}") from error
    return embeddings


def embed_faces(
    images: Iterable[Image.Image], recogniser: str = "Dlib", detector: str = "dlib"
) -> NDArray[np.float64]:
    """Embed the largest face of each picture: (images, dimension), NaN where no face is found."""
    return embed_aligned(align_faces(images, detector), recogniser)


def cosine_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine distance along the last axis, 1 - cos(a, b), from 0 to 2; NaN where either is NaN."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # Rounding alone could make the distance of a picture to itself negative.
    return np.clip(1 - np.sum(a * b, axis=-1) / norms, 0, 2)


def faces_found(embeddings: NDArray[np.float64]) -> tuple[int, int]:
    """How many rows of (images, dimension) hold a face, and how many rows there are."""
    return int(np.sum(~np.isnan(embeddings).any(axis=-1))), len(embeddings)


def identity_recovery(
    d_generated: NDArray[np.float64],
    d_genuine: NDArray[np.float64],
    d_impostor: NDArray[np.float64],
    axis: int = -1,
) -> NDArray[np.float64]:
    """Identity recovery R = (d_impostor - d_generated) / (d_impostor - d_genuine).

    0 says that generated faces are as far from the reference as a stranger's, 1 that they are as
    near as another picture of the same person. The means over people are taken before the division:
    a ratio for each person would be ruled by those whose two distances nearly agree.

    Args:
        d_generated: distance of generated faces to the reference, one for each person.
        d_genuine: distance of other pictures of the same person, in the same order.
        d_impostor: distance of pictures of other people, in the same order.
        axis: the axis that counts people.
    """
    impostor = np.mean(d_impostor, axis=axis)
    return (impostor - np.mean(d_generated, axis=axis)) / (impostor - np.mean(d_genuine, axis=axis))
