"""What all pipelines of the family share, on tiny checkpoints of Stable Diffusion and SDXL."""

import importlib.util
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from PIL import Image
from safetensors.torch import save_file
from single_file import write_single_file
from test_pipeline import face, generate, same
from tiny import tiny_controlnet, tiny_unet, write_tiny_xl_checkpoint
from torch._dynamo.utils import counters

from fusionlib import FusionAdapter, FusionError
from fusionlib.pipeline import (
    FusionControlNetImg2ImgPipeline,
    FusionControlNetPipeline,
    FusionImg2ImgPipeline,
    FusionMixin,
    FusionPipeline,
    FusionXLControlNetImg2ImgPipeline,
    FusionXLControlNetPipeline,
    FusionXLImg2ImgPipeline,
    FusionXLPipeline,
    prepare_reference,
)

SD = (
    FusionPipeline,
    FusionImg2ImgPipeline,
    FusionControlNetPipeline,
    FusionControlNetImg2ImgPipeline,
)
XL = (
    FusionXLPipeline,
    FusionXLImg2ImgPipeline,
    FusionXLControlNetPipeline,
    FusionXLControlNetImg2ImgPipeline,
)
every_class = pytest.mark.parametrize("cls", [*SD, *XL], ids=lambda cls: cls.__name__)
each_family = pytest.mark.parametrize("cls", [SD[0], XL[0]], ids=["SD", "SDXL"])


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def family(first: Any, classes: tuple[type, ...]) -> dict[type, Any]:
    """A pipeline of each class, all of the same components."""
    controlnet = tiny_controlnet(first.unet)
    made = {classes[0]: first}
    for cls in classes[1:]:
        added = {"controlnet": controlnet} if "ControlNet" in cls.__name__ else {}
        made[cls] = quiet(cls.from_pipe(first, **added))
    return made


