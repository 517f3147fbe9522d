"""A call to a pipeline, read and checked once, before anything is computed."""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from fusionlib.checks import (
    NUMBERS,
    Strength,
    check_divisible,
    check_reference_identity,
    check_strengths,
    is_index,
    is_number,
)
from fusionlib.errors import FusionError
from fusionlib.inputs.images import MIN_SIDE, to_rgb
from fusionlib.inputs.layout import brightness, warn_of_overlaps
from fusionlib.processor import exclusive_use
from fusionlib.reference_cache import ReferenceCache

ReferenceImages = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]]
References = ReferenceImages | ReferenceCache | Sequence[ReferenceCache]
IdentityMasks = Tensor | np.ndarray | Sequence[Image.Image]

TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
"""Arguments of a call that hold text."""

CALLER = 6
"""Frames from a warning to the line that called the pipeline, for ``warnings.warn``."""


@dataclass(frozen=True)
class ReferenceText:
    """The text that references are encoded with.

    Attributes:
        prompt: The prompt; the paper's is empty.
        embeds: Embedding of the prompt, ``(1, N_text, width)``; None to encode it.
        pooled: Pooled form of the embedding, ``(1, width)``, for SDXL.
        lora_scale: Factor of the LoRA weights in the references' pass; None if the call does not
            set one.
    """

    prompt: str = ""
    embeds: Tensor | None = None
    pooled: Tensor | None = None
    lora_scale: float | None = None


@dataclass(frozen=True)
class PipelineInputs:
    """What a call to a pipeline asks for, checked.

    Attributes:
        options: Arguments of the diffusers pipeline's own call.
        images: Number of images to make, the size of each branch of guidance.
        repeats: Number of images for each prompt.
        references: Reference images, in one list for each prompt or one for all; or their cache;
            None without references.
        strengths: lambda_i of each reference, None for 1.
        visible: Whether any strength differs from 0.
        masks: Identity masks, boolean ``(identities, height, width)``; None without.
        reference_identity: Index of the identity that each reference shows; None without.
        latent_size: Height and width of the latents if the masks decide them; None if unknown.
        separate: Whether the faces have a guidance scale of their own.
        shared: Whether the references are encoded at every step, at the image's timestep.
        identity_guidance_scale: Scale of the faces if ``separate``; None for ``guidance_scale``.
        text: Text that the references are encoded with.
    """

    options: dict[str, Any]
    images: int
    repeats: int
    references: list[list[Image.Image]] | ReferenceCache | None = None
    strengths: Sequence[Strength] | None = None
    visible: bool = False
    masks: Tensor | None = None
    reference_identity: Sequence[int] | None = None
    latent_size: tuple[int, int] | None = None
    separate: bool = False
    shared: bool = False
    identity_guidance_scale: float | None = None
    text: ReferenceText = ReferenceText()

    @property
    def same_text(self) -> bool:
        """Whether the text's tensor is the same, unchanged, at every step."""
        called_back = any(
            self.options.get(name) is not None for name in ("callback_on_step_end", "callback")
        )
        return not (self.separate or self.shared or called_back)


