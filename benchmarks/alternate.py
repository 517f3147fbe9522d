"""The one way of measuring: several calls in turn, in one process, on a machine that is described.

Each round makes all of the calls, forwards and then backwards, so that whatever else the machine
does, and whatever a call leaves behind for the next, falls on all alike. Medians, ratios and their
intervals follow from the rounds (`companion.pages.benchmark_records.Group`).
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.counting import count_operations, profile_call
from companion.pages.benchmark_records import Group, Of, Row
from companion.pages.benchmark_targets import Wanted
from companion.publishing.tasks import cores
from fusionlib.profiles import ROOT
from fusionlib.support.provenance import processor

Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What a benchmark is asked to measure."""

    size: str = "embedded"  # or tiny, or full: Stable Diffusion 1.5 at 512 x 512
    device: str = "cpu"
    dtype: str = "float32"
    repeats: int = 7  # rounds
    reproduced: Path = ROOT / "build"  # where `fusionlib reproduce` recorded its last run
    profiled: tuple[Wanted, ...] = ()  # targets whose rows and baselines are profiled, too

    @property
    def place(self) -> dict[str, Any]:
        """Device and type as tensors and modules take them."""
        return {"device": self.device, "dtype": getattr(torch, self.dtype)}

    def synchronise(self) -> None:
        """Wait until the device has done all of its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def alternate(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    warm_up: int = 1,
    synchronise: Call = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Time calls in turn: the seconds of each, one for each round.

    A round makes every call once, every second one in reverse order. Rounds that warm up are not
    timed: they allocate, compile and choose kernels. `synchronise` waits until a call's work is
    done, where it goes on after the call returned.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warm_up, rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            synchronise()
            started = clock()
            calls[name]()
            synchronise()
            if number >= 0:
                seconds[name].append(clock() - started)
    return {name: tuple(found) for name, found in seconds.items()}


def compare(
    title: str,
    calls: Mapping[str, Call],
    setting: Setting,
    *,
    count: bool = False,
    shows: Of = "ratio",
    per: float = 1.0,
    unit: str = "s",
    note: str = "",
) -> Group:
    """Time calls in turn and make a group of them; the others are compared with the first.

    With `count`, each call's floating-point operations are counted in a further call. The seconds
    are divided by `per`: 0.001 gives milliseconds.
    """
    say(title)
    operations = {name: count_operations(call) for name, call in calls.items()} if count else {}
    seconds = alternate(calls, setting.repeats, synchronise=setting.synchronise)
    rows = tuple(
        Row(name, tuple(s / per for s in found), operations.get(name))
        for name, found in seconds.items()
    )
    return _profiled(Group(title, unit, rows, shows, note), calls, setting)


def _profiled(group: Group, calls: Mapping[str, Call], setting: Setting) -> Group:
    """Add a profile of the rows that have a target, and of their baselines."""
    names = set[str]()
    for wanted in setting.profiled:
        if place := wanted.find([group]):
            names |= {place[1].name, group.baseline(wanted.target).name}

    def seen(row: Row) -> Row:
        longest, kernels = profile_call(calls[row.name], setting.device)
        return replace(row, longest=longest, kernels=kernels)

    return replace(group, rows=tuple(seen(r) if r.name in names else r for r in group.rows))


def say(text: str) -> None:
    """Print what is being measured."""
    print(f"  {text}", file=sys.stderr, flush=True)


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, load of the last minute, versions, and the GPU if it is used."""
    machine: dict[str, Any] = {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        machine |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
        }
    return machine
