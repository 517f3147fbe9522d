"""The reference stream: what the frozen UNet itself sees in a reference image.

h_f of equation 2 is the input of each cross-attention layer (``attn2``) while the reference image
goes through the same frozen UNet with the empty prompt. No trainable weight takes part, so it is
computed without gradient, and K_f and V_f made from it serve every step, prompt and image
(``fusionlib.reference_cache``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from fusionlib.checks import (
    check_added_conditions,
    check_latents,
    check_lora_scale,
    check_shared_timestep,
    check_text,
)
from fusionlib.errors import FusionError
from fusionlib.processor import conditioning_of
from fusionlib.unet_layers import cross_attention_layers


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

    The paper does not say at which timestep the reference is encoded. ``"clean"`` encodes it
    without noise at timestep 0, so that the result serves every step; ``"shared"`` noises it to the
    timestep of the image that is generated, and has to be repeated at every step.

    Args:
        unet: A ``UNet2DConditionModel``, compiled or not; a ``FusionAdapter`` may be attached.
        latents: The scaled latents of the references, ``(batch, channels, h, w)``. A UNet made for
            inpainting gets them twice, with an empty mask between: only the first are ever noised.
        encoder_hidden_states: The empty prompt's text embedding, ``(batch or 1, N_text, width)``.
        timestep_mode: ``"clean"`` or ``"shared"``.
        timestep: Timestep for ``"shared"`` only, a number or a tensor ``(batch,)``.
        noise: Noise for ``"shared"`` only, shaped like ``latents``.
        scheduler: Scheduler that adds the noise, for ``"shared"`` only.
        added_cond_kwargs: Conditions that an SDXL UNet also takes: ``text_embeds`` of the empty
            prompt and ``time_ids``, each ``(batch or 1, width)``.
        lora_scale: Factor of the UNet's LoRA weights in this pass, like diffusers'
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
    unet = getattr(unet, "_orig_mod", unet)  # not the graph that torch.compile made of it
    _check_base_model(layers)
    batch = check_latents(unet, latents)
    encoder_hidden_states = check_text(unet, encoder_hidden_states, batch)
    added_cond_kwargs = check_added_conditions(unet, added_cond_kwargs, batch)
    check_lora_scale(lora_scale)
    clean = latents
    if timestep_mode == "clean":
        if timestep is not None or noise is not None:
            raise FusionError('timestep and noise belong to timestep_mode="shared" only.')
        timesteps = torch.zeros(batch, dtype=torch.long, device=latents.device)
    elif timestep_mode == "shared":
        timesteps = check_shared_timestep(latents, timestep, noise, scheduler)
        latents = scheduler.add_noise(latents, noise, timesteps)
        if timesteps.unique().numel() == 1:  # schedulers scale whole batches, at one timestep
            latents = scheduler.scale_model_input(latents, timesteps[0])
    else:
        raise FusionError(f'timestep_mode must be "clean" or "shared", not {timestep_mode!r}.')

    if unet.config["in_channels"] != clean.shape[1]:  # a UNet for inpainting: nothing is masked
        latents = torch.cat([latents, torch.zeros_like(clean[:, :1]), clean], dim=1)
    # Hooks would make torch.compile build one more graph: this pass runs without it.
    eager = torch.compiler.set_stance("force_eager")
    with _layer_inputs(layers) as hidden_states, _without_ip_adapter(unet, layers), eager:
        unet(
            latents,
            timesteps,
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs=added_cond_kwargs,
            cross_attention_kwargs=None if lora_scale is None else {"scale": lora_scale},
            return_dict=False,
        )
    return hidden_states


@contextmanager
def _layer_inputs(layers: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Record what enters each layer inside the ``with`` block: h_f, by the layer's name."""
    hidden_states: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_states[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    hooks = [
        layer.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield hidden_states
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_ip_adapter(unet: Any, layers: Mapping[str, Any]) -> Iterator[None]:
    """Set a loaded IP-Adapter aside: references are encoded without an image prompt."""
    loaded = {name: layer for name, layer in layers.items() if hasattr(layer.processor, "to_k_ip")}
    processors = {name: layer.processor for name, layer in loaded.items()}
    projection = unet.encoder_hid_proj
    try:
        if loaded:
            unet.encoder_hid_proj = None  # it would want the image prompt's embeddings
        for layer in loaded.values():
            layer.set_processor(AttnProcessor2_0())
        yield
    finally:
        unet.encoder_hid_proj = projection
        for name, layer in loaded.items():
            layer.set_processor(processors[name])


def _check_base_model(layers: Mapping[str, Any]) -> None:
    """Refuse a conditioned UNet: references are encoded by the base model."""
    if any(conditioning_of(layer) is not None for layer in layers.values()):
        raise FusionError(
            "unet is conditioned on faces: encode references outside of the `with "
            "adapter.conditioned(...)` block, where it is the base model."
        )
