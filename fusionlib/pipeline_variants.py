"""Image to image, ControlNet and SDXL with faces.

Each class is ``FusionMixin`` and the diffusers pipeline of the same task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor

from fusionlib.checks import check_text_encoder
from fusionlib.errors import FusionError
from fusionlib.pipeline import FusionMixin
from fusionlib.pipeline_inputs import ReferenceText

AESTHETIC_SCORE = 6.0
"""What SDXL's refiner is told of a picture, as diffusers' pipelines tell it of their own."""


class FusionXLMixin(FusionMixin):
    """What is different for SDXL when it looks at a reference."""

    def _reference_text(
        self, height: int, width: int, text: ReferenceText
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The text, by default the unconditional one, its pooled form, and the size SDXL is told.

        For the checkpoints that were trained so, the unconditional text is zeros. The size is the
        original one, no crop, and the target one (Podell et al., 2023, Section 2.2); the refiner
        takes an aesthetic score in the latter's place.
        """
        embeds, pooled = text.embeds, text.pooled
        if embeds is None:
            check_text_encoder(self.text_encoder_2)
            embeds, empty_embeds, pooled, empty_pooled = self.encode_prompt(
                text.prompt,
                device=self._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
                lora_scale=text.lora_scale,
            )
            if not text.prompt:
                embeds, pooled = empty_embeds, empty_pooled
        elif pooled is None:
            raise FusionError(
                "reference_prompt_embeds need reference_pooled_prompt_embeds for SDXL: give both, "
                "as encode_prompt returns them."
            )
        last = (
            (AESTHETIC_SCORE,) if self.config.get("requires_aesthetics_score") else (height, width)
        )
        added = {
            "text_embeds": pooled,
            "time_ids": torch.tensor([[height, width, 0, 0, *last]]),
        }
        device, dtype = self._execution_device, self.unet.dtype
        added = {name: value.to(device, dtype) for name, value in added.items()}
        return embeds.to(device, dtype), added

    def _encode_images(self, images: Sequence[Image.Image], height: int, width: int) -> Tensor:
        """The scaled latents; in half precision SDXL's VAE overflows, and its config says so."""
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            self.vae.to(torch.float32)
        try:
            return super()._encode_images(images, height, width)
        finally:
            if upcast:
                self.vae.to(torch.float16)


class FusionImg2ImgPipeline(FusionMixin, StableDiffusionImg2ImgPipeline):
    """Image to image with faces: sampling starts from ``image``, noised by ``strength``.

    It is diffusers' ``StableDiffusionImg2ImgPipeline`` with one more component, the ``adapter``.

    Example:
        >>> from PIL import Image, ImageChops, ImageStat
        >>> from fusionlib import FusionImg2ImgPipeline
        >>> restyle = FusionImg2ImgPipeline.from_pretrained("data/models/embedded")
        >>> face, photo = (Image.open(f"data/heldout/{name}.jpg") for name in ("0000_0", "0001_0"))
        >>> def change(strength):  # how far the image is from the photograph, in grey levels
        ...     image = restyle(
        ...         "a painting of a person",
        ...         references=[face],
        ...         image=photo,
        ...         strength=strength,
        ...         num_inference_steps=10,  # of which strength says how many are made
        ...     ).images[0]
        ...     return ImageStat.Stat(ImageChops.difference(image, photo).convert("L")).mean[0]
        >>> change(0.1) < change(0.5)
        True
    """


class FusionControlNetPipeline(FusionMixin, StableDiffusionControlNetPipeline):
    """Text to image with faces, and one ControlNet or a list of them, shown ``image``.

    It is diffusers' ``StableDiffusionControlNetPipeline`` with one more component, the ``adapter``.

    Example:
        A new ControlNet is silent: it starts from the UNet's weights, and adds zeros.

        >>> import torch
        >>> from diffusers import ControlNetModel
        >>> from PIL import Image
        >>> from fusionlib import FusionControlNetPipeline, FusionPipeline
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> controlnet = ControlNetModel.from_unet(
        ...     pipeline.unet,
        ...     conditioning_embedding_out_channels=(16, 32, 64, 96, 256),  # scales by 1/16
        ... )
        >>> controlled = FusionControlNetPipeline.from_pipe(pipeline, controlnet=controlnet)
        >>> face, depth = Image.open("data/heldout/0000_0.jpg"), Image.new("RGB", (128, 128))
        >>> def generate(pipeline, **control):
        ...     generator = torch.Generator().manual_seed(0)
        ...     return pipeline(
        ...         "a photo of a person",
        ...         references=[face],
        ...         num_inference_steps=2,
        ...         generator=generator,
        ...         **control,
        ...     ).images[0]
        >>> generate(controlled, image=depth) == generate(pipeline)
        True
    """


class FusionControlNetImg2ImgPipeline(FusionMixin, StableDiffusionControlNetImg2ImgPipeline):
    """Image to image from ``image``, with faces, and ControlNets shown ``control_image``.

    It is diffusers' ``StableDiffusionControlNetImg2ImgPipeline`` with one more component, the
    ``adapter``.

    Example:
        Two other people in the places of those in a photograph:

        >>> from diffusers import ControlNetModel
        >>> from PIL import Image
        >>> from fusionlib import FusionControlNetImg2ImgPipeline, FusionPipeline, masks_from_faces
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> controlnet = ControlNetModel.from_unet(  # new: train it, or load one
        ...     pipeline.unet,
        ...     conditioning_embedding_out_channels=(16, 32, 64, 96, 256),  # scales by 1/16
        ... )
        >>> both = FusionControlNetImg2ImgPipeline.from_pipe(pipeline, controlnet=controlnet)
        >>> people = [Image.open(f"data/heldout/{person}_0.jpg") for person in ("0000", "0001")]
        >>> photo, depth = Image.new("RGB", (256, 128)), Image.new("RGB", (256, 128), "grey")
        >>> photo.paste(people[0], (0, 0))
        >>> photo.paste(people[1], (128, 0))
        >>> image = both(
        ...     "a photo of two people",
        ...     references=people[::-1],  # in exchanged places
        ...     identity_masks=masks_from_faces(photo, count=2),
        ...     image=photo,
        ...     strength=0.5,
        ...     control_image=depth,
        ...     num_inference_steps=4,
        ... ).images[0]
        >>> image.size
        (256, 128)
    """


