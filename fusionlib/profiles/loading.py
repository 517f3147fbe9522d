"""From names to loaded models: a folder or a hub id becomes a pipeline, or one clear sentence."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline
    from fusionlib.pipeline_variants import FusionControlNetPipeline
    from fusionlib.profiles import Profile

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_model(name: str, *, file: str, what: str) -> None:
    """See whether a folder can be a model, before anything slow is imported or loaded.

    Args:
        name: a folder, or an id ``owner/name`` on the Hugging Face hub (not looked up here).
        file: the file that such a folder holds, ``model_index.json`` for example.
        what: how to call it in the error.

    Raises:
        FusionError: there is no such folder and the name is no hub id, or the folder is no model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / file).is_file():
            raise FusionError(
                f"The {what} folder {folder} holds no {file}: give the folder that "
                "save_pretrained wrote."
            )
    elif folder.exists():
        raise FusionError(f"The {what} {folder} is a file: give the folder of a model.")
    elif not _HUB_ID.fullmatch(name) or folder.parent.is_dir():
        raise FusionError(
            f"There is no {what} folder {name}: give the folder of a model, or its hub id "
            "(owner/name)."
        )


def load_pipeline(
    profile: Profile,
    *,
    base_model: str | None = None,
    adapter: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> FusionPipeline:
    """Load the base model and the adapter of a profile, or others in their place.

    Args:
        profile: says which models; see `fusionlib.profiles`.
        base_model: a Stable Diffusion checkpoint to use instead, a folder or a hub id.
        adapter: an adapter to use instead, a folder or a hub id; by default the folder ``adapter``
            of the checkpoint, or the profile's if it has none.
        device: a torch device; by default a GPU if there is one.
        dtype: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        FusionError: a model is missing or does not fit, or there is no such device or type.
    """
    adapter = adapter or adapter_of(profile, base_model)
    base_model = base_model or profile.base_model
    check_model(base_model, file="model_index.json", what="base model")
    check_model(adapter, file="config.json", what="adapter")

    with quietly():
        return _load(base_model, adapter, device, dtype)


def adapter_of(profile: Profile, base_model: str | None = None) -> str:
    """The folder ``adapter`` of the profile's or another checkpoint, or else the profile's own."""
    own = Path(base_model or profile.base_model).expanduser() / "adapter"
    return str(own) if (own / "config.json").is_file() else profile.adapter


def _load(base_model: str, adapter: str, device: str | None, dtype: str) -> FusionPipeline:
    from fusionlib.adapter import FusionAdapter
    from fusionlib.pipeline import FusionPipeline

    target, torch_dtype = torch_place(device, dtype)
    try:
        fusion = FusionAdapter.from_pretrained(adapter, dtype=torch_dtype)
        pipeline = FusionPipeline.from_pretrained(base_model, adapter=fusion, dtype=torch_dtype)
    except FusionError:
        raise
    except Exception as error:  # diffusers, safetensors and the hub each raise errors of their own
        raise FusionError(
            f"The model could not be loaded from {base_model} and {adapter}: {_reason(error)}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(target)


def load_controlled(profile: Profile, pipeline: FusionPipeline) -> FusionControlNetPipeline:
    """A pipeline that follows depth maps besides, with the parts of one that was loaded.

    Args:
        profile: says which ControlNet.
        pipeline: of the same base model.

    Raises:
        FusionError: the profile names no ControlNet, or it is not there.
    """
    from diffusers import ControlNetModel

    from fusionlib.pipeline_variants import FusionControlNetPipeline

    if profile.controlnet is None:
        raise FusionError(f"The profile {profile.name!r} names no ControlNet: add `controlnet:`.")
    (controlnet,) = load_quietly(profile.controlnet, "ControlNet", ControlNetModel)
    with quietly():
        controlnet = controlnet.to(pipeline.device, pipeline.dtype)
        controlled = FusionControlNetPipeline.from_pipe(pipeline, controlnet=controlnet)
    controlled.set_progress_bar_config(disable=True)
    return controlled


def torch_place(device: str | None, dtype: str) -> tuple[Any, Any]:
    """The torch device and type that these names mean; no device takes a GPU if there is one.

    Raises:
        FusionError: there is no such device or type.
    """
    import torch

    torch_dtype = getattr(torch, dtype, None)
    if torch_dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise FusionError(f"The type {dtype!r} is none of float32, float16 and bfloat16.")
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise FusionError(
            f"The device {device!r} is not there: leave it out, or use cpu."
        ) from error
    return target, torch_dtype


def load_stock(
    pipeline_class: Any, base_model: str, device: str | None, dtype: str, **components: Any
) -> Any:
    """Load a base model as one of diffusers' own pipelines, whose UNet is the caller's to change.

    Args:
        pipeline_class: of diffusers, ``StableDiffusionPipeline`` for example.
        base_model: a folder or a hub id.
        device: a torch device; by default a GPU if there is one.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        components: used in place of those of the base model.

    Raises:
        FusionError: the model is not there or is of another kind, or there is no such device.
    """
    check_model(base_model, file="model_index.json", what="base model")
    target, torch_dtype = torch_place(device, dtype)
    expected = inspect.signature(pipeline_class.__init__).parameters
    unused = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
    components = {k: v for k, v in unused.items() if k in expected} | components
    try:
        with quietly():
            pipeline = pipeline_class.from_pretrained(
                base_model, torch_dtype=torch_dtype, **components
            )
    except Exception as error:  # diffusers, safetensors and the hub each raise errors of their own
        raise FusionError(
            f"The base model could not be loaded from {base_model}: {_reason(error)}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(target)


def load_quietly(name: str, what: str, *classes: Any) -> list[Any]:
    """Load the parts of one transformers checkpoint, each by its class's ``from_pretrained``.

    Args:
        name: a folder or a hub id.
        what: how to call it in an error.
        classes: of transformers.

    Raises:
        FusionError: the checkpoint is not there, or is of another kind.
    """
    check_model(name, file="config.json", what=what)
    try:
        with quietly():
            return [part.from_pretrained(name) for part in classes]
    except Exception as error:  # transformers, safetensors and the hub raise errors of their own
        raise FusionError(
            f"The {what} could not be loaded from {name}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of what an error says, or what it is called if it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' chatter about loading out of terminals and notebooks, then restore it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        libraries: list[Any] = [diffusers_logging, transformers_logging]
        levels = [library.get_verbosity() for library in libraries]
        try:
            for library in libraries:
                library.set_verbosity_error()
                library.disable_progress_bar()
            yield
        finally:
            for library, level in zip(libraries, levels, strict=True):
                library.set_verbosity(level)
                library.enable_progress_bar()
