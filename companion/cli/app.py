"""The command line: ``fusionlib generate | study | evaluate | reproduce | train | people | ...``.

Help and complaints must come at once. So every heavy import is inside its command, and the modules
of commands do without ``from __future__ import annotations``: of annotations that are text, typer
would have to compile each one, twice.
"""

from typing import Annotated

import typer

from companion.cli import data, generate, publish, study, train
from fusionlib import __version__

app = typer.Typer(
    name="fusionlib",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(study.evaluate)
app.command()(generate.generate)
app.command()(publish.reproduce)
app.command()(publish.book)
app.command()(publish.notebooks)
app.command()(train.train)
app.add_typer(data.people_app, name="people")
app.add_typer(study.app, name="study")
app.add_typer(data.data_app, name="data")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fusion Is All You Need, reproduced: pictures of a person, from one face picture and a prompt.

    The method adds, to each cross-attention of a Stable Diffusion model, keys and values read from
    a reference picture's own pass through the same model.
    """
