"""The frozen models that turn pictures and captions into what the UNet sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.pairs import as_pixels
from fusionlib.training.pictures import Pictures


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


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Pictures, index: Tensor) -> Tensor:
    """Unscaled latents (the posterior's mean) of pictures, ``(len(index), channels, h, w)``."""
    vae.eval()
    parts = []
    with torch.autocast(vae.device.type, torch.bfloat16):
        for chunk in tqdm(index.split(64), desc="encoding pictures", delay=5.0):
            pixels = pictures.batch(chunk, vae.device)
            latents = vae.encode(pixels).latent_dist.mean
            parts.append(latents.float().cpu())
    return torch.cat(parts).contiguous()


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids padded and cut to the model's length, ``(len(texts), length)``."""
    return tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids


DIFFUSION_FACE_WEIGHT = 4.0
"""Added to the loss weight 1 of a position that lies wholly inside the face."""


def face_weights(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """How much each position of the latents counts in the loss: more inside the face.

    A face fills a few of the positions, and its features a small part of their variance, so a short
    training would spend itself on hair and background. What minimises the error at one position
    does not depend on the weight of that position: only the way there does.

    Args:
        masks: face masks, 0 or 1, ``(n, height, width)``; all zero where none is known.
        size: ``(h, w)`` of the latents.

    Returns:
        ``(n, 1, h, w)``, of mean 1 over each picture.
    """
    # In parts: as floats, the masks of a training set would take four times their memory at once.
    parts = masks[:, None].split(256)
    covered = torch.cat([F.adaptive_avg_pool2d(part.float(), size) for part in parts])
    weights = 1 + DIFFUSION_FACE_WEIGHT * covered
    return weights / weights.mean(dim=(2, 3), keepdim=True)
