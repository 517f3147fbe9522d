"""How the softmax of Eq. 4 is computed when some keys are closed to some queries.

Three ways to the same numbers:

- ``"dense"``: one call of PyTorch's attention with a mask. What is closed is computed, too, and
  then thrown away.
- ``"grouped"``: the queries are sorted by what they see, and each group attends to its own keys,
  without a mask. Runs everywhere, and nothing closed is computed.
- ``"flex"``: FlexAttention over the same sorted queries, as one kernel that leaves closed blocks
  out. Made for CUDA, where it is compiled at the first call; elsewhere it is correct, but slow.

Each takes the fused keys and values of Eq. 6, prepares what does not depend on the queries, and
returns a function of the queries, for any number of calls.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlib.errors import FusionError
from fusionlib.masking import QueryGroups, aligned

Backend = Literal["dense", "grouped", "flex"]
"""How closed keys are treated. None, wherever a backend may be given, is ``usual_backend``'s."""

Attend = Callable[[Tensor], Tensor]
"""From queries ``(batch, heads, N_q, head_dim)`` to what they attend to, of the same shape."""

FEW_LOGITS = {"cpu": 150_000, "cuda": 5_000_000}
"""Up to so many logits, N_q times N_k, a layer is faster with a dense mask: what it computes in
vain takes less time than to sort and to start a kernel for each group. Both were measured
(``book/records/benchmarks``), CUDA's on an H200. A layer of 16 x 16 positions has as many as the
CPU's with two people, one of 32 x 32 as CUDA's with four: there the mask is faster, and with three
so it is for the GPU alone."""


def usual_backend(queries: int, keys: int, device: str = "cpu") -> Backend:
    """How closed keys are treated where nobody said how: by what is fastest in such a layer.

    Args:
        queries: N_q of the layer.
        keys: N_k, those of the text and of every reference.
        device: The type of the layer's device; one that is not in ``FEW_LOGITS`` is like a CPU.

    Returns:
        ``"dense"`` up to ``FEW_LOGITS``, ``"grouped"`` above; and in a compiled graph, which would
        make the mask anew at each call. ``"flex"`` was no faster in a whole picture, on an H200
        (``book/records/benchmarks``).
    """
    bound = FEW_LOGITS.get(device, FEW_LOGITS["cpu"])
    few = queries * keys <= bound and not torch.compiler.is_compiling()
    return "dense" if few else "grouped"


def check_backend(backend: str | None) -> None:
    """Raise a ``FusionError`` unless this is the name of a backend, or None."""
    if backend is not None and backend not in get_args(Backend):
        names = ", ".join(f'"{name}"' for name in get_args(Backend))
        raise FusionError(f"backend must be None or one of {names}, not {backend!r}.")


def dense(
    key: Tensor, value: Tensor, added: Tensor | None = None, scale: float | None = None
) -> Attend:
    """softmax(M + scale * Q K'^T) V' by PyTorch's attention.

    Args:
        key: K', ``(batch, heads, N_k, head_dim)``.
        value: V', shaped like ``key``.
        added: M, as ``added_logits`` makes it, broadcastable to ``(batch, heads, N_q, N_k)``; None
            where it is 0.
        scale: alpha; None means 1 / sqrt(head_dim).

    Returns:
        The function of Q; where there is no key at all, its result is 0.
    """
    if key.shape[2] == 0:
        return torch.zeros_like

    def attend(query: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale)

    return attend


def added_logits(bias: Tensor | None, closed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """M of Eq. 4 and 5: the logarithm of each key's strength, minus infinity where it is closed.

    Args:
        bias: log(lambda) of each key, ``(batch or 1, N_k)``; None where every strength is 1.
        closed: What ``closed_logits`` makes of a mask; None where nothing is closed.
        dtype: The queries'.

    Returns:
        Broadcastable to ``(batch, heads, N_q, N_k)``; None where it is 0.
    """
    if bias is None:
        return closed
    # A quarter of the dtype's lowest number stands for log(0): after the softmax it is 0 all the
    # same, and where the faces have a softmax of their own it lies above what a mask closes.
    row = bias.clamp(min=torch.finfo(dtype).min / 4).to(dtype)[:, None, None, :]
    return aligned(row if closed is None else row + closed)


def grouped(
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    groups: QueryGroups,
    tokens: Sequence[int],
    scale: float | None = None,
) -> Attend:
    """Each group of queries attends to the text and the references that it sees, without a mask.

    Args:
        key: As for ``dense``.
        value: As for ``dense``.
        bias: As for ``added_logits``.
        groups: Who sees what.
        tokens: How K' is divided: N_text, then N_f of each reference.
        scale: As for ``dense``.

    Returns:
        The function of Q.
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
    added = [
        added_logits(each if seen else None, None, key.dtype)
        for each, seen in zip(biases, groups.seen, strict=True)
    ]
    attends = [
        dense(*part, scale)
        for part in zip(by_group(key, 2), by_group(value, 2), added, strict=True)
    ]

    def attend(query: Tensor) -> Tensor:
        parts = _sorted(query, groups.order).split(list(groups.sizes), 2)
        attended = [each(part) for each, part in zip(attends, parts, strict=True)]
        return _sorted(join(attended, 2), groups.inverse)

    return attend


def flex(
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    groups: QueryGroups,
    tokens: Sequence[int],
    scale: float | None = None,
) -> Attend:
    """FlexAttention over the sorted queries; the arguments are those of ``grouped``.

    On the CPU it has no backward pass, and keeps the whole matrix of logits in memory.
    """

    def strengthened(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[batch if len(bias) > 1 else 0, k]

    blocks = groups.block_mask(tokens)

    def attend(query: Tensor) -> Tensor:
        attended = _flex_attention(query.device.type)(
            _sorted(query, groups.order),
            key,
            value,
            score_mod=None if bias is None else strengthened,
            block_mask=blocks,
            scale=scale,
        )
        return _sorted(attended, groups.inverse)

    return attend


def join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate ``(batch, heads, N, head_dim)``, a token's heads side by side in memory.

    That is how kernels lay out what they return and how ``to_out`` reads it, so that nothing is
    copied once more.

    Args:
        parts: What to join.
        dim: 0 for the batch, 2 for N.

    Returns:
        The whole, ``(batch, heads, N, head_dim)``.
    """
    return torch.cat([part.transpose(1, 2) for part in parts], {0: 0, 2: 1}[dim]).transpose(1, 2)


def _sorted(tokens: Tensor, order: Tensor) -> Tensor:
    """``(batch, heads, N, head_dim)`` in another order of N, laid out as by ``join``."""
    return tokens.transpose(1, 2).index_select(1, order).transpose(1, 2)


@cache
def _flex_attention(device: str) -> Any:
    """FlexAttention, compiled where it has to be: it is a kernel only then."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device == "cuda" else flex_attention
