"""Identity masks (Eq. 7): a dense one beside sorted queries, which skip what is closed.

One attention layer for one to four identities, whose keys are joined already, as at all steps but a
picture's first; then whole pictures of three, with either in all layers, and with what the library
picks for each.

On CUDA the processor may be what takes the time, to start kernels. So the layers of three people
are recorded as graphs, too: then the GPU sets the pace.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import PROMPT, Models, size_of
from companion.pages.benchmark_records import Group
from fusionlib.attention import prepare_attention
from fusionlib.kernels import Attend, Backend, group_queries

WAYS: tuple[Backend, ...] = ("dense", "grouped")

RECORDED = 20
"""Calls in one CUDA graph."""


def run(setting: Setting) -> list[Group]:
    """Measure layers, then pictures.

    Models of the embedded size have few positions: beside their first layer stand, on the CPU,
    those of Stable Diffusion 1.5 at 512 x 512 pixels, whose pictures it cannot measure.
    """
    on_gpu = setting.device == "cuda"
    often = replace(setting, repeats=5 * setting.repeats)  # of what takes milliseconds
    side, shape = first_layer(setting.size)
    asked = [(often, side, shape)]
    if setting.size == "embedded" and not on_gpu:
        side, shape = first_layer("full")
        asked.append((setting, side, shape))
    asked += [(setting, side // 2, shape), (often, side // 4, shape)]
    groups = [
        compare(
            layer_title(people, side),
            layer_calls(rounds, people, side, shape),
            rounds,
            count=True,
            per=0.001,
            unit="ms",
        )
        for rounds, side, shape in asked
        for people in (1, 2, 3, 4)
    ]
    if on_gpu:
        groups += [gpu_alone(often, side, shape) for _, side, shape in asked]
    return [*groups, pictures(Models(setting))]


def first_layer(size: str) -> tuple[int, tuple[int, int]]:
    """A UNet's first layer: positions to a side; heads, and their width."""
    unet = size_of(size).unet
    heads = unet.get("attention_head_dim", 8)  # diffusers' name for their number
    return unet["sample_size"], (heads, unet.get("block_out_channels", (320,))[0] // heads)


def layer_title(identities: int, side: int) -> str:
    """The title of the group of one layer, as the page on costs reads it."""
    people = "1 identity" if identities == 1 else f"{identities} identities"
    return f"{people}, one layer of {side} x {side} positions"


def columns(identities: int, side: int) -> Tensor:
    """A strip for each identity, two thirds of it mask: boolean, ``(identities, side, side)``."""
    masks = torch.zeros(identities, side, side, dtype=torch.bool)
    for i, mask in enumerate(masks):
        left, right = i * side // identities, (i + 1) * side // identities
        mask[side // 6 : -(side // 6) or None, left:right] = True
    return masks


def layer_calls(
    setting: Setting, identities: int, side: int, shape: tuple[int, int]
) -> dict[str, Call]:
    """One attention layer of `side` x `side` positions by each way; `shape`: heads, their width."""
    heads, width = shape

    def tensor(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, width, **setting.place)

    masks = columns(identities, side)
    mask = group_queries(masks, range(identities), (side, side)).to(setting.device)
    query, text = tensor(side**2), tensor(77)
    faces = [tensor(side**2) for _ in range(identities)]

    @torch.inference_mode()
    def attend(prepared: Attend) -> None:
        prepared(query)

    prepare = partial(prepare_attention, query, text, text, faces, faces, mask=mask)
    return {way: partial(attend, prepare(backend=way)) for way in WAYS}


def gpu_alone(setting: Setting, side: int, shape: tuple[int, int]) -> Group:
    """The same layer of three people, of which the GPU has recorded what to start."""
    calls = layer_calls(setting, 3, side, shape)
    return compare(
        f"The GPU alone: {layer_title(3, side)}",
        {way: recorded(call) for way, call in calls.items()},
        setting,
        per=0.001 * RECORDED,
        unit="ms",
        note=f"The GPU alone: {RECORDED} calls in one CUDA graph.",
    )


def recorded(call: Call) -> Call:
    """Many calls as one CUDA graph, which the processor has only to start."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()  # kernels are chosen at the first call, which cannot be recorded
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(RECORDED):
            call()
    return graph.replay


def pictures(models: Models) -> Group:
    """Three people in a picture, with masks by each backend, as the library picks, and without."""
    fused = models.fused
    cache = fused.encode_references(models.pictures(3))
    masks = columns(3, models.size.resolution)

    def paint(**more: Any) -> None:
        fused(PROMPT, references=cache, **models.sampling, **more)

    def by(way: Backend) -> None:
        # The pipeline leaves the choice of a backend to the adapter: make it there.
        adapter = fused.adapter
        with patch.object(adapter, "conditioned", partial(adapter.conditioned, backend=way)):
            paint(identity_masks=masks)

    calls: dict[str, Call] = {"without masks": paint}
    calls |= {f"masks, {way}": partial(by, way) for way in WAYS}
    calls["masks, by layer"] = partial(paint, identity_masks=masks)
    return compare("Three references, seconds for a picture", calls, models.setting)
