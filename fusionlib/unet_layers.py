"""The cross-attention layers of a UNet, by name and resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from fusionlib.errors import FusionError

LayerChoice = Literal["down", "mid", "up"] | int
"""Layers of a UNet: on the way down, in the middle, on the way up; or those of one resolution.

The number 0 is the full resolution, 1 half of it, and so on.
"""


def layer_dimensions(
    unet: Any, choice: Sequence[LayerChoice] | None = None
) -> dict[str, tuple[int, int]]:
    """Return ``(query_dim, inner_dim)`` of each chosen cross-attention layer, by its name."""
    layers = cross_attention_layers(unet)
    if choice is not None:
        levels = len(unet.config["block_out_channels"])
        if isinstance(choice, str) or not choice or not all(map(_is_choice, choice)):
            raise FusionError(
                'layers must be None or a list of "down", "mid", "up" and of numbers of at least '
                f"0, not {choice!r}."
            )
        layers = {
            name: layer
            for name, layer in layers.items()
            if name.partition("_block")[0] in choice or _level(name, levels) in choice
        }
        if not layers:
            raise FusionError(f"unet has no cross-attention where layers={list(choice)!r} says.")
    return {name: (layer.query_dim, layer.inner_dim) for name, layer in layers.items()}


def _is_choice(each: Any) -> bool:
    return each in ("down", "mid", "up") or (isinstance(each, int) and each >= 0)


def _level(name: str, levels: int) -> int:
    """How often the resolution is halved at a layer, by the layer's name in the UNet."""
    place, number, *_ = name.split(".")
    if place == "mid_block":
        return levels - 1
    return int(number) if place == "down_blocks" else levels - 1 - int(number)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Turn ``(batch, tokens, heads * head_dim)`` into ``(batch, heads, tokens, head_dim)``."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def cross_attention_layers(unet: Any) -> dict[str, Any]:
    """Find every cross-attention layer of a ``UNet2DConditionModel``, by its name in the UNet.

    The names are the UNet's own, such as
    ``"down_blocks.0.attentions.0.transformer_blocks.0.attn2"``.

    Raises:
        FusionError: If there is none.
    """
    unet = getattr(unet, "_orig_mod", unet)  # torch.compile's
    if not isinstance(unet, nn.Module):
        raise FusionError(f"unet must be a UNet2DConditionModel, not {type(unet).__name__}.")
    layers = {
        name: module
        for name, module in unet.named_modules()
        if name.endswith(".attn2") and getattr(module, "is_cross_attention", False)
    }
    if not layers:
        raise FusionError(
            f"unet has no cross-attention layer (attn2) to attach to: {type(unet).__name__}."
        )
    return layers


def module_at(root: nn.Module, name: str) -> Any:
    """Return the module of this dotted name, created where it is missing."""
    for part in name.split("."):
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    return root
