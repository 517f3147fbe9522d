"""``python -m benchmarks NAME``: measure, print, and write a small record for the book."""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from companion.cli.options import one_sentence
from companion.pages.benchmark_records import Result, find_results
from companion.pages.benchmark_targets import targets_of, with_targets
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from fusionlib.support.provenance import git_commit

if TYPE_CHECKING:
    from benchmarks.alternate import Setting


@dataclass(frozen=True)
class Benchmark:
    """What a module of this package measures, and where that makes sense."""

    what: str
    sizes: tuple[str, ...] = ("tiny", "embedded", "full")  # full: where any weights will do
    devices: tuple[str, ...] = ("cpu", "cuda")  # CUDA: where a GPU makes a difference

    def measures(self, size: str, device: str) -> bool:
        """Whether there is something to measure."""
        return size in self.sizes and device in self.devices


_SMALL = ("tiny", "embedded")

MODULES = {
    "startup": Benchmark("imports and --help, beside bare Python", _SMALL, ("cpu",)),
    "generation": Benchmark("a picture, beside the base model and IP-Adapter"),
    "masks": Benchmark("identity masks: dense beside sorted, which skip what is closed"),
    "training": Benchmark("a training step, beside IP-Adapter's"),
    "memory": Benchmark("peak memory of a training step", devices=("cuda",)),
    "study": Benchmark("pictures a second, by processes", _SMALL),
    "whole": Benchmark("make reproduce by stage, from its record", _SMALL, ("cpu",)),
}


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
        typer.Option(help="`embedded`; `full`: Stable Diffusion 1.5; `tiny`: all of it runs."),
    ] = "embedded",
    repeats: Annotated[int, typer.Option(help="Rounds, in each of which everything runs.")] = 7,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = ROOT
    / "book/records/benchmarks",
    reproduced: Annotated[
        Path, typer.Option(help="Where make reproduce left its manifest.json.")
    ] = ROOT / "build",
    minutes: Annotated[
        float | None,
        typer.Option(help="Begin no further benchmark after this time.", show_default="no limit"),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Record the longest operators, too, where a target is set."),
    ] = False,
) -> None:
    """Measure things beside what a user would otherwise pick, on a machine that is idle.

    All are called in turn, round by round, in one process; what counts are ratios of medians. Those
    with a target come first. Each writes its record when it is done.
    """
    if listed or name == "list":
        typer.echo(overview(out))
        return
    if name != "all" and name not in MODULES:
        raise FusionError(f"There is no benchmark {name!r}: use all, or {', '.join(MODULES)}.")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # here and in what is started
    from benchmarks.alternate import Setting  # and what reads it

    _check(size, device, repeats)
    chosen = choose(name, size, device)
    if not chosen:
        raise FusionError(f"{name} measures nothing at --size {size} --device {device}.")
    if name == "all" and not (reproduced / "manifest.json").is_file():
        chosen = [one for one in chosen if one != "whole"]  # there is nothing to read
    started, failed = time.perf_counter(), []
    for number, one in enumerate(chosen):
        if minutes is not None and time.perf_counter() - started > 60 * minutes:
            left = ", ".join(chosen[number:])
            typer.echo(f"{minutes:g} minutes are over; not measured: {left}.")
            break
        typer.echo(f"{one}: {MODULES[one].what}", err=True)
        try:
            targets = targets_of(one, size, device) if profile else ()
            kind = dtype or _usual_dtype(one, device)
            setting = Setting(size, device, kind, repeats, reproduced, targets)
            typer.echo(measure(one, setting, out))
        except Exception:  # the others are worth having, on a machine that is lent
            if name != "all":
                raise
            traceback.print_exc()
            failed.append(one)
    if failed:
        raise FusionError(f"Failed, for the reasons above: {', '.join(failed)}.")


def choose(name: str, size: str, device: str) -> list[str]:
    """The benchmarks of this name, or all; first those that decide a target."""
    chosen = [one for one, module in MODULES.items() if module.measures(size, device)]
    chosen = [one for one in chosen if name in (one, "all")]
    return sorted(chosen, key=lambda one: not targets_of(one, size, device))


def overview(folder: Path) -> str:
    """A line for each benchmark: what it measures, and how long that took, by its records."""
    lines = []
    for name, benchmark in MODULES.items():
        took = [
            f"{r.seconds / 60:.1f} min {r.size}, {r.device}" for r in find_results(folder, name)
        ]
        lines.append(f"{name:11} {benchmark.what} ({'; '.join(took) or 'not measured yet'})")
    return "\n".join(lines)


def _check(size: str, device: str, repeats: int) -> None:
    import torch

    if size not in ("tiny", "embedded", "full"):
        raise FusionError(f"--size must be tiny, embedded or full, not {size!r}.")
    if device not in ("cpu", "cuda"):
        raise FusionError(f"--device must be cpu or cuda, not {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise FusionError("--device cuda needs a CUDA GPU, and torch sees none: use --device cpu.")
    if repeats < 1:
        raise FusionError(f"--repeats must be 1 or more, not {repeats}.")


def _usual_dtype(name: str, device: str) -> str:
    if device == "cpu":
        return "float32"
    return "bfloat16" if name in ("training", "memory") else "float16"


def measure(name: str, setting: Setting, folder: Path) -> Path:
    """Run one benchmark, print what it found, and write its record; returns the record's path."""
    from benchmarks.alternate import describe_machine
    from companion.pages.benchmark_tables import benchmark_frame
    from fusionlib.profiles.loading import quietly, torch_place

    torch_place(setting.device, setting.dtype)
    machine = describe_machine(setting.device)  # before: how busy it is without us
    started = time.perf_counter()
    with quietly():
        groups = import_module(f"benchmarks.{name}").run(setting)
    result = Result(
        name=name,
        size=setting.size,
        device=setting.device,
        dtype=setting.dtype,
        machine=machine,
        commit=git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        groups=with_targets(groups, name, setting.size, setting.device),
    )
    typer.echo(f"{result.run}\n{benchmark_frame([result]).to_string()}")
    return result.write(folder)


if __name__ == "__main__":
    typer.run(main)
