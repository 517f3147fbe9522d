"""Losses: what each model of the embedded suite minimises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
