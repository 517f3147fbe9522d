"""What frozen models make of a training set: computed once, a chunk at a time, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from fusionlib.errors import FusionError
from fusionlib.support.provenance import sha256_json, sha256_modules
from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.crops import Crops
from fusionlib.training.encoders import Encoders, encode_pictures, tokenize
from fusionlib.training.pictures import Pictures
from fusionlib.training.shards import MissingShard, Sample

CHUNK = 256
"""Pictures in one file."""


def pictures_key(pictures: Pictures) -> str:
    """A hash of a set's pixels, for the key of what is computed from them.

    Args:
        pictures: the set.
    """
    return hashlib.sha256(pictures.pixels.data).hexdigest()[:16]


def kept_rows(
    folder: Path, key: str, count: int, compute: Callable[[range], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors with a row for each picture, read from disk, or computed where they are not there.

    A stopped run goes on, and runs that start side by side share the work: each takes the missing
    chunks in an order of its own.

    Args:
        folder: its files, and the name of the progress bar; files of another key are made anew.
        key: names all that the rows depend on.
        count: rows.
        compute: makes the rows of these numbers.

    Returns:
        By name, ``(count, ...)``.

    Raises:
        FusionError: another run replaces the files by those of another key.
    """
    starts = range(0, count, CHUNK)
    files = [folder / f"{start:08d}.safetensors" for start in starts]
    missing = [start for start, file in zip(starts, files, strict=True) if not holds(file, key)]
    random.Random(os.getpid()).shuffle(missing)  # noqa: S311
    for start in tqdm(missing, desc=folder.name, mininterval=2.0, disable=not missing):
        file = folder / f"{start:08d}.safetensors"
        if not holds(file, key):
            write(file, key, compute(range(start, min(start + CHUNK, count))))
    parts = []
    for file in files:
        with safe_open(file, "pt") as reader:
            if reader.metadata().get("key") != key:
                raise FusionError(
                    f"{file} was replaced while it was read: another run computes the same of "
                    "another set or by another model. Give one of them another `training.runs`."
                )
            parts.append({name: reader.get_tensor(name) for name in reader.keys()})  # noqa: SIM118
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def holds(file: Path, key: str) -> bool:
    """Whether a file is there and was written under this key.

    Args:
        file: of `write`.
        key: see `kept_rows`.
    """
    if not file.is_file():
        return False
    with safe_open(file, "pt") as reader:
        return (reader.metadata() or {}).get("key") == key


