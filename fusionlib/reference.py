"""The reference stream: what the frozen UNet itself sees in a reference image.

h_f of equation 2 is what enters the cross-attention of a layer while the reference image goes
through the same frozen UNet with the empty prompt. No trainable weight takes part, so it is
computed without gradient, and K_f and V_f made from it serve every step, prompt and image:
``ReferenceCache``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from fusionlib.errors import FusionError
from fusionlib.images import write_atomically
from fusionlib.processor import cross_attention_layers, fused_processors

LayerKeysValues = Mapping[str, tuple[Tensor, Tensor]]
"""K_f and V_f ``(batch or 1, N_f, inner_dim)`` of one reference, by the layer's name."""


@torch.no_grad()
def encode_references(
    unet: Any,
    latents: Tensor,
    encoder_hidden_states: Tensor,
    *,
    timestep_mode: Literal["clean", "shared"] = "clean",
    timestep: Tensor | int | None = None,
    noise: Tensor | None = None,
    scheduler: Any = None,
    added_cond_kwargs: Mapping[str, Tensor] | None = None,
    lora_scale: float | None = None,
) -> dict[str, Tensor]:
    """Pass reference images through the UNet and keep what enters each cross-attention (h_f).

    The paper does not say which timestep the reference sees. ``"clean"`` shows it without noise at
    timestep 0, so that the result serves every step; ``"shared"`` noises it to the timestep of the
    image that is generated, and has to be encoded again at every step.

    Args:
        unet: A ``UNet2DConditionModel``, compiled or not; a ``FusionAdapter`` may be attached.
        latents: The scaled latents of the references, ``(batch, channels, h, w)``.
        encoder_hidden_states: The empty prompt's text embedding, ``(batch or 1, N_text, width)``.
        timestep_mode: ``"clean"`` or ``"shared"``.
        timestep: Only for ``"shared"``: the timestep, a number or a tensor ``(batch,)``.
        noise: Only for ``"shared"``: the noise, shaped like ``latents``.
        scheduler: Only for ``"shared"``: the scheduler that adds the noise.
        added_cond_kwargs: What an SDXL UNet also takes: ``text_embeds`` of the empty prompt and
            ``time_ids``, each ``(batch or 1, width)``.
        lora_scale: What the UNet's LoRA weights are multiplied by in this pass, as by diffusers'
            ``cross_attention_kwargs={"scale": ...}``; None leaves them as they are set.

    Returns:
        h_f ``(batch, N_f, query_dim)`` of each layer, by its name in the UNet.

    Raises:
        FusionError: If an argument is missing or does not fit, or the UNet is conditioned on faces.

    Example:
        What ``FusionPipeline.encode_references`` does with a picture, in its parts:

        >>> import torch
        >>> from diffusers.image_processor import VaeImageProcessor
        >>> from PIL import Image
        >>> from fusionlib import FusionPipeline, encode_references
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> face = pipeline.image_processor.preprocess(Image.open("data/heldout/0000_0.jpg"))
        >>> with torch.no_grad():
        ...     latents = pipeline.vae.encode(face).latent_dist.mode()
        ...     latents = latents * pipeline.vae.config.scaling_factor  # (1, 32, 8, 8)
        ...     empty_prompt, _ = pipeline.encode_prompt("", "cpu", 1, False)
        >>> hidden_states = encode_references(pipeline.unet, latents, empty_prompt)
        >>> for name, hidden in hidden_states.items():  # where in the UNet, and h_f there
        ...     print(name.split(".")[0], tuple(hidden.shape))
        down_blocks (1, 64, 128)
        down_blocks (1, 16, 160)
        mid_block (1, 16, 160)
        up_blocks (1, 16, 160)
        up_blocks (1, 16, 160)
        up_blocks (1, 64, 128)
        up_blocks (1, 64, 128)
    """
    layers = cross_attention_layers(unet)
    unet = getattr(unet, "_orig_mod", unet)
    for layer in layers.values():
        if any(processor.conditioning is not None for processor in fused_processors(layer)):
            raise FusionError(
                "unet is conditioned on faces: encode references outside of the `with "
                "adapter.conditioned(...)` block, where it is the base model."
            )
    batch = _check_latents(unet, latents)
    encoder_hidden_states = _check_text(unet, encoder_hidden_states, batch)
    added_cond_kwargs = _check_added(unet, added_cond_kwargs, batch)
    if not (lora_scale is None or (isinstance(lora_scale, int | float) and isfinite(lora_scale))):
        raise FusionError(f"lora_scale must be None or a finite number, not {lora_scale!r}.")
    if timestep_mode == "clean":
        if timestep is not None or noise is not None:
            raise FusionError('timestep and noise belong to timestep_mode="shared" only.')
        timesteps = torch.zeros(batch, dtype=torch.long, device=latents.device)
    elif timestep_mode == "shared":
        if timestep is None or noise is None or scheduler is None:
            raise FusionError('timestep_mode="shared" needs timestep, noise and scheduler.')
        if not hasattr(scheduler, "add_noise"):
            raise FusionError(
                f'timestep_mode="shared" needs a scheduler that adds noise, and '
                f"{type(scheduler).__name__} does not: use another one, or timestep_mode="
                '"clean".'
            )
        if not isinstance(noise, Tensor) or noise.shape != latents.shape:
            raise FusionError(f"noise must be shaped like latents, {tuple(latents.shape)}.")
        timesteps = torch.as_tensor(timestep, device=latents.device)
        if timesteps.ndim > 1 or timesteps.numel() not in (1, batch):
            raise FusionError(
                f"timestep must be a number or a tensor ({batch},), "
                f"not of shape {tuple(timesteps.shape)}."
            )
        timesteps = timesteps.expand(batch)
        latents = scheduler.add_noise(latents, noise, timesteps)
        if timesteps.unique().numel() == 1:  # schedulers scale whole batches, at one timestep
            latents = scheduler.scale_model_input(latents, timesteps[0])
        elif scheduler.init_noise_sigma != 1:
            raise FusionError(
                f"timestep must be the same for all references with {type(scheduler).__name__}, "
                "which scales a whole batch by it: encode them one by one."
            )
    else:
        raise FusionError(f'timestep_mode must be "clean" or "shared", not {timestep_mode!r}.')

    hidden_states: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_states[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    hooks = [
        layer.register_forward_pre_hook(keep(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        # A compiled UNet would have to be compiled once more for the hooks: run this pass as it is.
        with torch.compiler.set_stance("force_eager"):
            unet(
                latents,
                timesteps,
                encoder_hidden_states=encoder_hidden_states,
                added_cond_kwargs=added_cond_kwargs,
                cross_attention_kwargs=None if lora_scale is None else {"scale": lora_scale},
                return_dict=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return hidden_states


def _check_latents(unet: Any, latents: Tensor) -> int:
    """The number of references, once the latents are seen to fit."""
    channels = unet.config["in_channels"]
    fits = isinstance(latents, Tensor) and latents.ndim == 4 and latents.is_floating_point()
    if not fits or latents.shape[1] != channels:
        found = (
            f"{latents.dtype} {tuple(latents.shape)}" if isinstance(latents, Tensor) else latents
        )
        raise FusionError(
            f"latents must be floating-point (batch, {channels}, h, w) for this unet, not {found}."
        )
    return latents.shape[0]


def _check_text(unet: Any, encoder_hidden_states: Tensor, batch: int) -> Tensor:
    """The text embedding of each reference, once it is seen to fit."""
    width = unet.config["cross_attention_dim"]
    fits = isinstance(encoder_hidden_states, Tensor) and encoder_hidden_states.ndim == 3
    fits = fits and encoder_hidden_states.shape[0] in (1, batch)
    if not fits or (isinstance(width, int) and encoder_hidden_states.shape[2] != width):
        shape = getattr(encoder_hidden_states, "shape", type(encoder_hidden_states).__name__)
        raise FusionError(
            f"encoder_hidden_states must be a tensor ({batch} or 1, N_text, {width}) for these "
            f"latents and this unet, not {shape}."
        )
    return encoder_hidden_states.expand(batch, -1, -1)


def _check_added(
    unet: Any, added_cond_kwargs: Mapping[str, Tensor] | None, batch: int
) -> dict[str, Tensor] | None:
    """What SDXL also takes of each reference, once it is seen to fit."""
    kind = unet.config["addition_embed_type"]
    given = {} if added_cond_kwargs is None else dict(added_cond_kwargs)
    needed = {"text_embeds", "time_ids"} if kind == "text_time" else set()
    if kind in (None, "text_time") and given.keys() != needed:
        raise FusionError(
            f"added_cond_kwargs must hold {' and '.join(sorted(needed)) or 'nothing'} for this "
            f"unet, not {' and '.join(sorted(given)) or 'nothing'}."
        )
    for name, tensor in given.items():
        if tensor.ndim != 2 or tensor.shape[0] not in (1, batch):
            raise FusionError(
                f"added_cond_kwargs[{name!r}] must be ({batch} or 1, width), "
                f"not {tuple(tensor.shape)}."
            )
    return {name: tensor.expand(batch, -1) for name, tensor in given.items()} or None


_FORMAT = {"format": "fusionlib.ReferenceCache", "version": "1"}


@dataclass(frozen=True, eq=False)
class ReferenceCache(Sequence[LayerKeysValues]):
    """K_f and V_f of several references: all that generation needs of them, computed once.

    A sequence of references; each is a dictionary from a layer's name to its K_f and V_f, as
    ``FusionAdapter.conditioned`` takes them. It belongs to the adapter and the UNet that made it,
    with the LoRA weights that the UNet had: others are refused, and the references have to be
    encoded again.

    Attributes:
        references: For each reference, each layer's K_f and V_f ``(batch or 1, N_f, inner_dim)``.
            A batch of 1 serves every image; otherwise each image of a batch has its own.
        fingerprint: A sample of the weights of the adapter that made it, by which another adapter
            is told apart (``FusionAdapter.fingerprint``); None where that is not known.
        unet_fingerprint: Likewise of the UNet's weights, with LoRA as it was set then
            (``fingerprint_of_unet``).

    Example:
        Two pictures of a person, encoded and written to a file:

        >>> from PIL import Image
        >>> from fusionlib import FusionPipeline, ReferenceCache
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> pictures = [Image.open(f"data/heldout/0000_{view}.jpg") for view in (0, 1)]
        >>> pipeline.encode_references(pictures).save("build/person.safetensors")

        The pictures are not needed any more:

        >>> faces = ReferenceCache.load("build/person.safetensors")
        >>> len(faces), faces.batch_size  # two references, which serve every image
        (2, 1)
        >>> image = pipeline("a laughing person", references=faces, num_inference_steps=2).images[0]
        >>> key, value = faces[0]["mid_block.attentions.0.transformer_blocks.0.attn2"]
        >>> key.shape, value.shape  # K_f and V_f of the first picture in one of the layers
        (torch.Size([1, 16, 160]), torch.Size([1, 16, 160]))
    """

    references: tuple[LayerKeysValues, ...]
    fingerprint: Tensor | None = None
    unet_fingerprint: Tensor | None = None

    def __len__(self) -> int:
        """The number of references."""
        return len(self.references)

    @overload
    def __getitem__(self, index: int) -> LayerKeysValues: ...
    @overload
    def __getitem__(self, index: slice) -> "ReferenceCache": ...
    def __getitem__(self, index: int | slice) -> "LayerKeysValues | ReferenceCache":
        """One reference, or a cache of some of them."""
        if isinstance(index, slice):
            return replace(self, references=self.references[index])
        return self.references[index]

    def __iter__(self) -> Iterator[LayerKeysValues]:
        """Each reference in turn."""
        return iter(self.references)

    def __repr__(self) -> str:
        """What it holds, without the numbers."""
        layers = len(self.references[0]) if self.references else 0
        return (
            f"ReferenceCache({len(self)} reference{'' if len(self) == 1 else 's'}, "
            f"batch_size={self.batch_size}, {layers} layers)"
        )

    @property
    def batch_size(self) -> int:
        """How many images have references of their own; 1 if the references serve every image."""
        return max(
            (key.shape[0] for reference in self.references for key, _ in reference.values()),
            default=1,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "ReferenceCache":
        """The same references on another device or in another floating-point type.

        Args:
            device: Where to put the tensors; None leaves them where they are.
            dtype: Their type, ``torch.float16`` for example; None keeps it.

        Returns:
            A cache of the same shapes.
        """
        return self._map(lambda tensor: tensor.to(device, dtype))

    def repeat_interleave(self, repeats: int) -> "ReferenceCache":
        """Repeat each image's references, as ``num_images_per_prompt`` repeats prompts.

        Args:
            repeats: How often, 1 or more.

        Returns:
            A cache of K_f and V_f ``(batch * repeats, N_f, inner_dim)``; references that serve
            every image stay as they are.

        Raises:
            FusionError: If ``repeats`` is not a positive number.
        """
        if not isinstance(repeats, int) or repeats < 1:
            raise FusionError(f"repeats must be a positive number, not {repeats!r}.")
        return self._map(lambda t: t if t.shape[0] == 1 else t.repeat_interleave(repeats, 0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ReferenceCache":
        changed = tuple(
            {name: (change(key), change(value)) for name, (key, value) in reference.items()}
            for reference in self.references
        )
        return replace(self, references=changed)

    @staticmethod
    def join(caches: Sequence["ReferenceCache"]) -> "ReferenceCache":
        """Show the references of several caches together, as of the people of a group.

        Args:
            caches: The caches, in the order of their references.

        Returns:
            A cache of the references of all.

        Raises:
            FusionError: If there is none, or they were made by different adapters or UNets.

        Example:
            >>> from PIL import Image
            >>> from fusionlib import FusionPipeline, ReferenceCache
            >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
            >>> people = [
            ...     pipeline.encode_references(Image.open(f"data/heldout/{name}_0.jpg"))
            ...     for name in ("0000", "0001")
            ... ]
            >>> ReferenceCache.join(people)
            ReferenceCache(2 references, batch_size=1, 7 layers)
        """
        if not caches:
            raise FusionError("caches must hold one cache at least.")
        _check_makers(caches)
        return replace(caches[0], references=tuple(each for cache in caches for each in cache))

    @staticmethod
    def stack(caches: Sequence["ReferenceCache"]) -> "ReferenceCache":
        """Join caches of equally many references, one for each image of a batch.

        Args:
            caches: The caches, in the order of the images.

        Returns:
            A cache of as many references as each holds, its K_f and V_f
            ``(images, N_f, inner_dim)``.

        Raises:
            FusionError: If the caches hold different numbers of references, or references of
                different adapters or sizes.
        """
        counts = [len(cache) for cache in caches]
        if len(set(counts)) != 1:
            raise FusionError(
                "caches must hold equally many references, one cache for each image of a batch, "
                f"not {', '.join(map(str, counts)) or 'none'}."
            )
        for index, cache in enumerate(caches):
            for first, reference in zip(caches[0], cache, strict=True):
                if _shapes(first) != _shapes(reference):
                    raise FusionError(
                        f"caches[{index}] holds other layers or sizes than caches[0]: encode the "
                        "references with the same adapter, at the same height and width."
                    )
        _check_makers(caches)
        return ReferenceCache(
            tuple(
                {
                    name: (
                        torch.cat([reference[name][0] for reference in references]),
                        torch.cat([reference[name][1] for reference in references]),
                    )
                    for name in references[0]
                }
                for references in zip(*caches, strict=True)
            ),
            caches[0].fingerprint,
            caches[0].unet_fingerprint,
        )

    def save(self, path: str | Path) -> None:
        """Write the cache to one safetensors file; a reader sees the whole file or none.

        Args:
            path: The file; missing parent folders are made.

        Raises:
            FusionError: If the file cannot be written.
        """
        path = Path(path)
        tensors = {
            f"{index}.{name}.{part}": tensor
            for index, reference in enumerate(self.references)
            for name, pair in reference.items()
            for part, tensor in zip(("key", "value"), pair, strict=True)
        }
        for name in ("fingerprint", "unet_fingerprint"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        # Copies: references may share memory, which the format does not allow.
        tensors = {
            name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()
        }
        content = to_safetensors(tensors, _FORMAT | {"references": str(len(self))})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: file.write(content))
        except OSError as error:
            raise FusionError(
                f"path {path} cannot be written ({error.strerror}): choose another file."
            ) from error

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> "ReferenceCache":
        """Read what ``save`` wrote.

        Args:
            path: The file.
            device: Where to put the tensors.

        Returns:
            The cache, in the floating-point type in which it was saved.

        Raises:
            FusionError: If there is no such file, or it is no whole reference cache.
        """
        try:
            with safe_open(str(path), "pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise FusionError(
                f"path {path} cannot be read as a reference cache ({error}): give a file that "
                "ReferenceCache.save wrote."
            ) from error
        if {name: metadata.get(name) for name in _FORMAT} != _FORMAT:
            raise FusionError(
                f"path {path} is no reference cache that this version of fusionlib can read: give "
                "a file that ReferenceCache.save wrote, or encode the references again."
            )
        references: list[dict[str, tuple[Tensor, Tensor]]]
        try:
            references = [{} for _ in range(int(metadata["references"]))]
            for entry, key in tensors.items():
                if entry.endswith(".key"):
                    index, layer = entry.removesuffix(".key").split(".", 1)
                    references[int(index)][layer] = (key, tensors[f"{index}.{layer}.value"])
        except (KeyError, ValueError, IndexError) as error:
            raise FusionError(f"path {path} is damaged: encode the references again.") from error
        known = {
            name: tensors[name].cpu()
            for name in ("fingerprint", "unet_fingerprint")
            if name in tensors
        }
        return ReferenceCache(tuple(references), **known)


def _check_makers(caches: Sequence[ReferenceCache]) -> None:
    """Raise a ``FusionError`` unless one adapter over one UNet made all of them."""
    for index, cache in enumerate(caches):
        if not same_fingerprint(caches[0].fingerprint, cache.fingerprint):
            raise FusionError(f"caches[{index}] was made by another adapter than caches[0].")
        if not same_fingerprint(caches[0].unet_fingerprint, cache.unet_fingerprint):
            raise FusionError(
                f"caches[{index}] was made by other weights of the unet, or with another LoRA, "
                "than caches[0]."
            )


def same_fingerprint(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two fingerprints are of the same weights, whatever their precision; None fits all."""
    if one is None or other is None:
        return True
    if one.shape != other.shape:
        return False
    # Layer by layer, for a LoRA may change a few. bfloat16 rounds by at most 0.4%; what is next to
    # nothing float16 rounds by more.
    size = one.norm(dim=1)
    return bool(((one - other).norm(dim=1) <= 0.01 * size + 0.001 * size.mean()).all())


@torch.no_grad()
def fingerprint_of_unet(unet: Any) -> Tensor | None:
    """A small sample of a UNet's weights as they act, by which a ``ReferenceCache`` knows them.

    LoRA weights count as they are set: to load, to unload, or to weight one anew makes another
    fingerprint; to fuse it into the weights does not.

    Args:
        unet: A ``UNet2DConditionModel``, compiled or not.

    Returns:
        ``(layers, 8)`` in float32 on the CPU; None while the weights are offloaded or quantised.
    """
    rows = []
    for name, module in getattr(unet, "_orig_mod", unet).named_modules():
        weight = getattr(module, "weight", None)
        inside_lora = ".lora_" in name or name.endswith(".base_layer")
        if inside_lora or not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        if weight.is_meta or not weight.is_floating_point():
            return None
        rows.append(_with_lora(module, weight[0].flatten()[:8]))
    return sampled(rows)


def sampled(rows: Sequence[Tensor]) -> Tensor:
    """Put a few numbers of each weight together, in two kernels and one copy from a GPU.

    Args:
        rows: Up to 8 numbers each.

    Returns:
        ``(rows, 8)`` in float32 on the CPU; what is missing of a row is 0.
    """
    if any(row.dtype.itemsize == 1 for row in rows):  # float8, which torch joins to no other type
        rows = [row.float() for row in rows]
    cpu = torch.device("cpu")  # and not what a user may have set as the default
    lengths = torch.tensor([len(row) for row in rows], device=cpu)
    table = torch.zeros(len(rows), 8, dtype=torch.float32, device=cpu)
    there = torch.arange(8, device=cpu) < lengths[:, None]
    table[there] = torch.cat(list(rows)).float().cpu()
    return table


def _with_lora(layer: Any, row: Tensor) -> Tensor:
    """The first numbers of a layer's weight, and what PEFT's LoRA layers now add to them."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return row
    for name in layer.active_adapters:
        if name in layer.lora_A and name not in layer.merged_adapters:
            down, up = layer.lora_A[name].weight.flatten(1), layer.lora_B[name].weight.flatten(1)
            row = row.float() + layer.scaling[name] * (up[0].float() @ down[:, : len(row)].float())
    return row


def _shapes(reference: LayerKeysValues) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The shapes of each layer's K_f and V_f, but for the batch."""
    return {name: (key.shape[1:], value.shape[1:]) for name, (key, value) in reference.items()}
