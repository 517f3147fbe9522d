"""FusionAdapter: every trainable weight of the method, and the way in and out of a UNet.

Equation 2 adds two linear layers to each cross-attention layer: K_f = Linear_kf(h_f) and
V_f = Linear_vf(h_f). They are all that is trained; they live here, and the UNet stays as it is.
"""

import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin, ModelMixin  # whose name diffusers looks for in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from fusionlib.adapter_loading import AdapterLoadingMixin
from fusionlib.attention import Attention
from fusionlib.checks import (
    Strength,
    check_hidden_states,
    check_identities,
    check_references,
    check_strengths,
    is_number,
)
from fusionlib.errors import FusionError
from fusionlib.kernels import Backend, QueryGroups, check_backend, group_queries
from fusionlib.masking import mask_pyramid
from fusionlib.processor import (
    FusedAttnProcessor,
    LayerConditioning,
    conditioning_of,
    exclusive_use,
)
from fusionlib.reference_cache import (
    LayerKeysValues,
    ReferenceCache,
    fingerprint_of_unet,
    joined_bytes,
    same_fingerprint,
    sample_of_weights,
)
from fusionlib.unet_layers import (
    LayerChoice,
    cross_attention_layers,
    layer_dimensions,
    module_at,
)

Initialisation = Literal["self_attention", "zero_value", "random"]

MAX_CACHED_BYTES = 2**28
"""Bytes of joined keys and values above which nothing is cached for all steps of a picture."""


