"""A training step of the fusion adapter beside that of an IP-Adapter, over the same frozen UNet.

Both train on one picture and one reference each. The fusion adapter either encodes target,
reference and text in every step, or finds them computed, and h_f of the reference, too. The
IP-Adapter encodes the target by the autoencoder and the reference by CLIP's image encoder, as in
its own training script, or finds them computed likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import FACE, Models, add_lora
from companion.methods.counterpart_training import DecoupledTokens, IdentityNet
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
KEPT, IP_CACHED = "fused, latents, text and h_f cached", "IP-Adapter, latents and CLIP cached"
PLAIN = f"{CACHED}, plain attention"
"""On the CPU: torch's attention kernel against plain matrix products, by the way back, too."""


def run(setting: Setting) -> list[Group]:
    """Measure a step of one picture, then of four."""
    groups = []
    for batch, words in ((1, "one picture"), (4, "four pictures")):
        calls = {name: build() for name, build in systems(setting, batch).items()}
        if setting.device == "cpu":
            calls[PLAIN] = plainly(systems(setting, batch)[CACHED]())
        title = f"A training step of {words}, seconds"
        groups.append(compare(title, calls, setting, count=setting.counts))
        del calls
    return groups


DECOUPLED = "fused, decoupled, encoded in every step"
PLUS, FACEID, INSTANTID = "IP-Adapter-Plus", "FaceID", "InstantID, with its ControlNet"
LORA, WHOLE = "DreamBooth, a LoRA", "Arc2Face, UNet and text encoder"


def others(setting: Setting) -> dict[str, Callable[[], Call]]:
    """What builds the steps of the other systems: of memory only, at one picture."""
    return {
        DECOUPLED: lambda: _whole(setting, _fusion(Models(setting), attention="decoupled")),
        PLUS: lambda: _whole(setting, _ip_adapter(Models(setting), plus=True)),
        FACEID: lambda: _whole(setting, _faceid(Models(setting))),
        INSTANTID: lambda: _whole(setting, _instantid(Models(setting))),
        LORA: lambda: _whole(setting, _dreambooth(Models(setting))),
        WHOLE: lambda: _whole(setting, _arc2face(Models(setting))),
    }


def plainly(call: Call) -> Call:
    """The same call with ``attention: plain``."""

    def inner() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            call()

    return inner


def systems(
    setting: Setting, batch: int = 1, *, checkpointing: bool = False
) -> dict[str, Callable[[], Call]]:
    """What builds each system's whole step: loss, gradients, optimiser. IP-Adapter comes first."""
    steps = losses(lambda: Models(setting), batch, checkpointing=checkpointing)
    return {name: lambda make=make: _whole(setting, make()) for name, make in steps.items()}


def losses(
    models: Callable[[], Models], batch: int = 1, *, checkpointing: bool = False
) -> dict[str, Callable[[], tuple[Step, list[nn.Parameter]]]]:
    """What builds each system's loss, and the parameters that it trains."""
    sizes = {"size": batch, "checkpointing": checkpointing}
    return {
        "IP-Adapter": lambda: _ip_adapter(models(), **sizes),
        IP_CACHED: lambda: _ip_adapter(models(), **sizes, cached=True),
        ENCODED: lambda: _fusion(models(), **sizes),
        CACHED: lambda: _fusion(models(), **sizes, cached=True),
        KEPT: lambda: _fusion(models(), **sizes, cached=True, states=True),
    }


def _whole(setting: Setting, made: tuple[Step, list[nn.Parameter]]) -> Call:
    """A step with its gradients and its optimiser."""
    loss_of, trained = made
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    numbers = iter(range(1_000_000))

    def call() -> None:
        dtype = getattr(torch, setting.dtype)
        on = dtype != torch.float32
        with torch.autocast(setting.device, dtype if on else torch.bfloat16, enabled=on):
            loss = loss_of(next(numbers))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


@torch.no_grad()
def _latents(models: Models, number: int, pictures: int) -> Tensor:
    """Of random pictures."""
    side = models.size.resolution
    pixels = torch.randint(
        256,
        (pictures, side, side, 3),
        dtype=torch.uint8,
        device="cpu",
        generator=step_generator(0, number),
    )
    place = models.setting.place
    shown = as_pixels(pixels.to(place["device"])).to(place["dtype"])
    latents: Tensor = models.vae.encode(shown).latent_dist.mode().float() * 0.18215
    return latents


@torch.no_grad()
def _text(models: Models, batch: int) -> Tensor:
    """Of random captions."""
    return _states(models, batch)


def _states(models: Models, batch: int) -> Tensor:
    size = (batch, models.size.text["max_position_embeddings"])
    ids = torch.randint(models.size.text["vocab_size"] - 2, size, device=models.setting.device)
    states: Tensor = models.text_encoder(ids).last_hidden_state
    return states


