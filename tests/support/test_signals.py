"""A first signal ends a process cleanly, a second one at once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionlib.support.signals import NAMES, Stopped, deferred, obeyed, received
from fusionlib.support.workers import worker_pool

WAITS = """
import sys, time
from fusionlib.support.signals import deferred, obeyed
with obeyed(), deferred() as asked:
    print("ready", flush=True)
    while sys.argv[1] == "long" or not asked():
        time.sleep(0.05)
    print("whole", flush=True)
"""

POOL = """
import os, sys, time
from fusionlib.support.signals import obeyed
from fusionlib.support.workers import worker_pool
from tests.support.test_signals import sleep
if __name__ == "__main__":
    with obeyed(), worker_pool(2) as pool:
        for _ in range(4):
            pool.submit(sleep, sys.argv[1])
        time.sleep(600)
"""


def sleep(folder: str) -> None:
    """Work that leaves a file while it is half done."""
    file = Path(folder) / str(os.getpid())
    file.touch()
    try:
        time.sleep(600)
    finally:
        file.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_raised_and_handlers_are_put_back(name: str) -> None:
    number = getattr(signal, name)
    former = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"Stopped by {name}: ") as caught, obeyed():
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert caught.value.number == number
    assert signal.getsignal(number) == former and received() == 0


def test_a_signal_that_is_ignored_stays_so() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with obeyed():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_block_comes_to_its_end_first() -> None:
    done = []
    with pytest.raises(Stopped), deferred() as asked:
        with deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # the same one, by a launcher
        done.append(asked())
    assert done == [signal.SIGTERM] and received() == 0


@pytest.mark.parametrize("how", ["long", "short"])
def test_a_second_signal_ends_at_once(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.terminate()
    if how == "long":
        time.sleep(0.8)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
    else:
        assert "whole" in process.communicate(timeout=20)[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(POOL)
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "work"], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(workers := os.listdir(tmp_path / "work")) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert number == signal.SIGKILL or "Stopped by SIGTERM" in said
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not os.listdir(tmp_path / "work"), "nothing is left half written"


def test_a_pool_works() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(os.path.basename, "a/b").result() == "b"
    assert not multiprocessing.active_children()
