"""The base model: a text-to-image UNet over the frozen autoencoder and text encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fusionlib.profiles import Profile
from fusionlib.support.files import Made, check_folder, check_writable, replacing
from fusionlib.training.cached import cached_latents
from fusionlib.training.checkpoints import load_frozen, start_weights
from fusionlib.training.denoising import diffusion_loss, noised
from fusionlib.training.encoders import embed_captions, face_weights
from fusionlib.training.export import model_files, own_folder, save_model
from fusionlib.training.loop import Batch, Run, generator_on
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import DEFAULTS, RunOptions, check_runs, run_folder, train_network

TEXT_DROPOUT = 0.1
"""Share of samples with the empty prompt, for classifier-free guidance (Ho and Salimans 2022)."""

UNET = model_files('"UNet2DConditionModel"')
"""What the UNet's folder holds."""

SCHEDULER = Made(r"scheduler_config\.json", {"scheduler_config.json": '"DDIMScheduler"'})
"""What the scheduler's folder holds."""


class CaptionedLatents:
    """A training set and its mirror images as latents with captions, on the device of the training.

    Args:
        profile: Shards and picture size.
        checkpoint: Folder with ``vae/``, ``text_encoder/`` and ``tokenizer/``.
        depth: Whether to read the pictures' depth maps as well.
    """

    def __init__(self, profile: Profile, checkpoint: Path, *, depth: bool = False) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pictures = load_pictures(profile.training.shards, profile.resolution, depth=depth)
        self.pictures = pictures.mirrored()
        captions = embed_captions(checkpoint, self.pictures, self.device)
        self._text, self._wordings = captions.embeddings.to(self.device), captions.rows
        cache = run_folder(profile, "latents")
        self.latents = cached_latents(checkpoint, self.pictures, cache, self.device).to(self.device)
        size = (self.latents.shape[2], self.latents.shape[3])
        self._weights = face_weights(torch.from_numpy(self.pictures.masks), size).to(self.device)

    def loss(
        self,
        batch: Batch,
        scheduler: Any,
        predict: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Draw a batch and compute its denoising loss.

        Args:
            batch: Batch to draw.
            scheduler: Noise schedule.
            predict: The UNet's prediction from noisy latents, timesteps, text and pictures' rows.
        """
        generator, size = batch.generator, len(batch.samples)
        index = torch.randint(len(self.latents), (size,), generator=generator)
        noisy, timesteps, goal = noised(
            scheduler, self.latents[index], generator_on(self.device, generator)
        )
        dropped = torch.rand(size, generator=generator) < TEXT_DROPOUT
        text = self._draw_text(index, dropped, generator)
        return diffusion_loss(predict(noisy, timesteps, text, index), goal, self._weights[index])

    def _draw_text(self, index: Tensor, dropped: Tensor, generator: torch.Generator) -> Tensor:
        """One wording for each picture, the empty prompt where it is dropped."""
        draws = torch.rand(len(index), generator=generator).tolist()
        rows = [
            0 if drop else self._wordings[i][int(u * len(self._wordings[i]))]
            for i, u, drop in zip(index.tolist(), draws, dropped.tolist(), strict=True)
        ]
        return self._text[rows]


def train(profile: Profile, options: RunOptions = DEFAULTS) -> Run:
    """Train the profile's UNet; write ``unet/``, ``scheduler/`` and ``model_index.json``.

    The folder then has the layout of a Stable Diffusion checkpoint.

    Args:
        profile: Architecture, recipe and shards.
        options: Options of the run. Its folder, by default ``profile.base_model``, has ``vae/``,
            ``text_encoder/`` and ``tokenizer/``. It may start from a checkpoint folder's ``unet/``.
    """
    target = Path(options.out or profile.base_model)
    profile.recipe("base")  # or there is nothing to train
    own_folder(target / "unet", UNET, "base")
    check_folder(target / "scheduler", SCHEDULER)
    check_writable(target / "model_index.json", '"StableDiffusionPipeline"')
    check_runs(profile, "base")
    data = CaptionedLatents(profile, target)
    torch.manual_seed(profile.seed)
    unet = UNet2DConditionModel(**profile.architecture["unet"])
    start = start_weights(unet, options.start_from and options.start_from / "unet", "base")
    scheduler = DDIMScheduler(**profile.architecture["scheduler"])
    if data.device.type == "cpu":
        unet.to(memory_format=torch.channels_last)

    def loss(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        def predict(noisy: Tensor, timesteps: Tensor, text: Tensor, index: Tensor) -> Tensor:
            prediction: Tensor = network(noisy, timesteps, text, return_dict=False)[0]
            return prediction

        return data.loss(batch, scheduler, predict)

    run = train_network(unet, loss, profile, "base", options, start=start)
    save_model(unet, target / "unet", UNET, run_folder(profile, "base"))
    with replacing(target / "scheduler", SCHEDULER) as partial:
        scheduler.save_pretrained(partial)
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
    pipeline.register_to_config(sampling_defaults=profile.sampling)
    pipeline.save_config(target)  # model_index.json; the components are there already
    return run
