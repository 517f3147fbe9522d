"""``fusionlib people`` and ``fusionlib data``: synthetic people, and photographs to train on."""

import math
from pathlib import Path
from typing import Annotated

import typer

from companion.cli.options import ProfileOption, one_sentence, option
from fusionlib.errors import FusionError

LARGEST = 8192
"""Largest side of a picture that is rendered or cut out, in pixels."""

people_app = typer.Typer(no_args_is_help=True, help="Synthetic people: render a data set of faces.")
data_app = typer.Typer(no_args_is_help=True, help="Photographs to train on: select and count them.")


@people_app.command()
@one_sentence
def render(
    out: Annotated[Path, typer.Argument(help="Folder to write, made as needed.")],
    people: Annotated[int, option("How many people.")] = 2000,
    views: Annotated[int, option("Pictures of each person.")] = 4,
    seed: Annotated[int, option("Seed of the whole data set.")] = 0,
    size: Annotated[int, option("Side of the pictures, pixels.")] = 128,
    first_person: Annotated[
        int,
        option("Number of the first person; sets of other numbers show other people."),
    ] = 0,
    workers: Annotated[int, option("Processes, when writing shards.")] = 2,
    split: Annotated[str, option("A name that goes into the records.")] = "train",
    files: Annotated[
        bool,
        option("Write plain files and an index.csv, for small sets.", "--files"),
    ] = False,
    groups: Annotated[
        int,
        option(
            """Pictures of two or three of these people beside those of one; with `--files`,
            instead of them."""
        ),
    ] = 0,
) -> None:
    """Render people who do not exist, from many sides, with captions, face masks and depth maps.

    Writes webdataset shards (`00000.tar`, ...) that `fusionlib train` reads. The pictures depend on
    the seed alone, not on the number of workers. A run that was stopped goes on, and a set is made
    larger by the same command with more `--people`. Needs the extra packages of
    `pip install "fusionlib[people]"`.
    """
    if min(seed, first_person) < 0:
        raise FusionError("--seed and --first-person must be 0 or more.")
    if not 16 <= size <= LARGEST:
        raise FusionError(f"The size must be from 16 to {LARGEST} pixels, not {size}.")
    from companion.people.dataset import export_files, export_groups, render_dataset

    numbers = {"people": people, "seed": seed, "size": size, "first_person": first_person}
    if files and groups:
        export_groups(out, **numbers, groups=groups, split=split)
    elif files:
        export_files(out, **numbers, views=views, split=split)
    else:
        render_dataset(out, **numbers, views=views, workers=workers, split=split, groups=groups)


@data_app.command()
@one_sentence
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="What img2dataset downloaded: a folder of webdataset shards, a pattern such as "
            "`raw/{00000..00031}.tar`, or a folder of pictures with a text file each."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the new shards, made as needed.")],
    pairs: Annotated[
        int | None,
        option("Stop after the shard with which this many are kept.", shown="all"),
    ] = None,
    max_faces: Annotated[int, option("Drop pictures of more people.")] = 1,
    min_face: Annotated[int, option("Smallest side of the face, pixels.")] = 128,
    min_side: Annotated[int, option("Smallest side of the picture, pixels.")] = 400,
    min_score: Annotated[float, option("Smallest confidence of the detector.")] = 0.5,
    workers: Annotated[int, option("Processes.")] = 2,
) -> None:
    """Keep the pictures that show one clear face, and record where it is.

    Writes webdataset shards that `fusionlib train adapter` reads with `crop: face`. The pictures
    are copied as they are. A run that was stopped goes on.
    """
    if min(max_faces, workers, 1 if pairs is None else pairs) < 1:
        raise FusionError("--max-faces, --workers and --pairs must be 1 or more.")
    if min(min_face, min_side) < 0 or not math.isfinite(min_score):
        raise FusionError("--min-face, --min-side and --min-score must be numbers of 0 or more.")
    from fusionlib.training.prepare import Selection, prepare_shards

    selection = Selection(max_faces, min_face, min_side, min_score)
    counts = prepare_shards(source, out, pairs=pairs, selection=selection, workers=workers)
    for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        typer.echo(f"{count:>10,}  {reason}")


@data_app.command()
@one_sentence
def people(
    source: Annotated[Path, typer.Argument(help="A folder of pictures for each person.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    size: Annotated[int, option("Side of the pictures, pixels.")] = 512,
) -> None:
    """Turn photographs of people who agreed into the held-out people of a profile (`heldout:`).

        FOLDER/ada/1.jpg   the reference: the first by name, from the front, in even light
        FOLDER/ada/2.jpg   another picture of her, to measure by
        FOLDER/bob/...

    Each face is found, turned level and cropped. Pictures of no face or of several are left out and
    named. The folder gets an index.csv with the columns person, view, file and style.
    """
    if not 64 <= size <= LARGEST:
        raise FusionError(f"The size must be from 64 to {LARGEST} pixels, not {size}.")
    from companion.person import frame_people, passed_over
    from fusionlib.support.paths import summary

    others = passed_over(source)
    counts, problems = frame_people(source, out, size)
    if others:
        typer.echo(f"Ignored: {len(others)} file(s): {summary(others)}.", err=True)
    for problem in problems:
        typer.echo(f"Left out: {problem}", err=True)
    for pictures, who in sorted(counts.items()):
        typer.echo(f"{who:>6,}  people with {pictures} photographs")


@data_app.command()
@one_sentence
def statistics(
    shards: Annotated[
        str, typer.Argument(help="A folder of shards or of plain files, or a pattern of shards.")
    ],
) -> None:
    """Count what a training set holds: samples, people, captions, faces and their sizes."""
    from fusionlib.training.prepare import statistics as count

    for name, value in count(shards).items():
        typer.echo(f"{name:<40}{value}")


@data_app.command()
@one_sentence
def embed(
    shards: Annotated[Path, typer.Argument(help="Rendered people, of `fusionlib people render`.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    profile: ProfileOption = "embedded",
) -> None:
    """Keep what the profile's CLIP model sees in a training set, to look for copies of it later."""
    from companion.pages.copies import embed_training_set
    from fusionlib.profiles import load_profile

    count = embed_training_set(shards, load_profile(profile).clip_model, out)
    typer.echo(f"{count:,} pictures in {out}")
