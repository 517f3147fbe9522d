"""What the frozen models make of the training set, computed once and kept: latents and text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from fusionlib.manifest import sha256_modules
from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.clip import tokenize
from fusionlib.training.data import Pictures
from fusionlib.training.kept import kept_rows, pictures_key
from fusionlib.training.vae import encode_pictures


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
