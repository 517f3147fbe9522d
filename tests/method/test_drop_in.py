"""In the place of diffusers' own pipelines: what their users, tools and tests rely on."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0
from test_pipeline import face, generate, same

from fusionlib import (
    FusionAdapter,
    FusionError,
    FusionImg2ImgPipeline,
    FusionPipeline,
    FusionXLImg2ImgPipeline,
    FusionXLPipeline,
)
from tests.helpers.published import write_ip_adapter
from tests.helpers.tiny import write_tiny_xl_checkpoint

FACES: dict[str, Any] = {"references": [face(1)]}


def load(checkpoint: Path, cls: Any = FusionPipeline, **options: Any) -> Any:
    pipeline = cls.from_pretrained(checkpoint, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline: Any, **options: Any) -> np.ndarray:
    """What ``generate`` makes, without a prompt."""
    seeds = [torch.Generator().manual_seed(0)]
    return pipeline(generator=seeds, num_inference_steps=3, output_type="np", **options).images


@pytest.fixture(scope="module")
def ip_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ip_adapter(tmp_path_factory.mktemp("ip-adapter"))


@pytest.fixture(scope="module")
def xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_xl_checkpoint(tmp_path_factory.mktemp("xl"))


def load_ip_adapter(pipeline: Any, folder: Path) -> dict[str, Any]:
    """Load an IP-Adapter as its users do; the argument of a call that it then needs."""
    pipeline.load_ip_adapter(
        str(folder), subfolder="models", weight_name="ip-adapter_sd15.safetensors"
    )
    return {"ip_adapter_image": face(5)}


@pytest.mark.parametrize(
    ("cls", "stock"),
    [
        (FusionPipeline, StableDiffusionPipeline),
        (FusionImg2ImgPipeline, StableDiffusionImg2ImgPipeline),
        (FusionXLImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline),
    ],
)
def test_the_signature_is_the_stock_one_and_ours(cls: Any, stock: Any) -> None:
    mine = list(inspect.signature(cls.__call__).parameters.values())
    theirs = list(inspect.signature(stock.__call__).parameters.values())
    assert mine[: len(theirs) - 1] == theirs[:-1], "in the same order, with the same defaults"
    added = mine[len(theirs) - 1 : -1]
    assert "references" in [each.name for each in added]
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in added)


def test_arguments_may_be_given_by_their_place(tiny_checkpoint: Path) -> None:
    pipeline, stock = load(tiny_checkpoint), load(tiny_checkpoint, StableDiffusionPipeline)
    options = {"output_type": "np", "generator": torch.Generator().manual_seed(0)}
    expected = stock("a face", 32, 24, 2, **options).images
    options["generator"].manual_seed(0)
    assert np.array_equal(pipeline("a face", 32, 24, 2, **options).images, expected)
    with pytest.raises(FusionError, match="height is given twice"):
        pipeline("a face", 32, height=32)
    with pytest.raises(FusionError, match="references are given by their name"):
        pipeline("a face", [face(1)])


def test_an_ip_adapter_and_faces_are_seen_together(tiny_checkpoint: Path, ip_adapter: Path) -> None:
    pipeline, stock = load(tiny_checkpoint), load(tiny_checkpoint, StableDiffusionPipeline)
    base, faces_alone = generate(pipeline, "a face"), generate(pipeline, "a face", **FACES)
    cache = pipeline.encode_references(FACES["references"])
    keys = set(pipeline.unet.state_dict())
    image = load_ip_adapter(pipeline, ip_adapter)
    load_ip_adapter(stock, ip_adapter)

    loaded = set(pipeline.unet.state_dict())
    assert loaded > keys
    expected = generate(stock, "a face", **image)
    assert np.array_equal(generate(pipeline, "a face", **image), expected)
    both = generate(pipeline, "a face", **image, **FACES)
    assert not same(both, expected) and not same(both, faces_alone)
    assert same(generate(pipeline, "a face", **image, references=cache), both)
    off = generate(pipeline, "a face", **image, **FACES, strengths=0)
    assert np.array_equal(off, expected)
    assert set(pipeline.unet.state_dict()) == loaded, "a call leaves the IP-Adapter where it was"
    modes = {"timestep_mode": "shared", "guidance_mode": "separate"}
    assert not same(generate(pipeline, "a face", **image, **FACES, **modes), both)

    pipeline.set_ip_adapter_scale(0.0)
    assert same(generate(pipeline, "a face", **image, **FACES), faces_alone)
    pipeline.set_ip_adapter_scale(0.5)
    weaker = generate(pipeline, "a face", **image, **FACES)
    assert not same(weaker, both) and not same(weaker, faces_alone)

    pipeline.unload_ip_adapter()
    assert set(pipeline.unet.state_dict()) == keys
    assert np.array_equal(generate(pipeline, "a face"), base)
    assert np.array_equal(generate(pipeline, "a face", **FACES), faces_alone)


def test_masks_of_an_ip_adapter_count_beside_faces(tiny_checkpoint: Path, ip_adapter: Path) -> None:
    pipeline = load(tiny_checkpoint)
    image = load_ip_adapter(pipeline, ip_adapter)
    nowhere, everywhere = torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)
    shown = generate(pipeline, "a face", **image, **FACES)

    def masked(mask: torch.Tensor) -> np.ndarray:
        options = {"cross_attention_kwargs": {"ip_adapter_masks": [mask]}}
        return generate(pipeline, "a face", **image, **FACES, **options)

    assert same(masked(everywhere), shown)
    hidden = masked(nowhere)
    pipeline.unload_ip_adapter()
    assert same(hidden, generate(pipeline, "a face", **FACES))


def test_a_fused_layer_with_an_ip_adapter_by_hand(tiny_checkpoint: Path, ip_adapter: Path) -> None:
    """h' = to_out(softmax over text and faces + scale * softmax over the image), by einsum."""
    pipeline = load(tiny_checkpoint)
    load_ip_adapter(pipeline, ip_adapter)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    layer = pipeline.unet.get_submodule(name)
    layer.processor.scale = [0.7]
    generator = torch.Generator().manual_seed(0)
    width = layer.to_k.in_features
    hidden = torch.randn(1, 16, layer.query_dim, generator=generator)
    text, prompt = (torch.randn(1, n, width, generator=generator) for n in (7, 4))
    inner = layer.inner_dim
    face_key, face_value = (torch.randn(1, 16, inner, generator=generator) for _ in range(2))
    cache = [
        {
            each: (face_key, face_value)
            if each == name
            else (torch.zeros(1, 1, inner), torch.zeros(1, 1, inner))
            for each, (_, inner) in pipeline.adapter.config["layers"].items()
        }
    ]

    def heads(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.double().reshape(1, -1, layer.heads, inner // layer.heads)

    def attended(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query = heads(layer.to_q(hidden))
        logits = torch.einsum("bqhd,bkhd->bhqk", query, heads(key)) * query.shape[-1] ** -0.5
        found = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), heads(value))
        return found.reshape(1, -1, inner)

    theirs = layer.processor
    with torch.no_grad(), pipeline.adapter.conditioned(cache):
        found = layer(hidden, (text, [prompt[:, None]]))
        fused = attended(
            torch.cat([layer.to_k(text), face_key], 1), torch.cat([layer.to_v(text), face_value], 1)
        )
        image = attended(theirs.to_k_ip[0](prompt), theirs.to_v_ip[0](prompt))
        expected = layer.to_out[0]((fused + 0.7 * image).float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_stock_pipeline_with_an_ip_adapter_is_left_alone(
    tiny_checkpoint: Path, ip_adapter: Path
) -> None:
    stock = load(tiny_checkpoint, StableDiffusionPipeline)
    image = load_ip_adapter(stock, ip_adapter)
    expected, keys = generate(stock, "a face", **image), list(stock.unet.state_dict())
    fusion = FusionPipeline.from_pipe(stock, adapter=FusionAdapter.from_unet(stock.unet))
    fusion.set_progress_bar_config(disable=True)
    generate(fusion, "a face", **image, **FACES)
    assert np.array_equal(generate(stock, "a face", **image), expected)
    assert list(stock.unet.state_dict()) == keys
    stock.set_ip_adapter_scale(0.0)
    assert not same(generate(stock, "a face", **image), expected)
    stock.unload_ip_adapter()
    assert not any(
        isinstance(each, IPAdapterAttnProcessor2_0) for each in stock.unet.attn_processors.values()
    )


def test_diffusers_own_switches_find_what_they_look_for(tiny_checkpoint: Path) -> None:
    pipeline = load(tiny_checkpoint)
    expected = generate(pipeline, "a face", **FACES)
    pipeline.unet.set_default_attn_processor()
    assert {type(each) for each in pipeline.unet.attn_processors.values()} == {AttnProcessor}
    assert same(generate(pipeline, "a face", **FACES), expected)


def test_another_unet_may_take_the_place_of_the_first(tiny_checkpoint: Path) -> None:
    pipeline, other = load(tiny_checkpoint), load(tiny_checkpoint)
    expected = generate(pipeline, "a face", **FACES)
    former, pipeline.unet = pipeline.unet, other.unet
    assert np.array_equal(generate(pipeline, "a face", **FACES), expected)
    assert pipeline.adapter.unet is other.unet
    pipeline.unet = former
    assert np.array_equal(generate(pipeline, "a face", **FACES), expected)


def test_components_go_into_stock_classes_where_there_is_no_adapter(tiny_checkpoint: Path) -> None:
    stock = load(tiny_checkpoint, StableDiffusionPipeline)
    fusion = FusionPipeline(**stock.components)
    assert fusion.components == stock.components
    assert StableDiffusionPipeline(**fusion.components, requires_safety_checker=False)
    assert "adapter" in load(tiny_checkpoint).components


@pytest.mark.parametrize(
    ("dtype", "adapter"),
    [
        ({"default": torch.bfloat16}, torch.bfloat16),
        ({"default": torch.bfloat16, "adapter": torch.float16}, torch.float16),
        ({"unet": torch.bfloat16}, torch.float32),
    ],
)
@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
def test_a_dtype_for_each_component(
    dtype: dict[str, torch.dtype], adapter: torch.dtype, own: bool, tiny_checkpoint: Path
) -> None:
    given = {} if own else {"adapter": tiny_checkpoint / "adapter"}
    pipeline = load(tiny_checkpoint, dtype=dtype, **given)
    assert pipeline.adapter.dtype == adapter
    assert pipeline.dtype == pipeline.text_encoder.dtype, "whatever the adapter's"


def test_a_hub_id_brings_its_adapter(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a saved pipeline; the download is the only thing that is simulated."""
    saved = load(tiny_checkpoint)
    saved.save_pretrained(tmp_path)
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["token"], options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(FusionPipeline, "download", download)
    pipeline = load("someone/faces", token="secret", revision="v2")
    assert asked == [("someone/faces", "secret", "v2")]
    assert same(generate(pipeline, "a face", **FACES), generate(saved, "a face", **FACES))


def test_access_to_the_hub_holds_for_an_adapter_of_its_own(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(tiny_checkpoint, StableDiffusionPipeline)
    adapter, asked = FusionAdapter.from_unet(base.unet), []

    def load_it(name: str, **options: Any) -> FusionAdapter:
        asked.append((name, options))
        return adapter

    monkeypatch.setattr(FusionAdapter, "from_pretrained", load_it)
    options = {"token": "secret", "cache_dir": "/cache", "local_files_only": True}
    components = {name: part for name, part in base.components.items() if part is not None}
    FusionPipeline.from_pretrained(
        tiny_checkpoint, adapter="someone/adapter", revision="v2", **components, **options
    )
    assert asked == [("someone/adapter", {"dtype": None, "variant": None, **options})]


def test_references_without_a_text_encoder(tiny_checkpoint: Path) -> None:
    pipeline = load(tiny_checkpoint)
    expected = generate(pipeline, "a face", **FACES)
    prompt, negative = pipeline.encode_prompt("a face", "cpu", 1, True)
    later = load(tiny_checkpoint, text_encoder=None, tokenizer=None)
    given = {"prompt_embeds": prompt, "negative_prompt_embeds": negative}

    def without(**options: Any) -> np.ndarray:
        return paint(later, **given, **options)

    assert same(without(**FACES, reference_prompt_embeds=negative), expected)
    with pytest.warns(UserWarning, match="negative_prompt_embeds"):
        assert same(without(**FACES), expected)
    cache = later.encode_references(FACES["references"], reference_prompt_embeds=negative)
    assert same(without(references=cache), expected)
    with pytest.raises(FusionError, match="reference_prompt_embeds are needed"):
        later.encode_references(FACES["references"])
    with pytest.raises(FusionError, match="reference_prompt_embeds are needed"):
        paint(later, prompt_embeds=prompt, guidance_scale=1.0, **FACES)
    assert without(negative_prompt=None).shape == (1, 32, 32, 3)


def test_sdxl_references_without_text_encoders(xl_checkpoint: Path) -> None:
    pipeline = load(xl_checkpoint, FusionXLPipeline)
    expected = generate(pipeline, "a face", **FACES)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
             "negative_pooled_prompt_embeds")  # fmt: skip
    embeds = pipeline.encode_prompt("a face", device="cpu", do_classifier_free_guidance=True)
    given = dict(zip(names, embeds, strict=True))
    gone = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    later = load(xl_checkpoint, FusionXLPipeline, **gone)
    own = {
        "reference_prompt_embeds": embeds[1],
        "reference_pooled_prompt_embeds": embeds[3],
    }
    assert same(paint(later, **given, **own, **FACES), expected)
    with pytest.warns(UserWarning, match="negative_prompt_embeds"):
        assert same(paint(later, **given, **FACES), expected)
    with pytest.raises(FusionError, match="reference_pooled_prompt_embeds"):
        paint(later, **given, **FACES, reference_prompt_embeds=embeds[1])


def test_the_refiner_takes_an_aesthetic_score(xl_checkpoint: Path) -> None:
    pipeline = load(xl_checkpoint, FusionXLImg2ImgPipeline)
    unet = type(pipeline.unet).from_config(
        pipeline.unet.config,
        projection_class_embeddings_input_dim=(
            pipeline.unet.config.projection_class_embeddings_input_dim
            - pipeline.unet.config.addition_time_embed_dim
        ),
    )
    refiner = FusionXLImg2ImgPipeline(
        **{**pipeline.components, "unet": unet, "adapter": FusionAdapter.from_unet(unet)},
        requires_aesthetics_score=True,
    )
    refiner.set_progress_bar_config(disable=True)
    start = {"image": face(7, (32, 32)), "strength": 0.7}
    base = generate(refiner, "a face", **start)
    assert not same(generate(refiner, "a face", **start, **FACES), base)


def test_a_tiny_autoencoder(tiny_checkpoint: Path) -> None:
    pipeline = load(tiny_checkpoint)
    torch.manual_seed(0)
    pipeline.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()
    base = generate(pipeline, "a face")
    assert not same(generate(pipeline, "a face", **FACES), base)


def test_an_adapter_stored_in_eight_bits(tiny_checkpoint: Path) -> None:
    """Diffusers' layerwise casting: its input stays in the type that it computes in."""
    pipeline = load(tiny_checkpoint)
    expected = generate(pipeline, "a face", **FACES)
    pipeline.adapter.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert next(pipeline.adapter.parameters()).dtype == torch.float8_e4m3fn
    found = generate(pipeline, "a face", **FACES)
    assert np.abs(found - expected).mean() < 0.02 and not same(found, generate(pipeline, "a face"))


def test_quantised_weights_have_no_fingerprint(tiny_checkpoint: Path) -> None:
    """As torchao's are tensors of their own kind, which claim to be floating-point."""

    class Quantised(torch.Tensor):
        pass

    pipeline = load(tiny_checkpoint)
    expected = generate(pipeline, "a face", **FACES)
    layer = pipeline.unet.conv_out
    weight = layer.weight.detach().as_subclass(Quantised)
    del layer.weight
    layer.weight = weight
    cache = pipeline.encode_references(FACES["references"])
    assert cache.unet_fingerprint is None
    assert same(generate(pipeline, "a face", references=cache), expected)


def test_numbers_of_numpy(tiny_checkpoint: Path) -> None:
    pipeline = load(tiny_checkpoint)
    images = generate(pipeline, "a face", num_images_per_prompt=np.int64(2), generator=None)
    assert images.shape[0] == 2


def test_a_checkpoint_brings_its_sampling_defaults(tiny_checkpoint: Path, tmp_path: Path) -> None:
    stock = load(tiny_checkpoint, StableDiffusionPipeline)
    own = {"num_inference_steps": 2, "guidance_scale": 3.0}
    pipeline = FusionPipeline(**stock.components, sampling_defaults=own)
    pipeline.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.sampling_defaults == own and stock.config.get("sampling_defaults") is None
    other = FusionImg2ImgPipeline.from_pipe(again)
    assert other.sampling_defaults == own
    seed = torch.Generator()

    def images(pipeline: Any, **options: Any) -> np.ndarray:
        options = {"generator": seed.manual_seed(0), "output_type": "np", **options}
        return pipeline("a face", **options).images

    assert np.array_equal(images(again), images(stock, **own))
    given = {"num_inference_steps": 3, "guidance_scale": 1.0}
    assert np.array_equal(images(again, **given), images(stock, **given)), "the caller decides"
    with pytest.raises(FusionError, match=r"guidance_scale of sampling_defaults"):
        FusionPipeline(**stock.components, sampling_defaults={"guidance_scale": -1})


@pytest.mark.parametrize("size", [(34, 32), (32, 30), (0, 32), (32.0, 32), (True, 32)])
def test_a_size_is_not_rounded_without_a_word(size: tuple[Any, Any], tiny_checkpoint: Path) -> None:
    pipeline = load(tiny_checkpoint)
    height, width = size
    with pytest.raises(FusionError, match="height|width"):
        generate(pipeline, "a face", height=height, width=width)
    with pytest.raises(FusionError, match="height|width"):
        pipeline.encode_references(FACES["references"], height=height, width=width)
    with pytest.raises(FusionError, match="divisible by 4, such as 32 or 36"):
        generate(pipeline, "a face", height=34)


def test_a_start_of_another_size_is_rounded_with_a_word(tiny_checkpoint: Path) -> None:
    pipeline = load(tiny_checkpoint, FusionImg2ImgPipeline)
    with pytest.warns(UserWarning, match="34 x 41 pixels.* it is scaled to 32 x 40"):
        images = generate(pipeline, "a face", image=face(7, (34, 41)), strength=0.5)
    assert images.shape == (1, 40, 32, 3)
