"""How a pipeline gets its adapter: from a checkpoint, a single file, or another pipeline."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline

from fusionlib.adapter import FusionAdapter
from fusionlib.checks import check_sampling, is_index
from fusionlib.errors import FusionError, first_line

HUB_ACCESS = ("token", "cache_dir", "local_files_only", "force_download", "proxies")
"""Arguments of ``from_pretrained`` that hold for the adapter's repository, too."""


class FusionLoadingMixin(DiffusionPipeline):
    """Loading, of a diffusers pipeline that has an ``adapter`` as one more component."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the adapter as a component of each new pipeline class."""
        super().__init_subclass__(**kwargs)
        bases: tuple[Any, ...] = cls.__bases__
        for base in bases:
            if issubclass(base, DiffusionPipeline) and not issubclass(base, FusionLoadingMixin):
                cls._optional_components = [*base._optional_components, "adapter"]
                # Small, and used in turns with the UNet: it stays on the accelerator. In the
                # sequence it would stand between the text encoder and the UNet that replaces it.
                cls._exclude_from_cpu_offload = [*base._exclude_from_cpu_offload, "adapter"]
                cls.__init__ = _taking_an_adapter(base.__init__)  # type: ignore[method-assign]
                cls.__call__ = _taking_all(cls.__call__, base.__call__)
                cls.encode_prompt = _skipping_layers(base.encode_prompt)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the models on the CPU, and each layer on the accelerator only while it computes.

        Args:
            gpu_id: Number of the accelerator; None means the first.
            device: The accelerator; None means the one that is there.

        Raises:
            FusionError: If the device is the CPU, where there is nothing to offload.
        """
        if device is not None and torch.device(device).type == "cpu":
            raise FusionError(
                "enable_sequential_cpu_offload needs an accelerator, and its device is the CPU, "
                "where all models are already: leave it out."
            )
        super().enable_sequential_cpu_offload(gpu_id, device)

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """Arguments of a call that come from the checkpoint where the caller gives none."""
        return dict(self.config.get("sampling_defaults") or {})

    @property
    def components(self) -> dict[str, Any]:
        """All modules of the pipeline by name, as diffusers lists them; an adapter if there is one.

        Without an adapter they are the components of the diffusers pipeline, which takes them.
        """
        components = super().components
        if components["adapter"] is None:
            del components["adapter"]
        return components

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the base model, whatever the adapter's."""
        return next((module.dtype for module in self._base_modules()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the base model; while that is offloaded, the adapter stays elsewhere."""
        return next((module.device for module in self._base_modules()), torch.device("cpu"))

    def _base_modules(self) -> Iterator[Any]:
        """The modules of the base model, in diffusers' order."""
        names, _ = self._get_signature_keys(self)
        modules = (getattr(self, name, None) for name in names if name != "adapter")
        return (module for module in modules if isinstance(module, torch.nn.Module))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter: str | Path | FusionAdapter | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load any checkpoint of the pipeline's kind, with a fusion adapter.

        Args:
            pretrained_model_name_or_path: A folder in diffusers' layout, or a hub id.
            adapter: The adapter, or its folder or hub id; None takes the checkpoint's own
                ``adapter`` folder where there is one.
            **kwargs: Arguments of the diffusers pipeline's ``from_pretrained``.

        Returns:
            The pipeline, with the adapter attached to its UNet.

        Raises:
            FusionError: If the checkpoint or the adapter cannot be loaded.
        """
        loaded = _load_adapter(adapter, pretrained_model_name_or_path, kwargs)
        if loaded is not None:  # else it is loaded as any component that the checkpoint lists
            kwargs["adapter"] = loaded
        folder = Path(pretrained_model_name_or_path)
        steered = "controlnet" in inspect.signature(cls.__init__).parameters
        lacking = (
            folder.is_dir() and not (folder / "controlnet").is_dir()
        )  # a hub id is not checked
        if steered and lacking and kwargs.get("controlnet") is None:
            raise FusionError(
                f"controlnet must be given to {cls.__name__}, for {str(folder)!r} has none: load "
                "one by ControlNetModel.from_pretrained, and pass it as controlnet=."
            )
        try:
            return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        except FusionError:
            raise
        except (OSError, ValueError) as error:
            raise FusionError(
                f"The model {str(pretrained_model_name_or_path)!r} cannot be loaded; it must be a "
                f"folder in Stable Diffusion's layout or a hub id ({first_line(error)})."
            ) from error

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        adapter: str | Path | FusionAdapter | None = None,
        *,
        config: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint that is one ``.safetensors`` file, in the layout it is published in.

        Such a file holds weights only. How the models are built, and the tokenizer, diffusers
        takes from the hub, or from ``config``: no network is needed with it.

        Args:
            pretrained_model_link_or_path: The file, or its address on the hub.
            adapter: The adapter, or its folder or hub id; None takes the ``adapter`` folder of
                ``config`` where there is one.
            config: A folder in diffusers' layout, or a hub id, of a model built alike; its weights
                are not read and may be missing.
            **kwargs: Arguments of the diffusers pipeline's ``from_single_file``.

        Returns:
            The pipeline, with the adapter attached to its UNet.

        Raises:
            FusionError: If the file, its config or the adapter cannot be loaded.
        """
        file = str(pretrained_model_link_or_path)
        if "://" not in file and not Path(file).is_file():
            raise FusionError(
                f"There is no checkpoint file {file!r}: give a .safetensors file, or its address "
                "on the hub."
            )
        loaded = _load_adapter(adapter, config, kwargs)
        if config is not None:
            kwargs["config"] = str(config)
        try:
            pipeline = super().from_single_file(file, adapter=loaded, **kwargs)
        except FusionError:
            raise
        except Exception as error:  # diffusers, safetensors and the hub each have their own errors
            remedy = (
                "without a network, give config= the folder of a pipeline built alike"
                if config is None
                else f"the file must hold the weights of a model built like config={str(config)!r}"
            )
            raise FusionError(
                f"The checkpoint {file!r} cannot be loaded: {remedy} ({first_line(error)})."
            ) from error
        for name, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module) and any(p.is_meta for p in module.parameters()):
                raise FusionError(
                    f"The checkpoint {file!r} lacks weights of the {name}: give another file, or "
                    f"load the {name} first and pass it as {name}=."
                )
        return pipeline

    @classmethod
    def from_pipe(
        cls, pipeline: Any, adapter: str | Path | FusionAdapter | None = None, **kwargs: Any
    ) -> Self:
        """Make a pipeline of another's components, as diffusers does, without loading them again.

        Args:
            pipeline: A pipeline, of this library or diffusers', of the same family.
            adapter: The adapter, or its folder or hub id; None takes the pipeline's own, if any.
            **kwargs: Components to add or to replace, ``controlnet`` for example.

        Returns:
            The new pipeline, which shares the other components with the given one.

        Raises:
            FusionError: If the adapter cannot be loaded or does not fit.
        """
        if adapter is not None:
            kwargs["adapter"] = _load_adapter(adapter, None, {"dtype": pipeline.dtype})
        return super().from_pipe(pipeline, **kwargs)

    def load_adapter_weights(self, adapter: str | Path | FusionAdapter) -> None:
        """Use this adapter, or the one in this folder or hub id, in place of the former one.

        Args:
            adapter: The adapter, or its folder or hub id.

        Raises:
            FusionError: If the adapter cannot be loaded or does not fit; the former one stays then.
        """
        loaded = _load_adapter(adapter, None, {"dtype": self.dtype})
        assert loaded is not None
        loaded = loaded.to(self._execution_device)  # where the UNet is not while it is offloaded
        loaded.attach(self.unet)  # before the former one goes, so that a misfit changes nothing
        former = self.adapter
        if former is not None and former is not loaded and former.unet is not None:
            former.detach(self.unet)
        self.register_modules(adapter=loaded)


def _taking_an_adapter(stock: Callable[..., None]) -> Callable[..., None]:
    """Make the ``__init__`` of a diffusers pipeline take an adapter, too.

    Diffusers reads the components of a pipeline from the signature of its ``__init__``, so each
    class needs its own.
    """
    signature = inspect.signature(stock)
    # A checkpoint without these was made so on purpose: None is the default, without a warning.
    parameters = [
        p.replace(default=None) if p.name in ("safety_checker", "feature_extractor") else p
        for p in signature.parameters.values()
    ]
    signature = signature.replace(parameters=parameters)
    added = {"adapter": FusionAdapter | None, "sampling_defaults": dict[str, Any] | None}

    @functools.wraps(stock)
    def init(
        self: Any,
        *args: Any,
        adapter: FusionAdapter | None = None,
        sampling_defaults: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        if given.arguments.get("safety_checker", self) is None:  # SDXL has no such component
            given.arguments["requires_safety_checker"] = False
        stock(*given.args, **given.kwargs)
        self.register_modules(adapter=adapter)
        if sampling_defaults is not None:
            check_sampling(sampling_defaults, "sampling_defaults")
            self.register_to_config(sampling_defaults=dict(sampling_defaults))
        if adapter is not None:
            adapter.attach(self.unet)  # so that one that does not fit is refused now

    init.__annotations__ = {**stock.__annotations__, **added}
    init.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            *parameters,
            *(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind
                )
                for name, kind in added.items()
            ),
        ]
    )
    return init


