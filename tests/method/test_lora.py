"""LoRA weights beside faces: in the formats people publish, loaded by diffusers' own methods."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_pipeline import face, generate, same
from torch import Tensor

from fusionlib import FusionError, ReferenceCache
from fusionlib.pipeline import FusionPipeline
from fusionlib.pipeline_variants import (
    FusionImg2ImgPipeline,
    FusionXLImg2ImgPipeline,
    FusionXLPipeline,
)
from fusionlib.processor import conditioning_of
from fusionlib.reference_cache import fingerprint_of_unet, sample_of_weights
from fusionlib.unet_layers import cross_attention_layers
from tests.helpers.single_file import original_unet_names
from tests.helpers.tiny import write_tiny_xl_checkpoint

FILE = "pytorch_lora_weights.safetensors"
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
LAYERS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1"],
    "text_encoder": TEXT_LAYERS,
    "text_encoder_2": TEXT_LAYERS,
}
"""The layers that a LoRA changes, which are linear and, in the UNet, convolutions too."""


class Family:
    """One of the two kinds of checkpoint: tiny, with a LoRA for it in diffusers' format."""

    def __init__(self, checkpoint: Path, folder: Path, cls: type, stock: type) -> None:
        self.checkpoint, self.folder, self.cls, self.stock = checkpoint, folder, cls, stock
        for seed, name in enumerate(("first", "second")):
            self._write_lora(folder / name, seed)

    def load(self, cls: type | None = None, **options: Any) -> Any:
        pipeline = (cls or self.cls).from_pretrained(self.checkpoint, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _write_lora(self, folder: Path, seed: int) -> None:
        """As a trainer does it, with values that are not zero any more."""
        pipeline, layers = self.load(self.stock), {}
        for component, names in LAYERS.items():
            model = getattr(pipeline, component, None)
            if model is not None:
                torch.manual_seed(seed)
                config = {"r": 2, "lora_alpha": 2, "init_lora_weights": False}
                model.add_adapter(LoraConfig(**config, target_modules=names))
                layers[f"{component}_lora_layers"] = {
                    name: 0.3 * weight for name, weight in get_peft_model_state_dict(model).items()
                }
        pipeline.save_lora_weights(folder, **layers)

    def merged(self, weights: dict[str, float]) -> Any:
        """A pipeline whose weights have the LoRAs added, by plain arithmetic."""
        pipeline = self.load()
        for lora, scale in weights.items():
            state = load_file(self.folder / lora / FILE)
            for name in state:
                if name.endswith(".lora_A.weight"):
                    stem = name.removesuffix(".lora_A.weight")
                    down, up = (state[f"{stem}.lora_{part}.weight"].flatten(1) for part in "AB")
                    component, layer = stem.split(".", 1)
                    weight = getattr(pipeline, component).get_submodule(layer).weight
                    with torch.no_grad():
                        weight += scale * (up @ down).view_as(weight)
        return pipeline


@pytest.fixture(scope="module", params=["SD", "SDXL"])
def family(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Family:
    folder = tmp_path_factory.mktemp("lora")
    if request.param == "SD":
        return Family(tiny_checkpoint, folder, FusionPipeline, StableDiffusionPipeline)
    checkpoint = write_tiny_xl_checkpoint(folder / "checkpoint")
    return Family(checkpoint, folder, FusionXLPipeline, StableDiffusionXLPipeline)


FACES = {"references": [face(1), face(2)], "strengths": [1.0, 0.5]}


def test_a_lora_is_seen_by_fused_attention_as_if_it_were_in_the_weights(family: Family) -> None:
    """In the image and in the references' own pass, in every layer that the LoRA changes."""
    pipeline = family.load()
    before = generate(pipeline, "a face", **FACES)
    pipeline.load_lora_weights(family.folder / "first")
    with_lora = generate(pipeline, "a face", **FACES)
    assert not same(with_lora, before)
    assert not same(with_lora, generate(pipeline, "a face")), "the faces are still there"
    for layer in cross_attention_layers(pipeline.unet).values():
        assert conditioning_of(layer) is None
    merged = family.merged({"first": 1})
    assert same(with_lora, generate(merged, "a face", **FACES))
    modes = {"timestep_mode": "shared", "guidance_mode": "separate", "identity_guidance_scale": 3}
    shared = generate(pipeline, "a face", **FACES, **modes)
    assert same(shared, generate(merged, "a face", **FACES, **modes))


def test_two_loras_each_with_a_weight(family: Family) -> None:
    pipeline = family.load()
    pipeline.load_lora_weights(family.folder / "first", adapter_name="one")
    pipeline.load_lora_weights(family.folder / "second", adapter_name="two")
    pipeline.set_adapters(["one", "two"], [0.5, 1.5])
    merged = family.merged({"first": 0.5, "second": 1.5})
    assert same(generate(pipeline, "a face", **FACES), generate(merged, "a face", **FACES))


def test_without_faces_it_is_diffusers_pipeline_with_that_lora_bit_by_bit(family: Family) -> None:
    pipeline, stock = family.load(), family.load(family.stock)
    for either in (pipeline, stock):
        either.load_lora_weights(family.folder / "first")
    unseen = {"references": [face(1)], "strengths": 0}
    for options in ({}, {"cross_attention_kwargs": {"scale": 0.4}}):
        expected = generate(stock, "a face", **options)
        assert np.array_equal(generate(pipeline, "a face", **unseen, **options), expected)
        assert not same(generate(pipeline, "a face", references=[face(1)], **options), expected)
        assert np.array_equal(generate(pipeline, "a face", **options), expected)


def test_unloading_gives_the_former_image_back_bit_by_bit(family: Family) -> None:
    pipeline = family.load()
    expected = generate(pipeline, "a face", **FACES)
    pipeline.load_lora_weights(family.folder / "first")
    assert not same(generate(pipeline, "a face", **FACES), expected)
    pipeline.disable_lora()
    assert np.array_equal(generate(pipeline, "a face", **FACES), expected)
    pipeline.enable_lora()
    pipeline.unload_lora_weights()
    assert np.array_equal(generate(pipeline, "a face", **FACES), expected)


@pytest.mark.parametrize("timestep_mode", ["clean", "shared"])
def test_the_scale_of_a_call_holds_for_the_references_too(
    timestep_mode: str, family: Family
) -> None:
    pipeline = family.load()
    arguments = {**FACES, "timestep_mode": timestep_mode}
    without = generate(pipeline, "a face", **arguments)
    pipeline.load_lora_weights(family.folder / "first", adapter_name="one")
    nothing = generate(pipeline, "a face", cross_attention_kwargs={"scale": 0}, **arguments)
    assert same(nothing, without)
    half = generate(pipeline, "a face", cross_attention_kwargs={"scale": 0.5}, **arguments)
    pipeline.set_adapters("one", 0.5)
    assert same(half, generate(pipeline, "a face", **arguments))
    merged = family.merged({"first": 0.5})
    assert same(half, generate(merged, "a face", **arguments))


def test_other_pipelines_of_the_same_unet_have_the_lora(family: Family) -> None:
    restyle = FusionImg2ImgPipeline if family.cls is FusionPipeline else FusionXLImg2ImgPipeline
    pipeline = family.load()
    pipeline.load_lora_weights(family.folder / "first")
    options = {"image": face(7, (32, 32)), "strength": 0.7, **FACES}
    restyled = generate(restyle.from_pipe(pipeline), "a face", **options)
    merged = restyle.from_pipe(family.merged({"first": 1}))
    assert same(restyled, generate(merged, "a face", **options))


def kohya(state: dict[str, Tensor], original: dict[str, str] | None) -> dict[str, Tensor]:
    """A LoRA as kohya's sd-scripts write it; for SDXL under the original code's layer names."""
    encoders = ("lora_te", "") if original is None else ("lora_te1", "lora_te2")
    prefixes = dict(zip(LAYERS, ("lora_unet", *encoders), strict=True))
    written = {}
    for key, weight in state.items():
        component, rest = key.split(".", 1)
        layer, part = rest.split(".lora_")
        if component != "unet":
            layer = f"text_model.{layer.removeprefix('text_model.')}"
        elif original is not None:
            layer = original[layer]
        name = f"{prefixes[component]}_{layer.replace('.', '_')}"
        written[f"{name}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = weight
        written[f"{name}.alpha"] = torch.tensor(1.0)  # of a rank of 2: half of the effect
    return written


def test_a_lora_in_kohyas_format(family: Family, tmp_path: Path) -> None:
    pipeline = family.load()
    original = original_unet_names(pipeline.unet) if family.cls is FusionXLPipeline else None
    state = kohya(load_file(family.folder / "first" / FILE), original)
    save_file(state, tmp_path / "style.safetensors")
    pipeline.load_lora_weights(tmp_path / "style.safetensors")
    merged = family.merged({"first": 0.5})
    assert same(generate(pipeline, "a face", **FACES), generate(merged, "a face", **FACES))


Change = Callable[[Any, Path], Any]
CHANGES: dict[str, Change] = {
    "loaded": lambda pipeline, lora: pipeline.load_lora_weights(lora, adapter_name="second"),
    "scaled": lambda pipeline, _: pipeline.set_adapters("first", 0.7),
    "disabled": lambda pipeline, _: pipeline.disable_lora(),
    "unloaded": lambda pipeline, _: pipeline.unload_lora_weights(),
}


@pytest.fixture
def with_lora(family: Family) -> Iterator[Any]:
    pipeline = family.load()
    pipeline.load_lora_weights(family.folder / "first", adapter_name="first")
    yield pipeline


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_cache_belongs_to_the_lora_it_was_made_with(
    change: Change, with_lora: Any, family: Family
) -> None:
    cache = with_lora.encode_references(FACES["references"])
    expected = generate(with_lora, "a face", **FACES)
    cached = {"references": cache, "strengths": FACES["strengths"]}
    assert np.array_equal(generate(with_lora, "a face", **cached), expected)
    change(with_lora, family.folder / "second")
    with pytest.raises(FusionError, match="references were encoded .* other LoRA weights"):
        generate(with_lora, "a face", **cached)
    assert not same(generate(with_lora, "a face", **FACES), expected), "a stale cache would matter"


def test_a_cache_from_before_a_lora_serves_again_after_it(family: Family) -> None:
    pipeline = family.load()
    cache = pipeline.encode_references(face(1))
    expected = generate(pipeline, "a face", references=cache)
    pipeline.load_lora_weights(family.folder / "first")
    with pytest.raises(FusionError, match="encode them again"):
        generate(pipeline, "a face", references=cache)
    later = pipeline.encode_references(face(1))
    with pytest.raises(FusionError, match=r"caches\[1\] was made .* another LoRA"):
        ReferenceCache.stack([cache, later])
    pipeline.unload_lora_weights()
    assert np.array_equal(generate(pipeline, "a face", references=cache), expected)


def test_a_cache_knows_its_lora_fused_saved_and_in_half_precision(
    with_lora: Any, family: Family, tmp_path: Path
) -> None:
    with_lora.encode_references(face(1)).save(tmp_path / "face.safetensors")
    cache = ReferenceCache.load(tmp_path / "face.safetensors")
    expected = generate(with_lora, "a face", references=cache)
    with_lora.fuse_lora()  # adds it to the weights, which comes to the same
    assert same(generate(with_lora, "a face", references=cache), expected)
    half = family.load(dtype=torch.bfloat16)
    with pytest.raises(FusionError, match="other LoRA weights"):
        generate(half, "a face", references=cache)
    half.load_lora_weights(family.folder / "first")
    assert np.isfinite(generate(half, "a face", references=cache)).all()


def test_a_cache_cannot_be_scaled_by_a_call(with_lora: Any) -> None:
    cache = with_lora.encode_references(face(1))
    with pytest.raises(FusionError, match="references must be images with cross_attention_kwargs"):
        generate(with_lora, "a face", references=cache, cross_attention_kwargs={"scale": 0.5})
    scale_one = {"cross_attention_kwargs": {"scale": 1.0}}
    expected = generate(with_lora, "a face", references=cache)
    assert np.array_equal(generate(with_lora, "a face", references=cache, **scale_one), expected)
    with_lora.unload_lora_weights()
    plain = with_lora.encode_references(face(1))
    without = {"cross_attention_kwargs": {"scale": 0.5}}  # of no effect, and no error
    assert np.isfinite(generate(with_lora, "a face", references=plain, **without)).all()


def test_a_sample_of_weights_whatever_their_type_and_the_defaults() -> None:
    rows = [torch.arange(8.0), torch.tensor([0.5, -2.0, 1.0])]
    expected = torch.stack([rows[0], torch.tensor([0.5, -2, 1, 0, 0, 0, 0, 0])])
    small = [rows[0].to(torch.float8_e4m3fn), rows[1].half()]  # layerwise casting keeps some
    mixed = [rows[0].half(), rows[1].bfloat16()]
    for given in (rows, small, mixed):
        found = sample_of_weights(given)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert (
                torch.equal(sample_of_weights(rows), expected)
                and sample_of_weights(rows).dtype == torch.float32
            )
    finally:
        torch.set_default_dtype(torch.float32)


def test_fingerprints_of_a_unet(family: Family) -> None:
    pipeline = family.load()
    before = fingerprint_of_unet(pipeline.unet)
    assert before is not None and before.dtype == torch.float32
    assert torch.equal(before, fingerprint_of_unet(torch.compile(pipeline.unet)))
    pipeline.load_lora_weights(family.folder / "first")
    merged = fingerprint_of_unet(family.merged({"first": 1}).unet)
    torch.testing.assert_close(fingerprint_of_unet(pipeline.unet), merged)
    weight = pipeline.unet.conv_in.weight
    pipeline.unet.conv_in.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    assert fingerprint_of_unet(pipeline.unet) is None, "it is quantised"
    pipeline.unet.conv_in.weight = weight
    assert fingerprint_of_unet(pipeline.unet) is not None
    pipeline.unet.conv_in.to("meta")
    assert fingerprint_of_unet(pipeline.unet) is None