def read_inputs(
    pipeline: Any,
    stock_call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    references: References | None,
    strengths: float | Sequence[Strength] | None,
    identity_masks: IdentityMasks | None,
    reference_identity: Sequence[int] | None,
    guidance_mode: Literal["joint", "separate"],
    identity_guidance_scale: float | None,
    timestep_mode: Literal["clean", "shared"],
    text: ReferenceText,
) -> PipelineInputs:
    """Read and check a call of ``FusionMixin``.

    The arguments are those of its ``__call__``; ``stock_call`` is the call of the diffusers
    pipeline under it, and ``args`` and ``kwargs`` are the arguments for that one.

    Raises:
        FusionError: If an argument does not fit; the message names it.

    Warns:
        UserWarning: If a prompt is cut, the size of ``image`` is rounded, identity masks overlap,
            or one belongs to no reference.
    """
    options = _named_options(pipeline, stock_call, args, kwargs)
    _check_options(pipeline, stock_call, options)
    options = {name: _readable(pipeline, name, value) for name, value in options.items()}
    if options.get("padding_mask_crop") is not None:
        _check_crop(options)
    prompt = options.get("prompt")
    repeats = _repeats(options)
    images = repeats * _count_prompts(repeats, options)
    with exclusive_use(pipeline.unet):  # tokenizing in one thread changes the padding of another's
        _warn_of_truncation(pipeline, options)
    check_divisible(options.get("height"), options.get("width"), pipeline.vae_scale_factor)
    if (options.get("height") is None) != (options.get("width") is None):
        # Some diffusers pipelines would drop the one that is given.
        height, width = output_size(pipeline, options)
        options = options | {"height": height, "width": width}
    _warn_of_rounding(pipeline, options)
    options = {"prompt": prompt, **options, "num_images_per_prompt": repeats}
    separate = _one_of("guidance_mode", guidance_mode, "joint", "separate") == "separate"
    shared = _one_of("timestep_mode", timestep_mode, "clean", "shared") == "shared"
    if identity_guidance_scale is not None:
        _check_identity_scale(identity_guidance_scale, separate)
    if references is None:
        for name, value in (
            ("strengths", strengths),
            ("identity_masks", identity_masks),
            ("reference_identity", reference_identity),
            ("reference_prompt_embeds", text.embeds),
        ):
            if value is not None:
                raise FusionError(f"{name} needs references: give at least one face image.")
        return PipelineInputs(options, images, repeats)

    check_adapter(pipeline)
    lora_scale = _lora_scale(options)
    faces = _read_references(references)
    if isinstance(faces, ReferenceCache):
        _check_cache(pipeline, shared, lora_scale)
        prompts, each = faces.batch_size, len(faces)
    else:
        prompts, each = len(faces), len(faces[0])
    if prompts not in (1, images // repeats):
        raise FusionError(
            f"references holds faces for {prompts} prompts, but there are {images // repeats}: "
            "give one list of faces for each prompt, or one for all."
        )
    if isinstance(strengths, NUMBERS):
        strengths = [float(strengths)] * each
    checked = check_strengths(strengths, each, images)
    masks, latent_size = _read_masks(pipeline, identity_masks, options), None
    if masks is not None:
        identities = range(each) if reference_identity is None else reference_identity
        check_reference_identity(identities, each, len(masks))
        _warn_of_unused_masks(masks, identities)
        if options.get("padding_mask_crop") is not None:
            masks = _cropped(pipeline, masks, options)
        if options.get("latents") is None:  # whose size diffusers takes as it is
            factor = pipeline.vae_scale_factor
            latent_size = masks.shape[1] // factor, masks.shape[2] // factor
    return PipelineInputs(
        options,
        images,
        repeats,
        faces,
        strengths,
        visible=any(not is_number(strength, 0) for strength in checked),
        masks=masks,
        reference_identity=reference_identity,
        latent_size=latent_size,
        separate=separate,
        shared=shared,
        identity_guidance_scale=identity_guidance_scale,
        text=_reference_text(pipeline, replace(text, lora_scale=lora_scale), options),
    )


def check_adapter(pipeline: Any) -> None:
    """Refuse a pipeline without an adapter; attach the adapter again if something undid that."""
    if pipeline.adapter is None:
        raise FusionError(
            "references need a fusion adapter: load one with from_pretrained(..., adapter=...) "
            "or load_adapter_weights(...)."
        )
    pipeline.adapter.attach(pipeline.unet)


def _read_references(references: References) -> list[list[Image.Image]] | ReferenceCache:
    """The references as one cache, or as images: a list for each prompt, or one for all."""
    if isinstance(references, list | tuple) and references:
        caches = [each for each in references if isinstance(each, ReferenceCache)]
        if len(caches) == len(references):
            return ReferenceCache.join(caches)
    if isinstance(references, ReferenceCache):
        return references
    return reference_images(references)


def _check_cache(pipeline: Any, shared: bool, lora_scale: float | None) -> None:
    """Refuse what a ``ReferenceCache``, encoded once and before, cannot serve."""
    if shared:
        raise FusionError(
            'references must be images with timestep_mode="shared", which encodes them at '
            "every step: a ReferenceCache was encoded once."
        )
    if lora_scale not in (None, 1) and getattr(pipeline.unet, "peft_config", None):
        raise FusionError(
            'references must be images with cross_attention_kwargs={"scale": ...}, for a '
            "ReferenceCache holds LoRA weights as they were: or scale them by set_adapters "
            "before encode_references."
        )


def reference_images(references: Any) -> list[list[Image.Image]]:
    """Return the reference images, checked: a list for each prompt, or one for all prompts.

    Raises:
        FusionError: If something is no image, too small or unreadable, or lists differ in length.
    """
    if isinstance(references, Image.Image):
        references = [references]
    if not isinstance(references, list | tuple):
        raise FusionError(
            f"references must be PIL images or a ReferenceCache, not {type(references).__name__}."
        )
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
        if min(image.size) < MIN_SIDE:
            raise FusionError(
                f"references[{index}] has {image.width} x {image.height} pixels: at least "
                f"{MIN_SIDE} on each side are needed."
            )
        _load(f"references[{index}]", image)
    return groups


def _load(name: str, image: Image.Image) -> None:
    """Read an image that was opened lazily, so that a damaged file is refused by its name."""
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise FusionError(
            f"{name} cannot be read ({error}): get a whole copy of the file, and do not close it "
            "before it is used."
        ) from error


def prepare_reference(image: Image.Image, height: int, width: int) -> Image.Image:
    """Turn an image upright, crop it about its centre, and resize it to ``height`` x ``width`` RGB.

    Transparent parts become white, and grey of more than 8 bits is scaled to 8 bits.
    """
    upright = to_rgb(ImageOps.exif_transpose(image))
    return ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)