def _fusion(
    models: Models,
    size: int = 1,
    checkpointing: bool = False,
    *,
    cached: bool = False,
    states: bool = False,
    attention: Literal["concatenated", "decoupled"] = "concatenated",
) -> tuple[Step, list[nn.Parameter]]:
    """The step of `fusionlib train adapter`; with `states`, by ``cache_references``."""
    device = models.setting.device
    empty_prompt = _text(models, 1)
    weights = torch.ones(size, 1, 1, 1, device=device)

    def source(batch: Batch) -> Inputs:
        latents, reference = _latents(models, batch.samples.start, 2 * size).chunk(2)
        return Inputs(latents, weights, _text(models, size), reference)

    if cached:
        kept = source(Batch(0, range(size), size, step_generator(0)))
        del models.vae, models.text_encoder
    if states:
        known = encode_references(models.unet, kept.reference.to(empty_prompt), empty_prompt)
        kept = replace(kept, reference=known)
    adapter = FusionAdapter.from_unet(models.unet, attention=attention)
    network = Conditioned(
        models.unet, adapter.float().requires_grad_(True), checkpointing=checkpointing
    ).train()
    task = Task(
        network=network,
        source=(lambda batch: kept) if cached else source,
        scheduler=models.scheduler,
        empty_prompt=empty_prompt,
        settings=Training(shards="", adapter=Recipe(steps=1, batch_size=size, learning_rate=1e-4)),
        start=RANDOM,
        damaged={},
        faces=[],
    )

    def step(number: int) -> Tensor:
        first = number * size
        batch = Batch(0, range(first, first + size), size, step_generator(0, number))
        return task.loss(network, batch)["loss"]

    return step, _trained(network)


def _ip_adapter(
    models: Models,
    size: int = 1,
    checkpointing: bool = False,
    *,
    cached: bool = False,
    plus: bool = False,
) -> tuple[Step, list[nn.Parameter]]:
    """The step of tencent-ailab/IP-Adapter's `tutorial_train.py`, in diffusers' own modules."""

    @torch.no_grad()
    def see() -> Mapping[str, Tensor]:
        return {"seen": models.image_embeds(size, plus=plus)[0]}

    projection = models.projection(PLUS if plus else "IP-Adapter")
    network = DecoupledTokens(models.unet, *projection, "seen")
    return _tokens(models, network, see, size, checkpointing, cached=cached)


def _faceid(models: Models) -> tuple[Step, list[nn.Parameter]]:
    """As `_ip_adapter`, of a recogniser's vector, which is computed before the training."""
    network = DecoupledTokens(models.unet, *models.projection("FaceID"), "seen")
    vector = torch.randn(1, FACE, **models.setting.place)
    return _tokens(models, network, lambda: {"seen": vector})


def _instantid(models: Models) -> tuple[Step, list[nn.Parameter]]:
    """As its authors train it: a resampler of the vector, and the whole of IdentityNet."""
    projection = models.projection("InstantID")
    network = IdentityNet(models.unet, *projection, "seen", "drawing", factor=models.factor)
    network.controlnet.requires_grad_(True).float()
    side, place = models.size.resolution, models.setting.place
    views = {
        "seen": torch.randn(1, 1, FACE, **place),
        "drawing": torch.rand(1, 3, side, side, **place),
    }
    return _tokens(models, network, lambda: views)


def _tokens(
    models: Models,
    network: DecoupledTokens,
    see: Callable[[], Mapping[str, Tensor]],
    size: int = 1,
    checkpointing: bool = False,
    *,
    cached: bool = False,
) -> tuple[Step, list[nn.Parameter]]:
    """The step of an IP-Adapter's kind; `see` computes what it reads of the reference."""
    network.train()
    if checkpointing:
        models.unet.enable_gradient_checkpointing()

    def source(number: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return _latents(models, number, size), _text(models, size), dict(see())

    if cached:
        kept = source(0)
        for part in ("vae", "text_encoder", "image_encoder"):
            delattr(models, part)

    def step(number: int) -> Tensor:
        latents, text, seen = kept if cached else source(number)
        noisy, timesteps, goal = noised(models.scheduler, latents, step_generator(1, number))
        prediction = network(noisy.to(models.setting.place["dtype"]), timesteps, text, seen)
        return diffusion_loss(prediction, goal, torch.ones_like(goal[:, :1]))["loss"]

    return step, _trained(network)


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _dreambooth(models: Models) -> tuple[Step, list[nn.Parameter]]:
    """The step of `companion.methods.dreambooth`: a picture of the person and one of the class."""
    latents, text = _latents(models, 0, 2), _text(models, 2)
    trained = add_lora(models.unet.train())
    return _denoising(models, latents, lambda: text), trained


def _arc2face(models: Models) -> tuple[Step, list[nn.Parameter]]:
    """As its authors trained it: the whole UNet, and the text encoder that reads a face's vector.

    The vector takes a word's place and no memory to speak of: a caption stands for it.
    """
    latents = _latents(models, 0, 1)
    trained = []
    for part in (models.unet, models.text_encoder):
        part.float().requires_grad_(True).train()
        trained += list(part.parameters())
    return _denoising(models, latents, lambda: _states(models, 1)), trained


def _denoising(models: Models, latents: Tensor, text: Callable[[], Tensor]) -> Step:
    def step(number: int) -> Tensor:
        noisy, timesteps, goal = noised(models.scheduler, latents, step_generator(1, number))
        prediction = models.unet(noisy.to(models.unet.dtype), timesteps, text()).sample
        return diffusion_loss(prediction, goal, torch.ones_like(goal[:, :1]))["loss"]

    return step
