"""What numbers, tensors and dictionaries must be: every check that the method makes.

Each function raises a ``FusionError`` whose message names the argument, says what it was, and says
what it must be. The modules of the method stay free of these checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionlib.errors import FusionError

Strength = float | Tensor
"""lambda_i of one reference: a number for the whole batch, or a tensor ``(batch,)``."""

MAX_SIDE = 16_384
"""Most pixels on a side of a picture; attention to more would fit into no memory."""

NUMBERS = (int, float, np.integer, np.floating)
"""Types that count as one number where a strength is given."""


def is_real(value: object) -> bool:
    """Whether this is a finite number, and not a boolean."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def is_index(value: object) -> bool:
    """Whether this is a whole number of at least 0, and not a boolean."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


def is_number(strength: Strength, number: float) -> bool:
    """Whether a strength is this very number, as far as it is known without reading a tensor."""
    return not isinstance(strength, Tensor) and strength == number


def check_steps(steps: Any) -> None:
    """Refuse a number of denoising steps other than a whole number from 1 to 1000."""
    if not (isinstance(steps, Integral) and is_real(steps) and 1 <= int(steps) <= 1000):
        raise FusionError(f"The number of steps must be from 1 to 1000, not {steps!r}.")


def check_guidance_scale(scale: Any) -> None:
    """Refuse a scale of classifier-free guidance other than a finite number of at least 0."""
    if not (is_real(scale) and scale >= 0):
        raise FusionError(f"The guidance scale {scale!r} must be a number of 0 or more.")


SAMPLING_CHECKS = {"num_inference_steps": check_steps, "guidance_scale": check_guidance_scale}
"""Checks of arguments of a pipeline's call, by the argument's name."""


def check_sampling(options: Mapping[str, Any], whose: str) -> None:
    """Refuse arguments of a pipeline's call that would fail only after it has begun.

    Args:
        options: Arguments of the call; those without a check here are passed over.
        whose: Owner of the options, for the message.

    Raises:
        FusionError: If an option is wrong.
    """
    for name, check in SAMPLING_CHECKS.items():
        if name in options:
            try:
                check(options[name])
            except FusionError as error:
                raise FusionError(f"{name} of {whose}: {error}") from error


def check_strengths(
    strengths: Sequence[Strength] | None, references: int, batch: int | None
) -> list[Strength]:
    """Return one strength for each reference, checked.

    Args:
        strengths: A number or a tensor ``(batch,)`` for each reference; None means 1.
        references: Number of references.
        batch: Batch size, the length of tensors; None leaves it open.
    """
    if strengths is None:
        return [1.0] * references
    given: Any = strengths
    several = isinstance(given, Sequence)
    several |= isinstance(given, Tensor | np.ndarray) and given.ndim > 0
    if not several or len(strengths) != references:
        raise FusionError(
            f"strengths must hold one number for each of the {references} references, "
            f"not {strengths!r}."
        )
    for index, strength in enumerate(strengths):
        if isinstance(strength, Tensor):
            if strength.ndim > 1 or (batch is not None and strength.numel() not in (1, batch)):
                raise FusionError(
                    f"strengths[{index}] must be a number or a tensor of the batch size "
                    f"({batch},), not of shape {tuple(strength.shape)}."
                )
            # Reading a tensor would break a compiled graph, or wait for a GPU.
            readable = not torch.compiler.is_compiling() and strength.device.type == "cpu"
            if readable and not ((strength >= 0) & strength.isfinite()).all():
                raise FusionError(
                    f"strengths[{index}] must hold finite numbers of at least 0, "
                    f"not {strength.tolist()}."
                )
        elif not (isinstance(strength, NUMBERS) and 0 <= strength < math.inf):
            raise FusionError(
                f"strengths[{index}] must be a finite number of at least 0, not {strength!r}."
            )
    return [each if isinstance(each, Tensor) else float(each) for each in strengths]


def check_shapes(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
) -> None:
    """Check queries, keys and values of ``fused_attention`` against each other."""
    if not isinstance(query, Tensor) or query.ndim != 4:
        raise FusionError(
            f"query must be a tensor (batch, heads, tokens, head_dim), not {_what(query)}."
        )
    if not query.is_floating_point():
        raise FusionError(f"query must have a floating-point dtype, not {query.dtype}.")
    for name, several in (("face_keys", face_keys), ("face_values", face_values)):
        if not isinstance(several, Sequence):
            raise FusionError(
                f"{name} must be a list with one tensor for each reference, not {_what(several)}."
            )
    if len(face_keys) != len(face_values):
        raise FusionError(
            f"face_values must hold one tensor for each of the {len(face_keys)} face_keys, "
            f"not {len(face_values)}."
        )
    batch, heads, _, head_dim = query.shape
    pairs = [("text_key", text_key, "text_value", text_value)]
    pairs += [
        (f"face_keys[{i}]", key, f"face_values[{i}]", value)
        for i, (key, value) in enumerate(zip(face_keys, face_values, strict=True))
    ]
    for key_name, key, value_name, value in pairs:
        batches = (batch,) if key_name == "text_key" else (batch, 1)
        fits = isinstance(key, Tensor) and key.ndim == 4 and key.shape[0] in batches
        if not fits or key.shape[1] != heads or key.shape[3] != head_dim:
            raise FusionError(
                f"{key_name} must be (batch={batch}, heads={heads}, tokens, head_dim={head_dim}) "
                f"like the query, not {_what(key)}."
            )
        if not isinstance(value, Tensor) or value.shape != key.shape:
            raise FusionError(
                f"{value_name} must have the shape {tuple(key.shape)} of {key_name}, "
                f"not {_what(value)}."
            )
        for name, tensor in ((key_name, key), (value_name, value)):
            if tensor.dtype != query.dtype or tensor.device != query.device:
                raise FusionError(
                    f"{name} must have the query's dtype and device, {query.dtype} on "
                    f"{query.device}, not {tensor.dtype} on {tensor.device}."
                )


def _what(given: Any) -> Any:
    """The shape of a tensor, the type of anything else, for error messages."""
    return tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__


def check_scale(scale: float | None) -> None:
    """Check alpha, the scale of the logits: None, or a finite number above 0."""
    if scale is not None and not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
        raise FusionError(f"scale must be None or a finite number above 0, not {scale!r}.")


def check_reference_identity(
    reference_identity: Sequence[int], references: int | None, identities: int
) -> None:
    """Check the index of the identity that each reference shows.

    Args:
        reference_identity: Index for each reference, from 0 to ``identities - 1``.
        references: Number of references; None leaves it open.
        identities: Number of identity masks.
    """
    given: Any = reference_identity
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise FusionError(
            "reference_identity must be a list of the references' identities, "
            f"not {reference_identity!r}."
        )
    if references is not None and len(reference_identity) != references:
        raise FusionError(
            f"reference_identity must hold one index for each of the {references} references, "
            f"not {len(reference_identity)}."
        )
    for index, identity in enumerate(reference_identity):
        if not (isinstance(identity, int) and 0 <= identity < identities):
            raise FusionError(
                f"reference_identity[{index}] must be the index of an identity mask, "
                f"0 to {identities - 1}, not {identity!r}."
            )


def check_masks(masks: Tensor, argument: str = "masks") -> None:
    """Check that these are boolean masks ``(identities, H, W)``."""
    if not isinstance(masks, Tensor) or masks.ndim != 3 or 0 in masks.shape:
        shape = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise FusionError(f"{argument} must be a tensor (identities, H, W), not {shape}.")
    if masks.dtype != torch.bool:
        raise FusionError(
            f"{argument} must be boolean, True where the identity's face is, not {masks.dtype}."
        )


def check_identities(
    masks: Tensor | None, reference_identity: Sequence[int] | None, references: int
) -> Sequence[int]:
    """The identity that each reference shows, checked; by default reference i shows identity i."""
    if masks is None:
        if reference_identity is not None:
            raise FusionError("reference_identity needs identity_masks: give both or neither.")
        return ()
    check_masks(masks, "identity_masks")
    identities = range(references) if reference_identity is None else reference_identity
    check_reference_identity(identities, references, len(masks))
    return identities


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return a layer's (h, w), checked."""
    pair = isinstance(size, tuple | list) and len(size) == 2
    if not pair or not all(isinstance(side, int) and side >= 1 for side in size):
        raise FusionError(f"size must be a positive (h, w), not {size!r}.")
    return size[0], size[1]