def _readable(pipeline: Any, name: str, value: Any) -> Any:
    """An argument of the call, its PIL images in a mode that diffusers reads.

    It takes only RGB, and masks without transparency and of 8 bits. Transparent parts become white
    in an image, and black in a mask: they are not painted.
    """
    if name not in ("image", "control_image", "mask_image") or value is None:
        return value
    if isinstance(value, list | tuple) and value:
        return [_readable(pipeline, name, each) for each in value]
    if isinstance(value, Image.Image):
        _load(name, value)
        if name != "mask_image":
            return value if value.mode == "RGB" else to_rgb(value)
        deep = value.mode.startswith("I") or value.mode == "F"
        return Image.fromarray(brightness(value)) if deep or value.has_transparency_data else value
    if not isinstance(value, np.ndarray | Tensor):
        raise FusionError(
            f"{name} must be a PIL image, an array or a tensor, not {type(value).__name__}."
        )
    if value.ndim < 3 and name != "mask_image":
        raise FusionError(f"{name} must have channels in RGB, not the shape {tuple(value.shape)}.")
    return value


def _check_start(pipeline: Any, image: Any) -> None:
    """Refuse channels of an array or tensor that diffusers would fail on, or take for latents."""
    wanted, latent = pipeline.vae.config.in_channels, pipeline.vae.config.latent_channels
    for each in image if isinstance(image, list | tuple) else [image]:
        if not isinstance(each, np.ndarray | Tensor) or each.ndim < 3:
            continue
        channels = each.shape[-1] if isinstance(each, np.ndarray) else each.shape[-3]
        latents = isinstance(each, Tensor) and channels == latent == 4  # which diffusers knows
        if channels != wanted and not latents:
            raise FusionError(f"image must have {wanted} channels (RGB), not {channels}.")


