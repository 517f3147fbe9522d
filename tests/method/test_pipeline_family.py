"""What all pipelines of the family share, on tiny checkpoints of Stable Diffusion and SDXL."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
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
from test_pipeline import face, generate, same
from torch._dynamo.utils import counters
from transformers import CLIPTextConfig, CLIPTextModel

from fusionlib import FusionAdapter, FusionError
from fusionlib.pipeline import FusionMixin, FusionPipeline, prepare_reference
from fusionlib.pipeline_inpainting import (
    FusionControlNetInpaintPipeline,
    FusionInpaintPipeline,
    FusionXLControlNetInpaintPipeline,
    FusionXLInpaintPipeline,
)
from fusionlib.pipeline_inputs import ReferenceText
from fusionlib.pipeline_variants import (
    FusionControlNetImg2ImgPipeline,
    FusionControlNetPipeline,
    FusionImg2ImgPipeline,
    FusionXLControlNetImg2ImgPipeline,
    FusionXLControlNetPipeline,
    FusionXLImg2ImgPipeline,
    FusionXLPipeline,
)
from fusionlib.processor import conditioning_of
from fusionlib.unet_layers import cross_attention_layers
from tests.helpers.single_file import write_single_file
from tests.helpers.tiny import tiny_controlnet, tiny_unet, write_tiny_xl_checkpoint

SD = (
    FusionPipeline,
    FusionImg2ImgPipeline,
    FusionControlNetPipeline,
    FusionControlNetImg2ImgPipeline,
    FusionInpaintPipeline,
    FusionControlNetInpaintPipeline,
)
XL = (
    FusionXLPipeline,
    FusionXLImg2ImgPipeline,
    FusionXLControlNetPipeline,
    FusionXLControlNetImg2ImgPipeline,
    FusionXLInpaintPipeline,
    FusionXLControlNetInpaintPipeline,
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
    if "Inpaint" in cls.__name__:
        mask = Image.new("L", size)
        mask.paste(255, (8, 8, 32, 24))
        arguments = {"image": face(7, size), "mask_image": mask}
        if "ControlNet" not in cls.__name__ and size != (32, 32):  # it has a size of its own
            arguments |= {"height": size[1] // 4 * 4, "width": size[0] // 4 * 4}
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


@pytest.fixture
def warned() -> Iterator[list[Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


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


@each_family
def test_faces_that_are_not_shown_cost_next_to_nothing(
    cls: type, pipelines: dict[type, Any]
) -> None:
    """Nor do they draw from the generator, of which such a scheduler wants more at each step."""
    pipeline, batches = pipelines[cls], []
    former = pipeline.scheduler
    first = pipeline.unet.conv_in  # of what the UNet is called with, the branches are added later
    hook = first.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    modes = {"timestep_mode": "shared", "guidance_mode": "separate"}
    try:
        pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(former.config)
        expected = generate(pipeline, "a face")
        unseen = generate(pipeline, "a face", references=[face(1)], strengths=0, **modes)
    finally:
        pipeline.scheduler = former
        hook.remove()
    assert np.array_equal(unseen, expected)
    assert batches.count(2) == 6 and set(batches) <= {1, 2}, "no branch more"
    assert batches.count(1) <= 1, "they are looked at once, if at all"


@every_class
def test_what_is_kept_between_steps_changes_no_bit(cls: type, pipelines: dict[type, Any]) -> None:
    """With a callback the text is projected at each step, without one once, but in some modes."""
    pipeline, arguments = pipelines[cls], {"references": [face(1), face(2)], **inputs(cls)}
    layer = next(iter(cross_attention_layers(pipeline.unet).values()))
    arguments |= {"num_images_per_prompt": 2, "strengths": [0.7, torch.tensor([1.0, 0.3])]}
    calls, forward = [0], layer.to_k.forward

    def project(text: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return forward(text)

    def painted(**more: Any) -> tuple[np.ndarray, int]:
        calls[0] = 0
        return generate(pipeline, "a face", **arguments, **more), calls[0]

    layer.to_k.forward = project
    try:
        kept, seldom = painted()
        joined, often = painted(callback_on_step_end=lambda *_: {})
        steps = often - 1  # and one for the references
        assert np.array_equal(kept, joined) and (seldom, steps > 1) == (2, True)
        for mode in ({"guidance_mode": "separate"}, {"timestep_mode": "shared"}):
            assert painted(**mode)[1] >= often
    finally:
        layer.to_k.forward = forward


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


def test_a_unet_whose_own_size_is_no_square(tiny_checkpoint: Path) -> None:
    unet = tiny_unet(sample_size=(12, 8))
    pipeline = quiet(FusionPipeline.from_pretrained(tiny_checkpoint, unet=unet))
    masks = np.ones((1, 48, 32), dtype=bool)
    images = generate(pipeline, "a face", references=[face(1)], identity_masks=masks)
    assert images.shape == (1, 48, 32, 3)


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


@each_family
def test_where_masks_overlap_only_the_text_is_seen(
    cls: type, pipelines: dict[type, Any], warned: list[Any]
) -> None:
    """Eq. 7 in every layer that the pipeline runs, and a warning of it."""
    pipeline, masks = pipelines[cls], np.zeros((2, 32, 32), dtype=bool)
    masks[0, :, :24], masks[1, :16, 8:] = True, True
    both, neither = masks[0] & masks[1], ~(masks[0] | masks[1])
    moved: dict[int, list[np.ndarray]] = {}

    def compare(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if conditioning_of(layer) is not None:
            without = layer.processor.former(layer, *args, **kwargs)
            by_faces = (output - without)[-1].abs().amax(-1)  # of the branch that has the prompt
            moved.setdefault(len(by_faces), []).append(by_faces.numpy())

    hooks = [
        layer.register_forward_hook(compare, with_kwargs=True)
        for layer in cross_attention_layers(pipeline.unet).values()
    ]
    arguments = {"references": [face(1), face(2)], "identity_masks": masks}
    try:
        images = generate(pipeline, "a face", **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    assert moved.keys() <= {8 * 8, 4 * 4} and moved
    for positions, layers in moved.items():
        side = round(positions**0.5)
        shared, background = (
            area[:: 32 // side, :: 32 // side].ravel() for area in (both, neither)
        )
        assert shared.any() and background.any()
        for by_faces in layers:
            assert by_faces[shared].max() < 1e-5 < by_faces[~shared].min()
    (message,) = [warning for warning in warned if "overlap" in str(warning.message)]
    assert str(message.message) == (
        f"The masks of identity 0 and identity 1 overlap in {both.sum()} pixels: there neither "
        "face is seen, only the text (Eq. 7)."
    )
    assert message.filename.endswith("test_pipeline.py")  # where the pipeline was called
    everywhere = np.ones_like(masks)
    nobody = generate(pipeline, "a face", references=[face(1), face(2)], identity_masks=everywhere)
    assert same(nobody, generate(pipeline, "a face")) and not same(nobody, images)
    warned.clear()
    generate(pipeline, "a face", **(arguments | {"identity_masks": masks & ~both}))
    assert not [warning for warning in warned if "overlap" in str(warning.message)]


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


@each_family
def test_several_references_of_one_identity(cls: type, pipelines: dict[type, Any]) -> None:
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, :, :16], masks[1, :, 16:] = True, True
    one, other = face(1), face(2)
    two = generate(pipelines[cls], "a face", references=[one, other], identity_masks=masks)
    # The same picture twice with half of the strength is that picture once.
    thrice = generate(
        pipelines[cls],
        "a face",
        references=[one, other, one],
        strengths=[0.5, 1.0, 0.5],
        identity_masks=masks,
        reference_identity=[0, 1, 0],
    )
    assert same(thrice, two)
    another = generate(
        pipelines[cls],
        "a face",
        references=[one, other, face(3)],
        identity_masks=masks,
        reference_identity=[0, 1, 0],
    )
    assert not same(another, two)


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


def test_sdxl_is_saved_and_loaded(pipelines: dict[type, Any], tmp_path: Path) -> None:
    pipelines[FusionXLPipeline].save_pretrained(tmp_path)
    expected = generate(pipelines[FusionXLPipeline], "a face", references=[face(1)])
    loaded = quiet(FusionXLPipeline.from_pretrained(tmp_path))
    assert np.array_equal(generate(loaded, "a face", references=[face(1)]), expected)
    plain = quiet(StableDiffusionXLPipeline.from_pretrained(tmp_path))
    assert np.array_equal(
        generate(plain, "a face"), generate(pipelines[FusionXLPipeline], "a face")
    )


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
        empty, added = pipeline._reference_text(40, 48, ReferenceText())
    finally:
        pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    text, _, pooled, _ = pipeline.encode_prompt("", device="cpu")
    assert torch.equal(empty, text) and torch.equal(added["text_embeds"], pooled)
    said, added = pipeline._reference_text(40, 48, ReferenceText("a face"))
    text, _, pooled, _ = pipeline.encode_prompt("a face", device="cpu")
    assert torch.equal(said, text) and torch.equal(added["text_embeds"], pooled)


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


def test_stable_diffusion_2(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What is different in it: linear projections, heads of one width, v-prediction, OpenCLIP."""
    first = FusionPipeline.from_pretrained(tiny_checkpoint)
    torch.manual_seed(0)
    text = CLIPTextConfig(**(first.text_encoder.config.to_dict() | {"hidden_act": "gelu"}))
    unet = tiny_unet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True)
    second = FusionPipeline.from_pretrained(
        tiny_checkpoint,
        unet=unet,
        text_encoder=CLIPTextModel(text).eval(),
        scheduler=DDIMScheduler.from_config(
            first.scheduler.config,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
        adapter=FusionAdapter.from_unet(unet),
    )
    second.save_pretrained(tmp_path / "folder")
    loaded = quiet(FusionPipeline.from_pretrained(tmp_path / "folder"))
    faces = [face(1), face(2)]
    images = generate(loaded, "a face", references=faces, guidance_scale=3.0)
    own = DDIMScheduler.from_config(loaded.scheduler.config)
    scales = {"text_scale": 3.0, "identity_scale": 3.0}
    assert same(images, naive(loaded, own, faces, **scales, shared=False, steps=3))
    file = write_single_file(second, tmp_path / "model.safetensors")
    config = without_weights(tmp_path / "folder", tmp_path / "config")
    adapter = tmp_path / "folder" / "adapter"
    single = quiet(FusionPipeline.from_single_file(file, adapter=adapter, config=config))
    assert same(generate(single, "a face", references=faces, guidance_scale=3.0), images)


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


@pytest.fixture(params=["SD", "SDXL"])
def either(request: pytest.FixtureRequest, tiny_checkpoint: Path, xl_checkpoint: Path) -> Any:
    """A pipeline of each family that a test may change."""
    if request.param == "SD":
        return quiet(FusionPipeline.from_pretrained(tiny_checkpoint))
    return quiet(FusionXLPipeline.from_pretrained(xl_checkpoint))


def test_saving_memory_does_not_lose_faces(either: Any, pipelines: dict[type, Any]) -> None:
    arguments = {"references": [face(1)], "num_images_per_prompt": 2, "timestep_mode": "shared"}
    expected = generate(pipelines[type(either)], "a face", **arguments)
    either.enable_attention_slicing(1)
    assert same(generate(either, "a face", **arguments), expected)
    either.disable_attention_slicing()
    either.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    freed = generate(either, "a face", **arguments)
    assert not same(freed, expected) and not same(freed, generate(either, "a face"))


def test_the_vae_in_slices_and_in_tiles(
    either: Any, pipelines: dict[type, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the references as for the images: in slices exactly, in tiles nearly."""
    calls: list[tuple[str, int]] = []

    def spy(name: str) -> None:
        method = getattr(either.vae, name)

        def called(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append((name, tensor.shape[0]))
            return method(tensor, *args, **kwargs)

        monkeypatch.setattr(either.vae, name, called)

    for name in ("_encode", "_decode", "tiled_decode", "_tiled_encode"):
        spy(name)
    untouched, faces = pipelines[type(either)], [face(1), face(2)]
    arguments = {"references": faces, "num_images_per_prompt": 2}
    either.vae.enable_slicing()
    images = generate(either, "a face", **arguments)
    assert same(images, generate(untouched, "a face", **arguments))
    assert calls == [("_encode", 1)] * 2 + [("_decode", 1)] * 2
    either.vae.disable_slicing()
    either.vae.enable_tiling()
    calls.clear()
    size = {"height": 64, "width": 64}  # the tiles are of the model's own 32
    in_tiles = either.encode_references(faces, **size)
    whole = untouched.encode_references(faces, **size)
    for name, (exact, _) in whole[1].items():
        (key, _), (other, _) = in_tiles[1][name], whole[0][name]
        assert 0 < (key - exact).norm() < (other - exact).norm()
    images = generate(either, "a face", references=whole, **size)
    exact = generate(untouched, "a face", references=whole, **size)
    assert not same(images, exact) and np.abs(images - exact).mean() < 0.05
    assert ("_tiled_encode", 2) in calls and ("tiled_decode", 1) in calls


def test_offloading_brings_what_computes_to_the_device(
    either: Any, pipelines: dict[type, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hooks are those of a GPU; here it is only kept account of where each model would be."""
    names = ("text_encoder", "text_encoder_2", "unet", "vae", "adapter")
    models = {name: model for name in names if (model := getattr(either, name, None)) is not None}
    called = {model: name for name, model in models.items()}
    on_device: set[str] = set()
    pre_forward, init_hook = CpuOffload.pre_forward, CpuOffload.init_hook

    def to_device(hook: CpuOffload, module: Any, *args: Any, **kwargs: Any) -> Any:
        if hook.prev_module_hook is not None:  # which goes, where the device is no CPU
            on_device.discard(called[hook.prev_module_hook.model])
        on_device.add(called[module])
        return pre_forward(hook, module, *args, **kwargs)

    def to_cpu(hook: CpuOffload, module: Any) -> Any:
        on_device.discard(called[module])
        return init_hook(hook, module)

    monkeypatch.setattr(CpuOffload, "pre_forward", to_device)
    monkeypatch.setattr(CpuOffload, "init_hook", to_cpu)

    def look_while(name: str) -> Any:
        def look(*_: Any) -> None:
            assert name in on_device, f"{name} computes while it is offloaded"
            text_encoders = {"text_encoder", "text_encoder_2"} & on_device
            assert name != "unet" or not text_encoders, "they should have made room"

        return look

    for name, model in models.items():
        for layer in model.modules():
            if not list(layer.children()):
                layer.register_forward_pre_hook(look_while(name))
    either.enable_model_cpu_offload(device="cpu")
    assert not on_device
    on_device.add("adapter")  # which is small, and stays
    assert not hasattr(either.adapter, "_hf_hook")
    arguments = {"references": [face(1)], "num_images_per_prompt": 2}
    for modes in ({}, {"timestep_mode": "shared", "guidance_mode": "separate"}):
        expected = generate(pipelines[type(either)], "a face", **arguments, **modes)
        assert same(generate(either, "a face", **arguments, **modes), expected)
        assert on_device == {"adapter"}, "something was left on the device"


@pytest.mark.gpu
def test_offloading_on_a_gpu(either: Any, pipelines: dict[type, Any]) -> None:
    expected = generate(pipelines[type(either)], "a face", references=[face(1)])
    either.enable_model_cpu_offload()
    for modes in ({}, {"timestep_mode": "shared"}):
        expected = generate(pipelines[type(either)], "a face", references=[face(1)], **modes)
        images = generate(either, "a face", references=[face(1)], **modes)
        assert np.abs(images - expected).mean() < 0.01
        assert either.unet.device.type == either.vae.device.type == "cpu"
        assert either.adapter.device.type == "cuda"
    own = FusionAdapter.from_unet(either.unet)
    either.load_adapter_weights(own)
    assert own.device.type == "cuda"
    assert np.isfinite(generate(either, "a face", references=[face(1)])).all()


def test_progress_is_shown(either: Any, capfd: pytest.CaptureFixture[str]) -> None:
    either.set_progress_bar_config(disable=False)
    generate(either, "a face", references=[face(1)], guidance_mode="separate")
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


@each_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(
    cls: type,
    dtype: torch.dtype,
    tiny_checkpoint: Path,
    xl_checkpoint: Path,
    pipelines: dict[type, Any],
) -> None:
    folder = tiny_checkpoint if cls is FusionPipeline else xl_checkpoint
    half = quiet(cls.from_pretrained(folder, dtype=dtype))
    assert half.vae.dtype == half.unet.dtype == half.adapter.dtype == dtype
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, :, :16], masks[1, :, 16:] = True, True
    arguments = {
        "references": [face(1), face(2)],
        "strengths": [0.5, torch.tensor([1.5])],
        "identity_masks": masks,
        "guidance_scale": 1.0,
        "timestep_mode": "shared",
    }
    images = generate(half, "a face", **arguments)
    exact = generate(pipelines[cls], "a face", **arguments)
    assert np.abs(images - exact).mean() < 0.05


@pytest.mark.parametrize(
    ("cls", "in_place"),
    [
        (FusionPipeline, False),
        pytest.param(FusionPipeline, True, marks=pytest.mark.slow),
        pytest.param(FusionXLPipeline, False, marks=pytest.mark.slow),
        pytest.param(FusionXLPipeline, True, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_unet_shows_the_same_faces(
    cls: type,
    in_place: bool,
    tiny_checkpoint: Path,
    xl_checkpoint: Path,
    pipelines: dict[type, Any],
) -> None:
    folder = tiny_checkpoint if cls is FusionPipeline else xl_checkpoint
    compiled = quiet(cls.from_pretrained(folder))
    torch.compiler.reset()
    counters.clear()
    if in_place:
        compiled.unet.compile(backend="eager")
    else:
        compiled.unet = torch.compile(compiled.unet, backend="eager")
    for modes in (
        {},
        {"guidance_mode": "separate", "identity_guidance_scale": 3, "timestep_mode": "shared"},
    ):
        arguments = {"references": [face(1)], **modes}
        expected = generate(pipelines[cls], "a face", **arguments)
        assert same(generate(compiled, "a face", **arguments), expected)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


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


nan, inf = float("nan"), float("inf")
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
        (
            FusionPipeline,
            {"references": ONE, "identity_guidance_scale": inf, "guidance_mode": "separate"},
            "identity_guidance_scale must be",
        ),
        (FusionPipeline, {"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        (FusionPipeline, {"num_images_per_prompt": 1.5}, "num_images_per_prompt must be"),
        (FusionPipeline, {"height": 33, "references": ONE}, "height"),
        (FusionXLPipeline, {"width": 33, "references": ONE}, "width"),
        (FusionPipeline, {"prompt_embeds": torch.zeros(16)}, "prompt_embeds must be"),
        (FusionPipeline, {"prompt_embeds": torch.zeros(1, 16, 16)}, "prompt_embeds"),
        (FusionPipeline, {"negative_prompt": 5}, "negative_prompt must be"),
        (
            FusionPipeline,
            {"references": ONE, "cross_attention_kwargs": 0.5},
            "cross_attention_kwargs must be a dictionary",
        ),
        (
            FusionXLPipeline,
            {"references": ONE, "cross_attention_kwargs": {"scale": "half"}},
            r"cross_attention_kwargs\[\"scale\"\] must be",
        ),
        (
            FusionPipeline,
            {"references": ONE, "cross_attention_kwargs": {"scale": nan}},
            r"cross_attention_kwargs\[\"scale\"\] must be",
        ),
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
    with pytest.raises(FusionError, match="controlnet must be given"):
        FusionControlNetPipeline.from_pretrained(tiny_checkpoint)  # no controlnet
    assert isinstance(fresh, FusionMixin) and len(generate(fresh, "a", references=ONE)) == 1
