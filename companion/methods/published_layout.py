"""Trained modules of diffusers, written under the names of IP-Adapter's published checkpoints.

diffusers renames the weights when it loads that layout. This is the inverse, so that a counterpart
trained here is read by the loader of the published checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fusionlib.training.export import half
from fusionlib.unet_layers import cross_attention_layers

_RESAMPLER = (
    (r"\.ln0\.", ".0.norm1."),
    (r"\.ln1\.", ".0.norm2."),
    (r"\.attn\.to_out\.0\.", ".0.to_out."),
    (r"\.attn\.", ".0."),
    (r"\.ff\.0\.", ".1.0."),
    (r"\.ff\.1\.net\.0\.proj\.", ".1.1."),
    (r"\.ff\.1\.net\.2\.", ".1.3."),
)
_PERCEIVER = re.compile(r"^(layers|proj_in|proj_out|norm_out)\b")


def image_projection_state(projection: nn.Module) -> dict[str, Tensor]:
    """The weights of one of diffusers' image projections, by their published names.

    Args:
        projection: ``ImageProjection``, ``IPAdapterPlusImageProjection``,
            ``IPAdapterFaceIDImageProjection`` or ``IPAdapterFaceIDPlusImageProjection``.
    """
    plus = type(projection).__name__ == "IPAdapterFaceIDPlusImageProjection"
    state: dict[str, Tensor] = {}
    for name, tensor in projection.state_dict().items():
        if name.startswith("layers."):
            for pattern, published in _RESAMPLER:
                name = re.sub(pattern, published, name)
        # ImageProjection's; FaceID's; and Plus's, which has a layer before the resampler
        name = re.sub(r"^image_embeds\.", "proj.", name)
        name = re.sub(r"^(ff|proj)\.net\.0\.proj\.", "proj.0.", name)
        name = re.sub(r"^(ff|proj)\.net\.2\.", "proj.2.", name)
        if plus and _PERCEIVER.match(name):
            name = f"perceiver_resampler.{name}"
        state[name] = tensor
    for name in [name for name in state if name.endswith(".0.to_k.weight")]:
        keys, values = state.pop(name), state.pop(name.replace("to_k", "to_v"))
        state[name.replace("to_k", "to_kv")] = torch.cat([keys, values])
    return state


def attention_state(unet: Any) -> dict[str, Tensor]:
    """The key and value layers of a UNet's decoupled attention, by their published names.

    The number in each name is that of the processor in the UNet; odd ones are cross-attention.
    """
    layers = cross_attention_layers(unet)
    state = {}
    for index, name in enumerate(unet.attn_processors):
        attention = layers.get(name.removesuffix(".processor"))
        if attention is not None:
            for part in ("to_k_ip", "to_v_ip"):
                weight = getattr(attention.processor, part)[0].weight
                state[f"{index}.{part}.weight"] = weight
    return state


def save_ip_adapter(unet: Any, path: Path) -> None:
    """Write the modules added to a UNet in float16, in the layout of ``h94/IP-Adapter``."""
    (projection,) = unet.encoder_hid_proj.image_projection_layers
    parts = {"image_proj": image_projection_state(projection), "ip_adapter": attention_state(unet)}
    flat = {
        f"{part}.{name}": half(tensor)
        for part, state in parts.items()
        for name, tensor in state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(flat, path)