def _check_crop(options: dict[str, Any]) -> None:
    """Check what is painted with ``padding_mask_crop``: the masked part of one PIL image."""
    image: Any = options.get("image")
    mask: Any = options.get("mask_image")
    margin = options["padding_mask_crop"]
    if not isinstance(margin, int) or margin < 0:
        raise FusionError(f"padding_mask_crop must be a number of pixels, not {margin!r}.")
    for name, picture in (("image", image), ("mask_image", mask)):
        if not isinstance(picture, Image.Image):
            raise FusionError(
                f"{name} must be one PIL image with padding_mask_crop, not "
                f"{type(picture).__name__}."
            )
    if mask.size != image.size:
        raise FusionError(
            f"mask_image must have the size of image with padding_mask_crop, {image.width} x "
            f"{image.height}, not {mask.width} x {mask.height}."
        )
    if not brightness(mask).any():
        raise FusionError("mask_image is black: mark in white what shall be painted.")


def _cropped(pipeline: Any, masks: Tensor, options: dict[str, Any]) -> Tensor:
    """The identity masks, cut and scaled as diffusers does it with ``padding_mask_crop``."""
    height, width = output_size(pipeline, options)
    margin, shape = options["padding_mask_crop"], pipeline.mask_processor.config
    processor = VaeImageProcessor(**shape | {"resample": "nearest"})  # disjoint masks stay disjoint
    region = processor.get_crop_region(options["mask_image"], width, height, pad=margin)
    pictures = [Image.fromarray(mask.cpu().numpy()).convert("L") for mask in masks]
    cut = processor.preprocess(
        pictures, height=height, width=width, resize_mode="fill", crops_coords=region
    )
    return cut[:, 0] > 0.5


def output_size(pipeline: Any, options: dict[str, Any]) -> tuple[int, int]:
    """Height and width of what is sampled: in pixels, those of ``latents`` or ``image``, if given.

    Inpainting without a ControlNet scales the image to the size of the call, or of the model.
    """
    height, width = options.get("height"), options.get("width")
    latents = options.get("latents")
    if isinstance(latents, Tensor) and latents.ndim == 4:
        rows, columns = (side * pipeline.vae_scale_factor for side in latents.shape[2:])
        return height or rows, width or columns
    image: Any = None if _scaled(pipeline, options) else options.get("image")
    while isinstance(image, list | tuple) and image:
        image = image[0]
    if image is None:
        return pipeline.image_size(height, width)
    if isinstance(image, Image.Image):
        rows, columns = image.height, image.width
    elif isinstance(image, Tensor):
        rows, columns = image.shape[-2:]
        if image.ndim > 2 and image.shape[-3] == pipeline.vae.config.latent_channels:
            rows, columns = rows * pipeline.vae_scale_factor, columns * pipeline.vae_scale_factor
    else:
        rows, columns = image.shape[-3:-1]
    factor = pipeline.vae_scale_factor
    return height or rows - rows % factor, width or columns - columns % factor


def _scaled(pipeline: Any, options: dict[str, Any]) -> bool:
    """Whether diffusers scales the image to the size of the call, or of the model."""
    return options.get("mask_image") is not None and not hasattr(pipeline, "controlnet")


def _warn_of_rounding(pipeline: Any, options: dict[str, Any]) -> None:
    """Warn of an image whose size diffusers changes though the call does not ask for it."""
    image, factor = options.get("image"), pipeline.vae_scale_factor
    while isinstance(image, list | tuple) and image:
        image = image[0]
    if not isinstance(image, Image.Image) or options.get("latents") is not None:
        return
    rounded = [side - side % factor for side in image.size]
    if _scaled(pipeline, options):
        height, width = output_size(pipeline, options)
        asked = (options.get(name) for name in ("height", "padding_mask_crop"))
        if (width, height) != image.size and all(argument is None for argument in asked):
            warnings.warn(
                f"image has {image.width} x {image.height} pixels, and is scaled to the model's "
                f"own size, {width} x {height}: give height and width for another.",
                stacklevel=CALLER,
            )
    elif list(image.size) != rounded:
        warnings.warn(
            f"image has {image.width} x {image.height} pixels, and this model's autoencoder makes "
            f"sizes that are divisible by {factor}: it is scaled to {rounded[0]} x {rounded[1]}.",
            stacklevel=CALLER,
        )


