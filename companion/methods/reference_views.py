"""The views of a reference in the compared systems: CLIP's, a recogniser's vector, landmarks.

Each view is a frozen function of a picture, so it is computed once for a training set and cached on
disk. It is computed by the same code as for generation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from companion.faces.arcface import DlibEmbedder, align
from companion.methods.counterparts import THICKNESS
from companion.methods.instantid import draw_points
from companion.methods.ip_adapter import load_image_encoder
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.support.provenance import sha256_json, sha256_modules
from fusionlib.training.cached import cached_rows, pictures_key
from fusionlib.training.pictures import Pictures

logger = logging.getLogger(__name__)

NAMES = ("embedding", "patches", "vector", "face_patches", "drawing")
"""The names of the views: CLIP's image embedding ``(width,)``; the hidden states of its patches
``(tokens, width)``; the normalised vector of dlib's recogniser ``(128,)``; CLIP's patches of the
aligned face; a drawing ``(3, size, size)`` of the *target's* five facial points, from 0 to 1."""

ALIGNED = 224
"""Side in pixels of the aligned face that CLIP is shown, as in IP-Adapter-FaceID-Plus."""

_BATCH = 64


@dataclass(frozen=True)
class Views:
    """The views of a training set.

    Attributes:
        rows: One row for each picture, by view. For a ``drawing`` these are the points
            ``(n, 5, 2)``, NaN without a face.
        absent: Values that stand for no reference, by view.
        size: Side of the pictures.
        device: Device of the batches.
    """

    rows: Mapping[str, Tensor]
    absent: Mapping[str, Tensor]
    size: int
    device: torch.device

    def of(self, targets: Tensor, references: Tensor, dropped: Tensor) -> dict[str, Tensor]:
        """The views of a batch.

        Args:
            targets: Rows of the targets. The second half of the rows are mirror images.
            references: Rows of the references. A mirror image has the view of its original.
            dropped: Whether each sample is shown without a reference, boolean ``(batch,)``.
        """
        seen = {}
        for name, rows in self.rows.items():
            if name == "drawing":
                seen[name] = self._drawings(rows, targets)
                continue
            view = rows[references % len(rows)].to(self.device).float()
            keep = (~dropped).to(self.device).reshape(-1, *[1] * (view.ndim - 1))
            seen[name] = torch.where(keep, view, self.absent[name].to(view))
        return seen

    def _drawings(self, points: Tensor, targets: Tensor) -> Tensor:
        sides = (self.size, self.size)
        drawn = []
        for target in targets.tolist():
            own = points[target % len(points)].numpy().astype(float)
            picture = Image.new("RGB", sides)
            if not np.isnan(own).any():
                if target >= len(points):  # the mirror image, which exchanges left and right
                    own = own[[1, 0, 2, 4, 3]]
                    own[:, 0] = self.size - 1 - own[:, 0]
                picture = draw_points(own, sides, sides, THICKNESS)
            drawn.append(torch.from_numpy(np.array(picture)))
        return torch.stack(drawn).permute(0, 3, 1, 2).to(self.device).float() / 255


def load_views(
    profile: Profile, pictures: Pictures, names: Sequence[str], folder: Path, device: torch.device
) -> Views:
    """The views of a training set, from disk or computed.

    A picture without a detected face gets the values of no reference, and no landmarks.

    Args:
        profile: Profile that names the CLIP model.
        pictures: Training set.
        names: Some of `NAMES`.
        folder: Folder that keeps the views from run to run.
        device: Device of the models and of the batches.

    Raises:
        FusionError: A model is missing.
    """
    rows, absent = {}, {}
    clip: Any = None
    faces: Any = None
    if any(name in ("embedding", "patches", "face_patches") for name in names):
        clip = _Clip(profile, device)
    if any(name in ("vector", "face_patches", "drawing") for name in names):
        faces = _faces(pictures, folder)
    for name in names:
        if name == "vector":
            rows[name] = F.normalize(faces["vector"], dim=1)
        elif name == "drawing":
            rows[name] = faces["points"]
        else:
            found_by = [DlibEmbedder().fingerprint] if name == "face_patches" else []
            key = sha256_json([clip.fingerprint, pictures_key(pictures), *found_by])
            compute = _clip_view(name, clip, pictures, faces)
            rows[name] = cached_rows(folder / name, key, len(pictures), compute)[name]
        blank = clip.absent(name) if name in ("embedding", "patches", "face_patches") else None
        absent[name] = torch.zeros(rows[name].shape[1:]) if blank is None else blank
    return Views(rows, absent, pictures.pixels.shape[1], device)


