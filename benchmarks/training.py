"""A training step of the fusion adapter beside that of an IP-Adapter, over the same frozen UNet.

Both train on one picture and one reference each. The fusion adapter either encodes target,
reference and text in every step (`encoded`) or finds them on disk (`cached`); the IP-Adapter
encodes the target by the autoencoder and the reference by CLIP's image encoder, as in its own
training script.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import Models, add_lora
from fusionlib.adapter import FusionAdapter
from fusionlib.benchmarked import Group
from fusionlib.profiles import Recipe, Training
from fusionlib.training.adapter import Conditioned, Task
from fusionlib.training.checkpoints import RANDOM
from fusionlib.training.loop import Batch, step_generator
from fusionlib.training.method import DecoupledTokens
from fusionlib.training.objective import diffusion_loss, noised
from fusionlib.training.pairs import as_pixels
from fusionlib.training.sources import Inputs

Step = Callable[[int], Tensor]
"""The loss of the step of this number."""

ENCODED, CACHED = "fused, encoded in every step", "fused, latents and text cached"
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
        groups.append(compare(title, calls, setting, count=True))
        del calls
    return groups


LORA, WHOLE = "DreamBooth, a LoRA", "Arc2Face, UNet and text encoder"


def of_the_unet(setting: Setting) -> dict[str, Callable[[], Call]]:
    """What builds the steps that change the UNet itself: of memory only, at one picture."""
    return {
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
    whole = partial(_whole, setting)
    return {
        "IP-Adapter": lambda: whole(_ip_adapter(Models(setting), batch, checkpointing)),
        ENCODED: lambda: whole(_fusion(Models(setting), batch, checkpointing, cached=False)),
        CACHED: lambda: whole(_fusion(Models(setting), batch, checkpointing, cached=True)),
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
    models: Models, size: int, checkpointing: bool, *, cached: bool
) -> tuple[Step, list[nn.Parameter]]:
    """The step of `fusionlib train adapter`."""
    device = models.setting.device
    adapter = FusionAdapter.from_unet(models.unet).float().requires_grad_(True)
    network = Conditioned(models.unet, adapter, checkpointing=checkpointing).train()
    empty_prompt = _text(models, 1)
    weights = torch.ones(size, 1, 1, 1, device=device)

    def source(batch: Batch) -> Inputs:
        latents, reference = _latents(models, batch.samples.start, 2 * size).chunk(2)
        return Inputs(latents, weights, _text(models, size), reference)

    kept = source(Batch(0, range(size), size, step_generator(0)))
    if cached:
        del models.vae, models.text_encoder
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

    return step, [p for p in network.parameters() if p.requires_grad]


def _ip_adapter(models: Models, size: int, checkpointing: bool) -> tuple[Step, list[nn.Parameter]]:
    """The step of tencent-ailab/IP-Adapter's `tutorial_train.py`, in diffusers' own modules."""
    vision, place = models.size.vision, models.setting.place
    width = models.size.unet["cross_attention_dim"]
    projection = ImageProjection(vision["projection_dim"], width, num_image_text_embeds=4)
    network = DecoupledTokens(models.unet, projection, 4, "embedding").train()
    if checkpointing:
        models.unet.enable_gradient_checkpointing()

    def step(number: int) -> Tensor:
        latents = _latents(models, number, size)
        side = vision["image_size"]
        with torch.no_grad():
            faces = torch.rand(size, 3, side, side).to(**place)
            embedding = models.image_encoder(faces).image_embeds
        noisy, timesteps, goal = noised(models.scheduler, latents, step_generator(1, number))
        seen = {"embedding": embedding}
        prediction = network(noisy.to(place["dtype"]), timesteps, _text(models, size), seen)
        return diffusion_loss(prediction, goal, torch.ones_like(goal[:, :1]))["loss"]

    return step, [p for p in network.parameters() if p.requires_grad]


def _dreambooth(models: Models) -> tuple[Step, list[nn.Parameter]]:
    """The step of `fusionlib.methods.dreambooth`: a picture of the person and one of the class."""
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
