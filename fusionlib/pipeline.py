"""FusionPipeline: Stable Diffusion that is also shown faces.

Everything that ``StableDiffusionPipeline`` does is inherited: loading, schedulers, guidance,
batches, callbacks. What is added is one pass of the reference images through the UNet before
sampling, and the UNet conditioned on it while sampling.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image, ImageOps
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from fusionlib.adapter import FusionAdapter
from fusionlib.attention import Strength
from fusionlib.errors import FusionError
from fusionlib.reference import ReferenceCache, encode_references

References = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | ReferenceCache


class FusionPipeline(StableDiffusionPipeline):
    """Text-to-image generation that keeps the identity of reference faces.

    Takes the components of ``StableDiffusionPipeline`` and an ``adapter``. Without references, or
    without an adapter, it makes the base model's images.

    Example:
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> face = Image.open("face.png")
        >>> pipeline("a laughing person", references=[face]).images[0]
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->adapter->vae"
    _optional_components = [*StableDiffusionPipeline._optional_components, "adapter"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker = None,
        feature_extractor: CLIPImageProcessor = None,
        image_encoder: CLIPVisionModelWithProjection = None,
        adapter: FusionAdapter | None = None,
        requires_safety_checker: bool = True,
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            # A checkpoint without a safety checker was made so on purpose: no need to repeat it.
            requires_safety_checker=requires_safety_checker and safety_checker is not None,
        )
        self.register_modules(adapter=adapter)
        if adapter is not None:
            adapter.attach(unet)  # an adapter that does not fit is better known now than later

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter: str | Path | FusionAdapter | None = None,
        **kwargs: Any,
    ) -> "FusionPipeline":
        """Load any Stable Diffusion checkpoint, with a fusion adapter.

        Args:
            pretrained_model_name_or_path: A folder in diffusers' layout, or a hub id.
            adapter: The adapter, or its folder or hub id; None takes the checkpoint's own
                ``adapter`` folder where there is one.
            **kwargs: As for ``StableDiffusionPipeline.from_pretrained``.

        Raises:
            FusionError: If the checkpoint or the adapter cannot be loaded.
        """
        own = Path(pretrained_model_name_or_path) / "adapter"
        if adapter is None and (own / "config.json").is_file():
            adapter = own
        try:
            if isinstance(adapter, str | Path):
                adapter = _load_adapter(adapter, kwargs.get("dtype", kwargs.get("torch_dtype")))
            return super().from_pretrained(
                str(pretrained_model_name_or_path), adapter=adapter, **kwargs
            )
        except FusionError:
            raise
        except (OSError, ValueError) as error:
            raise FusionError(
                f"The model {str(pretrained_model_name_or_path)!r} cannot be loaded; it must be a "
                f"folder in Stable Diffusion's layout or a hub id ({_first_line(error)})."
            ) from error

    def load_adapter_weights(self, adapter: str | Path | FusionAdapter) -> None:
        """Use this adapter, or the one in this folder or hub id, in place of the former one."""
        loaded = _load_adapter(adapter, self.dtype) if isinstance(adapter, str | Path) else adapter
        loaded = loaded.to(self.unet.device)
        loaded.attach(self.unet)  # before the former one goes, so that a misfit changes nothing
        former = self.adapter
        if former is not None and former is not loaded and former.unet is not None:
            former.detach(self.unet)
        self.register_modules(adapter=loaded)

    @torch.no_grad()
    def encode_references(
        self,
        references: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
        height: int | None = None,
        width: int | None = None,
    ) -> ReferenceCache:
        """Compute K_f and V_f of reference images, once for any number of generations.

        Each image is turned upright (EXIF), cropped to the model's aspect ratio about its centre,
        resized, encoded by the VAE (the mean of its distribution), and passed through the UNet
        without noise, at timestep 0, with the empty prompt.

        Args:
            references: The images that every generated image sees, or a list of lists: one for each
                prompt of a batch, equally many in each.
            height: The height in pixels at which the UNet sees them; None means the model's own.
            width: The width, likewise.

        Raises:
            FusionError: If there is no adapter, or something in ``references`` is not an image.
        """
        adapter = self._attached_adapter()
        groups = _grouped(references)
        images = [image for group in groups for image in group]
        if not images:
            return ReferenceCache(())
        size = self._image_size(height, width)
        pixels = self.image_processor.preprocess([prepare_reference(im, *size) for im in images])
        device = self._execution_device
        distribution = self.vae.encode(pixels.to(device, self.vae.dtype)).latent_dist
        latents = distribution.mode() * self.vae.config.scaling_factor
        empty_prompt, _ = self.encode_prompt("", device, 1, False)
        hidden_states = encode_references(
            self.unet, latents.to(self.unet.dtype), empty_prompt.to(self.unet.dtype)
        )
        projected = adapter.project(hidden_states)
        every = ReferenceCache(
            tuple(
                {
                    name: (key[i : i + 1], value[i : i + 1])
                    for name, (key, value) in projected.items()
                }
                for i in range(len(images))
            )
        ).to(device, self.unet.dtype)
        each = len(groups[0])
        return ReferenceCache.stack([every[i : i + each] for i in range(0, len(images), each)])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        references: References | None = None,
        strengths: float | Sequence[Strength] | None = None,
        identity_masks: Tensor | np.ndarray | Sequence[Image.Image] | None = None,
        reference_identity: Sequence[int] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int | None = 1,
        prompt_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, ...]:
        """Generate images that show the references' faces.

        Args:
            prompt: The prompt or prompts.
            references: Face images, or what ``encode_references`` made of them. A list of images
                serves every prompt; a list of lists holds each prompt's own. None, or an empty
                list, gives the base model's image.
            strengths: lambda_i of each reference, a number or a tensor with one for each image, or
                one number for all references; None means 1, and 0 gives the base model's image bit
                by bit.
            identity_masks: For several identities in one image (Eq. 7): where each identity's face
                shall be, boolean ``(identities, height, width)`` or one black and white image each.
            reference_identity: With masks, the index of the identity that each reference shows;
                None means that reference i shows identity i.
            height: The height in pixels; None means the model's own.
            width: The width in pixels; None means the model's own.
            guidance_scale: Classifier-free guidance; the unconditional branch sees no face.
            num_images_per_prompt: How many images to make of each prompt.
            prompt_embeds: Text embeddings in place of ``prompt``.
            **kwargs: Everything else that ``StableDiffusionPipeline`` takes.

        Returns:
            What ``StableDiffusionPipeline`` returns.

        Raises:
            FusionError: If an argument does not fit; the message names it.
        """
        repeats = num_images_per_prompt or 1
        arguments = {
            "prompt": prompt,
            "height": height,
            "width": width,
            "guidance_scale": guidance_scale,
            "num_images_per_prompt": repeats,
            "prompt_embeds": prompt_embeds,
            **kwargs,
        }
        if references is None:
            for name, value in (
                ("strengths", strengths),
                ("identity_masks", identity_masks),
                ("reference_identity", reference_identity),
            ):
                if value is not None:
                    raise FusionError(f"{name} needs references: give at least one face image.")
            return super().__call__(**arguments)

        adapter = self._attached_adapter()
        if not isinstance(references, ReferenceCache):
            references = self.encode_references(references)
        if isinstance(prompt, list):
            prompts = len(prompt)
        else:
            prompts = 1 if prompt_embeds is None else prompt_embeds.shape[0]
        if references.batch_size not in (1, prompts):
            raise FusionError(
                f"references holds faces for {references.batch_size} prompts, but there are "
                f"{prompts}: give one list of faces for each prompt, or one for all."
            )
        if isinstance(strengths, int | float):
            strengths = [strengths] * len(references)
        with adapter.conditioned(
            references.to(self._execution_device, self.unet.dtype).repeat_interleave(repeats),
            strengths=strengths,
            identity_masks=self._masks(identity_masks, height, width),
            reference_identity=reference_identity,
            batch_size=prompts * repeats,
        ):
            return super().__call__(**arguments)

    def _attached_adapter(self) -> FusionAdapter:
        if self.adapter is None:
            raise FusionError(
                "references need a fusion adapter: load one with from_pretrained(..., adapter=...) "
                "or load_adapter_weights(...)."
            )
        self.adapter.attach(self.unet)
        return self.adapter

    def _image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, the model's own where they are not given."""
        size = self.unet.config.sample_size
        rows, columns = (size, size) if isinstance(size, int) else size
        return height or rows * self.vae_scale_factor, width or columns * self.vae_scale_factor

    def _masks(
        self,
        masks: Tensor | np.ndarray | Sequence[Image.Image] | None,
        height: int | None,
        width: int | None,
    ) -> Tensor | None:
        """The identity masks as booleans, checked against the size of the image."""
        if masks is None:
            return None
        if isinstance(masks, np.ndarray):
            masks = torch.from_numpy(masks)
        elif not isinstance(masks, Tensor):
            if len({mask.size for mask in masks}) != 1:
                raise FusionError(
                    "identity_masks must be one image for each identity, of one size."
                )
            masks = torch.stack(
                [torch.from_numpy(np.asarray(mask.convert("L")) > 127) for mask in masks]
            )
        wanted = self._image_size(height, width)
        if masks.ndim != 3 or masks.dtype != torch.bool or tuple(masks.shape[1:]) != wanted:
            raise FusionError(
                f"identity_masks must be boolean of shape (identities, {wanted[0]}, {wanted[1]}) "
                f"like the image, not {masks.dtype} of {tuple(masks.shape)}."
            )
        for index, mask in enumerate(masks):
            if not mask.any():
                raise FusionError(
                    f"identity_masks[{index}] is empty: mark where that face shall be."
                )
        return masks.to(self._execution_device)


