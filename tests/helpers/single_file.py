"""Checkpoints as one file, in the layout that Stable Diffusion and SDXL are published in.

The names are those of the original code (CompVis/stable-diffusion, Stability-AI/generative-models),
the inverse of what ``from_single_file`` reads. Tables that diffusers has for its own direction are
turned round; that the two directions are inverse is what the tests see.
"""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
_OPEN_CLIP |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def write_single_file(pipeline: Any, path: Path) -> Path:
    """Write a pipeline's weights to one safetensors file, as people download them."""
    weights = {f"model.diffusion_model.{k}": v for k, v in _unet(pipeline.unet).items()}
    weights |= {f"first_stage_model.{k}": v for k, v in _vae(pipeline.vae).items()}
    text = _without_wrapper(pipeline.text_encoder.state_dict())
    second = getattr(pipeline, "text_encoder_2", None)
    if second is None and pipeline.text_encoder.config.hidden_act == "gelu":  # 2.x took OpenCLIP
        weights |= {f"cond_stage_model.model.{k}": v for k, v in _open_clip(text).items()}
    elif second is None:
        weights |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()}
    else:
        first = "conditioner.embedders.0.transformer.text_model."
        weights |= {f"{first}{k}": v for k, v in text.items()}
        open_clip = _open_clip(_without_wrapper(second.state_dict()))
        weights |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip.items()}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return path


def original_unet_names(unet: Any) -> dict[str, str]:
    """The name that a layer with weights has in the original code, by its name in diffusers."""
    suffix = ".weight"
    diffusers = {w.data_ptr(): name for name, w in unet.state_dict().items()}
    renamed = {diffusers[w.data_ptr()]: name for name, w in _unet(unet).items()}
    return {
        name.removesuffix(suffix): original.removesuffix(suffix)
        for name, original in renamed.items()
        if name.endswith(suffix)
    }


def _without_wrapper(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): weight for name, weight in state.items()}


def _renamed(name: str, table: dict[str, str]) -> str:
    for theirs, original in table.items():
        name = re.sub(rf"^{re.escape(theirs)}(?=\.|$)", original, name)
    return name


def _unet(unet: Any) -> dict[str, Tensor]:
    fixed: dict[str, str] = dict(DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"])
    fixed |= DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]
    state = unet.state_dict()
    run = unet.config.layers_per_block + 1  # blocks of the original code in one of diffusers'
    renamed = {}
    for name, weight in state.items():
        if name in fixed:
            renamed[fixed[name]] = weight
            continue
        match = re.match(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+?)s\.(\d+)\.(.*)", name)
        assert match is not None, name
        way, block, kind, index, rest = match.groups()
        level, layer = int(block or 0), int(index)
        if way == "mid":
            place = f"middle_block.{2 * layer if kind == 'resnet' else 1}"
        elif kind == "downsampler":
            place, rest = f"input_blocks.{(level + 1) * run}.0", rest.replace("conv", "op")
        elif kind == "upsampler":
            attends = any(key.startswith(f"up_blocks.{level}.attentions") for key in state)
            place = f"output_blocks.{level * run + run - 1}.{2 if attends else 1}"
        else:
            number = level * run + layer + (1 if way == "down" else 0)
            side = {"down": "input", "up": "output"}[way]
            place = f"{side}_blocks.{number}.{0 if kind == 'resnet' else 1}"
        renamed[f"{place}.{_renamed(rest, _RESNET) if kind == 'resnet' else rest}"] = weight
    return renamed


def _vae(vae: Any) -> dict[str, Tensor]:
    fixed: dict[str, str] = DIFFUSERS_TO_LDM_MAPPING["vae"]
    top = len(vae.config.up_block_types) - 1
    renamed = {}
    for name, weight in vae.state_dict().items():
        if name in fixed:
            renamed[fixed[name]] = weight
            continue
        match = re.match(r"(\w+)\.(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+?)s\.(\d+)\.(.*)", name)
        assert match is not None, name
        coder, way, block, kind, index, rest = match.groups()
        if kind == "attention":
            rest = _renamed(rest, _VAE_ATTENTION)
            place = "mid.attn_1"
            if rest.endswith("weight") and not rest.startswith("norm"):
                weight = weight[:, :, None, None]  # it was a convolution
        else:
            rest = rest.replace("conv_shortcut", "nin_shortcut")
            level = top - int(block or 0) if way == "up" else int(block or 0)
            place = {
                "resnet": f"mid.block_{int(index) + 1}"
                if way == "mid"
                else f"{way}.{level}.block.{index}",
                "downsampler": f"down.{level}.downsample",
                "upsampler": f"up.{level}.upsample",
            }[kind]
        renamed[f"{coder}.{place}.{rest}"] = weight
    return renamed


def _open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        renamed["text_projection"] = state["text_projection.weight"].T
    for name, weight in state.items():
        match = re.match(r"encoder\.layers\.(\d+)\.(.*)", name)
        if match is None:
            continue
        block, rest = f"transformer.resblocks.{match[1]}", match[2]
        if "q_proj" in rest:
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[f"{block}.attn.in_proj_{rest.rsplit('.', 1)[1]}"] = torch.cat(parts)
        elif "k_proj" not in rest and "v_proj" not in rest:
            renamed[f"{block}.{_renamed(rest, _OPEN_CLIP)}"] = weight
    return renamed
