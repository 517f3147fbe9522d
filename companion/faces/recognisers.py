"""Face recognisers: each turns an aligned face into a vector (Section 4.2 of the paper).

DeepFace's recognisers go by their names, a network of one's own by its folder. A recogniser is one
kind of `Instrument`, which reads a vector off a picture; `companion.evaluation.readings` keeps what
instruments read.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from companion.faces.aligned import AlignedFace, align_faces, load_deepface
from fusionlib.errors import FusionError
from fusionlib.support.paths import user_path


class Instrument(Protocol):
    """Reads one vector off a picture.

    Attributes:
        name: Name of its folder in the cache.
        fingerprint: Text that differs if the weights or settings do.
        dimension: Length of the vector.
        needs_face: Whether it looks at the face, and so needs one to be found.
    """

    name: str
    fingerprint: str
    dimension: int
    needs_face: bool

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32] | None:
        """The vector ``(dimension,)``, or None where there is nothing to read."""


class DeepFaceRecogniser:
    """A recogniser of DeepFace.

    Args:
        name: Name of the model in DeepFace, ``ArcFace`` for example.

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
            # DeepFace decides where its weights lie, so they are identified by their answer to a
            # fixed pattern: other weights give another one.
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
    """A network of one's own in transformers' layout.

    The embedding is the network's pooled output for the aligned crop, which the folder's own image
    processor scales and normalises.

    Args:
        folder: Folder with ``config.json``, ``model.safetensors`` and
            ``preprocessor_config.json``.

    Raises:
        FusionError: The folder holds no such network.
    """

    needs_face = True

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        from fusionlib.profiles.loading import load_quietly
        from fusionlib.support.provenance import sha256_modules

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
        FusionError: There is no such recogniser, or its weights are missing.
    """
    folder = user_path(name)
    if (folder / "config.json").is_file():
        return NetworkRecogniser(folder)
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
    """Recognisers by their own names, or by the given ones where two have the same name.

    Raises:
        FusionError: There is no such recogniser, or its weights are missing.
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
    """Embed aligned faces (see `companion.faces.aligned.align_faces`).

    Returns:
        ``(faces, dimension)``, with a row of NaN where there was no face.

    Raises:
        FusionError: There is no such recogniser, or its weights are missing.
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
    """Embed the largest face of each picture: ``(images, dimension)``, NaN where there is none."""
    return embed_aligned(align_faces(images, detector), recogniser)
