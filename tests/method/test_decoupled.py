"""Decoupled attention, and adapters of chosen layers: the paper's design with one thing changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fusionlib import (
    FusionAdapter,
    FusionError,
    FusionPipeline,
    decoupled_attention,
    encode_references,
    fused_attention,
    group_queries,
)
from fusionlib.processor import conditioning_of
from fusionlib.unet_layers import cross_attention_layers
from tests.helpers.tiny import tiny_unet

NAMES = (
    "down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.0", "up_blocks.1", "up_blocks.1",
    "mid_block",
)  # fmt: skip


def inputs(batch: int = 2, queries: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def tensor(rows: int, tokens: int) -> Tensor:
        return torch.randn(rows, 3, tokens, 8, generator=generator)

    return {
        "query": tensor(batch, queries),
        "text_key": tensor(batch, 5),
        "text_value": tensor(batch, 5),
        "face_keys": [tensor(batch, 4), tensor(1, 6)],
        "face_values": [tensor(batch, 4), tensor(1, 6)],
    }


def oracle(given: dict[str, Any], lambdas: Tensor, seen: Tensor, alpha: float = 8**-0.5) -> Tensor:
    """By einsum, in float64; ``lambdas`` (batch, references), ``seen`` (queries, references)."""
    batch = given["query"].shape[0]
    q, kc, vc = (given[name].double() for name in ("query", "text_key", "text_value"))

    def attended(logits: Tensor, values: Tensor) -> Tensor:
        weights = logits.exp()
        total = weights.sum(-1, keepdim=True)
        shares = torch.where(total > 0, weights / total, 0)
        return torch.einsum("bhqk,bhkd->bhqd", shares, values)

    faces = [k.double().expand(batch, -1, -1, -1) for k in given["face_keys"]]
    values = [v.double().expand(batch, -1, -1, -1) for v in given["face_values"]]
    logits = []
    for i, key in enumerate(faces):
        part = alpha * torch.einsum("bhqd,bhkd->bhqk", q, key)
        part = part.masked_fill(~seen[None, None, :, i, None], -torch.inf)
        logits.append(part.masked_fill((lambdas[:, i] == 0)[:, None, None, None], -torch.inf))
        values[i] = lambdas[:, i, None, None, None] * values[i]
    text = attended(alpha * torch.einsum("bhqd,bhkd->bhqk", q, kc), vc)
    return text + attended(torch.cat(logits, -1), torch.cat(values, 2))


STRENGTHS: dict[str, Any] = {
    "one": None,
    "numbers": [0.5, 2.0],
    "one left out": [0.0, 1.5],
    "tensors": [torch.tensor([0.5, 0.0]), torch.tensor([1.0, 2.0])],
    "all out in a sample": [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])],
}


@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=STRENGTHS)
def test_decoupled_attention_is_its_equation(strengths: Any) -> None:
    given = inputs()
    columns = [torch.as_tensor(s).double().expand(2) for s in strengths or [1.0, 1.0]]
    everything = torch.ones(16, 2, dtype=torch.bool)
    found = decoupled_attention(**given, strengths=strengths)
    wanted = oracle(given, torch.stack(columns, 1), everything)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["dense", "grouped"])
@pytest.mark.parametrize("strengths", [None, [0.0, 0.7], [torch.tensor([0.0, 1.0]), 0.5]])
def test_a_query_that_sees_no_face_is_given_the_text_alone(backend: Any, strengths: Any) -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :, :3] = masks[1, :, 2:] = True  # the third column is both's, and sees nobody
    groups = group_queries(masks, [0, 1], (4, 4))
    seen = torch.stack([~masks[1].flatten(), ~masks[0].flatten()], 1)
    given = inputs()
    columns = [torch.as_tensor(s).double().expand(2) for s in strengths or [1.0, 1.0]]
    wanted = oracle(given, torch.stack(columns, 1), seen)
    found = decoupled_attention(**given, strengths=strengths, mask=groups, backend=backend)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    full = groups.mask([5, 4, 6])
    dense = decoupled_attention(**given, strengths=strengths, mask=full)
    torch.testing.assert_close(dense.double(), wanted, atol=1e-5, rtol=1e-5)
    nobody = ~seen.any(1)
    assert nobody.sum() == 4
    text = decoupled_attention(**given | {"face_keys": [], "face_values": []})
    torch.testing.assert_close(found[:, :, nobody], text[:, :, nobody])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_face_of_strength_zero_is_above_one_that_is_closed(dtype: torch.dtype) -> None:
    """Each is nearly minus infinity, in the small range of half precision, too."""
    half = {
        name: [each.to(dtype) for each in v] if isinstance(v, list) else v.to(dtype)
        for name, v in inputs().items()
    }
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :, :2], masks[1, :, 2:] = True, True
    groups = group_queries(masks, [0, 1], (4, 4))
    strengths = [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])]
    found = decoupled_attention(**half, strengths=strengths, mask=groups, backend="dense")
    wanted = oracle(half, torch.stack(strengths, 1).double(), masks.flatten(1).T)
    torch.testing.assert_close(found.double(), wanted, atol=4e-2, rtol=4e-2)


def test_a_scale_is_that_of_both_softmaxes() -> None:
    given, everything = inputs(), torch.ones(16, 2, dtype=torch.bool)
    found = decoupled_attention(**given, scale=0.9)
    wanted = oracle(given, torch.ones(2, 2).double(), everything, alpha=0.9)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_mask_of_one_column_closes_all_faces_and_never_the_text() -> None:
    given, column = inputs(), torch.ones(16, 1, dtype=torch.bool)
    column[:4] = False
    found = decoupled_attention(**given, mask=column)
    wanted = oracle(given, torch.ones(2, 2).double(), column.expand(-1, 2))
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_closed_keys_leave_finite_gradients() -> None:
    given = inputs()
    for value in given["face_values"]:
        value.requires_grad_()
    closed = torch.ones(16, 15, dtype=torch.bool)
    closed[:8, 5:] = False
    decoupled_attention(
        **given, strengths=[torch.tensor([0.0, 1.0]), 1], mask=closed
    ).sum().backward()
    grads = [value.grad for value in given["face_values"]]
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads)
    assert grads[0][0].abs().sum() == 0, "of the sample in which its strength is 0"


def adapters(**options: Any) -> tuple[Any, FusionAdapter]:
    torch.manual_seed(0)
    unet = tiny_unet()
    adapter = FusionAdapter.from_unet(unet, init="random", **options)
    adapter.attach(unet)
    return unet, adapter


@torch.no_grad()
def painted(unet: Any, adapter: FusionAdapter, **options: Any) -> tuple[Tensor, Tensor]:
    """What the UNet predicts with faces of these strengths, and as the base model."""
    generator = torch.Generator().manual_seed(1)
    noisy, face = torch.randn(2, 2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 7, 16, generator=generator)
    cache = adapter.cache(encode_references(unet, face, torch.zeros(1, 7, 16)))
    base = unet(noisy, 10, text).sample
    with adapter.conditioned(cache, **options):
        return unet(noisy, 10, text).sample, base


def test_the_adapter_says_which_attention_it_was_trained_for(tmp_path: Path) -> None:
    unet, adapter = adapters(attention="decoupled")
    assert adapter.config["attention"] == "decoupled"
    found, base = painted(unet, adapter, strengths=[1.0, 0.5])
    adapter.save_pretrained(tmp_path)
    adapter.detach(unet)
    again = FusionAdapter.from_pretrained(tmp_path)
    again.attach(unet)
    assert torch.equal(painted(unet, again, strengths=[1.0, 0.5])[0], found)
    off, _ = painted(unet, again, strengths=[0, 0])
    assert torch.equal(off, base)
    again.detach(unet)
    twin = FusionAdapter.from_unet(unet)
    twin.load_state_dict(adapter.state_dict())  # the same weights, concatenated
    twin.attach(unet)
    assert twin.config["attention"] == "concatenated"
    assert not torch.allclose(painted(unet, twin, strengths=[1.0, 0.5])[0], found)
    with pytest.raises(FusionError, match="attention must be"):
        FusionAdapter.from_unet(unet, attention="added")  # type: ignore[arg-type]


def test_what_decoupled_attention_adds_grows_with_its_strength() -> None:
    """The difference to the text's answer is proportional to lambda; in one softmax it is not."""
    given = inputs()
    alone = {name: v[:1] if isinstance(v, list) else v for name, v in given.items()}
    none = decoupled_attention(**alone, strengths=[0])
    added = [decoupled_attention(**alone, strengths=[s]) - none for s in (0.5, 2.0)]
    torch.testing.assert_close(4 * added[0], added[1], atol=1e-5, rtol=1e-4)
    fused = [fused_attention(**alone, strengths=[s]) - none for s in (0.5, 2.0)]
    assert not torch.allclose(4 * fused[0], fused[1], atol=0.1)


