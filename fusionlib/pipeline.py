"""The pipelines: Stable Diffusion and SDXL that are also shown faces.

Everything that diffusers' pipelines do is inherited: loading, schedulers, guidance, batches,
ControlNet, LoRA, offloading, callbacks. ``FusionMixin`` holds all that is added: one pass of the
reference images through the UNet, and the UNet conditioned on it while sampling. Each public class
is that mixin and the diffusers pipeline of the same task.
"""

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps
from torch import Tensor

from fusionlib.adapter import FusionAdapter
from fusionlib.checks import NUMBERS, Strength, check_reference_identity, check_strengths, is_number
from fusionlib.errors import FusionError, first_line
from fusionlib.guidance import Call, add_branch, blend_branches, intercepted
from fusionlib.inputs.images import MIN_SIDE, to_rgb
from fusionlib.inputs.layout import brightness, warn_of_overlaps
from fusionlib.processor import in_turn
from fusionlib.reference import encode_references
from fusionlib.reference_cache import LayerKeysValues, ReferenceCache

ReferenceImages = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]]
References = ReferenceImages | ReferenceCache | Sequence[ReferenceCache]
AtEachStep = Callable[[Any], Sequence[LayerKeysValues]]


def _taking_an_adapter(stock: Callable[..., None]) -> Callable[..., None]:
    """A diffusers pipeline's ``__init__`` that takes an adapter, too.

    Diffusers reads the components of a pipeline from the signature of its ``__init__``, so each
    class needs its own.
    """
    signature = inspect.signature(stock)
    # A checkpoint without these was made so on purpose: no need to pass None, or to be told.
    parameters = [
        p.replace(default=None) if p.name in ("safety_checker", "feature_extractor") else p
        for p in signature.parameters.values()
    ]
    signature = signature.replace(parameters=parameters)
    adapter_parameter = inspect.Parameter(
        "adapter", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=FusionAdapter | None
    )

    @functools.wraps(stock)
    def init(self: Any, *args: Any, adapter: FusionAdapter | None = None, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        if given.arguments.get("safety_checker", self) is None:  # SDXL has no such component
            given.arguments["requires_safety_checker"] = False
        stock(*given.args, **given.kwargs)
        self.register_modules(adapter=adapter)
        if adapter is not None:
            adapter.attach(self.unet)  # an adapter that does not fit is better known now

    init.__annotations__ = {**stock.__annotations__, "adapter": FusionAdapter | None}
    init.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters, adapter_parameter]
    )
    return init


