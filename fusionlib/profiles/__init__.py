"""Profiles: the same code with other weights and sizes.

``embedded`` runs offline on two CPU cores with the weights in this repository; ``paper`` loads the
published checkpoints from the hub and wants a GPU. A profile is a YAML file, checked by pydantic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusionlib.errors import FusionError, explain_validation

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
        gradient_accumulation: batches of each process that make one step.
        gradient_checkpointing: whether the UNet's activations are computed again in the backward
            pass of the adapter's training: less memory, more time.
        optimizer: ``adamw`` (PyTorch's, fused) or ``adamw8bit`` (bitsandbytes', CUDA only).
        compile: whether to run the network through ``torch.compile``.
        attention: ``auto`` leaves the kernel to torch; ``plain`` multiplies matrices, which takes
            memory that grows with the square of the tokens, and less time where they are few: with
            the 64 of the embedded UNet a step takes 0.89 of the time on a CPU.
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
    gradient_accumulation: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    compile: bool = False
    attention: Literal["auto", "plain"] = "auto"


class Training(_Strict):
    """Data and recipes of ``fusionlib train``.

    Attributes:
        shards: the training set: a folder of webdataset shards, a pattern of them such as
            ``data/{00000..00331}.tar``, or a folder of plain files.
        runs: folder for checkpoints and logs.
        stream: whether the adapter reads its pictures from the shards as it goes
            (`fusionlib.training.stream`), rather than holding all of them in memory.
        workers: processes that decode pictures while streaming, on each rank.
        crop: what is shown of a streamed picture, `fusionlib.training.crops`.
        augment: whether streamed references are changed so that they are not the target's pixels.
        cached_variants: how many random crops of each streamed picture are encoded once and kept on
            disk, with the text; 0 encodes anew in every step.
        cache_references: whether h_f of every picture is kept in memory while the adapter trains.
        reference_timestep: ``clean``, or ``shared`` with the target, `encode_references`.
        reference_prompt: what the reference is shown with: the ``empty`` prompt or its ``caption``.
        attention: ``concatenated`` or ``decoupled``, `FusionAdapter`.
        init: of the adapter's weights, `FusionAdapter.from_unet`.
        layers: which layers see faces, likewise; None for all.
        people_share: the adapter sees the first so many of the training set's people.
        text_dropout: share of the adapter's samples without the text.
        reference_dropout: share of the adapter's samples without the reference.
        both_dropout: share of the adapter's samples without both.
        timestep_power: which timesteps the adapter sees, `fusionlib.training.denoising.noised`.
        min_snr_gamma: of `fusionlib.training.denoising.min_snr_weights`; None leaves it out.
        sample_every: steps between the adapter's sample sheets, `companion.evaluation.training_monitor`; 0 for
            none.
        sample_prompts: what they show, each with the same references.
        labels: fields of the pictures' records that the classifier learns to tell; those that a
            training set does not have are left out.
        label_words: for each label that a prompt may ask for, and some of its classes, further
            words by which prompts call the class, besides its own name.
    """

    shards: str
    runs: str = "runs"
    stream: bool = False
    workers: int = Field(default=2, ge=0)
    crop: Literal["whole", "face"] = "whole"
    augment: bool = False
    cached_variants: int = Field(default=0, ge=0)
    cache_references: bool = True
    reference_timestep: Literal["clean", "shared"] = "clean"
    reference_prompt: Literal["empty", "caption"] = "empty"
    attention: Literal["concatenated", "decoupled"] = "concatenated"
    init: Literal["self_attention", "zero_value", "random"] = "self_attention"
    layers: list[Literal["down", "mid", "up"] | int] | None = None
    people_share: float = Field(default=1.0, gt=0, le=1)
    text_dropout: float = 0.05
    reference_dropout: float = 0.05
    both_dropout: float = 0.05
    timestep_power: float = Field(default=1.0, gt=0)
    min_snr_gamma: float | None = Field(default=None, gt=0)
    sample_every: int = Field(default=0, ge=0)
    sample_prompts: list[str] = Field(
        default=["a photo of a person", "a photo of a laughing person"], min_length=1
    )
    labels: list[str] = Field(default_factory=list)
    label_words: dict[str, dict[str, list[str]]] = Field(default_factory=dict)
    vae_quarter: Recipe | None = None
    vae_half: Recipe | None = None
    vae: Recipe | None = None
    clip: Recipe | None = None
    clip_images: Recipe | None = None
    base: Recipe | None = None
    controlnet: Recipe | None = None
    identity: Recipe | None = None
    classifier: Recipe | None = None
    adapter: Recipe


class Profile(_Strict):
    """One named set of weights, sizes and settings.

    Attributes:
        name: ``embedded`` or ``paper``, or the name of a profile of your own.
        base_model: folder or hub id of a Stable Diffusion checkpoint.
        adapter: folder or hub id of the fusion adapter.
        counterparts: folder of the other methods' weights, trained by `fusionlib train method` for
            comparison; None where their published checkpoints are used.
        clip_model: folder or hub id of the CLIP model that scores prompt alignment.
        controlnet: folder or hub id of the ControlNet that follows depth maps, None without one.
        resolution: side of the generated image, pixels.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance.
        recognisers: what judges identity: names in DeepFace, or folders of networks.
        classifier: folder or hub id of the model that tells whether a picture shows what the prompt
            asks for, `companion.evaluation.alignment.Classifier`.
        traits: heads of the classifier that tell what stays of a person whatever the prompt says:
            gender, hair.
        detector: DeepFace detector that finds and aligns faces.
        heldout: folder of the held-out people, None where the user brings photographs.
        groups: folder of pictures that show several of them, with masks and depth maps; or None.
        notebooks: papermill parameters of each notebook, by file stem; the notebook's own
            defaults are small, so that pressing "run all" takes seconds. A sentence in their place
            leaves the notebook out of this profile's book, and says why.
        architecture: constructor arguments of the models that are trained from scratch.
    """

    name: str
    base_model: str
    adapter: str
    counterparts: str | None = None
    clip_model: str
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    recognisers: list[str]
    classifier: str | None = None
    traits: list[str] = Field(default_factory=list)
    detector: str
    heldout: str | None = None
    groups: str | None = None
    controlnet: str | None = None
    seed: int = 0
    training: Training
    notebooks: dict[str, dict[str, Any] | str] = Field(default_factory=dict)
    architecture: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Papermill parameters of the notebooks that have some, by name."""
        return {name: v for name, v in self.notebooks.items() if not isinstance(v, str)}

    @property
    def left_out(self) -> dict[str, str]:
        """The notebooks that its book goes without, by name, and why."""
        return {name: why for name, why in self.notebooks.items() if isinstance(why, str)}

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

    A file may begin with ``extends: NAME``, another profile, and give only what is different.

    Args:
        name_or_path: ``embedded``, ``paper`` or the path of a YAML file.

    Returns:
        The profile, its paths made absolute where they lie in the repository.

    Raises:
        FusionError: when there is no such profile or the file does not fit the schema.
    """
    path = _path(name_or_path)
    try:
        profile = Profile.model_validate(_read(path))
    except ValidationError as error:
        raise FusionError(
            f"the profile {path} does not fit at {explain_validation(error)} "
            "(fusionlib/profiles/embedded.yaml is one that fits)"
        ) from error
    paths = ("base_model", "adapter", "counterparts", "clip_model", "controlnet")
    for field in (*paths, "classifier", "heldout", "groups"):
        value = getattr(profile, field)
        if value is not None:
            setattr(profile, field, resolve(value))
    profile.recognisers = [resolve(name) for name in profile.recognisers]
    return profile


def _path(name_or_path: str | Path) -> Path:
    """The YAML file of a profile."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = _FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.yaml")))
        raise FusionError(
            f"there is no profile '{name_or_path}': use one of {known}, or the path of a YAML file"
        )
    return path


def _read(path: Path, *extended: Path) -> dict[str, Any]:
    """A profile's settings, laid over those of the profile that it extends."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FusionError(f"the profile {path} is not YAML: {error}") from error
    if not isinstance(settings, dict) or "extends" not in settings:
        return settings
    base = _path(str(settings.pop("extends")))
    if base.resolve() in (seen.resolve() for seen in (path, *extended)):
        raise FusionError(f"the profile {path} extends itself: name another one in `extends`")
    return _merged(_read(base, path, *extended), settings)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Dictionaries are merged key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        former = merged.get(key)
        both = isinstance(former, dict) and isinstance(value, dict)
        merged[key] = _merged(former, value) if both else value  # type: ignore[arg-type]
    return merged