def check_divisible(height: Any, width: Any, factor: int) -> None:
    """Refuse a picture's size in pixels that the autoencoder would round.

    Args:
        height: Height in pixels; None is not checked.
        width: Width in pixels; None is not checked.
        factor: Pixels of the picture to a side of one latent position.

    Raises:
        FusionError: If one is no whole number, or not divisible; the message has the nearest sizes.
    """
    for name, pixels in (("height", height), ("width", width)):
        if pixels is None:
            continue
        whole = isinstance(pixels, Integral) and not isinstance(pixels, bool)
        if not whole or not 1 <= pixels <= MAX_SIDE:
            raise FusionError(
                f"{name} must be a whole number of pixels from {factor} to {MAX_SIDE}, "
                f"not {pixels!r}."
            )
        if pixels % factor:
            below = int(pixels) // factor * factor
            nearest = f"{below} or {below + factor}" if below else f"{factor}"
            raise FusionError(
                f"{name}={pixels} cannot be made: this model's autoencoder makes sizes that are "
                f"divisible by {factor}, such as {nearest}."
            )


def check_text_encoder(text_encoder: Any) -> None:
    """Refuse to encode the references' prompt without a text encoder."""
    if text_encoder is None:
        raise FusionError(
            "reference_prompt_embeds are needed, since no text encoder is loaded: encode the empty "
            'prompt by encode_prompt("", ...) where there is one, or give references that '
            "encode_references encoded there."
        )


