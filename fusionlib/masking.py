"""Identity masks, equation 7 of the paper: which query may see which face key.

A face key of identity i is closed to a query if and only if some *other* identity's mask holds
the query. So inside one mask only that identity is seen, in the background all of them, and where
two masks overlap neither of the two. Text keys are never closed. The paper's "1 otherwise" adds the
same constant to every open logit, which the softmax cancels, so it is a boolean mask here.

The same equation comes in two forms. ``identity_attention_mask`` is the mask, one boolean for each
query and key. ``group_queries`` sorts the queries by the references that they see, so that where
they are many nothing has to be computed for what they do not see.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlib.errors import FusionError


def scale_identity_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale location masks to a layer's resolution: M_1^(s) ... M_n^(s) of the paper.

    A cell belongs to an identity that covers at least half of it. Two things hold at every size: a
    mask that is not empty keeps at least one cell, and masks that are disjoint stay disjoint.

    Args:
        masks: Boolean, ``(identities, H, W)``.
        size: The layer's ``(h, w)``.

    Returns:
        Boolean, ``(identities, h, w)``.

    Raises:
        FusionError: If the masks have another shape or dtype, or if there are fewer cells than
            disjoint masks.

    Example:
        >>> import torch
        >>> from fusionlib import scale_identity_masks
        >>> masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        >>> masks[0, 5, 5] = masks[1, 5, 6] = True  # two faces of a single pixel each
        >>> scale_identity_masks(masks, (8, 8)).flatten(1).sum(1).tolist()
        [1, 1]
    """
    check_masks(masks)
    height, width = _check_size(size)
    if tuple(masks.shape[1:]) == (height, width):
        return masks
    return _scaled(masks, (height, width), _Placed.of(masks))


@dataclass(frozen=True)
class _Placed:
    """What is known of masks at every size, so that a pyramid of them asks once.

    Attributes:
        disjoint: Which masks share no pixel, ``(identities, identities)``.
        centres: Row and column of each mask that is not empty, the smallest mask first.
    """

    disjoint: Tensor
    centres: dict[int, Tensor]

    @staticmethod
    def of(masks: Tensor) -> "_Placed":
        flat = masks.flatten(1).float()
        centres = {
            identity: (masks[identity].nonzero().float() + 0.5).mean(0)
            for identity in flat.sum(1).argsort(stable=True).tolist()
            if masks[identity].any()
        }
        return _Placed(flat @ flat.T == 0, centres)


def _scaled(masks: Tensor, size: tuple[int, int], placed: _Placed) -> Tensor:
    """``scale_identity_masks`` of masks of which this much is known."""
    coverage = F.adaptive_avg_pool2d(masks[None].float(), size)[0].flatten(1)
    for identity, cell in _home_cells(masks, coverage, placed, size).items():
        coverage[identity, cell] = 2.0  # more than any share: a home cell is never lost

    scaled = coverage >= 0.5
    for one, other in combinations(range(len(masks)), 2):
        if placed.disjoint[one, other]:  # a cell that both want goes to the greater share
            both = scaled[one] & scaled[other]
            to_one = coverage[one] >= coverage[other]
            scaled[one] &= ~both | to_one
            scaled[other] &= ~both | ~to_one
    return scaled.unflatten(1, size)


def _home_cells(
    masks: Tensor, coverage: Tensor, placed: _Placed, size: tuple[int, int]
) -> dict[int, int]:
    """One cell for every mask that is not empty, no two disjoint masks the same one.

    The smallest mask chooses first: the cell that it covers most, or, where all those are taken,
    the free one nearest to its centre.
    """
    height, width = size
    rows = (torch.arange(height, device=masks.device) + 0.5) * masks.shape[1] / height
    columns = (torch.arange(width, device=masks.device) + 0.5) * masks.shape[2] / width
    homes: dict[int, int] = {}
    for identity, (row, column) in placed.centres.items():
        distance = torch.hypot((rows - row)[:, None], (columns - column)[None, :]).flatten()
        choice = torch.where(coverage[identity] > 0, coverage[identity], -distance)
        taken = [cell for other, cell in homes.items() if placed.disjoint[identity, other]]
        choice[taken] = -torch.inf
        homes[identity] = int(choice.argmax())
        if choice[homes[identity]] == -torch.inf:
            raise FusionError(
                f"masks holds {len(masks)} identities, too many for a layer of {height} x {width} "
                "positions: disjoint masks would have to share one."
            )
    return homes