def write(file: Path, key: str, tensors: Mapping[str, Tensor], **said: str) -> None:
    """Write a file of tensors in one go, under a key.

    Args:
        file: its folder is made.
        key: see `holds`.
        tensors: by name.
        said: further metadata.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".partial-{uuid4().hex}")  # runs on other machines, too
    save_file(dict(tensors), partial, {"key": key, **said})
    os.replace(partial, file)


@dataclass(frozen=True)
class Captions:
    """Text embeddings of every wording.

    Attributes:
        embeddings: ``(wordings, tokens, width)``; row 0 is the empty prompt.
        rows: for each picture, the rows of its wordings.
    """

    embeddings: Tensor
    rows: list[list[int]]

    def to(self, device: torch.device) -> Captions:
        """The same with the embeddings on a device."""
        return Captions(self.embeddings.to(device), self.rows)

    def draw(self, index: Tensor, dropped: Tensor, generator: torch.Generator) -> Tensor:
        """One wording for each picture, the empty prompt where ``dropped``.

        Returns:
            ``(len(index), tokens, width)``.
        """
        draws = torch.rand(len(index), generator=generator).tolist()
        rows = [
            0 if drop else self.rows[i][int(u * len(self.rows[i]))]
            for i, u, drop in zip(index.tolist(), draws, dropped.tolist(), strict=True)
        ]
        return self.embeddings[rows]


@torch.no_grad()
def embed_captions(folder: Path, pictures: Pictures, device: torch.device) -> Captions:
    """Run the text encoder over every distinct wording once.

    Args:
        folder: a checkpoint with ``tokenizer/`` and ``text_encoder/``.
        pictures: their captions.
        device: where to compute.
    """
    encoder = load_frozen(CLIPTextModel, folder / "text_encoder").to(device)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    numbers: dict[str, int] = {"": 0}
    rows = [
        [numbers.setdefault(text, len(numbers)) for text in wordings]
        for wordings in pictures.captions
    ]
    ids = tokenize(tokenizer, list(numbers))
    parts = [encoder(chunk.to(device)).last_hidden_state.cpu() for chunk in ids.split(512)]
    return Captions(torch.cat(parts), rows)


def cached_latents(folder: Path, pictures: Pictures, cache: Path, device: torch.device) -> Tensor:
    """Scaled latents of every picture, computed once.

    Args:
        folder: a checkpoint with ``vae/``.
        pictures: the training set.
        cache: folder of their files, reused while encoder and pictures are the same.
        device: where to compute.

    Returns:
        ``(n, channels, h, w)`` float32.
    """
    vae = load_frozen(AutoencoderKL, folder / "vae").to(device)
    encoder = sha256_modules([vae.encoder, vae.quant_conv])[:16]

    def encode(numbers: range) -> dict[str, Tensor]:
        latents = encode_pictures(vae, pictures, torch.tensor(numbers)) * scale
        return {"latents": latents.half().contiguous()}

    scale = vae.config["scaling_factor"]
    key = f"{encoder}-{pictures_key(pictures)}"
    latents = kept_rows(cache, key, len(pictures), encode)["latents"]
    return latents.float()  # rounded as in the file, so that a resumed run sees the same


class LatentStore:
    """Some random crops of each picture of a set, as target and as reference, and its captions.

    A picture of SD 1.5 takes 72 kB a crop and 118 kB a caption, in float16.

    Args:
        folder: its files; what other models, crops or pictures left there is made anew.
        samples: the set.
        variants: crops of each picture.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], variants: int) -> None:
        self.folder, self.samples, self.variants = folder, samples, variants
        self.broken: dict[str, str] = {}
        self._readers: list[Any] = []

    def fill(self, crops: Crops, encoders: Encoders, seed: int) -> None:
        """Compute what is missing, shared out over the ranks; a stopped run goes on.

        Args:
            crops: how pictures are cut.
            encoders: the frozen models.
            seed: of the crops.
        """
        models = sha256_modules([encoders.vae, encoders.text_encoder])
        names = [[sample.place, sample.captions] for sample in self.samples]
        key = sha256_json([models, names, vars(crops), self.variants, seed])
        starts = range(0, len(self.samples), CHUNK)
        files = [self.folder / f"{start:08d}.safetensors" for start in starts]
        state = PartialState()
        todo = list(zip(starts, files, strict=True))[state.process_index :: state.num_processes]
        for start, file in tqdm(todo, desc="encoding", disable=not state.is_main_process):
            if not holds(file, key):
                tensors, broken = self._encode(start, crops, encoders, seed)
                write(file, key, tensors, broken=json.dumps(broken))
        state.wait_for_everyone()
        self._readers = [safe_open(file, "pt") for file in files]
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
        self, start: int, crops: Crops, encoders: Encoders, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """One file's tensors, zeros where a picture cannot be read, and why it cannot."""
        chunk = self.samples[start : start + CHUNK]
        broken: dict[str, str] = {}
        columns: dict[str, list[Tensor]] = {"targets": [], "masks": [], "references": []}
        for index, sample in enumerate(chunk, start):
            targets: list[Tensor] = []
            masks: list[Tensor] = []
            references: list[Tensor] = []
            blank = np.zeros((crops.size, crops.size, 3), np.uint8)
            for variant in range(self.variants):
                rng = np.random.default_rng([seed, index, variant])
                try:
                    shown = crops.target(sample, rng)
                    face = crops.reference(sample, rng)
                    pixels, mask = shown.pixels, shown.mask
                except MissingShard:
                    raise
                except FusionError as error:
                    broken[sample.place] = str(error)
                    pixels, mask, face = blank, blank[..., 0], blank
                for several, one in ((targets, pixels), (masks, mask), (references, face)):
                    several.append(torch.from_numpy(np.array(one)))
            latents = encoders.encode(torch.stack(targets + references)).half().cpu()
            columns["targets"].append(latents[: self.variants])
            columns["references"].append(latents[self.variants :])
            size = (latents.shape[2], latents.shape[3])
            columns["masks"].append(F.adaptive_avg_pool2d(torch.stack(masks).half(), size))
        tensors = {name: torch.stack(rows).contiguous() for name, rows in columns.items()}
        captions = [caption for sample in chunk for caption in sample.captions]
        parts = [captions[i : i + 64] for i in range(0, len(captions), 64)]
        tensors["text"] = torch.cat([encoders.embed(part).half().cpu() for part in parts])
        return tensors, broken
