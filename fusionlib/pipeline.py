"""The pipeline: Stable Diffusion conditioned on reference faces.

Everything that diffusers' pipelines do is inherited: loading, schedulers, guidance, batches,
ControlNet, LoRA, offloading, callbacks. ``FusionMixin`` holds all that is added: one pass of the
reference images through the UNet, and the UNet conditioned on it while sampling. A public class is
that mixin and the diffusers pipeline of the same task: ``FusionPipeline`` here, the others in
``fusionlib.pipeline_variants`` and ``fusionlib.pipeline_inpainting``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from fusionlib.checks import Strength, check_divisible, check_text_encoder
from fusionlib.errors import FusionError, first_line
from fusionlib.guidance import Call, add_branch, blend_branches, intercepted
from fusionlib.pipeline_inputs import (
    IdentityMasks,
    PipelineInputs,
    ReferenceImages,
    References,
    ReferenceText,
    check_adapter,
    prepare_reference,
    read_inputs,
    reference_images,
)
from fusionlib.pipeline_loading import FusionLoadingMixin
from fusionlib.processor import exclusive_use
from fusionlib.reference import encode_references
from fusionlib.reference_cache import LayerKeysValues, ReferenceCache

EncodeAt = Callable[[Any], Sequence[LayerKeysValues]]
"""From a timestep to K_f and V_f of each reference, noised to that timestep."""


class FusionMixin(FusionLoadingMixin):
    """The additions to a diffusers pipeline that keep the identity of reference faces.

    Subclass it together with a diffusers pipeline: ``class X(FusionMixin, SomePipeline)``. The
    class takes that pipeline's components and an ``adapter``, and its call takes that pipeline's
    arguments and those below. Without references, or without an adapter, it makes the base model's
    images bit for bit.
    """

    _stock_call: Any = nullcontext  # what a kind of pipeline needs around diffusers' own call

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        references: References | None = None,
        strengths: float | Sequence[Strength] | None = None,
        identity_masks: IdentityMasks | None = None,
        reference_identity: Sequence[int] | None = None,
        guidance_mode: Literal["joint", "separate"] = "joint",
        identity_guidance_scale: float | None = None,
        timestep_mode: Literal["clean", "shared"] = "clean",
        reference_prompt_embeds: Tensor | None = None,
        reference_pooled_prompt_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate images that show the references' faces.

        Args:
            *args: Arguments of the diffusers pipeline in its own order, the prompt first.
            references: Face images, or what ``encode_references`` made of them, or a list of such
                caches, of several people for example. A list of images serves every prompt; a list
                of lists holds each prompt's own. None, or an empty list, gives the base model's
                image. They go through the UNet as it is, LoRA weights included; what was encoded
                with other ones is refused.
            strengths: lambda_i of each reference, a number or a tensor with one for each image, or
                one number for all references; None means 1, and 0 gives the base model's image bit
                by bit.
            identity_masks: For several identities in one image (Eq. 7): where each identity's face
                should be, boolean ``(identities, height, width)`` or a black and white image each.
                Where two overlap, neither face is seen, only the text.
            reference_identity: With masks, the index of the identity that each reference shows;
                None means that reference i shows identity i.
            guidance_mode: ``"joint"`` guides text and faces by ``guidance_scale``: the
                unconditional branch of classifier-free guidance sees neither. ``"separate"`` gives
                the faces a scale of their own: u + guidance_scale (c - u) +
                identity_guidance_scale (f - c), where u sees nothing, c the text, and f the text
                and the faces; each step costs 1.5 times as much.
            identity_guidance_scale: Only for ``"separate"``: a number of at least 0; None means
                ``guidance_scale``, which is the joint mode again.
            timestep_mode: ``"clean"`` encodes the references once, without noise; ``"shared"``
                encodes them again at each step, noised to the step's timestep, by noise that is
                drawn from ``generator`` once, after the image's own. The face features then
                change at every step, and schedulers that extrapolate over four steps (PNDM, LMS)
                may diverge under strong guidance; DDIM, Euler and DPM-Solver did not.
            reference_prompt_embeds: Embedding of the empty prompt, ``(1, N_text, width)``, that
                reference images are encoded with where no text encoder is loaded;
                ``negative_prompt_embeds`` take its place, with a warning, if it is None.
            reference_pooled_prompt_embeds: Its pooled form ``(1, width)``, for SDXL.
            **kwargs: All arguments of the diffusers pipeline, by name: ``height``, ``generator``,
                ``image``, ``ip_adapter_image``, ``callback_on_step_end`` and so on. One that is not
                given comes from ``sampling_defaults``, if the checkpoint has them. A prompt longer
                than the text encoder reads is cut, with a warning that shows what was cut.
                ``cross_attention_kwargs={"scale": ...}`` scales LoRA weights for the image and for
                its references.

        Returns:
            What the diffusers pipeline returns; its ``images`` are PIL images, or what
            ``output_type`` asks for.

        Raises:
            FusionError: If an argument does not fit; the message names it.

        Warns:
            UserWarning: If a prompt is cut, an image's size is rounded, identity masks overlap, or
                a mask belongs to no reference; the message says which.

        Example:
            Two people side by side, each in a half of the image, from two seeds:

            >>> import torch
            >>> from PIL import Image
            >>> from fusionlib import FusionPipeline, masks_from_boxes
            >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
            >>> images = pipeline(
            ...     "a photo of two people",
            ...     references=[Image.open(f"data/heldout/{i}_0.jpg") for i in ("0000", "0001")],
            ...     strengths=[1.0, 0.8],
            ...     identity_masks=masks_from_boxes([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], (128, 256)),
            ...     height=128,
            ...     width=256,
            ...     num_images_per_prompt=2,
            ...     generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
            ...     num_inference_steps=2,
            ... ).images
            >>> [image.size for image in images]
            [(256, 128), (256, 128)]
        """
        inputs = read_inputs(
            self,
            super().__call__,
            args,
            kwargs,
            references=references,
            strengths=strengths,
            identity_masks=identity_masks,
            reference_identity=reference_identity,
            text=ReferenceText("", reference_prompt_embeds, reference_pooled_prompt_embeds),
            guidance_mode=guidance_mode,
            identity_guidance_scale=identity_guidance_scale,
            timestep_mode=timestep_mode,
        )
        with exclusive_use(self.unet), self._stock_call():
            if inputs.references is None:
                return super().__call__(**inputs.options)
            encoded = self._encode_inputs(inputs)
            with self._conditioned(encoded, inputs):
                return super().__call__(**inputs.options)

    def _encode_inputs(self, inputs: PipelineInputs) -> ReferenceCache | EncodeAt:
        """K_f and V_f of a call's references, or how to encode them at each step."""
        references = inputs.references
        if isinstance(references, list):
            if inputs.shared and inputs.visible:
                return self._encoder_at_each_step(references, inputs)
            references = self._encode_references(references, inputs.text)
        assert references is not None
        cache = references.to(self._execution_device, self.unet.dtype)
        return cache.repeat_interleave(inputs.repeats)

    @contextmanager
    def _conditioned(
        self, references: ReferenceCache | EncodeAt, inputs: PipelineInputs
    ) -> Iterator[None]:
        """Let the UNet see the faces inside the ``with`` block.

        With shared timesteps the references are encoded again before each of the UNet's calls, and
        with separate guidance each call has one more branch: hooks on the UNet do both.
        """
        images, separate = inputs.images, inputs.separate and inputs.visible
        with ExitStack() as hooks, ExitStack() as faces:

            def show(shown: Sequence[LayerKeysValues]) -> None:
                faces.enter_context(
                    self.adapter.conditioned(
                        shown,
                        strengths=inputs.strengths,
                        identity_masks=inputs.masks,
                        reference_identity=inputs.reference_identity,
                        latent_size=inputs.latent_size,
                        batch_size=images,
                        same_text=inputs.same_text,
                    )
                )

            def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
                if callable(references):
                    faces.close()  # the references are seen by the base model
                    show(references(args[1] if len(args) > 1 else kwargs["timestep"]))
                return add_branch(args, kwargs, images) if separate else (args, kwargs)

            def after(prediction: Tensor) -> Tensor:
                if not separate:
                    return prediction
                guided = prediction.shape[0] > 2 * images  # there is an unconditional branch
                text_scale = self.guidance_scale if guided else 1  # a callback may change it
                scale = inputs.identity_guidance_scale
                weight = (text_scale if scale is None else scale) / text_scale
                return blend_branches(prediction, images, weight)

            if isinstance(references, ReferenceCache):
                show(references)
            if separate or callable(references):
                hooks.enter_context(intercepted(self.unet, before, after))
            yield

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Make diffusers' own checks, with this library's error."""
        try:
            super().check_inputs(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise FusionError(f"{first_line(error)}.") from error

    @torch.no_grad()
    def encode_references(
        self,
        references: ReferenceImages,
        height: int | None = None,
        width: int | None = None,
        prompt: str = "",
        reference_prompt_embeds: Tensor | None = None,
        reference_pooled_prompt_embeds: Tensor | None = None,
    ) -> ReferenceCache:
        """Compute K_f and V_f of reference images, once for any number of generations.

        Each image is turned upright (EXIF), cropped to the model's aspect ratio about its centre,
        resized, encoded by the VAE (the mean of its distribution), and passed through the UNet
        without noise, at timestep 0, with the empty prompt, or another.

        Args:
            references: Images that every generated image sees, or a list of lists: one for each
                prompt of a batch, equally many in each.
            height: Height in pixels at which the UNet sees them; None means the model's own.
            width: Width in pixels, likewise.
            prompt: Caption of the references, for an adapter that was trained with captions.
            reference_prompt_embeds: Embedding of that prompt, where no text encoder is loaded.
            reference_pooled_prompt_embeds: Its pooled form, for SDXL.

        Returns:
            K_f and V_f of each reference, ``(1 or prompts, N_f, inner_dim)`` in every layer.

        Raises:
            FusionError: If there is no adapter, something in ``references`` is not an image, or the
                autoencoder does not divide the size.
        """
        with exclusive_use(self.unet):
            check_adapter(self)
            check_divisible(height, width, self.vae_scale_factor)
            images = reference_images(references)
            text = ReferenceText(prompt, reference_prompt_embeds, reference_pooled_prompt_embeds)
            return self._encode_references(images, text, self.image_size(height, width))

    def _encode_references(
        self,
        groups: list[list[Image.Image]],
        text: ReferenceText,
        size: tuple[int, int] | None = None,
    ) -> ReferenceCache:
        """K_f and V_f of reference images, in one list for each prompt or one for all (Eq. 2)."""
        images = [image for group in groups for image in group]
        if not images:
            return ReferenceCache(())
        height, width = size or self.image_size()
        prompt, added = self._reference_text(height, width, text)
        hidden_states = encode_references(  # h_f
            self.unet,
            self._encode_images(images, height, width),
            prompt,
            added_cond_kwargs=added,
            lora_scale=text.lora_scale,
        )
        every = self.adapter.cache(hidden_states).to(self._execution_device, self.unet.dtype)
        each = len(groups[0])
        return ReferenceCache.stack([every[i : i + each] for i in range(0, len(images), each)])

    def _encoder_at_each_step(
        self, groups: list[list[Image.Image]], inputs: PipelineInputs
    ) -> EncodeAt:
        """A function from a timestep to each reference's K_f and V_f, noised to that timestep."""
        size, images = self.image_size(), inputs.images
        empty_prompt, added = self._reference_text(*size, inputs.text)
        latents = self._encode_images([image for group in groups for image in group], *size)
        # (references, images, channels, h, w): each image has its own references or the one group
        shown = latents.unflatten(0, (len(groups), -1)).transpose(0, 1)
        shown = shown.repeat_interleave(images // len(groups), dim=1)
        generator = inputs.options.get("generator")
        noise: list[Tensor] | None = None

        def encode(timestep: Any) -> list[LayerKeysValues]:
            nonlocal noise
            if noise is None:  # at the first step: the image's own noise is drawn before it
                device, dtype = latents.device, latents.dtype
                noise = [randn_tensor(s.shape, generator, device, dtype) for s in shown]
            return [
                self.adapter(
                    encode_references(
                        self.unet,
                        reference,
                        empty_prompt,
                        timestep_mode="shared",
                        timestep=torch.as_tensor(timestep).flatten()[0],
                        noise=own_noise,
                        scheduler=self.scheduler,
                        added_cond_kwargs=added,
                        lora_scale=inputs.text.lora_scale,
                    )
                )
                for reference, own_noise in zip(shown, noise, strict=True)
            ]

        return encode

    def _reference_text(
        self, height: int, width: int, text: ReferenceText
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The text embedding that a reference is encoded with, and SDXL's added conditions."""
        device, embeds = self._execution_device, text.embeds
        if embeds is None:
            check_text_encoder(self.text_encoder)
            scale = text.lora_scale
            embeds, _ = self.encode_prompt(text.prompt, device, 1, False, lora_scale=scale)
        return embeds.to(device, self.unet.dtype), None

    def _encode_images(self, images: Sequence[Image.Image], height: int, width: int) -> Tensor:
        """The scaled latents of reference images, ``(images, channels, h, w)``."""
        prepared = [prepare_reference(image, height, width) for image in images]
        pixels = self.image_processor.preprocess(prepared)
        encoded = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype))
        latents = retrieve_latents(encoded, sample_mode="argmax") * self.vae.config.scaling_factor
        return latents.to(self.unet.dtype)

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Complete the size of a picture.

        Args:
            height: Height in pixels; None means the model's own.
            width: Width in pixels; None means the model's own.

        Returns:
            Height and width in pixels.
        """
        size = self.unet.config.sample_size
        rows, columns = (size, size) if isinstance(size, int) else size
        return height or rows * self.vae_scale_factor, width or columns * self.vae_scale_factor


class FusionPipeline(FusionMixin, StableDiffusionPipeline):
    """Text to image with faces: Stable Diffusion 1.x and 2.x.

    It is diffusers' ``StableDiffusionPipeline`` with one more component, the ``adapter``. What that
    pipeline does, it does, and without references it makes the same images, bit for bit.
    ``save_pretrained`` writes the adapter to a folder of the checkpoint, where ``from_pretrained``
    finds it.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from fusionlib import FusionPipeline
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> face = Image.open("data/heldout/0000_0.jpg")
        >>> def laughing(**faces):
        ...     return pipeline(
        ...         "a photo of a laughing person",
        ...         num_inference_steps=2,  # 30 for a good image
        ...         generator=torch.Generator().manual_seed(0),
        ...         **faces,
        ...     ).images[0]
        >>> base, fused = laughing(), laughing(references=[face], strengths=[0.8])
        >>> fused.size, fused == base
        ((128, 128), False)
        >>> laughing(references=[face], strengths=[0]) == base
        True
    """