class _Clip:
    """The profile's CLIP image encoder."""

    def __init__(self, profile: Profile, device: torch.device) -> None:
        place = Path(profile.clip_model)
        self.encoder, self._processor = load_image_encoder(
            str(place.parent), place.name, "The training", torch.float32
        )
        self.encoder.to(device)
        self.device = device
        self.fingerprint = sha256_modules([self.encoder])

    @torch.no_grad()
    def see(self, images: Sequence[Image.Image], name: str) -> Tensor:
        """A view of pictures, as `StableDiffusionPipeline.encode_image` computes it."""
        return self._view(self._processor(list(images), return_tensors="pt").pixel_values, name)

    @torch.no_grad()
    def absent(self, name: str) -> Tensor | None:
        """What that function returns for the unconditional branch; None stands for zeros."""
        if name == "embedding":
            return None
        side = self.encoder.config.image_size
        return self._view(torch.zeros(1, 3, side, side), name)[0].float()

    def _view(self, pixels: Tensor, name: str) -> Tensor:
        output = self.encoder(pixels.to(self.device), output_hidden_states=True)
        view: Tensor = output.image_embeds if name == "embedding" else output.hidden_states[-2]
        return view.bfloat16().cpu()


def _clip_view(
    name: str, clip: _Clip, pictures: Pictures, faces: Mapping[str, Tensor] | None
) -> Callable[[range], dict[str, Tensor]]:
    """The function that computes rows of one of CLIP's views."""
    blank = clip.absent(name)

    def compute(numbers: range) -> dict[str, Tensor]:
        parts = [see(numbers[n : n + _BATCH]) for n in range(0, len(numbers), _BATCH)]
        return {name: torch.cat(parts)}

    def see(numbers: range) -> Tensor:
        images = [Image.fromarray(pictures.pixels[n]) for n in numbers]
        if name != "face_patches":
            return clip.see(images, name)
        assert faces is not None and blank is not None
        points = [faces["points"][n].double().numpy() for n in numbers]
        there = [not np.isnan(each).any() for each in points]
        turned = [
            align(image, own, ALIGNED) if found else image
            for image, own, found in zip(images, points, there, strict=True)
        ]
        seen = clip.see(turned, name)
        return torch.where(torch.tensor(there)[:, None, None], seen, blank.to(seen))

    return compute


def _faces(pictures: Pictures, folder: Path) -> dict[str, Tensor]:
    """Vectors of dlib's recogniser and facial points; 0 and NaN where no face is found."""
    embedder = DlibEmbedder()

    def compute(numbers: range) -> dict[str, Tensor]:
        vectors = torch.zeros(len(numbers), embedder.width)
        points = torch.full((len(numbers), 5, 2), torch.nan)
        for row, number in enumerate(numbers):
            image = Image.fromarray(pictures.pixels[number])
            try:
                found = embedder.find(image)
                vectors[row] = torch.from_numpy(embedder.embed(image, found))
            except FusionError:
                continue
            points[row] = torch.from_numpy(found.points)
        return {"vector": vectors, "points": points}

    key = sha256_json([embedder.fingerprint, pictures_key(pictures)])
    faces = cached_rows(folder / "faces", key, len(pictures), compute)
    missing = int(faces["points"].isnan().any(dim=(1, 2)).sum())
    if missing:
        logger.warning("no face was found in %d of %d pictures", missing, len(pictures))
    return faces
