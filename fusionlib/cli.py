"""The command line: ``fusionlib generate | evaluate | reproduce | train | people``.

Every heavy import stands inside its command, so that help and complaints come at once.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from fusionlib import __version__
from fusionlib.errors import FusionError

EMBEDDED_NOTE = (
    "The embedded model was trained on rendered, synthetic people only: it knows nothing of "
    "photographs. For those, give --base-model and --adapter (see fusionlib generate --help)."
)

app = typer.Typer(
    name="fusionlib",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
people_app = typer.Typer(no_args_is_help=True, help="Synthetic people: render a data set of faces.")
app.add_typer(people_app, name="people")

P = ParamSpec("P")
R = TypeVar("R")


def _one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """Print what a user can put right as one sentence, without a traceback, and exit with 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except FusionError as error:
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None

    return wrapped


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


ProfileOption = Annotated[
    str,
    typer.Option(
        help="Models and settings: `embedded` (small, in this repository, synthetic people), "
        "`paper` (published checkpoints from the hub, wants a GPU), or the path of a YAML file."
    ),
]


@app.command()
@_one_sentence
def generate(
    prompt: Annotated[str, typer.Option(help="What to paint, as text.")],
    out: Annotated[Path, typer.Option(help="The PNG to write; folders are made as needed.")],
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture of the face to keep, any image file, cropped to a square about its "
            "centre. Repeat it for several pictures of one person, or to blend people. Without "
            "any, the base model paints from the prompt alone."
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="Weight of the reference's face in the attention: 0 leaves it out, 1 is the "
            "paper's method. One for all references, or repeat it, one for each.",
            show_default="1.0",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Names the noise: same seed, same picture.")] = 0,
    negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How strongly to follow prompt and face.", show_default="the profile's"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps.", show_default="the profile's")
    ] = None,
    profile: ProfileOption = "embedded",
    base_model: Annotated[
        str | None,
        typer.Option(
            help="A Stable Diffusion checkpoint in place of the profile's: a folder in diffusers' "
            "layout, or a hub id (owner/name).",
            show_default="the profile's",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A fusion adapter trained for that checkpoint (`fusionlib train adapter`): a "
            "folder or a hub id.",
            show_default="the checkpoint's own, or the profile's",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A torch device.", show_default="cuda if there, else cpu")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    r"""Paint a picture of the person in a reference picture.

    The embedded model, which is the default, is small (128 pixels) and was trained on **synthetic,
    rendered people only**. It runs anywhere, and it shows how the method works; it will not paint
    you from a photograph. For that, name a real checkpoint and an adapter trained for it:

        fusionlib generate --reference me.jpg --out astronaut.png \
            --prompt "an astronaut in a garden" --adapter my-adapter \
            --base-model SG161222/Realistic_Vision_V4.0_noVAE

    The PNG records how it was made (prompt, seed, hashes of references and weights, settings,
    versions) in a text chunk named `fusionlib`. The same command writes the same bytes again.
    To try it with one of the synthetic people that the model never saw:

        fusionlib generate --reference data/heldout/0000_0.jpg \
            --prompt "a photo of a laughing person" --out image.png
    """
    if not prompt.strip():
        raise FusionError("The prompt is empty: say with --prompt what to paint.")
    if not 0 <= seed < 2**63:
        raise FusionError(f"The seed {seed} is not a number from 0 to 2^63 - 1.")
    strengths = _strengths(strength, len(reference or []))
    if guidance_scale is not None and not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise FusionError(f"The guidance scale {guidance_scale} must be a number of 0 or more.")
    if steps is not None and not 1 <= steps <= 1000:
        raise FusionError(f"The number of steps must be from 1 to 1000, not {steps}.")

    from fusionlib.images import load_image, prepare_output, save_png

    faces = [load_image(path) for path in reference or []]

    from fusionlib.loading import check_model, load_pipeline
    from fusionlib.profiles import load_profile

    settings = load_profile(profile)
    check_model(base_model or settings.base_model, file="model_index.json", what="base model")
    if adapter is not None:
        check_model(adapter, file="config.json", what="adapter")
    prepare_output(out)

    from fusionlib.manifest import git_commit, sha256_file
    from fusionlib.methods.fusion import fused

    pipeline = load_pipeline(
        settings, base_model=base_model, adapter=adapter, device=device, dtype=dtype
    )
    method = fused(
        pipeline,
        strengths=strengths,
        num_inference_steps=steps or settings.num_inference_steps,
        guidance_scale=settings.guidance_scale if guidance_scale is None else guidance_scale,
        negative_prompt=negative_prompt or None,
    )
    started = time.perf_counter()
    (image,) = method.generate([faces], [prompt], [seed])
    seconds = time.perf_counter() - started
    record = {
        "prompt": prompt,
        "seed": seed,
        "references": [
            {"file": path.name, "sha256": sha256_file(path)} for path in reference or []
        ],
        "profile": settings.name,
        "base_model": base_model,
        "adapter": adapter,
        "dtype": dtype,
        "fusionlib": __version__,
        "commit": git_commit(),
        **method.settings,
    }
    save_png(image, out, record)
    typer.echo(f"{out}: {image.width}x{image.height} pixels, seed {seed}, {seconds:.1f} s")
    if faces and profile == "embedded" and base_model is None:
        typer.echo(EMBEDDED_NOTE, err=True)


def _strengths(given: Sequence[float] | None, references: int) -> list[float]:
    """One strength for each reference, checked."""
    strengths = list(given or [1.0])
    for strength in strengths:
        if not (math.isfinite(strength) and strength >= 0):
            raise FusionError(f"The strength {strength} must be a number of 0 or more.")
    if given and not references:
        raise FusionError("A --strength needs a --reference whose strength it is.")
    if len(strengths) == 1:
        return strengths * references
    if len(strengths) != references:
        raise FusionError(
            f"There are {len(strengths)} strengths for {references} references: give one for all, "
            "or one for each."
        )
    return strengths


@app.command()
@_one_sentence
def evaluate(
    study: Annotated[Path, typer.Argument(help="A finished study: the folder STORE/studies/NAME.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The method that the others are compared with.", show_default="the first"
        ),
    ] = None,
    recogniser: Annotated[
        str, typer.Option(help="A face recognition model of DeepFace, by its name there.")
    ] = "Dlib",
    detector: Annotated[str, typer.Option(help="A face detector of DeepFace.")] = "dlib",
) -> None:
    """Print the identity table of a study: how far its pictures are from whom they should show.

    Distances are cosine distances between face embeddings, and R says where they lie between
    another person (0) and another picture of the same person (1). Each comes with the 95% interval
    over people. Pictures without a face are counted, never scored.
    """
    from fusionlib.study import read_study

    index, people = read_study(study)
    methods = list(index["method"].unique())
    baseline = baseline or methods[0]
    if baseline not in methods:
        raise FusionError(f"The study has no method {baseline!r}: it has {', '.join(methods)}.")

    from rich.console import Console
    from rich.table import Table

    from fusionlib.evaluation.comparison import (
        identity_table,
        measure_identity,
        paired_difference,
    )

    scores = measure_identity(index, people, recogniser=recogniser, detector=detector)
    table = Table(title=f"{study.name}: {len(people)} people, {recogniser} ({detector} detector)")
    for column in ("", "cosine distance", "recovery R", "faces found"):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for name, row in identity_table(scores).iterrows():
        scale = row["images"] is None or row["images"] != row["images"]
        table.add_row(
            str(name).replace("another picture of the ", ""),
            str(row["distance"]),
            f"{row['recovery'].estimate:.0f}" if scale else str(row["recovery"]),
            "" if scale else f"{row['found']:.0f} of {row['images']:.0f}",
        )
    console = Console()
    console.print(table)
    for method in methods:
        if method != baseline:
            difference = paired_difference(scores, method, baseline)
            console.print(
                f"{method} is nearer than {baseline} by {difference.interval} "
                f"({difference.pairs} of {difference.cells} pairs of pictures, "
                f"{difference.people} people): {difference.verdict}",
                markup=False,
                highlight=False,
            )


@app.command()
@_one_sentence
def reproduce(
    profile: ProfileOption = "embedded",
    out: Annotated[Path, typer.Option(help="Folder for everything that is built.")] = Path("build"),
    force: Annotated[
        bool, typer.Option("--force", help="Run everything, whether or not anything changed.")
    ] = False,
) -> None:
    """Run every notebook and build the book from the results.

    A notebook is run again only if something changed that its results depend on.
    """
    from fusionlib.reproduce import reproduce as run

    run(profile, out=out, force=force)


class Model(StrEnum):
    """What `fusionlib train` trains."""

    vae = "vae"
    clip = "clip"
    base = "base"
    adapter = "adapter"


@app.command()
@_one_sentence
def train(
    model: Annotated[
        Model,
        typer.Argument(
            help="`vae`, `clip` and `base` make a checkpoint from scratch, in this order; "
            "`adapter` trains the method on top of a frozen checkpoint."
        ),
    ],
    profile: ProfileOption = "embedded",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint.", show_default="the profile's")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after this time, with a checkpoint.", show_default="no limit"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps.", show_default="the profile's")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on from the last checkpoint if there is one."),
    ] = True,
    start_from: Annotated[
        Path | None,
        typer.Option(
            help="Begin with trained weights: the folder of a checkpoint or, for `adapter`, of an "
            "adapter. With `vae`, only the decoder is trained on.",
            show_default="random weights",
        ),
    ] = None,
) -> None:
    """Train one of the models of a profile. A run that was stopped or killed goes on.

    The embedded profile's models are trained on rendered people, made by
    `fusionlib people render`.
    """
    if minutes is not None and not minutes > 0:
        raise FusionError(f"The time limit must be more than 0 minutes, not {minutes}.")
    if steps is not None and steps < 1:
        raise FusionError(f"The number of steps must be 1 or more, not {steps}.")
    from importlib import import_module

    from fusionlib.profiles import load_profile

    settings = load_profile(profile)
    module: Any = import_module(f"fusionlib.training.{model.value}")
    module.train(settings, out, minutes=minutes, steps=steps, resume=resume, start_from=start_from)


@people_app.command()
@_one_sentence
def render(
    out: Annotated[Path, typer.Argument(help="Folder to write, made as needed.")],
    people: Annotated[int, typer.Option(help="How many people.")] = 2000,
    views: Annotated[int, typer.Option(help="Pictures of each person.")] = 4,
    seed: Annotated[int, typer.Option(help="Names the whole data set.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures, pixels.")] = 128,
    first_person: Annotated[
        int,
        typer.Option(help="Number of the first person; sets that share nobody do not overlap."),
    ] = 0,
    workers: Annotated[int, typer.Option(help="Processes, when writing shards.")] = 2,
    split: Annotated[str, typer.Option(help="A name that goes into the records.")] = "train",
    files: Annotated[
        bool,
        typer.Option("--files", help="Write plain files and an index.csv, for small sets."),
    ] = False,
) -> None:
    """Render people who do not exist, from many sides, with captions and face masks.

    Writes webdataset shards (`00000.tar`, ...) that `fusionlib train` reads. The pictures depend on
    the seed alone, not on the number of workers. A run that was stopped goes on. Needs the extra
    packages of `pip install "fusionlib[people]"`.
    """
    from fusionlib.people.dataset import export_files, render_dataset

    numbers = {"people": people, "views": views, "seed": seed, "size": size}
    if files:
        export_files(out, **numbers, first_person=first_person, split=split)
    else:
        render_dataset(out, **numbers, first_person=first_person, workers=workers, split=split)


if __name__ == "__main__":
    sys.exit(app())