class FusionMixin(DiffusionPipeline):
    """What is added to a diffusers pipeline so that it keeps the identity of reference faces.

    A class is made of it and one of diffusers' text-guided pipelines, in this order. It takes that
    pipeline's components and an ``adapter``. Without references, or without an adapter, it makes
    the base model's images bit by bit.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Say of a new pipeline class what diffusers wants to know: its components, adapter too."""
        super().__init_subclass__(**kwargs)
        bases: tuple[Any, ...] = cls.__bases__
        for base in bases:
            if issubclass(base, DiffusionPipeline) and not issubclass(base, FusionMixin):
                cls._optional_components = [*base._optional_components, "adapter"]
                # Small, and used in turns with the UNet: it stays on the accelerator. In the
                # sequence it would stand between the text encoder and the UNet that replaces it.
                cls._exclude_from_cpu_offload = [*base._exclude_from_cpu_offload, "adapter"]
                cls.__init__ = _taking_an_adapter(base.__init__)  # type: ignore[method-assign]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter: str | Path | FusionAdapter | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load any checkpoint of the pipeline's kind, with a fusion adapter.

        Args:
            pretrained_model_name_or_path: A folder in diffusers' layout, or a hub id.
            adapter: The adapter, or its folder or hub id; None takes the checkpoint's own
                ``adapter`` folder where there is one.
            **kwargs: As for the diffusers pipeline's ``from_pretrained``.

        Returns:
            The pipeline, with the adapter attached to its UNet.

        Raises:
            FusionError: If the checkpoint or the adapter cannot be loaded.
        """
        loaded = _load_adapter(adapter, pretrained_model_name_or_path, kwargs)
        folder = Path(pretrained_model_name_or_path)
        steered = "controlnet" in inspect.signature(cls.__init__).parameters
        lacking = folder.is_dir() and not (folder / "controlnet").is_dir()  # of a hub nobody knows
        if steered and lacking and kwargs.get("controlnet") is None:
            raise FusionError(
                f"controlnet must be given to {cls.__name__}, for {str(folder)!r} has none: load "
                "one by ControlNetModel.from_pretrained, and pass it as controlnet=."
            )
        try:
            return super().from_pretrained(
                str(pretrained_model_name_or_path), adapter=loaded, **kwargs
            )
        except FusionError:
            raise
        except (OSError, ValueError) as error:
            raise FusionError(
                f"The model {str(pretrained_model_name_or_path)!r} cannot be loaded; it must be a "
                f"folder in Stable Diffusion's layout or a hub id ({first_line(error)})."
            ) from error

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        adapter: str | Path | FusionAdapter | None = None,
        *,
        config: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint that is one ``.safetensors`` file, in the layout it is published in.

        Such a file holds weights only. How the models are built, and the tokenizer, diffusers
        takes from the hub, or from ``config``: no network is needed with it.

        Args:
            pretrained_model_link_or_path: The file, or its address on the hub.
            adapter: The adapter, or its folder or hub id; None takes the ``adapter`` folder of
                ``config`` where there is one.
            config: A folder in diffusers' layout, or a hub id, of a model built alike; its weights
                are not read and may be missing.
            **kwargs: As for the diffusers pipeline's ``from_single_file``.

        Returns:
            The pipeline, with the adapter attached to its UNet.

        Raises:
            FusionError: If the file, its config or the adapter cannot be loaded.
        """
        file = str(pretrained_model_link_or_path)
        if "://" not in file and not Path(file).is_file():
            raise FusionError(
                f"There is no checkpoint file {file!r}: give a .safetensors file, or its address "
                "on the hub."
            )
        loaded = _load_adapter(adapter, config, kwargs)
        if config is not None:
            kwargs["config"] = str(config)
        try:
            pipeline = super().from_single_file(file, adapter=loaded, **kwargs)
        except FusionError:
            raise
        except Exception as error:  # diffusers, safetensors and the hub each have their own errors
            remedy = (
                "without a network, give config= the folder of a pipeline built alike"
                if config is None
                else f"the file must hold the weights of a model built like config={str(config)!r}"
            )
            raise FusionError(
                f"The checkpoint {file!r} cannot be loaded: {remedy} ({first_line(error)})."
            ) from error
        for name, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module) and any(p.is_meta for p in module.parameters()):
                raise FusionError(
                    f"The checkpoint {file!r} lacks weights of the {name}: give another file, or "
                    f"load the {name} first and pass it as {name}=."
                )
        return pipeline

    @classmethod
    def from_pipe(
        cls, pipeline: Any, adapter: str | Path | FusionAdapter | None = None, **kwargs: Any
    ) -> Self:
        """Make a pipeline of another's components, as diffusers does, without loading them again.

        Args:
            pipeline: A pipeline, of this library or diffusers', of the same family.
            adapter: The adapter, or its folder or hub id; None takes the pipeline's own, if any.
            **kwargs: Components to add or to replace, ``controlnet`` for example.

        Returns:
            The new pipeline, which shares the other components with the given one.

        Raises:
            FusionError: If the adapter cannot be loaded or does not fit.
        """
        if adapter is not None:
            kwargs["adapter"] = _load_adapter(adapter, None, {"dtype": pipeline.dtype})
        return super().from_pipe(pipeline, **kwargs)

    def load_adapter_weights(self, adapter: str | Path | FusionAdapter) -> None:
        """Use this adapter, or the one in this folder or hub id, in place of the former one.

        Args:
            adapter: The adapter, or its folder or hub id.

        Raises:
            FusionError: If the adapter cannot be loaded or does not fit; the former one stays then.
        """
        loaded = _load_adapter(adapter, None, {"dtype": self.dtype})
        assert loaded is not None
        loaded = loaded.to(self._execution_device)  # where the UNet is not while it is offloaded
        loaded.attach(self.unet)  # before the former one goes, so that a misfit changes nothing
        former = self.adapter
        if former is not None and former is not loaded and former.unet is not None:
            former.detach(self.unet)
        self.register_modules(adapter=loaded)

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The size of a picture for which some of it, or nothing, is asked.

        Args:
            height: In pixels; None means the model's own.
            width: Likewise.

        Returns:
            Height and width in pixels.
        """
        size = self.unet.config.sample_size
        rows, columns = (size, size) if isinstance(size, int) else size
        return height or rows * self.vae_scale_factor, width or columns * self.vae_scale_factor

    @torch.no_grad()
    def encode_references(
        self,
        references: ReferenceImages,
        height: int | None = None,
        width: int | None = None,
        prompt: str = "",
    ) -> ReferenceCache:
        """Compute K_f and V_f of reference images, once for any number of generations.

        Each image is turned upright (EXIF), cropped to the model's aspect ratio about its centre,
        resized, encoded by the VAE (the mean of its distribution), and passed through the UNet
        without noise, at timestep 0, with the empty prompt, or another.

        Args:
            references: The images that every generated image sees, or a list of lists: one for each
                prompt of a batch, equally many in each.
            height: The height in pixels at which the UNet sees them; None means the model's own.
            width: The width, likewise.
            prompt: What the references are said to show, for an adapter that was trained so.

        Returns:
            K_f and V_f of each reference, ``(1 or prompts, N_f, inner_dim)`` in every layer.

        Raises:
            FusionError: If there is no adapter, or something in ``references`` is not an image.
        """
        with in_turn(self.unet):
            return self._encode_references(references, height, width, None, prompt)

    def _encode_references(
        self,
        references: ReferenceImages,
        height: int | None,
        width: int | None,
        lora_scale: float | None,
        prompt: str = "",
    ) -> ReferenceCache:
        """The same, with the LoRA weights multiplied by a number."""
        adapter = self._attached_adapter()
        groups = _grouped(references)
        images = [image for group in groups for image in group]
        if not images:
            return ReferenceCache(())
        size = self.image_size(height, width)
        text, added = self._reference_text(*size, lora_scale, prompt)
        hidden_states = encode_references(
            self.unet,
            self._encode_images(images, *size),
            text,
            added_cond_kwargs=added,
            lora_scale=lora_scale,
        )
        every = adapter.cache(hidden_states).to(self._execution_device, self.unet.dtype)
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
        guidance_mode: Literal["joint", "separate"] = "joint",
        identity_guidance_scale: float | None = None,
        timestep_mode: Literal["clean", "shared"] = "clean",
        num_images_per_prompt: int | None = 1,
        **kwargs: Any,
    ) -> Any:
        """Generate images that show the references' faces.

        Args:
            prompt: The prompt or prompts. A prompt longer than the text encoder reads is cut, with
                a warning that shows what was cut.
            references: Face images, or what ``encode_references`` made of them, or a list of such
                caches, of several people for example. A list of images serves every prompt; a list
                of lists holds each prompt's own. None, or an empty
                list, gives the base model's image. They go through the UNet as it is, LoRA weights
                included; what was encoded with other ones is refused.
            strengths: lambda_i of each reference, a number or a tensor with one for each image, or
                one number for all references; None means 1, and 0 gives the base model's image bit
                by bit.
            identity_masks: For several identities in one image (Eq. 7): where each identity's face
                shall be, boolean ``(identities, height, width)`` or one black and white image each.
                Where two overlap, neither face is seen, only the text.
            reference_identity: With masks, the index of the identity that each reference shows;
                None means that reference i shows identity i.
            guidance_mode: ``"joint"`` guides text and faces by ``guidance_scale``: the
                unconditional branch of classifier-free guidance sees neither. ``"separate"`` gives
                the faces a scale of their own: u + guidance_scale (c - u) +
                identity_guidance_scale (f - c), where u sees nothing, c the text, and f the text
                and the faces; each step computes half as much again.
            identity_guidance_scale: Only for ``"separate"``: a number of at least 0; None means
                ``guidance_scale``, which is the joint mode again.
            timestep_mode: ``"clean"`` encodes the references once, without noise; ``"shared"``
                encodes them again at each step, noised to the step's timestep, by noise that is
                drawn from ``generator`` once, after the image's own. What the faces are then
                changes from step to step, and schedulers that extrapolate over four of them (PNDM,
                LMS) may diverge under strong guidance; DDIM, Euler and DPM-Solver did not.
            num_images_per_prompt: How many images to make of each prompt.
            **kwargs: Everything else that the diffusers pipeline takes: ``height`` and ``width``,
                ``guidance_scale``, ``generator``, ``image``, ``callback_on_step_end`` and so on.
                ``cross_attention_kwargs={"scale": ...}`` scales LoRA weights for the image and for
                its references.

        Returns:
            What the diffusers pipeline returns; its ``images`` are PIL images, or what
            ``output_type`` asks for.

        Raises:
            FusionError: If an argument does not fit; the message names it.

        Warns:
            UserWarning: If a prompt is cut, identity masks overlap, or one is no reference's; the
                message says which.

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
        self._check_arguments(prompt, kwargs)
        images = self._count_images(prompt, num_images_per_prompt, kwargs)
        with in_turn(self.unet):  # to tokenize in one thread undoes how another's are padded
            self._warn_of_what_is_cut(prompt, kwargs)
        if (kwargs.get("height") is None) != (kwargs.get("width") is None):
            # Some of diffusers' pipelines would drop the one that is given.
            kwargs["height"], kwargs["width"] = self._output_size(kwargs)
        repeats = num_images_per_prompt or 1
        generate = functools.partial(
            super().__call__, prompt=prompt, num_images_per_prompt=repeats, **kwargs
        )
        separate = _one_of("guidance_mode", guidance_mode, "joint", "separate") == "separate"
        shared = _one_of("timestep_mode", timestep_mode, "clean", "shared") == "shared"
        if identity_guidance_scale is not None:
            _check_scale(identity_guidance_scale, separate)
        if references is None:
            for name, value in (
                ("strengths", strengths),
                ("identity_masks", identity_masks),
                ("reference_identity", reference_identity),
            ):
                if value is not None:
                    raise FusionError(f"{name} needs references: give at least one face image.")
            with in_turn(self.unet):
                return generate()

        adapter = self._attached_adapter()
        if isinstance(references, list | tuple):
            caches = [each for each in references if isinstance(each, ReferenceCache)]
            if caches and len(caches) == len(references):
                references = ReferenceCache.join(caches)
        lora_scale = _lora_scale(kwargs)
        if isinstance(references, ReferenceCache):
            groups, each = references.batch_size, len(references)
            if shared:
                raise FusionError(
                    'references must be images with timestep_mode="shared", which encodes them at '
                    "every step: a ReferenceCache was encoded once."
                )
            if lora_scale not in (None, 1) and getattr(self.unet, "peft_config", None):
                raise FusionError(
                    'references must be images with cross_attention_kwargs={"scale": ...}, for a '
                    "ReferenceCache holds LoRA weights as they were: or scale them by set_adapters "
                    "before encode_references."
                )
        else:
            pictures = _grouped(references)
            groups, each = len(pictures), len(pictures[0])
        if groups not in (1, images // repeats):
            raise FusionError(
                f"references holds faces for {groups} prompts, but there are {images // repeats}: "
                "give one list of faces for each prompt, or one for all."
            )
        if isinstance(strengths, NUMBERS):
            strengths = [float(strengths)] * each
        seen = any(not is_number(s, 0) for s in check_strengths(strengths, each, images))
        masks, latent_size = self._masks(identity_masks, kwargs), None
        if masks is not None:
            owners = range(each) if reference_identity is None else reference_identity
            check_reference_identity(owners, each, len(masks))
            _warn_of_nobodys(masks, owners)
        if (
            masks is not None and kwargs.get("latents") is None
        ):  # whose size diffusers takes as it is
            height, width = (side // self.vae_scale_factor for side in masks.shape[1:])
            latent_size = height, width
        conditioned = functools.partial(
            adapter.conditioned,
            strengths=strengths,
            identity_masks=masks,
            reference_identity=reference_identity,
            latent_size=latent_size,
            batch_size=images,
            same_text=not (separate or shared) and not _called_back(kwargs),
        )

        with in_turn(self.unet):
            shown: ReferenceCache | AtEachStep
            if shared and seen:
                generator = kwargs.get("generator")
                shown = self._encoder_at_each_step(pictures, images, generator, lora_scale)
            else:
                if not isinstance(references, ReferenceCache):
                    references = self._encode_references(pictures, None, None, lora_scale)
                shown = references.to(self._execution_device, self.unet.dtype)
                shown = shown.repeat_interleave(repeats)
            scale = identity_guidance_scale
            with self._shown(shown, conditioned, images, separate and seen, scale):
                return generate()

    @contextmanager
    def _shown(
        self,
        references: ReferenceCache | AtEachStep,
        conditioned: Callable[[Sequence[LayerKeysValues]], AbstractContextManager[None]],
        images: int,
        separate: bool,
        identity_guidance_scale: float | None,
    ) -> Iterator[None]:
        """Let the UNet see faces, and stand between it and the pipeline where a mode asks for that.

        Args:
            references: K_f and V_f of each, or a function that makes them from the timestep.
            conditioned: The adapter's ``conditioned``, with all but the references given.
            images: How many images are generated: the size of each branch of guidance.
            separate: Whether to guide by the faces apart from the text.
            identity_guidance_scale: As for the call.
        """
        with ExitStack() as hooks, ExitStack() as faces:

            def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
                if callable(references):
                    faces.close()  # it is the base model that looks at references
                    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
                    faces.enter_context(conditioned(references(timestep)))
                return add_branch(args, kwargs, images) if separate else (args, kwargs)

            def after(prediction: Tensor) -> Tensor:
                if not separate:
                    return prediction
                guided = prediction.shape[0] > 2 * images  # there is an unconditional branch
                # Asked at each step, for callbacks may change it.
                text_scale = self.guidance_scale if guided else 1
                scale = text_scale if identity_guidance_scale is None else identity_guidance_scale
                return blend_branches(prediction, images, scale / text_scale)

            if isinstance(references, ReferenceCache):
                faces.enter_context(conditioned(references))
            if separate or callable(references):
                hooks.enter_context(intercepted(self.unet, before, after))
            yield

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Make diffusers' own checks, with this library's error."""
        try:
            super().check_inputs(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise FusionError(f"{first_line(error)}.") from error

    def _check_arguments(self, prompt: Any, arguments: dict[str, Any]) -> None:
        """See that the diffusers pipeline knows these arguments; some it would drop in silence."""
        stock = inspect.signature(super().__call__).parameters
        mine = inspect.signature(FusionMixin.__call__).parameters
        known = [name for name in {**stock, **mine} if name not in ("self", "args", "kwargs")]
        for name in arguments:
            if name not in (*known, "callback", "callback_steps"):
                near = difflib.get_close_matches(name, known, 1)
                raise FusionError(
                    f"{name} is not an argument of {type(self).__name__}"
                    + (f": did you mean {near[0]}?" if near else ".")
                )
        for name in ("image", "control_image"):
            if name in stock and arguments.get(name) is None:
                raise FusionError(f"{name} must be given to {type(self).__name__}, by its name.")
        for name, text in {"prompt": prompt, **arguments}.items():
            if name in _TEXTS and text is not None and not _is_text(text):
                raise FusionError(f"{name} must be a string or a list of strings, not {text!r}.")

    def _count_images(
        self, prompt: str | list[str] | None, repeats: Any, arguments: dict[str, Any]
    ) -> int:
        """How many images are to be made, one generator for each if there is a list of them."""
        if repeats is not None and (not isinstance(repeats, int) or repeats < 1):
            raise FusionError(
                f"num_images_per_prompt must be a whole number of at least 1, not {repeats!r}."
            )
        embeds = arguments.get("prompt_embeds")
        if embeds is not None and not (isinstance(embeds, Tensor) and embeds.ndim == 3):
            raise FusionError("prompt_embeds must be a tensor (prompts, tokens, width).")
        if isinstance(prompt, list):
            prompts = len(prompt)
        else:
            prompts = 1 if embeds is None else embeds.shape[0]
        images = prompts * (repeats or 1)
        generator = arguments.get("generator")
        if isinstance(generator, list) and len(generator) != images:
            raise FusionError(
                f"generator must be one torch.Generator or a list of {images}, one for each image, "
                f"not {len(generator)}."
            )
        return images

    def _warn_of_what_is_cut(self, prompt: Any, arguments: dict[str, Any]) -> None:
        """Warn of text beyond what the text encoder reads, and show it."""
        for name, text in {"prompt": prompt, **arguments}.items():
            if name not in _TEXTS or not text:
                continue
            components = ("tokenizer_2", "tokenizer")
            tokenizer = next(
                found
                for component in (components if name.endswith("_2") else components[::-1])
                if (found := getattr(self, component, None)) is not None
            )
            # The tokens that are read begin with the start token and leave room for the end token.
            room = tokenizer.model_max_length - 1
            for each in [text] if isinstance(text, str) else text:
                tokens = tokenizer(self.maybe_convert_prompt(each, tokenizer), verbose=False)
                cut = tokenizer.decode(tokens.input_ids[room:-1])
                if cut:
                    warnings.warn(
                        f"{name} is longer than the {room - 1} tokens that the text encoder reads; "
                        f"this was cut: {cut!r}",
                        stacklevel=4,  # where the pipeline was called
                    )

    def _attached_adapter(self) -> FusionAdapter:
        if self.adapter is None:
            raise FusionError(
                "references need a fusion adapter: load one with from_pretrained(..., adapter=...) "
                "or load_adapter_weights(...)."
            )
        self.adapter.attach(self.unet)
        return self.adapter

    def _reference_text(
        self, height: int, width: int, lora_scale: float | None = None, prompt: str = ""
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The text that a reference image of this size is seen with, and SDXL's conditions."""
        text, _ = self.encode_prompt(
            prompt, self._execution_device, 1, False, lora_scale=lora_scale
        )
        return text.to(self.unet.dtype), None

    def _encode_images(self, images: Sequence[Image.Image], height: int, width: int) -> Tensor:
        """The scaled latents of reference images, ``(images, channels, h, w)``."""
        prepared = [prepare_reference(image, height, width) for image in images]
        pixels = self.image_processor.preprocess(prepared)
        distribution = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype))
        latents = distribution.latent_dist.mode() * self.vae.config.scaling_factor
        return latents.to(self.unet.dtype)

    def _encoder_at_each_step(
        self,
        groups: list[list[Image.Image]],
        images: int,
        generator: Any,
        lora_scale: float | None,
    ) -> AtEachStep:
        """A function from a timestep to each reference's K_f and V_f, noised to that timestep."""
        size = self.image_size()
        empty_prompt, added = self._reference_text(*size, lora_scale)
        latents = self._encode_images([image for group in groups for image in group], *size)
        # (references, images, channels, h, w): each image has its own references or the one group
        shown = latents.unflatten(0, (len(groups), -1)).transpose(0, 1)
        shown = shown.repeat_interleave(images // len(groups), dim=1)
        noise: list[Tensor] = []

        def encode(timestep: Any) -> list[LayerKeysValues]:
            if not noise:  # at the first step: the image's own noise is the same in both modes
                device, dtype = latents.device, latents.dtype
                noise.extend(randn_tensor(s.shape, generator, device, dtype) for s in shown)
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
                        lora_scale=lora_scale,
                    )
                )
                for reference, own_noise in zip(shown, noise, strict=True)
            ]

        return encode

    def _output_size(self, arguments: dict[str, Any]) -> tuple[int, int]:
        """Height and width of the generated image: those of ``latents`` or ``image``, if given."""
        height, width = arguments.get("height"), arguments.get("width")
        latents = arguments.get("latents")
        if isinstance(latents, Tensor) and latents.ndim == 4:
            rows, columns = (side * self.vae_scale_factor for side in latents.shape[2:])
            return height or rows, width or columns
        image = arguments.get("image")
        while isinstance(image, list | tuple) and image:
            image = image[0]
        if image is None:
            return self.image_size(height, width)
        if isinstance(image, Image.Image):
            rows, columns = image.height, image.width
        elif isinstance(image, Tensor):
            rows, columns = image.shape[-2:]
            if image.ndim > 2 and image.shape[-3] == self.vae.config.latent_channels:
                rows, columns = rows * self.vae_scale_factor, columns * self.vae_scale_factor
        elif isinstance(image, np.ndarray) and image.ndim > 2:
            rows, columns = image.shape[-3:-1]
        else:
            raise FusionError(
                f"image must be a PIL image, an array or a tensor, not {type(image).__name__}."
            )
        rows, columns = (side - side % self.vae_scale_factor for side in (rows, columns))
        return height or rows, width or columns

    def _masks(
        self,
        masks: Tensor | np.ndarray | Sequence[Image.Image] | None,
        arguments: dict[str, Any],
    ) -> Tensor | None:
        """The identity masks as booleans, checked against the size of the image."""
        if masks is None:
            return None
        wanted = self._output_size(arguments)
        like = f"boolean of shape (identities, {wanted[0]}, {wanted[1]}) like the image"
        if isinstance(masks, np.ndarray) and masks.dtype.kind in "biuf":
            masks = torch.from_numpy(masks)
        elif not isinstance(masks, Tensor):
            if not (
                isinstance(masks, list | tuple)
                and all(isinstance(mask, Image.Image) for mask in masks)
            ):
                raise FusionError(
                    f"identity_masks must be {like}, or a list with one PIL image for each "
                    f"identity, not {type(masks).__name__}."
                )
            if len({mask.size for mask in masks}) != 1:
                raise FusionError(
                    "identity_masks must be one image for each identity, of one size."
                )
            masks = torch.stack([torch.from_numpy(brightness(mask) > 127) for mask in masks])
        if masks.ndim != 3 or masks.dtype != torch.bool or tuple(masks.shape[1:]) != wanted:
            raise FusionError(
                f"identity_masks must be {like}, not {masks.dtype} of {tuple(masks.shape)}."
            )
        for index, mask in enumerate(masks):
            if not mask.any():
                raise FusionError(
                    f"identity_masks[{index}] is empty: mark where that face shall be."
                )
        warn_of_overlaps(masks, stacklevel=4)  # where the pipeline was called
        return masks