def check_tokens(text_tokens: int, face_tokens: Sequence[int]) -> None:
    """Check N_text, and N_f of each reference."""
    if not isinstance(text_tokens, int) or text_tokens < 1:
        raise FusionError(f"text_tokens must be a positive number, not {text_tokens!r}.")
    counts = isinstance(face_tokens, Sequence) and not isinstance(face_tokens, str)
    if not counts or not all(isinstance(tokens, int) and tokens >= 1 for tokens in face_tokens):
        raise FusionError(
            "face_tokens must hold a positive number of tokens for each reference, "
            f"not {face_tokens!r}."
        )


def check_latents(unet: Any, latents: Tensor) -> int:
    """Return the number of references; check that their latents fit the UNet."""
    channels = unet.config["out_channels"]
    fits = isinstance(latents, Tensor) and latents.ndim == 4 and latents.is_floating_point()
    # A UNet for inpainting takes a mask, too, and the latents of what it paints into.
    if not fits or unet.config["in_channels"] not in (latents.shape[1], 2 * latents.shape[1] + 1):
        found = (
            f"{latents.dtype} {tuple(latents.shape)}" if isinstance(latents, Tensor) else latents
        )
        raise FusionError(
            f"latents must be floating-point (batch, {channels}, h, w) for this unet, not {found}."
        )
    return latents.shape[0]


def check_text(unet: Any, encoder_hidden_states: Tensor, batch: int) -> Tensor:
    """Return the text embedding of each reference; check that it fits the UNet and the latents."""
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


def check_added_conditions(
    unet: Any, added_cond_kwargs: Mapping[str, Tensor] | None, batch: int
) -> dict[str, Tensor] | None:
    """Return SDXL's added conditions of each reference; check that they fit the UNet."""
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


