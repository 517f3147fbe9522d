"""A training step of the fusion adapter beside that of an IP-Adapter, over the same frozen UNet.

Both train on one picture and one reference. The fusion adapter either encodes target, reference and
text in every step, or finds them computed, and h_f of the reference, too. The IP-Adapter encodes
the target by the autoencoder and the reference by CLIP's image encoder, as in its own training
script, or finds them computed likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import Models
from companion.methods.counterpart_training import DecoupledTokens
from companion.pages.benchmark_records import Group
from fusionlib.adapter import FusionAdapter
from fusionlib.profiles import Recipe, Training
from fusionlib.reference import encode_references
from fusionlib.training.adapter import Conditioned, Task
from fusionlib.training.checkpoints import RANDOM
from fusionlib.training.denoising import diffusion_loss, noised
from fusionlib.training.loop import Batch, step_generator
from fusionlib.training.pictures import as_pixels
from fusionlib.training.sources import Inputs

Step = Callable[[int], Tensor]
"""The loss of the step of this number."""

ENCODED, CACHED = "fused, encoded in every step", "fused, latents and text cached"
WHOLE_UNET = "the whole UNet, without references"
KEPT, IP_CACHED = "fused, latents, text and h_f cached", "IP-Adapter, latents and CLIP cached"


def run(setting: Setting) -> list[Group]:
    """Measure a step of one picture."""
    calls = {name: build() for name, build in systems(setting).items()}
    title = "A training step of one picture, seconds"
    return [compare(title, calls, setting, count=True)]


def systems(setting: Setting) -> dict[str, Callable[[], Call]]:
    """Builders of each system's whole step: loss, gradients, optimiser. IP-Adapter comes first."""
    return {
        "IP-Adapter": lambda: _whole(setting, *_ip_adapter(Models(setting))),
        IP_CACHED: lambda: _whole(setting, *_ip_adapter(Models(setting), cached=True)),
        ENCODED: lambda: _whole(setting, *_fusion(Models(setting))),
        CACHED: lambda: _whole(setting, *_fusion(Models(setting), cached=True)),
        KEPT: lambda: _whole(setting, *_fusion(Models(setting), cached=True, states=True)),
        WHOLE_UNET: lambda: _whole(setting, *_everything(Models(setting))),
    }


def _whole(setting: Setting, loss_of: Step, network: nn.Module) -> Call:
    """A step with its gradients and its optimiser."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    numbers = iter(range(1_000_000))

    def call() -> None:
        dtype = getattr(torch, setting.dtype)
        on = dtype != torch.float32
        with torch.autocast(setting.device, dtype if on else torch.bfloat16, enabled=on):
            loss = loss_of(next(numbers))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


@torch.no_grad()
def _latents(models: Models, number: int, pictures: int) -> Tensor:
    """The latents of random pictures."""
    side = models.size.resolution
    draw = partial(torch.randint, device="cpu", generator=step_generator(0, number))
    pixels = draw(256, (pictures, side, side, 3), dtype=torch.uint8)
    place = models.setting.place
    shown = as_pixels(pixels.to(place["device"])).to(place["dtype"])
    latents: Tensor = models.vae.encode(shown).latent_dist.mode().float() * 0.18215
    return latents


@torch.no_grad()
def _text(models: Models) -> Tensor:
    """The hidden states of a random caption."""
    size = (1, models.size.text["max_position_embeddings"])
    ids = torch.randint(models.size.text["vocab_size"] - 2, size, device=models.setting.device)
    states: Tensor = models.text_encoder(ids).last_hidden_state
    return states


def _fusion(
    models: Models, *, cached: bool = False, states: bool = False
) -> tuple[Step, nn.Module]:
    """The step of `fusionlib train adapter`; with `states`, by ``cache_references``."""
    empty_prompt = _text(models)
    weights = torch.ones(1, 1, 1, 1, device=models.setting.device)

    def source(batch: Batch) -> Inputs:
        latents, reference = _latents(models, batch.samples.start, 2).chunk(2)
        return Inputs(latents, weights, _text(models), reference)

    if cached:
        kept = source(Batch(0, range(1), 1, step_generator(0)))
        del models.vae, models.text_encoder
    if states:
        known = encode_references(models.unet, kept.reference.to(empty_prompt), empty_prompt)
        kept = replace(kept, reference=known)
    adapter = FusionAdapter.from_unet(models.unet).float().requires_grad_(True)
    network = Conditioned(models.unet, adapter).train()
    task = Task(
        network=network,
        source=(lambda batch: kept) if cached else source,
        scheduler=models.scheduler,
        empty_prompt=empty_prompt,
        settings=Training(shards="", adapter=Recipe(steps=1, batch_size=1, learning_rate=1e-4)),
        start=RANDOM,
        damaged={},
        faces=[],
    )

    def step(number: int) -> Tensor:
        batch = Batch(0, range(number, number + 1), 1, step_generator(0, number))
        return task.loss(network, batch)["loss"]

    return step, network


def _ip_adapter(models: Models, *, cached: bool = False) -> tuple[Step, nn.Module]:
    """The step of tencent-ailab/IP-Adapter's `tutorial_train.py`, in diffusers' own modules."""
    network = DecoupledTokens(models.unet, *models.projection(), "seen").train()

    def source(number: int) -> tuple[Tensor, Tensor, Tensor]:
        return _latents(models, number, 1), _text(models), models.image_embeds(1)[0]

    if cached:
        kept = source(0)
        del models.vae, models.text_encoder, models.image_encoder

    def step(number: int) -> Tensor:
        latents, text, embeds = kept if cached else source(number)
        noisy, timesteps, goal = noised(models.scheduler, latents, step_generator(1, number))
        noisy = noisy.to(models.setting.place["dtype"])
        prediction = network(noisy, timesteps, text, {"seen": embeds})
        return diffusion_loss(prediction, goal, torch.ones_like(goal[:, :1]))["loss"]

    return step, network


def _everything(models: Models) -> tuple[Step, nn.Module]:
    """The step of fine-tuning all weights of the UNet, on a picture and its text."""
    unet = models.unet.float().requires_grad_(True).train()

    def step(number: int) -> Tensor:
        latents, text = _latents(models, number, 1), _text(models)
        noisy, timesteps, goal = noised(models.scheduler, latents, step_generator(1, number))
        prediction = unet(noisy, timesteps, text.float()).sample
        return diffusion_loss(prediction, goal, torch.ones_like(goal[:, :1]))["loss"]

    return step, unet
