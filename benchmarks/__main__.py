"""``python -m benchmarks NAME``: measure, print, and write a small record for the book."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from fusionlib.terminal import one_sentence

MODULES = {
    "startup": ("imports and --help, beside bare Python", 2),
    "generation": ("a picture, beside the base model, IP-Adapter and ControlNet", 5),
    "masks": ("identity masks: dense beside skipped", None),
    "memory": ("peak memory of a picture and of a training step", None),
    "training": ("a training step, beside IP-Adapter's", None),
    "study": ("pictures a second: processes and batches", None),
    "evaluation": ("a study's status, and judging pictures", None),
    "whole": ("a first picture, and make reproduce by stage", None),
}
"""What each measures, and about how many minutes it took on two cores at embedded size; None where
that was not timed yet."""

DTYPES = {"cpu": "float32", "cuda": "float16"}


@one_sentence
def main(
    name: Annotated[str, typer.Argument(help="`list`, `all`, or: " + ", ".join(MODULES))],
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="`float32`, `float16` or `bfloat16`.",
            show_default="float16 on CUDA (training: bfloat16), else float32",
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="`embedded`; `full`: Stable Diffusion 1.5 at 512 x 512, random weights; `tiny` "
            "shows that everything runs."
        ),
    ] = "embedded",
    repeats: Annotated[int, typer.Option(help="Rounds, in each of which everything runs.")] = 7,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = ROOT
    / "book/records/benchmarks",
    minutes: Annotated[
        float | None,
        typer.Option(help="Begin no further benchmark after so long.", show_default="no limit"),
    ] = None,
) -> None:
    """Measure things beside what a user would otherwise pick, on a machine that is idle.

    All are called in turn, round by round, in one process; what counts are ratios of medians.
    """
    if name == "list":
        for known, (what, about) in MODULES.items():
            typer.echo(f"{known:12} {what} ({f'about {about} min' if about else 'not timed yet'})")
        return
    if name != "all" and name not in MODULES:
        raise FusionError(f"There is no benchmark {name!r}: use all, or {', '.join(MODULES)}.")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # here and in what is started
    _check(device, repeats)
    chosen = list(MODULES) if name == "all" else [name]
    timed = [MODULES[one][1] for one in chosen]
    if size == "embedded":
        about = f"about {sum(filter(None, timed))} minutes on two idle cores"
        more = f", and {timed.count(None)} that were not timed yet" if None in timed else ""
        typer.echo(f"{len(chosen)} benchmark(s): {about}{more}.")
    started = time.perf_counter()
    for one in chosen:
        if minutes is not None and time.perf_counter() - started > 60 * minutes:
            left = chosen[chosen.index(one) :]
            typer.echo(f"{minutes:g} minutes are over; not measured: {', '.join(left)}.")
            return
        typer.echo(f"{one}: {measure(one, size, device, dtype, repeats, out)}")


def _check(device: str, repeats: int) -> None:
    import torch

    if device not in DTYPES:
        raise FusionError(f"--device must be cpu or cuda, not {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise FusionError("--device cuda needs a CUDA GPU, and torch sees none: use --device cpu.")
    if repeats < 1:
        raise FusionError(f"--repeats must be 1 or more, not {repeats}.")


def measure(
    name: str, size: str, device: str, dtype: str | None, repeats: int, folder: Path
) -> Path:
    """Run one benchmark, print what it found, and write its record.

    Args:
        name: of a module of this package.
        size: of the models, `benchmarks.models`.
        device: ``cpu`` or ``cuda``.
        dtype: of the models; None takes what is usual there.
        repeats: rounds.
        folder: of the record.

    Returns:
        The record's path.
    """
    from benchmarks.alternate import Setting, describe_machine
    from benchmarks.models import size_of
    from fusionlib.benchmarked import Result, in_words
    from fusionlib.loading import quietly, torch_place
    from fusionlib.manifest import git_commit

    size_of(size)
    usual = "bfloat16" if name in ("training", "memory") and device == "cuda" else DTYPES[device]
    setting = Setting(size, device, dtype or usual, repeats)
    torch_place(device, setting.dtype)
    machine = describe_machine(device)  # before: how busy it is without us
    started = time.perf_counter()
    with quietly():
        groups = import_module(f"benchmarks.{name}").run(setting)
    result = Result(
        name=name,
        size=size,
        device=device,
        dtype=setting.dtype,
        machine=machine,
        commit=git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        groups=tuple(groups),
    )
    typer.echo(in_words(result))
    return result.write(folder)


if __name__ == "__main__":
    typer.run(main)
