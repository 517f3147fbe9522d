"""IP-Adapter: a second cross-attention, whose keys and values come from a CLIP image embedding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from companion.methods import Method, Models
from companion.methods.common import Weights, guided, load_part, locate, make_method, read_adapter
from fusionlib.errors import FusionError
from fusionlib.profiles.loading import load_stock, quietly

WEIGHTS = "h94/IP-Adapter"

SCALE = 0.5
"""Value that its authors advise beside a text prompt; 1 is for pictures without one."""


def build_ip_adapter(
    models: Models,
    *,
    name: str = "ip-adapter",
    weights: str = WEIGHTS,
    file: str = "models/ip-adapter_sd15.safetensors",
    clip: str | None = None,
    image_encoder: str = "models/image_encoder",
    base_model: str | None = None,
    scale: float = SCALE,
    references: int = 1,
    **sampling: Any,
) -> Method:
    """IP-Adapter for Stable Diffusion 1.5, on the profile's base model.

    Args:
        models: Profile, device and what a study's methods share.
        name: Name in tables.
        weights: Folder or hub id, laid out as ``h94/IP-Adapter``.
        file: Adapter file in there, ``.safetensors`` or ``.bin``.
        clip: Folder or hub id with the CLIP image encoder (ViT-H); by default ``weights``.
        image_encoder: Folder of the encoder in there.
        base_model: Folder or hub id; by default the profile's.
        scale: Weight of the image attention's output; 0 is text only.
        references: Number of references that are seen; their tokens are concatenated.
        sampling: Further arguments of the pipeline's call.

    Raises:
        FusionError: A file is missing, or does not fit the base model.
    """
    state = read_adapter(locate(weights, file, "IP-Adapter"))
    base_model = base_model or models.profile.base_model
    pipeline = load_stock(StableDiffusionPipeline, base_model, models.device, models.dtype)
    clip = clip or weights
    add_image_encoder(pipeline, clip, image_encoder, "IP-Adapter")
    tokens = add_adapter(pipeline, state, scale, "IP-Adapter")
    with_guidance = guided(models, sampling)

    def prepare(images: Sequence[Image.Image]) -> list[Tensor]:
        shown = [[image.convert("RGB") for image in images]]
        with torch.no_grad():
            embeds: list[Tensor] = pipeline.prepare_ip_adapter_image_embeds(
                shown, None, pipeline.device, 1, with_guidance
            )
        return embeds

    return make_method(
        name,
        models,
        pipeline,
        call=lambda prompt, embeds: {"prompt": prompt, "ip_adapter_image_embeds": embeds},
        prepare=prepare,
        sampling=sampling,
        settings={"scale": scale, "tokens": tokens},
        references=references,
        code=("methods/ip_adapter.py",),
        needs=(base_model, f"{weights}/{file}", f"{clip}/{image_encoder}"),
        citation="ye2023ipadapter",
    )


build_ip_adapter_plus = partial(
    build_ip_adapter, name="ip-adapter-plus", file="models/ip-adapter-plus_sd15.safetensors"
)
"""Build IP-Adapter Plus: 16 tokens, which a resampler reads from CLIP's patches."""


def add_image_encoder(pipeline: Any, weights: str, folder: str, what: str) -> None:
    """Give a pipeline a CLIP image encoder and its image processor: see `load_image_encoder`."""
    encoder, processor = load_image_encoder(weights, folder, what, pipeline.unet.dtype)
    pipeline.register_modules(
        image_encoder=encoder.to(pipeline.device), feature_extractor=processor
    )


def load_image_encoder(weights: str, folder: str, what: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A CLIP image encoder, alone or of a whole CLIP, and its image processor.

    Args:
        weights: Folder or hub id.
        folder: Folder of the encoder in there.
        what: Name of the method, for an error.
        dtype: Type of the weights.

    Raises:
        FusionError: The encoder is not there.
    """
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    encoder = load_part(CLIPVisionModelWithProjection, weights, folder, what, dtype)
    side = encoder.config.image_size
    with quietly():
        processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    return encoder, processor


def add_adapter(pipeline: Any, state: Weights, scale: float, what: str) -> int:
    """Put an IP-Adapter of any kind into a pipeline's UNet, its LoRA weights included.

    Args:
        pipeline: A pipeline of diffusers; its UNet is changed.
        state: Weights of the checkpoint.
        scale: Weight of the image attention's output.
        what: Name of the method, for an error.

    Returns:
        The number of tokens that an image becomes.

    Raises:
        FusionError: The checkpoint does not fit the UNet, or the scale is no number of at least 0.
    """
    if not (isinstance(scale, int | float) and 0 <= scale < float("inf")):
        raise FusionError(f"scale must be a finite number of at least 0, not {scale!r}.")
    try:
        with quietly():
            pipeline.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise FusionError(
            f"{what}: the checkpoint does not fit the base model's UNet "
            f"({str(error).strip().splitlines()[0]}): Stable Diffusion 1.5 and SDXL each need "
            "their own."
        ) from error
    pipeline.set_ip_adapter_scale(float(scale))
    return tokens_of(pipeline.unet.encoder_hid_proj.image_projection_layers[0])


def tokens_of(projection: Any) -> int:
    """The number of tokens that one of diffusers' image projections makes of an image."""
    for attribute in ("num_image_text_embeds", "num_tokens"):
        if hasattr(projection, attribute):
            return int(getattr(projection, attribute))
    return int(projection.latents.shape[1])


def identity_embeds(pipeline: Any, vectors: Tensor, with_guidance: bool) -> list[Tensor]:
    """Face vectors as diffusers' pipelines take them, with zeros for the unconditional branch.

    Args:
        pipeline: Pipeline that takes them.
        vectors: ``(references, width)``, or ``(references, length, width)`` for a resampler.
        with_guidance: Whether the pipeline's call computes an unconditional branch, too.

    Returns:
        One tensor, ``(2 or 1, references, ...)``.
    """
    given = vectors[None].to(pipeline.device, pipeline.unet.dtype)
    return [torch.cat([torch.zeros_like(given), given]) if with_guidance else given]
