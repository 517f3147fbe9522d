"""The losses of the embedded models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(prediction: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 of the pixels and of their differences to the right and lower neighbour.

    The second term preserves the edges of eyes and lips, which take up few pixels.

    Args:
        prediction: Reconstruction ``(batch, 3, h, w)`` in [-1, 1].
        pixels: Picture of the same shape.
        weight: Non-negative weights ``(batch, 1, h, w)``.
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
    """Cross-entropy of predicting each word from the text tower's state at its own position.

    A small image tower does not see every word: an expression is a few pixels. With the contrastive
    loss alone the text tower forgets such words, and then a diffusion model that is conditioned on
    its states cannot distinguish *laughing* from *crying*.

    Args:
        hidden_states: Last states of the tower, ``(batch, tokens, width)``.
        embeddings: Token embeddings, ``(vocabulary, width)``.
        input_ids: Tokens ``(batch, tokens)``.
        end: Token that ends a text. What follows the first one is padding and does not count.
    """
    logits = hidden_states.float() @ embeddings.float().T
    counts = ((input_ids == end).cumsum(1) - (input_ids == end).long()) == 0
    return F.cross_entropy(logits[counts], input_ids[counts])


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford 2021, figure 3).

    Args:
        image_embeds: Image embeddings ``(batch, width)`` of any norm; normalised here.
        text_embeds: Text embeddings ``(batch, width)``, likewise; row i belongs to image i.
        logit_scale: Logarithm of the inverse temperature.
    """
    image = F.normalize(image_embeds.float(), dim=-1)
    text = F.normalize(text_embeds.float(), dim=-1)
    logits = logit_scale.float().exp().clamp(max=100) * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def arcface_loss(
    embeddings: Tensor, centres: Tensor, person: Tensor, *, margin: float, scale: float
) -> Tensor:
    """ArcFace's loss with an additive angular margin (Deng 2019, equation 3).

    It is the cross-entropy over ``scale * cos(angle)`` to every person's centre, where the angle to
    the own centre is increased by ``margin``, and so has to be smaller than any other by as much.

    Args:
        embeddings: Embeddings ``(batch, width)`` of any norm; normalised here.
        centres: Centre of each person, ``(people, width)``, likewise.
        person: Number of each embedding's person, ``(batch,)``.
        margin: Margin in radians. Where the angle exceeds pi with it, the cosine is continued as a
            straight line.
        scale: Inverse temperature.
    """
    cosine = F.normalize(embeddings.float(), dim=-1) @ F.normalize(centres.float(), dim=-1).T
    own = cosine.gather(1, person[:, None])
    # At exactly 1 and -1 the arc cosine has no gradient.
    angle = own.clamp(-1 + 1e-6, 1 - 1e-6).acos() + margin
    return F.cross_entropy(scale * cosine.scatter(1, person[:, None], _cos(angle)), person)


def _cos(angle: Tensor) -> Tensor:
    """Cosine up to pi, and beyond it a falling line, so that the gradient does not vanish."""
    return torch.where(angle < math.pi, angle.cos(), -1 - (angle - math.pi))


def heads_loss(logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum of the cross-entropies of several classifications.

    Args:
        logits: Logits of all heads side by side, ``(batch, sum of sizes)``.
        targets: Class under each head, ``(batch, heads)``; -1 where it is not known.
        sizes: Number of classes of each head.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    parts = logits.float().split(list(sizes), dim=1)
    for part, target in zip(parts, targets.T, strict=True):
        known = int((target >= 0).sum())
        if known:
            total = total + F.cross_entropy(part, target, ignore_index=-1)
    return total