def inputs(cls: type, size: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    """The images that a class takes beside the prompt, of ``(width, height)``."""
    arguments: dict[str, Any] = {}
    if "Img2Img" in cls.__name__:
        arguments = {"image": face(7, size), "strength": 0.7}
    if "ControlNet" in cls.__name__:
        arguments["control_image" if arguments else "image"] = face(8, size)
    return arguments


@pytest.fixture(scope="module")
def xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_xl_checkpoint(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def pipelines(tiny_checkpoint: Path, xl_checkpoint: Path) -> dict[type, Any]:
    made = family(quiet(FusionPipeline.from_pretrained(tiny_checkpoint)), SD)
    return made | family(quiet(FusionXLPipeline.from_pretrained(xl_checkpoint)), XL)


@pytest.fixture(scope="module")
def stock(tiny_checkpoint: Path, xl_checkpoint: Path) -> dict[type, Any]:
    """Diffusers' own pipelines, by the class that adds faces; no weight is shared with those."""
    of_sd = quiet(StableDiffusionPipeline.from_pretrained(tiny_checkpoint))
    of_xl = quiet(StableDiffusionXLPipeline.from_pretrained(xl_checkpoint))
    made = family(of_sd, tuple(cls.__bases__[1] for cls in SD))
    made |= family(of_xl, tuple(cls.__bases__[1] for cls in XL))
    return {cls: made[cls.__bases__[1]] for cls in [*SD, *XL]}


@every_class
def test_each_is_diffusers_own_pipeline_until_it_is_shown_faces(
    cls: type, pipelines: dict[type, Any], stock: dict[type, Any]
) -> None:
    options = inputs(cls)
    expected = generate(stock[cls], "a face", **options)
    unseen = {"references": [face(1)], "strengths": 0, "guidance_mode": "separate"}
    assert np.array_equal(generate(pipelines[cls], "a face", **options), expected)
    shown = generate(pipelines[cls], "a face", references=[face(1)], **options)
    assert not same(shown, expected)
    assert np.array_equal(
        generate(pipelines[cls], "a face", timestep_mode="shared", **unseen, **options), expected
    )
    assert np.array_equal(generate(pipelines[cls], "a face", **options), expected)


@every_class
@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_separate_guidance_holds_the_joint_mode_and_the_text_alone(
    cls: type, guidance_scale: float, pipelines: dict[type, Any]
) -> None:
    options = inputs(cls) | {"guidance_scale": guidance_scale}
    arguments = options | {"references": [face(1)], "guidance_mode": "separate"}
    joint = generate(pipelines[cls], "a face", references=[face(1)], **options)
    assert same(generate(pipelines[cls], "a face", **arguments), joint)
    text_only = generate(pipelines[cls], "a face", **options)
    nothing = generate(pipelines[cls], "a face", identity_guidance_scale=0, **arguments)
    assert same(nothing, text_only)
    more = generate(pipelines[cls], "a face", identity_guidance_scale=9, **arguments)
    assert not same(more, joint)


@every_class
def test_shared_timesteps(cls: type, pipelines: dict[type, Any]) -> None:
    options = inputs(cls) | {"references": [face(1)]}
    clean = generate(pipelines[cls], "a face", **options)
    shared = generate(pipelines[cls], "a face", timestep_mode="shared", **options)
    assert np.isfinite(shared).all() and not same(shared, clean)
    assert np.array_equal(generate(pipelines[cls], "a face", **options), clean)


@torch.no_grad()
def naive(
    pipeline: Any,
    scheduler: Any,
    faces: list[Image.Image],
    *,
    text_scale: float,
    identity_scale: float,
    shared: bool,
    steps: int,
) -> np.ndarray:
    """One image of "a face" from seed 0, from the equations, one sample at a time."""
    xl = isinstance(pipeline, StableDiffusionXLPipeline)
    if xl:
        text, _, pooled, _ = pipeline.encode_prompt("a face", device="cpu")
        size = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
        nothing = torch.zeros_like(text)
        with_text = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": size}}
        without = {"added_cond_kwargs": {"text_embeds": 0 * pooled, "time_ids": size}}
    else:
        text, nothing = pipeline.encode_prompt("a face", "cpu", 1, True)
        with_text = without = {}
    layers = {n: m for n, m in pipeline.unet.named_modules() if n.endswith("attn2")}

    def seen_in(reference: torch.Tensor, timestep: Any) -> dict[str, Any]:
        entered = {}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: entered.update({name: args[0]}), with_kwargs=True
            )
            for name, layer in layers.items()
        ]
        pipeline.unet(reference, timestep, encoder_hidden_states=nothing, **without)
        for hook in hooks:
            hook.remove()
        return pipeline.adapter.project(entered)

    references = []
    for image in faces:
        pixels = np.asarray(prepare_reference(image, 32, 32)) / np.float32(127.5) - 1
        encoded = pipeline.vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        references.append(encoded.latent_dist.mean * pipeline.vae.config.scaling_factor)
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    noises = [torch.randn(1, 4, 8, 8, generator=generator) for _ in faces]
    for timestep in scheduler.timesteps:
        if shared:
            at = [
                scheduler.add_noise(reference, noise, timestep[None])
                for reference, noise in zip(references, noises, strict=True)
            ]
            at = [scheduler.scale_model_input(noised, timestep) for noised in at]
            projected = [seen_in(noised, timestep) for noised in at]
        else:  # at each step anew, which a cache must not differ from
            projected = [seen_in(reference, 0) for reference in references]
        sample = scheduler.scale_model_input(latents, timestep)
        u = pipeline.unet(sample, timestep, nothing, **without).sample
        c = pipeline.unet(sample, timestep, text, **with_text).sample
        with pipeline.adapter.conditioned(projected):
            f = pipeline.unet(sample, timestep, text, **with_text).sample
        prediction = u + text_scale * (c - u) + identity_scale * (f - c)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@each_family
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize(
    ("guidance_mode", "timestep_mode"),
    [("joint", "clean"), ("separate", "clean"), ("joint", "shared"), ("separate", "shared")],
)
def test_the_modes_are_what_the_equations_say(
    cls: type, scheduler: Any, guidance_mode: str, timestep_mode: str, pipelines: dict[type, Any]
) -> None:
    pipeline = pipelines[cls]
    former, faces = pipeline.scheduler, [face(1), face(2)]
    own = scheduler.from_config(former.config)
    separate, shared = guidance_mode == "separate", timestep_mode == "shared"
    expected = naive(
        pipeline,
        own,
        faces,
        text_scale=3.0,
        identity_scale=1.7 if separate else 3.0,
        shared=shared,
        steps=3,
    )
    try:
        pipeline.scheduler = scheduler.from_config(former.config)
        images = generate(
            pipeline,
            "a face",
            references=faces,
            guidance_scale=3.0,
            guidance_mode=guidance_mode,
            identity_guidance_scale=1.7 if separate else None,
            timestep_mode=timestep_mode,
        )
    finally:
        pipeline.scheduler = former
    assert same(images, expected)


