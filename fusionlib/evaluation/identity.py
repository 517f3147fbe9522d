"""Identity: cosine distance between face embeddings (Section 4.2 of the paper).

A recogniser turns an aligned face into a vector. DeepFace's are known by name; a network of one's
own is known by its folder.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.evaluation.faces import AlignedFace, align_faces, load_deepface
from fusionlib.evaluation.observe import Instrument


class DeepFaceRecogniser:
    """A recogniser of DeepFace, an instrument of `fusionlib.evaluation.observe`.

    Args:
        name: of the model in DeepFace, ``ArcFace`` for example.

    Raises:
        FusionError: DeepFace has no such recogniser, or its weights are missing.
    """

    needs_face = True

    def __init__(self, name: str) -> None:
        self.name = name
        deepface = load_deepface(name)
        try:
            self.dimension: int = deepface.build_model(name).output_shape
            self._represent = deepface.represent
            # Its weights lie where DeepFace likes, so it is known by what it answers: other
            # weights give another answer to a fixed pattern.
            pattern = np.random.default_rng(0).random((112, 112, 3))
            answer = self._embed(pattern)
        except Exception as error:
            raise FusionError(f"DeepFace's recogniser {name!r} failed: {error}") from error
        self.fingerprint = hashlib.sha256(answer.tobytes()).hexdigest()

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32] | None:
        """The embedding ``(dimension,)`` of the face, if there is one."""
        return None if face is None else self._embed(face.crop)

    def _embed(self, crop: NDArray[np.float64]) -> NDArray[np.float32]:
        found = self._represent(crop[:, :, ::-1], model_name=self.name, detector_backend="skip")
        return np.asarray(found[0]["embedding"], dtype=np.float32)


class NetworkRecogniser:
    """A network of one's own in transformers' layout, an instrument likewise.

    The embedding is the network's pooled output for the aligned crop, which the folder's own image
    processor scales and normalises.

    Args:
        folder: holds ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    Raises:
        FusionError: the folder holds no such network.
    """

    needs_face = True

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        from fusionlib.loading import load_quietly
        from fusionlib.manifest import sha256_modules

        self.name = Path(folder).resolve().name
        self._processor, self._network = load_quietly(
            str(folder), "recogniser", AutoImageProcessor, AutoModel
        )
        self.fingerprint = sha256_modules([self._network])
        self.dimension = len(self._embed(Image.new("RGB", (112, 112))))

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32] | None:
        """The embedding ``(dimension,)`` of the face, if there is one."""
        if face is None:
            return None
        return self._embed(Image.fromarray((face.crop * 255).round().astype(np.uint8)))

    def _embed(self, crop: Image.Image) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            output = self._network(**self._processor(images=crop, return_tensors="pt"))
        embedding: NDArray[np.float32] = output.pooler_output.flatten().float().numpy()
        return embedding


@functools.cache
def load_recogniser(name: str) -> Instrument:
    """A recogniser by its name in DeepFace, or a network of one's own by its folder.

    Raises:
        FusionError: there is no such recogniser, or its weights are missing.
    """
    if (Path(name) / "config.json").is_file():
        return NetworkRecogniser(name)
    load_deepface()
    from deepface.modules.modeling import AVAILABLE_MODELS

    known = AVAILABLE_MODELS["facial_recognition"]
    if name not in known:
        raise FusionError(
            f"There is no recogniser {name!r}: use one of DeepFace's ({', '.join(known)}), or the "
            "folder of a network, which holds config.json and model.safetensors."
        )
    return DeepFaceRecogniser(name)


def load_recognisers(names: Sequence[str]) -> dict[str, Instrument]:
    """Recognisers by their own names; by what was asked for where two of them are called alike.

    Raises:
        FusionError: there is no such recogniser, or its weights are missing.
    """
    judges = {name: load_recogniser(name) for name in dict.fromkeys(names)}
    called = [judge.name for judge in judges.values()]
    return {
        judge.name if called.count(judge.name) == 1 else name: judge
        for name, judge in judges.items()
    }


def embed_aligned(
    faces: Sequence[AlignedFace | None], recogniser: str = "Dlib"
) -> NDArray[np.float64]:
    """Embed aligned faces (see `fusionlib.evaluation.faces.align_faces`).

    Returns:
        (faces, dimension), a row of NaN where there was no face.

    Raises:
        FusionError: there is no such recogniser, or its weights are missing.
    """
    instrument: Any = load_recogniser(recogniser)
    embeddings = np.full((len(faces), instrument.dimension), np.nan)
    for row, face in zip(embeddings, faces, strict=True):
        if face is not None:
            row[:] = instrument.read(None, face)
    return embeddings


def embed_faces(
    images: Iterable[Image.Image], recogniser: str = "Dlib", detector: str = "dlib"
) -> NDArray[np.float64]:
    """Embed the largest face of each picture: (images, dimension), NaN where no face is found."""
    return embed_aligned(align_faces(images, detector), recogniser)


def cosine_distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine distance along the last axis, 1 - cos(a, b), from 0 to 2; NaN where either is NaN."""
    a, b = a.astype(np.float64), b.astype(np.float64)
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