def check_shared_timestep(
    latents: Tensor, timestep: Any, noise: Tensor | None, scheduler: Any
) -> Tensor:
    """Return the timestep of each reference; check what noises references to a shared timestep."""
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
    batch = latents.shape[0]
    timesteps = torch.as_tensor(timestep, device=latents.device)
    if timesteps.ndim > 1 or timesteps.numel() not in (1, batch):
        raise FusionError(
            f"timestep must be a number or a tensor ({batch},), "
            f"not of shape {tuple(timesteps.shape)}."
        )
    timesteps = timesteps.expand(batch)
    if timesteps.unique().numel() > 1 and scheduler.init_noise_sigma != 1:
        raise FusionError(
            f"timestep must be the same for all references with {type(scheduler).__name__}, "
            "which scales a whole batch by it: encode them one by one."
        )
    return timesteps


def check_lora_scale(scale: Any, argument: str = "lora_scale") -> None:
    """Check the factor of LoRA weights: None, or a finite number."""
    if not (scale is None or (isinstance(scale, int | float) and math.isfinite(scale))):
        raise FusionError(f"{argument} must be None or a finite number, not {scale!r}.")


def check_layer_names(argument: str, given: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
    """Check that a dictionary holds exactly the adapter's layers."""
    if not isinstance(given, Mapping):
        raise FusionError(
            f"{argument} must be a dictionary of the adapter's layers, not {type(given).__name__}."
        )
    if given.keys() != layers.keys():
        odd = sorted(given.keys() ^ layers.keys(), key=str)
        raise FusionError(
            f"{argument} must hold exactly the adapter's {len(layers)} layers; "
            f"{odd[0]!r} is {'not one of them' if odd[0] in given else 'missing'}."
        )


def check_references(
    references: Any, layers: Mapping[str, Sequence[int]], batch_size: int | None
) -> None:
    """Check that these are K_f and V_f of an adapter's layers.

    Args:
        references: K_f and V_f ``(batch or 1, N_f, inner_dim)`` of every layer, for each reference.
        layers: ``(query_dim, inner_dim)`` of each layer of the adapter, by name.
        batch_size: Number of samples that see the references; None leaves it open.
    """
    if not isinstance(references, Sequence):
        raise FusionError(
            "references must be a list with K_f and V_f of each reference, or a "
            f"ReferenceCache, not {type(references).__name__}."
        )
    for index, reference in enumerate(references):
        check_layer_names(f"references[{index}]", reference, layers)
        for name, (_, inner_dim) in layers.items():
            pair = reference[name]
            several = pair if isinstance(pair, tuple | list) else (pair,)
            shapes = [tuple(getattr(tensor, "shape", ())) for tensor in several]
            if len(shapes) != 2 or shapes[0] != shapes[1] or shapes[0][2:] != (inner_dim,):
                raise FusionError(
                    f"references[{index}][{name!r}] must be K_f and V_f, each (batch, tokens, "
                    f"{inner_dim}), not {shapes}: encode the reference with this adapter."
                )
            if batch_size is not None and shapes[0][0] not in (1, batch_size):
                raise FusionError(
                    f"references[{index}] must serve 1 or batch_size={batch_size} samples, "
                    f"not {shapes[0][0]}."
                )


def check_hidden_states(hidden_states: Any, layers: Mapping[str, Sequence[int]]) -> None:
    """Check h_f ``(batch, N_f, query_dim)`` of an adapter's layers."""
    check_layer_names("hidden_states", hidden_states, layers)
    for name, (query_dim, _) in layers.items():
        hidden = hidden_states[name]
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[2] != query_dim:
            raise FusionError(
                f"hidden_states[{name!r}] must be a tensor (batch, tokens, {query_dim}), "
                f"not {tuple(getattr(hidden, 'shape', ())) or type(hidden).__name__}."
            )
