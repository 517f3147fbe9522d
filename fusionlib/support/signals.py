"""One clean end for every signal by which a terminal or a scheduler stops a process.

A first signal raises `Stopped` in the main thread, or waits until work is whole (`deferred`). A
second one ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals of terminals, Slurm, Kubernetes, PBS and Grid Engine that announce the end of a job."""

SAME = 0.5
"""Seconds in which a further signal is the same one, which came by a second way: a process group
receives Ctrl-C, and its launcher forwards it."""

PATIENCE = 10.0
"""Seconds that a child process has to end by itself."""


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to end.

    Args:
        number: Number of the signal.
        said: What was kept, and how to go on.
    """

    def __init__(self, number: int, said: str = "the same command goes on from there") -> None:
        super().__init__(f"Stopped by {signal.Signals(number).name}: {said}.")
        self.number = number


class _State:
    """The first signal and its time, and how many blocks want to end before it is obeyed."""

    number = 0
    time = 0.0
    deferring = 0


def received() -> int:
    """Number of the signal that is being obeyed, 0 while there is none."""
    return _State.number


def _obey(number: int, frame: Any) -> None:
    now = time.monotonic()
    if _State.number:
        if now - _State.time > SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _State.number, _State.time = number, now
    if not _State.deferring:
        raise Stopped(number)


@contextmanager
def obeyed() -> Iterator[None]:
    """Raise `Stopped` for signals that would have ended this process, while the block runs.

    Signals that are ignored, as under ``nohup``, and those with a handler of somebody else's stay
    as they are. Outside the main thread nothing is changed, since Python allows it there only.
    """
    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                former[number] = signal.signal(number, _obey)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if former:
            _State.number = 0


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Finish the block before a signal is obeyed: `Stopped` is raised at its end.

    It yields a function that returns the number of the signal that waits, or 0, so that the block
    can come to its end sooner.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    with obeyed():
        _State.deferring += 1
        try:
            yield received
        finally:
            _State.deferring -= 1
        if _State.number and not _State.deferring:
            raise Stopped(_State.number)
