"""Profiles: the same code with other weights and sizes.

``embedded`` runs offline on two CPU cores with the weights in this repository; ``paper`` loads the
published checkpoints from the hub and wants a GPU. A profile is a YAML file, checked by pydantic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusionlib.errors import FusionError

ROOT = Path(__file__).resolve().parents[2]
"""The repository: relative paths in a profile start here."""

_FOLDER = Path(__file__).resolve().parent


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Recipe(_Strict):
    """How one model is trained: the length, the step and what is kept.

    Attributes:
        steps: optimiser steps; the learning rate's schedule ends there.
        batch_size: samples per process and step.
        learning_rate: peak learning rate of AdamW.
        warmup_steps: linear rise from 0 to the peak.
        cooldown: fraction of ``steps`` at the end in which the rate falls linearly to 0.
        weight_decay: of AdamW, decoupled.
        ema_decay: of the exponential average of the weights that is exported.
        checkpoint_minutes: wall-clock time between checkpoints.
        mixed_precision: the autocast dtype of the forward pass.
        compile: whether to run the network through ``torch.compile``.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    cooldown: float = Field(default=0.2, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    checkpoint_minutes: float = Field(default=3.0, gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    compile: bool = False


class Training(_Strict):
    """Data and recipes of ``fusionlib train``."""

    shards: str
    runs: str = "runs"
    cache_references: bool = True
    text_dropout: float = 0.05
    reference_dropout: float = 0.05
    both_dropout: float = 0.05
    vae_quarter: Recipe | None = None
    vae_half: Recipe | None = None
    vae: Recipe | None = None
    clip: Recipe | None = None
    base: Recipe | None = None
    adapter: Recipe


class Profile(_Strict):
    """One named set of weights, sizes and settings.

    Attributes:
        name: ``embedded`` or ``paper``, or the name of a profile of your own.
        base_model: folder or hub id of a Stable Diffusion checkpoint.
        adapter: folder or hub id of the fusion adapter.
        clip_model: folder or hub id of the CLIP model that scores prompt alignment.
        resolution: side of the generated image, pixels.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance.
        recognisers: DeepFace model names that judge identity.
        detector: DeepFace detector that finds and aligns faces.
        heldout: folder of the held-out people, None where the user brings photographs.
        notebooks: papermill parameters of each notebook, by file stem; the notebook's own
            defaults are small, so that pressing "run all" takes seconds.
        architecture: constructor arguments of the models that are trained from scratch.
    """

    name: str
    base_model: str
    adapter: str
    clip_model: str
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    recognisers: list[str]
    detector: str
    heldout: str | None = None
    seed: int = 0
    training: Training
    notebooks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    architecture: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def recipe(self, model: str) -> Recipe:
        """The recipe of one training run: ``vae``, ``clip``, ``base``, ``adapter``, ...

        Raises:
            FusionError: when the profile does not train that model.
        """
        recipe = getattr(self.training, model, None)
        if recipe is None:
            raise FusionError(
                f"the profile '{self.name}' has no recipe for '{model}': it uses published weights"
            )
        return recipe


def resolve(path_or_id: str) -> str:
    """A path of the repository if it is there (or is meant to be), else the hub id unchanged."""
    inside = ROOT / path_or_id
    return str(inside) if inside.exists() or path_or_id.startswith("data/") else path_or_id


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name or from a YAML file.

    Args:
        name_or_path: ``embedded``, ``paper`` or the path of a YAML file.

    Returns:
        The profile, its paths made absolute where they lie in the repository.

    Raises:
        FusionError: when there is no such profile or the file does not fit the schema.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = _FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.yaml")))
        raise FusionError(
            f"there is no profile '{name_or_path}': use one of {known}, or the path of a YAML file"
        )
    try:
        profile = Profile.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        raise FusionError(f"the profile {path} does not fit: {error}") from error
    for field in ("base_model", "adapter", "clip_model", "heldout"):
        value = getattr(profile, field)
        if value is not None:
            setattr(profile, field, resolve(value))
    return profile
