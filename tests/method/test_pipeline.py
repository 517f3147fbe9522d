"""The pipeline a user calls, on a tiny checkpoint in the Stable Diffusion layout."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

import fusionlib
from fusionlib import FusionAdapter, FusionError, FusionPipeline, encode_references
from fusionlib.pipeline import prepare_reference
from fusionlib.profiles import load_profile
from fusionlib.profiles.loading import adapter_of, quietly
from fusionlib.unet_layers import cross_attention_layers


def face(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """A smooth random picture of ``(width, height)``."""
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def generate(pipeline: StableDiffusionPipeline, prompt: str | list[str], **arguments) -> np.ndarray:
    """Images ``(n, height, width, 3)`` in [0, 1]; image i starts from seed i whatever the batch."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    count = len(prompts) * arguments.get("num_images_per_prompt", 1)
    defaults = {
        "generator": [torch.Generator().manual_seed(i) for i in range(count)],
        "num_inference_steps": 3,
        "output_type": "np",
    }
    return pipeline(prompt, **(defaults | arguments)).images


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal up to rounding, far below one step of 8 bits."""
    return one.shape == other.shape and float(np.abs(one - other).max()) < 2e-4


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> FusionPipeline:
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> StableDiffusionPipeline:
    base = StableDiffusionPipeline.from_pretrained(tiny_checkpoint)
    base.set_progress_bar_config(disable=True)
    return base


def test_without_faces_it_is_stable_diffusion_bit_by_bit(
    pipeline: FusionPipeline, base: StableDiffusionPipeline
) -> None:
    expected = generate(base, "a face")
    assert np.array_equal(generate(pipeline, "a face"), expected)
    assert np.array_equal(generate(pipeline, "a face", references=[]), expected)
    faces = [face(1), face(2)]
    assert np.array_equal(generate(pipeline, "a face", references=faces, strengths=0), expected)
    assert not same(generate(pipeline, "a face", references=faces, strengths=0.2), expected)
    assert np.array_equal(generate(pipeline, "a face"), expected), "faces outlived their call"


def test_seeds_and_prompts_and_faces_matter(pipeline: FusionPipeline) -> None:
    first = generate(pipeline, "a face", references=[face(1)])
    assert np.array_equal(generate(pipeline, "a face", references=[face(1)]), first)
    other_seed = [torch.Generator().manual_seed(9)]
    assert not same(generate(pipeline, "a face", references=[face(1)], generator=other_seed), first)
    assert not same(generate(pipeline, "a face", references=[face(2)]), first)
    assert not same(generate(pipeline, "of a", references=[face(1)]), first)


def test_cached_references_give_the_same_image(pipeline: FusionPipeline) -> None:
    faces = [face(1), face(2)]
    cache = pipeline.encode_references(faces)
    assert len(cache) == 2
    expected = generate(pipeline, "a face", references=faces)
    for _ in range(2):
        assert np.array_equal(generate(pipeline, "a face", references=cache), expected)


def test_references_are_encoded_from_the_mean_of_the_scaled_latents(
    pipeline: FusionPipeline,
) -> None:
    image = face(1, size=(32, 32))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    empty = pipeline.tokenizer(
        "",
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        return_tensors="pt",
    )
    with torch.no_grad():
        latents = 0.18215 * pipeline.vae.encode(pixels).latent_dist.mean
        empty_prompt = pipeline.text_encoder(empty.input_ids)[0]
        expected = pipeline.adapter.project(encode_references(pipeline.unet, latents, empty_prompt))
    (cached,) = pipeline.encode_references(image)
    for name, (key, value) in expected.items():
        torch.testing.assert_close(cached[name], (key, value), rtol=1e-4, atol=1e-5)


def test_order_of_references_does_not_matter(pipeline: FusionPipeline) -> None:
    one_two = generate(pipeline, "a face", references=[face(1), face(2)], strengths=[0.4, 1.5])
    two_one = generate(pipeline, "a face", references=[face(2), face(1)], strengths=[1.5, 0.4])
    assert same(one_two, two_one)


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_batch_is_each_image_alone(pipeline: FusionPipeline, guidance_scale: float) -> None:
    prompts, faces = ["a face", "of a"], [face(1), face(2)]
    options = {"guidance_scale": guidance_scale}
    shared = generate(
        pipeline, prompts, references=faces, strengths=[1, 0.5], num_images_per_prompt=2, **options
    )
    own = generate(
        pipeline, prompts, references=[[face(1)], [face(2)]], num_images_per_prompt=2, **options
    )
    assert shared.shape == own.shape == (4, 32, 32, 3)
    for i in range(4):
        for batch, alone in (
            (shared, {"references": faces, "strengths": [1, 0.5]}),
            (own, {"references": faces[i // 2]}),
        ):
            seed = torch.Generator().manual_seed(i)
            image = generate(pipeline, prompts[i // 2], generator=seed, **alone, **options)
            assert same(batch[i : i + 1], image)


def test_a_strength_for_each_image(pipeline: FusionPipeline) -> None:
    ramp = torch.tensor([0.0, 0.5, 1.0])
    images = generate(
        pipeline, "a face", references=[face(1)], strengths=[ramp], num_images_per_prompt=3
    )
    for i, strength in enumerate(ramp.tolist()):
        generator = torch.Generator().manual_seed(i)
        alone = generate(
            pipeline, "a face", references=[face(1)], strengths=strength, generator=generator
        )
        assert same(images[i : i + 1], alone)


def test_prompt_embeds(pipeline: FusionPipeline) -> None:
    expected = generate(pipeline, "a face", references=[face(1)])
    positive, negative = pipeline.encode_prompt("a face", "cpu", 1, True)
    images = pipeline(
        references=[face(1)],
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        generator=[torch.Generator().manual_seed(0)],
        num_inference_steps=3,
        output_type="np",
    ).images
    assert np.array_equal(images, expected)
    positive, negative = pipeline.encode_prompt(["a face", "of a"], "cpu", 1, True)
    several = pipeline(
        references=[face(1)],
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        num_inference_steps=3,
        output_type="np",
    ).images
    assert np.array_equal(several, generate(pipeline, ["a face", "of a"], references=[face(1)]))


def test_identity_masks(pipeline: FusionPipeline) -> None:
    faces = [face(1), face(2)]
    left = np.zeros((2, 32, 32), dtype=bool)
    left[0, :, :16], left[1, :, 16:] = True, True
    apart = generate(pipeline, "a face", references=faces, identity_masks=left)
    assert not same(apart, generate(pipeline, "a face", references=faces))
    swapped = generate(
        pipeline, "a face", references=faces[::-1], identity_masks=left, reference_identity=[1, 0]
    )
    assert same(apart, swapped)
    drawn = [Image.fromarray(np.where(mask, 128, 127).astype(np.uint8)) for mask in left]
    assert np.array_equal(
        apart, generate(pipeline, "a face", references=faces, identity_masks=drawn)
    )
    everywhere = torch.ones(1, 32, 32, dtype=torch.bool)
    morphed = generate(
        pipeline,
        "a face",
        references=faces,
        identity_masks=everywhere,
        reference_identity=[0, 0],
    )
    assert same(morphed, generate(pipeline, "a face", references=faces))


def test_other_sizes(pipeline: FusionPipeline) -> None:
    masks = torch.zeros(2, 48, 40, dtype=torch.bool)
    masks[0, :20], masks[1, 20:] = True, True
    images = generate(
        pipeline,
        "a face",
        references=[face(1), face(2)],
        identity_masks=masks,
        height=48,
        width=40,
    )
    assert images.shape == (1, 48, 40, 3)


@pytest.mark.parametrize(
    "scheduler", [DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler]
)
def test_any_scheduler(tiny_checkpoint: Path, scheduler: type) -> None:
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    with_face = generate(pipeline, "a face", references=[face(1)])
    assert np.isfinite(with_face).all()
    assert not same(with_face, generate(pipeline, "a face"))


@pytest.mark.parametrize("changed", ["embeddings", "weights", "weights, as one did it before"])
def test_what_a_callback_changes_in_place_counts(pipeline: FusionPipeline, changed: str) -> None:
    """The text is projected once and kept, but not where a callback may have changed it."""
    arguments = {"references": [face(1)], "num_inference_steps": 3}
    layer = next(iter(cross_attention_layers(pipeline.unet).values()))
    texts: list[torch.Tensor] = []
    forward = layer.to_k.forward

    def project(text: torch.Tensor) -> torch.Tensor:
        texts.append(forward(text))
        return texts[-1]

    layer.to_k.forward = project

    def callback(_pipeline, step: int, _timestep, tensors: dict) -> dict:
        if step == 0 and changed == "embeddings":
            tensors["prompt_embeds"].mul_(-1)
        elif step == 0:
            layer.to_k.weight.data.neg_()
        return {}

    def former_callback(step: int, _timestep, _latents) -> None:
        callback(pipeline, step, _timestep, {})

    try:
        expected = generate(pipeline, "a face", **arguments)
        assert len(texts) == 2, "the reference's, and the prompt's once for all steps"
        texts.clear()
        given = {"callback_on_step_end": callback}
        given["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
        if changed.endswith("before"):
            given = {"callback": former_callback, "callback_steps": 1}
        found = generate(pipeline, "a face", **arguments, **given)
    finally:
        layer.to_k.forward = forward
        if changed != "embeddings":
            layer.to_k.weight.data.neg_()
    _, first, second, third = texts
    assert torch.equal(second, -first) and torch.equal(third, second)
    assert not same(found, expected)
    assert np.array_equal(generate(pipeline, "a face", **arguments), expected)


def test_callbacks(pipeline: FusionPipeline) -> None:
    steps = []

    def callback(_pipeline, step: int, _timestep, tensors: dict) -> dict:
        steps.append((step, tuple(tensors["latents"].shape)))
        return tensors

    arguments = {"references": [face(1)], "num_images_per_prompt": 2}
    expected = generate(pipeline, "a face", **arguments)
    assert np.array_equal(
        generate(pipeline, "a face", callback_on_step_end=callback, **arguments), expected
    )
    assert steps == [(i, (2, 4, 8, 8)) for i in range(3)]


def test_guidance_may_end_before_sampling_does(pipeline: FusionPipeline) -> None:
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    arguments = {"callback_on_step_end": cutoff, "num_inference_steps": 4}
    with_face = generate(pipeline, "a face", references=[face(1)], **arguments)
    assert not same(with_face, generate(pipeline, "a face", **arguments))


def test_save_and_load(pipeline: FusionPipeline, tmp_path: Path) -> None:
    expected = generate(pipeline, "a face", references=[face(1)])
    pipeline.save_pretrained(tmp_path)
    for loaded in (
        FusionPipeline.from_pretrained(tmp_path),
        FusionPipeline.from_pipe(FusionPipeline.from_pretrained(tmp_path)),
    ):
        loaded.set_progress_bar_config(disable=True)
        assert np.array_equal(generate(loaded, "a face", references=[face(1)]), expected)
    plain = StableDiffusionPipeline.from_pretrained(tmp_path)
    plain.set_progress_bar_config(disable=True)
    assert np.array_equal(generate(plain, "a face"), generate(pipeline, "a face"))


def test_adapter_from_elsewhere(
    base: StableDiffusionPipeline, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base.save_pretrained(tmp_path / "base")  # as people have it: no adapter in it
    loaded = FusionPipeline.from_pretrained(tmp_path / "base")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.adapter is None
    assert np.array_equal(generate(loaded, "a face"), generate(base, "a face"))
    with pytest.raises(FusionError, match="references need a fusion adapter"):
        generate(loaded, "a face", references=[face(1)])
    loaded.load_adapter_weights(tiny_checkpoint / "adapter")
    first = generate(loaded, "a face", references=[face(1)])
    torch.manual_seed(1)
    loaded.load_adapter_weights(FusionAdapter.from_unet(loaded.unet, init="random"))
    assert not same(generate(loaded, "a face", references=[face(1)]), first)
    by_path = FusionPipeline.from_pretrained(
        tmp_path / "base", adapter=str(tiny_checkpoint / "adapter")
    )
    by_path.set_progress_bar_config(disable=True)
    assert np.array_equal(generate(by_path, "a face", references=[face(1)]), first)


def test_attention_processors_may_be_changed(tiny_checkpoint: Path) -> None:
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    expected = generate(pipeline, "a face", references=[face(1)])
    pipeline.unet.set_attn_processor(AttnProcessor2_0())
    assert same(generate(pipeline, "a face", references=[face(1)]), expected)


def test_bfloat16(tiny_checkpoint: Path, pipeline: FusionPipeline) -> None:
    half = FusionPipeline.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.adapter.dtype == half.unet.dtype == torch.bfloat16
    cache = half.encode_references([face(1)])
    assert all(key.dtype == torch.bfloat16 for key, _ in cache[0].values())
    images = generate(half, "a face", references=cache, strengths=[0.5], guidance_scale=1.0)
    exact = generate(pipeline, "a face", references=[face(1)], strengths=[0.5], guidance_scale=1.0)
    assert np.abs(images - exact).mean() < 0.05


def test_loading_says_nothing_of_a_safety_checker(
    tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    pipeline.register_to_config(requires_safety_checker=True)  # as hub checkpoints have it
    pipeline.save_pretrained(tmp_path)
    capfd.readouterr()
    FusionPipeline.from_pretrained(tmp_path)
    assert "safety checker" not in capfd.readouterr().err


def test_prepare_reference() -> None:
    tall = Image.new("RGB", (10, 30), "red")
    tall.paste("blue", (0, 10, 10, 20))
    middle = np.asarray(prepare_reference(tall, 8, 8))
    assert (middle[..., 2] > 240).all() and (middle[..., 0] < 15).all()
    turned = tall.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
    assert prepare_reference(turned, 30, 10).tobytes() == tall.tobytes()
    clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    assert prepare_reference(clear, 4, 4).getcolors() == [(16, (255, 255, 255))]
    for mode in ("L", "P", "CMYK", "1"):
        assert prepare_reference(tall.convert(mode), 4, 4).mode == "RGB"
    deep = Image.fromarray(np.full((9, 9), 0x8000, np.uint16))  # half of 16 bits, not clipped
    assert prepare_reference(deep, 4, 4).getcolors() == [(16, (128, 128, 128))]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"references": ["face.png"]}, r"references\[0\] must be a PIL image"),
        ({"references": [[face(1)], [face(1), face(2)]]}, "references must hold equally many"),
        ({"references": [[face(1)], [face(2)]]}, "references holds faces for 2 prompts"),
        ({"strengths": [1.0]}, "strengths needs references"),
        ({"references": [face(1)], "strengths": [1.0, 2.0]}, "strengths"),
        ({"references": [face(1)], "strengths": -1}, r"strengths\[0\]"),
        ({"references": [face(1)], "identity_masks": np.ones((1, 8, 8), bool)}, "identity_masks"),
        ({"references": [face(1)], "identity_masks": np.ones((1, 32, 32))}, "identity_masks"),
        ({"references": [face(1)], "identity_masks": np.zeros((1, 32, 32), bool)}, "is empty"),
        ({"references": [face(1), face(2, (40, 1))]}, r"references\[1\] has 40 x 1 pixels"),
        (
            {
                "references": [face(1), face(2)],
                "identity_masks": [Image.new("L", (side, 32), "white") for side in (32, 16)],
            },
            "identity_masks must be .* of one size",
        ),
        ({"references": [face(1)], "reference_identity": [0]}, "identity_masks"),
    ],
)
def test_errors_name_the_argument(
    pipeline: FusionPipeline, arguments: dict[str, object], named: str
) -> None:
    with pytest.raises(FusionError, match=named):
        generate(pipeline, "a face", **arguments)


def test_models_that_cannot_be_loaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(FusionError, match=f"The model '{folder}' cannot be loaded"):
            FusionPipeline.from_pretrained(folder)
        with pytest.raises(FusionError, match=f"The adapter '{folder}' cannot be loaded"):
            FusionPipeline.from_pretrained(tiny_checkpoint, adapter=folder)


def test_a_checkpoint_brings_its_own_adapter_or_takes_the_profiles(tmp_path: Path) -> None:
    profile = load_profile("embedded").model_copy(
        update={"base_model": str(tmp_path / "base"), "adapter": "the profile's"}
    )
    other = tmp_path / "other"
    for folder in (tmp_path / "base", other):
        folder.mkdir()
    assert adapter_of(profile) == adapter_of(profile, str(other)) == "the profile's"
    (other / "adapter").mkdir()
    assert adapter_of(profile, str(other)) == "the profile's", "no adapter without config.json"
    (other / "adapter" / "config.json").touch()
    assert adapter_of(profile, str(other)) == str(other / "adapter")
    assert adapter_of(profile) == "the profile's"


def test_libraries_are_as_loud_after_loading_as_before() -> None:
    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_info()
        with pytest.raises(ValueError, match="half way"), quietly():
            assert not any(library.is_progress_bar_enabled() for library in libraries)
            for library in libraries:
                assert library.get_verbosity() == logging.ERROR
            raise ValueError("half way")
        for library in libraries:
            assert library.get_verbosity() == logging.INFO and library.is_progress_bar_enabled()
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)


def test_importing_the_package_is_light() -> None:
    """The command line answers at once; what is heavy is imported where it is used."""
    code = "import sys, fusionlib; fusionlib.FusionError; print(*sys.modules)"
    root = Path(fusionlib.__file__).parents[1]
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).split()
    assert not {"torch", "diffusers", "transformers", "numpy"} & set(loaded)
    for name in fusionlib.__all__:
        assert getattr(fusionlib, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        fusionlib.no_such_name  # noqa: B018


def test_a_reference_that_cannot_be_read_is_named(pipeline: FusionPipeline, tmp_path: Path) -> None:
    face(1, (200, 200)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for broken in (Image.open(tmp_path / "cut.png"), Image.open(tmp_path / "whole.png")):
        if broken.filename.endswith("whole.png"):
            broken.close()
        with pytest.raises(FusionError, match=r"references\[1\] cannot be read"):
            generate(pipeline, "a face", references=[face(1), broken])


def test_caches_of_several_people_make_a_group(pipeline: FusionPipeline) -> None:
    faces = [face(1), face(2)]
    caches = [pipeline.encode_references(each) for each in faces]
    expected = generate(pipeline, "a face", references=faces, strengths=[1.0, 0.5])
    assert same(generate(pipeline, "a face", references=caches, strengths=[1.0, 0.5]), expected)


def test_strengths_may_be_numpys(pipeline: FusionPipeline) -> None:
    faces = [face(1), face(2)]
    expected = generate(pipeline, "a face", references=faces, strengths=[1.0, 0.5])
    for strengths in (np.array([1.0, 0.5]), [np.float64(1), np.float32(0.5)], [np.int64(1), 0.5]):
        assert np.array_equal(
            generate(pipeline, "a face", references=faces, strengths=strengths), expected
        )
    half = generate(pipeline, "a face", references=faces, strengths=np.float32(0.5))
    assert np.array_equal(half, generate(pipeline, "a face", references=faces, strengths=0.5))


def test_masks_fit_the_image_that_latents_make(pipeline: FusionPipeline) -> None:
    noise = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    left = np.zeros((2, 32, 64), bool)
    left[0, :, :32] = left[1, :, 32:] = True
    faces, masks = [face(1), face(2)], {"identity_masks": left}
    expected = generate(
        pipeline, "a face", references=faces, latents=noise, height=32, width=64, **masks
    )
    found = generate(pipeline, "a face", references=faces, latents=noise, **masks)
    assert np.array_equal(found, expected) and found.shape[1:3] == (32, 64)
    with pytest.raises(FusionError, match=r"shape \(identities, 32, 64\) like the image"):
        generate(pipeline, "a face", references=faces, latents=noise, identity_masks=left[..., ::2])


def test_a_mask_in_the_alpha_channel_and_one_of_nobody(pipeline: FusionPipeline) -> None:
    white, halves = Image.new("LA", (32, 32), (255, 0)), []
    for side in ((0, 0, 16, 32), (16, 0, 32, 32)):
        halves.append(white.copy())
        halves[-1].paste((255, 255), side)
    opaque = [half.getchannel("A") for half in halves]
    faces = [face(1), face(2)]
    expected = generate(pipeline, "a face", references=faces, identity_masks=opaque)
    found = generate(pipeline, "a face", references=faces, identity_masks=halves)
    assert np.array_equal(found, expected)
    with pytest.warns(UserWarning, match=r"No reference belongs to identity_masks\[1\]: only"):
        generate(pipeline, "a face", references=faces[:1], identity_masks=opaque)
