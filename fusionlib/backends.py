"""How the softmax of Eq. 4 is computed when some keys are closed to some queries.

Three ways to the same numbers:

- ``"dense"``: one call of PyTorch's attention with a mask. What is closed is computed, too, and
  then thrown away.
- ``"grouped"``: the queries are sorted by what they see, and each group attends to its own keys,
  without a mask. Runs everywhere, and nothing closed is computed.
- ``"flex"``: FlexAttention over the same sorted queries, as one kernel that leaves closed blocks
  out. Made for CUDA, where it is compiled at the first call; elsewhere it is correct, but slow.

All take the fused keys and values of Eq. 6, and the logarithm of the strengths as a bias for each
key, ``(batch, N_k)``, or None where every strength is 1.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlib.errors import FusionError
from fusionlib.masking import QueryGroups

Backend = Literal["dense", "grouped", "flex"]
"""How closed keys are treated. None, wherever a backend may be given, is ``usual_backend``'s."""

FEW_LOGITS = 150_000
"""Up to so many logits, N_q times N_k, a layer is faster with a dense mask: what it computes in
vain takes less time than to sort and to start a kernel for each group. Measured on a CPU: a layer
of 16 x 16 positions has so many with two people (``book/records/benchmarks``)."""


def usual_backend(queries: int, keys: int) -> Backend:
    """How closed keys are treated where nobody said how: by what is fastest in such a layer.

    Args:
        queries: N_q of the layer.
        keys: N_k, those of the text and of every reference.

    Returns:
        ``"dense"`` up to ``FEW_LOGITS``, ``"grouped"`` above; and in a compiled graph, which would
        make the mask anew at each call. ``"flex"`` was no faster in a whole picture, on an H200
        (``book/records/benchmarks``).
    """
    few = queries * keys <= FEW_LOGITS and not torch.compiler.is_compiling()
    return "dense" if few else "grouped"


def check_backend(backend: str | None) -> None:
    """Raise a ``FusionError`` unless this is the name of a backend, or None."""
    if backend is not None and backend not in get_args(Backend):
        names = ", ".join(f'"{name}"' for name in get_args(Backend))
        raise FusionError(f"backend must be None or one of {names}, not {backend!r}.")


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(M + scale * Q K'^T) V' by PyTorch's attention.

    Args:
        query: Q, ``(batch, heads, N_q, head_dim)``.
        key: K', ``(batch, heads, N_k, head_dim)``.
        value: V', shaped like ``key``.
        bias: log(lambda) of each key, ``(batch, N_k)``.
        mask: Boolean, broadcastable to ``(batch, heads, N_q, N_k)``, True where a query may look.
        scale: alpha; None means 1 / sqrt(head_dim).

    Where there is no key at all, the result is 0.
    """
    if key.shape[2] == 0:
        return torch.zeros_like(query)
    added = mask
    if bias is not None:
        # A quarter of the dtype's lowest number stands for log(0): after the softmax it is 0 all
        # the same, and unlike minus infinity it leaves no NaN in the backward pass.
        lowest = torch.finfo(query.dtype).min / 4
        added = bias.clamp(min=lowest).to(query.dtype)[:, None, None, :]
        if mask is not None:
            added = added.where(mask, -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale)


def grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    groups: QueryGroups,
    tokens: Sequence[int],
    scale: float | None = None,
) -> Tensor:
    """Each group of queries attends to the text and the references that it sees, without a mask.

    ``groups`` says who sees what, and ``tokens`` how K' is divided: N_text, then N_f of each
    reference. The other arguments are those of ``dense``.
    """

    def by_group(fused: Tensor, dim: int) -> list[Tensor]:
        """What each group sees of K', of V' or of the bias."""
        text, *faces = fused.split(list(tokens), dim)
        return [
            fused if len(seen) == len(faces) else torch.cat([text, *(faces[i] for i in seen)], dim)
            for seen in groups.seen
        ]

    # The text has no bias, so that a group which sees nothing else needs none.
    biases = [None] * len(groups.seen) if bias is None else by_group(bias, 1)
    parts = zip(
        query[:, :, groups.order].split(list(groups.sizes), 2),
        by_group(key, 2),
        by_group(value, 2),
        [each if seen else None for each, seen in zip(biases, groups.seen, strict=True)],
        strict=True,
    )
    attended = [dense(*part, scale=scale) for part in parts]
    return torch.cat(attended, 2)[:, :, groups.inverse]


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    groups: QueryGroups,
    tokens: Sequence[int],
    scale: float | None = None,
) -> Tensor:
    """FlexAttention over the sorted queries; the arguments are those of ``grouped``.

    On the CPU it has no backward pass, and keeps the whole matrix of logits in memory.
    """

    def strengthened(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[batch, k]

    attended = _flex_attention(query.device.type)(
        query[:, :, groups.order],
        key,
        value,
        score_mod=None if bias is None else strengthened,
        block_mask=groups.block_mask(tokens),
        scale=scale,
    )
    return attended[:, :, groups.inverse]


@cache
def _flex_attention(device: str) -> Any:
    """FlexAttention, compiled where it has to be: it is a kernel only then."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device == "cuda" else flex_attention
