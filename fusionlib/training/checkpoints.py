"""Trained models to build upon: where they lie, frozen for use, or as the start of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from fusionlib.errors import FusionError
from fusionlib.support.provenance import sha256_modules


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


def load_frozen(model: type[Any], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A trained model in evaluation mode, without gradients, by default in float32.

    Raises:
        FusionError: when it has not been trained yet.
    """
    if not (folder / "config.json").is_file():
        raise FusionError(
            f"there is no model in {folder}: run `fusionlib train` for vae, clip and base first, "
            "in this order"
        )
    loaded = model.from_pretrained(folder, dtype=dtype)
    return loaded.requires_grad_(False).eval()


@dataclass(frozen=True)
class Start:
    """What a run began with.

    Attributes:
        weights: the model's name and its weights' hash; None for random weights.
        samples: how many training samples those weights had seen, by their own records.
    """

    weights: str | None = None
    samples: int = 0


RANDOM = Start()
"""What a run from scratch begins with."""


def start_weights(network: nn.Module, folder: Path | None, run: str) -> Start:
    """Give a network the weights of a trained model, in place of its random ones.

    Args:
        network: a diffusers model, changed in place.
        folder: a folder that such a model was saved to; None leaves the network as it is.
        run: the name of the run that trained it; its record is read from ``training/`` beside the
            folder, where there is one.

    Returns:
        What to record of the start.

    Raises:
        FusionError: when the folder holds no model, or one of another architecture.
    """
    if folder is None:
        return RANDOM
    trained = load_frozen(type(network), folder)
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise FusionError(
            f"the model in {folder} has another architecture than the profile's: give the profile "
            "its sizes, or start from random weights"
        ) from error
    record = folder.parent / "training" / f"{run}.json"
    before = json.loads(record.read_text()) if record.is_file() else {}
    return Start(
        weights=f"{folder.name}, sha256 {sha256_modules([trained])[:16]}",
        samples=before.get("samples", 0) + before.get("samples_before", 0),
    )
