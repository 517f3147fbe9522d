"""Fused attention, equations 3 to 6 of the paper: text and faces share one softmax.

``fused_attention`` is the mathematics on plain tensors; ``decoupled_attention`` is the design that
the paper argues against, with a softmax for the faces alone. ``prepared_attention`` is what of
either is the same for all queries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fusionlib.backends import (
    Attend,
    Backend,
    added_logits,
    check_backend,
    dense,
    flex,
    grouped,
    usual_backend,
)
from fusionlib.errors import FusionError
from fusionlib.masking import QueryGroups, aligned, closed_logits

Strength = float | Tensor
"""lambda_i of one reference: a number for the whole batch, or a tensor ``(batch,)``."""

NUMBERS = (int, float, np.integer, np.floating)
"""Types of a strength that is one number."""

Attention = Literal["concatenated", "decoupled"]
"""How faces enter a layer: ``fused_attention``, the paper's, or ``decoupled_attention``."""


def fused_attention(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
    *,
    strengths: Sequence[Strength] | None = None,
    mask: Tensor | QueryGroups | None = None,
    scale: float | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Attend to the text and to every reference at once (Eq. 3 to 6).

    With ``K' = [K_c; K_f1; ...; K_fn]`` and V' alike (Eq. 6), the result is
    ``softmax(M + scale * Q K'^T) V'`` (Eq. 4 and 5), where M holds log(lambda_i) for the keys of
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
            query may look (Eq. 7: ``identity_attention_mask``); or the ``QueryGroups`` that
            ``group_queries`` makes of identity masks, with which no work is spent on closed keys
            where there are many queries.
        scale: alpha; None means 1 / sqrt(head_dim).
        backend: With ``QueryGroups``, how they are applied: ``"dense"``, ``"grouped"`` or
            ``"flex"`` (see ``fusionlib.backends``); None is ``"dense"`` where there are few
            and ``"grouped"`` where there are many.

    Returns:
        The attended values, ``(batch, heads, N_q, head_dim)``.

    Raises:
        FusionError: If the shapes, dtypes or strengths do not fit; the message names the argument.

    Example:
        Two references of different sizes beside a prompt of 77 tokens:

        >>> import torch
        >>> from fusionlib import fused_attention
        >>> query, text = torch.randn(1, 8, 64, 40), torch.randn(1, 8, 77, 40)
        >>> faces = [torch.randn(1, 8, 64, 40), torch.randn(1, 8, 100, 40)]
        >>> fused_attention(query, text, text, faces, faces, strengths=[1.0, 0.5]).shape
        torch.Size([1, 8, 64, 40])

        What a strength does: where all keys are alike, one face token at strength 3 weighs as much
        as three text tokens. The values are 0 for the text and 1 for the face, so that the result
        is the face's share of the attention.

        >>> query, text, face = (torch.zeros(1, 1, tokens, 8) for tokens in (1, 3, 1))
        >>> fused_attention(query, text, text, [face], [face + 1], strengths=[3.0])[0, 0, 0, 0]
        tensor(0.5000)
    """
    attend = prepared_attention(
        query,
        text_key,
        text_value,
        face_keys,
        face_values,
        strengths=strengths,
        mask=mask,
        scale=scale,
        backend=backend,
    )
    return attend(query)


def decoupled_attention(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
    *,
    strengths: Sequence[Strength] | None = None,
    mask: Tensor | QueryGroups | None = None,
    scale: float | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Attend to the text and, apart from it, to the references, and add the answers.

    The design that Section 3.2 of the paper argues against, IP-Adapter's, on the same keys and
    values: ``softmax(scale * Q K_c^T) V_c + softmax(M + scale * Q K_f^T) V_f``, with
    ``K_f = [K_f1; ...; K_fn]`` and ``V_f = [lambda_1 V_f1; ...; lambda_n V_fn]``. M is minus
    infinity where the mask closes a face key; a query to which all are closed is given the text's
    answer alone. lambda_i scales what reference i adds; 0 leaves it out, and the same lambda for
    all is IP-Adapter's scale.

    Args:
        query: Q, ``(batch, heads, N_q, head_dim)``.
        text_key: K_c, ``(batch, heads, N_text, head_dim)``.
        text_value: V_c, shaped like ``text_key``.
        face_keys: K_f of each reference, ``(batch or 1, heads, N_f, head_dim)``; N_f may differ.
        face_values: V_f of each reference, shaped like its key.
        strengths: lambda_i >= 0 of each reference, a number or a tensor ``(batch,)``; None means 1.
            A reference whose strength is 0 takes no attention from the others either.
        mask: As for ``fused_attention``; what it says of text keys is not looked at.
        scale: alpha; None means 1 / sqrt(head_dim).
        backend: As for ``fused_attention``.

    Returns:
        The attended values, ``(batch, heads, N_q, head_dim)``.

    Raises:
        FusionError: If the shapes, dtypes or strengths do not fit; the message names the argument.

    Example:
        Where all keys are alike, a face of strength 0.5 adds half its value, however many words
        there are, and takes nothing from them; in ``fused_attention`` they share a weight of 1.

        >>> import torch
        >>> from fusionlib import decoupled_attention, fused_attention
        >>> query, text, face = (torch.zeros(1, 1, tokens, 8) for tokens in (1, 3, 1))
        >>> words, look = text + 2, face + 1
        >>> for attention in (decoupled_attention, fused_attention):
        ...     attention(query, text, words, [face], [look], strengths=[0.5])[0, 0, 0, 0]
        tensor(2.5000)
        tensor(1.8571)
    """
    attend = prepared_attention(
        query,
        text_key,
        text_value,
        face_keys,
        face_values,
        attention="decoupled",
        strengths=strengths,
        mask=mask,
        scale=scale,
        backend=backend,
    )
    return attend(query)


def prepared_attention(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_keys: Sequence[Tensor],
    face_values: Sequence[Tensor],
    *,
    attention: Attention = "concatenated",
    strengths: Sequence[Strength] | None = None,
    mask: Tensor | QueryGroups | None = None,
    scale: float | None = None,
    backend: Backend | None = None,
) -> Attend:
    """All of ``fused_attention`` or ``decoupled_attention`` that is the same for other queries.

    Keys and values are joined here, and masks and strengths made into what is added to the logits.
    Where a reference is encoded once, only the queries differ from one step to another.

    Args:
        query: Such queries as there will be, ``(batch, heads, N_q, head_dim)``.
        text_key: As for ``fused_attention``, like all that follows.
        text_value: Likewise.
        face_keys: Likewise.
        face_values: Likewise.
        attention: ``"concatenated"`` for ``fused_attention``, or ``"decoupled"``.
        strengths: As for ``fused_attention``.
        mask: Likewise.
        scale: Likewise.
        backend: Likewise.

    Returns:
        The function of the queries, which have that shape, dtype and device.

    Raises:
        FusionError: If the shapes, dtypes or strengths do not fit; the message names the argument.

    Example:
        >>> import torch
        >>> from fusionlib import fused_attention
        >>> from fusionlib.attention import prepared_attention
        >>> text, face, *queries = torch.randn(4, 1, 8, 64, 40)
        >>> attend = prepared_attention(queries[0], text, text, [face], [face])
        >>> all(
        ...     torch.equal(attend(query), fused_attention(query, text, text, [face], [face]))
        ...     for query in queries
        ... )
        True
    """
    _check_shapes(query, text_key, text_value, face_keys, face_values)
    lambdas = check_strengths(strengths, len(face_keys), query.shape[0])
    _check_scale(scale)
    tokens = [text_key.shape[2], *(key.shape[2] for key in face_keys)]
    backend = _check_mask(mask, backend, query, tokens)
    kept = [i for i, strength in enumerate(lambdas) if not is_number(strength, 0)]
    if len(kept) < len(lambdas):
        mask = _without(mask, kept, tokens)
        tokens = [tokens[0], *(tokens[1 + i] for i in kept)]
    everyone = (query.shape[0], -1, -1, -1)
    seen = _Seen(
        [face_keys[i].expand(everyone) for i in kept],
        [face_values[i].expand(everyone) for i in kept],
        [lambdas[i] for i in kept],
        tokens,
        mask,
        backend,
    )
    join_faces = _decoupled if attention == "decoupled" else _concatenated
    return join_faces(text_key, text_value, seen, scale)


def _concatenated(
    text_key: Tensor, text_value: Tensor, seen: "_Seen", scale: float | None
) -> Attend:
    """Text and faces share one softmax: Eq. 3 to 6, for any queries of one shape."""
    key = torch.cat([text_key, *seen.keys], dim=2)  # K' (Eq. 6)
    value = torch.cat([text_value, *seen.values], dim=2)  # V'
    bias = _log_strengths(seen.strengths, seen.tokens, like=key)  # in M
    return _one_softmax(key, value, bias, seen, scale)  # Eq. 4 and 5


def _decoupled(text_key: Tensor, text_value: Tensor, seen: "_Seen", scale: float | None) -> Attend:
    """softmax(scale * Q K_c^T) V_c + softmax(M + scale * Q K_f^T) V_f, for queries of one shape."""
    to_text = dense(text_key, text_value, scale=scale)
    if not seen.keys:
        return to_text
    scaled = [
        value * torch.as_tensor(each, device=value.device).to(value).reshape(-1, 1, 1, 1)
        for value, each in zip(seen.values, seen.strengths, strict=True)
    ]
    # A strength of 0 within a tensor closes the keys: log(1) = 0 for all others.
    present = [
        each.sign() if isinstance(each, Tensor) and len(scaled) > 1 else 1.0
        for each in seen.strengths
    ]
    faces = seen.without_text()
    key, value = torch.cat(seen.keys, dim=2), torch.cat(scaled, dim=2)
    bias = _log_strengths(present, faces.tokens, like=key)
    to_faces = _one_softmax(key, value, bias, faces, scale)
    return lambda query: to_text(query) + to_faces(query)


@dataclass(frozen=True)
class _Seen:
    """The references that are left when those of strength 0 are taken out, and who sees them."""

    keys: list[Tensor]
    values: list[Tensor]
    strengths: list[Strength]
    tokens: list[int]
    """N_text, then N_f of each reference."""
    mask: Tensor | QueryGroups | None
    backend: Backend

    def without_text(self) -> "_Seen":
        """The same for a list of keys that holds none of the text's."""
        mask, tokens = self.mask, [0, *self.tokens[1:]]
        if isinstance(mask, Tensor) and mask.shape[-1] > 1:
            mask = mask[..., self.tokens[0] :]
        return replace(self, mask=mask, tokens=tokens)


def _one_softmax(
    key: Tensor, value: Tensor, bias: Tensor | None, seen: _Seen, scale: float | None
) -> Attend:
    """Eq. 4 and 5 over these keys, by the backend."""
    mask, tokens, dtype = seen.mask, seen.tokens, key.dtype
    if isinstance(mask, QueryGroups) and seen.backend != "dense":
        apply = flex if seen.backend == "flex" else grouped
        return apply(key, value, bias, mask, tokens, scale)
    closed: Tensor | None = None
    if isinstance(mask, QueryGroups):
        closed = mask.logits(tokens, dtype)
    elif mask is not None:
        closed = closed_logits(mask, dtype)
    if closed is None or tokens[0]:
        return dense(key, value, added_logits(bias, closed, dtype), scale)
    # Without the text, a query may have nothing to look at: it looks at all, and gets nothing. What
    # is closed lies below every strength, and above minus infinity, of which a softmax makes NaN.
    opened = (closed == 0).any(dim=-1, keepdim=True)
    closed = aligned(closed.clamp(min=torch.finfo(dtype).min / 2))
    attend = dense(key, value, added_logits(bias, closed, dtype), scale)
    return lambda query: attend(query) * opened


def _without(
    mask: Tensor | QueryGroups | None, kept: Sequence[int], tokens: Sequence[int]
) -> Tensor | QueryGroups | None:
    """The mask when only the references ``kept`` are left."""
    if isinstance(mask, QueryGroups):
        return mask.only(kept) if kept else None  # text keys are never closed
    if mask is None or mask.shape[-1] == 1:
        return mask
    text, *faces = mask.split(list(tokens), dim=-1)
    return torch.cat([text, *(faces[i] for i in kept)], dim=-1)


def _log_strengths(
    strengths: Sequence[Strength], tokens: Sequence[int], like: Tensor
) -> Tensor | None:
    """log(lambda) of each key, 0 for the text: ``(batch or 1, sum(tokens))``; None if all are 1."""
    if all(is_number(strength, 1) for strength in strengths):
        return None
    exact = torch.promote_types(like.dtype, torch.float32)
    logs = [torch.as_tensor(s, dtype=exact, device=like.device).log() for s in strengths]
    rows = max(log.numel() for log in logs)  # one for all, where no strength differs in the batch
    columns = [torch.zeros(rows, tokens[0], dtype=exact, device=like.device)]
    for log, count in zip(logs, tokens[1:], strict=True):
        columns.append(log.reshape(-1, 1).expand(rows, count))
    return torch.cat(columns, dim=1)


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


def _check_shapes(
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


def _check_scale(scale: float | None) -> None:
    if scale is not None and not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
        raise FusionError(f"scale must be None or a finite number above 0, not {scale!r}.")


def _check_mask(
    mask: Tensor | QueryGroups | None,
    backend: Backend | None,
    query: Tensor,
    tokens: Sequence[int],
) -> Backend:
    """The backend to use, once mask and backend are seen to fit."""
    check_backend(backend)
    if isinstance(mask, QueryGroups):
        queries, references = len(mask.order), len(tokens) - 1
        if queries != query.shape[2] or mask.references != references:
            raise FusionError(
                f"mask groups {queries} queries by {mask.references} references, but there are "
                f"{query.shape[2]} queries and {references} references."
            )
        if mask.order.device != query.device:
            raise FusionError(f"mask must be on the query's device: use mask.to({query.device}).")
        return backend or usual_backend(queries, sum(tokens), query.device.type)
    if mask is None:
        return "dense"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise FusionError(f"mask must be boolean, True where a query may look, not {found}.")
    if backend not in (None, "dense"):
        raise FusionError(
            f'backend="{backend}" needs a mask that groups the queries, as group_queries makes it.'
        )
    full = (*query.shape[:3], sum(tokens))
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if mask.ndim > 4 or any(have not in (1, want) for have, want in zip(shape, full, strict=True)):
        raise FusionError(
            f"mask must be broadcastable to (batch, heads, N_q, N_text + sum N_f) = {full}, "
            f"not {tuple(mask.shape)}."
        )
    return "dense"
