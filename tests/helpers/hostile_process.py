"""A command in a process of its own that starts at once, since its modules are loaded already."""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fusionlib.cli
import fusionlib.pipeline
import fusionlib.training.prepare  # noqa: F401 (loaded for the processes that are forked from here)

SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it said."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def _act(
    folder: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str | None],
    prepare: Callable[..., None] | None,
    given: tuple[Any, ...],
    said: Path,
) -> None:
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{said}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a fork server ignores
    if prepare is not None:
        prepare(*given)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    fusionlib.cli.app(list(arguments), prog_name="fusionlib")


def start(
    folder: Path,
    arguments: Sequence[object],
    *,
    environment: Mapping[str, str | None] | None = None,
    prepare: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> Callable[[], Ended]:
    """Start a command in a folder; the returned function waits for its end.

    Args:
        folder: Current folder of the process.
        arguments: Command line.
        environment: Variables to set, or with None to remove.
        prepare: Function of a module that the process calls before the command.
        given: Arguments of that function.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.hostile_process"])
    said = Path(tempfile.mkdtemp(prefix="said-", dir=folder.parents[1])) / "said"
    words = [str(part) for part in arguments]
    process = context.Process(
        target=_act, args=(folder, words, environment or {}, prepare, given, said)
    )
    process.start()

    def end() -> Ended:
        process.join(SECONDS)
        assert process.exitcode is not None, "it does not end"
        texts = [Path(f"{said}.{name}") for name in ("out", "err")]
        return Ended(process.exitcode, *(text.read_text(errors="replace") for text in texts))

    return end


def at(moment: str, act: Callable[[], Any], number: int = 1) -> None:
    """Do something when a function is called for the n-th time, and then call it.

    Args:
        moment: Module and name, ``fusionlib.inputs.images:save_png``.
        act: What to do.
        number: Number of the call.
    """
    place, _, name = moment.partition(":")
    owner: Any = importlib.import_module(place)
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def signalled(moment: str, number: int, call: int = 1) -> None:
    """Send this process a signal when a function is called."""
    at(moment, lambda: os.kill(os.getpid(), number), call)


def deleted_folder() -> None:
    """Delete the current folder."""
    os.rmdir(os.getcwd())


def closed(*numbers: int) -> None:
    """Close standard streams by their numbers."""
    for number in numbers:
        os.close(number)


def broken_pipe() -> None:
    """Give standard output to a pipe that is not read any more, as under ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def full_disk() -> None:
    """Give standard output to a full disk."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def masked(mask: int) -> None:
    """Set the permissions that new files do not get."""
    os.umask(mask)
