"""Inpainting with faces: which region changes, which UNets and pictures are taken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from test_pipeline import face, generate, same
from test_pipeline_family import quiet

from fusionlib import (
    FusionAdapter,
    FusionControlNetInpaintPipeline,
    FusionError,
    FusionImg2ImgPipeline,
    FusionInpaintPipeline,
    FusionPipeline,
    FusionXLControlNetInpaintPipeline,
    FusionXLInpaintPipeline,
    encode_references,
)
from fusionlib.unet_layers import cross_attention_layers
from tests.helpers.tiny import tiny_controlnet, tiny_unet, tiny_vae, write_tiny_xl_checkpoint

PHOTO = face(7, (32, 32))
MASK = Image.new("L", (32, 32))
MASK.paste(255, (8, 8, 24, 32))
PAINTED = np.asarray(MASK)[::4, ::4] > 0
"""The cells of the latents that the mask covers."""
START: dict[str, Any] = {"image": PHOTO, "mask_image": MASK}


@pytest.fixture(scope="module")
def xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_xl_checkpoint(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def inpaint(tiny_checkpoint: Path) -> FusionInpaintPipeline:
    return quiet(FusionInpaintPipeline.from_pretrained(tiny_checkpoint))


def nine_channels(checkpoint: Path) -> FusionInpaintPipeline:
    torch.manual_seed(0)
    unet = tiny_unet(in_channels=9)
    adapter = FusionAdapter.from_unet(unet, init="random")
    return quiet(FusionInpaintPipeline.from_pretrained(checkpoint, unet=unet, adapter=adapter))


def of_32_channels(checkpoint: Path, in_channels: int = 32) -> FusionInpaintPipeline:
    """The layout of the embedded model: an autoencoder of 32 channels."""
    torch.manual_seed(0)
    unet = tiny_unet(in_channels=in_channels, out_channels=32)
    vae = type(tiny_vae()).from_config(dict(tiny_vae().config) | {"latent_channels": 32}).eval()
    adapter = FusionAdapter.from_unet(unet, init="random")
    return quiet(
        FusionInpaintPipeline.from_pretrained(checkpoint, unet=unet, vae=vae, adapter=adapter)
    )


@pytest.mark.parametrize("modes", [{}, {"guidance_mode": "separate", "timestep_mode": "shared"}])
def test_faces_change_the_painted_region_only(
    inpaint: FusionInpaintPipeline, modes: dict[str, str]
) -> None:
    options = {**START, "output_type": "latent"}
    base = generate(inpaint, "a face", **options)
    fused = generate(inpaint, "a face", references=[face(1)], **modes, **options)
    changed = (base != fused).any(1)[0].numpy()
    assert not changed[~PAINTED].any() and changed[PAINTED].all()


@pytest.mark.parametrize("made", [nine_channels, of_32_channels])
def test_any_kind_of_unet_sees_faces(made: Any, tiny_checkpoint: Path) -> None:
    pipeline = made(tiny_checkpoint)
    config = dict(pipeline.unet.config)
    base = generate(pipeline, "a face", **START)
    assert base.shape == (1, 32, 32, 3) and np.isfinite(base).all()
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, :, :16], masks[1, :, 16:] = True, True
    several: dict[str, Any] = {"references": [face(1), face(2)], "identity_masks": masks}
    for faces in ({"references": [face(1)]}, several):
        for modes in ({}, {"guidance_mode": "separate", "timestep_mode": "shared"}):
            fused = generate(pipeline, "a face", **START, **faces, **modes)
            assert np.isfinite(fused).all() and not same(fused, base)
    assert np.array_equal(generate(pipeline, "a face", **START), base)
    unseen = {"references": [face(1)], "strengths": 0}
    assert np.array_equal(generate(pipeline, "a face", **START, **unseen), base)
    assert dict(pipeline.unet.config) == config
    assert type(pipeline.unet.config.in_channels) is int, "the config is the UNet's own again"


def test_nine_channels_without_faces_are_diffusers_own(tiny_checkpoint: Path) -> None:
    pipeline = nine_channels(tiny_checkpoint)
    components = {name: each for name, each in pipeline.components.items() if name != "adapter"}
    stock = quiet(StableDiffusionInpaintPipeline(**components, requires_safety_checker=False))
    expected = generate(stock, "a face", **START)
    assert np.array_equal(generate(pipeline, "a face", **START), expected)


def test_an_inpainting_unet_of_another_autoencoder(tiny_checkpoint: Path) -> None:
    """32 channels of latents, the mask, and 32 of the picture."""
    pipeline = of_32_channels(tiny_checkpoint, in_channels=65)
    shown = generate(pipeline, "a face", references=[face(1)], **START)
    assert np.isfinite(shown).all()
    assert not same(shown, generate(pipeline, "a face", **START))


def test_references_of_a_nine_channel_unet(tiny_checkpoint: Path) -> None:
    """It sees their latents, an empty mask and the latents again, of which the first are noised."""
    pipeline = nine_channels(tiny_checkpoint)
    unet, seen = pipeline.unet, []
    hook = unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    text = torch.randn(1, 16, 16)
    clean = encode_references(unet, latents, text)
    shared = {"timestep_mode": "shared", "scheduler": pipeline.scheduler}
    encode_references(unet, latents, text, timestep=500, noise=noise, **shared)
    hook.remove()
    assert clean.keys() == cross_attention_layers(unet).keys()
    noised = pipeline.scheduler.add_noise(latents, noise, torch.tensor([500, 500]))
    for given, first in zip(seen, (latents, noised), strict=True):
        assert torch.equal(given[:, :4], first)
        assert not given[:, 4].any()
        assert torch.equal(given[:, 5:], latents)
    with pytest.raises(FusionError, match=r"latents must be .*batch, 4"):
        encode_references(unet, torch.randn(1, 5, 8, 8), text)


def test_a_unet_of_other_channels_is_refused(tiny_checkpoint: Path) -> None:
    odd = quiet(
        FusionInpaintPipeline.from_pretrained(tiny_checkpoint, unet=tiny_unet(in_channels=8))
    )
    with pytest.raises(FusionError, match="8 input channels, and inpainting needs 4 or 9"):
        generate(odd, "a face", **START)


def test_the_embedded_model_paints_into_a_photograph() -> None:
    pipeline = quiet(FusionInpaintPipeline.from_pretrained("data/models/embedded"))
    photo, mask = Image.open("data/heldout/0001_0.jpg"), Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    reference = Image.open("data/heldout/0000_0.jpg")
    options = {"image": photo, "mask_image": mask, "num_inference_steps": 2}
    options |= {"output_type": "latent"}
    base = generate(pipeline, "a photo of a person", **options)
    fused = generate(pipeline, "a photo of a person", references=[reference], **options)
    changed = (base != fused).any(1)[0].numpy()
    painted = np.asarray(mask.resize(changed.shape[::-1], Image.Resampling.NEAREST)) > 0
    assert base.shape[1] == 32 and not changed[~painted].any() and changed[painted].any()


def test_from_one_kind_to_another_and_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = quiet(FusionPipeline.from_pretrained(tiny_checkpoint))
    inpaint = quiet(FusionInpaintPipeline.from_pipe(text))
    assert inpaint.unet is text.unet and inpaint.adapter is text.adapter
    expected = generate(inpaint, "a face", references=[face(1)], **START)
    steered = quiet(
        FusionControlNetInpaintPipeline.from_pipe(inpaint, controlnet=tiny_controlnet(text.unet))
    )
    for again in (
        steered,
        FusionImg2ImgPipeline.from_pipe(inpaint),
        FusionPipeline.from_pipe(text),
    ):
        back = quiet(FusionInpaintPipeline.from_pipe(again))
        assert np.array_equal(generate(back, "a face", references=[face(1)], **START), expected)
    inpaint.save_pretrained(tmp_path)
    loaded = quiet(FusionInpaintPipeline.from_pretrained(tmp_path))
    assert np.array_equal(generate(loaded, "a face", references=[face(1)], **START), expected)
    stock = quiet(StableDiffusionInpaintPipeline.from_pipe(inpaint))
    assert np.array_equal(generate(stock, "a face", **START), generate(inpaint, "a face", **START))


def test_arguments_stand_where_diffusers_has_them(inpaint: FusionInpaintPipeline) -> None:
    arguments = {"num_inference_steps": 2, "output_type": "np"}
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    placed = inpaint("a face", PHOTO, MASK, generator=one, **arguments).images
    assert np.array_equal(placed, inpaint("a face", generator=other, **START, **arguments).images)


# With padding_mask_crop only the masked part of a picture is painted, at the model's size.

LARGE = face(9, (80, 64))
PART = Image.new("L", LARGE.size)
PART.paste(255, (44, 20, 76, 40))
CROP: dict[str, Any] = {
    "image": LARGE,
    "mask_image": PART,
    "padding_mask_crop": 4,
    "output_type": "pil",
}


def crops(cls: type, inpaint: Any, xl_checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    pipeline, more = inpaint, {}
    if "XL" in cls.__name__:
        pipeline = FusionXLInpaintPipeline.from_pretrained(xl_checkpoint)
    if "ControlNet" in cls.__name__:
        pipeline = cls.from_pipe(pipeline, controlnet=tiny_controlnet(pipeline.unet))
        more = {"control_image": face(8, LARGE.size)}
    return quiet(pipeline), more


@pytest.mark.parametrize(
    "cls",
    [
        FusionInpaintPipeline,
        FusionControlNetInpaintPipeline,
        FusionXLInpaintPipeline,
        FusionXLControlNetInpaintPipeline,
    ],
)
def test_identity_masks_are_cropped_with_the_picture(
    cls: type, inpaint: Any, xl_checkpoint: Path
) -> None:
    pipeline, more = crops(cls, inpaint, xl_checkpoint)
    masks = np.zeros((2, 64, 80), dtype=bool)
    masks[0, :, :60], masks[1, :, 60:] = True, True  # the border is amid the painted part
    seen: list[torch.Tensor] = []
    conditioned = FusionAdapter.conditioned

    def look(self: Any, *args: Any, identity_masks: torch.Tensor, **kwargs: Any) -> Any:
        seen.append(identity_masks)
        return conditioned(self, *args, identity_masks=identity_masks, **kwargs)

    faces = {"references": [face(1), face(2)], "identity_masks": masks}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusionAdapter, "conditioned", look)
        (image,) = generate(pipeline, "a face", **CROP, **more, **faces)
    (cut,) = seen
    size = (64, 80) if more else (32, 32)
    assert image.size == LARGE.size and tuple(cut.shape) == (2, *size)
    assert torch.equal(cut[0], ~cut[1]), "what was disjoint and covered all does so still"
    share = cut[0].float().mean()
    assert 0.3 < share < 0.7, "each has its part of the crop, about a half"
    outside = np.asarray(PART) == 0
    assert np.array_equal(np.asarray(image)[outside], np.asarray(LARGE)[outside])
    with pytest.raises(FusionError, match=r"identity_masks must be .*64, 80"):
        small = masks[:, :32, :32]
        generate(pipeline, "a face", **CROP, **more, **(faces | {"identity_masks": small}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_image": None}, "mask_image must be given"),
        ({"image": None}, "image must be given"),
        ({"image": "photo.png"}, "image must be a PIL image"),
        ({"mask_image": [MASK, "b"]}, "mask_image must be a PIL image"),
        ({"image": np.zeros((32, 32, 4))}, r"image must have 3 channels \(RGB\), not 4"),
        ({"image": torch.zeros(1, 32, 8, 8)}, r"image must have 3 channels \(RGB\), not 32"),
        ({"image": np.zeros((32, 32))}, "image must have channels in RGB"),
        ({**CROP, "padding_mask_crop": -1}, "padding_mask_crop must be"),
        ({**CROP, "padding_mask_crop": "8"}, "padding_mask_crop must be"),
        ({**CROP, "image": [LARGE]}, "image must be one PIL image with padding_mask_crop"),
        ({**CROP, "mask_image": np.zeros((64, 80))}, "mask_image must be one PIL image with"),
        ({**CROP, "mask_image": MASK}, "mask_image must have the size of image .* 80 x 64"),
        ({**CROP, "mask_image": Image.new("L", (80, 64))}, "mask_image is black"),
        ({"height": 30}, "height"),
        ({"strength": 2.0}, "strength"),
    ],
)
def test_mistakes_are_named(
    changes: dict[str, Any], message: str, inpaint: FusionInpaintPipeline
) -> None:
    with pytest.raises(FusionError, match=message):
        generate(inpaint, "a face", **(START | changes))


def test_a_picture_of_another_size_is_scaled_and_this_is_said(
    inpaint: FusionInpaintPipeline,
) -> None:
    large = {"image": LARGE, "mask_image": PART}
    with pytest.warns(UserWarning, match="image has 80 x 64 pixels, and is scaled to .* 32 x 32"):
        assert generate(inpaint, "a face", **large).shape == (1, 32, 32, 3)
    assert generate(inpaint, "a face", height=64, width=80, **large).shape == (1, 64, 80, 3)


def as_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in another mode, with half of it transparent where the mode has an alpha."""
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(grey)
    if mode in ("RGBA", "LA"):
        converted = picture.convert(mode)
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (0, 0, picture.width, 4))
        converted.putalpha(alpha)
        return converted
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "I;16", "CMYK"])
def test_pictures_of_any_mode(
    mode: str, inpaint: FusionInpaintPipeline, tiny_checkpoint: Path
) -> None:
    """They become RGB, as references do: transparent parts white, 16 bits scaled to 8."""
    picture = as_mode(PHOTO, mode)
    plain = picture.convert("RGB")
    if mode in ("RGBA", "LA"):
        plain.paste("white", (0, 0, 32, 4))
    if mode == "I;16":
        plain = PHOTO.convert("L").convert("RGB")
    controlnet = tiny_controlnet(inpaint.unet)
    steered = quiet(FusionControlNetInpaintPipeline.from_pipe(inpaint, controlnet=controlnet))
    restyle = quiet(FusionImg2ImgPipeline.from_pipe(inpaint))
    for pipeline, name, more in (
        (inpaint, "image", {"mask_image": MASK}),
        (restyle, "image", {"strength": 0.7}),
        (steered, "control_image", START),
    ):
        given, expected = (
            generate(pipeline, "a face", **more, **{name: each}) for each in (picture, plain)
        )
        assert np.array_equal(given, expected), name


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "RGBA", "LA", "I;16"])
def test_masks_of_any_mode(mode: str, inpaint: FusionInpaintPipeline) -> None:
    """White is painted; what is transparent is not."""
    mask, expected = as_mode(MASK, mode), MASK
    if mode in ("RGBA", "LA"):
        mask = as_mode(Image.new("L", (32, 32), "white"), mode)
        expected = Image.new("L", (32, 32), "white")
        expected.paste(0, (0, 0, 32, 4))
    options = {"image": PHOTO, "output_type": "latent"}
    given, wanted = (
        generate(inpaint, "a face", mask_image=each, **options) for each in (mask, expected)
    )
    assert torch.equal(given, wanted)


def test_a_damaged_picture_is_named(inpaint: FusionInpaintPipeline, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    with pytest.raises(FusionError, match="image cannot be read"):
        generate(inpaint, "a face", **(START | {"image": Image.open(tmp_path / "cut.png")}))
