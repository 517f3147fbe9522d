"""How the softmax of Eq. 4 is computed when some keys are closed to some queries.

Two ways to the same numbers:

- ``"dense"``: one call of PyTorch's attention with a mask. Closed keys are computed, too, and then
  thrown away.
- ``"grouped"``: the queries are sorted by the references that they see, and each group attends to
  its own keys, without a mask. Nothing closed is computed.

Each takes the joined keys and values of Eq. 6, prepares what does not depend on the queries, and
returns a function of the queries, for any number of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlib.checks import (
    Strength,
    check_masks,
    check_reference_identity,
    check_scale,
    check_shapes,
    check_strengths,
    is_number,
)
from fusionlib.errors import FusionError
from fusionlib.masking import scale_identity_masks

Backend = Literal["dense", "grouped"]
"""How closed keys are treated. Where it may be None, ``usual_backend`` chooses."""

Attend = Callable[[Tensor], Tensor]
"""From queries ``(batch, heads, N_q, head_dim)`` to what they attend to, of the same shape."""

FEW_LOGITS = {"cpu": 150_000, "cuda": 5_000_000}
"""Number of logits, N_q times N_k, up to which a layer is faster with a dense mask.

The logits computed in vain take less time there than sorting the queries and starting a kernel for
each group. Both bounds were measured (``book/records/benchmarks``), the one for CUDA on an H200.
On the CPU a layer of 16 x 16 positions reaches the bound with two people; on CUDA a layer of
32 x 32 positions does so with four.
"""


def usual_backend(queries: int, keys: int, device: str = "cpu") -> Backend:
    """Choose the faster backend for a layer.

    Args:
        queries: N_q of the layer.
        keys: N_k, the keys of the text and of every reference.
        device: Type of the layer's device; one that is not in ``FEW_LOGITS`` counts as a CPU.

    Returns:
        ``"dense"`` up to ``FEW_LOGITS``, ``"grouped"`` above. In a compiled graph always
        ``"grouped"``, because such a graph would build the mask again at each call.
    """
    bound = FEW_LOGITS.get(device, FEW_LOGITS["cpu"])
    few = queries * keys <= bound and not torch.compiler.is_compiling()
    return "dense" if few else "grouped"


def check_backend(backend: str | None) -> None:
    """Raise a ``FusionError`` unless this is the name of a backend, or None."""
    if backend is not None and backend not in get_args(Backend):
        names = ", ".join(f'"{name}"' for name in get_args(Backend))
        raise FusionError(f"backend must be None or one of {names}, not {backend!r}.")


@dataclass(frozen=True)
class ShownReferences:
    """The references that take part in a softmax, checked, and which query may see which.

    Attributes:
        keys: K_f of each reference whose strength is not 0, ``(batch, heads, N_f, head_dim)``.
        values: V_f of each, shaped like its key.
        strengths: lambda of each, a number or a tensor ``(batch,)``.
        tokens: N_text, then N_f of each reference.
        mask: Boolean mask over queries and keys, or ``QueryGroups``; None where all is open.
        backend: How ``QueryGroups`` are applied.
        scale: alpha; None means 1 / sqrt(head_dim).
    """

    keys: list[Tensor]
    values: list[Tensor]
    strengths: list[Strength]
    tokens: list[int]
    mask: Tensor | QueryGroups | None
    backend: Backend
    scale: float | None

    def without_text(self) -> ShownReferences:
        """The same references for a list of keys that holds none of the text's."""
        mask, tokens = self.mask, [0, *self.tokens[1:]]
        if isinstance(mask, Tensor) and mask.shape[-1] > 1:
            mask = mask[..., self.tokens[0] :]
        return replace(self, mask=mask, tokens=tokens)


def read_references(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
    strengths: Sequence[Strength] | None,
    mask: Tensor | QueryGroups | None,
    scale: float | None,
    backend: Backend | None,
) -> ShownReferences:
    """Check the arguments of ``fused_attention``, and leave out references of strength 0.

    Raises:
        FusionError: If something does not fit; the message names the argument.
    """
    check_shapes(query, text_key, text_value, face_keys, face_values)
    lambdas = check_strengths(strengths, len(face_keys), query.shape[0])
    check_scale(scale)
    tokens = [text_key.shape[2], *(key.shape[2] for key in face_keys)]
    backend = _checked_backend(mask, backend, query, tokens)
    shown = [i for i, strength in enumerate(lambdas) if not is_number(strength, 0)]
    if len(shown) < len(lambdas):
        mask = _selected(mask, shown, tokens)
        tokens = [tokens[0], *(tokens[1 + i] for i in shown)]
    whole_batch = (query.shape[0], -1, -1, -1)
    return ShownReferences(
        keys=[face_keys[i].expand(whole_batch) for i in shown],
        values=[face_values[i].expand(whole_batch) for i in shown],
        strengths=[lambdas[i] for i in shown],
        tokens=tokens,
        mask=mask,
        backend=backend,
        scale=scale,
    )


