"""Identity masks (Eq. 7): a dense one beside sorted queries, which skip what is closed.

One attention layer for one to four identities, then whole pictures of three. ``flex`` is
FlexAttention, on CUDA only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import PROMPT, Models, size_of
from fusionlib.attention import fused_attention
from fusionlib.backends import Backend
from fusionlib.benchmarked import Group, Target
from fusionlib.masking import group_queries

NUMBERS = {1: "One identity", 2: "Two identities", 3: "Three identities", 4: "Four identities"}


def run(setting: Setting) -> list[Group]:
    """Measure layers, then pictures."""
    backends: list[Backend] = ["dense", "grouped"]
    if setting.device == "cuda":
        backends.append("flex")
    side = size_of(setting.size).unet["sample_size"]
    groups = [layer(setting, backends, identities, side) for identities in NUMBERS]
    groups.append(layer(setting, backends, 3, side // 2))
    return [*groups, pictures(Models(setting), backends)]


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


def layer(setting: Setting, backends: list[Backend], identities: int, side: int) -> Group:
    """One attention layer of `side` x `side` positions, with as many heads as the UNet's first."""
    unet = size_of(setting.size).unet
    heads = unet.get("attention_head_dim", 8)  # diffusers' name for their number
    width = unet.get("block_out_channels", (320,))[0] // heads

    def tensor(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, width, **setting.place)

    masks = columns(identities, side)
    sorted_queries = group_queries(masks, range(identities), (side, side)).to(setting.device)
    query, text = tensor(side**2), tensor(77)
    faces = [tensor(side**2) for _ in range(identities)]

    @torch.inference_mode()
    def attend(backend: Backend) -> None:
        fused_attention(query, text, text, faces, faces, mask=sorted_queries, backend=backend)

    wanted = identities == 3 and side == unet["sample_size"] and setting.size != "tiny"
    targets = {"grouped": Target("ratio", 1 / 1.3)} if wanted else {}
    return compare(
        f"{NUMBERS[identities]}, one layer of {side} x {side} positions",
        {backend: partial(attend, backend) for backend in backends},
        replace(setting, repeats=5 * setting.repeats),  # of what takes milliseconds
        targets=targets,
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

    limit = Target("ratio", 1.1)
    wanted = setting.size == "full" and setting.device == "cuda"
    return compare(
        "Three references, seconds for a picture",
        {"without masks": paint(None)} | {f"masks, {name}": paint(name) for name in backends},
        setting,
        targets={"masks, grouped": limit, "masks, flex": limit} if wanted else {},
    )


@contextmanager
def _by(adapter: Any, backend: Backend | None) -> Iterator[None]:
    """The pipeline leaves the choice of a backend to the adapter: make it there."""
    with patch.object(adapter, "conditioned", partial(adapter.conditioned, backend=backend)):
        yield