class FusionPipeline(FusionMixin, StableDiffusionPipeline):
    """Text to image with faces: Stable Diffusion 1.x and 2.x.

    It is diffusers' ``StableDiffusionPipeline`` with one more component, the ``adapter``. What that
    pipeline does, it does, and without references it makes the same images, bit by bit.
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


def prepare_reference(image: Image.Image, height: int, width: int) -> Image.Image:
    """Turn an image upright, crop it about its centre, and resize it to ``height`` x ``width`` RGB.

    Transparent parts become white, and deep grey is scaled to 8 bits.
    """
    upright = to_rgb(ImageOps.exif_transpose(image))
    return ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)


_TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")


def _is_text(text: Any) -> bool:
    return isinstance(text, str) or (
        isinstance(text, list) and len(text) > 0 and all(isinstance(item, str) for item in text)
    )


def _lora_scale(arguments: dict[str, Any]) -> float | None:
    """What a call multiplies LoRA weights by; None if it does not say."""
    given = arguments.get("cross_attention_kwargs")
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


def _check_scale(scale: Any, separate: bool) -> None:
    if not separate:
        raise FusionError('identity_guidance_scale needs guidance_mode="separate".')
    if not (isinstance(scale, int | float) and 0 <= scale < math.inf):
        raise FusionError(
            f"identity_guidance_scale must be a finite number of at least 0, not {scale!r}."
        )


def _warn_of_nobodys(masks: Tensor, identities: Sequence[int]) -> None:
    """Warn of masks of which no reference is: they were drawn for somebody."""
    nobodys = sorted(set(range(len(masks))) - set(identities))
    if nobodys:
        named = ", ".join(f"identity_masks[{index}]" for index in nobodys)
        warnings.warn(
            f"No reference belongs to {named}: only the text is seen there. reference_identity "
            "says which identity a reference shows.",
            stacklevel=4,  # where the pipeline was called
        )


def _called_back(arguments: dict[str, Any]) -> bool:
    """Whether somebody else may change the text's tensor, or the weights, between two steps."""
    return any(arguments.get(name) is not None for name in ("callback_on_step_end", "callback"))