def one_softmax(key: Tensor, value: Tensor, bias: Tensor | None, faces: ShownReferences) -> Attend:
    """Prepare softmax(B + scale * Q K'^T) V' of Eq. 4 and 5 over these keys.

    Args:
        key: K', ``(batch, heads, sum(faces.tokens), head_dim)``.
        value: V', shaped like ``key``.
        bias: log(lambda) of each key, ``(batch or 1, sum(faces.tokens))``; None for all 0.
        faces: The mask, the backend and alpha; and how the keys are divided.

    Returns:
        The function of Q.
    """
    mask, tokens, scale, dtype = faces.mask, faces.tokens, faces.scale, key.dtype
    if isinstance(mask, QueryGroups) and faces.backend == "grouped":
        return grouped(key, value, bias, mask, tokens, scale)
    closed: Tensor | None = None
    if isinstance(mask, QueryGroups):
        closed = mask.logits(tokens, dtype)
    elif mask is not None:
        closed = closed_logits(mask, dtype)
    if closed is None or tokens[0]:
        return dense(key, value, added_logits(bias, closed, dtype), scale)
    # Without the text every key may be closed to a query: it then looks at all, and its result is
    # set to 0. Closed keys lie below every strength, but above minus infinity, which gives NaN.
    opened = (closed == 0).any(dim=-1, keepdim=True)
    closed = aligned(closed.clamp(min=torch.finfo(dtype).min / 2))
    attend = dense(key, value, added_logits(bias, closed, dtype), scale)
    return lambda query: attend(query) * opened


def dense(
    key: Tensor, value: Tensor, added: Tensor | None = None, scale: float | None = None
) -> Attend:
    """Prepare softmax(B + scale * Q K'^T) V' by PyTorch's attention.

    Args:
        key: K', ``(batch, heads, N_k, head_dim)``.
        value: V', shaped like ``key``.
        added: B from ``added_logits``, broadcastable to ``(batch, heads, N_q, N_k)``; None for 0.
        scale: alpha; None means 1 / sqrt(head_dim).

    Returns:
        The function of Q; where there is no key at all, its result is 0.
    """
    if key.shape[2] == 0:
        return torch.zeros_like

    def attend(query: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale)

    return attend


def grouped(
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    groups: QueryGroups,
    tokens: Sequence[int],
    scale: float | None = None,
) -> Attend:
    """Prepare attention in which each group of queries has only the keys that it sees.

    Args:
        key: K', ``(batch, heads, N_k, head_dim)``.
        value: V', shaped like ``key``.
        bias: log(lambda) of each key, ``(batch or 1, N_k)``; None where every strength is 1.
        groups: Which query sees which reference.
        tokens: N_text, then N_f of each reference: how K' is divided.
        scale: alpha; None means 1 / sqrt(head_dim).

    Returns:
        The function of Q.
    """

    def by_group(joined: Tensor, dim: int) -> list[Tensor]:
        """The part of K', of V' or of the bias that each group sees."""
        text, *faces = joined.split(list(tokens), dim)
        return [
            joined if len(seen) == len(faces) else torch.cat([text, *(faces[i] for i in seen)], dim)
            for seen in groups.seen
        ]

    # The text has no bias, so a group that sees nothing else needs none.
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
        parts = _reordered(query, groups.order).split(list(groups.sizes), 2)
        attended = [each(part) for each, part in zip(attends, parts, strict=True)]
        return _reordered(join(attended, 2), groups.inverse)

    return attend


