"""Tasks that come after one another: run in order, side by side where the order leaves it open."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from fusionlib.errors import FusionError
from fusionlib.support.files import write_text

T = TypeVar("T")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MEMORY = 3 * 2**30
"""Bytes that a notebook may need."""


def default_jobs() -> int:
    """How many notebooks to run at once: one a core, as far as memory goes; one with a GPU.

    Two processes of one thread make pictures faster than one of two. Notebooks that share one GPU
    share its memory, which one of them may need to itself.
    """
    import psutil

    if shutil.which("nvidia-smi"):
        return 1
    return max(1, min(cores(), psutil.virtual_memory().available // MEMORY))


def run_in_order(
    after: Mapping[str, Collection[str]],
    run: Callable[[str, Mapping[str, T | FusionError]], T],
    *,
    jobs: int = 1,
) -> dict[str, T | FusionError]:
    """Run every task, each when those it comes after are through. One that fails stops no other.

    Args:
        after: for each task, in the order wanted where nothing else decides, those it comes after.
        run: does the named task. It is given the outcomes of those the task comes after. With more
            than one job it runs in threads, so what takes time should be another process's work.
        jobs: how many tasks to run at once.

    Returns:
        Each task's outcome, in the order of `after`: what `run` returned, or the `FusionError` that
        it raised. Any other exception is raised at once.

    Raises:
        FusionError: if tasks come after each other in a circle.
    """
    sorter = TopologicalSorter(after)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " after ".join(error.args[1])
        raise FusionError(f"These come after each other: {circle}. Take one out.") from None

    outcomes: dict[str, T | FusionError] = {}

    def attempt(name: str) -> tuple[str, T | FusionError | BaseException]:
        try:
            return name, run(name, {other: outcomes[other] for other in after[name]})
        except BaseException as error:  # a thread's exception is the caller's matter
            return name, error

    def settle(name: str, outcome: T | FusionError | BaseException) -> None:
        if isinstance(outcome, BaseException) and not isinstance(outcome, FusionError):
            raise outcome
        outcomes[name] = outcome
        sorter.done(name)

    if jobs <= 1:  # in the main thread, where an interrupt also stops what runs
        waiting: list[str] = []
        while sorter.is_active():
            waiting = sorted([*waiting, *sorter.get_ready()], key=list(after).index)
            settle(*attempt(waiting.pop(0)))
    else:
        finished: SimpleQueue[tuple[str, T | FusionError | BaseException]] = SimpleQueue()
        # Its threads are daemons: whoever interrupts need not wait for them.
        with ThreadPool(jobs) as pool:
            while sorter.is_active():
                for name in sorted(sorter.get_ready(), key=list(after).index):
                    pool.apply_async(attempt, (name,), callback=finished.put)
                settle(*finished.get())
    return {name: outcomes[name] for name in after}


@dataclass(frozen=True)
class Stage:
    """One step of a reproduction.

    Attributes:
        name: the notebook's, or ``book``, or ``pdf``.
        digest: hash of what it was made from.
        seconds: how long it took when it was last run.
        reused: whether that was an earlier run.
    """

    name: str
    digest: str
    seconds: float
    reused: bool


def read_stamp(out: Path, name: str) -> Stage | None:
    """What was recorded when this stage last succeeded, if it did."""
    try:
        record = json.loads((out / "stamps" / f"{name}.json").read_text(encoding="utf-8"))
        return Stage(**(record | {"reused": True}))
    except (OSError, ValueError, TypeError):
        return None


def write_stamp(out: Path, stage: Stage) -> Stage:
    """Record that a stage succeeded; returns it."""
    write_text(out / "stamps" / f"{stage.name}.json", json.dumps(vars(stage)) + "\n")
    return stage
