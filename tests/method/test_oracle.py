"""Every backend against an oracle: Eq. 3 to 7 in plain einsum and loops, in float64.

The oracle shares no code with fusionlib. It reads Eq. 7 word by word: the key of identity i is
closed to query q if and only if another identity's mask holds q.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusionlib import fused_attention, group_queries, identity_attention_mask
from fusionlib.kernels import usual_backend


@dataclass
class Layer:
    """What one layer is given."""

    query: Tensor
    text: tuple[Tensor, Tensor]
    faces: list[tuple[Tensor, Tensor]]
    strengths: list[float | Tensor]
    masks: Tensor
    shows: list[int]
    scale: float | None

    def arguments(self, dtype: torch.dtype) -> dict[str, object]:
        return {
            "query": self.query.to(dtype),
            "text_key": self.text[0].to(dtype),
            "text_value": self.text[1].to(dtype),
            "face_keys": [key.to(dtype) for key, _ in self.faces],
            "face_values": [value.to(dtype) for _, value in self.faces],
            "strengths": self.strengths,
            "scale": self.scale,
        }


def oracle(layer: Layer, dtype: torch.dtype, masked: bool) -> Tensor:
    query = layer.query.to(dtype).double()
    batch, _, queries, head_dim = query.shape
    pairs = [layer.text, *layer.faces]
    keys = [key.to(dtype).double().expand(batch, -1, -1, -1) for key, _ in pairs]
    values = [value.to(dtype).double().expand(batch, -1, -1, -1) for _, value in pairs]
    alpha = layer.scale or head_dim**-0.5
    scores = [alpha * torch.einsum("bhqd,bhkd->bhqk", query, key) for key in keys]
    highest = torch.cat(scores, 3).amax(3, keepdim=True)
    weights = [(score - highest).exp() for score in scores]
    for i, strength in enumerate(layer.strengths):
        for b in range(batch):
            one = isinstance(strength, Tensor)
            weights[1 + i][b] *= float(
                strength.flatten()[b % strength.numel()] if one else strength
            )
        for q in range(queries):
            for j, mask in enumerate(layer.masks):
                if masked and j != layer.shows[i] and bool(mask.flatten()[q]):
                    weights[1 + i][:, :, q] = 0
    total = sum(weight.sum(3) for weight in weights)
    fused = sum(
        torch.einsum("bhqk,bhkd->bhqd", weight, value)
        for weight, value in zip(weights, values, strict=True)
    )
    return fused / total[..., None]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Random shapes, references, strengths, and masks that overlap, touch, or leave gaps."""
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    head_dim = draw(st.sampled_from([1, 4, 7, 8, 40]))
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    identities = draw(st.integers(1, 3))
    shows = draw(st.lists(st.integers(0, identities - 1), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def pair(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        key, value = torch.randn(2, rows, heads, tokens, head_dim, generator=generator)
        return key, value

    number = st.sampled_from([0, 0.0, 0.25, 1, 1.0, 1.7, 8.0])
    strengths: list[float | Tensor] = []
    for _ in shows:
        several = draw(st.integers(0, 3)) == 0
        strengths.append(
            torch.tensor([float(draw(number)) for _ in range(batch)]) if several else draw(number)
        )
    covered = draw(st.sampled_from([0.1, 0.4, 0.7]))
    return Layer(
        query=torch.randn(batch, heads, height * width, head_dim, generator=generator),
        text=pair(batch, draw(st.integers(1, 5))),
        faces=[pair(draw(st.sampled_from([1, batch])), draw(st.integers(1, 4))) for _ in shows],
        strengths=strengths,
        masks=torch.rand(identities, height, width, generator=generator) < covered,
        shows=shows,
        scale=draw(st.sampled_from([None, 0.3])),
    )


# Half precision keeps 11 and 8 bits: the inputs are rounded alike for the oracle, so what remains
# is the rounding of the logits, the strengths and the result.
TOLERANCES = [
    (torch.float32, 1e-5, 200),
    (torch.float64, 1e-10, 30),
    (torch.float16, 1e-2, 30),
    (torch.bfloat16, 6e-2, 30),
]


@pytest.mark.parametrize("backend", ["unmasked", "mask", "dense", "grouped"])
@pytest.mark.parametrize(("dtype", "tolerance", "examples"), TOLERANCES)
def test_every_backend_is_the_oracle(
    backend: str, dtype: torch.dtype, tolerance: float, examples: int
) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(layers())
    def check(layer: Layer) -> None:
        arguments = layer.arguments(dtype)
        size = (layer.masks.shape[1], layer.masks.shape[2])
        if backend == "mask":
            tokens = [key.shape[2] for key, _ in layer.faces]
            text = layer.text[0].shape[2]
            mask = identity_attention_mask(layer.masks, layer.shows, size, text, tokens)
            arguments["mask"] = mask
        elif backend != "unmasked":
            arguments["mask"] = group_queries(layer.masks, layer.shows, size)
            arguments["backend"] = backend
        actual = fused_attention(**arguments)
        expected = oracle(layer, dtype, masked=backend != "unmasked")
        assert actual.dtype == dtype and actual.shape == layer.query.shape
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)

    check()


def two_people(tokens: int = 64) -> tuple[dict[str, object], Tensor]:
    """Two faces, one in each half of the picture, which they fill."""
    generator = torch.Generator().manual_seed(0)

    def tensor(count: int) -> Tensor:
        return torch.randn(1, 2, count, 8, generator=generator)

    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    faces = [tensor(tokens), tensor(tokens)]
    text = tensor(7)
    return {
        "query": tensor(64),
        "text_key": text,
        "text_value": text,
        "face_keys": faces,
        "face_values": faces,
    }, masks


def test_the_grouped_form_does_no_work_for_closed_keys() -> None:
    inputs, masks = two_people()
    groups = group_queries(masks, [0, 1], (8, 8))
    counts = {}
    for backend in ("dense", "grouped"):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            fused_attention(**inputs, mask=groups, backend=backend)
        counts[backend] = counter.get_total_flops()
    assert counts["dense"] == 4 * 2 * 8 * 64 * (7 + 64 + 64)
    assert counts["grouped"] == 4 * 2 * 8 * 64 * (7 + 64)


def test_the_grouped_form_never_looks_at_closed_keys() -> None:
    inputs, masks = two_people()
    poisoned = [inputs["face_values"][0], torch.full_like(inputs["face_values"][1], torch.nan)]
    groups = group_queries(masks, [0, 1], (8, 8))
    out = fused_attention(**(inputs | {"face_values": poisoned}), mask=groups, backend="grouped")
    assert torch.equal(out.isnan().any(3)[0, 0].unflatten(0, (8, 8)), masks[1])


@pytest.mark.parametrize(("side", "backend"), [(16, "dense"), (36, "grouped")])
def test_a_small_layer_takes_the_mask_unless_told_otherwise(
    side: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, _ = two_people()
    masks = torch.zeros(2, side, side, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    inputs["query"] = torch.randn(1, 2, side**2, 8, generator=torch.Generator().manual_seed(1))
    groups = group_queries(masks, [0, 1], (side, side))
    named = fused_attention(**inputs, mask=groups, backend=backend)
    assert torch.equal(fused_attention(**inputs, mask=groups), named)
    with monkeypatch.context() as context:  # not the other, which would agree but for rounding
        other = {"dense": "fusionlib.kernels.grouped", "grouped": "fusionlib.kernels.closed_logits"}
        context.setattr(other[backend], lambda *_: pytest.fail("the other backend"))
        fused_attention(**inputs, mask=groups)


def test_a_compiled_graph_makes_no_mask_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual_backend(64, 205) == "dense" and usual_backend(4096, 205) == "grouped"
    assert usual_backend(1024, 77 + 4 * 1024) == "grouped"
    assert usual_backend(1024, 77 + 4 * 1024, "cuda") == "dense", "fewer kernels to start"
    assert usual_backend(4096, 77 + 4096, "cuda") == "grouped"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert usual_backend(64, 205) == usual_backend(64, 205, "cuda") == "grouped"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_groups_on_cuda(dtype: torch.dtype) -> None:
    inputs, masks = two_people(tokens=300)
    moved = {
        name: [t.to("cuda", dtype) for t in given]
        if isinstance(given, list)
        else given.to("cuda", dtype)
        for name, given in inputs.items()
    }
    groups = group_queries(masks, [0, 1], (8, 8)).to("cuda")
    for strengths in (None, [0.5, 2.0]):
        torch.testing.assert_close(
            fused_attention(**moved, strengths=strengths, mask=groups, backend="grouped"),
            fused_attention(**moved, strengths=strengths, mask=groups, backend="dense"),
            rtol=6e-2,
            atol=6e-2,
        )
