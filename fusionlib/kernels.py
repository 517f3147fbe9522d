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

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlib.checks import Strength, check_masks, check_reference_identity
from fusionlib.errors import FusionError
from fusionlib.masking import scale_identity_masks

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


@dataclass(frozen=True)
class ShownReferences:
    """The references that are left when those of strength 0 are taken out, and who sees them."""

    keys: list[Tensor]
    values: list[Tensor]
    strengths: list[Strength]
    tokens: list[int]
    """N_text, then N_f of each reference."""
    mask: Tensor | QueryGroups | None
    backend: Backend

    def without_text(self) -> ShownReferences:
        """The same for a list of keys that holds none of the text's."""
        mask, tokens = self.mask, [0, *self.tokens[1:]]
        if isinstance(mask, Tensor) and mask.shape[-1] > 1:
            mask = mask[..., self.tokens[0] :]
        return replace(self, mask=mask, tokens=tokens)


def one_softmax(
    key: Tensor, value: Tensor, bias: Tensor | None, seen: ShownReferences, scale: float | None
) -> Attend:
    """Eq. 4 and 5 over these keys, by the backend."""
    mask, tokens, dtype = seen.mask, seen.tokens, key.dtype
    if isinstance(mask, QueryGroups) and seen.backend != "dense":
        apply = flex if seen.backend == "flex" else grouped
        return apply(key, value, bias, mask, tokens, scale)
    closed: Tensor | None = None
    if isinstance(mask, QueryGroups):
        closed = mask.logits(tokens, dtype)
    elif mask is not None:
        closed = closed_logits(mask, dtype)
    if closed is None or tokens[0]:
        return dense(key, value, added_logits(bias, closed, dtype), scale)
    # Without the text, a query may have nothing to look at: it looks at all, and gets nothing. What
    # is closed lies below every strength, and above minus infinity, of which a softmax makes NaN.
    opened = (closed == 0).any(dim=-1, keepdim=True)
    closed = aligned(closed.clamp(min=torch.finfo(dtype).min / 2))
    attend = dense(key, value, added_logits(bias, closed, dtype), scale)
    return lambda query: attend(query) * opened


def without_references(
    mask: Tensor | QueryGroups | None, kept: Sequence[int], tokens: Sequence[int]
) -> Tensor | QueryGroups | None:
    """The mask when only the references ``kept`` are left."""
    if isinstance(mask, QueryGroups):
        return mask.only(kept) if kept else None  # text keys are never closed
    if mask is None or mask.shape[-1] == 1:
        return mask
    text, *faces = mask.split(list(tokens), dim=-1)
    return torch.cat([text, *(faces[i] for i in kept)], dim=-1)


def check_mask(
    mask: Tensor | QueryGroups | None,
    backend: Backend | None,
    query: Tensor,
    tokens: Sequence[int],
) -> Backend:
    """The backend to use, once mask and backend are seen to fit."""
    check_backend(backend)
    if isinstance(mask, QueryGroups):
        queries, references = len(mask.order), len(tokens) - 1
        if queries != query.shape[2] or mask.references != references:
            raise FusionError(
                f"mask groups {queries} queries by {mask.references} references, but there are "
                f"{query.shape[2]} queries and {references} references."
            )
        if mask.order.device != query.device:
            raise FusionError(f"mask must be on the query's device: use mask.to({query.device}).")
        return backend or usual_backend(queries, sum(tokens), query.device.type)
    if mask is None:
        return "dense"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise FusionError(f"mask must be boolean, True where a query may look, not {found}.")
    if backend not in (None, "dense"):
        raise FusionError(
            f'backend="{backend}" needs a mask that groups the queries, as group_queries makes it.'
        )
    full = (*query.shape[:3], sum(tokens))
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if mask.ndim > 4 or any(have not in (1, want) for have, want in zip(shape, full, strict=True)):
        raise FusionError(
            f"mask must be broadcastable to (batch, heads, N_q, N_text + sum N_f) = {full}, "
            f"not {tuple(mask.shape)}."
        )
    return "dense"


