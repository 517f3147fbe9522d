"""Operations of pictures, layers and training steps, counted and not timed, at any size.

Models lie on PyTorch's meta device, which knows shapes and computes nothing: no GPU, no weights and
no minutes are needed for Stable Diffusion 1.5. The groups begin with the titles of those that are
timed, so that a target finds its floor. FlexAttention is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import generation, masks, training
from benchmarks.alternate import Call, Setting, say
from benchmarks.models import Models
from benchmarks.operations import count_operations
from fusionlib.adapter import FusionAdapter
from fusionlib.benchmarked import Group, Row, layer_title
from fusionlib.reference import encode_references
from fusionlib.training import denoising

META = "meta"


def run(setting: Setting) -> list[Group]:
    """Count all of them."""
    setting = replace(setting, device=META, dtype="float32")
    return [*pictures(setting), *layers(setting), *steps(setting)]


def on_meta(setting: Setting) -> Models:
    """The models of a size, as shapes."""
    models = Models(setting)
    with torch.device(META):
        for name in ("unet", "vae", "text_encoder", "image_encoder"):
            getattr(models, name)
    return models


@torch.no_grad()
def pictures(setting: Setting) -> list[Group]:
    """The text, each step of the UNet, and the autoencoder; as `benchmarks.generation` times."""
    models = on_meta(setting)
    side, size = models.size.unet["sample_size"], models.size
    noisy = torch.empty(2, size.unet.get("in_channels", 4), side, side, device=META)
    text = torch.empty(
        2, size.text["max_position_embeddings"], size.text["hidden_size"], device=META
    )
    ids = torch.empty(2, text.shape[1], dtype=torch.long, device=META)
    once = count_operations(lambda: (models.text_encoder(ids), models.vae.decode(noisy[:1])))

    def group(title: str, calls: Mapping[str, Call], references: int) -> Group:
        say(f"{title}, counted")
        each = {name: once + size.steps * count_operations(call) for name, call in calls.items()}
        if generation.SHARED in each:  # which prepares nothing
            picture = torch.empty(1, 3, size.resolution, size.resolution, device=META)
            encoded = count_operations(lambda: models.vae.encode(picture))
            each[generation.SHARED] += references * encoded
        return _group(f"{title}, operations for a picture", each)

    with torch.device(META):
        adapter = FusionAdapter.from_unet(models.unet)
        token_unets = {plus: models.with_ip_adapter(plus=plus) for plus in (False, True)}
        control = models.control_network()
    adapter.attach(models.unet)

    def denoise(unet: Any = models.unet, **more: Any) -> None:
        unet(noisy, torch.zeros(1, device=META), text, **more)

    def seen(references: int) -> list[Any]:
        latents = noisy[:1].expand(references, -1, -1, -1)
        states = encode_references(models.unet, latents, text[:1])
        return [
            adapter.project({n: h[i : i + 1] for n, h in states.items()}) for i in range(references)
        ]

    def fused(faces: Callable[[], list[Any]], **more: Any) -> None:
        shown = faces()
        with adapter.conditioned(shown, batch_size=1, **more):
            denoise()

    def tokens(plus: bool, references: int) -> None:
        vision = size.vision
        patches = ((vision["image_size"] // vision["patch_size"]) ** 2 + 1, vision["hidden_size"])
        read = patches if plus else (vision["projection_dim"],)
        embeds = torch.empty(2, references, *read, device=META)
        denoise(token_unets[plus], added_cond_kwargs={"image_embeds": [embeds]})

    def controlled() -> None:
        drawing = torch.empty(2, 3, size.resolution, size.resolution, device=META)
        down, middle = control(noisy, torch.zeros(1, device=META), text, drawing, return_dict=False)
        denoise(down_block_additional_residuals=down, mid_block_additional_residual=middle)

    found = []
    for references in (1, 2, 4):
        cache = seen(references)
        calls: dict[str, Call] = {
            "base model": denoise,
            generation.CLEAN: partial(fused, lambda cache=cache: cache),
            generation.SHARED: partial(fused, partial(seen, references)),
            "IP-Adapter": partial(tokens, False, references),
            "IP-Adapter-Plus": partial(tokens, True, references),
        } | ({"ControlNet": controlled} if references == 1 else {})
        found.append(group(generation.WORDS[references], calls, references))
    cache = seen(3)
    where = masks.columns(3, size.resolution)
    people = {
        "without masks": partial(fused, lambda: cache),
        "masks, dense": partial(fused, lambda: cache, identity_masks=where, backend="dense"),
        "masks, grouped": partial(fused, lambda: cache, identity_masks=where, backend="grouped"),
        "masks, by layer": partial(fused, lambda: cache, identity_masks=where),
    }
    return [*found, group("Three references", people, 3)]


def layers(setting: Setting) -> list[Group]:
    """One attention layer, as `benchmarks.masks` times it, of three people."""
    side, shape = masks.first_layer(setting.size)
    found = []
    for positions in (side, side // 2):
        calls = masks.layer_calls(setting, ("dense", "grouped"), 3, positions, shape)
        counted = {name: count_operations(call) for name, call in calls.items()}
        found.append(_group(layer_title(3, positions), counted))
    return found


def steps(setting: Setting) -> list[Group]:
    """A training step's loss and its gradients, as `benchmarks.training` times them."""
    title = "A training step of one picture, operations"
    say(f"{title}, counted")
    counted = {}
    for name, build in training.losses(lambda: on_meta(setting)).items():
        with torch.device(META):
            loss_of, _ = build()
        with patch.object(denoising, "banded", return_value={}):  # what is logged needs numbers
            counted[name] = count_operations(lambda loss_of=loss_of: loss_of(0).backward())
    return [_group(title, counted)]


def _group(title: str, counted: Mapping[str, float]) -> Group:
    rows = tuple(Row(name, (n / 1e12,), n) for name, n in counted.items())
    return Group(title, "10¹² operations", rows, "ratio", "Counted, not measured.")
