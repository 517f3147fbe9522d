"""Fused attention, equations 3 to 6 of the paper: text and faces share one softmax.

``fused_attention`` is the mathematics on plain tensors. ``FusedAttnProcessor`` puts it into a
diffusers UNet, one processor for each cross-attention layer, and is the base model's own processor
until it is given a ``LayerConditioning``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlib.errors import FusionError
from fusionlib.masking import identity_attention_mask

Strength = float | Tensor
"""lambda_i of one reference: a number for the whole batch, or a tensor ``(batch,)``."""


def fused_attention(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
    *,
    strengths: Sequence[Strength] | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend to the text and to every reference at once (Eq. 3 to 6).

    With K' = [K_c; K_f1; ...; K_fn] and V' alike (Eq. 6), the result is
    softmax(M + scale * Q K'^T) V' (Eq. 4 and 5), where M holds log(lambda_i) for the keys of
    reference i, and minus infinity where the mask closes a key. So lambda_i multiplies the
    attention weight of reference i before normalisation; lambda_i = 1 is the paper's equation, 0
    leaves the reference out.

    Args:
        query: Q, ``(batch, heads, N_q, head_dim)``.
        text_key: K_c, ``(batch, heads, N_text, head_dim)``.
        text_value: V_c, shaped like ``text_key``.
        face_keys: K_f of each reference, ``(batch or 1, heads, N_f, head_dim)``; N_f may differ.
        face_values: V_f of each reference, shaped like its key.
        strengths: lambda_i >= 0 of each reference, a number or a tensor ``(batch,)``; None means 1.
            A reference whose strength is the number 0 is left out before anything is computed.
        mask: Boolean, broadcastable to ``(batch, heads, N_q, N_text + sum N_f)``, True where a
            query may look (Eq. 7: see ``fusionlib.masking.identity_attention_mask``).
        scale: alpha; None means 1 / sqrt(head_dim).

    Returns:
        The attended values, ``(batch, heads, N_q, head_dim)``.

    Raises:
        FusionError: If the shapes, dtypes or strengths do not fit; the message names the argument.
    """
    _check_shapes(query, text_key, text_value, face_keys, face_values)
    lambdas = check_strengths(strengths, len(face_keys), query.shape[0])
    face_tokens = [key.shape[2] for key in face_keys]
    if mask is not None:
        _check_mask(mask, query, text_key.shape[2] + sum(face_tokens))

    kept = [i for i, strength in enumerate(lambdas) if not is_number(strength, 0)]
    if mask is not None and len(kept) < len(lambdas) and mask.shape[-1] != 1:
        text_columns, *face_columns = mask.split([text_key.shape[2], *face_tokens], dim=-1)
        mask = torch.cat([text_columns, *(face_columns[i] for i in kept)], dim=-1)
    lambdas = [lambdas[i] for i in kept]
    heads_and_batch = (query.shape[0], -1, -1, -1)
    key = torch.cat([text_key, *(face_keys[i].expand(heads_and_batch) for i in kept)], dim=2)
    value = torch.cat([text_value, *(face_values[i].expand(heads_and_batch) for i in kept)], dim=2)

    if all(is_number(strength, 1) for strength in lambdas):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    # M's log(lambda) without a dense (N_q, N_k) bias, so that flash kernels stay usable: the query
    # gets one more channel that is 1, the keys one that is log(lambda) / scale.
    head_dim = query.shape[-1]
    scale = head_dim**-0.5 if scale is None else scale
    tokens = [text_key.shape[2], *(face_tokens[i] for i in kept)]
    channel = _strength_channel(lambdas, tokens, scale, query)
    spare = -(head_dim + 1) % 8  # kernels want a multiple of 8 (SD 1.5: 40, 80, 160 -> 48, 88, 168)
    query = F.pad(torch.cat([query, torch.ones_like(query[..., :1])], dim=-1), (0, spare))
    key = F.pad(torch.cat([key, channel.expand(-1, key.shape[1], -1, -1)], dim=-1), (0, spare))
    value = F.pad(value, (0, 1 + spare))
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return fused[..., :head_dim]


def _strength_channel(
    strengths: Sequence[Strength], tokens: Sequence[int], scale: float, like: Tensor
) -> Tensor:
    """The keys' extra channel log(lambda) / scale, ``(batch, 1, sum(tokens), 1)``; 0 for the text.

    A quarter of the dtype's lowest number stands for log(0): after the softmax it is 0 all the
    same, and unlike minus infinity it leaves no NaN in the backward pass.
    """
    lowest = torch.finfo(like.dtype).min / 4
    batch = like.shape[0]
    exact = torch.promote_types(like.dtype, torch.float32)
    columns = [torch.zeros(batch, tokens[0], dtype=exact, device=like.device)]
    for strength, count in zip(strengths, tokens[1:], strict=True):
        column = torch.as_tensor(strength, dtype=exact, device=like.device).log() / scale
        columns.append(column.clamp(min=lowest).reshape(-1, 1).expand(batch, count))
    return torch.cat(columns, dim=1).to(like.dtype)[:, None, :, None]


def is_number(strength: Strength, number: float) -> bool:
    """Whether a strength is this very number, known without looking into a tensor."""
    return not isinstance(strength, Tensor) and strength == number


def check_strengths(
    strengths: Sequence[Strength] | None, references: int, batch: int | None
) -> list[Strength]:
    """One strength for each reference, checked; ``batch`` None leaves the tensors' length open."""
    if strengths is None:
        return [1.0] * references
    if isinstance(strengths, (int, float)) or len(strengths) != references:
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
        elif not (isinstance(strength, (int, float)) and 0 <= strength < math.inf):
            raise FusionError(
                f"strengths[{index}] must be a finite number of at least 0, not {strength!r}."
            )
    return list(strengths)