@dataclass(frozen=True, eq=False)
class QueryGroups:
    """Eq. 7 of one layer, its queries grouped by the references that they see.

    Eq. 7 closes a reference to a query as a whole, so the queries of a layer fall into few groups:
    one inside of each identity's mask, the background, and the overlaps. ``group_queries`` makes
    them, and ``fused_attention`` takes them in place of a mask. Where there are many queries, no
    work is then spent on closed keys.

    Attributes:
        references: How many references there are.
        seen: For each group, the indices of the references that its queries see.
        sizes: For each group, how many queries it has; never 0, and h * w together.
        order: The queries' positions, sorted by group, ``(h * w,)``.
        inverse: Each position's place in ``order``, ``(h * w,)``.

    Example:
        One person on the left and one on the right of 8 x 8 positions, both seen in between:

        >>> import torch
        >>> from fusionlib import fused_attention, group_queries
        >>> masks = torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> masks[0, :, :3] = masks[1, :, 5:] = True
        >>> groups = group_queries(masks, reference_identity=[0, 1], size=(8, 8))
        >>> dict(zip(groups.seen, groups.sizes))
        {(0, 1): 16, (0,): 24, (1,): 24}

        Attention by groups gives what the mask of Eq. 7 gives:

        >>> query, text, face = (torch.randn(1, 4, tokens, 16) for tokens in (64, 7, 64))
        >>> faces = [face, -face]
        >>> fast = fused_attention(query, text, text, faces, faces, mask=groups)
        >>> full = groups.mask([7, 64, 64])  # (queries, keys): 64 x 135
        >>> torch.allclose(
        ...     fast, fused_attention(query, text, text, faces, faces, mask=full), atol=1e-5
        ... )
        True
    """

    references: int
    seen: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    order: Tensor
    inverse: Tensor
    _logits: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False)
    _block_masks: dict[tuple[int, ...], Any] = field(default_factory=dict, init=False, repr=False)

    def to(self, device: torch.device | str) -> QueryGroups:
        """The same groups on another device; themselves if they are there already.

        Args:
            device: Where ``order`` and ``inverse`` shall be.

        Returns:
            The groups.
        """
        if self.order.device == torch.device(device):
            return self
        order, inverse = self.order.to(device), self.inverse.to(device)
        return replace(self, order=order, inverse=inverse)

    def only(self, kept: Sequence[int]) -> QueryGroups:
        """The same groups when only these references are left, in this order.

        Args:
            kept: Indices of the references to keep, each from 0 to ``references - 1``.

        Returns:
            The groups, in which reference ``kept[i]`` has become reference i.
        """
        seen = tuple(tuple(kept.index(i) for i in group if i in kept) for group in self.seen)
        return replace(self, references=len(kept), seen=seen)

    def mask(self, tokens: Sequence[int]) -> Tensor:
        """The mask that ``identity_attention_mask`` gives.

        Args:
            tokens: N_text, then N_f of each reference.

        Returns:
            Boolean ``(h * w, sum(tokens))``.
        """
        group, owner, table = self._tables(tokens)
        return table[group[self.inverse]][:, owner]

    def logits(self, tokens: Sequence[int], dtype: torch.dtype) -> Tensor:
        """``closed_logits`` of the mask; made once for all layers that have so many keys.

        Args:
            tokens: As for ``mask``.
            dtype: The queries'.

        Returns:
            ``(h * w, sum(tokens))``.
        """
        what = (*tokens, dtype)
        made = self._logits.get(what)
        if made is None:
            made = closed_logits(self.mask(tokens), dtype)
            # What was made under `inference_mode` could not be used where gradients are taken.
            if not torch.compiler.is_compiling() and not made.is_inference():
                self._logits[what] = made
        return made

    def block_mask(self, tokens: Sequence[int]) -> Any:
        """The ``BlockMask`` of FlexAttention for queries sorted by ``order``; made once, then kept.

        Args:
            tokens: N_text, then N_f of each reference.

        Returns:
            A ``torch.nn.attention.flex_attention.BlockMask`` of h * w queries and ``sum(tokens)``
            keys.
        """
        if tuple(tokens) not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            group, owner, table = self._tables(tokens)

            def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return table[group[query], owner[key]]

            self._block_masks[tuple(tokens)] = create_block_mask(
                seen, None, None, len(group), len(owner), device=self.order.device
            )
        return self._block_masks[tuple(tokens)]

    def _tables(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The group of each sorted query, the owner of each key (0: text), and who sees what."""
        device = self.order.device

        def repeated(counts: Sequence[int]) -> Tensor:
            numbers, times = torch.arange(len(counts)), torch.tensor(counts)
            return numbers.repeat_interleave(times, output_size=sum(counts)).to(device)

        table = [[True, *(i in group for i in range(self.references))] for group in self.seen]
        return repeated(self.sizes), repeated(tokens), torch.tensor(table, device=device)


def group_queries(
    masks: Tensor, reference_identity: Sequence[int], size: tuple[int, int]
) -> QueryGroups:
    """Group the queries of one layer by the references that Eq. 7 leaves open to them.

    Args:
        masks: Location masks M_i, boolean ``(identities, H, W)``.
        reference_identity: The index of the identity that each reference shows; several references
            may show the same one.
        size: The layer's ``(h, w)``.

    Returns:
        The groups; those that see the same references are one.

    Raises:
        FusionError: If the arguments do not fit; the message names the one at fault.

    Example:
        >>> import torch
        >>> from fusionlib import group_queries
        >>> masks = torch.tensor([[[True, True, False]], [[False, True, False]]])
        >>> groups = group_queries(masks, reference_identity=[0, 1], size=(1, 3))
        >>> groups.seen, groups.order.tolist()  # background, overlap, inside
        (((0, 1), (), (0,)), [2, 1, 0])
    """
    check_masks(masks)
    check_reference_identity(reference_identity, None, len(masks))
    held = scale_identity_masks(masks, size).flatten(1)
    holders = held.sum(0)
    everyone = tuple(range(len(reference_identity)))
    nobody: tuple[int, ...] = ()
    regions = [(everyone, holders == 0), (nobody, holders > 1)]
    for identity, inside in enumerate(held):
        own = tuple(i for i in everyone if reference_identity[i] == identity)
        regions.append((own, inside & (holders == 1)))

    union: dict[tuple[int, ...], Tensor] = {}
    for seen, region in regions:
        union[seen] = union[seen] | region if seen in union else region
    positions = {seen: region.nonzero()[:, 0] for seen, region in union.items() if region.any()}
    order = torch.cat(list(positions.values()))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return QueryGroups(
        references=len(everyone),
        seen=tuple(positions),
        sizes=tuple(len(where) for where in positions.values()),
        order=order,
        inverse=inverse,
    )


def closed_logits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to be added to the logits: 0 where a query may look, else minus infinity.

    Args:
        mask: Boolean, with the keys last.
        dtype: The queries'.

    Returns:
        Shaped like the mask.
    """
    return aligned(torch.zeros((), dtype=dtype, device=mask.device).where(mask, -torch.inf))


def aligned(logits: Tensor) -> Tensor:
    """The same numbers in rows that begin at multiples of 8.

    CUDA's kernels of attention want that, and else copy the matrix at every call.

    Args:
        logits: With the keys last.

    Returns:
        Shaped likewise.
    """
    keys = logits.shape[-1]
    return F.pad(logits, (0, -keys % 8))[..., :keys]
