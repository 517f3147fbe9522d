"""The loss of whatever is trained over a frozen UNet: the denoising error, with its dropouts.

How a method shows a reference to the UNet is its own; all else is drawn alike for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor

from fusionlib.profiles import Training
from fusionlib.training.loop import Batch
from fusionlib.training.sources import Inputs


@dataclass(frozen=True)
class Drawn:
    """A batch as the UNet is to see it.

    Attributes:
        noisy: latents, ``(batch, channels, h, w)``.
        timesteps: ``(batch,)``.
        text: embeddings of the captions, the empty prompt's where the text was dropped,
            ``(batch, tokens, width)``.
        no_reference: which samples are shown none, boolean ``(batch,)``.
        generators: one for each sample, for what else is drawn for it.
    """

    noisy: Tensor
    timesteps: Tensor
    text: Tensor
    no_reference: Tensor
    generators: list[torch.Generator]


def denoising_loss(
    inputs: Inputs,
    batch: Batch,
    scheduler: Any,
    empty_prompt: Tensor,
    settings: Training,
    predict: Callable[[Drawn], Tensor],
) -> dict[str, Tensor]:
    """Draw noise, timesteps and what is dropped for a batch, and compute its loss.

    The text, the reference, or both are dropped with the profile's probabilities (5% each), for
    guidance. All that is drawn for a sample depends on its number alone.

    Args:
        inputs: the batch, by the frozen models.
        batch: its numbers.
        scheduler: of the noise.
        empty_prompt: its embedding, ``(1, tokens, width)``, in the compute dtype.
        settings: dropout, timesteps, weights.
        predict: the UNet's prediction, shaped like the latents.

    Returns:
        ``loss`` and what is logged beside it.
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
        draw: uniform in [0, 1), ``(batch,)``.
        text: probability that only the text is dropped.
        reference: probability that only the reference is dropped.
        both: probability that both are.

    Returns:
        Boolean ``(batch,)``: no text, no reference.
    """
    only_text = draw < text
    only_reference = (draw >= text) & (draw < text + reference)
    neither = (draw >= text + reference) & (draw < text + reference + both)
    return only_text | neither, only_reference | neither


BANDS = 4
"""Parts of the timesteps whose errors are logged apart."""


def diffusion_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet predicts, by the scheduler's ``prediction_type`` (Ho 2020; Salimans 2022).

    Args:
        scheduler: a diffusers scheduler.
        latents: clean latents ``(batch, channels, h, w)``.
        noise: standard normal, the same shape.
        timesteps: ``(batch,)`` integers below ``num_train_timesteps``.

    Returns:
        The target, shaped like ``latents``.

    Raises:
        ValueError: for a prediction type other than ``epsilon``, ``v_prediction`` and ``sample``.
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
    """Draw noise and timesteps, and apply them.

    Args:
        scheduler: a diffusers scheduler.
        latents: clean latents ``(batch, channels, h, w)``.
        generator: draws the noise, then the timesteps, on its own device. One for the batch, or
            one for each sample, which then does not depend on the others of its batch.
        timestep_power: a timestep t is drawn with a density that grows like
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
    """Noise of a shape, and a timestep for each sample."""
    place: dict[str, Any] = {"generator": generator, "device": generator.device}
    noise = torch.randn(shape, **place)
    if timestep_power == 1:
        return noise, torch.randint(steps, shape[:1], **place)
    uniform = torch.rand(shape[0], **place)
    return noise, (uniform ** (1 / timestep_power) * steps).long().clamp(max=steps - 1)


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights of the timesteps by their signal-to-noise ratio (Hang 2023, equation 16).

    min(SNR, gamma) as a weight of the error of x_0, that is of epsilon divided by SNR, and of v
    divided by SNR + 1: near-clean samples, whose errors are easy and many, count less.

    Args:
        scheduler: a diffusers scheduler.
        timesteps: ``(batch,)``.
        gamma: 5 in the paper.

    Returns:
        ``(batch,)``.
    """
    snr = compute_snr(scheduler, timesteps)
    kind = scheduler.config.prediction_type
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[kind]
    return snr.clamp(max=gamma) / divisor


def diffusion_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Weighted squared error of the UNet's prediction, and the plain one beside it.

    Args:
        prediction: ``(batch, channels, h, w)``.
        target: the same shape, see `diffusion_target`.
        weights: ``(batch, 1, h, w)``, see `face_weights` and `min_snr_weights`.
    """
    error = (prediction.float() - target).square()
    return {"loss": (error * weights).mean(), "mse": error.detach().mean()}


def banded(error: Tensor, timesteps: Tensor, steps: int) -> dict[str, Tensor]:
    """The squared error of each quarter of the timesteps; NaN where a batch has none of it.

    Args:
        error: of each sample, ``(batch,)``.
        timesteps: ``(batch,)``.
        steps: ``num_train_timesteps``.

    Returns:
        By name: ``mse_t0`` for the first quarter, the least noisy, and so on.
    """
    band = timesteps * BANDS // steps
    return {f"mse_t{n * steps // BANDS}": error[band == n].mean() for n in range(BANDS)}
