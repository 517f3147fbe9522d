"""What the commands share: how they fail and warn, and options that several of them have."""

import errno
import functools
import io
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from fusionlib.errors import FusionError
from fusionlib.support.paths import user_path
from fusionlib.support.signals import Stopped, obeyed

P = ParamSpec("P")
R = TypeVar("R")


FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, or of a user's full share of it."""


def option(text: str, *names: str, shown: str | None = None, **more: Any) -> Any:
    """An option of a command.

    Args:
        text: Help, which may be wrapped over several lines.
        names: Names of the option, by default that of the parameter.
        shown: Words for the default in the help; None shows the value.
        more: Further arguments of ``typer.Option``.
    """
    default = True if shown is None else shown
    return typer.Option(*names, help=" ".join(text.split()), show_default=default, **more)


ProfileOption = Annotated[
    str,
    option(
        """Models and settings: `embedded` (small, in this repository, synthetic people), `paper`
        (published checkpoints from the hub, wants a GPU), or the path of a YAML file."""
    ),
]

DeviceOption = Annotated[str | None, option("A torch device.", shown="cuda if there, else cpu")]


def one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """Print an error that a user can put right in one sentence, and exit with 1.

    A signal ends the command and all processes that it started, and the exit code is 128 and the
    signal's number, as a shell's.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for stream in (sys.stdout, sys.stderr):  # a name may have signs that a terminal lacks
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            with obeyed():
                return command(*args, **{name: _opened(v) for name, v in kwargs.items()})
        except Stopped as stop:
            from companion.publishing.tasks import end_children

            typer.echo(str(stop), err=True)
            end_children()
            raise typer.Exit(128 + stop.number) from None
        except FusionError as error:
            typer.echo(f"Error: {one_line(str(error))}", err=True)
        except BrokenPipeError:  # typer ends without a word when its reader has gone
            raise
        except OSError as error:
            if error.filename is None and error.strerror is None:
                raise
            named = f"{error.filename}: " if error.filename is not None else ""
            kept = " What was there before is still whole." if error.errno in FULL else ""
            typer.echo(f"Error: {named}{error.strerror}.{kept}", err=True)
            _give_up_printing()
        raise typer.Exit(1)

    return wrapped


def _give_up_printing() -> None:
    """Drop what cannot be printed, or Python fails on it again, with a traceback, when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _opened(value: Any) -> Any:
    """An option's value; of paths, ``~`` and variables are opened."""
    if isinstance(value, Path):
        return user_path(value)
    return [_opened(one) for one in value] if isinstance(value, list) else value


def one_line(text: str) -> str:
    """A message without its line breaks and control characters; other signs stay."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", text.strip())
    kinds = ("Cc", "Cs")  # not Cf: emoji and right-to-left scripts are joined by such signs
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in kinds else c for c in text)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each warning to the user as one line, without its place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any) -> None:
            if category is UserWarning:
                typer.echo(f"Warning: {one_line(str(message))}", err=True)
            else:
                usual(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield
