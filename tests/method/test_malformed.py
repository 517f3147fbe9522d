"""Malformed input to the core: each raises FusionError with a message that names the argument."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusionlib import (
    FusionAdapter,
    FusionError,
    ReferenceCache,
    encode_references,
    fused_attention,
    group_queries,
    identity_attention_mask,
    scale_identity_masks,
)
from fusionlib.processor import conditioning_of
from fusionlib.unet_layers import cross_attention_layers
from tests.helpers.tiny import tiny_unet

WORD = torch.zeros(1, 2, 3, 8)
MASKS = torch.zeros(2, 4, 4, dtype=torch.bool)
LATENTS, TEXT = torch.zeros(2, 4, 8, 8), torch.zeros(1, 16, 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A UNet, an adapter on it, a reference, and a folder of broken files."""
    torch.manual_seed(0)
    unet, folder = tiny_unet(), tmp_path_factory.mktemp("malformed")
    adapter = FusionAdapter.from_unet(unet)
    adapter.attach(unet)
    cache = adapter.cache(encode_references(unet, LATENTS[:1], TEXT))
    adapter.save_pretrained(folder / "whole")
    config = (folder / "whole" / "config.json").read_text()
    weights = (folder / "whole" / "diffusion_pytorch_model.safetensors").read_bytes()
    cut = {**adapter.state_dict()}
    cut.pop(next(iter(cut)))
    broken = {
        "empty": {},
        "no_json": {"config.json": b"{"},
        "no_layers": {"config.json": b"{}"},
        "no_weights": {"config.json": config.encode()},
        "half": {
            "config.json": config.encode(),
            "diffusion_pytorch_model.safetensors": weights[: len(weights) // 2],
        },
        "fewer": {"config.json": config.encode()},
        "wider": {
            "config.json": json.dumps(
                {**json.loads(config), "layers": {n: [8, 8] for n in adapter.config["layers"]}}
            ).encode(),
            "diffusion_pytorch_model.safetensors": weights,
        },
    }
    for name, files in broken.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    save_file(cut, folder / "fewer" / "diffusion_pytorch_model.safetensors")
    (folder / "nan").mkdir()
    (folder / "nan" / "config.json").write_text(config)
    not_numbers = {name: torch.full_like(weight, nan) for name, weight in cut.items()}
    whole_state = adapter.state_dict() | not_numbers
    save_file(whole_state, folder / "nan" / "diffusion_pytorch_model.safetensors")
    (folder / "text").write_text("not a cache")
    kept = {"format": "fusionlib.ReferenceCache", "version": "1", "references": "1"}
    one = {"0.layer.key": torch.zeros(1, 2, 4), "0.layer.value": torch.zeros(1, 2, 4)}
    two = {name.replace("0.", "1.", 1): tensor for name, tensor in one.items()}
    for name, tensors, count in (
        ("many", one, "99999999999"),
        ("negative", one, "-1"),
        ("uncounted", one | two, "1"),
        ("gap", two, "1"),
        ("shapes", one | {"0.layer.value": torch.zeros(1, 3, 4)}, "1"),
        ("nan cache", one | {"0.layer.value": torch.full((1, 2, 4), nan)}, "1"),
        ("no value", {"0.layer.key": one["0.layer.key"]}, "1"),
        (
            "other layers",
            one | {f"1.b.{part}": one["0.layer.key"] for part in ("key", "value")},
            "2",
        ),
    ):
        save_file(
            {k: t.clone() for k, t in tensors.items()}, folder / name, kept | {"references": count}
        )
    save_file({"weight": torch.zeros(2)}, folder / "foreign")
    later = {"format": "fusionlib.ReferenceCache", "version": "2", "references": "1"}
    save_file({"0.layer.key": torch.zeros(2)}, folder / "later", later)
    save_file({"0.layer.key": torch.zeros(2)}, folder / "torn", later | {"version": "1"})
    return {"unet": unet, "adapter": adapter, "face": cache[0], "folder": folder, "cache": cache}


def attend(_: dict[str, Any], **change: Any) -> None:
    given = {"query": WORD, "text_key": WORD, "text_value": WORD}
    faces = {"face_keys": [WORD], "face_values": [WORD]}
    fused_attention(**(given | faces | change))


def mask(_: dict[str, Any], **change: Any) -> None:
    given = {"masks": MASKS, "reference_identity": [0, 1], "size": (2, 2)}
    identity_attention_mask(**(given | {"text_tokens": 3, "face_tokens": [1, 1]} | change))


def scale(_: dict[str, Any], **change: Any) -> None:
    scale_identity_masks(**({"masks": MASKS, "size": (2, 2)} | change))


def group(_: dict[str, Any], **change: Any) -> None:
    group_queries(**({"masks": MASKS, "reference_identity": [0], "size": (2, 2)} | change))


def encode(world: dict[str, Any], **change: Any) -> None:
    given = {"unet": world["unet"], "latents": LATENTS, "encoder_hidden_states": TEXT}
    encode_references(**(given | change))


def shared(world: dict[str, Any], **change: Any) -> None:
    given = {"timestep": 3, "noise": LATENTS, "scheduler": object()}
    encode(world, timestep_mode="shared", **(given | change))


def condition(world: dict[str, Any], **change: Any) -> None:
    with world["adapter"].conditioned(**({"references": [world["face"]]} | change)):
        pass


def condition_on_one_layer(world: dict[str, Any], value: Any) -> None:
    name = next(iter(world["face"]))
    condition(world, references=[{**world["face"], name: value}])


def condition_on_another_unets_cache(world: dict[str, Any]) -> None:
    condition(world, references=replace(world["cache"], unet_fingerprint=torch.ones(3, 8)))


def project(world: dict[str, Any], value: Any) -> None:
    layers = world["adapter"].config["layers"]
    hidden_states = {n: torch.zeros(1, 4, width) for n, (width, _) in layers.items()}
    world["adapter"].project({**hidden_states, next(iter(layers)): value})


def project_all(world: dict[str, Any], value: Any) -> None:
    world["adapter"].project(value)


def from_unet(world: dict[str, Any], **change: Any) -> None:
    FusionAdapter.from_unet(**({"unet": world["unet"]} | change))


def attach(world: dict[str, Any], **change: Any) -> None:
    FusionAdapter.from_unet(world["unet"]).attach(**change)


def detach(world: dict[str, Any], **change: Any) -> None:
    FusionAdapter.from_unet(world["unet"]).detach(**change)


def load_adapter(world: dict[str, Any], name: str) -> None:
    FusionAdapter.from_pretrained(world["folder"] / name)


def load_cache(world: dict[str, Any], name: str) -> None:
    ReferenceCache.load(world["folder"] / name)


def save_cache(world: dict[str, Any], name: str) -> None:
    world["cache"].save(world["folder"] / name)


def repeat(world: dict[str, Any], repeats: Any) -> None:
    world["cache"].repeat_interleave(repeats)


def stack(world: dict[str, Any], lengths: list[int]) -> None:
    ReferenceCache.stack([ReferenceCache((world["face"],) * n) for n in lengths])


def stack_sizes(world: dict[str, Any]) -> None:
    shorter = {name: (key[:, 1:], value[:, 1:]) for name, (key, value) in world["face"].items()}
    ReferenceCache.stack([world["cache"], ReferenceCache((shorter,))])


def stack_unets(world: dict[str, Any]) -> None:
    other = replace(world["cache"], unet_fingerprint=torch.ones(3, 8))
    ReferenceCache.stack([world["cache"], other])


nan, inf = float("nan"), float("inf")
CASES: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (attend, {"query": None}, "query"),
    (attend, {"query": WORD[0]}, "query"),
    (attend, {"query": WORD.long()}, "query"),
    (attend, {"text_key": WORD[..., :4]}, "text_key"),
    (attend, {"text_key": "text"}, "text_key"),
    (attend, {"text_value": WORD[:, :, :2]}, "text_value"),
    (attend, {"text_value": WORD.double()}, "text_value"),
    (attend, {"face_keys": None}, "face_keys"),
    (attend, {"face_keys": WORD}, "face_keys"),
    (attend, {"face_keys": [WORD[:, :1]]}, "face_keys[0]"),
    (attend, {"face_keys": [WORD.expand(3, -1, -1, -1)]}, "face_keys[0]"),
    (attend, {"face_values": []}, "face_values"),
    (attend, {"face_values": [None]}, "face_values[0]"),
    (attend, {"face_values": [WORD.half()]}, "face_values[0]"),
    (attend, {"strengths": 1.0}, "strengths"),
    (attend, {"strengths": torch.tensor(1.0)}, "strengths"),
    (attend, {"strengths": [1, 1]}, "strengths"),
    (attend, {"strengths": ["1"]}, "strengths[0]"),
    (attend, {"strengths": [inf]}, "strengths[0]"),
    (attend, {"strengths": [torch.tensor([-1.0])]}, "strengths[0]"),
    (attend, {"strengths": [torch.tensor([nan])]}, "strengths[0]"),
    (attend, {"strengths": [torch.tensor([inf])]}, "strengths[0]"),
    (attend, {"strengths": [torch.ones(3)]}, "strengths[0]"),
    (attend, {"strengths": [torch.ones(0)]}, "strengths[0]"),
    (attend, {"strengths": [torch.ones(1, 1)]}, "strengths[0]"),
    (attend, {"mask": [True] * 6}, "mask"),
    (attend, {"mask": torch.ones(6)}, "mask"),
    (attend, {"mask": torch.ones(3, 5, dtype=torch.bool)}, "mask"),
    (attend, {"mask": torch.ones(1, 1, 1, 1, 5, dtype=torch.bool)}, "mask"),
    (attend, {"mask": group_queries(MASKS, [0], (2, 2))}, "mask"),
    (attend, {"mask": group_queries(MASKS, [0, 1], (1, 3))}, "mask"),
    (attend, {"mask": torch.ones(6, dtype=torch.bool), "backend": "grouped"}, "backend"),
    (attend, {"backend": "fast"}, "backend"),
    (attend, {"scale": 0}, "scale"),
    (attend, {"scale": nan}, "scale"),
    (mask, {"masks": MASKS.tolist()}, "masks"),
    (mask, {"masks": MASKS[:0]}, "masks"),
    (mask, {"reference_identity": None}, "reference_identity"),
    (mask, {"reference_identity": [0, "1"]}, "reference_identity[1]"),
    (mask, {"reference_identity": [-1, 0]}, "reference_identity[0]"),
    (mask, {"text_tokens": 0}, "text_tokens"),
    (mask, {"text_tokens": 2.5}, "text_tokens"),
    (mask, {"face_tokens": 4}, "face_tokens"),
    (mask, {"face_tokens": [1, 0]}, "face_tokens"),
    (scale, {"size": 4}, "size"),
    (scale, {"size": (2, 0)}, "size"),
    (scale, {"size": (2.0, 2)}, "size"),
    (scale, {"masks": MASKS.float()}, "masks"),
    (group, {"reference_identity": [2]}, "reference_identity[0]"),
    (group, {"masks": MASKS[0]}, "masks"),
    (from_unet, {"unet": "unet"}, "unet"),
    (from_unet, {"init": "ones"}, "init"),
    (attach, {"unet": None}, "unet"),
    (attach, {"unet": torch.nn.Linear(1, 1)}, "unet"),
    (attach, {"unet": tiny_unet(block_out_channels=(16, 64))}, "unet"),
    (detach, {"unet": tiny_unet()}, "unet"),
    (project, {"value": torch.zeros(1, 4, 7)}, "hidden_states["),
    (project, {"value": torch.zeros(4, 16)}, "hidden_states["),
    (project, {"value": None}, "hidden_states["),
    (project_all, {"value": {}}, "hidden_states"),
    (project_all, {"value": [torch.zeros(1, 4, 16)]}, "hidden_states"),
    (condition, {"references": None}, "references"),
    (condition, {"references": {"layer": 1}}, "references"),
    (condition, {"references": [None]}, "references[0]"),
    (condition, {"references": [{}]}, "references[0]"),
    (condition_on_one_layer, {"value": None}, "references[0]["),
    (condition_on_one_layer, {"value": (torch.zeros(1, 4, 16),)}, "references[0]["),
    (condition_on_one_layer, {"value": (torch.zeros(1, 4, 3),) * 2}, "references[0]["),
    (
        condition_on_one_layer,
        {"value": (torch.zeros(1, 4, 16), torch.zeros(1, 5, 16))},
        "references[0][",
    ),
    (condition_on_another_unets_cache, {}, "references"),
    (condition, {"strengths": [1, 2]}, "strengths"),
    (condition, {"identity_masks": MASKS.int()}, "identity_masks"),
    (condition, {"identity_masks": MASKS, "reference_identity": [2]}, "reference_identity[0]"),
    (condition, {"reference_identity": [0]}, "reference_identity"),
    (condition, {"batch_size": 0}, "batch_size"),
    (condition, {"batch_size": "2"}, "batch_size"),
    (condition, {"backend": "flash"}, "backend"),
    (encode, {"unet": None}, "unet"),
    (encode, {"latents": LATENTS[0]}, "latents"),
    (encode, {"latents": LATENTS[:, :3]}, "latents"),
    (encode, {"latents": LATENTS.long()}, "latents"),
    (encode, {"latents": None}, "latents"),
    (encode, {"encoder_hidden_states": TEXT[0]}, "encoder_hidden_states"),
    (encode, {"encoder_hidden_states": TEXT[..., :8]}, "encoder_hidden_states"),
    (encode, {"encoder_hidden_states": TEXT.expand(3, -1, -1)}, "encoder_hidden_states"),
    (encode, {"timestep_mode": "noisy"}, "timestep_mode"),
    (encode, {"timestep": 1}, "timestep"),
    (encode, {"noise": LATENTS}, "noise"),
    (encode, {"added_cond_kwargs": {"time_ids": TEXT}}, "added_cond_kwargs"),
    (encode, {"lora_scale": "half"}, "lora_scale"),
    (encode, {"lora_scale": nan}, "lora_scale"),
    (shared, {"scheduler": None}, "scheduler"),
    (shared, {"timestep": None}, "timestep"),
    (shared, {"noise": LATENTS[:1]}, "noise"),
    (shared, {"timestep": torch.zeros(3)}, "timestep"),
    *[
        (load_adapter, {"name": name}, "pretrained_model_name_or_path")
        for name in (
            "none",
            "empty",
            "no_json",
            "no_layers",
            "no_weights",
            "half",
            "fewer",
            "wider",
        )
    ],
    *[(load_cache, {"name": n}, "path") for n in ("none", "whole", "text", "foreign", "later")],
    (load_adapter, {"name": "nan"}, "pretrained_model_name_or_path"),
    *[
        (load_cache, {"name": name}, "path")
        for name in (
            "many",
            "negative",
            "uncounted",
            "gap",
            "shapes",
            "nan cache",
            "no value",
            "other layers",
        )
    ],
    (load_cache, {"name": "torn"}, "path"),
    (save_cache, {"name": "text/cache"}, "path"),
    (save_cache, {"name": "whole"}, "path"),
    (repeat, {"repeats": 0}, "repeats"),
    (stack, {"lengths": []}, "caches"),
    (stack, {"lengths": [1, 2]}, "caches"),
    (stack_sizes, {}, "caches[1]"),
    (stack_unets, {}, "caches[1]"),
]


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    CASES,
    ids=[f"{case[0].__name__}-{case[2]}-{index}" for index, case in enumerate(CASES)],
)
def test_the_argument_is_named(
    world: dict[str, Any], call: Callable[..., Any], arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(FusionError, match=rf"(?<!\w){re.escape(named)}"):
        call(world, **arguments)


def test_no_adapter_is_left_conditioned(world: dict[str, Any]) -> None:
    layers = cross_attention_layers(world["adapter"].unet)
    assert all(conditioning_of(layer) is None for layer in layers.values())


def test_paths_may_be_text(world: dict[str, Any], tmp_path: Path) -> None:
    world["cache"].save(str(tmp_path / "faces"))
    assert len(ReferenceCache.load(str(tmp_path / "faces"))) == 1
