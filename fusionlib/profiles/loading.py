"""Loading of models by name: a folder or a hub id becomes a pipeline, or one clear error."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlib.errors import FusionError
from fusionlib.support.paths import user_path

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline
    from fusionlib.pipeline_variants import FusionControlNetPipeline
    from fusionlib.profiles import Profile

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_model(name: str, *, file: str, what: str) -> None:
    """See whether a folder can be a model, before anything slow is imported or loaded.

    Args:
        name: Folder, or id ``owner/name`` on the Hugging Face hub, which is not looked up here.
        file: File that such a folder holds, ``model_index.json`` for example.
        what: Name of the model, for an error.

    Raises:
        FusionError: There is no such folder and the name is no hub id, or the folder is no model.
    """
    folder = user_path(name)
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


def check_picture_size(base_model: str, height: int | None, width: int | None) -> None:
    """See that an autoencoder can paint pictures of a size, before any model is loaded.

    Args:
        base_model: Folder of the checkpoint, or a hub id, of which the downloaded files are asked;
            without any, the pipeline sees to the size later.
        height: Height of the picture in pixels; None is the model's own.
        width: Width likewise.

    Raises:
        FusionError: A side is no multiple of the autoencoder's factor; names the nearest ones.
    """
    factor = _autoencoder_factor(base_model)
    if factor is not None and (height, width) != (None, None):
        from fusionlib.checks import check_divisible

        check_divisible(height, width, factor)


def _autoencoder_factor(base_model: str) -> int | None:
    """The number of pixels that one latent stands for along a side; None where it is not known."""
    file = user_path(base_model) / "vae" / "config.json"
    if not file.is_file():
        if not _HUB_ID.fullmatch(base_model):
            return None
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(base_model, "vae/config.json")
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    try:
        return int(2 ** (len(json.loads(file.read_text("utf-8"))["block_out_channels"]) - 1))
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
        profile: Profile that names the models.
        base_model: Stable Diffusion checkpoint to use instead, a folder or a hub id.
        adapter: Adapter to use instead, a folder or a hub id; by default the folder ``adapter`` of
            the checkpoint, or the profile's if there is none.
        device: A torch device; by default a GPU if there is one.
        dtype: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        FusionError: A model is missing or does not fit, or there is no such device or type.
    """
    adapter = str(user_path(adapter or adapter_of(profile, base_model)))
    base_model = str(user_path(base_model or profile.base_model))
    check_model(base_model, file="model_index.json", what="base model")
    check_model(adapter, file="config.json", what="adapter")
    with quietly():
        from fusionlib.adapter import FusionAdapter
        from fusionlib.pipeline import FusionPipeline

        target, torch_dtype = torch_place(device, dtype)
        with _clear_errors("model", f"{base_model} and {adapter}"):
            fusion = FusionAdapter.from_pretrained(adapter, dtype=torch_dtype)
            pipeline = FusionPipeline.from_pretrained(base_model, adapter=fusion, dtype=torch_dtype)
        _check_words(pipeline.tokenizer, base_model)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(target)


def _check_words(tokenizer: Any, base_model: str) -> None:
    """Refuse a tokenizer that was made of lost files: it knows not even the bytes of a text."""
    if tokenizer is not None and len(tokenizer) < 256:
        raise FusionError(
            f"The tokenizer of {base_model} has only {len(tokenizer)} words: its files are lost or "
            "damaged; get a whole copy of the checkpoint."
        )


def adapter_of(profile: Profile, base_model: str | None = None) -> str:
    """The folder ``adapter`` of the checkpoint if it has one, or else the profile's adapter."""
    own = user_path(base_model or profile.base_model) / "adapter"
    return str(own) if (own / "config.json").is_file() else profile.adapter


def load_controlled(profile: Profile, pipeline: FusionPipeline) -> FusionControlNetPipeline:
    """A pipeline that also follows depth maps, with the parts of one that was loaded.

    Args:
        profile: Profile that names the ControlNet.
        pipeline: Pipeline of the same base model.

    Raises:
        FusionError: The profile names no ControlNet, or it is not there.
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
    """The torch device and type of these names; by default a GPU if there is one.

    Raises:
        FusionError: There is no such device or type.
    """
    import torch

    torch_dtype = getattr(torch, dtype, None)
    if torch_dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise FusionError(f"The type {dtype!r} is none of float32, float16 and bfloat16.")
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if target.type == "meta" or (target.type == "cpu" and target.index):
            raise RuntimeError  # which torch takes, and then computes nothing, or elsewhere
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise FusionError(
            f"The device {device!r} is not there: leave it out, or use cpu."
        ) from error
    return target, torch_dtype


def load_stock(
    pipeline_class: Any, base_model: str, device: str | None, dtype: str, **components: Any
) -> Any:
    """Load a base model as one of diffusers' own pipelines, whose UNet the caller may change.

    Args:
        pipeline_class: Class of diffusers, ``StableDiffusionPipeline`` for example.
        base_model: Folder or hub id.
        device: A torch device; by default a GPU if there is one.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        components: Components to use in place of those of the base model.

    Raises:
        FusionError: The model is not there or is of another kind, or there is no such device.
    """
    check_model(base_model, file="model_index.json", what="base model")
    target, torch_dtype = torch_place(device, dtype)
    expected = inspect.signature(pipeline_class.__init__).parameters
    unused = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
    components = {k: v for k, v in unused.items() if k in expected} | components
    with quietly(), _clear_errors("base model", base_model):
        pipeline = pipeline_class.from_pretrained(base_model, torch_dtype=torch_dtype, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(target)


def load_quietly(name: str, what: str, *classes: Any) -> list[Any]:
    """Load the parts of one transformers checkpoint, each by its class's ``from_pretrained``.

    Args:
        name: Folder or hub id.
        what: Name of the checkpoint, for an error.
        classes: Classes of transformers.

    Raises:
        FusionError: The checkpoint is not there, or is of another kind.
    """
    check_model(name, file="config.json", what=what)
    with quietly(), _clear_errors(what, name):
        return [part.from_pretrained(name) for part in classes]


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what the libraries print while they load, in terminals and notebooks."""
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


@contextmanager
def _clear_errors(what: str, place: str) -> Iterator[None]:
    """Turn any error of loading into one sentence, with the first line of its message."""
    try:
        yield
    except FusionError:
        raise
    except Exception as error:  # diffusers, safetensors and the hub each raise errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FusionError(f"The {what} could not be loaded from {place}: {reason}") from error
