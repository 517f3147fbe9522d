"""Finished models: float16 safetensors, with the record of how they were trained."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Profile
from fusionlib.support.files import replacing
from fusionlib.support.provenance import git_commit
from fusionlib.training.loop import Run


def save_model(
    model: Any,
    folder: Path,
    run_folder: Path | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a diffusers or transformers model in float16, atomically.

    Args:
        model: Model with ``save_pretrained``; it stays in its own dtype.
        folder: Folder of the model, replaced as a whole.
        run_folder: Folder of the run, whose ``loss.csv`` and ``run.json`` are copied to
            ``training/`` beside the model for the model card; see `copy_record`.
        texts: Contents of further files, by name.
    """
    with replacing(folder) as partial:
        half_module(model).save_pretrained(partial)
        if isinstance(model, PreTrainedModel):
            # transformers loads in the dtype of the configuration; diffusers loads in float32.
            model.config.dtype = torch.float32
            model.config.save_pretrained(partial)
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
    if run_folder is not None:
        copy_record(folder, run_folder)


def half(tensor: Tensor) -> Tensor:
    """A weight as it is committed: float16, rounded to the eight significant bits of bfloat16.

    It was trained in bfloat16, and three bits fewer save a sixth of what git stores.
    """
    return tensor.detach().cpu().bfloat16().half().contiguous()


def half_module(model: nn.Module) -> Any:
    """A copy of a model with its weights rounded as by `half`."""
    # torch's own casts: diffusers' warn about layers to leave in float32, of which there are none.
    copied = nn.Module.to(copy.deepcopy(model), torch.bfloat16)
    copied = nn.Module.to(copied, torch.float16)
    return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def own_folder(folder: Path) -> Path:
    """Return a folder that a model may replace as a whole.

    Raises:
        FusionError: The folder holds a whole pipeline, which would be lost.
    """
    if (folder / "model_index.json").exists():
        raise FusionError(
            f"{folder} holds a whole pipeline, which the trained model would take the place of: "
            f"give a folder of its own, {folder / 'adapter'} for example."
        )
    return folder


def copy_record(folder: Path, run_folder: Path) -> None:
    """Copy the record of a run to ``training/`` beside the folder of the trained model."""
    record = folder.parent / "training"
    record.mkdir(parents=True, exist_ok=True)
    for suffix, file in ((".csv", "loss.csv"), (".json", "run.json")):
        if (run_folder / file).is_file():  # a run of a few steps has logged nothing yet
            shutil.copyfile(run_folder / file, record / f"{run_folder.name}{suffix}")


CARD = """---
license: apache-2.0
library_name: diffusers
base_model: {base_model}
tags:
- fusionlib
- face-identity
- text-to-image
---

# Fusion adapter for {base_model}

The trainable weights, Linear_kf and Linear_vf of every cross-attention layer ({parameters:.1f} M
parameters in float16), of the method of *Fusion Is All You Need: Face Fusion for Customized
Identity-Preserving Image Synthesis* (arXiv:2409.19111), trained by `fusionlib`, an independent
reproduction. They fit the UNet of {base_model} only.

```python
from PIL import Image
from fusionlib import FusionPipeline

pipeline = FusionPipeline.from_pretrained("{base_model}", adapter="THIS FOLDER OR HUB ID")
image = pipeline("a photo of a person", references=[Image.open("face.png")]).images[0]
```

## Training

| | |
|---|---|
| profile | `{profile}`, {resolution} pixels |
| data | `{shards}` |
| steps | {steps} of {planned_steps}, {samples} samples, {batch_size} in a batch of each process |
| learning rate | {learning_rate}, {warmup_steps} steps of warm-up |
| optimizer | {optimizer}, weight decay {weight_decay}, {mixed_precision} |
| average of the weights | decay {ema_decay} |
| dropped | text {text_dropout}, reference {reference_dropout}, both {both_dropout} |
| reference | {reference_timestep}, {reference_prompt} prompt |
| attention | {attention}, in {where} |
| seed | {seed} |
| machine | {machine}, {hours:.2f} hours |
| final loss | {final_loss:.4f} |
| samples skipped, shards damaged | {skipped_samples}, {damaged_shards} |
| began with | {started_from} |
| fusionlib | {commit} |

## Use

It clones faces. Use references of people who have agreed to it, and say that the results are
generated. What the base model cannot paint, it cannot paint with a face either.
{synthetic}"""
"""The adapter's README.md, which a model hub shows."""

BEGINNINGS = {
    "self_attention": "copies of the self-attention's projections",
    "zero_value": "copies of the self-attention's keys, and values of zero",
    "random": "random weights",
}
"""The first weights of an adapter, by the profile's ``init``."""

SYNTHETIC = """
It was trained on rendered, synthetic people only: given a photograph, it answers with a synthetic
face.
"""


def save_adapter(
    adapter: Any, folder: Path, run_folder: Path, profile: Profile, run: Run, counts: dict[str, int]
) -> None:
    """Write an adapter's folder as a model hub expects it: weights, configuration, model card.

    Args:
        adapter: Trained ``FusionAdapter``.
        folder: Folder of the adapter, replaced as a whole.
        run_folder: Folder of the run, see `save_model`.
        profile: Profile of the run.
        run: Record of the run.
        counts: Numbers of ``skipped_samples`` and ``damaged_shards``.
    """
    recipe, settings = profile.recipe("adapter"), profile.training
    inside = Path(profile.base_model).is_relative_to(ROOT)
    text = CARD.format(
        **settings.model_dump(exclude={"adapter"})
        | recipe.model_dump(exclude={"steps", "attention"})
        | {k: v for k, v in asdict(run).items() if k not in ("started_from", "parameters")}
        | counts,
        base_model=Path(profile.base_model).name if inside else profile.base_model,
        profile=profile.name,
        resolution=profile.resolution,
        seed=profile.seed,
        parameters=adapter.num_parameters() / 1e6,
        hours=run.seconds / 3600,
        commit=git_commit() or "of an installed package",
        where="all layers" if settings.layers is None else f"the layers {settings.layers}",
        started_from=run.started_from or BEGINNINGS[settings.init],
        synthetic=SYNTHETIC if inside else "",
    )
    save_model(adapter, folder, run_folder, {"README.md": text})
