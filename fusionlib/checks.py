"""What users say of the sampler: how many steps, and how strongly guided. Checked in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionlib.errors import FusionError


def check_steps(steps: Any) -> None:
    """Refuse a number of denoising steps that no sampler takes.

    Raises:
        FusionError: it is no whole number from 1 to 1000.
    """
    if not (isinstance(steps, Integral) and is_real(steps) and 1 <= int(steps) <= 1000):
        raise FusionError(f"The number of steps must be from 1 to 1000, not {steps!r}.")


def check_guidance_scale(scale: Any) -> None:
    """Refuse a scale of classifier-free guidance that is none.

    Raises:
        FusionError: it is no finite number of 0 or more.
    """
    if not (is_real(scale) and scale >= 0):
        raise FusionError(f"The guidance scale {scale!r} must be a number of 0 or more.")


CHECKS = {"num_inference_steps": check_steps, "guidance_scale": check_guidance_scale}
"""By the name of the argument of a pipeline's call."""


def check_sampling(options: Mapping[str, Any], whose: str) -> None:
    """Refuse arguments of a pipeline's call that would fail in its middle.

    Args:
        options: of the call; those that nothing is known of here are passed over.
        whose: to call them by.

    Raises:
        FusionError: one is wrong; names it and whose it is.
    """
    for name, check in CHECKS.items():
        if name in options:
            try:
                check(options[name])
            except FusionError as error:
                raise FusionError(f"{name} of {whose}: {error}") from error


def is_real(value: object) -> bool:
    """Whether this is a finite number, and not a boolean."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def is_index(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


Strength = float | Tensor
"""lambda_i of one reference: a number for the whole batch, or a tensor ``(batch,)``."""


NUMBERS = (int, float, np.integer, np.floating)
"""Types of a strength that is one number."""


def is_number(strength: Strength, number: float) -> bool:
    """Whether a strength is this very number, known without looking into a tensor."""
    return not isinstance(strength, Tensor) and strength == number


def check_strengths(
    strengths: Sequence[Strength] | None, references: int, batch: int | None
) -> list[Strength]:
    """One strength for each reference, checked; ``batch`` None leaves the tensors' length open."""
    if strengths is None:
        return [1.0] * references
    given: Any = strengths
    rows = isinstance(given, Tensor | np.ndarray) and given.ndim > 0
    many = isinstance(given, Sequence) or rows
    if not many or len(strengths) != references:
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
            # To look into a tensor would break a compiled graph, or wait for a GPU.
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
    if scale is not None and not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
        raise FusionError(f"scale must be None or a finite number above 0, not {scale!r}.")


def check_reference_identity(
    reference_identity: Sequence[int], references: int | None, identities: int
) -> None:
    """Raise a ``FusionError`` unless each reference shows one of the identities."""
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
    """Raise a ``FusionError`` unless these are boolean masks ``(identities, H, W)``."""
    if not isinstance(masks, Tensor) or masks.ndim != 3 or 0 in masks.shape:
        shape = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise FusionError(f"{argument} must be a tensor (identities, H, W), not {shape}.")
    if masks.dtype != torch.bool:
        raise FusionError(
            f"{argument} must be boolean, True where the identity's face is, not {masks.dtype}."
        )


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    pair = isinstance(size, tuple | list) and len(size) == 2
    if not pair or not all(isinstance(side, int) and side >= 1 for side in size):
        raise FusionError(f"size must be a positive (h, w), not {size!r}.")
    return size[0], size[1]


def check_tokens(text_tokens: int, face_tokens: Sequence[int]) -> None:
    if not isinstance(text_tokens, int) or text_tokens < 1:
        raise FusionError(f"text_tokens must be a positive number, not {text_tokens!r}.")
    counts = isinstance(face_tokens, Sequence) and not isinstance(face_tokens, str)
    if not counts or not all(isinstance(tokens, int) and tokens >= 1 for tokens in face_tokens):
        raise FusionError(
            "face_tokens must hold a positive number of tokens for each reference, "
            f"not {face_tokens!r}."
        )


def check_latents(unet: Any, latents: Tensor) -> int:
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


def check_text(unet: Any, encoder_hidden_states: Tensor, batch: int) -> Tensor:
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


def check_added_conditions(
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


def check_layer_names(argument: str, given: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
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