def _check_shapes(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
) -> None:
    if query.ndim != 4:
        raise FusionError(
            f"query must be (batch, heads, tokens, head_dim), not {tuple(query.shape)}."
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
        fits = key.ndim == 4 and key.shape[0] in batches
        if not fits or key.shape[1] != heads or key.shape[3] != head_dim:
            raise FusionError(
                f"{key_name} must be (batch={batch}, heads={heads}, tokens, head_dim={head_dim}) "
                f"like the query, not {tuple(key.shape)}."
            )
        if value.shape != key.shape:
            raise FusionError(
                f"{value_name} must have the shape {tuple(key.shape)} of {key_name}, "
                f"not {tuple(value.shape)}."
            )
        for name, tensor in ((key_name, key), (value_name, value)):
            if tensor.dtype != query.dtype:
                raise FusionError(
                    f"{name} must have the query's dtype {query.dtype}, not {tensor.dtype}."
                )


def _check_mask(mask: Tensor, query: Tensor, keys: int) -> None:
    if mask.dtype != torch.bool:
        raise FusionError(f"mask must be boolean, True where a query may look, not {mask.dtype}.")
    full = (*query.shape[:3], keys)
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if mask.ndim > 4 or any(have not in (1, want) for have, want in zip(shape, full, strict=True)):
        raise FusionError(
            f"mask must be broadcastable to (batch, heads, N_q, N_text + sum N_f) = {full}, "
            f"not {tuple(mask.shape)}."
        )


@dataclass(frozen=True)
class LayerConditioning:
    """What one cross-attention layer sees beside the text.

    Attributes:
        keys: K_f of each reference, ``(batch or 1, N_f, inner_dim)``.
        values: V_f of each reference, shaped like its key.
        strengths: lambda_i of each reference, a number or a tensor ``(batch,)``.
        masks: The identity masks ``(identities, h, w)`` at each resolution, by their size h * w;
            None without masks.
        reference_identity: The identity of each reference.
        batch_size: How many samples, at the end of the UNet's batch, see the faces; None means all.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    strengths: tuple[Strength, ...]
    masks: Mapping[int, Tensor] | None = None
    reference_identity: tuple[int, ...] = ()
    batch_size: int | None = None


class FusedAttnProcessor:
    """A diffusers attention processor for ``attn2`` that lets the queries see faces, too.

    It holds no weights. Without a ``conditioning`` it hands the call on to the processor that it
    replaced, so that the UNet is the base model bit by bit.

    Attributes:
        former: The processor that was here before.
        conditioning: What to see beside the text; set by ``FusionAdapter.conditioned``.
    """

    def __init__(self, former: Any) -> None:
        self.former = former
        self.conditioning: LayerConditioning | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Compute one layer for ``hidden_states`` ``(batch, N_q, query_dim)``."""
        faces = self.conditioning
        if faces is None:
            return self.former(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
        if attention_mask is not None or not isinstance(encoder_hidden_states, Tensor):
            raise FusionError(
                "Face references work with plain text conditioning only: call the UNet without "
                "encoder_attention_mask and without an IP-Adapter's image embeddings."
            )
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        value = split_heads(attn.to_v(encoder_hidden_states), attn.heads)

        # The samples before the last `batch_size` are guidance's unconditional branch: text only.
        plain = 0 if faces.batch_size is None else max(query.shape[0] - faces.batch_size, 0)
        attended = self._fuse(query[plain:], key[plain:], value[plain:], faces)
        if plain:
            text_only = F.scaled_dot_product_attention(query[:plain], key[:plain], value[:plain])
            attended = torch.cat([text_only, attended])

        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)
        linear, dropout = attn.to_out
        return dropout(linear(attended)) / attn.rescale_output_factor

    def _fuse(self, query: Tensor, key: Tensor, value: Tensor, faces: LayerConditioning) -> Tensor:
        heads = query.shape[1]
        face_keys = [split_heads(k.to(key), heads) for k in faces.keys]
        face_values = [split_heads(v.to(value), heads) for v in faces.values]
        mask = None
        if faces.masks is not None:
            queries = query.shape[2]
            if queries not in faces.masks:
                raise FusionError(
                    f"identity_masks do not fit a layer of {queries} positions: give masks of the "
                    "image's height and width, and fewer disjoint ones than that."
                )
            masks = faces.masks[queries]
            mask = identity_attention_mask(
                masks,
                faces.reference_identity,
                (masks.shape[1], masks.shape[2]),
                key.shape[2],
                [k.shape[2] for k in face_keys],
            ).to(query.device)
        return fused_attention(
            query, key, value, face_keys, face_values, strengths=faces.strengths, mask=mask
        )


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """``(batch, tokens, heads * head_dim)`` to ``(batch, heads, tokens, head_dim)``."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def cross_attention_layers(unet: Any) -> dict[str, Any]:
    """Every cross-attention layer of a ``UNet2DConditionModel``, by its name in the UNet.

    The names are the UNet's own, such as
    ``"down_blocks.0.attentions.0.transformer_blocks.0.attn2"``.

    Raises:
        FusionError: If there is none.
    """
    layers = {
        name: module
        for name, module in getattr(unet, "_orig_mod", unet).named_modules()  # torch.compile's
        if name.endswith(".attn2") and getattr(module, "is_cross_attention", False)
    }
    if not layers:
        raise FusionError(
            f"unet has no cross-attention layer (attn2) to attach to: {type(unet).__name__}."
        )
    return layers