@each_family
@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        PNDMScheduler,
    ],
)
def test_any_scheduler_in_any_mode(cls: type, scheduler: Any, pipelines: dict[type, Any]) -> None:
    pipeline = pipelines[cls]
    former = pipeline.scheduler
    try:
        pipeline.scheduler = scheduler.from_config(former.config)
        modes = {"guidance_mode": "separate", "identity_guidance_scale": 2}
        images = generate(
            pipeline,
            "a face",
            references=[face(1)],
            timestep_mode="shared",
            num_inference_steps=4,
            **modes,
        )
    finally:
        pipeline.scheduler = former
    assert np.isfinite(images).all()


@each_family
def test_a_batch_is_each_image_alone_in_every_mode(cls: type, pipelines: dict[type, Any]) -> None:
    prompts = ["a face", "of a"]
    modes = {
        "timestep_mode": "shared",
        "guidance_mode": "separate",
        "identity_guidance_scale": 3.0,
        "guidance_scale": 5.0,
    }
    ramp = torch.tensor([0.3, 1.0, 0.6, 1.5])
    batch = generate(
        pipelines[cls],
        prompts,
        references=[[face(1), face(3)], [face(2), face(4)]],
        strengths=[1.0, ramp],
        num_images_per_prompt=2,
        **modes,
    )
    assert batch.shape == (4, 32, 32, 3)
    for i in range(4):
        # of two references, each draws its noise from the image's generator in turn
        alone = generate(
            pipelines[cls],
            prompts[i // 2],
            references=[face(1 + i // 2), face(3 + i // 2)],
            strengths=[1.0, float(ramp[i])],
            generator=[torch.Generator().manual_seed(i)],
            **modes,
        )
        assert same(batch[i : i + 1], alone)


@each_family
def test_guidance_may_end_before_sampling_does(cls: type, pipelines: dict[type, Any]) -> None:
    cutoff = SDXLCFGCutoffCallback if cls is FusionXLPipeline else SDCFGCutoffCallback
    arguments = {
        "references": [face(1)],
        "callback_on_step_end": cutoff(cutoff_step_ratio=0.5),
        "num_inference_steps": 4,
    }
    joint = generate(pipelines[cls], "a face", **arguments)
    assert same(generate(pipelines[cls], "a face", guidance_mode="separate", **arguments), joint)


@each_family
def test_height_or_width_alone(cls: type, pipelines: dict[type, Any]) -> None:
    masks = np.ones((1, 40, 32), dtype=bool)
    images = generate(
        pipelines[cls], "a face", references=[face(1)], identity_masks=masks, height=40
    )
    assert images.shape == (1, 40, 32, 3)
    assert generate(pipelines[cls], "a face", width=24).shape == (1, 32, 24, 3)


@every_class
def test_masks_have_the_size_of_the_image(cls: type, pipelines: dict[type, Any]) -> None:
    """Which for image to image and ControlNet is that of the image that is given."""
    options = inputs(cls, (41, 49)) or {"height": 48, "width": 40}
    options |= {"references": [face(1), face(2), face(3)]}
    masks = np.zeros((2, 48, 40), dtype=bool)
    masks[0, :, :20], masks[1, :, 20:] = True, True
    apart = generate(
        pipelines[cls],
        "a face",
        identity_masks=masks,
        reference_identity=[0, 1, 1],
        **options,
    )
    assert apart.shape == (1, 48, 40, 3)
    assert not same(apart, generate(pipelines[cls], "a face", **options))
    with pytest.raises(FusionError, match=r"identity_masks must be .*48, 40"):
        generate(pipelines[cls], "a face", identity_masks=masks[:, :32, :32], **options)


def test_masks_for_images_given_as_tensors(pipelines: dict[type, Any]) -> None:
    masks = torch.ones(1, 40, 48, dtype=torch.bool)
    for image in (
        torch.rand(1, 3, 40, 48),
        torch.randn(1, 4, 10, 12),
        np.random.rand(1, 40, 48, 3),
    ):
        images = generate(
            pipelines[FusionImg2ImgPipeline],
            "a face",
            image=image,
            references=[face(1)],
            identity_masks=masks,
        )
        assert images.shape == (1, 40, 48, 3)


@pytest.mark.parametrize("cls", [SD[2], XL[2]], ids=["SD", "SDXL"])
def test_several_controlnets(cls: type, pipelines: dict[type, Any]) -> None:
    pipeline = pipelines[cls]
    nets: list[ControlNetModel] = [tiny_controlnet(pipeline.unet, seed) for seed in (1, 2)]
    two = quiet(cls.from_pipe(pipeline, controlnet=nets))
    layouts = [face(5, (32, 32)), face(6, (32, 32))]
    arguments = {"references": [face(1)], "guidance_mode": "separate"}
    one_way = generate(two, "a face", image=layouts, **arguments)
    other_way = generate(two, "a face", image=layouts[::-1], **arguments)
    assert not same(one_way, other_way)
    assert not same(one_way, generate(two, "a face", image=layouts))
    guessed = generate(two, "a face", image=layouts, guess_mode=True, **arguments)
    assert np.isfinite(guessed).all()
    with pytest.raises(FusionError, match="image"):
        generate(two, "a face", image=layouts[:1], **arguments)


def test_sdxl_references_are_told_their_size(pipelines: dict[type, Any]) -> None:
    pipeline = pipelines[FusionXLPipeline]
    told = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: told.append((args[1], kwargs)), with_kwargs=True
    )
    pipeline.encode_references([face(1), face(2)], height=40, width=48)
    hook.remove()
    ((timesteps, kwargs),) = told
    assert timesteps.tolist() == [0, 0]
    assert kwargs["added_cond_kwargs"]["time_ids"].tolist() == [[40, 48, 0, 0, 40, 48]] * 2
    assert not kwargs["added_cond_kwargs"]["text_embeds"].any()  # as SDXL's empty prompt is
    assert not kwargs["encoder_hidden_states"].any()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        empty, added = pipeline._empty_prompt(40, 48)
    finally:
        pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    text, _, pooled, _ = pipeline.encode_prompt("", device="cpu")
    assert torch.equal(empty, text) and torch.equal(added["text_embeds"], pooled)


def test_one_pipeline_after_another_shares_weights_and_leaks_nothing(
    pipelines: dict[type, Any],
) -> None:
    first, restyle = pipelines[FusionPipeline], pipelines[FusionImg2ImgPipeline]
    assert restyle.unet is first.unet and restyle.adapter is first.adapter
    cache = first.encode_references([face(1)])
    options = inputs(FusionImg2ImgPipeline)
    expected = generate(restyle, "a face", references=[face(1)], **options)
    assert np.array_equal(generate(restyle, "a face", references=cache, **options), expected)
    with pytest.raises(FusionError):  # in the midst of an intercepted call
        generate(first, "a face", references=[face(1)], timestep_mode="shared", height=33)
    assert np.array_equal(generate(restyle, "a face", references=cache, **options), expected)
    assert not first.unet._forward_hooks and not first.unet._forward_pre_hooks


def test_faces_are_gone_after_an_error_in_a_callback(
    pipelines: dict[type, Any], stock: dict[type, Any]
) -> None:
    def callback(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    modes = {"timestep_mode": "shared", "guidance_mode": "separate"}
    pipeline = pipelines[FusionPipeline]
    with pytest.raises(KeyboardInterrupt):
        generate(pipeline, "a face", references=[face(1)], callback_on_step_end=callback, **modes)
    assert np.array_equal(generate(pipeline, "a face"), generate(stock[FusionPipeline], "a face"))


def test_from_pipe_of_diffusers_own(
    stock: dict[type, Any], pipelines: dict[type, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = StableDiffusionPipeline.from_pretrained(tiny_checkpoint)
    made = quiet(FusionPipeline.from_pipe(base, adapter=tiny_checkpoint / "adapter"))
    expected = generate(pipelines[FusionPipeline], "a face", references=[face(1)])
    assert np.array_equal(generate(made, "a face", references=[face(1)]), expected)
    back = quiet(StableDiffusionPipeline.from_pipe(made))
    assert np.array_equal(generate(back, "a face"), generate(stock[FusionPipeline], "a face"))
    made.save_pretrained(tmp_path)
    controlnet = tiny_controlnet(made.unet)
    again = quiet(FusionControlNetPipeline.from_pretrained(tmp_path, controlnet=controlnet))
    image = face(8, (32, 32))
    assert np.array_equal(
        generate(again, "a face", references=[face(1)], image=image),
        generate(pipelines[FusionControlNetPipeline], "a face", references=[face(1)], image=image),
    )


def without_weights(folder: Path, target: Path) -> Path:
    """The configs of a checkpoint, as one keeps them for single files."""
    ignored = shutil.ignore_patterns("*.safetensors", "adapter", "clip")
    return Path(shutil.copytree(folder, target, ignore=ignored))


@each_family
def test_single_file(
    cls: type,
    pipelines: dict[type, Any],
    tiny_checkpoint: Path,
    xl_checkpoint: Path,
    tmp_path: Path,
) -> None:
    folder = tiny_checkpoint if cls is FusionPipeline else xl_checkpoint
    file = write_single_file(pipelines[cls], tmp_path / "model.safetensors")
    config = without_weights(folder, tmp_path / "config")
    loaded = quiet(cls.from_single_file(file, adapter=folder / "adapter", config=config))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected = getattr(pipelines[cls], name, None)
        if expected is not None:
            state = getattr(loaded, name).state_dict()
            assert state.keys() == expected.state_dict().keys()
            for key, weight in expected.state_dict().items():
                assert torch.equal(state[key], weight), f"{name}.{key}"
    assert same(
        generate(loaded, "a face", references=[face(1)]),
        generate(pipelines[cls], "a face", references=[face(1)]),
    )
    half = cls.from_single_file(file, config=config, dtype=torch.bfloat16)
    assert half.adapter is None and half.unet.dtype == torch.bfloat16
    own = cls.from_single_file(file, config=folder, dtype=torch.bfloat16)
    assert own.adapter.dtype == torch.bfloat16


def test_single_files_that_cannot_be_loaded(
    pipelines: dict[type, Any], tiny_checkpoint: Path, xl_checkpoint: Path, tmp_path: Path
) -> None:
    file = write_single_file(pipelines[FusionPipeline], tmp_path / "model.safetensors")
    with pytest.raises(FusionError, match=r"without a network, give config="):
        FusionPipeline.from_single_file(file)  # the hub is out of reach in tests
    with pytest.raises(FusionError, match="There is no checkpoint file"):
        FusionPipeline.from_single_file(tmp_path / "nowhere.safetensors", config=tiny_checkpoint)
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    save_file({"lora_unet.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    for name in ("page", "lora"):
        with pytest.raises(FusionError, match=f"{name}.safetensors' cannot be loaded"):
            FusionPipeline.from_single_file(
                tmp_path / f"{name}.safetensors", config=tiny_checkpoint
            )
    with pytest.raises(FusionError, match="adapter"):
        FusionPipeline.from_single_file(file, config=tiny_checkpoint, adapter=tmp_path)
    with pytest.raises(FusionError, match="config="):
        FusionXLPipeline.from_single_file(file, config=xl_checkpoint)


@pytest.fixture
def fresh(tiny_checkpoint: Path) -> Any:
    """A pipeline that a test may change."""
    return quiet(FusionPipeline.from_pretrained(tiny_checkpoint))


def test_saving_memory_does_not_lose_faces(fresh: Any, pipelines: dict[type, Any]) -> None:
    arguments = {"references": [face(1)], "num_images_per_prompt": 2, "timestep_mode": "shared"}
    expected = generate(pipelines[FusionPipeline], "a face", **arguments)
    fresh.enable_attention_slicing(1)
    fresh.vae.enable_slicing()
    assert same(generate(fresh, "a face", **arguments), expected)
    fresh.disable_attention_slicing()
    fresh.vae.enable_tiling()
    assert same(generate(fresh, "a face", **arguments), expected)
    fresh.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    freed = generate(fresh, "a face", **arguments)
    assert not same(freed, expected) and not same(freed, generate(fresh, "a face"))


def test_offloading_goes_in_an_order_and_keeps_the_faces(
    fresh: Any, pipelines: dict[type, Any]
) -> None:
    for cls, pipeline in pipelines.items():
        names = pipeline.model_cpu_offload_seq.split("->")
        assert names.index("adapter") == names.index("unet") - 1, cls
        assert names[-1] == "vae"
        assert "adapter" in pipeline._exclude_from_cpu_offload  # layer by layer: it would lose h_f
    expected = generate(pipelines[FusionPipeline], "a face", references=[face(1)])
    fresh.enable_model_cpu_offload(device="cpu")  # the hooks are those of a GPU
    assert hasattr(fresh.adapter, "_hf_hook")
    for _ in range(2):
        assert same(generate(fresh, "a face", references=[face(1)]), expected)


def test_progress_is_shown(fresh: Any, capfd: pytest.CaptureFixture[str]) -> None:
    fresh.set_progress_bar_config(disable=False)
    generate(fresh, "a face", references=[face(1)], guidance_mode="separate")
    assert "3/3" in capfd.readouterr().err


def test_float16_sdxl(xl_checkpoint: Path, pipelines: dict[type, Any]) -> None:
    half = quiet(FusionXLPipeline.from_pretrained(xl_checkpoint, dtype=torch.float16))
    seen: list[torch.dtype] = []
    hook = half.vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    (cached,) = half.encode_references(face(1))
    hook.remove()
    assert seen == [torch.float32] and half.vae.dtype == torch.float16
    (exact,) = pipelines[FusionXLPipeline].encode_references(face(1))
    for name, (key, value) in exact.items():
        torch.testing.assert_close(cached[name][0].float(), key, rtol=0.05, atol=0.05)
        torch.testing.assert_close(cached[name][1].float(), value, rtol=0.05, atol=0.05)


def test_float16(tiny_checkpoint: Path, pipelines: dict[type, Any]) -> None:
    half = quiet(FusionPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float16))
    arguments = {"references": [face(1)], "guidance_scale": 1.0, "timestep_mode": "shared"}
    images = generate(half, "a face", **arguments)
    exact = generate(pipelines[FusionPipeline], "a face", **arguments)
    assert np.abs(images - exact).mean() < 0.05
    assert half.vae.dtype == half.unet.dtype == half.adapter.dtype == torch.float16


def test_lora(fresh: Any, tmp_path: Path) -> None:
    """LoRA weights beside faces; without the package peft, diffusers says that it is needed."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    width = fresh.unet.get_submodule(layer).weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"unet.{layer}.lora_A.weight": torch.randn(2, width, generator=generator),
        f"unet.{layer}.lora_B.weight": torch.randn(width, 2, generator=generator),
    }
    save_file(weights, tmp_path / "lora.safetensors")
    if importlib.util.find_spec("peft") is None:
        with pytest.raises(ValueError, match="PEFT"):
            fresh.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        return
    before = generate(fresh, "a face", references=[face(1)])
    fresh.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    with_lora = generate(fresh, "a face", references=[face(1)])
    assert not same(with_lora, before)
    assert not same(with_lora, generate(fresh, "a face"))
    fresh.unload_lora_weights()
    assert same(generate(fresh, "a face", references=[face(1)]), before)


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_unet_shows_the_same_faces(
    in_place: bool, fresh: Any, pipelines: dict[type, Any]
) -> None:
    torch.compiler.reset()
    counters.clear()
    if in_place:
        fresh.unet.compile(backend="eager")
    else:
        fresh.unet = torch.compile(fresh.unet, backend="eager")
    for modes in (
        {},
        {"guidance_mode": "separate", "identity_guidance_scale": 3, "timestep_mode": "shared"},
    ):
        arguments = {"references": [face(1)], **modes}
        expected = generate(pipelines[FusionPipeline], "a face", **arguments)
        assert same(generate(fresh, "a face", **arguments), expected)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


@pytest.fixture
def warned() -> Iterator[list[Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@each_family
def test_prompts_that_are_too_long_say_what_was_cut(
    cls: type, pipelines: dict[type, Any], warned: list[Any]
) -> None:
    fits = "a " * 13 + "face"  # 14 tokens, and the start and the end
    generate(pipelines[cls], [fits, "a face"], negative_prompt=[fits, "of"])
    said = [str(warning.message) for warning in warned]
    assert not [message for message in said if "cut" in message]
    generate(pipelines[cls], ["a face", fits + " of face"], negative_prompt=[fits + " of", "a"])
    messages = [warning for warning in warned if "was cut" in str(warning.message)]
    assert [str(message.message).split(" ", 1)[0] for message in messages] == [
        "prompt",
        "negative_prompt",
    ]
    assert "'of face'" in str(messages[0].message) and "14 tokens" in str(messages[0].message)
    assert "'of'" in str(messages[1].message)


def test_the_second_prompt_of_sdxl_may_be_too_long(
    pipelines: dict[type, Any], warned: list[Any]
) -> None:
    generate(pipelines[FusionXLPipeline], "a face", prompt_2="a " * 14 + "face")
    (message,) = [str(w.message) for w in warned if "was cut" in str(w.message)]
    assert message.startswith("prompt_2 is longer") and "'face'" in message
    assert any(w.filename.endswith("test_pipeline.py") for w in warned)  # where it was called


ONE = [face(1)]
MASK = np.ones((1, 32, 32), dtype=bool)


@pytest.mark.parametrize(
    ("cls", "arguments", "named"),
    [
        (FusionPipeline, {"references": "face.png"}, "references must be PIL images"),
        (FusionPipeline, {"references": np.zeros((8, 8, 3))}, "references must be PIL images"),
        (FusionPipeline, {"references": [face(1), None]}, r"references\[1\] must be a PIL image"),
        (FusionPipeline, {"references": [torch.zeros(3, 8, 8)]}, r"references\[0\] must be"),
        (FusionPipeline, {"references": [[face(1)], face(2)]}, r"references\[0\] must be"),
        (FusionXLPipeline, {"references": [ONE, ONE, ONE]}, "references holds faces for 3 prompts"),
        (FusionPipeline, {"references": ONE, "strengths": [1, 1]}, "strengths must hold one"),
        (FusionPipeline, {"references": ONE, "strengths": float("nan")}, r"strengths\[0\]"),
        (FusionPipeline, {"references": ONE, "strengths": [torch.ones(3)]}, r"strengths\[0\]"),
        (FusionPipeline, {"references": ONE, "strengths": ["1"]}, r"strengths\[0\]"),
        (FusionPipeline, {"strengths": 1.0}, "strengths needs references"),
        (FusionPipeline, {"identity_masks": MASK}, "identity_masks needs references"),
        (FusionPipeline, {"references": ONE, "strenghts": 1}, "strenghts .* mean strengths"),
        (FusionPipeline, {"references": ONE, "strength": 0.5}, "strength is not an argument"),
        (FusionImg2ImgPipeline, {"image": face(1), "height": 32}, "height is not an argument"),
        (FusionPipeline, {"references": ONE, "identity_masks": MASK[0]}, "identity_masks must be"),
        (FusionPipeline, {"references": ONE, "identity_masks": MASK * 1.0}, "identity_masks must"),
        (FusionPipeline, {"references": ONE, "identity_masks": "left"}, "identity_masks must be"),
        (FusionPipeline, {"references": ONE, "identity_masks": []}, "identity_masks must be one"),
        (
            FusionPipeline,
            {"references": ONE, "identity_masks": MASK, "reference_identity": [1]},
            r"reference_identity\[0\]",
        ),
        (
            FusionPipeline,
            {"references": ONE, "identity_masks": MASK, "reference_identity": [0, 0]},
            "reference_identity must hold one index",
        ),
        (
            FusionPipeline,
            {"references": [face(1), face(2)], "identity_masks": MASK},
            "reference_identity",
        ),
        (FusionPipeline, {"references": ONE, "guidance_mode": "both"}, "guidance_mode must be"),
        (FusionPipeline, {"references": ONE, "timestep_mode": 0}, "timestep_mode must be"),
        (
            FusionPipeline,
            {"references": ONE, "identity_guidance_scale": 2.0},
            "identity_guidance_scale needs guidance_mode",
        ),
        (
            FusionXLPipeline,
            {"references": ONE, "identity_guidance_scale": -1, "guidance_mode": "separate"},
            "identity_guidance_scale must be",
        ),
        (FusionPipeline, {"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        (FusionPipeline, {"num_images_per_prompt": 1.5}, "num_images_per_prompt must be"),
        (FusionPipeline, {"height": 33, "references": ONE}, "height"),
        (FusionXLPipeline, {"width": 33, "references": ONE}, "width"),
        (FusionPipeline, {"prompt_embeds": torch.zeros(16)}, "prompt_embeds must be"),
        (FusionPipeline, {"prompt_embeds": torch.zeros(1, 16, 16)}, "prompt_embeds"),
        (FusionPipeline, {"negative_prompt": 5}, "negative_prompt must be"),
        (FusionXLPipeline, {"negative_prompt_2": ["a", 5]}, "negative_prompt_2 must be"),
        (FusionPipeline, {"generator": [torch.Generator()] * 2}, "generator must be"),
        (FusionImg2ImgPipeline, {}, "image must be given"),
        (FusionImg2ImgPipeline, {"image": face(1), "strength": 2.0}, "strength"),
        (FusionXLControlNetPipeline, {"references": ONE}, "image must be given"),
        (FusionControlNetPipeline, {"image": "layout.png"}, "image"),
        (
            FusionControlNetPipeline,
            {"image": "layout.png", "references": ONE, "identity_masks": MASK},
            "image must be a PIL image",
        ),
        (FusionControlNetImg2ImgPipeline, {"image": face(1)}, "control_image must be given"),
        (
            FusionControlNetPipeline,
            {"image": face(1), "controlnet_conditioning_scale": "1"},
            "controlnet_conditioning_scale",
        ),
    ],
)
def test_malformed_inputs_are_named(
    cls: type, arguments: dict[str, Any], named: str, pipelines: dict[type, Any]
) -> None:
    arguments = {"generator": None, "num_inference_steps": 1, **arguments}
    with pytest.raises(FusionError, match=named):
        pipelines[cls]("a face", output_type="np", **arguments)


@pytest.mark.parametrize("prompt", [None, 5, [], [None], ("a", "b")])
def test_malformed_prompts_are_named(prompt: Any, pipelines: dict[type, Any]) -> None:
    with pytest.raises(FusionError, match="prompt"):
        pipelines[FusionPipeline](prompt, references=ONE)


def test_a_cache_is_for_clean_references_of_the_same_family(pipelines: dict[type, Any]) -> None:
    cache = pipelines[FusionPipeline].encode_references(ONE)
    with pytest.raises(FusionError, match="references must be images with timestep_mode"):
        generate(pipelines[FusionPipeline], "a", references=cache, timestep_mode="shared")
    with pytest.raises(FusionError, match=r"references\[0\] must hold exactly"):
        generate(pipelines[FusionXLPipeline], "a", references=cache)


def test_adapters_that_do_not_fit(
    fresh: Any, tiny_checkpoint: Path, xl_checkpoint: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    wider = FusionAdapter.from_unet(tiny_unet(block_out_channels=(32, 32)), init="random")
    for load in (
        lambda: fresh.load_adapter_weights(wider),
        lambda: FusionPipeline.from_pretrained(tiny_checkpoint, adapter=wider),
        lambda: FusionXLPipeline.from_pretrained(
            xl_checkpoint, adapter=tiny_checkpoint / "adapter"
        ),
        lambda: FusionPipeline.from_pipe(fresh, adapter=xl_checkpoint / "adapter"),
    ):
        with pytest.raises(FusionError, match="The adapter does not fit this unet"):
            load()
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))
    for part, named in (("adapter", "The adapter"), ("unet", "The model")):
        weights = broken / part / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(FusionError, match=f"{named} .*broken.* cannot be loaded"):
            FusionPipeline.from_pretrained(
                broken, adapter=None if part == "adapter" else fresh.adapter
            )
    with pytest.raises(FusionError, match="adapter must be a FusionAdapter"):
        FusionPipeline.from_pretrained(tiny_checkpoint, adapter=5)
    with pytest.raises(FusionError, match="cannot be loaded"):
        FusionControlNetPipeline.from_pretrained(tiny_checkpoint)  # no controlnet
    assert isinstance(fresh, FusionMixin) and len(generate(fresh, "a", references=ONE)) == 1
