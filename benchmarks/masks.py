"""Identity masks (Eq. 7): a dense one beside sorted queries, which skip what is closed.

One attention layer for one to four identities, then whole pictures of three. ``flex`` is
FlexAttention, on CUDA only.
"""

from __future__ import annotations

import math
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
from fusionlib.attention import fused_attention
from fusionlib.backends import Backend
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
    groups = [
        layer(rounds, backends, people, side, shape)
        for rounds, side, shape in asked
        for people in (1, 2, 3, 4)
    ]
    return [*groups, strengths(*asked[0]), pictures(Models(setting), backends)]


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
    """One layer, one reference at a strength: log(lambda) as a channel, or as a matrix."""
    heads, width = shape

    def tensor(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, width, **setting.place)

    query, text, face = tensor(side**2), tensor(77), tensor(side**2)
    added = torch.zeros(1, 1, 1, 77 + side**2, **setting.place)
    added[..., 77:] = math.log(0.5)

    @torch.inference_mode()
    def matrix() -> None:
        keys = torch.cat([text, face], dim=2)
        functional.scaled_dot_product_attention(query, keys, keys, attn_mask=added)

    @torch.inference_mode()
    def channel() -> None:
        fused_attention(query, text, text, [face], [face], strengths=[0.5])

    return compare(
        f"Strengths in one layer of {side} x {side} positions",
        {"added matrix": matrix, "one more channel": channel},
        setting,
        per=0.001,
        unit="ms",
    )


def pictures(models: Models, backends: list[Backend]) -> Group:
    """Three people in a picture, with masks by each backend and without."""
    fused, setting = models.fused, models.setting
    cache = fused.encode_references(models.pictures(3))
    masks = columns(3, models.size.resolution)

    def paint(backend: Backend | None) -> Call:
        where = {} if backend is None else {"identity_masks": masks}

        def call() -> None:
            with _by(fused.adapter, backend):
                fused(PROMPT, cache, **where, **models.sampling)

        return call

    return compare(
        "Three references, seconds for a picture",
        {"without masks": paint(None)} | {f"masks, {name}": paint(name) for name in backends},
        setting,
    )


@contextmanager
def _by(adapter: Any, backend: Backend | None) -> Iterator[None]:
    """The pipeline leaves the choice of a backend to the adapter: make it there."""
    with patch.object(adapter, "conditioned", partial(adapter.conditioned, backend=backend)):
        yield
