"""``python -m benchmarks NAME``: measure, print, and write a small record for the book."""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from companion.cli.options import one_sentence
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT


@dataclass(frozen=True)
class Benchmark:
    """One of the modules of this package.

    Attributes:
        what: it measures.
        full: whether models of full size are measured: those that cost the same with any weights.
        cuda: whether a GPU makes a difference.
        small: whether models of the embedded size are measured: others count what is timed there.
    """

    what: str
    full: bool = True
    cuda: bool = True
    small: bool = True

    def measures(self, size: str, device: str) -> bool:
        """Whether there is something to measure."""
        sized = {"full": self.full, "embedded": self.small}.get(size, True)
        return sized and (self.cuda or device != "cuda")


MODULES = {
    "startup": Benchmark("imports and --help, beside bare Python", full=False, cuda=False),
    "generation": Benchmark("a picture, beside the base model, IP-Adapter and ControlNet"),
    "masks": Benchmark("identity masks: dense beside sorted, which skip what is closed"),
    "training": Benchmark("a training step, beside IP-Adapter's"),
    "memory": Benchmark("peak memory of a picture and of a training step"),
    "study": Benchmark("pictures a second: processes and batches"),
    "evaluation": Benchmark("a study's status, and judging pictures", full=False, cuda=False),
    "whole": Benchmark("a first picture; make reproduce by stage, from its record", full=False),
    "floor": Benchmark("operations, counted and not timed", cuda=False, small=False),
}

DTYPES = {"cpu": "float32", "cuda": "float16"}


@one_sentence
def main(
    name: Annotated[str, typer.Argument(help="`all`, or: " + ", ".join(MODULES))] = "list",
    listed: Annotated[
        bool, typer.Option("--list", help="Say what each measures, and how long it took last.")
    ] = False,
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
    reproduced: Annotated[
        Path, typer.Option(help="Where make reproduce left its manifest.json.")
    ] = ROOT / "build",
    minutes: Annotated[
        float | None,
        typer.Option(help="Begin no further benchmark after so long.", show_default="no limit"),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Record the longest operators, too, where a target is set."),
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="With `all`: those that this commit's records have, too."),
    ] = False,
) -> None:
    """Measure things beside what a user would otherwise pick, on a machine that is idle.

    All are called in turn, round by round, in one process; what counts are ratios of medians. Those
    with a target come first. Each writes its record when it is done, and `all` goes on from there.
    """
    if listed or name == "list":
        typer.echo(overview(out))
        return
    if name != "all" and name not in MODULES:
        raise FusionError(f"There is no benchmark {name!r}: use all, or {', '.join(MODULES)}.")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # here and in what is started
    _check(device, repeats)
    chosen = choose(name, size, device)
    if not chosen:
        raise FusionError(f"{name} measures nothing at --size {size} --device {device}.")
    if name == "all" and not again:
        done = [one for one in chosen if is_done(one, size, device, profile, out)]
        chosen = [one for one in chosen if one not in done]
        if done:
            typer.echo(f"Measured at this commit (--again does it anew): {', '.join(done)}.")
    started, failed = time.perf_counter(), []
    for one in chosen:
        if minutes is not None and time.perf_counter() - started > 60 * minutes:
            left = chosen[chosen.index(one) :]
            typer.echo(f"{minutes:g} minutes are over; not measured: {', '.join(left)}.")
            break
        typer.echo(f"{one}: {MODULES[one].what}", err=True)
        try:
            typer.echo(measure(one, size, device, dtype, repeats, out, reproduced, profile))
        except Exception:  # the others are worth having, on a machine that is lent
            if name != "all":
                raise
            traceback.print_exc()
            failed.append(one)
    if failed:
        raise FusionError(f"Failed, for the reasons above: {', '.join(failed)}.")


def choose(name: str, size: str, device: str) -> list[str]:
    """The benchmarks of this name, or all; first those that decide a target."""
    from companion.pages.benchmark_tables import targets_of

    chosen = [
        one for one in MODULES if name in (one, "all") and MODULES[one].measures(size, device)
    ]
    return sorted(chosen, key=lambda one: not targets_of(one, size, device))


def is_done(name: str, size: str, device: str, profile: bool, folder: Path) -> bool:
    """Whether there is a record of this commit, of this machine, and with a profile if asked."""
    from companion.pages.benchmark_records import find_results
    from fusionlib.support.provenance import git_commit

    def of(commit: str | None) -> str | None:
        return commit.removesuffix("-dirty") if commit else None  # a record makes it dirty, too

    known = [found for found in find_results(folder, name) if of(found.commit) is not None]
    return any(
        (found.size, found.device) == (size, device)
        and of(found.commit) == of(git_commit())
        and found.profiled >= profile
        and all(found.machine.get(key) == told for key, told in _same(device).items())
        for found in known
    )


def _same(device: str) -> dict[str, object]:
    """What two machines have in common where their measurements are worth as much."""
    from benchmarks.alternate import describe_machine

    machine = describe_machine(device)
    return {key: machine.get(key) for key in ("cpu", "cores", "gpu")}


def overview(folder: Path) -> str:
    """A line for each benchmark: what it measures, and how long that took, by its records."""
    from companion.pages.benchmark_records import find_results

    lines = []
    for name, benchmark in MODULES.items():
        took = [
            f"{r.seconds / 60:.1f} min {r.size}, {r.device}" for r in find_results(folder, name)
        ]
        lines.append(f"{name:11} {benchmark.what} ({'; '.join(took) or 'not measured yet'})")
    return "\n".join(lines)


def _check(device: str, repeats: int) -> None:
    import torch

    if device not in DTYPES:
        raise FusionError(f"--device must be cpu or cuda, not {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise FusionError("--device cuda needs a CUDA GPU, and torch sees none: use --device cpu.")
    if repeats < 1:
        raise FusionError(f"--repeats must be 1 or more, not {repeats}.")


def measure(
    name: str,
    size: str,
    device: str,
    dtype: str | None,
    repeats: int,
    folder: Path,
    reproduced: Path = ROOT / "build",
    profile: bool = False,
) -> Path:
    """Run one benchmark, print what it found, and write its record.

    Args:
        name: of a module of this package.
        size: of the models, `benchmarks.models`.
        device: ``cpu`` or ``cuda``.
        dtype: of the models; None takes what is usual there.
        repeats: rounds.
        folder: of the record.
        reproduced: where `fusionlib reproduce` left its record.
        profile: whether to record the longest operators, where a target is set.

    Returns:
        The record's path.
    """
    from benchmarks.alternate import Setting, describe_machine
    from benchmarks.models import size_of
    from companion.pages.benchmark_records import Result, in_words
    from companion.pages.benchmark_tables import targets_of, with_targets
    from fusionlib.profiles.loading import quietly, torch_place
    from fusionlib.support.provenance import git_commit

    size_of(size)
    usual = "bfloat16" if name in ("training", "memory") and device == "cuda" else DTYPES[device]
    profiled = targets_of(name, size, device) if profile else ()
    setting = Setting(size, device, dtype or usual, repeats, reproduced, profiled)
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
        groups=with_targets(groups, name, size, device),
        profiled=profile,
    )
    typer.echo(in_words(result))
    return result.write(folder)


if __name__ == "__main__":
    typer.run(main)