class FusionXLPipeline(FusionXLMixin, StableDiffusionXLPipeline):
    """Text to image with faces: SDXL.

    It is diffusers' ``StableDiffusionXLPipeline`` with one more component, the ``adapter``.

    Example:
        The checkpoint has SDXL's layout and random weights, and makes images of 32 x 32 pixels.

        >>> from PIL import Image
        >>> from fusionlib import FusionXLPipeline
        >>> from tests.helpers.tiny import write_tiny_xl_checkpoint
        >>> sdxl = write_tiny_xl_checkpoint("build/tiny-sdxl")  # or an SDXL checkpoint
        >>> pipeline = FusionXLPipeline.from_pretrained(sdxl, adapter=sdxl / "adapter")
        >>> face = Image.open("data/heldout/0000_0.jpg")
        >>> images = pipeline(
        ...     prompt="a face",
        ...     prompt_2="of bronze",  # for the second text encoder
        ...     references=[face],
        ...     num_images_per_prompt=2,
        ...     num_inference_steps=2,
        ... ).images
        >>> [image.size for image in images]
        [(32, 32), (32, 32)]
    """


class FusionXLImg2ImgPipeline(FusionXLMixin, StableDiffusionXLImg2ImgPipeline):
    """Image to image with faces: SDXL, from ``image``, noised by ``strength``.

    It is diffusers' ``StableDiffusionXLImg2ImgPipeline`` with one more component, the ``adapter``.

    Example:
        The image of one pipeline in the other, which shares its models:

        >>> from PIL import Image
        >>> from fusionlib import FusionXLImg2ImgPipeline, FusionXLPipeline
        >>> from tests.helpers.tiny import write_tiny_xl_checkpoint  # random weights
        >>> sdxl = write_tiny_xl_checkpoint("build/tiny-sdxl")
        >>> pipeline = FusionXLPipeline.from_pretrained(sdxl)
        >>> restyle = FusionXLImg2ImgPipeline.from_pipe(pipeline)
        >>> restyle.unet is pipeline.unet and restyle.adapter is pipeline.adapter
        True
        >>> face = Image.open("data/heldout/0000_0.jpg")
        >>> photo = pipeline("a face", references=[face], num_inference_steps=2).images[0]
        >>> restyle("a bust", references=[face], image=photo, strength=0.6).images[0].size
        (32, 32)
    """


class FusionXLControlNetPipeline(FusionXLMixin, StableDiffusionXLControlNetPipeline):
    """Text to image with faces: SDXL, and ControlNets that are shown ``image``.

    It is diffusers' ``StableDiffusionXLControlNetPipeline`` with one more component, the
    ``adapter``.

    Example:
        Two ControlNets, each with an image and a scale of its own:

        >>> from PIL import Image
        >>> from fusionlib import FusionXLControlNetPipeline, FusionXLPipeline
        >>> from tests.helpers.tiny import tiny_controlnet, write_tiny_xl_checkpoint
        >>> sdxl = write_tiny_xl_checkpoint("build/tiny-sdxl")
        >>> pipeline = FusionXLPipeline.from_pretrained(sdxl)
        >>> for_depth, for_pose = (tiny_controlnet(pipeline.unet) for _ in range(2))
        >>> controlled = FusionXLControlNetPipeline.from_pipe(
        ...     pipeline, controlnet=[for_depth, for_pose]
        ... )
        >>> depth, pose = Image.new("RGB", (32, 32), "grey"), Image.new("RGB", (32, 32))
        >>> controlled(
        ...     "a face",
        ...     references=[Image.open("data/heldout/0000_0.jpg")],
        ...     image=[depth, pose],
        ...     controlnet_conditioning_scale=[1.0, 0.5],
        ...     num_inference_steps=2,
        ... ).images[0].size
        (32, 32)
    """


class FusionXLControlNetImg2ImgPipeline(FusionXLMixin, StableDiffusionXLControlNetImg2ImgPipeline):
    """Image to image with faces: SDXL, from ``image``, and ControlNets shown ``control_image``.

    It is diffusers' ``StableDiffusionXLControlNetImg2ImgPipeline`` with one more component, the
    ``adapter``.

    Example:
        >>> from PIL import Image
        >>> from fusionlib import FusionXLControlNetImg2ImgPipeline, FusionXLPipeline
        >>> from tests.helpers.tiny import tiny_controlnet, write_tiny_xl_checkpoint
        >>> sdxl = write_tiny_xl_checkpoint("build/tiny-sdxl")
        >>> pipeline = FusionXLPipeline.from_pretrained(sdxl)
        >>> controlnet = tiny_controlnet(pipeline.unet)
        >>> both = FusionXLControlNetImg2ImgPipeline.from_pipe(pipeline, controlnet=controlnet)
        >>> both(
        ...     "a bust",
        ...     references=[Image.open("data/heldout/0000_0.jpg")],
        ...     image=Image.open("data/heldout/0001_0.jpg").resize((32, 32)),
        ...     strength=0.6,
        ...     control_image=Image.new("RGB", (32, 32)),
        ...     num_inference_steps=5,
        ... ).images[0].size
        (32, 32)
    """
