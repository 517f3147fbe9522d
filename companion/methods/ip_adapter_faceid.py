"""IP-Adapter-FaceID in four kinds: the second cross-attention reads a face recogniser's vector.

FaceID projects ArcFace's vector to four tokens and adds a LoRA to the UNet; in Plus (v2) these
tokens also read CLIP's view of the aligned face; SDXL is FaceID for the larger model; Portrait
makes 16 tokens of each of up to five faces, without a LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from companion.faces.arcface import align, load_embedder
from companion.methods import Method, Models
from companion.methods.common import guided, locate, make_method, read_adapter, read_faces
from companion.methods.ip_adapter import add_adapter, add_image_encoder, identity_embeds
from fusionlib.errors import FusionError
from fusionlib.profiles.loading import load_stock, quietly

WEIGHTS = "h94/IP-Adapter-FaceID"

CLIP = "h94/IP-Adapter"
"""Repository of the CLIP ViT-H with which Plus reads a face, in ``models/image_encoder``."""


@dataclass(frozen=True)
class Variant:
    """One of the published checkpoints.

    Attributes:
        name: Name in tables.
        file: Checkpoint; each but Portrait's holds its LoRA, too.
        lora: The same LoRA as a file of its own, read where the checkpoint lacks it.
        tokens: Number of tokens made of one face.
        xl: Whether the base model is SDXL, which the profile does not name.
        plus: Whether the tokens also read CLIP's view of the face.
        most: Most references that it was trained to see at once.
    """

    name: str
    file: str
    lora: str | None
    tokens: int = 4
    xl: bool = False
    plus: bool = False
    most: int = 1


FACEID = Variant("faceid", "ip-adapter-faceid_sd15.bin", "ip-adapter-faceid_sd15_lora.safetensors")
PLUS = Variant(
    "faceid-plus",
    "ip-adapter-faceid-plusv2_sd15.bin",
    "ip-adapter-faceid-plusv2_sd15_lora.safetensors",
    plus=True,
)
SDXL = Variant(
    "faceid-sdxl",
    "ip-adapter-faceid_sdxl.bin",
    "ip-adapter-faceid_sdxl_lora.safetensors",
    xl=True,
)
PORTRAIT = Variant(
    "faceid-portrait", "ip-adapter-faceid-portrait_sd15.bin", None, tokens=16, most=5
)


def build(
    variant: Variant,
    models: Models,
    *,
    name: str | None = None,
    weights: str = WEIGHTS,
    file: str | None = None,
    lora: bool = True,
    clip: str = CLIP,
    image_encoder: str = "models/image_encoder",
    faces: str | None = None,
    base_model: str | None = None,
    scale: float = 1.0,
    shortcut: bool = True,
    shortcut_scale: float = 1.0,
    references: int = 1,
    **sampling: Any,
) -> Method:
    """One kind of IP-Adapter-FaceID.

    Args:
        variant: Which of the four.
        models: Profile, device and what a study's methods share.
        name: Name in tables.
        weights: Folder or hub id, laid out as ``h94/IP-Adapter-FaceID``.
        file: Adapter file in there, ``.safetensors`` or ``.bin``; by default the published one.
        lora: Whether the adapter has a LoRA, as the published ones have.
        clip: For Plus, folder or hub id with the CLIP image encoder (ViT-H).
        image_encoder: For Plus, folder of the encoder in there.
        faces: Folder of insightface's ``buffalo_l``, by default where insightface puts it; or
            ``dlib``.
        base_model: Folder or hub id; by default the profile's, or for SDXL what its authors use.
        scale: Weight of the image attention's output; it does not scale the LoRA.
        shortcut: For Plus, whether the face's own tokens are added, as in version 2.
        shortcut_scale: For Plus, weight of CLIP's part beside them.
        references: Number of references that are seen: one with Plus; up to five with Portrait,
            whose tokens are concatenated; otherwise any number, whose vectors are averaged.
        sampling: Further arguments of the pipeline's call.

    Raises:
        FusionError: A file or package is missing, or a checkpoint does not fit the base model.
    """
    file = file or variant.file
    what = f"IP-Adapter-FaceID ({file})"
    if variant.plus and references != 1 or variant.most > 1 and references > variant.most:
        raise FusionError(f"{what} sees {variant.most} reference(s), not {references}.")
    path = locate(weights, file, what)
    state = read_adapter(path)
    embedder = load_embedder("buffalo_l", faces)
    if variant.xl:
        base_model = base_model or "SG161222/RealVisXL_V3.0"
    base_model = base_model or models.profile.base_model
    kind: Any = StableDiffusionXLPipeline if variant.xl else StableDiffusionPipeline
    pipeline = load_stock(kind, base_model, models.device, models.dtype)
    if variant.plus:
        add_image_encoder(pipeline, clip, image_encoder, what)
    tokens = add_adapter(pipeline, state, scale, what)
    projection = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    if tokens != variant.tokens or variant.plus != hasattr(projection, "shortcut"):
        raise FusionError(f"{path} is another kind of adapter than its name says.")
    if lora and variant.lora and not any("lora" in key for key in state["ip_adapter"]):
        add_lora(pipeline, locate(weights, variant.lora, what))
    if variant.plus:
        projection.shortcut, projection.shortcut_scale = shortcut, shortcut_scale
    with_guidance = guided(models, sampling)

    def prepare(images: Sequence[Image.Image]) -> dict[str, Any]:
        found, read = read_faces(embedder, images)
        vectors = torch.stack([F.normalize(vector, dim=0) for vector in read])
        if variant.most == 1:
            vectors = vectors.mean(0, keepdim=True)
        prepared = {"embeds": identity_embeds(pipeline, vectors, with_guidance)}
        if variant.plus:
            crops = [align(images[0], found[0].points, 224)]
            with torch.no_grad():
                (prepared["views"],) = pipeline.prepare_ip_adapter_image_embeds(
                    [crops], None, pipeline.device, 1, with_guidance
                )
        return prepared

    def call(prompt: str, prepared: dict[str, Any]) -> dict[str, Any]:
        if variant.plus:
            projection.clip_embeds = prepared["views"]
        return {"prompt": prompt, "ip_adapter_image_embeds": prepared["embeds"]}

    plus = {"shortcut": shortcut, "shortcut_scale": shortcut_scale} if variant.plus else {}
    return make_method(
        name or variant.name,
        models,
        pipeline,
        call=call,
        prepare=prepare,
        sampling=sampling,
        settings={**plus, "scale": scale, "tokens": tokens},
        references=references,
        code=("methods/ip_adapter.py", "methods/ip_adapter_faceid.py"),
        needs=(
            base_model,
            f"{weights}/{file}",
            *([f"{clip}/{image_encoder}"] if variant.plus else []),
        ),
        citation="ye2023ipadapter",
        embedder=embedder,
    )


build_faceid = partial(build, FACEID)
build_faceid_plus = partial(build, PLUS)
build_faceid_sdxl = partial(build, SDXL)
build_faceid_portrait = partial(build, PORTRAIT)


def add_lora(pipeline: Any, path: Path) -> None:
    """Load LoRA weights from a file of their own, in any format that diffusers knows."""
    try:
        with quietly():
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    except Exception as error:  # diffusers, peft and safetensors each have errors of their own
        raise FusionError(
            f"The LoRA {path} does not fit the base model: download it again."
        ) from error
