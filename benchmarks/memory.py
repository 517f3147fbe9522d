"""Peak memory of a picture and of a training step on CUDA, by what PyTorch allocated.

Each system is built alone and does everything twice. Weights count, the peak is that of the call;
what is computed once for a person comes before it, as in `benchmarks.generation`. The base model
that is only loaded comes first, and the others say how much more they took.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from benchmarks import generation, training
from benchmarks.alternate import Call, Setting, say
from benchmarks.models import Models
from companion.pages.benchmark_records import Group, Row

LOADED = "base model, only loaded"
ROUNDS = 3
"""Rounds, at most: memory hardly changes."""


def run(setting: Setting) -> list[Group]:
    """Measure a picture with one reference, and a training step of one picture."""
    loaded = {LOADED: lambda: _loaded(Models(setting, alone=True))}
    painted = {
        name: lambda name=name: generation.build(Models(setting, alone=True))[name](1)
        for name in generation.SYSTEMS
    }
    groups = {
        "A picture with one reference": loaded | painted,
        "A training step of one picture": loaded | training.systems(setting),
    }
    return [
        Group(
            title,
            "MB",
            tuple(
                Row(name, tuple(peak(name, build) for _ in range(min(setting.repeats, ROUNDS))))
                for name, build in systems.items()
            ),
            "difference",
        )
        for title, systems in groups.items()
    ]


def _loaded(models: Models) -> Call:
    parts = (models.unet, models.vae, models.text_encoder)
    return lambda: parts


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