def _taking_all(call: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """Give a call the signature that it has: a diffusers pipeline's own parameters, then ours.

    Diffusers, user interfaces and documentation read from it what a pipeline can do.
    """
    theirs, mine = (inspect.signature(each).parameters.values() for each in (stock, call))
    keyword_only = [each for each in mine if each.kind is inspect.Parameter.KEYWORD_ONLY]
    names = [each.name for each in keyword_only]
    positional = [each for each in theirs if each.name not in (*names, "kwargs")]
    rest = [each for each in theirs if each.name == "kwargs"]

    @functools.wraps(call)
    def merged(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **kwargs)

    merged.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*positional, *keyword_only, *rest]
    )
    return merged


def _skipping_layers(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``clip_skip`` work with a text encoder of transformers 5, and check it.

    Diffusers looks for the encoder's last normalisation in ``text_encoder.text_model``, which is
    the encoder itself since transformers 5.
    """

    @functools.wraps(stock)
    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        skip, encoder = kwargs.get("clip_skip"), getattr(self, "text_encoder", None)
        if skip is None or encoder is None:
            return stock(self, *args, **kwargs)
        # SDXL's text is the last layer but one already.
        most = encoder.config.num_hidden_layers - hasattr(self, "text_encoder_2")
        if not (is_index(skip) and 0 <= skip <= most):
            raise FusionError(f"clip_skip must be a whole number from 0 to {most}, not {skip!r}.")
        lacking = not hasattr(encoder, "text_model")
        if lacking:
            vars(encoder)["text_model"] = encoder  # no submodule, which would contain itself
        try:
            return stock(self, *args, **kwargs)
        finally:
            if lacking:
                del vars(encoder)["text_model"]

    return encode_prompt


def _load_adapter(
    source: str | Path | FusionAdapter | None,
    checkpoint: str | Path | None,
    loading: dict[str, Any],
) -> FusionAdapter | None:
    """Load an adapter, unless it is loaded already.

    Args:
        source: The adapter, or its folder or hub id; None means the checkpoint's own, if any.
        checkpoint: Folder or hub id of the base model.
        loading: Arguments that the base model is loaded with, of which ``dtype``, ``variant`` and
            the access to the hub count here.
    """
    if source is None and checkpoint is not None:
        own = Path(checkpoint) / "adapter"
        source = own if (own / "config.json").is_file() else None
    if source is None or isinstance(source, FusionAdapter):
        return source
    if not isinstance(source, str | Path):
        raise FusionError(
            "adapter must be a FusionAdapter, or its folder or hub id, not "
            f"{type(source).__name__}."
        )
    dtype, variant = loading.get("dtype", loading.get("torch_dtype")), loading.get("variant")
    if isinstance(dtype, Mapping):
        dtype = dtype.get("adapter", dtype.get("default", torch.float32))
    access = {name: loading[name] for name in HUB_ACCESS if name in loading}
    if variant is not None and Path(source).is_dir():
        # A published adapter need not have the variants that its base model has.
        variant = variant if any(Path(source).glob(f"*.{variant}[.-]*safetensors")) else None
    try:
        return FusionAdapter.from_pretrained(str(source), dtype=dtype, variant=variant, **access)
    except FusionError:
        if variant is None or Path(source).is_dir():
            raise
        return FusionAdapter.from_pretrained(str(source), dtype=dtype, **access)
