"""The loss of whatever is trained over a frozen UNet: the denoising error, with its dropouts.

How a method shows a reference to the UNet is its own; all else is drawn alike for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionlib.profiles import Training
from fusionlib.training.loop import Batch
from fusionlib.training.objective import banded, diffusion_loss, min_snr_weights, noised
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
