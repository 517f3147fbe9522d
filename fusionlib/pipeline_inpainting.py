"""Inpainting with faces: where ``mask_image`` is white, a picture is painted again.

Each class is ``FusionInpaintMixin`` and the diffusers pipeline of the same task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import (
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
)

from fusionlib.errors import FusionError
from fusionlib.pipeline import FusionMixin
from fusionlib.pipeline_variants import FusionXLMixin


class FusionInpaintMixin(FusionMixin):
    """What lets diffusers' inpainting take an autoencoder with any number of latent channels.

    An ordinary UNet has as many input channels as there are latent channels. One that was trained
    for inpainting has 2 n + 1: the latents, the mask, and the latents of the picture without what
    the mask covers.
    """

    @contextmanager
    def _stock_call(self) -> Iterator[None]:
        """Let diffusers, which looks for 4 and 9 input channels, see which kind the UNet is."""
        unet: Any = getattr(self.unet, "_orig_mod", self.unet)
        channels, latent = unet.config.in_channels, self.vae.config.latent_channels
        if channels not in (latent, 2 * latent + 1):
            raise FusionError(
                f"The unet has {channels} input channels, and inpainting needs {latent} or "
                f"{2 * latent + 1} with this autoencoder: load a unet that was made for it."
            )
        if latent != 4:
            unet.register_to_config(in_channels=_Channels(channels, 4 if channels == latent else 9))
        try:
            yield
        finally:
            if latent != 4:
                unet.register_to_config(in_channels=channels)


class _Channels(int):
    """A number of input channels that is also equal to the number that diffusers looks for."""

    def __new__(cls, channels: int, looked_for: int) -> _Channels:
        """Keep the number itself, which everything but a comparison sees."""
        number = super().__new__(cls, channels)
        number.looked_for = looked_for
        return number

    looked_for: int

    def __eq__(self, other: object) -> bool:
        return int(self) == other or self.looked_for == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__


class FusionXLInpaintMixin(FusionInpaintMixin, FusionXLMixin):
    """What is different for inpainting by SDXL."""


class FusionInpaintPipeline(FusionInpaintMixin, StableDiffusionInpaintPipeline):
    """Inpainting with faces: ``image`` is painted again where ``mask_image`` is white.

    It is diffusers' ``StableDiffusionInpaintPipeline`` with one more component, the ``adapter``.
    The image is scaled to ``height`` and ``width``, or to the model's own size. Identity masks have
    that size, too; with ``padding_mask_crop``, which paints a part of the image at that size, they
    have the size of the image.

    Example:
        Another face in a photograph, whose background stays:

        >>> from PIL import Image, ImageChops, ImageStat
        >>> from fusionlib import FusionInpaintPipeline
        >>> inpaint = FusionInpaintPipeline.from_pretrained("data/models/embedded")
        >>> face, photo = (Image.open(f"data/heldout/{name}.jpg") for name in ("0000_0", "0001_0"))
        >>> mask = Image.new("L", photo.size)
        >>> mask.paste(255, (32, 16, 96, 112))
        >>> image = inpaint(
        ...     "a photo of a person",
        ...     references=[face],
        ...     image=photo,
        ...     mask_image=mask,
        ...     num_inference_steps=5,
        ... ).images[0]
        >>> def change(where):  # how far the image is from the photograph, in grey levels
        ...     return ImageStat.Stat(ImageChops.difference(image, photo).convert("L"), where).mean
        >>> change(ImageChops.invert(mask)) < change(mask)
        True
    """


class FusionControlNetInpaintPipeline(FusionInpaintMixin, StableDiffusionControlNetInpaintPipeline):
    """Inpainting of ``image`` with faces, and ControlNets that are shown ``control_image``.

    It is diffusers' ``StableDiffusionControlNetInpaintPipeline`` with one more component, the
    ``adapter``.

    Example:
        The second of two people is replaced by someone else:

        >>> from diffusers import ControlNetModel
        >>> from PIL import Image
        >>> from fusionlib import FusionControlNetInpaintPipeline, FusionPipeline
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> controlnet = ControlNetModel.from_unet(  # new: train it, or load one
        ...     pipeline.unet,
        ...     conditioning_embedding_out_channels=(16, 32, 64, 96, 256),  # scales by 1/16
        ... )
        >>> inpaint = FusionControlNetInpaintPipeline.from_pipe(pipeline, controlnet=controlnet)
        >>> photo, mask = Image.new("RGB", (256, 128)), Image.new("L", (256, 128))
        >>> photo.paste(Image.open("data/heldout/0000_0.jpg"), (0, 0))
        >>> photo.paste(Image.open("data/heldout/0001_0.jpg"), (128, 0))
        >>> mask.paste(255, (128, 0, 256, 128))
        >>> image = inpaint(
        ...     "a photo of two people",
        ...     references=[Image.open("data/heldout/0003_0.jpg")],
        ...     identity_masks=[mask],
        ...     image=photo,
        ...     mask_image=mask,
        ...     control_image=Image.new("RGB", (256, 128), "grey"),
        ...     num_inference_steps=2,
        ... ).images[0]
        >>> image.height, image.width
        (128, 256)
    """


class FusionXLInpaintPipeline(FusionXLInpaintMixin, StableDiffusionXLInpaintPipeline):
    """Inpainting with faces: SDXL, where ``mask_image`` is white.

    It is diffusers' ``StableDiffusionXLInpaintPipeline`` with one more component, the ``adapter``.

    Example:
        Only a part of a larger picture is painted, at the model's size, and the rest is kept:

        >>> from PIL import Image
        >>> from fusionlib import FusionXLInpaintPipeline
        >>> from tests.helpers.tiny import write_tiny_xl_checkpoint  # random weights
        >>> sdxl = write_tiny_xl_checkpoint("build/tiny-sdxl")
        >>> inpaint = FusionXLInpaintPipeline.from_pretrained(sdxl)
        >>> photo, mask = Image.open("data/heldout/0001_0.jpg"), Image.new("L", (128, 128))
        >>> mask.paste(255, (40, 40, 80, 80))
        >>> image = inpaint(
        ...     "a face",
        ...     references=[Image.open("data/heldout/0000_0.jpg")],
        ...     image=photo,
        ...     mask_image=mask,
        ...     padding_mask_crop=8,
        ...     num_inference_steps=2,
        ... ).images[0]
        >>> image.size, image.getpixel((5, 5)) == photo.getpixel((5, 5))
        ((128, 128), True)
    """


class FusionXLControlNetInpaintPipeline(
    FusionXLInpaintMixin, StableDiffusionXLControlNetInpaintPipeline
):
    """Inpainting of ``image`` with faces: SDXL, and ControlNets shown ``control_image``.

    It is diffusers' ``StableDiffusionXLControlNetInpaintPipeline`` with one more component, the
    ``adapter``.

    Example:
        >>> from PIL import Image
        >>> from fusionlib import FusionXLControlNetInpaintPipeline, FusionXLPipeline
        >>> from tests.helpers.tiny import tiny_controlnet, write_tiny_xl_checkpoint
        >>> sdxl = write_tiny_xl_checkpoint("build/tiny-sdxl")
        >>> pipeline = FusionXLPipeline.from_pretrained(sdxl)
        >>> inpaint = FusionXLControlNetInpaintPipeline.from_pipe(
        ...     pipeline, controlnet=tiny_controlnet(pipeline.unet)
        ... )
        >>> face, photo = (Image.open(f"data/heldout/{i}_0.jpg") for i in ("0000", "0001"))
        >>> inpaint(
        ...     "a face",
        ...     references=[face],
        ...     image=photo.resize((32, 32)),
        ...     mask_image=Image.new("L", (32, 32), "white"),
        ...     control_image=Image.new("RGB", (32, 32)),
        ...     num_inference_steps=2,
        ... ).images[0].size
        (32, 32)
    """
