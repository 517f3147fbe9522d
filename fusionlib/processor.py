"""Equation 1, h' = softmax(Q K^T / sqrt(d)) V, and where faces enter it in a cross-attention layer.

``FusedAttnProcessor`` takes the place of the base model's own processor while faces are shown, and
holds them in a ``LayerConditioning``. Before and after, the UNet has the processors that diffusers,
an IP-Adapter or the user gave it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from fusionlib.attention import Attention, prepare_attention
from fusionlib.checks import Strength
from fusionlib.errors import FusionError
from fusionlib.kernels import Attend, Backend, QueryGroups, dense, join
from fusionlib.unet_layers import split_heads

_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


@contextmanager
def exclusive_use(unet: Any) -> Iterator[None]:
    """Keep other threads from running this UNet, or showing it faces, in the ``with`` block.

    A layer's conditioning belongs to the layer: of two threads that share a UNet, one would see the
    other's faces. The same thread may enter again.

    Args:
        unet: A ``UNet2DConditionModel``, compiled or not.
    """
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(getattr(unet, "_orig_mod", unet), threading.RLock())
    with lock:
        yield


@dataclass(frozen=True)
class LayerConditioning:
    """The faces that one cross-attention layer sees beside the text.

    Attributes:
        keys: K_f of each reference, ``(batch or 1, N_f, inner_dim)``.
        values: V_f of each reference, shaped like its key.
        strengths: lambda_i of each reference, a number or a tensor ``(batch,)``.
        groups: Eq. 7 at each resolution, by the number of positions h * w; None without masks.
        batch_size: Number of samples, at the end of the UNet's batch, that see the faces; None
            means all.
        backend: How closed keys are treated; None lets ``usual_backend`` choose.
        attention: ``"concatenated"`` or ``"decoupled"``.
        same_text: Whether keys and values may be joined once for each text tensor, because neither
            the tensor nor the layer's weights are changed in place. It has no effect where
            gradients are enabled, in a compiled graph, or where ``to_k`` or ``to_v`` have hooks.
        cached: The last text, the shape of its queries, and the attention prepared for them.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    strengths: tuple[Strength, ...]
    groups: Mapping[int, QueryGroups] | None = None
    batch_size: int | None = None
    backend: Backend | None = None
    attention: Attention = "concatenated"
    same_text: bool = False
    cached: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)