def prepare_reference(image: Image.Image, height: int, width: int) -> Image.Image:
    """Turn an image upright, crop it about its centre, and resize it to ``height`` x ``width`` RGB.

    Transparent parts become white.
    """
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)


def _grouped(references: Any) -> list[list[Image.Image]]:
    """The images for each prompt, or those of the one group that serves all prompts; checked."""
    if isinstance(references, Image.Image):
        references = [references]
    nested = len(references) > 0 and all(isinstance(item, list | tuple) for item in references)
    groups = [list(group) for group in references] if nested else [list(references)]
    counts = [len(group) for group in groups]
    if len(set(counts)) != 1:
        raise FusionError(
            "references must hold equally many images for each prompt, not "
            f"{', '.join(map(str, counts))}."
        )
    for index, image in enumerate(image for group in groups for image in group):
        if not isinstance(image, Image.Image):
            raise FusionError(
                f"references[{index}] must be a PIL image, not {type(image).__name__}: open the "
                "file with PIL.Image.open first."
            )
    return groups


def _load_adapter(source: str | Path, dtype: torch.dtype | None) -> FusionAdapter:
    try:
        return FusionAdapter.from_pretrained(str(source), dtype=dtype)
    except OSError as error:
        raise FusionError(
            f"The adapter {str(source)!r} cannot be loaded; it must be a folder with config.json "
            f"and diffusion_pytorch_model.safetensors, or a hub id ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
