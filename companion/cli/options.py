"""What the commands share: how they fail and warn, and options that several of them have."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from fusionlib.errors import FusionError

P = ParamSpec("P")
R = TypeVar("R")

ProfileOption = Annotated[
    str,
    typer.Option(
        help="Models and settings: `embedded` (small, in this repository, synthetic people), "
        "`paper` (published checkpoints from the hub, wants a GPU), or the path of a YAML file."
    ),
]

DeviceOption = Annotated[
    str | None, typer.Option(help="A torch device.", show_default="cuda if there, else cpu")
]


def one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """Print an error that a user can put right in one sentence, and exit with 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except FusionError as error:
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None

    return wrapped


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each warning to the user as one line, without its place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any) -> None:
            if category is UserWarning:
                typer.echo(f"Warning: {' '.join(str(message).split())}", err=True)
            else:
                usual(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield
