"""A cache on disk of what frozen models compute for a training set, in files of many rows."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.support.files import write_bytes
from fusionlib.support.provenance import sha256_json, sha256_modules
from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.crops import Crops
from fusionlib.training.encoders import Encoders, encode_pictures
from fusionlib.training.pictures import Pictures
from fusionlib.training.shards import MissingShard, Sample

CHUNK = 256
"""Pictures in one file."""


class ChunkFiles:
    """Files of tensors, each with the rows of `CHUNK` pictures.

    A stopped run continues where it was, and runs that start side by side share the work: each
    takes the missing files in an order of its own.

    Args:
        folder: Folder of the files; its name is the progress bar's.
        key: Hash of everything that the rows depend on. Files with another key are computed again.
        count: Number of rows in all.
    """

    def __init__(self, folder: Path, key: str, count: int) -> None:
        self.folder, self.key = folder, key
        self.chunks = [range(n, min(n + CHUNK, count)) for n in range(0, count, CHUNK)]

    def fill(
        self,
        compute: Callable[[range], tuple[Mapping[str, Tensor], Mapping[str, str]]],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Compute the files that are missing.

        Args:
            compute: Makes the tensors of these rows, and metadata to store beside them.
            rank: Number of this process among those that share the files.
            ranks: Number of these processes.
        """
        missing = [rows for rows in self.chunks[rank::ranks] if not self._is_current(rows)]
        random.Random(os.getpid()).shuffle(missing)  # noqa: S311
        quiet = not missing or rank > 0
        for rows in tqdm(missing, desc=self.folder.name, mininterval=2.0, disable=quiet):
            if not self._is_current(rows):
                tensors, metadata = compute(rows)
                content = save(dict(tensors), {"key": self.key, **metadata})
                write_bytes(self._file(rows), content)

    def open(self) -> list[Any]:
        """Open all files, in order.

        Raises:
            FusionError: Another run has replaced a file by one with another key.
        """
        readers = []
        for rows in self.chunks:
            reader = safe_open(self._file(rows), "pt")
            if reader.metadata().get("key") != self.key:
                raise FusionError(
                    f"{self._file(rows)} was replaced while it was read: another run computes the "
                    "same of another set or by another model. Give one of them another "
                    "`training.runs`."
                )
            readers.append(reader)
        return readers

    def _file(self, rows: range) -> Path:
        return self.folder / f"{rows.start:08d}.safetensors"

    def _is_current(self, rows: range) -> bool:
        """Whether a file is there and has this key."""
        if not self._file(rows).is_file():
            return False
        with safe_open(self._file(rows), "pt") as reader:
            return (reader.metadata() or {}).get("key") == self.key


def cached_rows(
    folder: Path, key: str, count: int, compute: Callable[[range], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Read tensors with a row for each picture from disk, and compute those that are missing.

    Args:
        folder: Folder of the files.
        key: Hash of everything that the rows depend on.
        count: Number of rows.
        compute: Makes the tensors of these rows.

    Returns:
        Tensors ``(count, ...)`` by name.

    Raises:
        FusionError: Another run has replaced a file by one with another key.
    """
    files = ChunkFiles(folder, key, count)
    files.fill(lambda rows: (compute(rows), {}))
    parts = [{name: file.get_tensor(name) for name in file.keys()} for file in files.open()]  # noqa: SIM118
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def pictures_key(pictures: Pictures) -> str:
    """A hash of a set's pixels, for the key of what is computed from them."""
    return hashlib.sha256(pictures.pixels.data).hexdigest()[:16]


def cached_latents(folder: Path, pictures: Pictures, cache: Path, device: torch.device) -> Tensor:
    """Scaled latents of every picture of a set in memory.

    Args:
        folder: Folder of a checkpoint with ``vae/``.
        pictures: Training set.
        cache: Folder of the files.
        device: Device of the encoder.

    Returns:
        Latents ``(n, channels, h, w)``, float32.
    """
    vae = load_frozen(AutoencoderKL, folder / "vae").to(device)
    encoder = sha256_modules([vae.encoder, vae.quant_conv])[:16]

    def encode(rows: range) -> dict[str, Tensor]:
        latents = encode_pictures(vae, pictures, torch.tensor(rows)) * scale
        return {"latents": latents.half().contiguous()}

    scale = vae.config["scaling_factor"]
    key = f"{encoder}-{pictures_key(pictures)}"
    latents = cached_rows(cache, key, len(pictures), encode)["latents"]
    return latents.float()  # rounded as in the file, so that a resumed run sees the same


class CachedCrops:
    """Some random crops of each picture, as target and as reference, and its captions' embeddings.

    With SD 1.5 a crop takes 72 kB and a caption 118 kB, in float16.

    Args:
        folder: Folder of the files.
        samples: Training set.
        variants: Number of crops of each picture.
        crops: How the pictures are cut.
        encoders: Frozen models.
        seed: Seed of the crops.

    Attributes:
        broken: Why pictures could not be read, by place.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        variants: int,
        crops: Crops,
        encoders: Encoders,
        seed: int,
    ) -> None:
        self.samples, self.variants = samples, variants
        models = sha256_modules([encoders.vae, encoders.text_encoder])
        names = [[sample.place, sample.captions] for sample in samples]
        key = sha256_json([models, names, vars(crops), variants, seed])
        files = ChunkFiles(folder, key, len(samples))
        state = PartialState()
        files.fill(
            lambda rows: self._encode(rows, crops, encoders, seed),
            state.process_index,
            state.num_processes,
        )
        state.wait_for_everyone()
        self._readers = files.open()
        self.broken: dict[str, str] = {}
        for reader in self._readers:
            self.broken |= json.loads(reader.metadata()["broken"])

    def row(self, name: str, index: int, variant: int) -> Tensor:
        """One of the ``targets``, ``masks`` or ``references`` of a picture."""
        return self._readers[index // CHUNK].get_slice(name)[index % CHUNK, variant]

    def text(self, index: int, wording: int) -> Tensor:
        """The embedding of one of a picture's captions, ``(tokens, width)``."""
        first = index - index % CHUNK
        before = sum(len(sample.captions) for sample in self.samples[first:index])
        return self._readers[index // CHUNK].get_slice("text")[before + wording]

    def _encode(
        self, rows: range, crops: Crops, encoders: Encoders, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """One file's tensors, zeros where a picture cannot be read, and as metadata why not."""
        chunk = [self.samples[index] for index in rows]
        broken: dict[str, str] = {}
        columns: dict[str, list[Tensor]] = {"targets": [], "masks": [], "references": []}
        blank = np.zeros((crops.size, crops.size, 3), np.uint8)
        for index, sample in zip(rows, chunk, strict=True):
            shown = []
            for variant in range(self.variants):
                rng = np.random.default_rng([seed, index, variant])
                try:
                    target = crops.target(sample, rng)
                    shown.append((target.pixels, target.mask, crops.reference(sample, rng)))
                except MissingShard:
                    raise
                except FusionError as error:
                    broken[sample.place] = str(error)
                    shown.append((blank, blank[..., 0], blank))
            targets, masks, references = (
                torch.from_numpy(np.stack(several)) for several in zip(*shown, strict=True)
            )
            latents = encoders.encode(torch.cat([targets, references])).half().cpu()
            columns["targets"].append(latents[: self.variants])
            columns["references"].append(latents[self.variants :])
            size = (latents.shape[2], latents.shape[3])
            columns["masks"].append(F.adaptive_avg_pool2d(masks.half(), size))
        tensors = {name: torch.stack(several).contiguous() for name, several in columns.items()}
        captions = [caption for sample in chunk for caption in sample.captions]
        parts = [captions[i : i + 64] for i in range(0, len(captions), 64)]
        tensors["text"] = torch.cat([encoders.embed(part).half().cpu() for part in parts])
        return tensors, {"broken": json.dumps(broken)}
