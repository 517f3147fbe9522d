"""InstantID: decoupled attention to a face vector, and a ControlNet that sees the face's tokens.

IdentityNet is a ControlNet of SDXL. It is given five points of the face as a picture, and the
face's tokens in place of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from companion.faces.arcface import load_embedder
from companion.methods import Method, Models
from companion.methods.common import (
    guided,
    load_part,
    locate,
    make_method,
    read_adapter,
    read_faces,
)
from companion.methods.ip_adapter import add_adapter, identity_embeds
from fusionlib.errors import FusionError
from fusionlib.profiles.loading import load_stock, torch_place

WEIGHTS = "InstantX/InstantID"

PUBLISHED = {"guidance_scale": 5.0}
"""The authors' own settings, which override those that a study's methods share."""

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""Colours of the points: left and right eye in the picture, nose, corners of the mouth."""

NOSE, STICK, RADIUS, DIM = 2, 4, 10, 0.6
"""Index of the nose; half the width of a stick and the radius of a dot, in pixels; brightness of
the sticks."""


def build_instantid(
    models: Models,
    *,
    name: str = "instantid",
    weights: str = WEIGHTS,
    file: str = "ip-adapter.bin",
    faces: str | None = None,
    base_model: str = "wangqixun/YamerMIX_v8",
    scale: float = 0.8,
    identity_net_scale: float = 0.8,
    thickness: float = 1.0,
    shares_unet: bool = False,
    own_sampling: bool = True,
    references: int = 1,
    **sampling: Any,
) -> Method:
    """InstantID, on an SDXL base model, or on the one that its IdentityNet was trained for.

    Args:
        models: Profile, device and what a study's methods share.
        name: Name in tables.
        weights: Folder or hub id, laid out as ``InstantX/InstantID``: ``ip-adapter.bin`` and
            ``ControlNetModel/``.
        file: Adapter file in there, ``.safetensors`` or ``.bin``.
        faces: Folder of insightface's ``antelopev2``, by default where insightface puts it; or
            ``dlib``.
        base_model: Folder or hub id of the base model.
        scale: Weight of the image attention's output.
        identity_net_scale: Weight of IdentityNet; with both at 0 it is text only.
        thickness: Thickness of the drawn points, see `draw_points`.
        shares_unet: Whether IdentityNet's file holds only the layers that were trained, and the
            others are the base model's own.
        own_sampling: Whether to use the authors' own guidance scale.
        references: Number of references that are seen: their vectors are averaged, and the points
            are those of the first.
        sampling: Further arguments of the pipeline's call.

    Raises:
        FusionError: A file or package is missing, or a checkpoint does not fit the base model.
    """
    state = read_adapter(locate(weights, file, "InstantID"))
    _, dtype = torch_place(models.device, models.dtype)
    if shares_unet:
        controlnet = over_the_unet(weights, base_model, dtype)
    else:
        controlnet = load_part(ControlNetModel, weights, "ControlNetModel", "InstantID", dtype)
    embedder = load_embedder("antelopev2", faces)
    xl = controlnet.config["addition_embed_type"] == "text_time"
    pipeline = load_stock(
        StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline,
        base_model,
        models.device,
        models.dtype,
        controlnet=controlnet,
    )
    tokens = add_adapter(pipeline, state, scale, "InstantID")
    sampling = {**(PUBLISHED if own_sampling else {}), **sampling}
    with_guidance = guided(models, sampling)
    project = pipeline.unet.encoder_hid_proj
    shown: list[Tensor] = []

    def show_face(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": shown[0]}

    controlnet.register_forward_pre_hook(show_face, with_kwargs=True)

    def prepare(images: Sequence[Image.Image]) -> tuple[list[Tensor], Image.Image]:
        found, vectors = read_faces(embedder, images)
        mean = torch.stack(vectors).mean(0, keepdim=True)
        size = _picture_size(pipeline, {**(models.sampling or {}), **sampling})
        drawing = draw_points(found[0].points, images[0].size, size, thickness)
        sequence = mean[:, None]  # the resampler attends to a sequence, here of one vector
        return identity_embeds(pipeline, sequence, with_guidance), drawing

    def call(prompt: str, prepared: tuple[list[Tensor], Image.Image]) -> dict[str, Any]:
        embeds, drawing = prepared
        with torch.no_grad():
            shown[:] = [project(embeds)[0].flatten(1, 2)]
        return {
            "prompt": prompt,
            "ip_adapter_image_embeds": embeds,
            "image": drawing,
            "controlnet_conditioning_scale": float(identity_net_scale),
        }

    return make_method(
        name,
        models,
        pipeline,
        call=call,
        prepare=prepare,
        sampling=sampling,
        settings={
            "scale": scale,
            "identity_net_scale": identity_net_scale,
            **({} if thickness == 1 else {"thickness": thickness}),
            "tokens": tokens,
        },
        references=references,
        code=("methods/ip_adapter.py", "methods/instantid.py"),
        needs=(base_model, f"{weights}/{file}", f"{weights}/ControlNetModel"),
        citation="wang2024instantid",
        embedder=embedder,
    )


def over_the_unet(weights: str, base_model: str, dtype: torch.dtype) -> ControlNetModel:
    """IdentityNet from the layers that were trained, and the base model's for all others.

    Args:
        weights: Folder or hub id with ``ControlNetModel/``.
        base_model: Folder or hub id; its UNet has these layers by the same names.
        dtype: Type of the weights.

    Raises:
        FusionError: A file is missing, or does not fit the UNet.
    """
    file = locate(weights, "ControlNetModel/diffusion_pytorch_model.safetensors", "InstantID")
    config = locate(weights, "ControlNetModel/config.json", "InstantID")
    controlnet = ControlNetModel.from_config(ControlNetModel.load_config(config.parent))
    unet = load_part(UNet2DConditionModel, base_model, "unet", "InstantID", torch.float32)
    try:
        state = unet.state_dict() | load_file(file)
        controlnet.load_state_dict({name: state[name] for name in controlnet.state_dict()})
    except (KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FusionError(
            f"{file} is damaged, or does not fit the UNet of {base_model} ({reason})."
        ) from error
    return nn.Module.to(controlnet, dtype).eval()  # diffusers' own warns without cause


def _picture_size(pipeline: Any, arguments: dict[str, Any]) -> tuple[int, int]:
    """``(width, height)`` of the pictures that a pipeline makes."""
    usual = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return int(arguments.get("width") or usual), int(arguments.get("height") or usual)


def draw_points(
    points: NDArray[Any], given: tuple[int, int], size: tuple[int, int], thickness: float = 1.0
) -> Image.Image:
    """Draw five points of a face as IdentityNet was trained to see them.

    The picture is scaled to fill the drawing and cropped about its middle, as references are
    everywhere in this library.

    Args:
        points: ``(5, 2)``, in pixels of the given picture.
        given: ``(width, height)`` of that picture.
        size: ``(width, height)`` of the drawing.
        thickness: Thickness of dots and sticks, relative to the published one for large pictures.

    Returns:
        A black picture with a coloured dot at each point, and darker sticks from the nose to the
        other points.
    """
    scale = max(wanted / had for wanted, had in zip(size, given, strict=True))
    places = [
        tuple(
            (p - had / 2) * scale + wanted / 2
            for p, had, wanted in zip(point, given, size, strict=True)
        )
        for point in points
    ]
    sticks = Image.new("RGB", size)
    draw = ImageDraw.Draw(sticks)
    nose_x, nose_y = places[NOSE]
    for index, (x, y) in enumerate(places):
        if index == NOSE:
            continue
        half, angle = math.hypot(x - nose_x, y - nose_y) / 2, math.atan2(y - nose_y, x - nose_x)
        middle = complex(x + nose_x, y + nose_y) / 2
        turn = complex(math.cos(angle), math.sin(angle))
        ellipse = [
            middle + turn * complex(half * math.cos(t), STICK * thickness * math.sin(t))
            for t in (math.radians(degrees) for degrees in range(360))
        ]
        draw.polygon([(z.real, z.imag) for z in ellipse], fill=COLOURS[index])
    drawing = sticks.point(lambda value: int(value * DIM))
    draw, reach = ImageDraw.Draw(drawing), RADIUS * thickness
    for (x, y), colour in zip(places, COLOURS, strict=True):
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
    return drawing
