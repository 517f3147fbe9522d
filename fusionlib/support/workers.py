"""Pools of worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from fusionlib.support.signals import NAMES, PATIENCE, _State


@contextmanager
def worker_pool(
    count: int,
    prepare: Callable[[], None] | None = None,
    executor: type[ProcessPoolExecutor] = ProcessPoolExecutor,
) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes that end with the block and with this process.

    Args:
        count: Number of processes.
        prepare: Function that each process calls first.
        executor: Class of the pool.
    """
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = executor(count, mp_context=context, initializer=_begin_worker, initargs=(prepare,))
    pool.submit = partial(pool.submit, _work)  # type: ignore[call-arg, method-assign]
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - set(others):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _begin_worker(prepare: Callable[[], None] | None) -> None:
    """Leave signals to the parent, and end, with what is half written removed, when it asks."""
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        _State.number = number
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_follow_parent, daemon=True).start()
    if prepare:
        prepare()


def _work(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function, unless the worker is to end and has only not seen the end of its queue."""
    if _State.number:
        raise SystemExit(128 + _State.number)
    return function(*args, **kwargs)


def _follow_parent() -> None:
    """End this process when its parent has died without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)
