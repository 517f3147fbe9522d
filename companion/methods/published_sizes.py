"""How many weights each compared system trains at its published size.

They are counted from the shapes of the modules, on PyTorch's meta device: nothing is loaded, and
no memory is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from fusionlib.errors import FusionError
from fusionlib.unet_layers import cross_attention_layers

SDXL_UNET: dict[str, Any] = dict(
    sample_size=128,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
"""SDXL's published UNet, as diffusers' ``UNet2DConditionModel`` takes it."""


def published_weights(systems: Sequence[str] = ()) -> dict[str, int]:
    """Count the weights that systems train at their published size.

    All of them extend Stable Diffusion 1.5, except InstantID, which extends SDXL.

    Args:
        systems: Names of the systems, such as ``["fused", "ip-adapter"]``; by default all.

    Raises:
        FusionError: There is no such system.
    """
    import torch

    unknown = sorted(set(systems) - set(_COUNTS))
    if unknown:
        raise FusionError(
            f"The size of {unknown[0]!r} is not known: there are {', '.join(_COUNTS)}."
        )
    with torch.device("meta"):
        return {name: _COUNTS[name]() for name in systems or _COUNTS}


@cache
def _unet(sdxl: bool = False) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        if sdxl:
            return UNet2DConditionModel(**SDXL_UNET)
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def _fused() -> int:
    from fusionlib.adapter import FusionAdapter

    return _weights(FusionAdapter.from_unet(_unet(), init="random"))


def _ip_adapter() -> int:
    from diffusers.models.embeddings import ImageProjection

    return _new_keys_and_values(_unet()) + _weights(
        ImageProjection(1024, 768, num_image_text_embeds=4)
    )


def _ip_adapter_plus() -> int:
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    return _new_keys_and_values(_unet()) + _weights(
        IPAdapterPlusImageProjection(
            embed_dims=1280, output_dims=768, hidden_dims=768, heads=12, num_queries=16
        )
    )


def _faceid(tokens: int = 4) -> int:
    from diffusers.models.embeddings import IPAdapterFaceIDImageProjection

    return _new_keys_and_values(_unet()) + _weights(
        IPAdapterFaceIDImageProjection(512, 768, mult=2, num_tokens=tokens)
    )


def _faceid_plus() -> int:
    from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection

    return _new_keys_and_values(_unet()) + _weights(
        IPAdapterFaceIDPlusImageProjection(
            embed_dims=768, output_dims=768, hidden_dims=1280, id_embeddings_dim=512, heads=12
        )
    )


def _instantid() -> int:
    from diffusers import ControlNetModel
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    unet = _unet(sdxl=True)
    projection = IPAdapterPlusImageProjection(
        embed_dims=512, output_dims=2048, hidden_dims=1280, heads=20, num_queries=16
    )
    identity_net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    return _new_keys_and_values(unet) + _weights(projection) + _weights(identity_net)


def _arc2face() -> int:
    from transformers import CLIPTextConfig, CLIPTextModel

    text_encoder = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    return _weights(_unet()) + _weights(CLIPTextModel(text_encoder))


_COUNTS: dict[str, Callable[[], int]] = {
    "ip-adapter": _ip_adapter,
    "ip-adapter-plus": _ip_adapter_plus,
    "faceid": lambda: _faceid() + _lora(_unet(), rank=128),
    "faceid-portrait": lambda: _faceid(tokens=16),
    "faceid-plus": lambda: _faceid_plus() + _lora(_unet(), rank=128),
    "instantid": _instantid,
    "fused": _fused,
    "arc2face": _arc2face,
    "dreambooth": lambda: _lora(_unet(), rank=16),
}


def _weights(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _new_keys_and_values(unet: Any) -> int:
    """Count the weights of W'_k and W'_v, from the text's width to each layer's."""
    layers = cross_attention_layers(unet).values()
    return sum(2 * layer.inner_dim * layer.cross_attention_dim for layer in layers)


def _lora(unet: Any, rank: int) -> int:
    """Count a LoRA's weights on queries, keys, values and outputs of every attention layer."""
    layers = [module for module in unet.modules() if hasattr(module, "to_q")]
    linears = [part for a in layers for part in (a.to_q, a.to_k, a.to_v, a.to_out[0])]
    return sum(rank * (linear.in_features + linear.out_features) for linear in linears)
