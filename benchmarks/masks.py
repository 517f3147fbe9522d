"""Identity masks (Eq. 7): a dense one beside sorted queries, which skip what is closed.

One attention layer for one to four identities, whose keys are joined already, as at all steps but a
picture's first; then whole pictures of three, with either in all layers, and with what the library
picks for each. Strengths, which are added like a mask, stand beside another way to the same.

On CUDA there are ``sequences``, the sorted queries in one call (`benchmarks.sequences`), and
``flex``, FlexAttention. There the processor may be what takes the time, to start kernels. So the
layers are recorded as graphs, too, and four pictures are made at once: then the GPU sets the pace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.alternate import Call, Setting, compare
from benchmarks.generation import EACH_STEP, joined_at_each_step
from benchmarks.models import PROMPT, Models, size_of
from benchmarks.sequences import in_sequences
from companion.pages.benchmark_records import Group, kernels_title, layer_title
from fusionlib import attention
from fusionlib.attention import prepared_attention
from fusionlib.kernels import FEW_LOGITS, Attend, Backend, dense, group_queries

SEQUENCES = "sequences"


def run(setting: Setting) -> list[Group]:
    """Measure layers, then pictures.

    Models of the embedded size have few positions: beside their first layer stand, on the CPU,
    those of Stable Diffusion 1.5 at 512 x 512 pixels, whose pictures it cannot measure.
    """
    on_gpu = setting.device == "cuda"
    ways = ["dense", "grouped", *([SEQUENCES, "flex"] if on_gpu else [])]
    often = replace(setting, repeats=5 * setting.repeats)  # of what takes milliseconds
    side, shape = first_layer(setting.size)
    asked = [(often, side, shape)]
    if setting.size == "embedded" and not on_gpu:
        side, shape = first_layer("full")
        asked.append((setting, side, shape))
    asked += [(setting, side // 2, shape), (often, side // 4, shape)]
    groups = [
        layer(rounds, ways, people, side, shape)
        for rounds, side, shape in asked
        for people in (1, 2, 3, 4)
    ]
    if on_gpu:
        groups += [kernels(often, side, shape) for _, side, shape in asked]
    models = Models(setting)
    groups += [strengths(*asked[0]), strong_pictures(models), pictures(models, ways)]
    return [*groups, four_at_once(models)] if on_gpu else groups


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
    setting: Setting, ways: Sequence[str], identities: int, side: int, shape: tuple[int, int]
) -> Group:
    """One attention layer of `side` x `side` positions; `shape` is heads, and their width."""
    return compare(
        layer_title(identities, side),
        layer_calls(setting, ways, identities, side, shape),
        setting,
        count=True,
        uncounted=["flex"],  # FlexAttention cannot be called under PyTorch's counter
        per=0.001,
        unit="ms",
    )


def kernels(setting: Setting, side: int, shape: tuple[int, int]) -> Group:
    """The same layer of three people, of which the GPU has recorded what to start."""
    calls = layer_calls(setting, ("dense", "grouped", SEQUENCES), 3, side, shape)
    return compare(
        kernels_title(3, side),
        {way: recorded(call) for way, call in calls.items()},
        setting,
        per=0.001 * RECORDED,
        unit="ms",
        note=f"The GPU alone: {RECORDED} calls in one CUDA graph.",
    )


RECORDED = 20


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


def layer_calls(
    setting: Setting, ways: Sequence[str], identities: int, side: int, shape: tuple[int, int]
) -> dict[str, Call]:
    """What `layer` times, by the way it is done."""
    heads, width = shape

    def tensor(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, width, **setting.place)

    masks = columns(identities, side)
    mask = group_queries(masks, range(identities), (side, side)).to(setting.device)
    query, text = tensor(side**2), tensor(77)
    faces = [tensor(side**2) for _ in range(identities)]

    def prepared(way: str) -> Attend:
        backend, patched = told(way)
        with patched:
            return prepared_attention(query, text, text, faces, faces, mask=mask, backend=backend)

    return {way: partial(_called, prepared(way), query) for way in ways}


def told(way: str) -> tuple[Backend, AbstractContextManager[None]]:
    """The backend of this name, and what else has to be done for it."""
    if way == SEQUENCES:
        return "grouped", in_sequences()
    return cast("Backend", way), nullcontext()


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


def pictures(models: Models, ways: Sequence[str]) -> Group:
    """Three people in a picture, with masks by each backend and without."""
    fused, setting = models.fused, models.setting
    cache = fused.encode_references(models.pictures(3))
    masks = columns(3, models.size.resolution)

    def masked() -> None:
        fused(PROMPT, cache, identity_masks=masks, **models.sampling)

    def by(way: str) -> None:
        backend, patched = told(way)
        with patched, _by(fused.adapter, backend):
            masked()

    def up_to(few: int) -> None:
        with patch.dict("fusionlib.kernels.FEW_LOGITS", {setting.device: few}):
            masked()

    def anew() -> None:
        with joined_at_each_step(fused.adapter):
            masked()

    calls: dict[str, Call] = {"without masks": lambda: fused(PROMPT, cache, **models.sampling)}
    calls |= {f"masks, {way}": partial(by, way) for way in ways}
    calls |= {name: partial(up_to, few) for name, few in bounds(setting.device).items()}
    calls[f"masks, by layer, {EACH_STEP}"] = anew
    return compare("Three references, seconds for a picture", calls, setting)


def four_at_once(models: Models) -> Group:
    """Four pictures of three people in one batch, in which kernels take longer than their start."""
    fused, setting = models.fused, models.setting
    cache = fused.encode_references(models.pictures(3))
    masks = columns(3, models.size.resolution)

    def paint(**more: Any) -> None:
        fused(PROMPT, cache, num_images_per_prompt=4, **models.sampling, **more)

    def by(way: str) -> None:
        backend, patched = told(way)
        with patched, _by(fused.adapter, backend):
            paint(identity_masks=masks)

    calls: dict[str, Call] = {"without masks": paint}
    calls |= {f"masks, {way}": partial(by, way) for way in ("dense", "grouped", SEQUENCES)}
    calls["masks, by layer"] = lambda: paint(identity_masks=masks)
    return compare("Four pictures of three references, seconds for all", calls, setting)


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