def _read_masks(
    pipeline: Any, masks: IdentityMasks | None, options: dict[str, Any]
) -> Tensor | None:
    """The identity masks as booleans, checked against the size of the image."""
    if masks is None:
        return None
    cropped = options.get("padding_mask_crop") is not None  # the masks are cut like the image then
    wanted = options["image"].size[::-1] if cropped else output_size(pipeline, options)
    like = f"boolean of shape (identities, {wanted[0]}, {wanted[1]}) like the image"
    if isinstance(masks, np.ndarray) and masks.dtype.kind in "biuf":
        masks = torch.from_numpy(masks)
    elif not isinstance(masks, Tensor):
        if not (
            isinstance(masks, list | tuple) and all(isinstance(mask, Image.Image) for mask in masks)
        ):
            raise FusionError(
                f"identity_masks must be {like}, or a list with one PIL image for each "
                f"identity, not {type(masks).__name__}."
            )
        if len({mask.size for mask in masks}) != 1:
            raise FusionError("identity_masks must be one image for each identity, of one size.")
        masks = torch.stack([torch.from_numpy(brightness(mask) > 127) for mask in masks])
    if masks.ndim != 3 or masks.dtype != torch.bool or tuple(masks.shape[1:]) != wanted:
        raise FusionError(
            f"identity_masks must be {like}, not {masks.dtype} of {tuple(masks.shape)}."
        )
    for index, mask in enumerate(masks):
        if not mask.any():
            raise FusionError(f"identity_masks[{index}] is empty: mark where that face shall be.")
    warn_of_overlaps(masks, stacklevel=CALLER)
    return masks


