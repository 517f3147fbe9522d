"""Identity masks (Eq. 7): a dense one beside sorted queries, which skip what is closed.

One attention layer for one to four identities, then whole pictures of three: with either in all
layers, and with what the library picks for each. ``flex`` is FlexAttention, on CUDA only.
Strengths, which are added like a mask, stand beside another way to the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import PROMPT, Models, size_of
from fusionlib import attention
from fusionlib.attention import fused_attention
from fusionlib.backends import FEW_LOGITS, Backend, dense
from fusionlib.benchmarked import Group, layer_title
from fusionlib.masking import group_queries


def run(setting: Setting) -> list[Group]:
    """Measure layers, then pictures.

    Models of the embedded size have few positions: beside their first layer stand those of Stable
    Diffusion 1.5 at 512 x 512 pixels, whose layers a CPU can measure, if not its pictures.
    """
    backends: list[Backend] = ["dense", "grouped"]
    if setting.device == "cuda":
        backends.append("flex")
    often = replace(setting, repeats=5 * setting.repeats)  # of what takes milliseconds
    side, shape = first_layer(setting.size)
    asked = [(often, side, shape)]
    if setting.size == "embedded":
        side, shape = first_layer("full")
        asked.append((setting, side, shape))
    asked.append((setting, side // 2, shape))
    asked.append((often, side // 4, shape))
    groups = [
        layer(rounds, backends, people, side, shape)
        for rounds, side, shape in asked
        for people in (1, 2, 3, 4)
    ]
    models = Models(setting)
    return [
        *groups,
        strengths(*asked[0]),
        strong_pictures(models),
        pictures(models, backends),
    ]


def first_layer(size: str) -> tuple[int, tuple[int, int]]:
    """Of a UNet: positions to a side; heads, and their width."""
    unet = size_of(size).unet
    heads = unet.get("attention_head_dim", 8)  # diffusers' name for their number
    return unet["sample_size"], (heads, unet.get("block_out_channels", (320,))[0] // heads)


def columns(identities: int, side: int) -> Tensor:
    """One upright strip for each identity, two thirds of it mask and the rest background.

    Returns:
        Boolean, ``(identities, side, side)``.
    """
    masks = torch.zeros(identities, side, side, dtype=torch.bool)
    for i, mask in enumerate(masks):
        left, right = i * side // identities, (i + 1) * side // identities
        mask[side // 6 : -(side // 6) or None, left:right] = True
    return masks


def layer(
    setting: Setting, backends: list[Backend], identities: int, side: int, shape: tuple[int, int]
) -> Group:
    """One attention layer of `side` x `side` positions; `shape` is heads, and their width."""
    return compare(
        layer_title(identities, side),
        layer_calls(setting, backends, identities, side, shape),
        setting,
        count=True,
        uncounted=["flex"],  # FlexAttention cannot be called under PyTorch's counter
        per=0.001,
        unit="ms",
    )


def layer_calls(
    setting: Setting,
    backends: Sequence[Backend],
    identities: int,
    side: int,
    shape: tuple[int, int],
) -> dict[str, Call]:
    """What `layer` times, by backend."""
    heads, width = shape

    def tensor(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, width, **setting.place)

    masks = columns(identities, side)
    sorted_queries = group_queries(masks, range(identities), (side, side)).to(setting.device)
    query, text = tensor(side**2), tensor(77)
    faces = [tensor(side**2) for _ in range(identities)]

    @torch.inference_mode()
    def attend(backend: Backend) -> None:
        fused_attention(query, text, text, faces, faces, mask=sorted_queries, backend=backend)

    return {backend: partial(attend, backend) for backend in backends}


def strengths(setting: Setting, side: int, shape: tuple[int, int]) -> Group:
    """One layer, one reference at a strength: log(lambda) as a channel, or added to the logits."""
    heads, width = shape

    def tensor(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, width, **setting.place)

    query, text, face = tensor(side**2), tensor(77), tensor(side**2)

    @torch.inference_mode()
    def added() -> None:
        fused_attention(query, text, text, [face], [face], strengths=[0.5])

    def channel() -> None:
        with _strengths_as_channel():
            added()

    return compare(
        f"Strengths in one layer of {side} x {side} positions",
        {"added matrix": added, "one more channel": channel},
        setting,
        per=0.001,
        unit="ms",
    )


def strong_pictures(models: Models) -> Group:
    """A picture with one reference at a strength, by either way of `strengths`."""
    fused = models.fused
    cache = fused.encode_references(models.pictures(1))

    def added() -> None:
        fused(PROMPT, cache, strengths=0.5, **models.sampling)

    def channel() -> None:
        with _strengths_as_channel():
            added()

    return compare(
        "One reference at half its strength, seconds for a picture",
        {"added matrix": added, "one more channel": channel},
        models.setting,
    )


def pictures(models: Models, backends: list[Backend]) -> Group:
    """Three people in a picture, with masks by each backend and without."""
    fused, setting = models.fused, models.setting
    cache = fused.encode_references(models.pictures(3))
    masks = columns(3, models.size.resolution)

    def paint(backend: Backend | None, few: int = FEW_LOGITS) -> Call:
        def call() -> None:
            with _by(fused.adapter, backend), patch("fusionlib.backends.FEW_LOGITS", few):
                fused(PROMPT, cache, identity_masks=masks, **models.sampling)

        return call

    calls = {"without masks": lambda: fused(PROMPT, cache, **models.sampling)}
    calls |= {f"masks, {name}": paint(name) for name in backends}
    calls["masks, by layer"] = paint(None)
    if setting.device == "cuda":  # where to start kernels takes longer than to run them
        for side in (16, 32):
            few = side**2 * (77 + 3 * side**2)
            calls[f"masks, by layer, dense up to {side} x {side}"] = paint(None, few)
    return compare("Three references, seconds for a picture", calls, setting)


@contextmanager
def _by(adapter: Any, backend: Backend | None) -> Iterator[None]:
    """The pipeline leaves the choice of a backend to the adapter: make it there."""
    with patch.object(adapter, "conditioned", partial(adapter.conditioned, backend=backend)):
        yield


@contextmanager
def _strengths_as_channel() -> Iterator[None]:
    """Another way to the strengths, which needs no mask: the query gets a channel that is 1."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None = None,
        *rest: Any,
        **scale: Any,
    ) -> Tensor:
        if bias is None:
            return dense(query, key, value, bias, *rest, **scale)
        width = query.shape[-1]
        spare = -(width + 1) % 8  # kernels want a multiple of 8
        channel = (bias * width**0.5).to(query.dtype)[:, None, :, None]
        longer = torch.cat([key, channel.expand(-1, key.shape[1], -1, -1)], dim=-1)
        found = functional.scaled_dot_product_attention(
            functional.pad(torch.cat([query, torch.ones_like(query[..., :1])], dim=-1), (0, spare)),
            functional.pad(longer, (0, spare)),
            functional.pad(value, (0, 1 + spare)),
            scale=width**-0.5,
        )
        return found[..., :width]

    attention.dense = attend  # by hand, for `patch` takes as long as a small layer
    try:
        yield
    finally:
        attention.dense = dense
