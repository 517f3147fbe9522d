"""Peak memory of a picture and of a training step, each system in a process of its own.

On CUDA it is what PyTorch allocated, weights included; on the CPU, how far the process grew beyond
what it held once everything was imported. Measured once each: it hardly changes.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.alternate import Setting
from fusionlib.benchmarked import Group, Row, Target
from fusionlib.errors import FusionError

PAINTED = (
    "base model",
    "fused, clean cache",
    "fused, shared timestep",
    "IP-Adapter",
    "IP-Adapter-Plus",
    "ControlNet",
)
TRAINED = ("IP-Adapter", "fused, encoded in every step", "fused, latents and text cached")
CHECKPOINTED = ", checkpointing"
LIMIT = 12_000.0
"""Megabytes: a training step of one picture at SD 1.5's size is to fit a card of 12 GB."""


def run(setting: Setting) -> list[Group]:
    """Measure a picture with one reference, and a training step of one picture."""
    steps = [*TRAINED, *(name + CHECKPOINTED for name in TRAINED)]
    limit = Target("value", LIMIT) if setting.size == "full" and setting.device == "cuda" else None
    return [
        _group("A picture with one reference", "picture", PAINTED, setting, None),
        _group("A training step of one picture", "step", steps, setting, limit),
    ]


def _group(
    title: str, what: str, names: Sequence[str], setting: Setting, limit: Target | None
) -> Group:
    rows = []
    for name in names:
        target = limit if name.startswith("fused") else None
        rows.append(Row(name, (in_a_process(setting, what, name),), target=target))
    return Group(title, "MB at the peak", tuple(rows), "value")


def in_a_process(setting: Setting, what: str, name: str) -> float:
    """`peak`, in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(peak, setting, what, name).result()


def peak(setting: Setting, what: str, name: str) -> float:
    """Build one system, run it twice, and say what memory that took.

    Args:
        setting: where, and of which size.
        what: a ``picture`` or a training ``step``.
        name: of the system.

    Returns:
        Megabytes.
    """
    from benchmarks import generation, training
    from benchmarks.models import Models

    before = _held()
    if what == "picture":
        call = generation.build(Models(setting))[name](1)
    else:
        checkpointing = name.endswith(CHECKPOINTED)
        built = training.systems(setting, checkpointing=checkpointing)
        call = built[name.removesuffix(CHECKPOINTED)]()
    for _ in range(2):
        call()
    setting.synchronise()
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before


def _held() -> float:
    """Megabytes that this process holds in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError as error:
        raise FusionError("Memory on the CPU is read from /proc, which only Linux has.") from error
    return pages * resource.getpagesize() / 1e6