def _named_options(
    pipeline: Any, stock_call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """All arguments for the diffusers pipeline by name, completed by the checkpoint's own."""
    positional = list(inspect.signature(stock_call).parameters)
    if len(args) > len(positional):
        raise FusionError(
            f"{type(pipeline).__name__} takes at most {len(positional)} arguments without a name."
        )
    options = dict(zip(positional, args, strict=False))
    twice = next((name for name in options if name in kwargs), None)
    if twice is not None:
        raise FusionError(f"{twice} is given twice: by its place and by its name.")
    defaults = {name: v for name, v in pipeline.sampling_defaults.items() if name in positional}
    return defaults | options | kwargs


def _check_options(pipeline: Any, stock_call: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse options that the diffusers pipeline does not have; it would ignore some silently."""
    stock = inspect.signature(stock_call).parameters
    mine = inspect.signature(type(pipeline).__call__).parameters
    known = [name for name in {**stock, **mine} if name not in ("self", "args", "kwargs")]
    for name in options:
        if name not in (*known, "callback", "callback_steps"):
            near = difflib.get_close_matches(name, known, 1)
            raise FusionError(
                f"{name} is not an argument of {type(pipeline).__name__}"
                + (f": did you mean {near[0]}?" if near else ".")
            )
    for name in ("image", "mask_image", "control_image"):
        if name in stock and options.get(name) is None:
            raise FusionError(f"{name} must be given to {type(pipeline).__name__}.")
    if "strength" in stock:
        _check_start(pipeline, options["image"])
    for name in TEXTS:
        text = options.get(name)
        if text is not None and not _is_text(text):
            raise FusionError(f"{name} must be a string or a list of strings, not {text!r}.")


def _is_text(text: Any) -> bool:
    return isinstance(text, str) or (
        isinstance(text, list) and len(text) > 0 and all(isinstance(item, str) for item in text)
    )


def _repeats(options: dict[str, Any]) -> int:
    """Number of images of each prompt."""
    repeats = options.get("num_images_per_prompt")
    if repeats is None:
        return 1
    if not is_index(repeats) or repeats < 1:
        raise FusionError(
            f"num_images_per_prompt must be a whole number of at least 1, not {repeats!r}."
        )
    return int(repeats)


def _count_prompts(repeats: int, options: dict[str, Any]) -> int:
    """Number of prompts; a list of generators must hold one for each image."""
    embeds = options.get("prompt_embeds")
    if embeds is not None and not (isinstance(embeds, Tensor) and embeds.ndim == 3):
        raise FusionError("prompt_embeds must be a tensor (prompts, tokens, width).")
    prompts = 1 if embeds is None else embeds.shape[0]
    if isinstance(options.get("prompt"), list):
        prompts = len(options["prompt"])
    generator = options.get("generator")
    if isinstance(generator, list) and len(generator) != prompts * repeats:
        raise FusionError(
            f"generator must be one torch.Generator or a list of {prompts * repeats}, one for each "
            f"image, not {len(generator)}."
        )
    return prompts


def _warn_of_truncation(pipeline: Any, options: dict[str, Any]) -> None:
    """Warn of text beyond what the text encoder reads, and show it."""
    for name in TEXTS:
        text = options.get(name)
        components = ("tokenizer_2", "tokenizer")
        tokenizers = [
            found
            for component in (components if name.endswith("_2") else components[::-1])
            if (found := getattr(pipeline, component, None)) is not None
        ]
        if not text or not tokenizers:  # embeddings serve where no tokenizer is loaded
            continue
        # The tokens that are read begin with the start token and leave room for the end token.
        tokenizer = tokenizers[0]
        room = tokenizer.model_max_length - 1
        for each in [text] if isinstance(text, str) else text:
            tokens = tokenizer(pipeline.maybe_convert_prompt(each, tokenizer), verbose=False)
            cut = tokenizer.decode(tokens.input_ids[room:-1])
            if cut:
                warnings.warn(
                    f"{name} is longer than the {room - 1} tokens that the text encoder reads; "
                    f"this was cut: {cut!r}",
                    stacklevel=CALLER,
                )


def _reference_text(pipeline: Any, text: ReferenceText, options: dict[str, Any]) -> ReferenceText:
    """The text that references are encoded with, with an embedding that must take its place."""
    if text.embeds is not None:
        if not isinstance(text.embeds, Tensor) or text.embeds.ndim != 3:
            raise FusionError("reference_prompt_embeds must be a tensor (1, tokens, width).")
        return text
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    negative = options.get("negative_prompt_embeds")
    if any(encoder is not None for encoder in encoders) or negative is None:
        return text
    warnings.warn(
        "References are encoded with negative_prompt_embeds, since no text encoder is loaded: they "
        "should be those of the empty prompt, or give reference_prompt_embeds.",
        stacklevel=CALLER,
    )
    pooled = options.get("negative_pooled_prompt_embeds")
    return replace(text, embeds=negative[:1], pooled=None if pooled is None else pooled[:1])


def _lora_scale(options: dict[str, Any]) -> float | None:
    """The factor of LoRA weights that a call sets; None if it sets none."""
    given = options.get("cross_attention_kwargs")
    if not (given is None or isinstance(given, dict)):
        raise FusionError(
            f'cross_attention_kwargs must be a dictionary, as {{"scale": 0.5}}, not {given!r}.'
        )
    scale = None if given is None else given.get("scale")
    if not (scale is None or (isinstance(scale, int | float) and math.isfinite(scale))):
        raise FusionError(f'cross_attention_kwargs["scale"] must be a number, not {scale!r}.')
    return scale


def _one_of(name: str, value: Any, *choices: str) -> str:
    if value not in choices:
        raise FusionError(f'{name} must be "{choices[0]}" or "{choices[1]}", not {value!r}.')
    return str(value)


def _check_identity_scale(scale: Any, separate: bool) -> None:
    if not separate:
        raise FusionError('identity_guidance_scale needs guidance_mode="separate".')
    if not (isinstance(scale, int | float) and 0 <= scale < math.inf):
        raise FusionError(
            f"identity_guidance_scale must be a finite number of at least 0, not {scale!r}."
        )


def _warn_of_unused_masks(masks: Tensor, identities: Sequence[int]) -> None:
    """Warn of masks that belong to no reference."""
    unused = sorted(set(range(len(masks))) - set(identities))
    if unused:
        named = ", ".join(f"identity_masks[{index}]" for index in unused)
        warnings.warn(
            f"No reference belongs to {named}: only the text is seen there. reference_identity "
            "says which identity a reference shows.",
            stacklevel=CALLER,
        )
