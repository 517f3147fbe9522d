"""The denoising loss, with its dropouts, of whatever is trained over a frozen UNet.

Each method shows a reference to the UNet in its own way; everything else is drawn alike for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from fusionlib.profiles import Training
from fusionlib.training.loop import Batch
from fusionlib.training.sources import Inputs, Source


@dataclass(frozen=True)
class Drawn:
    """A batch as the UNet sees it.

    Attributes:
        noisy: Noisy latents, ``(batch, channels, h, w)``.
        timesteps: Timesteps ``(batch,)``.
        text: Embeddings of the captions, or the empty prompt's where the text was dropped,
            ``(batch, tokens, width)``.
        no_reference: Whether each sample is shown without a reference, boolean ``(batch,)``.
        generators: One generator for each sample, for whatever else is drawn for it.
    """

    noisy: Tensor
    timesteps: Tensor
    text: Tensor
    no_reference: Tensor
    generators: list[torch.Generator]


@dataclass
class DenoisingTask:
    """A network over the frozen base, the batches that it is shown, and the loss that trains it.

    Attributes:
        network: Network whose parameters that require a gradient are trained.
        source: Source of the batches.
        scheduler: Noise schedule.
        empty_prompt: Embedding of the empty prompt, ``(1, tokens, width)``, in the compute dtype.
        settings: Dropout, timesteps and weights of the loss.
    """

    network: Any
    source: Source
    scheduler: Any
    empty_prompt: Tensor
    settings: Training

    def predict(self, network: nn.Module, inputs: Inputs, drawn: Drawn) -> Tensor:
        """The UNet's prediction, with the references shown in the method's own way."""
        raise NotImplementedError

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Draw a batch and compute its loss; a `fusionlib.training.loop.LossFunction`."""
        inputs = self.source(batch)
        predict = partial(self.predict, network, inputs)
        return denoising_loss(
            inputs, batch, self.scheduler, self.empty_prompt, self.settings, predict
        )


def denoising_loss(
    inputs: Inputs,
    batch: Batch,
    scheduler: Any,
    empty_prompt: Tensor,
    settings: Training,
    predict: Callable[[Drawn], Tensor],
) -> dict[str, Tensor]:
    """Draw noise, timesteps and dropouts for a batch, and compute its loss.

    The text, the reference, or both are dropped with the profile's probabilities (5% each), for
    guidance. Everything that is drawn for a sample depends on its number alone.

    Args:
        inputs: Batch as the frozen models see it.
        batch: Numbers of its samples.
        scheduler: Noise schedule.
        empty_prompt: Embedding of the empty prompt, ``(1, tokens, width)``, in the compute dtype.
        settings: Dropout, timesteps and weights of the loss.
        predict: Computes the UNet's prediction, shaped like the latents.

    Returns:
        ``loss``, and the values that are logged beside it.
    """
    generators = batch.sample_generators()
    drop = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    no_text, no_reference = (
        dropped.to(inputs.latents.device)
        for dropped in dropout_masks(
            drop, settings.text_dropout, settings.reference_dropout, settings.both_dropout
        )
    )
    noisy, timesteps, goal = noised(
        scheduler, inputs.latents, generators, timestep_power=settings.timestep_power
    )
    kind = empty_prompt.dtype
    text = torch.where(no_text[:, None, None], empty_prompt, inputs.text.to(kind))
    prediction = predict(Drawn(noisy.to(kind), timesteps, text, no_reference, generators))
    weights = inputs.weights
    if settings.min_snr_gamma is not None:
        by_time = min_snr_weights(scheduler, timesteps, settings.min_snr_gamma)
        weights = weights * by_time[:, None, None, None]
    terms = diffusion_loss(prediction, goal, weights)
    error = (prediction.detach().float() - goal).square().mean(dim=(1, 2, 3))
    return terms | banded(error, timesteps, scheduler.config.num_train_timesteps)


def dropout_masks(
    draw: Tensor, text: float, reference: float, both: float
) -> tuple[Tensor, Tensor]:
    """Which samples lose the text and which the reference; the three cases exclude each other.

    Args:
        draw: Uniform numbers in [0, 1), ``(batch,)``.
        text: Probability that only the text is dropped.
        reference: Probability that only the reference is dropped.
        both: Probability that both are dropped.

    Returns:
        Masks of the samples without text and of those without reference, boolean ``(batch,)``.
    """
    only_text = draw < text
    only_reference = (draw >= text) & (draw < text + reference)
    neither = (draw >= text + reference) & (draw < text + reference + both)
    return only_text | neither, only_reference | neither


