"""Latents and text embeddings on disk: what streamed pictures look like to the UNet, computed once.

Encoding a picture of 512 pixels costs more than a third of a training step. With a few random crops
of each picture on disk, the autoencoder and the text encoder are not needed again, at the price of
variety.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.manifest import sha256_json, sha256_modules
from fusionlib.training.crops import Crops
from fusionlib.training.encoders import Encoders
from fusionlib.training.kept import CHUNK, holds, write
from fusionlib.training.shards import MissingShard, Sample


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
