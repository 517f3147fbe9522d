"""Identity masks (Eq. 7): a dense one beside sorted queries, which skip what is closed.

One attention layer for one to four identities, whose keys are joined already, as at all steps but a
picture's first; then whole pictures of three, with either in all layers, and with what the library
picks for each. ``varlen``, sequences of different lengths in one call of FlashAttention, and
``flex``, FlexAttention, are for CUDA only. Strengths, which are added like a mask,
stand beside another way to the same.
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
from benchmarks.generation import EACH_STEP, joined_at_each_step
from benchmarks.models import PROMPT, Models, size_of
from fusionlib import attention
from fusionlib.attention import prepared_attention
from fusionlib.backends import FEW_LOGITS, Attend, Backend, dense
from fusionlib.benchmarked import Group, layer_title
from fusionlib.masking import group_queries


def run(setting: Setting) -> list[Group]:
    """Measure layers, then pictures.

    Models of the embedded size have few positions: beside their first layer stand those of Stable
    Diffusion 1.5 at 512 x 512 pixels, whose layers a CPU can measure, if not its pictures.
    """
    backends: list[Backend] = ["dense", "grouped"]
    if setting.device == "cuda":
        backends += ["varlen", "flex"]
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

    def prepared(backend: Backend) -> Attend:
        mask = sorted_queries
        return prepared_attention(query, text, text, faces, faces, mask=mask, backend=backend)

    return {backend: partial(_called, prepared(backend), query) for backend in backends}


@torch.inference_mode()
def _called(attend: Attend, query: Tensor) -> None:
    attend(query)


def strengths(setting: Setting, side: int, shape: tuple[int, int]) -> Group:
    """One layer, one reference at a strength: log(lambda) as a channel, or added to the logits."""
    heads, width = shape

    def tensor(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, width, **setting.place)

    query, text, face = tensor(side**2), tensor(77), tensor(side**2)

    def prepared() -> Call:
        attend = prepared_attention(query, text, text, [face], [face], strengths=[0.5])
        return partial(_called, attend, query)

    with _strengths_as_channel():
        channel = prepared()
    return compare(
        f"Strengths in one layer of {side} x {side} positions",
        {"added matrix": prepared(), "one more channel": channel},
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

    def masked() -> None:
        fused(PROMPT, cache, identity_masks=masks, **models.sampling)

    def by(backend: Backend) -> None:
        with _by(fused.adapter, backend):
            masked()

    def up_to(few: int) -> None:
        with patch.dict("fusionlib.backends.FEW_LOGITS", {setting.device: few}):
            masked()

    def anew() -> None:
        with joined_at_each_step(fused.adapter):
            masked()

    calls: dict[str, Call] = {"without masks": lambda: fused(PROMPT, cache, **models.sampling)}
    calls |= {f"masks, {name}": partial(by, name) for name in backends}
    calls |= {name: partial(up_to, few) for name, few in bounds(setting.device).items()}
    calls[f"masks, by layer, {EACH_STEP}"] = anew
    return compare("Three references, seconds for a picture", calls, setting)


def bounds(device: str) -> dict[str, int]:
    """By the row's name: up to how many logits a layer of three people is given the mask."""
    found = {"masks, by layer": FEW_LOGITS[device]}
    if device == "cuda":  # where to start kernels may take longer than to run them
        for side in (8, 16):
            found[f"masks, by layer, dense up to {side} x {side}"] = side**2 * (77 + 3 * side**2)
    return found


@contextmanager
def _by(adapter: Any, backend: Backend) -> Iterator[None]:
    """The pipeline leaves the choice of a backend to the adapter: make it there."""
    with patch.object(adapter, "conditioned", partial(adapter.conditioned, backend=backend)):
        yield


@contextmanager
def _strengths_as_channel() -> Iterator[None]:
    """Another way to the strengths, which needs no mask: the query gets a channel that is 1."""

    def with_channel(
        key: Tensor, value: Tensor, added: Tensor | None = None, scale: float | None = None
    ) -> Attend:
        if added is None:
            return dense(key, value, added, scale)
        width = key.shape[-1]
        spare = -(width + 1) % 8  # kernels want a multiple of 8
        channel = (added * width**0.5).transpose(-1, -2).expand(-1, key.shape[1], -1, -1)
        longer = functional.pad(torch.cat([key, channel], dim=-1), (0, spare))
        wider = functional.pad(value, (0, 1 + spare))

        def attend(query: Tensor) -> Tensor:
            one = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)
            found = functional.scaled_dot_product_attention(
                functional.pad(one, (0, spare)), longer, wider, scale=width**-0.5
            )
            return found[..., :width]

        return attend

    with patch.object(attention, "dense", with_channel):
        yield