def added_logits(bias: Tensor | None, closed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """B of Eq. 4 and 5: the logarithm of each key's strength, minus infinity where it is closed.

    Args:
        bias: log(lambda) of each key, ``(batch or 1, N_k)``; None where every strength is 1.
        closed: Result of ``closed_logits``; None where nothing is closed.
        dtype: Floating-point type of the queries.

    Returns:
        B, broadcastable to ``(batch, heads, N_q, N_k)``; None where it is 0.
    """
    if bias is None:
        return closed
    # A quarter of the dtype's lowest number stands for log(0): after the softmax it is 0 all the
    # same, and where the faces have a softmax of their own it lies above what a mask closes.
    row = bias.clamp(min=torch.finfo(dtype).min / 4).to(dtype)[:, None, None, :]
    return aligned(row if closed is None else row + closed)


def closed_logits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask, keys last, into logits to add: 0 where open, else minus infinity."""
    return aligned(torch.zeros((), dtype=dtype, device=mask.device).where(mask, -torch.inf))


def aligned(logits: Tensor) -> Tensor:
    """The same numbers in rows that begin at multiples of 8, the keys last.

    CUDA's attention kernels need that, and would otherwise copy the matrix at every call.
    """
    keys = logits.shape[-1]
    return F.pad(logits, (0, -keys % 8))[..., :keys]


def join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate ``(batch, heads, N, head_dim)``, the heads of a token side by side in memory.

    Attention kernels return that layout and ``to_out`` reads it, so nothing is copied once more.

    Args:
        parts: The tensors to join.
        dim: 0 for the batch, 2 for N.
    """
    return torch.cat([part.transpose(1, 2) for part in parts], {0: 0, 2: 1}[dim]).transpose(1, 2)


def _reordered(tokens: Tensor, order: Tensor) -> Tensor:
    """``(batch, heads, N, head_dim)`` in another order of N, laid out as by ``join``."""
    return tokens.transpose(1, 2).index_select(1, order).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class QueryGroups:
    """Eq. 7 of one layer, its queries grouped by the references that they see.

    Eq. 7 closes a reference to a query as a whole, so the queries of a layer fall into few groups:
    one inside each identity's mask, the background, and the overlaps. ``group_queries`` makes them,
    and ``fused_attention`` takes them in place of a mask. Where there are many queries, no work is
    then spent on closed keys.

    Attributes:
        references: Number of references.
        seen: Indices of the references that the queries of each group see.
        sizes: Number of queries in each group; never 0, h * w in all.
        order: Positions of the queries, sorted by group, ``(h * w,)``.
        inverse: Place of each position in ``order``, ``(h * w,)``.

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

    def to(self, device: torch.device | str) -> QueryGroups:
        """Move the groups to another device.

        Args:
            device: Device for ``order`` and ``inverse``.

        Returns:
            The same groups there; ``self`` if they are there already.
        """
        if self.order.device == torch.device(device):
            return self
        order, inverse = self.order.to(device), self.inverse.to(device)
        return replace(self, order=order, inverse=inverse)

    def only(self, kept: Sequence[int]) -> QueryGroups:
        """Leave out all references but these, and number them in this order.

        Args:
            kept: Indices of the references to keep, each from 0 to ``references - 1``.

        Returns:
            The groups, in which reference ``kept[i]`` has become reference i.
        """
        seen = tuple(tuple(kept.index(i) for i in group if i in kept) for group in self.seen)
        return replace(self, references=len(kept), seen=seen)

    def mask(self, tokens: Sequence[int]) -> Tensor:
        """Build the mask that ``identity_attention_mask`` gives.

        Args:
            tokens: N_text, then N_f of each reference.

        Returns:
            Boolean ``(h * w, sum(tokens))``.
        """
        group, owner, table = self._tables(tokens)
        return table[group[self.inverse]][:, owner]

    def logits(self, tokens: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Build ``closed_logits`` of the mask, once for all layers with equally many keys.

        Args:
            tokens: N_text, then N_f of each reference.
            dtype: Floating-point type of the queries.

        Returns:
            ``(h * w, sum(tokens))``.
        """
        key = (*tokens, dtype)
        made = self._logits.get(key)
        if made is None:
            made = closed_logits(self.mask(tokens), dtype)
            # A tensor made under `inference_mode` cannot be used where gradients are taken.
            if not torch.compiler.is_compiling() and not made.is_inference():
                self._logits[key] = made
        return made

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
    covered = scale_identity_masks(masks, size).flatten(1)
    holders = covered.sum(0)
    every = tuple(range(len(reference_identity)))
    none: tuple[int, ...] = ()
    regions = [(every, holders == 0), (none, holders > 1)]
    for identity, inside in enumerate(covered):
        own = tuple(i for i in every if reference_identity[i] == identity)
        regions.append((own, inside & (holders == 1)))

    union: dict[tuple[int, ...], Tensor] = {}
    for seen, region in regions:
        union[seen] = union[seen] | region if seen in union else region
    positions = {seen: region.nonzero()[:, 0] for seen, region in union.items() if region.any()}
    order = torch.cat(list(positions.values()))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return QueryGroups(
        references=len(every),
        seen=tuple(positions),
        sizes=tuple(len(where) for where in positions.values()),
        order=order,
        inverse=inverse,
    )


def _selected(
    mask: Tensor | QueryGroups | None, shown: Sequence[int], tokens: Sequence[int]
) -> Tensor | QueryGroups | None:
    """The mask when only the references ``shown`` are left."""
    if isinstance(mask, QueryGroups):
        return mask.only(shown) if shown else None  # text keys are never closed
    if mask is None or mask.shape[-1] == 1:
        return mask
    text, *faces = mask.split(list(tokens), dim=-1)
    return torch.cat([text, *(faces[i] for i in shown)], dim=-1)


def _checked_backend(
    mask: Tensor | QueryGroups | None,
    backend: Backend | None,
    query: Tensor,
    tokens: Sequence[int],
) -> Backend:
    """The backend to use; raise a ``FusionError`` unless mask and backend fit."""
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