def identity_attention_mask(
    masks: Tensor,
    reference_identity: Sequence[int],
    size: tuple[int, int],
    text_tokens: int,
    face_tokens: Sequence[int],
) -> Tensor:
    """Build the attention mask A of Eq. 7 for one layer.

    Args:
        masks: Location masks M_i, boolean ``(identities, H, W)``.
        reference_identity: The index of the identity that each reference shows; several references
            may show the same one.
        size: The layer's ``(h, w)``.
        text_tokens: N_text.
        face_tokens: N_f of each reference.

    Returns:
        Boolean ``(h * w, text_tokens + sum(face_tokens))``, True where Eq. 7 leaves the logit open.

    Raises:
        FusionError: If the arguments do not fit; the message names the one at fault.

    Example:
        >>> import torch
        >>> from fusionlib import identity_attention_mask
        >>> masks = torch.tensor([[[True, True, False]], [[False, True, False]]])
        >>> seen = identity_attention_mask(masks, [0, 1], (1, 3), text_tokens=1, face_tokens=[1, 1])
        >>> seen.int().tolist()  # the text and two faces, seen from inside, overlap, background
        [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    """
    check_masks(masks)
    _check_tokens(text_tokens, face_tokens)
    check_reference_identity(reference_identity, len(face_tokens), len(masks))
    held = scale_identity_masks(masks, size).flatten(1)  # (identities, h * w)
    held_by_another = held.sum(0) - held.int() > 0
    text = held.new_ones(held.shape[1], text_tokens)
    faces = [
        ~held_by_another[identity, :, None].expand(-1, tokens)
        for identity, tokens in zip(reference_identity, face_tokens, strict=True)
    ]
    return torch.cat([text, *faces], dim=1)


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

    def to(self, device: torch.device | str) -> "QueryGroups":
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

    def only(self, kept: Sequence[int]) -> "QueryGroups":
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


def mask_pyramid(
    masks: Tensor, largest: tuple[int, int] | None = None, levels: int | None = None
) -> dict[int, Tensor]:
    """The masks at each size that a UNet can have on the way down, by the number of positions.

    A layer knows how many positions it has, not their height and width. Each level of a UNet halves
    both, rounding up, so the number decides when the masks have the image's (or the latents') size.

    Args:
        masks: Boolean, ``(identities, H, W)``.
        largest: The ``(h, w)`` of the first level; None means the masks' own.
        levels: How many there are; None means all, down to a single position.

    Returns:
        Boolean masks ``(identities, h, w)`` by ``h * w``; fewer than asked where a level has too
        few positions to keep the identities apart.
    """
    check_masks(masks)
    height, width = masks.shape[1:] if largest is None else _check_size(largest)
    placed = _Placed.of(masks)
    pyramid: dict[int, Tensor] = {}
    while levels is None or len(pyramid) < levels:
        same = (height, width) == tuple(masks.shape[1:])
        try:
            scaled = masks if same else _scaled(masks, (height, width), placed)
        except FusionError:
            break  # not every UNet is that deep
        pyramid[height * width] = scaled
        if height * width == 1:
            break
        height, width = -(-height // 2), -(-width // 2)
    return pyramid


def check_reference_identity(
    reference_identity: Sequence[int], references: int | None, identities: int
) -> None:
    """Raise a ``FusionError`` unless each reference shows one of the identities."""
    given: Any = reference_identity
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise FusionError(
            "reference_identity must be a list of the references' identities, "
            f"not {reference_identity!r}."
        )
    if references is not None and len(reference_identity) != references:
        raise FusionError(
            f"reference_identity must hold one index for each of the {references} references, "
            f"not {len(reference_identity)}."
        )
    for index, identity in enumerate(reference_identity):
        if not (isinstance(identity, int) and 0 <= identity < identities):
            raise FusionError(
                f"reference_identity[{index}] must be the index of an identity mask, "
                f"0 to {identities - 1}, not {identity!r}."
            )


def check_masks(masks: Tensor, argument: str = "masks") -> None:
    """Raise a ``FusionError`` unless these are boolean masks ``(identities, H, W)``."""
    if not isinstance(masks, Tensor) or masks.ndim != 3 or 0 in masks.shape:
        shape = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise FusionError(f"{argument} must be a tensor (identities, H, W), not {shape}.")
    if masks.dtype != torch.bool:
        raise FusionError(
            f"{argument} must be boolean, True where the identity's face is, not {masks.dtype}."
        )


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    pair = isinstance(size, tuple | list) and len(size) == 2
    if not pair or not all(isinstance(side, int) and side >= 1 for side in size):
        raise FusionError(f"size must be a positive (h, w), not {size!r}.")
    return size[0], size[1]


def _check_tokens(text_tokens: int, face_tokens: Sequence[int]) -> None:
    if not isinstance(text_tokens, int) or text_tokens < 1:
        raise FusionError(f"text_tokens must be a positive number, not {text_tokens!r}.")
    counts = isinstance(face_tokens, Sequence) and not isinstance(face_tokens, str)
    if not counts or not all(isinstance(tokens, int) and tokens >= 1 for tokens in face_tokens):
        raise FusionError(
            "face_tokens must hold a positive number of tokens for each reference, "
            f"not {face_tokens!r}."
        )
