"""What the frozen models make of the training set, computed once and kept: latents and text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from fusionlib.manifest import sha256_modules
from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.clip import tokenize
from fusionlib.training.data import Pictures
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
        cache: safetensors file, reused while encoder and pictures are the same.
        device: where to compute.

    Returns:
        ``(n, channels, h, w)`` float32.
    """
    vae = load_frozen(AutoencoderKL, folder / "vae").to(device)
    encoder = sha256_modules([vae.encoder, vae.quant_conv])[:16]
    key = f"{encoder}-{len(pictures)}-{int(pictures.pixels.sum(dtype='int64'))}"
    if cache.is_file():
        with safe_open(cache, "pt") as file:
            if file.metadata().get("key") == key:
                return file.get_tensor("latents").float()
    latents = encode_pictures(vae, pictures, torch.arange(len(pictures)))
    latents = (latents * vae.config["scaling_factor"]).half().contiguous()
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial")
    save_file({"latents": latents}, partial, {"key": key})
    os.replace(partial, cache)
    return latents.float()  # rounded as in the file, so that a resumed run sees the same
