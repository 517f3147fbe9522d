"""Identity masks, equation 7 of the paper: which query may see which face key.

A face key of identity i is closed to a query if and only if some *other* identity's mask holds
the query. So inside one mask only that identity is seen, in the background all of them, and where
two masks overlap neither of the two. Text keys are never closed. The paper's "1 otherwise" adds the
same constant to every open logit, which the softmax cancels, so it is a boolean mask here.
"""

from collections.abc import Sequence
from itertools import combinations

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
    """
    _check_masks(masks)
    height, width = size
    if height < 1 or width < 1:
        raise FusionError(f"size must be a positive (h, w), not {tuple(size)}.")
    if tuple(masks.shape[1:]) == (height, width):
        return masks
    coverage = F.adaptive_avg_pool2d(masks[None].float(), (height, width))[0].flatten(1)
    flat = masks.flatten(1).float()
    disjoint = flat @ flat.T == 0
    for identity, cell in _home_cells(masks, coverage, disjoint, (height, width)).items():
        coverage[identity, cell] = 2.0  # more than any share: a home cell is never lost

    scaled = coverage >= 0.5
    for one, other in combinations(range(len(masks)), 2):
        if disjoint[one, other]:  # a cell that both want goes to the greater share
            both = scaled[one] & scaled[other]
            to_one = coverage[one] >= coverage[other]
            scaled[one] &= ~both | to_one
            scaled[other] &= ~both | ~to_one
    return scaled.unflatten(1, (height, width))


def _home_cells(
    masks: Tensor, coverage: Tensor, disjoint: Tensor, size: tuple[int, int]
) -> dict[int, int]:
    """One cell for every mask that is not empty, no two disjoint masks the same one.

    The smallest mask chooses first: the cell that it covers most, or, where all those are taken,
    the free one nearest to its centre.
    """
    height, width = size
    rows = (torch.arange(height, device=masks.device) + 0.5) * masks.shape[1] / height
    columns = (torch.arange(width, device=masks.device) + 0.5) * masks.shape[2] / width
    homes: dict[int, int] = {}
    for identity in masks.flatten(1).sum(1).argsort(stable=True).tolist():
        pixels = masks[identity].nonzero().float() + 0.5
        if len(pixels) == 0:
            continue
        row, column = pixels.mean(0)
        distance = torch.hypot((rows - row)[:, None], (columns - column)[None, :]).flatten()
        choice = torch.where(coverage[identity] > 0, coverage[identity], -distance)
        taken = [cell for other, cell in homes.items() if disjoint[identity, other]]
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
    """
    _check_masks(masks)
    check_reference_identity(reference_identity, len(face_tokens), len(masks))
    if text_tokens < 1 or any(tokens < 1 for tokens in face_tokens):
        raise FusionError(
            f"text_tokens and face_tokens must be positive, not {text_tokens}, {list(face_tokens)}."
        )
    held = scale_identity_masks(masks, size).flatten(1)  # (identities, h * w)
    held_by_another = held.sum(0) - held.int() > 0
    text = held.new_ones(held.shape[1], text_tokens)
    faces = [
        ~held_by_another[identity, :, None].expand(-1, tokens)
        for identity, tokens in zip(reference_identity, face_tokens, strict=True)
    ]
    return torch.cat([text, *faces], dim=1)


def mask_pyramid(masks: Tensor) -> dict[int, Tensor]:
    """The masks at each size that a UNet can have on the way down, by the number of positions.

    A layer knows how many positions it has, not their height and width. Each level of a UNet halves
    both, rounding up, so the number decides when the masks have the image's (or the latents') size.
    """
    _check_masks(masks)
    height, width = masks.shape[1:]
    pyramid = {height * width: masks}
    while height * width > 1:
        height, width = -(-height // 2), -(-width // 2)
        try:
            pyramid[height * width] = scale_identity_masks(masks, (height, width))
        except FusionError:
            break  # too few positions to keep the identities apart: not every UNet is that deep
    return pyramid


def check_reference_identity(
    reference_identity: Sequence[int], references: int, identities: int
) -> None:
    """Raise a ``FusionError`` unless each reference shows one of the identities."""
    if len(reference_identity) != references:
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


def _check_masks(masks: Tensor) -> None:
    if not isinstance(masks, Tensor) or masks.ndim != 3 or 0 in masks.shape:
        shape = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise FusionError(f"masks must be a tensor (identities, H, W), not {shape}.")
    if masks.dtype != torch.bool:
        raise FusionError(
            f"masks must be boolean, True where the identity's face is, not {masks.dtype}."
        )