def test_masks_and_several_references_reach_decoupled_layers() -> None:
    unet, adapter = adapters(attention="decoupled")
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4] = masks[1, :, 4:] = True
    located, base = painted(unet, adapter, identity_masks=masks)
    everywhere, _ = painted(unet, adapter)
    assert not torch.allclose(located, everywhere) and not torch.allclose(located, base)
    dense, _ = painted(unet, adapter, identity_masks=masks, backend="dense")
    torch.testing.assert_close(located, dense, atol=1e-5, rtol=1e-4)


CHOICES: dict[str, tuple[list[Any], list[int]]] = {
    "down": (["down"], [0, 1]),
    "mid": (["mid"], [6]),
    "up": (["up"], [2, 3, 4, 5]),
    "full resolution": ([0], [0, 4, 5]),
    "half of it": ([1], [1, 2, 3, 6]),
    "both kinds": (["mid", 0], [0, 4, 5, 6]),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_only_chosen_layers_see_faces(choice: str, tmp_path: Path) -> None:
    layers, wanted = CHOICES[choice]
    unet, adapter = adapters(layers=layers)
    names = list(cross_attention_layers(unet))
    assert [name.split(".attentions")[0] for name in names] == list(NAMES)
    assert list(adapter.config["layers"]) == [names[i] for i in wanted]
    face, empty_prompt = torch.randn(1, 4, 8, 8), torch.zeros(1, 7, 16)
    reference = adapter.project(encode_references(unet, face, empty_prompt))
    with adapter.conditioned([reference]):
        layers = cross_attention_layers(unet).values()
        seen = [conditioning_of(layer) is not None for layer in layers]
    assert [i for i, sees in enumerate(seen) if sees] == wanted
    found, base = painted(unet, adapter)
    assert not torch.allclose(found, base)
    adapter.save_pretrained(tmp_path)
    adapter.detach(unet)
    again = FusionAdapter.from_pretrained(tmp_path)
    again.attach(unet)
    assert torch.equal(painted(unet, again)[0], found)


def test_a_choice_that_is_none_is_named() -> None:
    unet = tiny_unet()
    for wrong in ("down", [], ["left"], [-1]):
        with pytest.raises(FusionError, match="layers must be"):
            FusionAdapter.from_unet(unet, layers=wrong)  # type: ignore[arg-type]
    with pytest.raises(FusionError, match="no cross-attention where"):
        FusionAdapter.from_unet(unet, layers=[7])
    other = tiny_unet(down_block_types=("DownBlock2D", "DownBlock2D"))
    with pytest.raises(FusionError, match="no cross-attention where"):
        FusionAdapter.from_unet(other, layers=["down"])
    adapter = FusionAdapter.from_unet(unet, layers=["up", "down"])
    with pytest.raises(FusionError, match="does not fit"):
        adapter.attach(other)  # it has none of the layers on the way down


def test_a_pipeline_shows_references_under_another_prompt(tiny_checkpoint: Path) -> None:
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    face = Image.effect_noise((32, 32), 90).convert("RGB")
    empty, said = (pipeline.encode_references(face, prompt=text) for text in ("", "a face"))
    name = list(empty[0])[-1]  # the first layer comes before any that sees text
    assert torch.equal(pipeline.encode_references(face)[0][name][0], empty[0][name][0])
    assert not torch.allclose(empty[0][name][0], said[0][name][0])
