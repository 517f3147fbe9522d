"""``fusionlib reproduce``, ``book`` and ``notebooks``: run the notebooks and build the book."""

from pathlib import Path
from typing import Annotated, Any

import typer

from companion.cli.options import ProfileOption, one_sentence, option
from fusionlib.errors import FusionError


@one_sentence
def reproduce(
    profile: ProfileOption = "embedded",
    out: Annotated[Path, option("Folder for everything that is built.")] = Path("build"),
    only: Annotated[
        list[str] | None,
        option(
            """Run this notebook only, and build no book: a name such as `fig3_references`, or
            its beginning. May be given several times.""",
            shown="all",
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        option(
            """Value (YAML) for every notebook that declares the parameter, for example
            `num_people=8`. May be given several times.""",
            "--parameter",
            "-p",
            metavar="KEY=VALUE",
            shown="the profile's",
        ),
    ] = None,
    book: Annotated[
        bool | None,
        option(
            "Build the book from what there is.", "--book/--no-book", shown="unless --only is given"
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        option(
            "Notebooks to run at once.", shown="one a core, as far as memory goes; 1 with a GPU"
        ),
    ] = None,
    force: Annotated[
        bool, option("Run everything, whether or not anything changed.", "--force")
    ] = False,
    dry_run: Annotated[
        bool,
        option(
            """Run nothing: say what would be run with which parameters, and whether models,
            judges and people are there. Downloads DeepFace's weights.""",
            "--dry-run",
        ),
    ] = False,
) -> None:
    """Run every notebook and build the book from the results.

    A notebook is run again only if something changed that its results depend on. Its figures and
    tables are exported as PNG, PDF, CSV and LaTeX. One that fails stops no other. Those that the
    profile has no use for are left out, and the book goes without them.
    """
    from companion.publishing.reproduce import reproduce as run

    run(
        profile,
        out=out,
        only=only or [],
        parameters=_key_values(parameter or []),
        book=book,
        jobs=jobs,
        force=force,
        dry_run=dry_run,
    )


@one_sentence
def book(
    out: Annotated[Path, option("Folder of the executed notebooks.")] = Path("build"),
    pdf: Annotated[bool, option("One PDF instead of pages; Chromium prints it.", "--pdf")] = False,
    profile: ProfileOption = "embedded",
) -> None:
    """Build the book again from the notebooks as they were last executed under the profile."""
    from companion.publishing.book import build_book, build_pdf
    from fusionlib.profiles import load_profile

    left_out = load_profile(profile).left_out
    if pdf:
        build_pdf(out, left_out=left_out)
    else:
        build_book(out, left_out=left_out)


@one_sentence
def notebooks(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of notebooks, such as `fig3_references`, or their beginnings.",
            show_default="all",
        ),
    ] = None,
    out: Annotated[Path, option("Folder for what is left of a notebook that fails.")] = Path(
        "build"
    ),
) -> None:
    """Run notebooks at their own small size and store their outputs in them, for readers online.

    `make test` compares the stored outputs of the cells that are tagged `nbval-check-output` with
    those of its own run. A notebook that fails stops no other and is left as it was.
    """
    from companion.publishing.stored_outputs import store_outputs

    store_outputs(names or [], out=out)


def _key_values(given: list[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE``, the value being YAML."""
    import yaml

    values = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key.isidentifier() or not equals:
            raise FusionError(f"-p wants KEY=VALUE, for example num_people=8, not {text!r}.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise FusionError(f"The value of -p {text!r} is no YAML: {error}.") from error
    return values
