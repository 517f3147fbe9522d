"""A whole training set in memory, read from webdataset shards in img2dataset's layout.

The embedded data set (about 10,000 pictures at 128 pixels) takes 0.5 GB of memory as bytes.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.inputs.images import open_picture, to_rgb
from fusionlib.support.paths import is_hidden, user_path
from fusionlib.support.texts import decode_text
from fusionlib.training.shards import PICTURES, find_shards, split_name, wordings_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """A captioned set of pictures of known people.

    Attributes:
        pixels: Pictures, uint8 ``(n, height, width, 3)``.
        masks: Face masks, uint8 0 or 1, ``(n, height, width)``.
        captions: One or more wordings for each picture.
        person: Number of the person in each picture, ``(n,)``. A picture of several people has a
            negative number of its own, so that no other picture counts as one of the same person.
        style: Style of each picture ("photo", "line art", ...).
        skipped: Number of samples that could not be read.
        depth: Depth maps, uint8, near is bright, ``(n, height, width)``; None if not asked for.
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    captions: list[list[str]]
    person: NDArray[np.int64]
    style: list[str]
    skipped: int = 0
    depth: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pixels)

    def mirrored(self) -> Pictures:
        """The pictures, then their mirror images in the same order."""
        return Pictures(
            np.concatenate([self.pixels, self.pixels[:, :, ::-1]]),
            np.concatenate([self.masks, self.masks[:, :, ::-1]]),
            self.captions * 2,
            np.concatenate([self.person, self.person]),
            self.style * 2,
            self.skipped,
            None if self.depth is None else np.concatenate([self.depth, self.depth[:, :, ::-1]]),
        )

    def batch(
        self, index: Tensor | NDArray[Any], device: torch.device | str | None = None
    ) -> Tensor:
        """Pictures as float32 in [-1, 1], ``(batch, 3, height, width)``, channels last.

        Args:
            index: Rows of the pictures.
            device: Device to which they are copied as bytes; by default they stay on the CPU.
        """
        return as_pixels(torch.from_numpy(self.pixels[np.asarray(index)]).to(device))


def as_pixels(pictures: Tensor) -> Tensor:
    """uint8 ``(batch, h, w, 3)`` to float32 ``(batch, 3, h, w)`` in [-1, 1], channels last."""
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def load_pictures(folder: str | Path, size: int, *, depth: bool = False) -> Pictures:
    """Read every shard of a folder.

    Args:
        folder: Folder of ``00000.tar``, ``00001.tar``, ... with ``key.jpg``, ``key.txt``,
            ``key.json`` and possibly ``key.mask.png`` and ``key.depth.png`` for each sample.
        size: Side of the pictures in pixels; others are resized.
        depth: Whether to read depth maps as well; samples without one are then skipped.

    Returns:
        The pictures. Samples that cannot be read are skipped, counted and reported.

    Raises:
        FusionError: There is no shard, a shard is not a tar file, or nothing is readable.
    """
    folder = user_path(folder)
    there = folder.exists() or any(sign in str(folder) for sign in "{*?[")
    shards = find_shards(folder) if there else []
    if not shards:
        raise FusionError(
            f"there is no shard (*.tar) in {folder}: make the training set with "
            f"`fusionlib people render {folder}`"
        )
    pixels: list[NDArray[np.uint8]] = []
    masks, captions, person, style = [], [], [], []
    depths: list[NDArray[np.uint8]] = []
    skipped = 0
    for shard in tqdm(shards, desc="reading shards", mininterval=2.0):
        for key, files in _samples(shard).items():
            try:
                kind = next((kind for kind in PICTURES if kind in files), "jpg")
                image = to_rgb(open_picture(io.BytesIO(files[kind]), "its picture"))
                facts = json.loads(decode_text(files["json"], "its JSON file"))
                if image.size != (size, size):
                    image = image.resize((size, size), Image.Resampling.LANCZOS)
                mask = np.zeros((size, size), np.uint8)
                if "mask.png" in files:
                    drawn = Image.open(io.BytesIO(files["mask.png"])).convert("L")
                    mask = (np.asarray(drawn.resize((size, size))) > 127).astype(np.uint8)
                wordings = wordings_of(facts, files.get("txt"))
                several = "people" in facts
                identity = -1 - len(pixels) if several else int(facts["person"])
                if depth:
                    grey = Image.open(io.BytesIO(files["depth.png"])).convert("L")
                    depths.append(np.asarray(grey.resize((size, size))))
            except (KeyError, TypeError, ValueError, OSError, SyntaxError, RecursionError) as error:
                skipped += 1
                logger.warning("%s: skipped sample %s (%s)", shard, key, error)
                continue
            pixels.append(np.asarray(image))
            masks.append(mask)
            captions.append(wordings)
            person.append(identity)
            style.append(str(facts.get("style", "photo")))
    if not pixels:
        raise FusionError(f"none of the {skipped} samples in {folder} could be read")
    if skipped:
        logger.warning(
            "%d of %d samples in %s were skipped", skipped, skipped + len(pixels), folder
        )
    return Pictures(
        np.stack(pixels),
        np.stack(masks),
        captions,
        np.asarray(person, np.int64),
        style,
        skipped,
        np.stack(depths) if depth else None,
    )


def _samples(shard: Path) -> dict[str, dict[str, bytes]]:
    """The files of a shard by sample key and extension."""
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                key, extension = split_name(member.name)
                content = None if is_hidden(member.name) else archive.extractfile(member)
                if content is not None:
                    samples[key][extension] = content.read()
    except (tarfile.TarError, EOFError) as error:
        raise FusionError(
            f"{shard} is not a readable tar file ({error}): delete it and render the set again"
        ) from error
    return samples
