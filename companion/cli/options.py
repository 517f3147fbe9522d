"""What the commands share: how they fail and warn, and options that several of them have."""

import functools
import io
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

P = ParamSpec("P")
R = TypeVar("R")


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
    """Print an error that a user can put right in one sentence, and exit with 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for stream in (sys.stdout, sys.stderr):  # a name may have signs that a terminal lacks
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return command(*args, **{name: _opened(value) for name, value in kwargs.items()})
        except FusionError as error:
            typer.echo(f"Error: {one_line(str(error))}", err=True)
            raise typer.Exit(1) from None

    return wrapped


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
