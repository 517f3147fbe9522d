"""The faces of a training set, detected and aligned as in the evaluation, and cached on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.support.files import write_atomically
from fusionlib.training.pictures import as_pixels
from fusionlib.training.shards import MissingShard, Sample, index_samples

logger = logging.getLogger(__name__)

BLOCK = 256
"""Number of pictures whose faces are cached in one file."""

CACHED_SIDE = 112
"""Side of the cached faces in pixels: ArcFace's, and more than the detector's box has in a picture
of 128 pixels. Networks of other sizes use the same files."""


@dataclass(frozen=True)
class Faces:
    """Aligned faces of known people.

    Attributes:
        pixels: Faces, uint8 ``(n, size, size, 3)``.
        person: Number of each face's person, ``(n,)``, from 0 to below ``people``.
        people: Number of people.
        missed: Number of pictures in which no face was found.
    """

    pixels: NDArray[np.uint8]
    person: NDArray[np.int64]
    people: int
    missed: int

    def __len__(self) -> int:
        """The number of faces."""
        return len(self.pixels)

    def batch(self, index: Tensor) -> Tensor:
        """Faces as float32 in [-1, 1], ``(batch, 3, size, size)``."""
        return as_pixels(torch.from_numpy(self.pixels[index.numpy()]))


def load_faces(shards: str | Path, size: int, cache: Path, *, detector: str = "dlib") -> Faces:
    """Align the faces of a training set, or read those that an earlier run has aligned.

    Args:
        shards: Training set, see `fusionlib.training.shards.index_samples`. Pictures without a
            known person, and those that cannot be read, are left out.
        size: Side of the faces in pixels, at most `CACHED_SIDE`.
        cache: Folder with a file for every `BLOCK` pictures.
        detector: Name of the face detector, or several: see `companion.faces.aligned.align_faces`.

    Raises:
        FusionError: There is no training set, or no face of a known person in it.
    """
    from companion.faces.aligned import FaceFinder

    samples = [sample for sample in index_samples(shards).samples if sample.person is not None]
    settings = f"{CACHED_SIDE} {FaceFinder(detector).fingerprint}"
    parts, people = [], []
    starts = range(0, len(samples), BLOCK)
    for start in tqdm(starts, desc="aligning faces", unit="block", mininterval=2.0):
        block = samples[start : start + BLOCK]
        digest = hashlib.sha256(settings.encode())
        for sample in block:
            digest.update(sample.content(sample.picture_file))
        file = cache / f"{digest.hexdigest()[:32]}.npz"
        if not file.is_file():
            _align(block, detector, file)
        with np.load(file) as arrays:
            pixels, found = arrays["pixels"], arrays["found"]
        parts.append(_resized(pixels, size))
        people += [sample.person for sample, face in zip(block, found, strict=True) if face]
    if not people:
        raise FusionError(f"there is no face of a known person in the pictures of {shards}")
    if len(people) < len(samples):
        logger.warning("%d of %d pictures show no face", len(samples) - len(people), len(samples))
    names, person = np.unique(np.array(people), return_inverse=True)
    return Faces(np.concatenate(parts), person, len(names), len(samples) - len(people))


def _align(block: Sequence[Sample], detector: str, cached: Path) -> None:
    """Write the faces of some pictures, and in which of these pictures one was found."""
    from companion.faces.aligned import find_face

    pixels = []
    found = np.zeros(len(block), bool)
    for number, sample in enumerate(block):
        try:
            face = find_face(sample.picture(), detector)
        except MissingShard:
            raise
        except FusionError as error:
            logger.warning("%s: skipped (%s)", sample.place, error)
            continue
        if face is not None:
            crop = Image.fromarray((face.crop * 255).round().astype(np.uint8))
            pixels.append(np.asarray(crop.resize((CACHED_SIDE,) * 2, Image.Resampling.BILINEAR)))
            found[number] = True
    stacked = np.stack(pixels) if pixels else np.zeros((0, CACHED_SIDE, CACHED_SIDE, 3), np.uint8)
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, lambda file: np.savez(file, pixels=stacked, found=found))


def _resized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Faces resized to ``(n, size, size, 3)``."""
    if size == CACHED_SIDE:
        return pixels
    images = (Image.fromarray(face) for face in pixels)
    resized = [np.asarray(im.resize((size, size), Image.Resampling.BILINEAR)) for im in images]
    return np.stack(resized) if resized else np.zeros((0, size, size, 3), np.uint8)
