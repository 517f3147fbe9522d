"""Operations of pictures, layers and training steps, counted and not timed, at any size.

The kernels, too. Not among either is what all pipelines do alike between two steps.

Models lie on PyTorch's meta device, which knows shapes and computes nothing: no GPU, no weights and
no minutes are needed for Stable Diffusion 1.5. The groups begin with the titles of those that are
timed, so that a target finds its floor. FlexAttention is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import generation, masks, training
from benchmarks.alternate import Setting, say
from benchmarks.models import Models
from benchmarks.operations import count_kernels, count_operations
from companion.pages.benchmark_records import Group, Row, layer_title
from fusionlib.adapter import MOST_KEPT, FusionAdapter
from fusionlib.kernels import FEW_LOGITS
from fusionlib.reference import encode_references
from fusionlib.training import denoising

META = "meta"

Steps = Callable[[int], object]
"""Makes so many steps of a picture."""


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
    picture = torch.empty(1, 3, size.resolution, size.resolution, device=META)

    def group(title: str, calls: Mapping[str, Steps], references: int) -> Group:
        say(f"{title}, counted")

        def painted(name: str, steps: int) -> None:
            models.text_encoder(ids)
            for _ in range(references if name == generation.SHARED else 0):
                models.vae.encode(picture)  # the others find it prepared
            calls[name](steps)
            models.vae.decode(noisy[:1])

        def whole(count: Callable[[Callable[[], None]], float], name: str) -> float:
            """Of all steps: what the first prepares, the others find."""
            first, second = (count(partial(painted, name, steps)) for steps in (1, 2))
            return first + (size.steps - 1) * (second - first)

        counted = {
            name: (whole(count_operations, name), whole(count_kernels, name)) for name in calls
        }
        return _group(f"{title}, operations for a picture", counted)

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

    def repeated(step: Callable[[], None], steps: int) -> None:
        for _ in range(steps):
            step()

    def clean(cache: Sequence[Any], steps: int, **more: Any) -> None:
        said = {"same_text": True, "batch_size": 1} | more
        # As many numbers as in float16, of which these models' take twice the bytes.
        with (
            patch("fusionlib.adapter.MOST_KEPT", 2 * MOST_KEPT),
            adapter.conditioned(cache, **said),
        ):
            repeated(denoise, steps)

    def shared(references: int) -> None:
        with adapter.conditioned(seen(references), batch_size=1):
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
        calls: dict[str, Steps] = {
            "base model": partial(repeated, denoise),
            generation.CLEAN: partial(clean, cache),
            generation.ANEW: partial(clean, cache, same_text=False),
            generation.SHARED: partial(repeated, partial(shared, references)),
            "IP-Adapter": partial(repeated, partial(tokens, False, references)),
            "IP-Adapter-Plus": partial(repeated, partial(tokens, True, references)),
        } | ({"ControlNet": partial(repeated, controlled)} if references == 1 else {})
        found.append(group(generation.WORDS[references], calls, references))
    cache = seen(3)
    where = masks.columns(3, size.resolution)
    masked = partial(clean, cache, identity_masks=where)
    people: dict[str, Steps] = {
        "without masks": partial(clean, cache),
        "masks, dense": partial(masked, backend="dense"),
        "masks, grouped": partial(masked, backend="grouped"),
    }
    for name, few in masks.bounds("cuda").items():
        people[name] = partial(_few, few, masked)
    people[f"masks, by layer, {generation.EACH_STEP}"] = partial(
        _few, FEW_LOGITS["cuda"], partial(masked, same_text=False)
    )
    return [*found, group("Three references", people, 3)]


def layers(setting: Setting) -> list[Group]:
    """One attention layer, as `benchmarks.masks` times it, of three people."""
    side, shape = masks.first_layer(setting.size)
    found = []
    for positions in (side, side // 2):
        calls = masks.layer_calls(setting, ("dense", "grouped"), 3, positions, shape)
        counted = {name: _both(call) for name, call in calls.items()}
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
            call = partial(_backward, loss_of)
            counted[name] = _both(call)
    return [_group(title, counted)]


def _backward(loss_of: Callable[[int], Tensor]) -> None:
    loss_of(0).backward()


def _few(few: int, call: Steps, steps: int) -> None:
    """With another bound of what a few logits are: nobody has set one for the meta device."""
    with patch.dict("fusionlib.kernels.FEW_LOGITS", {META: few}):
        call(steps)


def _both(call: Callable[[], object]) -> tuple[float, float]:
    return count_operations(call), count_kernels(call)


def _group(title: str, counted: Mapping[str, tuple[float, float]]) -> Group:
    rows = tuple(
        Row(name, (operations / 1e12,), operations, kernels=kernels)
        for name, (operations, kernels) in counted.items()
    )
    return Group(title, "10¹² operations", rows, "ratio", "Counted, not measured.")
