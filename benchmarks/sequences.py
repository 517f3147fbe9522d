"""Groups of queries as sequences of one call of FlashAttention: tried, and not what is used.

`fusionlib.kernels.grouped` starts a kernel for each group. FlashAttention takes sequences of
different lengths in one, so that a layer starts three, however many people there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from unittest.mock import patch

import torch
from torch import Tensor

from fusionlib import attention
from fusionlib.kernels import Attend, QueryGroups


@contextmanager
def in_sequences() -> Iterator[None]:
    """Where the library sorts queries, the groups are sequences of one call."""
    with patch.object(attention, "grouped", sequences):
        yield


def sequences(
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    groups: QueryGroups,
    tokens: Sequence[int],
    scale: float | None = None,
) -> Attend:
    """The groups of every sample attend in one kernel; the arguments are those of ``grouped``.

    Raises:
        ValueError: There are strengths, which FlashAttention cannot add to the logits.
    """
    if bias is not None:
        raise ValueError("FlashAttention adds nothing to the logits: leave strengths at 1.")

    def packed(fused: Tensor) -> Tensor:
        """``(batch * what the groups see together, heads, head_dim)``, sample by sample."""
        text, *faces = fused.split(list(tokens), 2)
        parts = [each for seen in groups.seen for each in (text, *(faces[i] for i in seen))]
        return torch.cat(parts, 2).transpose(1, 2).flatten(0, 1)

    def starts(lengths: Sequence[int]) -> Tensor:
        begun = accumulate([*lengths] * len(key), initial=0)
        return torch.tensor([*begun], dtype=torch.int32).to(key.device)

    seen = [tokens[0] + sum(tokens[1 + i] for i in group) for group in groups.seen]
    keys, values = packed(key), packed(value)
    query_starts, key_starts = starts(groups.sizes), starts(seen)
    longest = max(groups.sizes), max(seen)

    def attend(query: Tensor) -> Tensor:
        in_order = query.transpose(1, 2).index_select(1, groups.order)
        attended = of_sequences(
            in_order.flatten(0, 1), keys, values, query_starts, key_starts, *longest, scale
        )
        return attended.view(in_order.shape).index_select(1, groups.inverse).transpose(1, 2)

    return attend


def of_sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    scale: float | None,
) -> Tensor:
    """Each sequence of ``(tokens, heads, head_dim)`` attends to its own keys.

    The operator itself: ``torch.nn.attention.varlen`` costs its Python where a processor can hardly
    keep up with the GPU.
    """
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        query_starts,
        key_starts,
        most_queries,
        most_keys,
        0.0,  # dropout
        False,  # causal
        False,  # nothing to debug
        scale=scale,
    )[0]
    return attended
