"""Trained models to build upon: where they lie, frozen for use, or as the start of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from fusionlib.errors import FusionError
from fusionlib.manifest import sha256_modules


def checkpoint_folder(name: str) -> Path:
    """A Stable Diffusion checkpoint as a folder; a hub id is downloaded, or found in the cache.

    Raises:
        FusionError: when there is no such folder and the hub cannot give it.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        return Path(DiffusionPipeline.download(name))
    except (OSError, ValueError) as error:
        raise FusionError(
            f"there is no checkpoint '{name}': give a folder, or a hub id and a network"
        ) from error


def load_frozen(model: type[Any], folder: Path, **arguments: Any) -> Any:
    """A trained model in float32, in evaluation mode, without gradients.

    Raises:
        FusionError: when it has not been trained yet.
    """
    if not (folder / "config.json").is_file():
        raise FusionError(
            f"there is no model in {folder}: run `fusionlib train` for vae, clip and base first, "
            "in this order"
        )
    loaded = model.from_pretrained(folder, dtype=torch.float32, **arguments)
    return loaded.requires_grad_(False).eval()


def start_weights(network: nn.Module, folder: Path | None) -> str | None:
    """Give a network the weights of a trained model, in place of its random ones.

    Args:
        network: a diffusers model, changed in place.
        folder: a folder that such a model was saved to; None leaves the network as it is.

    Returns:
        What to record of them: the folder's name and the weights' hash. None without a folder.

    Raises:
        FusionError: when the folder holds no model, or one of another architecture.
    """
    if folder is None:
        return None
    trained = load_frozen(type(network), folder)
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise FusionError(
            f"the model in {folder} has another architecture than the profile's: give the profile "
            "its sizes, or start from random weights"
        ) from error
    return f"{folder.parent.name}/{folder.name}, sha256 {sha256_modules([trained])[:16]}"
