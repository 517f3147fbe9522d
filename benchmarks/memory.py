"""Peak memory of a training step on CUDA, by what PyTorch allocated.

Each system is built alone and makes two steps. Weights count, the peak is that of the steps. The
base model that is only loaded comes first, and the others say how much more they took.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from benchmarks.alternate import Call, Setting, say
from benchmarks.models import Models
from benchmarks.training import systems
from companion.pages.benchmark_records import Group, Row

LOADED = "base model, only loaded"
ROUNDS = 3
"""Rounds, at most: memory hardly changes."""


def run(setting: Setting) -> list[Group]:
    """Measure a training step of one picture."""

    def loaded() -> Call:
        models = Models(setting)
        parts = (models.unet, models.vae, models.text_encoder)
        return lambda: parts

    rounds = range(min(setting.repeats, ROUNDS))
    peaks = {
        name: tuple(peak(name, build) for _ in rounds)
        for name, build in ({LOADED: loaded} | systems(setting)).items()
    }
    rows = tuple(Row(name, found) for name, found in peaks.items())
    return [Group("A training step of one picture", "MB", rows, "difference")]


def peak(name: str, build: Callable[[], Call]) -> float:
    """Build one system, call it twice, and return the megabytes that it took at most."""
    say(f"memory: {name}")
    gc.collect()
    before = torch.cuda.memory_allocated()
    call = build()
    gc.collect()  # what only its building needed
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
