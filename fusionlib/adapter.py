"""FusionAdapter: every trainable weight of the method, and the way in and out of a UNet.

Equation 2 adds two linear layers to each cross-attention layer: K_f = Linear_kf(h_f) and
V_f = Linear_vf(h_f). They are all that is trained; they live here, and the UNet stays as it is.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from fusionlib.attention import (
    FusedAttnProcessor,
    LayerConditioning,
    Strength,
    check_strengths,
    cross_attention_layers,
    is_number,
)
from fusionlib.errors import FusionError
from fusionlib.masking import check_reference_identity, mask_pyramid
from fusionlib.reference import LayerKeysValues

Initialisation = Literal["self_attention", "zero_value", "random"]


class FusionAdapter(ModelMixin, ConfigMixin):
    """Linear_kf and Linear_vf of every cross-attention layer (Eq. 2).

    Saved and loaded like any diffusers model: ``config.json`` and a safetensors file. A parameter's
    name is its layer's name in the UNet with ``.to_k_f.weight`` or ``.to_v_f.weight`` added.

    Args:
        layers: For each cross-attention layer, by its name in the UNet, ``(query_dim, inner_dim)``.

    Example:
        >>> adapter = FusionAdapter.from_unet(unet)
        >>> adapter.attach(unet)
        >>> hidden_states = encode_references(unet, latents, empty_prompt)
        >>> with adapter.conditioned([adapter.project(hidden_states)], strengths=[0.8]):
        ...     unet(sample, timestep, encoder_hidden_states=prompt)
    """

    @register_to_config
    def __init__(self, layers: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        for name, (query_dim, inner_dim) in layers.items():
            layer = _submodule(self, name)
            layer.to_k_f = nn.Linear(query_dim, inner_dim, bias=False)
            layer.to_v_f = nn.Linear(query_dim, inner_dim, bias=False)
        self._unet: weakref.ref[Any] | None = None
        self._processors: dict[str, FusedAttnProcessor] = {}

    @classmethod
    def from_unet(cls, unet: Any, init: Initialisation = "self_attention") -> "FusionAdapter":
        """Make an adapter that fits a UNet.

        Args:
            unet: A ``UNet2DConditionModel``.
            init: ``"self_attention"`` copies ``attn1.to_k`` and ``attn1.to_v`` of the same block,
                which have the same shape and read nearly the same features; ``"zero_value"`` does
                so for the keys and sets the values to zero (which is not neutral: the faces still
                take attention from the text); ``"random"`` is PyTorch's initialisation.

        Returns:
            The adapter, in float32, on the UNet's device, not yet attached.

        Raises:
            FusionError: If the UNet has no cross-attention, or no self-attention to copy.
        """
        if init not in ("self_attention", "zero_value", "random"):
            raise FusionError(
                f'init must be "self_attention", "zero_value" or "random", not {init!r}.'
            )
        unet = getattr(unet, "_orig_mod", unet)
        adapter = cls(_dimensions(unet))
        if init != "random":
            modules = dict(unet.named_modules())
            for name in adapter.config["layers"]:
                layer = adapter.get_submodule(name)
                twin = modules.get(name.removesuffix("attn2") + "attn1")
                if twin is None or twin.to_k.weight.shape != layer.to_k_f.weight.shape:
                    raise FusionError(
                        f'init="{init}" needs a self-attention beside {name} in unet: use '
                        'init="random".'
                    )
                with torch.no_grad():
                    layer.to_k_f.weight.copy_(twin.to_k.weight)
                    layer.to_v_f.weight.copy_(twin.to_v.weight)
                    if init == "zero_value":
                        layer.to_v_f.weight.zero_()
        return adapter.to(device=unet.device)

    def attach(self, unet: Any) -> None:
        """Let a UNet's cross-attention layers see faces inside of ``conditioned``.

        Only the processors of the ``attn2`` layers are wrapped; outside of ``conditioned`` the UNet
        computes what it did, bit by bit. Attaching to the same UNet again puts back what a change
        of processors (xformers, attention slicing) took away. Several adapters may be attached to
        one UNet; one adapter is attached to one UNet at a time.

        Raises:
            FusionError: If the adapter does not fit, or is attached to another UNet.
        """
        unet = getattr(unet, "_orig_mod", unet)
        if self.unet is not None and self.unet is not unet:
            raise FusionError(
                "The adapter is attached to another unet: detach it there first, or load it twice."
            )
        self._check_fit(unet)
        for name, layer in cross_attention_layers(unet).items():
            if not any(mine is self._processors.get(name) for mine in _chain(layer.processor)):
                self._processors[name] = FusedAttnProcessor(layer.processor)
                layer.set_processor(self._processors[name])
        self._unet = weakref.ref(unet)

    def detach(self, unet: Any) -> None:
        """Give the UNet's layers the processors back that they had before ``attach``.

        Raises:
            FusionError: If the adapter is not attached to this UNet.
        """
        unet = getattr(unet, "_orig_mod", unet)
        if self.unet is not unet:
            raise FusionError("The adapter is not attached to this unet.")
        for name, layer in cross_attention_layers(unet).items():
            mine = self._processors[name]
            if layer.processor is mine:
                layer.set_processor(mine.former)
            for processor in _chain(layer.processor):  # another adapter was attached after this one
                if processor.former is mine:
                    processor.former = mine.former
        self._unet = None
        self._processors = {}

    @property
    def unet(self) -> Any | None:
        """The UNet that the adapter is attached to, or None."""
        return None if self._unet is None else self._unet()

    def project(self, hidden_states: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Compute K_f and V_f of every layer (Eq. 2), with gradients to the adapter's weights.

        Args:
            hidden_states: h_f ``(batch, N_f, query_dim)`` of each layer, by its name, as
                ``encode_references`` returns them.

        Returns:
            K_f and V_f ``(batch, N_f, inner_dim)`` of each layer.

        Raises:
            FusionError: If the layers or their widths are not the adapter's.
        """
        layers: Mapping[str, Sequence[int]] = self.config["layers"]
        _check_names("hidden_states", hidden_states, layers)
        projected = {}
        for name, (query_dim, _) in layers.items():
            hidden = hidden_states[name]
            if hidden.shape[-1] != query_dim:
                raise FusionError(
                    f"hidden_states[{name!r}] must be (batch, tokens, {query_dim}), "
                    f"not {tuple(hidden.shape)}."
                )
            layer = self.get_submodule(name)
            hidden = hidden.to(layer.to_k_f.weight)
            projected[name] = (layer.to_k_f(hidden), layer.to_v_f(hidden))
        return projected

    def forward(self, hidden_states: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The same as ``project``, for wrappers such as DistributedDataParallel."""
        return self.project(hidden_states)

    @contextmanager
    def conditioned(
        self,
        references: Sequence[LayerKeysValues],
        *,
        strengths: Sequence[Strength] | None = None,
        identity_masks: Tensor | None = None,
        reference_identity: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[None]:
        """Let the attached UNet see these references inside of the ``with`` block.

        Args:
            references: For each reference, K_f and V_f ``(batch or 1, N_f, inner_dim)`` of every
                layer: what ``project`` returns, or a ``ReferenceCache``. A batch of 1 serves all.
            strengths: lambda_i of each reference, a number or a tensor ``(batch,)``; None means 1.
                If every strength is the number 0, or there is no reference, the UNet is the base
                model bit by bit.
            identity_masks: Boolean ``(identities, H, W)`` of the image's or the latents' size, for
                Eq. 7; None lets every position see every reference.
            reference_identity: With masks, the identity that each reference shows; None means that
                reference i shows identity i.
            batch_size: How many samples, at the end of the UNet's batch, see the references; the
                others (the unconditional branch of guidance) see the text only. None means all.

        Raises:
            FusionError: If an argument does not fit, or the adapter is not attached.
        """
        layers = self._attached_layers()
        for index, reference in enumerate(references):
            _check_names(f"references[{index}]", reference, layers)
        lambdas = check_strengths(strengths, len(references), batch=batch_size)
        identities: Sequence[int] = ()
        masks = None
        if identity_masks is not None:
            masks = mask_pyramid(identity_masks)
            identities = (
                range(len(references)) if reference_identity is None else reference_identity
            )
            check_reference_identity(identities, len(references), len(identity_masks))
        elif reference_identity is not None:
            raise FusionError("reference_identity needs identity_masks: give both or neither.")

        kept = [i for i, strength in enumerate(lambdas) if not is_number(strength, 0)]
        former = {name: processor.conditioning for name, processor in layers.items()}
        try:
            for name, processor in layers.items():
                processor.conditioning = (
                    None
                    if not kept
                    else LayerConditioning(
                        keys=tuple(references[i][name][0] for i in kept),
                        values=tuple(references[i][name][1] for i in kept),
                        strengths=tuple(
                            _as_tensor(lambdas[i], like=references[i][name][0]) for i in kept
                        ),
                        masks=masks,
                        reference_identity=tuple(identities[i] for i in kept) if identities else (),
                        batch_size=batch_size,
                    )
                )
            yield
        finally:
            for name, processor in layers.items():
                processor.conditioning = former[name]

    def _attached_layers(self) -> dict[str, FusedAttnProcessor]:
        """The adapter's processors, seen to be where ``attach`` put them."""
        if self.unet is None:
            raise FusionError("The adapter is not attached: call adapter.attach(unet) first.")
        for name, layer in cross_attention_layers(self.unet).items():
            if not any(mine is self._processors[name] for mine in _chain(layer.processor)):
                raise FusionError(
                    "The unet's attention processors were replaced after the adapter was attached: "
                    "call adapter.attach(unet) again."
                )
        return self._processors

    def _check_fit(self, unet: Any) -> None:
        mine = {name: tuple(dimensions) for name, dimensions in self.config["layers"].items()}
        theirs = _dimensions(unet)
        if mine != theirs:
            name = next(n for n in (mine | theirs) if mine.get(n) != theirs.get(n))
            raise FusionError(
                f"The adapter does not fit this unet: (query_dim, inner_dim) of {name} is "
                f"{mine.get(name, 'missing')} in the adapter and {theirs.get(name, 'missing')} in "
                "the unet; use the base model that the adapter was trained with."
            )


def _dimensions(unet: Any) -> dict[str, tuple[int, int]]:
    """``(query_dim, inner_dim)`` of each cross-attention layer, by its name."""
    return {
        name: (layer.query_dim, layer.inner_dim)
        for name, layer in cross_attention_layers(unet).items()
    }


def _submodule(root: nn.Module, name: str) -> Any:
    """The module of this dotted name, made where it is missing."""
    for part in name.split("."):
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    return root


def _as_tensor(strength: Strength, like: Tensor) -> Strength:
    """A number other than 1 as a tensor, so that a compiled UNet serves every strength."""
    if isinstance(strength, Tensor) or strength == 1:
        return strength
    return torch.full((1,), strength, device=like.device)


def _chain(processor: Any) -> Iterator[FusedAttnProcessor]:
    """The fused processors of a layer, from the one attached last to the one attached first."""
    while isinstance(processor, FusedAttnProcessor):
        yield processor
        processor = processor.former


def _check_names(argument: str, given: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
    if given.keys() != layers.keys():
        odd = sorted(given.keys() ^ layers.keys())
        raise FusionError(
            f"{argument} must hold exactly the adapter's {len(layers)} layers; "
            f"{odd[0]!r} is {'not one of them' if odd[0] in given else 'missing'}."
        )
