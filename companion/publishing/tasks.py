"""Tasks of a reproduction: how many run at once, in which order, and when each last succeeded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from threading import Thread
from typing import TypeVar

from fusionlib.errors import FusionError
from fusionlib.support.files import write_text
from fusionlib.support.signals import PATIENCE, Stopped

T = TypeVar("T")

NOTEBOOK_MEMORY = 3 * 2**30
"""Bytes of memory that a notebook may need."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs() -> int:
    """How many notebooks to run at once: one per core, as far as memory allows; one with a GPU.

    Two processes of one thread make pictures faster than one of two threads. Notebooks that share a
    GPU share its memory, all of which one of them may need.
    """
    import psutil

    if shutil.which("nvidia-smi"):
        return 1
    return max(1, min(cores(), psutil.virtual_memory().available // NOTEBOOK_MEMORY))


def end_children() -> None:
    """Ask all processes that this one started to end, and end those that do not in time."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                ask(child)
        _, children = psutil.wait_procs(children, timeout=PATIENCE)


def run_in_order(
    after: Mapping[str, Collection[str]],
    run: Callable[[str, Mapping[str, T | FusionError]], T],
    *,
    jobs: int = 1,
) -> dict[str, T | FusionError]:
    """Run every task once those it comes after have ended. One that fails stops no other.

    Args:
        after: For each task, those it comes after; where nothing else decides, tasks start in the
            order of this mapping.
        run: Function that runs the named task. It is given the outcomes of the tasks that this one
            comes after. It runs in a thread, so the work should be done by another process.
        jobs: How many tasks to run at once.

    Returns:
        Each task's outcome, in the order of `after`: what `run` returned, or the `FusionError` that
        it raised. Any other exception is raised at once.

    Raises:
        FusionError: Tasks come after each other in a circle.
    """
    sorter = TopologicalSorter(after)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " after ".join(error.args[1])
        raise FusionError(f"These come after each other: {circle}. Take one out.") from None

    outcomes: dict[str, T | FusionError] = {}
    threads: list[Thread] = []

    def start(name: str) -> Future[T]:
        future: Future[T] = Future()
        before = {other: outcomes[other] for other in after[name]}

        def attempt() -> None:
            try:
                future.set_result(run(name, before))
            except BaseException as error:  # raised again where the result is read
                future.set_exception(error)

        # Signals come to the main thread, which therefore only waits. A daemon, so that nothing
        # waits for a task that does not end.
        threads.append(Thread(target=attempt, daemon=True))
        threads[-1].start()
        return future

    ready: list[str] = []
    running: dict[Future[T], str] = {}
    try:
        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=list(after).index)
            while ready and len(running) < max(jobs, 1):
                name = ready.pop(0)
                running[start(name)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                try:
                    outcomes[name] = future.result()
                except FusionError as error:
                    outcomes[name] = error
                sorter.done(name)
    except Stopped:
        end_children()
        for thread in threads:  # which find their kernels gone, and clear away what is unfinished
            thread.join(PATIENCE)
        raise
    return {name: outcomes[name] for name in after}


@dataclass(frozen=True)
class Stage:
    """One step of a reproduction.

    Attributes:
        name: Name of the notebook, or ``book``, or ``pdf``.
        digest: Hash of what it was made from.
        seconds: Seconds that it took when it last ran.
        reused: Whether that was an earlier run.
    """

    name: str
    digest: str
    seconds: float
    reused: bool


def read_stamp(out: Path, name: str) -> Stage | None:
    """The record of a stage's last success, None where there is none."""
    try:
        record = json.loads((out / "stamps" / f"{name}.json").read_text(encoding="utf-8"))
        return Stage(**(record | {"reused": True}))
    except (OSError, ValueError, TypeError):
        return None


def write_stamp(out: Path, stage: Stage) -> Stage:
    """Record that a stage succeeded, and return it."""
    write_text(out / "stamps" / f"{stage.name}.json", json.dumps(vars(stage)) + "\n")
    return stage
