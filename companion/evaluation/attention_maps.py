"""Attention maps: the weights of the softmax in a UNet's cross-attention, recorded as it runs.

The weights of a softmax sum to 1, so attention to values that are 1 for some keys and 0 for all
others returns those keys' share. That way they come from `fused_attention` itself, strengths and
masks included, and not from a second implementation; what the UNet computes is not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fusionlib.attention import fused_attention
from fusionlib.processor import LayerConditioning, conditioning_of
from fusionlib.unet_layers import cross_attention_layers, split_heads

Columns = Literal["sources", "keys"]
"""What is distinguished: the text and each reference, or every single key."""


@dataclass(frozen=True)
class AttentionShares:
    """The attention of one layer's queries in one call of the UNet.

    Attributes:
        layer: Name of the layer in the UNet.
        timestep: Timestep of the call.
        weights: Mean of the weights over the heads, ``(samples, N_q, columns)``, float32 on the
            CPU; each row sums to 1. The columns are the text and each reference, or all keys in
            this order.
        tokens: N_text, then N_f of each reference.
    """

    layer: str
    timestep: float
    weights: Tensor
    tokens: tuple[int, ...]

    @property
    def faces(self) -> Tensor:
        """The share of all references together, ``(samples, N_q)``."""
        text = 1 if self.weights.shape[-1] == len(self.tokens) else self.tokens[0]
        return self.weights[..., text:].sum(-1)


@contextmanager
def record_attention(
    unet: Any, of: Columns = "sources", *, last: int | None = None
) -> Iterator[list[AttentionShares]]:
    """Record the attention of every cross-attention layer while the UNet runs.

    Decoupled layers are passed over while they see faces: there, text and faces have a weight of 1
    each. References of strength 0 have no column, as `FusionAdapter.conditioned` leaves them out.

    Args:
        unet: A ``UNet2DConditionModel``, with a ``FusionAdapter`` attached or not.
        of: What to distinguish: ``"sources"``, or ``"keys"`` for every key, which takes more work.
        last: Number of samples at the end of the batch to look at where no faces are seen (those
            before are guidance's unconditional branch); None means all. Where faces are seen, it is
            the samples that see them.

    Yields:
        A list that grows while the UNet runs, one entry for each layer and call.
    """
    unet = getattr(unet, "_orig_mod", unet)
    shares: list[AttentionShares] = []
    now = [0.0]

    def note_time(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        time = args[1] if len(args) > 1 else kwargs["timestep"]
        now[0] = float(torch.as_tensor(time).flatten()[0])

    def look(name: str) -> Any:
        @torch.no_grad()
        def hook(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            faces = conditioning_of(layer)
            if faces is not None and faces.attention == "decoupled":
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
            text = text[0] if isinstance(text, tuple) else text  # an IP-Adapter's image follows it
            samples = (last if faces is None else faces.batch_size) or hidden.shape[0]
            query = split_heads(layer.to_q(hidden[-samples:]), layer.heads)
            key = split_heads(layer.to_k(text[-samples:]), layer.heads)
            shares.append(AttentionShares(name, now[0], *_weights(query, key, faces, of)))

        return hook

    handles = [unet.register_forward_pre_hook(note_time, with_kwargs=True)] + [
        layer.register_forward_pre_hook(look(name), with_kwargs=True)
        for name, layer in cross_attention_layers(unet).items()
    ]
    try:
        yield shares
    finally:
        for handle in handles:
            handle.remove()


def _weights(
    query: Tensor, text_key: Tensor, faces: LayerConditioning | None, of: Columns
) -> tuple[Tensor, tuple[int, ...]]:
    """Weights ``(samples, N_q, columns)``, and N_text and each N_f."""
    heads, positions, width = query.shape[1:]
    keys = [] if faces is None else [split_heads(k.to(query), heads) for k in faces.keys]
    tokens = (text_key.shape[2], *(key.shape[2] for key in keys))
    owner = torch.arange(sum(tokens), device=query.device)
    if of == "sources":
        counts = torch.tensor(tokens, device=query.device)
        owner = torch.arange(len(tokens), device=query.device).repeat_interleave(counts)
    columns = int(owner[-1]) + 1
    found = []
    for first in range(0, columns, width):  # a head's values have room for `width` columns
        here = one_hot((owner - first).clamp(-1, width) + 1, width + 2)[:, 1:-1].to(query)
        words, *looks = here.expand(len(query), heads, -1, -1).split(tokens, dim=2)
        share = fused_attention(
            query,
            text_key,
            words,
            keys,
            [look[: len(key)] for look, key in zip(looks, keys, strict=True)],
            strengths=None if faces is None else faces.strengths,
            mask=None if faces is None or not faces.groups else faces.groups[positions],
        )
        found.append(share.mean(1)[..., : columns - first].float().cpu())
    return torch.cat(found, dim=-1), tokens
