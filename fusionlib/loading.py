"""From names to loaded models: a folder or a hub id becomes a pipeline, or one clear sentence."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline
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
    if adapter is None:
        own = Path(base_model or profile.base_model).expanduser() / "adapter"
        adapter = str(own) if (own / "config.json").is_file() else profile.adapter
    base_model = base_model or profile.base_model
    check_model(base_model, file="model_index.json", what="base model")
    check_model(adapter, file="config.json", what="adapter")

    with _quietly():
        return _load(base_model, adapter, device, dtype)


def _load(base_model: str, adapter: str, device: str | None, dtype: str) -> FusionPipeline:
    import torch

    from fusionlib.adapter import FusionAdapter
    from fusionlib.pipeline import FusionPipeline

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
    try:
        fusion = FusionAdapter.from_pretrained(adapter, dtype=torch_dtype)
        pipeline = FusionPipeline.from_pretrained(base_model, adapter=fusion, dtype=torch_dtype)
    except FusionError:
        raise
    except Exception as error:  # diffusers, safetensors and the hub each raise errors of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FusionError(
            f"The model could not be loaded from {base_model} and {adapter}: {reason}"
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
        with _quietly():
            return [part.from_pretrained(name) for part in classes]
    except Exception as error:  # transformers, safetensors and the hub raise errors of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FusionError(f"The {what} could not be loaded from {name}: {reason}") from error


@contextmanager
def _quietly() -> Iterator[None]:
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
