"""How the softmax of Eq. 4 is computed when some keys are closed to some queries.

Three ways to the same numbers:

- ``"dense"``: one call of PyTorch's attention with a boolean mask. What is closed is computed, too,
  and then thrown away. Without a mask it is the fastest of all: flash kernels stay usable.
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
"""How closed keys are treated. None, wherever a backend may be given, is ``"grouped"``: on an H200,
too, where ``"flex"`` was no faster in a whole picture (``book/records/benchmarks``)."""


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

    The bias does not become a dense ``(N_q, N_k)`` matrix, which flash kernels would refuse: the
    query gets one more channel that is 1, the keys one that is bias / scale.

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
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    head_dim = query.shape[-1]
    scale = head_dim**-0.5 if scale is None else scale
    # A quarter of the dtype's lowest number stands for log(0): after the softmax it is 0 all the
    # same, and unlike minus infinity it leaves no NaN in the backward pass.
    lowest = torch.finfo(query.dtype).min / 4
    channel = (bias / scale).clamp(min=lowest).to(query.dtype)[:, None, :, None]
    spare = -(head_dim + 1) % 8  # kernels want a multiple of 8 (SD 1.5: 40, 80, 160 -> 48, 88, 168)
    query = F.pad(torch.cat([query, torch.ones_like(query[..., :1])], dim=-1), (0, spare))
    key = F.pad(torch.cat([key, channel.expand(-1, key.shape[1], -1, -1)], dim=-1), (0, spare))
    value = F.pad(value, (0, 1 + spare))
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return fused[..., :head_dim]


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

    def part(fused: Tensor, seen: Sequence[int], dim: int) -> Tensor:
        if len(seen) == len(tokens) - 1:
            return fused
        text, *faces = fused.split(list(tokens), dim)
        return torch.cat([text, *(faces[i] for i in seen)], dim)

    attended = [
        dense(
            queries,
            part(key, seen, 2),
            part(value, seen, 2),
            part(bias, seen, 1) if bias is not None and seen else None,
            scale=scale,
        )
        for queries, seen in zip(
            query[:, :, groups.order].split(list(groups.sizes), 2), groups.seen, strict=True
        )
    ]
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
