"""Eq. 7 against its own words, and the two invariants of scaled masks."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionlib import (
    FusionError,
    fused_attention,
    group_queries,
    identity_attention_mask,
    scale_identity_masks,
)
from fusionlib.kernels import closed_logits
from fusionlib.masking import mask_pyramid

quick = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def location_masks(draw: st.DrawFn) -> Tensor:
    """Random rectangles, some overlapping, some a single pixel; later ones may be made disjoint."""
    height, width = draw(st.integers(4, 40)), draw(st.integers(4, 40))
    masks = torch.zeros(draw(st.integers(1, 5)), height, width, dtype=torch.bool)
    for mask in masks:
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = top + draw(st.integers(1, height)), left + draw(st.integers(1, width))
        mask[top:bottom, left:right] = True
    if draw(st.booleans()):
        masks = masks & ~(masks.cumsum(0) > 1)
    return masks


@quick
@given(location_masks(), st.integers(3, 48), st.integers(3, 48))
def test_scaled_masks_keep_both_invariants(masks: Tensor, height: int, width: int) -> None:
    scaled = scale_identity_masks(masks, (height, width))
    assert scaled.shape == (len(masks), height, width) and scaled.dtype == torch.bool
    for before, after in zip(masks, scaled, strict=True):
        assert before.any() == after.any(), "a mask vanished, or came from nothing"
    for one, other in combinations(range(len(masks)), 2):
        if not (masks[one] & masks[other]).any():
            assert not (scaled[one] & scaled[other]).any(), "disjoint masks meet"


def test_scaling_by_whole_factors_of_aligned_masks_is_exact() -> None:
    coarse = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    fine = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(scale_identity_masks(fine, (4, 6)), coarse)
    assert torch.equal(scale_identity_masks(coarse, (32, 48)), fine)
    assert torch.equal(scale_identity_masks(coarse, (4, 6)), coarse)


def test_small_neighbours_each_keep_a_cell() -> None:
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    for identity in range(4):  # four single pixels in a row, all inside of one cell
        masks[identity, 10, 10 + identity] = True
    scaled = scale_identity_masks(masks, (2, 2))
    assert scaled.flatten(1).sum(1).tolist() == [1, 1, 1, 1]
    assert scaled.any(0).all()
    with pytest.raises(FusionError, match="masks holds 4 identities, too many"):
        scale_identity_masks(masks, (1, 3))


def points(count: int, height: int, width: int, *places: tuple[int, int, int]) -> Tensor:
    """Masks that are empty but for pixels ``(identity, row, column)``."""
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for place in places:
        masks[place] = True
    return masks


def test_a_cell_is_whose_mask_covers_half_of_it() -> None:
    masks = points(2, 4, 12)
    masks[0, :, :6] = masks[1, :, :5] = True  # half of the second cell, and a quarter
    assert scale_identity_masks(masks, (1, 3)).int().tolist() == [[[1, 1, 0]], [[1, 0, 0]]]


def test_the_smallest_face_chooses_its_cell_first() -> None:
    masks = points(2, 8, 8, (1, 1, 1))
    masks[0, :4, :4] = ~masks[1, :4, :4]  # all of that cell but for one pixel
    large, small = scale_identity_masks(masks, (2, 2))
    assert small.tolist() == [[True, False], [False, False]]
    assert large.any() and not (large & small).any()


def test_a_face_moves_to_the_nearest_cell_that_is_free() -> None:
    masks = points(3, 8, 8, (1, 3, 1), (2, 3, 2))
    masks[0] = True
    masks[0, :4, :4] = False  # the others are wholly the first one's, but it is not so small
    scaled = scale_identity_masks(masks, (2, 2)).int().tolist()
    assert scaled == [[[0, 1], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [1, 0]]]
    wide = points(2, 16, 64, (0, 15, 28), (1, 15, 27))  # the cell above is farther than that beside
    assert scale_identity_masks(wide, (2, 8)).nonzero().tolist() == [[0, 1, 3], [1, 1, 2]]


def test_faces_that_overlap_may_share_a_cell() -> None:
    scaled = scale_identity_masks(points(2, 8, 8, (0, 3, 3), (1, 3, 3)), (2, 2))
    assert scaled.nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]


@quick
@given(location_masks(), st.data())
def test_equation_7_word_by_word(masks: Tensor, data: st.DataObject) -> None:
    """-inf if isFaceKey(k), identity(k) = i, and a mask M_j with j != i holds q."""
    identities, height, width = masks.shape
    shown = data.draw(st.lists(st.integers(0, identities - 1), max_size=4))
    tokens = data.draw(st.lists(st.integers(1, 3), min_size=len(shown), max_size=len(shown)))
    text = data.draw(st.integers(1, 4))
    mask = identity_attention_mask(masks, shown, (height, width), text, tokens)
    identity_of = [None] * text
    for identity, count in zip(shown, tokens, strict=True):
        identity_of += [identity] * count
    assert mask.shape == (height * width, len(identity_of)) and mask.dtype == torch.bool
    for k, i in enumerate(identity_of):
        for q in data.draw(st.sets(st.integers(0, height * width - 1), min_size=1, max_size=30)):
            holders = {j for j in range(identities) if masks[j].flatten()[q]}
            closed = i is not None and bool(holders - {i})
            assert mask[q, k] == (not closed)


def test_inside_background_and_overlap() -> None:
    masks = torch.zeros(2, 1, 4, dtype=torch.bool)
    masks[0, 0, :2] = True
    masks[1, 0, 1:3] = True  # only 0, both, only 1, background
    mask = identity_attention_mask(masks, [0, 1, 0], (1, 4), 2, [1, 1, 2])
    expected = [[1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert mask.int().tolist() == expected


@quick
@given(location_masks(), st.data())
def test_groups_are_the_mask(masks: Tensor, data: st.DataObject) -> None:
    shown = data.draw(st.lists(st.integers(0, len(masks) - 1), max_size=4))
    size = (data.draw(st.integers(3, 9)), data.draw(st.integers(3, 9)))
    tokens = [data.draw(st.integers(1, 3)) for _ in range(1 + len(shown))]
    groups = group_queries(masks, shown, size)
    expected = identity_attention_mask(masks, shown, size, tokens[0], tokens[1:])
    assert torch.equal(groups.mask(tokens), expected)
    assert 0 not in groups.sizes and len(set(groups.seen)) == len(groups.seen)
    assert groups.order[groups.inverse].tolist() == list(range(size[0] * size[1]))
    kept = [i for i in range(len(shown)) if data.draw(st.booleans())]
    fewer = identity_attention_mask(
        masks, [shown[i] for i in kept], size, tokens[0], [tokens[1 + i] for i in kept]
    )
    assert torch.equal(groups.only(kept).mask([tokens[0], *(tokens[1 + i] for i in kept)]), fewer)


def test_pyramid_knows_the_sizes_of_a_unet() -> None:
    """The latents of 96 x 72 pixels are 12 x 9; a stride of two then rounds up."""
    pyramid = mask_pyramid(torch.ones(1, 96, 72, dtype=torch.bool))
    for size in [(12, 9), (6, 5), (3, 3), (2, 2)]:
        assert tuple(pyramid[size[0] * size[1]].shape) == (1, *size)


@quick
@given(location_masks(), st.integers(1, 4))
def test_a_pyramid_of_known_latents_holds_their_sizes_only(masks: Tensor, levels: int) -> None:
    height, width = -(-masks.shape[1] // 2), -(-masks.shape[2] // 2)
    whole, part = mask_pyramid(masks), mask_pyramid(masks, (height, width), levels)
    assert list(part) == list(whole)[1 : 1 + levels]
    assert all(torch.equal(scaled, whole[positions]) for positions, scaled in part.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"masks": torch.ones(4, 4, dtype=torch.bool)}, "masks must be a tensor"),
        ({"masks": torch.ones(2, 4, 4)}, "masks must be boolean"),
        ({"reference_identity": [0, 2]}, r"reference_identity\[1\]"),
        ({"reference_identity": [0]}, "reference_identity must hold"),
        ({"size": (0, 4)}, "size"),
        ({"text_tokens": 0}, "text_tokens"),
        ({"face_tokens": [1, 0]}, "face_tokens"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], named: str) -> None:
    arguments: dict[str, object] = {
        "masks": torch.ones(2, 4, 4, dtype=torch.bool),
        "reference_identity": [0, 1],
        "size": (2, 2),
        "text_tokens": 3,
        "face_tokens": [1, 1],
    }
    with pytest.raises(FusionError, match=named):
        identity_attention_mask(**(arguments | change))


def test_an_aligned_mask_is_the_same_mask() -> None:
    mask = torch.rand(5, 13, generator=torch.Generator().manual_seed(0)) < 0.5
    logits = closed_logits(mask, torch.float16)
    assert torch.equal(logits == 0, mask) and torch.equal(logits == -torch.inf, ~mask)
    assert logits.stride() == (16, 1), "CUDA's kernels copy rows that begin anywhere else"


def test_groups_that_were_used_without_gradients_serve_with_them() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :, :2], masks[1, :, 2:] = True, True
    groups = group_queries(masks, [0, 1], (4, 4))
    query, text = torch.randn(1, 1, 16, 8), torch.randn(1, 1, 3, 8)
    arguments = (query, text, text, [query, query], [query, query])
    with torch.inference_mode():
        fused_attention(*arguments, mask=groups, backend="dense")
    query.requires_grad_()
    fused_attention(*arguments, mask=groups, backend="dense").sum().backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    assert groups.logits([3, 16, 16], query.dtype) is groups.logits([3, 16, 16], query.dtype)


def test_what_is_kept_of_a_mask_is_not_used_for_other_keys() -> None:
    masks = torch.zeros(2, 2, 4, dtype=torch.bool)
    masks[0, :, :2], masks[1, :, 2:] = True, True
    groups = group_queries(masks, [0, 1], (2, 4))
    for tokens in ([3, 2, 4], [3, 4, 2]):
        for dtype in (torch.float32, torch.bfloat16):
            logits = groups.logits(tokens, dtype)
            assert logits.dtype == dtype and torch.equal(logits == 0, groups.mask(tokens))
