"""Fused attention against the equations written out with loops."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionlib import FusionError, fused_attention


def equations_3_to_6(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
    strengths: Sequence[float | Tensor],
    mask: Tensor,
    scale: float,
) -> np.ndarray:
    """The oracle: one query and one key at a time, in float64, sharing no code with fusionlib."""
    batch, heads, queries, head_dim = query.shape
    out = np.zeros((batch, heads, queries, head_dim))
    q, kc, vc = (t.double().numpy() for t in (query, text_key, text_value))
    kf = [np.broadcast_to(k.double().numpy(), (batch, *k.shape[1:])) for k in face_keys]
    vf = [np.broadcast_to(v.double().numpy(), (batch, *v.shape[1:])) for v in face_values]
    seen = mask.expand(batch, heads, queries, -1).numpy()
    for b in range(batch):
        lambdas = [s[b].item() if isinstance(s, Tensor) else s for s in strengths]
        for h in range(heads):
            keys = [*kc[b, h], *(k for face in kf for k in face[b, h])]
            values = [*vc[b, h], *(v for face in vf for v in face[b, h])]
            factor = [1.0] * kc.shape[2]
            for strength, face in zip(lambdas, kf, strict=True):
                factor += [strength] * face.shape[2]
            for n in range(queries):
                weights = [
                    factor[k] * math.exp(scale * float(q[b, h, n] @ keys[k]))
                    if seen[b, h, n, k]
                    else 0.0
                    for k in range(len(keys))
                ]
                for weight, value in zip(weights, values, strict=True):
                    out[b, h, n] += weight / sum(weights) * value
    return out


@st.composite
def attention_inputs(draw: st.DrawFn) -> dict[str, object]:
    """Random shapes, numbers of references, strengths, masks and scales."""
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([1, 2, 5, 8, 40]))
    queries, text = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    faces = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 3)))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def strength() -> float | Tensor:
        number = st.sampled_from([0.0, 0.25, 1.0, 1.7, 30.0])
        if draw(st.integers(0, 3)):
            return draw(number)
        return torch.tensor([draw(number) for _ in range(batch)])

    shared = [draw(st.booleans()) for _ in faces]
    shapes = [
        (1 if one else batch, heads, n, head_dim) for one, n in zip(shared, faces, strict=True)
    ]
    mask = None
    if draw(st.booleans()):
        dims = [batch, heads, queries]
        leading = [draw(st.sampled_from([1, n])) for n in dims][draw(st.integers(0, 2)) :]
        mask = torch.rand(*leading, text + sum(faces), generator=generator) < 0.7
        mask[..., 0] = True  # Eq. 7 never closes the text
    return {
        "query": tensor(batch, heads, queries, head_dim),
        "text_key": tensor(batch, heads, text, head_dim),
        "text_value": tensor(batch, heads, text, head_dim),
        "face_keys": [tensor(*shape) for shape in shapes],
        "face_values": [tensor(*shape) for shape in shapes],
        "strengths": [strength() for _ in faces] if draw(st.integers(0, 3)) else None,
        "mask": mask,
        "scale": draw(st.sampled_from([None, 0.3])),
    }


def cast(inputs: dict[str, object], dtype: torch.dtype) -> dict[str, object]:
    """The same inputs in another dtype."""
    one = {name: inputs[name].to(dtype) for name in ("query", "text_key", "text_value")}
    many = {name: [t.to(dtype) for t in inputs[name]] for name in ("face_keys", "face_values")}
    return inputs | one | many


@pytest.mark.parametrize(
    ("dtype", "tolerance", "examples"),
    [(torch.float32, 1e-5, 200), (torch.float64, 1e-12, 50), (torch.bfloat16, 4e-2, 50)],
)
def test_fused_attention_is_the_equations(
    dtype: torch.dtype, tolerance: float, examples: int
) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(attention_inputs())
    def check(inputs: dict[str, object]) -> None:
        inputs = cast(inputs, dtype)
        tokens = inputs["text_key"].shape[2] + sum(k.shape[2] for k in inputs["face_keys"])
        expected = equations_3_to_6(
            *(inputs[n] for n in ("query", "text_key", "text_value", "face_keys", "face_values")),
            strengths=inputs["strengths"] or [1.0] * len(inputs["face_keys"]),
            mask=torch.ones(tokens, dtype=torch.bool) if inputs["mask"] is None else inputs["mask"],
            scale=inputs["scale"] or inputs["query"].shape[-1] ** -0.5,
        )
        actual = fused_attention(**inputs)
        assert actual.shape == inputs["query"].shape and actual.dtype == dtype
        np.testing.assert_allclose(actual.double().numpy(), expected, tolerance, tolerance)

    check()


def example(faces: int = 3, head_dim: int = 40) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)

    def tensor(tokens: int, batch: int = 2) -> Tensor:
        return torch.randn(batch, 4, tokens, head_dim, generator=generator)

    return {
        "query": tensor(16),
        "text_key": tensor(7),
        "text_value": tensor(7),
        "face_keys": [tensor(9 + i) for i in range(faces)],
        "face_values": [tensor(9 + i) for i in range(faces)],
    }


def test_order_of_references_does_not_matter() -> None:
    """The paper says that it does; a softmax over a list does not know the list's order."""
    inputs = example()
    strengths = [0.5, 1.0, 2.0]
    swapped = inputs | {
        name: [inputs[name][i] for i in (2, 0, 1)] for name in ("face_keys", "face_values")
    }
    torch.testing.assert_close(
        fused_attention(**inputs, strengths=strengths),
        fused_attention(**swapped, strengths=[strengths[i] for i in (2, 0, 1)]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_reference_twice_at_half_strength_is_that_reference_once() -> None:
    once = example(faces=1)
    twice = once | {name: once[name] * 2 for name in ("face_keys", "face_values")}
    torch.testing.assert_close(
        fused_attention(**twice, strengths=[0.5, 0.5]),
        fused_attention(**once),
        rtol=1e-5,
        atol=1e-6,
    )


def test_splitting_the_tokens_of_a_reference_changes_nothing() -> None:
    once = example(faces=1)
    split = once | {
        name: [once[name][0][:, :, :4], once[name][0][:, :, 4:]]
        for name in ("face_keys", "face_values")
    }
    torch.testing.assert_close(
        fused_attention(**split, strengths=[1.6, 1.6]), fused_attention(**once, strengths=[1.6])
    )


def test_strength_zero_is_text_only_bit_by_bit() -> None:
    inputs = example()
    text_only = inputs | {"face_keys": [], "face_values": []}
    mask = torch.ones(16, 7 + 9 + 10 + 11, dtype=torch.bool)
    expected = torch.nn.functional.scaled_dot_product_attention(
        inputs["query"], inputs["text_key"], inputs["text_value"]
    )
    assert torch.equal(fused_attention(**text_only), expected)
    assert torch.equal(fused_attention(**inputs, strengths=[0.0, 0, 0.0]), expected)
    closed = fused_attention(**inputs, strengths=[0, 0, 0], mask=mask)
    torch.testing.assert_close(closed, expected)


def test_a_reference_left_out_takes_its_mask_along() -> None:
    inputs = example(faces=2)
    mask = torch.rand(16, 7 + 9 + 10, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 0] = True
    second = inputs | {name: inputs[name][1:] for name in ("face_keys", "face_values")}
    torch.testing.assert_close(
        fused_attention(**inputs, strengths=[0, 0.5], mask=mask),
        fused_attention(**second, strengths=[0.5], mask=torch.cat([mask[:, :7], mask[:, 16:]], 1)),
    )


def test_a_mask_of_one_column_for_all_keys_outlives_a_reference_left_out() -> None:
    inputs, column = example(faces=2), torch.ones(16, 1, dtype=torch.bool)
    torch.testing.assert_close(
        fused_attention(**inputs, strengths=[0, 0.5], mask=column),
        fused_attention(**inputs, strengths=[0, 0.5]),
    )


def test_strength_zero_for_some_samples_only() -> None:
    """As training drops the reference of some samples: no NaN, neither forward nor backward."""
    inputs = example(faces=1)
    key = inputs["face_keys"][0].requires_grad_()
    fused = fused_attention(**inputs, strengths=[torch.tensor([0.0, 1.0])])
    fused.square().sum().backward()
    text_only = fused_attention(**(inputs | {"face_keys": [], "face_values": []}))
    torch.testing.assert_close(fused[0], text_only[0])
    assert not torch.allclose(fused[1], text_only[1])
    assert torch.equal(key.grad[0], torch.zeros_like(key.grad[0]))
    assert key.grad.isfinite().all() and key.grad[1].abs().sum() > 0


@pytest.mark.parametrize("head_dim", [40, 64, 80])
def test_strengths_leave_the_quick_kernel_of_a_cpu_usable(head_dim: int) -> None:
    inputs = example(head_dim=head_dim)
    strengths = [0.3, torch.tensor([0.0, 2.0]), 1.0]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = fused_attention(**inputs, strengths=strengths)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(flash, fused_attention(**inputs, strengths=strengths))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query": torch.zeros(2, 16, 160)}, "query"),
        ({"text_key": torch.zeros(1, 4, 7, 40)}, "text_key"),
        ({"text_value": torch.zeros(2, 4, 8, 40)}, "text_value"),
        ({"face_keys": [torch.zeros(2, 4, 9, 40)]}, "face_values"),
        ({"face_keys": [torch.zeros(3, 4, 9, 40)] * 3}, "face_keys[0]"),
        ({"face_keys": [torch.zeros(2, 4, 9, 40).double()] + example()["face_keys"][1:]}, "dtype"),
        ({"face_values": [torch.zeros(2, 4, 8, 40)] * 3}, "face_values[0]"),
        ({"strengths": [1.0]}, "strengths"),
        ({"strengths": 0.5}, "strengths"),
        ({"strengths": [1.0, -0.1, 1.0]}, "strengths[1]"),
        ({"strengths": [1.0, 1.0, float("nan")]}, "strengths[2]"),
        ({"strengths": [torch.ones(3), 1.0, 1.0]}, "strengths[0]"),
        ({"mask": torch.zeros(16, 37)}, "mask must be boolean"),
        ({"mask": torch.ones(16, 36, dtype=torch.bool)}, "mask"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], named: str) -> None:
    with pytest.raises(FusionError, match=named.replace("[", r"\[").replace("]", r"\]")):
        fused_attention(**(example() | change))
