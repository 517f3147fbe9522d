"""The frozen models that turn pictures and captions into what the UNet sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.clip import tokenize
from fusionlib.training.objective import face_weights
from fusionlib.training.pairs import as_pixels


@dataclass
class Encoders:
    """The frozen autoencoder and text encoder of a checkpoint.

    Attributes:
        vae: an ``AutoencoderKL``.
        text_encoder: a ``CLIPTextModel``.
        tokenizer: its ``CLIPTokenizer``.
        device: where they run.
        dtype: in which they run.
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Encoders:
        """Those of a checkpoint's folder."""
        return Encoders(
            load_frozen(AutoencoderKL, folder / "vae", dtype).to(device),
            load_frozen(CLIPTextModel, folder / "text_encoder", dtype).to(device),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            device,
            dtype,
        )

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures, uint8 ``(batch, h, w, 3)``, to scaled latents in float32."""
        pixels = as_pixels(pictures.to(self.device)).to(self.dtype)
        return self.vae.encode(pixels).latent_dist.mode().float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """Text embeddings, ``(len(captions), tokens, width)``."""
        ids = tokenize(self.tokenizer, captions).to(self.device)
        return self.text_encoder(ids).last_hidden_state

    def unload(self) -> None:
        """Give their memory back: all that is needed of them is on disk."""
        self.vae = self.text_encoder = None

    def weights(self, masks: Tensor, latents: Tensor) -> Tensor:
        """Of the positions in the loss, from masks of the pictures."""
        size = (latents.shape[-2], latents.shape[-1])
        return face_weights(masks.to(self.device), size)
