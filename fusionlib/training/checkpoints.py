"""Trained models to build upon: where they lie, frozen for use, or as the start of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import nn

from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.support.provenance import sha256_modules

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The compute dtype of each ``mixed_precision``."""


def checkpoint_folder(name: str) -> Path:
    """A Stable Diffusion checkpoint as a folder; a hub id is downloaded, or found in the cache.

    Raises:
        FusionError: There is no such folder, and the hub cannot provide it.
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
    """Load a trained model in evaluation mode and without gradients, by default in float32.

    Raises:
        FusionError: The model has not been trained yet.
    """
    if not (folder / "config.json").is_file():
        raise FusionError(
            f"there is no model in {folder}: run `fusionlib train` for vae, clip and base first, "
            "in this order"
        )
    loaded = model.from_pretrained(folder, dtype=dtype)
    return loaded.requires_grad_(False).eval()


@dataclass(frozen=True)
class FrozenBase:
    """The frozen base model that an adapter, or another method, is trained over.

    Attributes:
        folder: Folder of the checkpoint.
        unet: UNet in the compute dtype, on the device.
        scheduler: Noise schedule.
        device: Device of this process: its own GPU where there is one.
        dtype: Compute dtype of the adapter's recipe.
    """

    folder: Path
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def load(profile: Profile) -> FrozenBase:
        """Load a profile's base model."""
        device = PartialState(cpu=not torch.cuda.is_available()).device
        dtype = DTYPES[profile.recipe("adapter").mixed_precision]
        with PartialState().local_main_process_first():  # one download per machine
            folder = checkpoint_folder(profile.base_model)
        unet = load_frozen(UNet2DConditionModel, folder / "unet", dtype).to(device)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        return FrozenBase(folder, unet, scheduler, device, dtype)


@dataclass(frozen=True)
class Start:
    """The weights that a run began with.

    Attributes:
        weights: Name of the model and hash of its weights; None stands for random weights.
        samples: Number of training samples that those weights had seen, by their own records.
    """

    weights: str | None = None
    samples: int = 0


RANDOM = Start()
"""The start of a run from scratch."""


def start_weights(network: nn.Module, folder: Path | None, run: str) -> Start:
    """Give a network the weights of a trained model, in place of its random ones.

    Args:
        network: Diffusers model, changed in place.
        folder: Folder that such a model was saved to; None leaves the network as it is.
        run: Name of the run that trained it. Its record is read from ``training/`` beside the
            folder, where there is one.

    Returns:
        The record of the start.

    Raises:
        FusionError: The folder holds no model, or one of another architecture.
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
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return Start(
        weights=f"{folder.name}, sha256 {sha256_modules([trained])[:16]}",
        samples=before.get("samples", 0) + before.get("samples_before", 0),
    )
