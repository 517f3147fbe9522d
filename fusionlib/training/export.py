"""Finished models: float16 safetensors in place, with the record of how they were trained."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def save_model(model: Any, folder: Path, run_folder: Path | None = None) -> None:
    """Write a diffusers or transformers model in float16, atomically.

    Args:
        model: anything with ``save_pretrained``; it stays in its own dtype.
        folder: replaced as a whole.
        run_folder: its ``loss.csv`` and ``run.json`` are copied to ``training/`` beside the model,
            under the model's name, for the model card.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # torch's own cast: diffusers' warns about layers to keep in float32, of which there are none.
    half = nn.Module.to(copy.deepcopy(model), torch.float16)
    half = half.to(memory_format=torch.contiguous_format)
    half.save_pretrained(partial)
    if isinstance(model, PreTrainedModel):
        # transformers loads in the dtype that the configuration names; diffusers loads in float32.
        model.config.dtype = torch.float32
        model.config.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    if run_folder is not None:
        record = folder.parent / "training"
        record.mkdir(exist_ok=True)
        for suffix, file in ((".csv", "loss.csv"), (".json", "run.json")):
            shutil.copyfile(run_folder / file, record / f"{run_folder.name}{suffix}")
