"""Losses: what each model of the embedded suite minimises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr
from torch import Tensor

BANDS = 4
"""Parts of the timesteps whose errors are logged apart."""

DIFFUSION_FACE_WEIGHT = 4.0
"""Added to the loss weight 1 of a position that lies wholly inside the face."""


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


def face_weights(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """How much each position of the latents counts in the loss: more inside the face.

    A face fills a few of the positions, and its features a small part of their variance, so a short
    training would spend itself on hair and background. What minimises the error at one position
    does not depend on the weight of that position: only the way there does.

    Args:
        masks: face masks, 0 or 1, ``(n, height, width)``; all zero where none is known.
        size: ``(h, w)`` of the latents.

    Returns:
        ``(n, 1, h, w)``, of mean 1 over each picture.
    """
    # In parts: as floats, the masks of a training set would take four times their memory at once.
    parts = masks[:, None].split(256)
    covered = torch.cat([F.adaptive_avg_pool2d(part.float(), size) for part in parts])
    weights = 1 + DIFFUSION_FACE_WEIGHT * covered
    return weights / weights.mean(dim=(2, 3), keepdim=True)


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


def reconstruction_loss(prediction: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 of the pixels and of their differences to the right and lower neighbour.

    The second term keeps the edges of eyes and lips, which few pixels hold.

    Args:
        prediction: ``(batch, 3, h, w)`` in [-1, 1].
        pixels: the same shape.
        weight: ``(batch, 1, h, w)``, non-negative.
    """
    error = prediction.float() - pixels
    across = (error[..., :, 1:] - error[..., :, :-1]).abs() * weight[..., :, 1:]
    down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
    return (error.abs() * weight).mean() + across.mean() + down.mean()


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence from N(mean, variance) to N(0, 1): sum over a sample, mean over the batch."""
    mean, log_variance = mean.float(), log_variance.float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return kl.flatten(1).sum(1).mean()


def word_loss(hidden_states: Tensor, embeddings: Tensor, input_ids: Tensor, end: int) -> Tensor:
    """Cross-entropy of reading each word back from the text tower's state at its own position.

    A small picture tower does not see every word: an expression is a few pixels. The contrastive
    loss alone lets the text tower forget such words, and then no diffusion model that is
    conditioned on its states can tell *laughing* from *crying*.

    Args:
        hidden_states: the tower's last states, ``(batch, tokens, width)``.
        embeddings: of the tokens, ``(vocabulary, width)``.
        input_ids: ``(batch, tokens)``.
        end: the token that ends a text; what follows the first one is padding and does not count.
    """
    logits = hidden_states.float() @ embeddings.float().T
    counts = ((input_ids == end).cumsum(1) - (input_ids == end).long()) == 0
    return F.cross_entropy(logits[counts], input_ids[counts])


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford 2021, figure 3).

    Args:
        image_embeds: ``(batch, width)``, of any length; normalised here.
        text_embeds: ``(batch, width)``; row i belongs to image i.
        logit_scale: logarithm of the inverse temperature.
    """
    image = F.normalize(image_embeds.float(), dim=-1)
    text = F.normalize(text_embeds.float(), dim=-1)
    logits = logit_scale.float().exp().clamp(max=100) * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def arcface_loss(
    embeddings: Tensor, centres: Tensor, person: Tensor, *, margin: float, scale: float
) -> Tensor:
    """Additive angular margin (Deng 2019, equation 3): each face near the centre of its person.

    Cross-entropy over ``scale * cos(angle)`` to every person's centre, where the angle to the own
    one is made larger by ``margin``: it has to be smaller than any other by as much.

    Args:
        embeddings: ``(batch, width)``, of any length; normalised here.
        centres: one for each person, ``(people, width)``, likewise.
        person: whose each embedding is, ``(batch,)``.
        margin: radians; where it carries the angle over pi, the cosine goes on as a straight line.
        scale: the inverse temperature.
    """
    cosine = F.normalize(embeddings.float(), dim=-1) @ F.normalize(centres.float(), dim=-1).T
    own = cosine.gather(1, person[:, None])
    # At exactly 1 and -1 the arc cosine has no gradient.
    angle = own.clamp(-1 + 1e-6, 1 - 1e-6).acos() + margin
    return F.cross_entropy(scale * cosine.scatter(1, person[:, None], _cos(angle)), person)


def _cos(angle: Tensor) -> Tensor:
    """Cosine up to pi; from there on it goes on falling, so that there is a way back."""
    return torch.where(angle < math.pi, angle.cos(), -1 - (angle - math.pi))


def heads_loss(logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum of the cross-entropies of several classifications.

    Args:
        logits: of all heads side by side, ``(batch, sum of sizes)``.
        targets: the class under each head, ``(batch, heads)``; -1 where it is not known.
        sizes: classes of each head.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    parts = logits.float().split(list(sizes), dim=1)
    for part, target in zip(parts, targets.T, strict=True):
        known = int((target >= 0).sum())
        if known:
            total = total + F.cross_entropy(part, target, ignore_index=-1)
    return total