def _grouped(references: Any) -> list[list[Image.Image]]:
    """The images for each prompt, or those of the one group that serves all prompts; checked."""
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
        try:
            image.load()  # what was opened lazily is read only here
        except (OSError, ValueError, SyntaxError) as error:
            raise FusionError(
                f"references[{index}] cannot be read ({error}): get a whole copy of the file, and "
                "do not close it before it is used."
            ) from error
    return groups


def _load_adapter(
    source: str | Path | FusionAdapter | None,
    checkpoint: str | Path | None,
    loading: dict[str, Any],
) -> FusionAdapter | None:
    """The adapter, loaded if it is not yet; None means the checkpoint's own, if it has one.

    Args:
        source: The adapter, or its folder or hub id.
        checkpoint: The folder or hub id of the base model.
        loading: The arguments that the base model is loaded with; the dtype counts here.
    """
    if source is None and checkpoint is not None:
        own = Path(checkpoint) / "adapter"
        source = own if (own / "config.json").is_file() else None
    if source is None or isinstance(source, FusionAdapter):
        return source
    if not isinstance(source, str | Path):
        raise FusionError(
            "adapter must be a FusionAdapter, or its folder or hub id, not "
            f"{type(source).__name__}."
        )
    dtype, variant = loading.get("dtype", loading.get("torch_dtype")), loading.get("variant")
    # A published adapter need not have the variants that its base model has.
    files = Path(source).glob(f"*.{variant}.safetensors") if variant else iter(())
    return FusionAdapter.from_pretrained(
        str(source), dtype=dtype, variant=variant if any(files) else None
    )