BANDS = 4
"""Number of equal ranges of timesteps whose errors are logged separately."""


def diffusion_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The target of the UNet, by the scheduler's ``prediction_type`` (Ho 2020; Salimans 2022).

    Args:
        scheduler: Diffusers scheduler.
        latents: Clean latents ``(batch, channels, h, w)``.
        noise: Standard normal noise of the same shape.
        timesteps: Integers below ``num_train_timesteps``, ``(batch,)``.

    Returns:
        The target, shaped like ``latents``.

    Raises:
        ValueError: The prediction type is none of ``epsilon``, ``v_prediction`` and ``sample``.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise ValueError(f"unknown prediction_type '{kind}' in the scheduler's configuration")


def noised(
    scheduler: Any,
    latents: Tensor,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    timestep_power: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw noise and timesteps, and add the noise to clean latents.

    Args:
        scheduler: Diffusers scheduler.
        latents: Clean latents ``(batch, channels, h, w)``.
        generator: Generator of the noise and then of the timesteps, on its own device. Either one
            for the batch, or one for each sample, which then does not depend on the others.
        timestep_power: Exponent of the timesteps' density, which grows like
            ``t ** (timestep_power - 1)``: 1 is uniform, as in DDPM; 2 favours noisy samples.

    Returns:
        The noisy latents, the timesteps ``(batch,)`` and the UNet's target (`diffusion_target`).
    """
    steps = scheduler.config.num_train_timesteps
    if isinstance(generator, torch.Generator):
        noise, timesteps = _draw(latents.shape, steps, generator, timestep_power)
    else:
        one = torch.Size([1, *latents.shape[1:]])
        parts = [_draw(one, steps, each, timestep_power) for each in generator]
        noise, timesteps = (torch.cat(several) for several in zip(*parts, strict=True))
    noise, timesteps = noise.to(latents.device), timesteps.to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return noisy, timesteps, diffusion_target(scheduler, latents, noise, timesteps)


def _draw(
    shape: torch.Size, steps: int, generator: torch.Generator, timestep_power: float
) -> tuple[Tensor, Tensor]:
    """Draw noise of a shape, and a timestep for each sample."""
    place: dict[str, Any] = {"generator": generator, "device": generator.device}
    noise = torch.randn(shape, **place)
    if timestep_power == 1:
        return noise, torch.randint(steps, shape[:1], **place)
    uniform = torch.rand(shape[0], **place)
    return noise, (uniform ** (1 / timestep_power) * steps).long().clamp(max=steps - 1)


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights of the timesteps by their signal-to-noise ratio (Hang 2023, equation 16).

    The error of x_0 has the weight min(SNR, gamma); so the error of epsilon has this divided by
    SNR, and that of v this divided by SNR + 1. Nearly clean samples count less.

    Args:
        scheduler: Diffusers scheduler.
        timesteps: Timesteps ``(batch,)``.
        gamma: Upper limit of the ratio, 5 in the paper.

    Returns:
        Weights ``(batch,)``.
    """
    snr = compute_snr(scheduler, timesteps)
    kind = scheduler.config.prediction_type
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[kind]
    return snr.clamp(max=gamma) / divisor


def diffusion_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Weighted squared error of the UNet's prediction, and the plain one beside it.

    Args:
        prediction: Prediction ``(batch, channels, h, w)``.
        target: Target of the same shape, see `diffusion_target`.
        weights: Weights ``(batch, 1, h, w)``, see `min_snr_weights` and
            `fusionlib.training.encoders.face_weights`.
    """
    error = (prediction.float() - target).square()
    return {"loss": (error * weights).mean(), "mse": error.detach().mean()}


def banded(error: Tensor, timesteps: Tensor, steps: int) -> dict[str, Tensor]:
    """The mean error in each quarter of the timesteps, NaN where a batch has none of them.

    Args:
        error: Squared error of each sample, ``(batch,)``.
        timesteps: Timesteps ``(batch,)``.
        steps: Number of timesteps, ``num_train_timesteps``.

    Returns:
        Errors by name: ``mse_t0`` for the first, least noisy quarter, and so on.
    """
    band = timesteps * BANDS // steps
    return {f"mse_t{n * steps // BANDS}": error[band == n].mean() for n in range(BANDS)}
