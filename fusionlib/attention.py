"""Fused attention, equations 3 to 6 of the paper: text and faces share one softmax.

``fused_attention`` is the mathematics on plain tensors. ``decoupled_attention`` is the design that
the paper argues against, with a softmax for the faces alone. ``prepare_attention`` is the part of
either that is the same for all queries, so that it is computed once for all steps of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fusionlib.checks import Strength, is_number
from fusionlib.kernels import (
    Attend,
    Backend,
    QueryGroups,
    ShownReferences,
    dense,
    one_softmax,
    read_references,
)

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
    ``softmax(B + scale * Q K'^T) V'`` (Eq. 4 and 5), where B holds log(lambda_i) for the keys of
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
        backend: With ``QueryGroups``, how they are applied: ``"dense"`` or ``"grouped"`` (see
            ``fusionlib.kernels``); None is ``"dense"`` where there are few queries and
            ``"grouped"`` where there are many.

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
    faces = read_references(
        query, text_key, text_value, face_keys, face_values, strengths, mask, scale, backend
    )
    return _fused(text_key, text_value, faces)(query)


def _fused(text_key: Tensor, text_value: Tensor, faces: ShownReferences) -> Attend:
    """Join K' and V' of Eq. 6, ready for the softmax of Eq. 4 and 5 with any queries."""
    key = torch.cat([text_key, *faces.keys], dim=2)  # K' = [K_c; K_f1; ...; K_fn]
    value = torch.cat([text_value, *faces.values], dim=2)  # V' = [V_c; V_f1; ...; V_fn]
    bias = _log_strengths(faces.strengths, faces.tokens, like=key)  # in B
    return one_softmax(key, value, bias, faces)  # softmax(B + scale * Q K'^T) V'


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

    The design that Section 3.2 of the paper argues against (IP-Adapter's), on the same keys and
    values: ``softmax(scale * Q K_c^T) V_c + softmax(B + scale * Q K_f^T) V_f``, with
    ``K_f = [K_f1; ...; K_fn]`` and ``V_f = [lambda_1 V_f1; ...; lambda_n V_fn]``. B is minus
    infinity where the mask closes a face key; a query to which all are closed is given the text's
    answer alone. lambda_i scales what reference i adds; 0 leaves it out, and the same lambda for
    all is IP-Adapter's scale.

    Args:
        query: Q, ``(batch, heads, N_q, head_dim)``.
        text_key: K_c, ``(batch, heads, N_text, head_dim)``.
        text_value: V_c, shaped like ``text_key``.
        face_keys: K_f of each reference, ``(batch or 1, heads, N_f, head_dim)``.
        face_values: V_f of each reference, shaped like its key.
        strengths: lambda_i >= 0 of each reference, a number or a tensor ``(batch,)``; None means 1.
            A reference whose strength is 0 is left out entirely.
        mask: Mask or ``QueryGroups``, see ``fused_attention``; its text columns have no effect.
        scale: alpha; None means 1 / sqrt(head_dim).
        backend: How ``QueryGroups`` are applied, see ``fused_attention``.

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
    faces = read_references(
        query, text_key, text_value, face_keys, face_values, strengths, mask, scale, backend
    )
    return _decoupled(text_key, text_value, faces)(query)


def _decoupled(text_key: Tensor, text_value: Tensor, faces: ShownReferences) -> Attend:
    """softmax(scale * Q K_c^T) V_c + softmax(B + scale * Q K_f^T) V_f, for queries of one shape."""
    to_text = dense(text_key, text_value, scale=faces.scale)
    if not faces.keys:
        return to_text
    scaled = [
        value * torch.as_tensor(strength, device=value.device).to(value).reshape(-1, 1, 1, 1)
        for value, strength in zip(faces.values, faces.strengths, strict=True)
    ]
    # log(0) masks out the face of a sample whose strength is 0; log(1) = 0 leaves the others.
    present = [
        strength.sign() if isinstance(strength, Tensor) and len(scaled) > 1 else 1.0
        for strength in faces.strengths
    ]
    alone = faces.without_text()
    key, value = torch.cat(faces.keys, dim=2), torch.cat(scaled, dim=2)
    bias = _log_strengths(present, alone.tokens, like=key)
    to_faces = one_softmax(key, value, bias, alone)
    return lambda query: to_text(query) + to_faces(query)


def prepare_attention(
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
    """Do the part of fused or decoupled attention that does not depend on the queries.

    Keys and values are joined here, and masks and strengths turned into what is added to the
    logits. The arguments are those of ``fused_attention``; ``query`` is an example of the queries
    to come.

    Returns:
        A function of queries that have the shape, dtype and device of ``query``.

    Raises:
        FusionError: If the shapes, dtypes or strengths do not fit; the message names the argument.
    """
    faces = read_references(
        query, text_key, text_value, face_keys, face_values, strengths, mask, scale, backend
    )
    prepare = _decoupled if attention == "decoupled" else _fused
    return prepare(text_key, text_value, faces)


def _log_strengths(
    strengths: Sequence[Strength], tokens: Sequence[int], like: Tensor
) -> Tensor | None:
    """log(lambda) of each key, 0 for the text: ``(batch or 1, sum(tokens))``; None if all are 1."""
    if all(is_number(strength, 1) for strength in strengths):
        return None
    exact = torch.promote_types(like.dtype, torch.float32)
    logs = [torch.as_tensor(s, dtype=exact, device=like.device).log() for s in strengths]
    rows = max(log.numel() for log in logs)  # 1 where no strength differs within the batch
    columns = [torch.zeros(rows, tokens[0], dtype=exact, device=like.device)]
    for log, count in zip(logs, tokens[1:], strict=True):
        columns.append(log.reshape(-1, 1).expand(rows, count))
    return torch.cat(columns, dim=1)