class FusionAdapter(AdapterLoadingMixin, ModelMixin, ConfigMixin):
    """Linear_kf and Linear_vf of every cross-attention layer (Eq. 2).

    Saved and loaded like any diffusers model: ``config.json`` and a safetensors file. A parameter's
    name is its layer's name in the UNet with ``.to_k_f.weight`` or ``.to_v_f.weight`` added.

    Args:
        layers: For each cross-attention layer, by its name in the UNet, ``(query_dim, inner_dim)``.
        attention: How the faces enter a layer: ``"concatenated"`` is the paper's
            ``fused_attention``, ``"decoupled"`` is ``decoupled_attention``, for comparison. The
            weights are the same.
        chosen: Choice of layers if ``layers`` are not all of the UNet's, see ``from_unet``; the
            others are left as they are, and see the text only.

    Example:
        From a bare UNet to one that sees a face; ``FusionPipeline`` takes these steps for you.

        >>> import torch
        >>> from diffusers import UNet2DConditionModel
        >>> from fusionlib import FusionAdapter, encode_references
        >>> unet = UNet2DConditionModel(
        ...     sample_size=8,
        ...     block_out_channels=(32, 32),
        ...     layers_per_block=1,
        ...     cross_attention_dim=16,
        ...     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ... )
        >>> adapter = FusionAdapter.from_unet(unet)
        >>> len(adapter.config.layers), adapter.num_parameters()  # 4 x 2 x 32 x 32
        (4, 8192)
        >>> adapter.attach(unet)

        The face goes through the UNet once, then every call within the block sees it:

        >>> face, image = torch.randn(2, 1, 4, 8, 8)
        >>> empty_prompt, prompt = torch.zeros(1, 77, 16), torch.randn(1, 77, 16)
        >>> with torch.no_grad():
        ...     base = unet(image, 10, encoder_hidden_states=prompt).sample
        ...     cache = adapter.cache(encode_references(unet, face, empty_prompt))
        ...     with adapter.conditioned(cache, strengths=[0.8]):
        ...         fused = unet(image, 10, encoder_hidden_states=prompt).sample
        ...     after = unet(image, 10, encoder_hidden_states=prompt).sample
        >>> torch.equal(fused, base), torch.equal(after, base)
        (False, True)
        >>> adapter.detach(unet)
    """

    @register_to_config
    def __init__(
        self,
        layers: Mapping[str, Sequence[int]],
        attention: Attention = "concatenated",
        chosen: Sequence[LayerChoice] | None = None,
    ) -> None:
        super().__init__()
        if attention not in get_args(Attention):
            raise FusionError(
                f'attention must be "concatenated" or "decoupled", not {attention!r}.'
            )
        for name, (query_dim, inner_dim) in layers.items():
            layer = module_at(self, name)
            layer.to_k_f = nn.Linear(query_dim, inner_dim, bias=False)
            layer.to_v_f = nn.Linear(query_dim, inner_dim, bias=False)
        self._unet: weakref.ref[Any] | None = None
        self._shown: Mapping[str, FusedAttnProcessor] = {}

    @classmethod
    def from_unet(
        cls,
        unet: Any,
        init: Initialisation = "self_attention",
        attention: Attention = "concatenated",
        layers: Sequence[LayerChoice] | None = None,
    ) -> "FusionAdapter":
        """Make an adapter that fits a UNet.

        Args:
            unet: A ``UNet2DConditionModel``.
            init: ``"self_attention"`` copies ``attn1.to_k`` and ``attn1.to_v`` of the same block,
                which have the same shape and read nearly the same features; ``"zero_value"`` does
                so for the keys and sets the values to zero (which is not neutral: the faces still
                take attention from the text); ``"random"`` is PyTorch's initialisation.
            attention: ``"concatenated"`` or ``"decoupled"``.
            layers: Layers that see faces: ``"down"``, ``"mid"``, ``"up"``, or resolution levels (0
                is the full resolution, 1 half of it, and so on); None means all.

        Returns:
            The adapter, in float32, on the UNet's device, not yet attached.

        Raises:
            FusionError: If the UNet has no cross-attention, none where ``layers`` says, or no
                self-attention to copy.
        """
        if init not in ("self_attention", "zero_value", "random"):
            raise FusionError(
                f'init must be "self_attention", "zero_value" or "random", not {init!r}.'
            )
        unet = getattr(unet, "_orig_mod", unet)
        adapter = cls(layer_dimensions(unet, layers), attention, layers)
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
        """Choose the UNet whose cross-attention layers see faces inside ``conditioned``.

        The UNet itself is not changed: outside of ``conditioned`` it keeps its own attention
        processors, and diffusers' switches (IP-Adapter, xformers, attention slicing, custom
        processors) work as they do without an adapter. Several adapters may be attached to one
        UNet; one adapter is attached to one UNet at a time.

        Args:
            unet: The ``UNet2DConditionModel`` that the adapter was made for, compiled or not.

        Raises:
            FusionError: If the adapter does not fit, or is attached to another UNet.
        """
        unet = getattr(unet, "_orig_mod", unet)
        if self.unet is not None and self.unet is not unet:
            raise FusionError(
                "The adapter is attached to another unet: detach it there first, or load it twice."
            )
        self._check_fit(unet)
        self._unet = weakref.ref(unet)

    def detach(self, unet: Any) -> None:
        """Give up the UNet, so that the adapter can be attached to another.

        Args:
            unet: The UNet that the adapter is attached to.

        Raises:
            FusionError: If the adapter is not attached to this UNet.
        """
        if self.unet is not getattr(unet, "_orig_mod", unet):
            raise FusionError("The adapter is not attached to this unet.")
        self._unet = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the UNet, which a copy does not share; ``attach`` finds it again."""
        return self.__dict__ | {"_unet": None, "_shown": {}}

    @property
    def unet(self) -> Any | None:
        """The UNet that the adapter is attached to, or None."""
        return None if self._unet is None else self._unet()

    def project(self, hidden_states: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Compute K_f = Linear_kf(h_f) and V_f = Linear_vf(h_f) of every layer (Eq. 2).

        Gradients reach the adapter's weights.

        Args:
            hidden_states: h_f ``(batch, N_f, query_dim)`` of each layer, by its name, as
                ``encode_references`` returns them. An adapter of chosen layers ignores the others.

        Returns:
            K_f and V_f ``(batch, N_f, inner_dim)`` of each layer.

        Raises:
            FusionError: If the layers or their widths are not the adapter's.
        """
        layers: Mapping[str, Sequence[int]] = self.config["layers"]
        if self.config["chosen"] is not None and isinstance(hidden_states, Mapping):
            hidden_states = {name: h for name, h in hidden_states.items() if name in layers}
        check_hidden_states(hidden_states, layers)
        projected, dtype = {}, self.dtype  # not a weight's, which may be stored in fewer bits
        for name in layers:
            layer = self.get_submodule(name)
            h_f = hidden_states[name].to(layer.to_k_f.weight.device, dtype)
            projected[name] = (layer.to_k_f(h_f), layer.to_v_f(h_f))  # K_f, V_f
        return projected

    def forward(self, hidden_states: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Call ``project``; wrappers such as DistributedDataParallel need this name.

        Args:
            hidden_states: h_f ``(batch, N_f, query_dim)`` of each layer, by its name.

        Returns:
            K_f and V_f ``(batch, N_f, inner_dim)`` of each layer.

        Raises:
            FusionError: If the layers or their widths are not the adapter's.
        """
        return self.project(hidden_states)

    @torch.no_grad()
    def cache(self, hidden_states: Mapping[str, Tensor]) -> ReferenceCache:
        """Compute K_f and V_f of several references, for any number of steps and images.

        Args:
            hidden_states: h_f ``(references, N_f, query_dim)`` of each layer, by its name, as
                ``encode_references`` returns them.

        Returns:
            A cache with one reference for each row, without gradients.

        Raises:
            FusionError: If the layers or their widths are not the adapter's.
        """
        projected = self(hidden_states)  # the call, not ``project``: offloading hooks into it
        count = next(iter(projected.values()))[0].shape[0]
        return ReferenceCache(
            tuple(
                {
                    name: (key[i : i + 1], value[i : i + 1])
                    for name, (key, value) in projected.items()
                }
                for i in range(count)
            ),
            self.fingerprint(),
            None if self.unet is None else fingerprint_of_unet(self.unet),
        )

    @torch.no_grad()
    def fingerprint(self) -> Tensor | None:
        """Take a small sample of the weights, by which a ``ReferenceCache`` identifies its maker.

        Numbers and not a hash, because the same weights may come in another precision.

        Returns:
            ``(2 * layers, 8)`` in float32 on the CPU; None while the weights are offloaded.
        """
        weights = [weight for _, weight in sorted(self.named_parameters())]
        if any(weight.is_meta for weight in weights):
            return None
        return sample_of_weights([weight.flatten()[:8] for weight in weights])

    @contextmanager
    def conditioned(
        self,
        references: Sequence[LayerKeysValues],
        *,
        strengths: Sequence[Strength] | None = None,
        identity_masks: Tensor | None = None,
        reference_identity: Sequence[int] | None = None,
        latent_size: tuple[int, int] | None = None,
        batch_size: int | None = None,
        backend: Backend | None = None,
        same_text: bool = False,
    ) -> Iterator[None]:
        """Let the attached UNet see these references inside the ``with`` block.

        Another thread that shows faces to the same UNet waits until the block is left.

        Args:
            references: For each reference, K_f and V_f ``(batch or 1, N_f, inner_dim)`` of every
                layer: what ``project`` returns, or a ``ReferenceCache``. A batch of 1 serves all.
            strengths: lambda_i of each reference, a number or a tensor ``(batch,)``; None means 1.
                If every strength is the number 0, or there is no reference, the UNet is the base
                model bit for bit.
            identity_masks: Boolean ``(identities, H, W)`` of the image's or the latents' size, for
                Eq. 7; None lets every position see every reference.
            reference_identity: With masks, the identity that each reference shows; None means that
                reference i shows identity i.
            latent_size: With masks, the latents' ``(h, w)``: avoids preparing sizes that no
                layer of the UNet has. None prepares the masks' own size and every one below.
            batch_size: Number of samples, at the end of the UNet's batch, that see the references;
                the others (the unconditional branch of guidance) see the text only. None means all.
            backend: With masks, how the closed keys are treated: ``"dense"`` or ``"grouped"`` (see
                ``fusionlib.kernels``); None is ``"dense"`` in layers of few positions and
                ``"grouped"`` in the others.
            same_text: Promise that inside the block neither the text's tensors nor the UNet's
                weights are changed in place. Keys and values are then joined once for all steps
                whose ``encoder_hidden_states`` are the very same tensor; the numbers are the same.
                This takes as much memory again as the references' keys and values (with masks twice
                as much), for each of ``batch_size`` samples; above ``MAX_CACHED_BYTES`` nothing is
                cached. Nor is it where gradients are enabled, in a compiled UNet, or in a layer
                whose ``to_k`` or ``to_v`` has hooks.

        Raises:
            FusionError: If an argument does not fit, the adapter is not attached, the references
                were made by another adapter, or another adapter shows faces to the UNet.
        """
        check_backend(backend)
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise FusionError(f"batch_size must be None or a positive number, not {batch_size!r}.")
        with exclusive_use(self._attached_unet()):
            self._check_references(references, batch_size)
            lambdas = check_strengths(strengths, len(references), batch=batch_size)
            identities = check_identities(identity_masks, reference_identity, len(references))
            shown = [i for i, strength in enumerate(lambdas) if not is_number(strength, 0)]
            conditionings: dict[str, LayerConditioning] = {}
            if shown:
                device = next(iter(references[0].values()))[0].device
                groups: dict[int, QueryGroups] | None = None
                if identity_masks is not None:
                    owners = [identities[i] for i in shown]
                    groups = self._query_groups(identity_masks, owners, latent_size, device)
                small = joined_bytes(references, batch_size) <= MAX_CACHED_BYTES
                conditionings = {
                    name: LayerConditioning(
                        keys=tuple(references[i][name][0] for i in shown),
                        values=tuple(references[i][name][1] for i in shown),
                        strengths=tuple(_as_tensor(lambdas[i], device) for i in shown),
                        groups=groups,
                        batch_size=batch_size,
                        backend=backend,
                        attention=self.config["attention"],
                        same_text=same_text and small,
                    )
                    for name in self.config["layers"]
                }
            with self._showing(conditionings):
                yield

    @contextmanager
    def _showing(self, conditionings: Mapping[str, LayerConditioning]) -> Iterator[None]:
        """Replace the layers' processors inside the ``with`` block; none is the base model."""
        layers, outer = self._layers_of(self._attached_unet()), self._shown
        _check_free(layers.values(), outer.values())
        before = {name: layer.processor for name, layer in layers.items()}
        base = {name: outer[name].former if name in outer else before[name] for name in layers}
        inside = {
            name: FusedAttnProcessor(base[name], conditionings[name]) if conditionings else former
            for name, former in base.items()
        }
        self._shown = {name: inside[name] for name in conditionings}
        try:
            for name, layer in layers.items():
                layer.set_processor(inside[name])
            yield
        finally:
            self._shown = outer
            for name, layer in layers.items():
                if layer.processor is inside[name]:  # else a callback chose another
                    layer.set_processor(before[name])

    def _query_groups(
        self,
        masks: Tensor,
        reference_identity: Sequence[int],
        latent_size: tuple[int, int] | None,
        device: torch.device,
    ) -> dict[int, QueryGroups]:
        """Eq. 7 for each resolution of the UNet, by its number of positions."""
        unet: Any = self.unet
        levels = None if latent_size is None else len(unet.config["block_out_channels"])
        # Many small decisions: on the CPU, since a GPU would wait at each of them.
        pyramid = mask_pyramid(masks.cpu(), latent_size, levels)
        return {
            positions: group_queries(each, reference_identity, (each.shape[1], each.shape[2])).to(
                device
            )
            for positions, each in pyramid.items()
        }

    def _layers_of(self, unet: Any) -> dict[str, Any]:
        """The layers of a UNet that are the adapter's, by name."""
        layers = cross_attention_layers(unet)
        return {name: layers[name] for name in self.config["layers"]}

    def _attached_unet(self) -> Any:
        unet = self.unet
        if unet is None:
            raise FusionError("The adapter is not attached: call adapter.attach(unet) first.")
        return unet

    def _check_references(
        self, references: Sequence[LayerKeysValues], batch_size: int | None
    ) -> None:
        """Raise a ``FusionError`` unless this adapter and UNet made the references."""
        check_references(references, self.config["layers"], batch_size)
        if not isinstance(references, ReferenceCache):
            return
        if not same_fingerprint(references.fingerprint, self.fingerprint()):
            raise FusionError(
                "references were made by another adapter, which has other weights: encode them "
                "again with this one."
            )
        if not same_fingerprint(references.unet_fingerprint, fingerprint_of_unet(self.unet)):
            raise FusionError(
                "references were encoded by a unet of other weights, or with other LoRA weights "
                "(a LoRA loaded, unloaded or scaled since then): encode them again."
            )

    def _check_fit(self, unet: Any) -> None:
        mine = {name: tuple(dimensions) for name, dimensions in self.config["layers"].items()}
        theirs = layer_dimensions(unet, self.config["chosen"])
        if mine != theirs:
            name = next(n for n in (mine | theirs) if mine.get(n) != theirs.get(n))
            raise FusionError(
                f"The adapter does not fit this unet: (query_dim, inner_dim) of {name} is "
                f"{mine.get(name, 'missing')} in the adapter and {theirs.get(name, 'missing')} in "
                "the unet; use the base model that the adapter was trained with."
            )


def _check_free(layers: Iterable[Any], mine: Iterable[FusedAttnProcessor]) -> None:
    """Refuse layers in which another adapter shows faces; warn of processors that step aside."""
    known = [id(processor) for processor in mine]
    for layer in layers:
        processor = layer.processor
        if id(processor) not in known and conditioning_of(layer) is not None:
            raise FusionError(
                "Another adapter is showing faces to this unet: leave the `with "
                "adapter.conditioned(...)` block of that one first."
            )
        if not type(processor).__module__.startswith(("diffusers.", "fusionlib.")):
            warnings.warn(
                f"The attention processor {type(processor).__name__} of the unet is not used while "
                "faces are shown: their own takes its place.",
                stacklevel=2,
            )


def _as_tensor(strength: Strength, device: torch.device | None) -> Strength:
    """Turn a number other than 1 into a tensor, so that a compiled UNet serves every strength."""
    if isinstance(strength, Tensor) or strength == 1:
        return strength
    return torch.full((1,), strength, device=device)
