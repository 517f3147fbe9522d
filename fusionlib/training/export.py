"""Finished models: float16 safetensors, with the record of how they were trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Profile
from fusionlib.support.files import Made, check_folder, check_writable, replacing, write_bytes
from fusionlib.support.provenance import git_commit
from fusionlib.training.loop import Run


def save_model(
    model: Any,
    folder: Path,
    made: Made,
    run_folder: Path | None = None,
    texts: Mapping[str, str] | None = None,
    processor: Any = None,
) -> None:
    """Write a diffusers or transformers model in float16, atomically.

    Args:
        model: Model with ``save_pretrained``; it stays in its own dtype.
        folder: Folder of the model, replaced as a whole.
        made: What such a folder holds; with anything else in it, it is refused.
        run_folder: Folder of the run, whose ``loss.csv`` and ``run.json`` are copied to
            ``training/`` beside the model for the model card; see `copy_record`.
        texts: Contents of further files, by name.
        processor: Processor of the model's inputs with ``save_pretrained``, saved beside it.
    """
    with replacing(folder, made) as partial:
        half_module(model).save_pretrained(partial)
        if isinstance(model, PreTrainedModel):
            # transformers loads in the dtype of the configuration; diffusers loads in float32.
            model.config.dtype = torch.float32
            model.config.save_pretrained(partial)
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        if processor is not None:
            processor.save_pretrained(partial)
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


WEIGHTS = r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
"""Names of a model's weights, whole or in shards, as diffusers and transformers give them."""


def model_files(kind: str, *more: str, **marks: str) -> Made:
    """What a model's folder holds.

    Args:
        kind: Text in its ``config.json`` that names its class.
        more: Regular expressions of further files.
        marks: Texts in further files, by name without the suffix ``.md``.
    """
    names = "|".join([r"config\.json", WEIGHTS, *more])
    return Made(names, {"config.json": kind} | {f"{n}.md": text for n, text in marks.items()})


ADAPTER = model_files('"FusionAdapter"', r"README\.md", README="\n# Fusion adapter for ")
"""What an adapter's folder holds."""


def own_folder(folder: Path, made: Made, name: str) -> Path:
    """Return the folder that a model will replace as a whole, after its training.

    Args:
        folder: Folder of the model.
        made: What such a folder holds.
        name: Name of the run, whose records will lie beside the folder.

    Raises:
        FusionError: The folder holds a whole pipeline or anything else that would be lost, or it
            cannot be written.
    """
    if (folder / "model_index.json").exists():
        raise FusionError(
            f"{folder} holds a whole pipeline, which the trained model would take the place of: "
            f"give a folder of its own, {folder / 'adapter'} for example."
        )
    check_folder(folder, made)
    for file, mark in RECORDS.items():
        check_writable(_record_file(folder, name, file), mark)
    return folder


RECORDS = {"loss.csv": "step,samples,seconds", "run.json": '"planned_steps"'}
"""Files of a run that are kept beside the trained model, and text in each."""


def _record_file(folder: Path, name: str, file: str) -> Path:
    """Where a file of a run is kept: ``training/NAME.csv`` beside the folder of the model."""
    return folder.resolve().parent / "training" / f"{name}{Path(file).suffix}"


def copy_record(folder: Path, run_folder: Path) -> None:
    """Copy the record of a run to ``training/`` beside the folder of the trained model."""
    for file in RECORDS:
        if (run_folder / file).is_file():  # a run of a few steps has logged nothing yet
            content = (run_folder / file).read_bytes()
            write_bytes(_record_file(folder, run_folder.name, file), content)


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
    save_model(adapter, folder, ADAPTER, run_folder, {"README.md": text})
