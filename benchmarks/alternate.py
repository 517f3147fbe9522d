"""The one way of measuring: several calls in turn, in one process, on a machine that is described.

Each round calls all of them, forwards and then backwards, so that whatever else the machine does,
and whatever a call leaves behind for the next, falls on all alike. Medians, ratios and their
intervals follow from the rounds (`companion.pages.benchmark_records.Group`).
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from companion.pages.benchmark_records import Group, Of, Row
from companion.pages.benchmark_tables import Wanted
from companion.publishing.tasks import cores
from fusionlib.profiles import ROOT
from fusionlib.support.provenance import processor

Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What a benchmark is asked to measure.

    Attributes:
        size: ``tiny``, ``embedded`` or ``full`` (Stable Diffusion 1.5 at 512 x 512).
        device: ``cpu`` or ``cuda``.
        dtype: of the models.
        repeats: rounds.
        reproduced: folder in which `fusionlib reproduce` recorded its last run.
        profiled: the targets whose rows, and what these are compared with, are profiled, too.
    """

    size: str = "embedded"
    device: str = "cpu"
    dtype: str = "float32"
    repeats: int = 7
    reproduced: Path = ROOT / "build"
    profiled: tuple[Wanted, ...] = ()

    @property
    def place(self) -> dict[str, Any]:
        """Device and type as tensors and modules take them."""
        return {"device": self.device, "dtype": getattr(torch, self.dtype)}

    @property
    def counts(self) -> bool:
        """Whether operations of whole pictures and steps are counted where they are timed.

        Counting slows a call down tenfold: at full size ``floor`` has done it once and for all.
        """
        return self.size != "full"

    def synchronise(self) -> None:
        """Wait until the device has done what it was told."""
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
    """Time calls in turn.

    Args:
        calls: what to time, by name.
        rounds: in each, every call is made once; in every second one in reverse order.
        warm_up: rounds before, which are not timed: they allocate, compile and choose kernels.
        synchronise: waits until a call's work is done, where it goes on after the call returned.
        clock: seconds.

    Returns:
        The seconds of each call, one for each round.
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
    uncounted: Collection[str] = (),
    warm_up: int = 1,
    shows: Of = "ratio",
    per: float = 1.0,
    unit: str = "s",
    note: str = "",
) -> Group:
    """Time calls in turn and make a group of them, the first being what others are compared with.

    Args:
        title: of the group.
        calls: what to time, by name.
        setting: how often, and on which device.
        count: whether to count each call's floating-point operations, too, in a further call.
        uncounted: calls that cannot be counted, by name.
        warm_up: rounds before, which are not timed.
        shows: the number that matters.
        per: what the seconds are divided by: 0.001 gives milliseconds.
        unit: of the values then.
        note: how it was measured.
    """
    from benchmarks.operations import count_operations

    say(title)
    operations = {
        name: count_operations(call) if count and name not in uncounted else None
        for name, call in calls.items()
    }
    seconds = alternate(calls, setting.repeats, warm_up=warm_up, synchronise=setting.synchronise)
    rows = tuple(
        Row(name, tuple(s / per for s in found), operations[name])
        for name, found in seconds.items()
    )
    return _profiled(Group(title, unit, rows, shows, note), calls, setting)


def _profiled(group: Group, calls: Mapping[str, Call], setting: Setting) -> Group:
    """With the longest operators of the rows that targets are about, and of their baselines."""
    from benchmarks.longest import longest_operators

    names: set[str] = set()
    for wanted in setting.profiled:
        if place := wanted.find([group]):
            names |= {place[1].name, group.baseline(wanted.target).name}
    rows = (
        replace(row, longest=longest_operators(calls[row.name], setting.device))
        if row.name in names
        else row
        for row in group.rows
    )
    return replace(group, rows=tuple(rows))


def say(text: str) -> None:
    """Tell whoever waits what is being measured."""
    print(f"  {text}", file=sys.stderr, flush=True)


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, versions, the GPU if it is used, and how busy the machine is.

    Returns:
        ``cpu``, ``cores``, ``threads``, ``load`` (over the last minute), ``torch``, ``python``, and
        for CUDA ``gpu``, ``cuda`` and ``memory_gb``.
    """
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
