"""The compared systems' checkpoints in the layouts they are published in: tiny, of random weights.

Each function writes what the hub repository of that name holds. Shapes follow from the base
model's UNet as they do in the published files; the face vector has its real 512 numbers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as ClipVision

from tests.helpers.tiny import WIDTH, tiny_controlnet, tiny_unet, write_tiny_tokenizer

FACE, CLIP = 512, 24
"""Numbers in a face vector, and in a hidden state of the tiny CLIP image encoder."""

RANK = 2  # of FaceID's LoRA; 128 in the published files


def _random(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name.replace("__", "."): torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }


def attention_weights(unet: UNet2DConditionModel, seed: int, *, lora: bool) -> dict[str, Tensor]:
    """``ip_adapter``: the processors in the UNet's order, the odd ones of its cross-attention."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(unet.attn_processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        inner, width = attention.to_q.weight.shape
        context = attention.to_k.weight.shape[1]
        if lora:
            sizes = {"q": (width, inner), "k": (context, inner), "v": (context, inner)}
            for part, (before, after) in (sizes | {"out": (inner, width)}).items():
                shapes[f"{index}__to_{part}_lora__down__weight"] = (RANK, before)
                shapes[f"{index}__to_{part}_lora__up__weight"] = (after, RANK)
        if index % 2:
            shapes[f"{index}__to_k_ip__weight"] = shapes[f"{index}__to_v_ip__weight"] = (
                inner,
                context,
            )
    return {name: 3 * weight for name, weight in _random(seed, **shapes).items()}


def perceiver(seed: int, prefix: str, width: int, given: int, output: int) -> dict[str, Tensor]:
    """The resampler of IP-Adapter Plus: four layers of attention and feed-forward."""
    shapes: dict[str, tuple[int, ...]] = {
        "proj_in__weight": (width, given),
        "proj_in__bias": (width,),
        "proj_out__weight": (output, width),
        "proj_out__bias": (output,),
        "norm_out__weight": (output,),
        "norm_out__bias": (output,),
    }
    for layer in range(4):
        attention, forward = f"layers__{layer}__0__", f"layers__{layer}__1__"
        for norm in ("norm1", "norm2"):
            shapes[f"{attention}{norm}__weight"] = shapes[f"{attention}{norm}__bias"] = (width,)
        shapes[f"{attention}to_q__weight"] = (64, width)
        shapes[f"{attention}to_kv__weight"] = (128, width)
        shapes[f"{attention}to_out__weight"] = (width, 64)
        shapes[f"{forward}0__weight"] = shapes[f"{forward}0__bias"] = (width,)
        shapes[f"{forward}1__weight"] = (4 * width, width)
        shapes[f"{forward}3__weight"] = (width, 4 * width)
    return {prefix + name: weight for name, weight in _random(seed, **shapes).items()}


def face_projection(seed: int, width: int, tokens: int) -> dict[str, Tensor]:
    """FaceID's ``image_proj``: two linear layers and a norm."""
    return _random(
        seed,
        proj__0__weight=(2 * FACE, FACE),
        proj__0__bias=(2 * FACE,),
        proj__2__weight=(tokens * width, 2 * FACE),
        proj__2__bias=(tokens * width,),
        norm__weight=(width,),
        norm__bias=(width,),
    )


