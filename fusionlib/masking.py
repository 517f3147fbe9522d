"""Identity masks, equation 7 of the paper: which query may see which face key.

For query q and a face key k of identity i, with the masks M^(s) scaled to the layer's size,

    A[q, k] = -infinity  if some other identity j has M_j^(s)[q] = true
              1          otherwise

So inside one mask only that identity is seen, in the background all of them, and where masks
overlap no face at all. Text keys are never closed. The "1" adds the same constant to every open
logit, which the softmax cancels, so the mask is boolean here.

``identity_attention_mask`` is the readable form: one boolean for each query and key. The pipeline
uses the equivalent ``fusionlib.kernels.group_queries``, which sorts the queries by the references
that they see, so that large layers need not compute what is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlib.checks import check_masks, check_reference_identity, check_size, check_tokens
from fusionlib.errors import FusionError


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
        reference_identity: Index of the identity that each reference shows; several references may
            show the same one.
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
        >>> seen.int().tolist()  # queries inside mask 0, in the overlap, outside
        [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    """
    check_masks(masks)
    check_tokens(text_tokens, face_tokens)
    check_reference_identity(reference_identity, len(face_tokens), len(masks))
    covered = scale_identity_masks(masks, size).flatten(1)  # (identities, h * w)
    covered_by_another = covered.sum(0) - covered.int() > 0
    text = covered.new_ones(covered.shape[1], text_tokens)
    faces = [
        ~covered_by_another[identity, :, None].expand(-1, tokens)
        for identity, tokens in zip(reference_identity, face_tokens, strict=True)
    ]
    return torch.cat([text, *faces], dim=1)


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
    height, width = check_size(size)
    if tuple(masks.shape[1:]) == (height, width):
        return masks
    return _scaled(masks, (height, width), _MaskFacts.of(masks))


@dataclass(frozen=True)
class _MaskFacts:
    """Facts about masks that hold at every size, computed once for a pyramid of them.

    Attributes:
        disjoint: Whether two masks share no pixel, ``(identities, identities)``.
        centres: Row and column of each mask that is not empty, the smallest mask first.
    """

    disjoint: Tensor
    centres: dict[int, Tensor]

    @staticmethod
    def of(masks: Tensor) -> _MaskFacts:
        flat = masks.flatten(1).float()
        centres = {
            identity: (masks[identity].nonzero().float() + 0.5).mean(0)
            for identity in flat.sum(1).argsort(stable=True).tolist()
            if masks[identity].any()
        }
        return _MaskFacts(flat @ flat.T == 0, centres)


def _scaled(masks: Tensor, size: tuple[int, int], facts: _MaskFacts) -> Tensor:
    """``scale_identity_masks`` without its checks."""
    coverage = F.adaptive_avg_pool2d(masks[None].float(), size)[0].flatten(1)
    for identity, cell in _reserved_cells(masks, coverage, facts, size).items():
        coverage[identity, cell] = 2.0  # more than any share: a reserved cell is never lost

    scaled = coverage >= 0.5
    for one, other in combinations(range(len(masks)), 2):
        if facts.disjoint[one, other]:  # a cell that both want goes to the greater share
            both = scaled[one] & scaled[other]
            to_one = coverage[one] >= coverage[other]
            scaled[one] &= ~both | to_one
            scaled[other] &= ~both | ~to_one
    return scaled.unflatten(1, size)


def _reserved_cells(
    masks: Tensor, coverage: Tensor, facts: _MaskFacts, size: tuple[int, int]
) -> dict[int, int]:
    """One cell for every mask that is not empty, no two disjoint masks the same one.

    The smallest mask chooses first: the cell that it covers most, or, where all those are taken,
    the free one nearest to its centre.
    """
    height, width = size
    rows = (torch.arange(height, device=masks.device) + 0.5) * masks.shape[1] / height
    columns = (torch.arange(width, device=masks.device) + 0.5) * masks.shape[2] / width
    reserved: dict[int, int] = {}
    for identity, (row, column) in facts.centres.items():
        distance = torch.hypot((rows - row)[:, None], (columns - column)[None, :]).flatten()
        choice = torch.where(coverage[identity] > 0, coverage[identity], -distance)
        taken = [cell for other, cell in reserved.items() if facts.disjoint[identity, other]]
        choice[taken] = -torch.inf
        reserved[identity] = int(choice.argmax())
        if choice[reserved[identity]] == -torch.inf:
            raise FusionError(
                f"masks holds {len(masks)} identities, too many for a layer of {height} x {width} "
                "positions: disjoint masks would have to share one."
            )
    return reserved


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
    height, width = masks.shape[1:] if largest is None else check_size(largest)
    facts = _MaskFacts.of(masks)
    pyramid: dict[int, Tensor] = {}
    while levels is None or len(pyramid) < levels:
        same = (height, width) == tuple(masks.shape[1:])
        try:
            scaled = masks if same else _scaled(masks, (height, width), facts)
        except FusionError:
            break  # not every UNet is that deep
        pyramid[height * width] = scaled
        if height * width == 1:
            break
        height, width = -(-height // 2), -(-width // 2)
    return pyramid
