"""The frozen models that turn pictures into latents, and captions into text embeddings."""

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
from fusionlib.training.pictures import Pictures, as_pixels


@dataclass
class Encoders:
    """The frozen autoencoder and text encoder of a checkpoint.

    Attributes:
        vae: ``AutoencoderKL`` of the checkpoint.
        text_encoder: ``CLIPTextModel`` of the checkpoint.
        tokenizer: Its ``CLIPTokenizer``.
        device: Device of both models.
        dtype: Compute dtype of both models.
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Encoders:
        """Load those of a checkpoint's folder."""
        return Encoders(
            load_frozen(AutoencoderKL, folder / "vae", dtype).to(device),
            load_frozen(CLIPTextModel, folder / "text_encoder", dtype).to(device),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            device,
            dtype,
        )

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures, uint8 ``(batch, h, w, 3)``, as scaled latents in float32."""
        pixels = as_pixels(pictures.to(self.device)).to(self.dtype)
        return self.vae.encode(pixels).latent_dist.mode().float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """Encode captions as text embeddings, ``(len(captions), tokens, width)``."""
        ids = tokenize(self.tokenizer, captions).to(self.device)
        return self.text_encoder(ids).last_hidden_state

    def unload(self) -> None:
        """Free the models' memory, once everything that they compute is on disk."""
        self.vae = self.text_encoder = None

    def weights(self, masks: Tensor, latents: Tensor) -> Tensor:
        """Loss weights of the latents' positions, from the pictures' face masks."""
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


@dataclass(frozen=True)
class Captions:
    """Text embeddings of every wording of a set in memory.

    Attributes:
        embeddings: Embeddings ``(wordings, tokens, width)``; row 0 is the empty prompt's.
        rows: For each picture, the rows of its wordings.
    """

    embeddings: Tensor
    rows: list[list[int]]


@torch.no_grad()
def embed_captions(folder: Path, pictures: Pictures, device: torch.device) -> Captions:
    """Run the text encoder over every distinct wording once.

    Args:
        folder: Folder of a checkpoint with ``tokenizer/`` and ``text_encoder/``.
        pictures: Training set.
        device: Device of the encoder; the result is on the CPU.
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


DIFFUSION_FACE_WEIGHT = 4.0
"""Weight added to the loss weight 1 of a position that lies wholly inside the face."""


def face_weights(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights of the latents' positions in the loss, larger inside the face.

    A face fills only a few positions, and its features are a small part of their variance, so a
    short training would mostly learn hair and background. The prediction that minimises the error
    at one position does not depend on that position's weight, which only changes the way there.

    Args:
        masks: Face masks, 0 or 1, ``(n, height, width)``; all zero where none is known.
        size: Height and width of the latents.

    Returns:
        Weights ``(n, 1, h, w)`` with mean 1 over each picture.
    """
    # In parts: converted at once, the masks of a training set would take four times their memory.
    parts = masks[:, None].split(256)
    covered = torch.cat([F.adaptive_avg_pool2d(part.float(), size) for part in parts])
    weights = 1 + DIFFUSION_FACE_WEIGHT * covered
    return weights / weights.mean(dim=(2, 3), keepdim=True)