def write_image_encoder(folder: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=CLIP,
        intermediate_size=2 * CLIP,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=WIDTH,
        image_size=32,
        patch_size=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ClipVision(config).save_pretrained(folder)


def _write(path: Path, state: dict[str, dict[str, Tensor]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        flat = {f"{part}.{name}": tensor for part in state for name, tensor in state[part].items()}
        save_file(flat, path)


def write_ip_adapter(folder: Path | str) -> Path:
    """h94/IP-Adapter."""
    folder, unet = Path(folder), tiny_unet()
    width = unet.config.cross_attention_dim
    state = {
        "image_proj": _random(
            1,
            proj__weight=(4 * width, WIDTH),
            proj__bias=(4 * width,),
            norm__weight=(width,),
            norm__bias=(width,),
        ),
        "ip_adapter": attention_weights(unet, 2, lora=False),
    }
    _write(folder / "models" / "ip-adapter_sd15.safetensors", state)
    _write(folder / "models" / "ip-adapter_sd15.bin", state)
    projection = perceiver(13, "", 32, CLIP, width)
    projection["latents"] = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(14))
    plus = {"image_proj": projection, "ip_adapter": attention_weights(unet, 15, lora=False)}
    _write(folder / "models" / "ip-adapter-plus_sd15.safetensors", plus)
    write_image_encoder(folder / "models" / "image_encoder")
    return folder


def write_faceid(folder: Path, xl_unet: UNet2DConditionModel) -> Path:
    """h94/IP-Adapter-FaceID, the LoRA in files of their own, too."""
    for stem, unet, tokens, plus, lora in (
        ("faceid_sd15", tiny_unet(), 4, False, True),
        ("faceid-plusv2_sd15", tiny_unet(), 4, True, True),
        ("faceid_sdxl", xl_unet, 4, False, True),
        ("faceid-portrait_sd15", tiny_unet(), 16, False, False),
    ):
        width = unet.config.cross_attention_dim
        projection = face_projection(4, width, tokens)
        if plus:
            projection |= perceiver(5, "perceiver_resampler.", width, CLIP, width)
        weights = attention_weights(unet, 6, lora=lora)
        _write(folder / f"ip-adapter-{stem}.bin", {"image_proj": projection, "ip_adapter": weights})
        if lora:
            names = list(unet.attn_processors)
            separate = {}
            for key, tensor in weights.items():
                index, _, rest = key.partition(".")
                if "lora" in rest:
                    stem_of = names[int(index)].removesuffix(".processor").replace(".", "_")
                    layer, direction = rest.split("_lora.")
                    layer = layer.replace("to_out", "to_out_0")
                    separate[f"lora_unet_{stem_of}_{layer}.lora_{direction}"] = tensor
            save_file(separate, folder / f"ip-adapter-{stem}_lora.safetensors")
    return folder


def write_instantid(folder: Path, xl_unet: UNet2DConditionModel) -> Path:
    """InstantX/InstantID."""
    width, inside = xl_unet.config.cross_attention_dim, 32
    projection = perceiver(7, "", inside, FACE, width)
    projection["latents"] = torch.randn(1, 16, inside, generator=torch.Generator().manual_seed(8))
    state = {"image_proj": projection, "ip_adapter": attention_weights(xl_unet, 9, lora=False)}
    _write(folder / "ip-adapter.bin", state)
    tiny_controlnet(xl_unet).save_pretrained(folder / "ControlNetModel")
    return folder


def write_arc2face(folder: Path, base: Path) -> Path:
    """FoivosPar/Arc2Face, and a base model whose tokenizer knows the word "id"."""
    write_tiny_tokenizer(base / "tokenizer")
    vocabulary = json.loads((base / "tokenizer" / "vocab.json").read_text("utf-8"))
    vocabulary["id</w>"] = len(vocabulary)
    (base / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    with open(base / "tokenizer" / "merges.txt", "a", encoding="utf-8") as file:
        file.write("i d</w>\n")
    (base / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    config: dict[str, Any] = {
        "hidden_size": FACE,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 16,
        "eos_token_id": vocabulary["<|endoftext|>"],
        "bos_token_id": vocabulary["<|startoftext|>"],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10)
        encoder = CLIPTextModel(CLIPTextConfig(**config))
        unet = tiny_unet(cross_attention_dim=FACE)
    # As it is published: a pickle, by the names that transformers 4 gave, of a class of its own.
    (folder / "encoder").mkdir(parents=True)
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": w
        for name, w in encoder.state_dict().items()
    }
    torch.save(weights, folder / "encoder" / "pytorch_model.bin")
    written = encoder.config.to_dict() | {"architectures": ["CLIPTextModelWrapper"]}
    (folder / "encoder" / "config.json").write_text(json.dumps(written))
    unet.save_pretrained(folder / "arc2face")
    return folder