class FusedAttnProcessor(nn.Module):
    """A diffusers attention processor for ``attn2`` that lets the queries see faces, too.

    It has no weights of its own. ``FusionAdapter.conditioned`` puts one into each cross-attention
    layer inside its ``with`` block. Without a ``conditioning`` it passes the call on to the
    processor that it replaces, so that the UNet is the base model bit for bit.

    An IP-Adapter's image prompt is kept: what the replaced processor adds for it to the output of
    the text is added to the output of text and faces.

    Args:
        former: The processor to replace.
        conditioning: The faces to show; None while there are none.

    Attributes:
        former: The processor that is replaced. Where it is a module, such as an IP-Adapter's, it is
            a child, so that it moves with the UNet.
        conditioning: K_f, V_f and strengths of the references (a ``LayerConditioning``), or None.

    Example:
        >>> import torch
        >>> from diffusers.models.attention_processor import Attention
        >>> from fusionlib import FusedAttnProcessor
        >>> from fusionlib.processor import LayerConditioning
        >>> layer = Attention(query_dim=32, cross_attention_dim=16, heads=2, dim_head=16).eval()
        >>> image, text, face = (torch.randn(1, *size) for size in ((64, 32), (77, 16), (64, 32)))
        >>> base = layer(image, text)
        >>> layer.set_processor(FusedAttnProcessor(layer.processor))
        >>> torch.equal(layer(image, text), base)  # nothing to see: the former processor's output
        True
        >>> layer.processor.conditioning = LayerConditioning(
        ...     keys=(face,), values=(face,), strengths=(1.0,)
        ... )
        >>> torch.equal(layer(image, text), base)
        False
    """

    def __init__(self, former: Any, conditioning: LayerConditioning | None = None) -> None:
        super().__init__()
        self.former = former
        self.conditioning = conditioning

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, Any] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ip_adapter_masks: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute one layer (Eq. 1 and 3 to 6); diffusers' ``Attention`` calls this.

        Args:
            attn: The layer, with its frozen ``to_q``, ``to_k``, ``to_v`` and ``to_out``.
            hidden_states: h, ``(batch, N_q, query_dim)``.
            encoder_hidden_states: The prompt c, ``(batch, N_text, cross_attention_dim)``; with an
                IP-Adapter a pair of it and the image prompt's embeddings.
            attention_mask: Must be None while there is a ``conditioning``.
            temb: Argument of the former processor, unused in cross-attention.
            ip_adapter_masks: Masks of an IP-Adapter's images, for the former processor.
            **kwargs: Further arguments of the former processor; unused while there is a
                ``conditioning``.

        Returns:
            h', ``(batch, N_q, query_dim)``.

        Raises:
            FusionError: If the layer is conditioned on anything else than faces, text and an
                IP-Adapter's image, or the identity masks have no size for N_q positions.
        """
        faces = self.conditioning
        if ip_adapter_masks is not None:
            kwargs["ip_adapter_masks"] = ip_adapter_masks
        if faces is None:
            return self.former(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs
            )
        text: Any = encoder_hidden_states
        with_image = isinstance(text, tuple) and hasattr(self.former, "to_k_ip")
        if with_image:
            text = text[0]
        if attention_mask is not None or not isinstance(text, Tensor):
            raise FusionError(
                "Face references work with text and an IP-Adapter's image only: call the UNet with "
                "encoder_hidden_states, and without encoder_attention_mask."
            )
        query = split_heads(attn.to_q(hidden_states), attn.heads)  # Q = Linear_q(h), Eq. 1
        attended = self._attend(attn, query, text, faces)(query)
        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)
        linear, dropout = attn.to_out
        fused = dropout(linear(attended))
        factor = attn.rescale_output_factor  # 1 in every Stable Diffusion: one kernel less
        fused = fused if factor == 1 else fused / factor
        if not with_image:
            return fused
        text_only = AttnProcessor2_0()(attn, hidden_states, text)
        text_and_image = self.former(attn, hidden_states, encoder_hidden_states, **kwargs)
        return fused + (text_and_image - text_only)

    def _attend(self, attn: Any, query: Tensor, text: Tensor, faces: LayerConditioning) -> Attend:
        """The attention to this text and these faces, prepared once where ``same_text`` allows."""
        tracked = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if tracked or not faces.same_text or _hooked(attn.to_k) or _hooked(attn.to_v):
            return _text_and_faces(attn, query, text, faces)
        query_like = (query.shape, query.dtype, query.device)
        cached = faces.cached
        if not cached or cached[0] is not text or cached[1] != query_like:
            cached.clear()  # before the next ones are made
            cached.extend((text, query_like, _text_and_faces(attn, query, text, faces)))
        return cached[2]


def _text_and_faces(attn: Any, query: Tensor, text: Tensor, faces: LayerConditioning) -> Attend:
    """Prepare a layer's attention to the text and, in the conditional branch, also to the faces.

    The samples before the last ``faces.batch_size`` are guidance's unconditional branch, which
    attends to the text only.
    """
    key = split_heads(attn.to_k(text), attn.heads)  # K_c = Linear_k(c), Eq. 1
    value = split_heads(attn.to_v(text), attn.heads)  # V_c = Linear_v(c)
    unconditional = 0 if faces.batch_size is None else max(query.shape[0] - faces.batch_size, 0)
    to_both = _with_faces(query[unconditional:], key[unconditional:], value[unconditional:], faces)
    if not unconditional:
        return to_both
    to_text = dense(key[:unconditional], value[:unconditional])
    return lambda query: join([to_text(query[:unconditional]), to_both(query[unconditional:])], 0)


def _with_faces(query: Tensor, key: Tensor, value: Tensor, faces: LayerConditioning) -> Attend:
    """Prepare ``fused_attention`` or ``decoupled_attention`` for the samples that see the faces."""
    heads = query.shape[1]
    groups = None
    if faces.groups is not None:
        positions = query.shape[2]
        if positions not in faces.groups:
            raise FusionError(
                f"identity_masks do not fit a layer of {positions} positions: give masks of "
                "the image's height and width, and fewer disjoint ones than that."
            )
        groups = faces.groups[positions].to(query.device)
    return prepare_attention(
        query,
        key,
        value,
        [split_heads(k.to(key), heads) for k in faces.keys],
        [split_heads(v.to(value), heads) for v in faces.values],
        attention=faces.attention,
        strengths=faces.strengths,
        mask=groups,
        backend=faces.backend,
    )


def _hooked(module: nn.Module) -> bool:
    """Whether hooks observe, or change, each call of a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def conditioning_of(layer: Any) -> LayerConditioning | None:
    """The faces that a cross-attention layer sees now; None if it is the base model's."""
    processor = layer.processor
    return processor.conditioning if isinstance(processor, FusedAttnProcessor) else None
