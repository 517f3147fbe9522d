"""The base model: a text-to-image UNet over the frozen autoencoder and text encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fusionlib.profiles import Profile
from fusionlib.training.cached import cached_latents, embed_captions
from fusionlib.training.checkpoints import load_frozen, start_weights
from fusionlib.training.denoising import diffusion_loss, noised
from fusionlib.training.encoders import face_weights
from fusionlib.training.export import save_model
from fusionlib.training.loop import Batch, Run, fit, generator_on
from fusionlib.training.pictures import load_pictures

TEXT_DROPOUT = 0.1
"""Share of samples with the empty prompt, for classifier-free guidance (Ho and Salimans 2022)."""


def train(
    profile: Profile,
    out: Path | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = True,
    start_from: Path | None = None,
) -> Run:
    """Train the profile's UNet; write ``unet/``, ``scheduler/`` and ``model_index.json``.

    The folder then has the layout of a Stable Diffusion checkpoint.

    Args:
        profile: architecture, recipe and shards.
        out: the checkpoint's folder, with ``vae/``, ``text_encoder/`` and ``tokenizer/`` trained
            before; default ``profile.base_model``.
        minutes: stop after this time with a checkpoint.
        steps: overrides the recipe's length.
        resume: go on from the checkpoint if there is one.
        start_from: a checkpoint folder whose ``unet/`` to begin with, rather than random weights.
    """
    recipe = profile.recipe("base")
    target = Path(out or profile.base_model)
    folder = Path(profile.training.runs) / profile.name / "base"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = load_pictures(profile.training.shards, profile.resolution).mirrored()
    captions = embed_captions(target, pictures, device).to(device)
    latents = cached_latents(target, pictures, folder.parent / "latents", device).to(device)
    sides = (latents.shape[2], latents.shape[3])
    weights = face_weights(torch.from_numpy(pictures.masks), sides).to(device)
    torch.manual_seed(profile.seed)
    unet = UNet2DConditionModel(**profile.architecture["unet"])
    start = start_weights(unet, start_from and start_from / "unet", "base")
    scheduler = DDIMScheduler(**profile.architecture["scheduler"])
    if device.type == "cpu":
        unet.to(memory_format=torch.channels_last)

    def loss(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        generator = batch.generator
        size = recipe.batch_size
        index = torch.randint(len(latents), (size,), generator=generator)
        noisy, timesteps, goal = noised(scheduler, latents[index], generator_on(device, generator))
        dropped = torch.rand(size, generator=generator) < TEXT_DROPOUT
        text = captions.draw(index, dropped, generator)
        prediction = network(noisy, timesteps, text, return_dict=False)[0]
        return diffusion_loss(prediction, goal, weights[index])

    run = fit(
        unet,
        loss,
        recipe,
        folder,
        seed=profile.seed,
        steps=steps,
        minutes=minutes,
        resume=resume,
        name="base",
        start=start,
    )
    save_model(unet, target / "unet", folder)
    scheduler.save_pretrained(target / "scheduler")
    pipeline = StableDiffusionPipeline(
        vae=load_frozen(AutoencoderKL, target / "vae"),
        text_encoder=load_frozen(CLIPTextModel, target / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(target / "tokenizer"),
        unet=load_frozen(UNet2DConditionModel, target / "unet"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_config(target)  # model_index.json; the components are there already
    return run
