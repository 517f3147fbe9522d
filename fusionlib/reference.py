"""The reference stream: what the frozen UNet itself sees in a reference image.

h_f of equation 2 is what enters the cross-attention of a layer while the reference image goes
through the same frozen UNet with the empty prompt. No trainable weight takes part, so it is
computed without gradient, and K_f and V_f made from it serve every step, prompt and image:
``ReferenceCache``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fusionlib.attention import FusedAttnProcessor, cross_attention_layers
from fusionlib.errors import FusionError

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
        added_cond_kwargs: What SDXL's UNet takes beside the text, ``text_embeds`` and ``time_ids``,
            each ``(batch or 1, width)``.

    Returns:
        h_f ``(batch, N_f, query_dim)`` of each layer, by its name in the UNet.

    Raises:
        FusionError: If an argument is missing or does not fit, or the UNet is conditioned on faces.
    """
    batch = latents.shape[0]
    if latents.ndim != 4 or encoder_hidden_states.shape[0] not in (1, batch):
        raise FusionError(
            "latents must be (batch, channels, h, w) and encoder_hidden_states (batch or 1, "
            f"N_text, width), not {tuple(latents.shape)} and {tuple(encoder_hidden_states.shape)}."
        )
    if timestep_mode == "clean":
        if timestep is not None or noise is not None:
            raise FusionError('timestep and noise belong to timestep_mode="shared" only.')
        timesteps = torch.zeros(batch, dtype=torch.long, device=latents.device)
    elif timestep_mode == "shared":
        if timestep is None or noise is None or scheduler is None:
            raise FusionError('timestep_mode="shared" needs timestep, noise and scheduler.')
        timesteps = torch.as_tensor(timestep, device=latents.device).expand(batch)
        latents = scheduler.add_noise(latents, noise, timesteps)
        if timesteps.unique().numel() == 1:  # schedulers scale whole batches, at one timestep
            latents = scheduler.scale_model_input(latents, timesteps[0])
    else:
        raise FusionError(f'timestep_mode must be "clean" or "shared", not {timestep_mode!r}.')

    added = added_cond_kwargs and {k: v.expand(batch, -1) for k, v in added_cond_kwargs.items()}
    unet = getattr(unet, "_orig_mod", unet)
    hidden_states: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_states[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    hooks = []
    for name, layer in cross_attention_layers(unet).items():
        processor = layer.processor
        if isinstance(processor, FusedAttnProcessor) and processor.conditioning is not None:
            raise FusionError(
                "unet is conditioned on faces: encode references outside of the `with "
                "adapter.conditioned(...)` block, where it is the base model."
            )
        hooks.append(layer.register_forward_pre_hook(keep(name), with_kwargs=True))
    try:
        # A compiled UNet would have to be compiled once more for the hooks: run this pass as it is.
        with torch.compiler.set_stance("force_eager"):
            unet(
                latents,
                timesteps,
                encoder_hidden_states=encoder_hidden_states.expand(batch, -1, -1),
                added_cond_kwargs=added,
                return_dict=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return hidden_states


@dataclass(frozen=True, eq=False)
class ReferenceCache(Sequence[LayerKeysValues]):
    """K_f and V_f of several references: all that generation needs of them, computed once.

    A sequence of references; each is a dictionary from a layer's name to its K_f and V_f, as
    ``FusionAdapter.conditioned`` takes them. It belongs to the adapter and UNet that made it.

    Attributes:
        references: For each reference, each layer's K_f and V_f ``(batch or 1, N_f, inner_dim)``.
            A batch of 1 serves every image; otherwise each image of a batch has its own.
    """

    references: tuple[LayerKeysValues, ...]

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
            return ReferenceCache(self.references[index])
        return self.references[index]

    def __iter__(self) -> Iterator[LayerKeysValues]:
        """Each reference in turn."""
        return iter(self.references)

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
        """The same references on another device or in another floating-point type."""
        return ReferenceCache(
            tuple(
                {
                    name: (key.to(device, dtype), value.to(device, dtype))
                    for name, (key, value) in reference.items()
                }
                for reference in self.references
            )
        )

    def repeat_interleave(self, repeats: int) -> "ReferenceCache":
        """Repeat each image's references, as ``num_images_per_prompt`` repeats prompts."""
        if repeats == 1 or self.batch_size == 1:
            return self
        return ReferenceCache(
            tuple(
                {
                    name: (key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0))
                    for name, (key, value) in reference.items()
                }
                for reference in self.references
            )
        )

    @staticmethod
    def stack(caches: Sequence["ReferenceCache"]) -> "ReferenceCache":
        """Join caches of equally many references, one for each image of a batch.

        Raises:
            FusionError: If the caches hold different numbers of references.
        """
        counts = [len(cache) for cache in caches]
        if len(set(counts)) != 1:
            raise FusionError(
                "references must be equally many for each image of a batch, not "
                f"{', '.join(map(str, counts)) or 'none'}."
            )
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
            )
        )
