"""What a reference tells an adapter: how much of the denoising error it removes.

No picture is painted, so a minute is enough to distinguish adapters for which a recogniser would
need thousands of pictures. The error is the one that training minimises, on people that no model
saw, with three differences: all positions have the same weight, the prompt is empty, and the
timesteps are a few noisy ones. The error does not measure likeness by itself. So the reference of
another person is tried beside a person's own: what that removes as well is not due to identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from companion.methods.counterparts import ABLATIONS, SENTENCE
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.profiles.loading import load_pipeline
from fusionlib.reference import encode_references
from fusionlib.training.denoising import diffusion_target

if TYPE_CHECKING:
    from companion.person import Person
    from fusionlib.pipeline import FusionPipeline
    from fusionlib.profiles import Profile

TIMESTEPS = (600, 750, 900, 980)
"""Noisy timesteps: the noisier a picture is, the more a reference tells about it."""

BATCH = 32


def trained_adapters(profile: Profile) -> dict[str, str]:
    """The adapters of a profile that have been trained: its own, ``fused``, and the ablations.

    Args:
        profile: Profile that names their folders.

    Returns:
        Folders or hub ids by the method's name.
    """
    found = {"fused": profile.adapter}
    if profile.counterparts is not None:
        folders = {name: Path(profile.counterparts) / name for name in ABLATIONS}
        found |= {
            name: str(folder)
            for name, folder in folders.items()
            if (folder / "config.json").is_file()
        }
    return found


@torch.no_grad()
def reference_gains(
    profile: Profile, people: Sequence[Person], adapters: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Denoise pictures of people by each adapter, with their own reference, another's, and none.

    Everything is the same for all adapters: the pictures, the noise, the empty prompt.

    Args:
        profile: Profile with the base model.
        people: People with a reference and a further picture each; the latter is denoised.
        adapters: Folders by the method's name; by default `trained_adapters`.

    Returns:
        A row for each adapter (``method``), ``person`` and timestep (in ``prompt``), with ``seed``
        0: the share of the error without a reference that is removed by one of the person's
        ``own``, by ``another`` person's, and their difference, ``identity``.

    Raises:
        FusionError: There are fewer than two people, or one has no further picture.
    """
    if len(people) < 2 or not all(person.references and person.others for person in people):
        raise FusionError("Gains want two people at least, each with a reference and an other.")
    rows: list[dict[str, Any]] = []
    usual = profile.training.model_dump(include={"reference_timestep", "reference_prompt"})
    shown = trained_adapters(profile) if adapters is None else adapters
    for name, folder in tqdm(shown.items(), desc="adapters"):
        pipeline = load_pipeline(profile, adapter=folder)
        trained = usual | ABLATIONS.get(name, {})
        targets = _latents(pipeline, profile.resolution, [person.others[0] for person in people])
        references = _latents(
            pipeline, profile.resolution, [person.references[0] for person in people]
        )
        for timestep in TIMESTEPS:
            noise = torch.randn(
                (2, *targets.shape), generator=torch.Generator().manual_seed(timestep)
            ).to(targets)
            errors = {
                what: _errors(pipeline, trained, targets, seen, timestep, noise)
                for what, seen in (
                    ("none", None), ("own", references), ("another", references.roll(1, 0)),
                )
            }  # fmt: skip
            taken = {what: 1 - errors[what] / errors["none"] for what in ("own", "another")}
            for number, person in enumerate(people):
                own, another = (float(taken[what][number]) for what in ("own", "another"))
                cell = {"method": name, "person": person.name, "prompt": f"t = {timestep}"}
                rows.append(
                    {**cell, "seed": 0, "own": own, "another": another, "identity": own - another}
                )
    return pd.DataFrame(rows)


def _latents(pipeline: FusionPipeline, side: int, paths: Sequence[str | Path]) -> Tensor:
    """Scaled latents of pictures."""
    parts = []
    for start in range(0, len(paths), BATCH):
        images = [load_image(path) for path in paths[start : start + BATCH]]
        pixels = pipeline.image_processor.preprocess(images, side, side)
        pixels = pixels.to(pipeline.device, pipeline.dtype)
        parts.append(pipeline.vae.encode(pixels).latent_dist.mode())
    return torch.cat(parts) * pipeline.vae.config["scaling_factor"]


def _errors(
    pipeline: FusionPipeline, trained: Mapping[str, Any], latents: Tensor,
    references: Tensor | None, timestep: int, noise: Tensor,
) -> Tensor:  # fmt: skip
    """The squared error of each picture, ``(n,)``; ``noise[1]`` is that of a shared reference."""
    scheduler, unet = pipeline.scheduler, pipeline.unet
    when = torch.full((len(latents),), timestep, device=latents.device)
    noisy = scheduler.add_noise(latents, noise[0], when)
    goal = diffusion_target(scheduler, latents, noise[0], when)
    empty, said = (
        pipeline.encode_prompt(text, pipeline.device, 1, False)[0]
        for text in ("", SENTENCE if trained["reference_prompt"] == "caption" else "")
    )
    parts = []
    for n in range(0, len(latents), BATCH):
        part = slice(n, n + BATCH)
        text = empty.expand(len(latents[part]), -1, -1)
        faces = []
        if references is not None:
            shared: dict[str, Any] = {}
            if trained["reference_timestep"] == "shared":
                shared = {"timestep_mode": "shared", "timestep": when[part]}
                shared |= {"noise": noise[1][part], "scheduler": scheduler}
            states = encode_references(unet, references[part], said, **shared)
            faces = [pipeline.adapter.project(states)]
        with pipeline.adapter.conditioned(faces):
            predicted = unet(noisy[part], when[part], text).sample
        parts.append((predicted - goal[part]).square().mean((1, 2, 3)))
    return torch.cat(parts)
