"""Picture quality against a reference picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio


def psnr(image: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit RGB pictures of one size, in dB.

    Computed in floating point by scikit-image; differences of 8-bit numbers would wrap around.
    """
    return float(peak_signal_noise_ratio(np.asarray(reference), np.asarray(image), data_range=255))


@torch.no_grad()
def reconstruct(pipeline: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Send pictures through a pipeline's autoencoder and back: what its latents can hold.

    Args:
        pipeline: a Stable Diffusion pipeline.
        images: RGB, all of one size.

    Returns:
        The reconstructions, in order.
    """
    pixels = pipeline.image_processor.preprocess(list(images))
    vae = pipeline.vae
    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    decoded = vae.decode(latents).sample
    restored: list[Image.Image] = pipeline.image_processor.postprocess(decoded)
    return restored
