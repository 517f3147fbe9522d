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

from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from fusionlib.terminal import one_sentence


@dataclass(frozen=True)
class Benchmark:
    """One of the modules of this package.

    Attributes:
        what: it measures.
        full: whether models of full size are measured: those that cost the same with any weights.
        cuda: whether a GPU makes a difference.
    """

    what: str
    full: bool = True
    cuda: bool = True

    def measures(self, size: str, device: str) -> bool:
        """Whether there is something to measure."""
        return (self.full or size != "full") and (self.cuda or device != "cuda")


MODULES = {
    "startup": Benchmark("imports and --help, beside bare Python", full=False, cuda=False),
    "generation": Benchmark("a picture, beside the base model, IP-Adapter and ControlNet"),
    "masks": Benchmark("identity masks: dense beside sorted, which skip what is closed"),
    "memory": Benchmark("peak memory of a picture and of a training step"),
    "training": Benchmark("a training step, beside IP-Adapter's"),
    "study": Benchmark("pictures a second: processes and batches"),
    "evaluation": Benchmark("a study's status, and judging pictures", full=False, cuda=False),
    "whole": Benchmark("a first picture; make reproduce by stage, from its record", full=False),
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
) -> None:
    """Measure things beside what a user would otherwise pick, on a machine that is idle.

    All are called in turn, round by round, in one process; what counts are ratios of medians.
    """
    if listed or name == "list":
        typer.echo(overview(out))
        return
    if name != "all" and name not in MODULES:
        raise FusionError(f"There is no benchmark {name!r}: use all, or {', '.join(MODULES)}.")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # here and in what is started
    _check(device, repeats)
    chosen = [
        one for one in MODULES if name in (one, "all") and MODULES[one].measures(size, device)
    ]
    if not chosen:
        raise FusionError(f"{name} measures nothing at --size {size} --device {device}.")
    started, failed = time.perf_counter(), []
    for one in chosen:
        if minutes is not None and time.perf_counter() - started > 60 * minutes:
            left = chosen[chosen.index(one) :]
            typer.echo(f"{minutes:g} minutes are over; not measured: {', '.join(left)}.")
            break
        typer.echo(f"{one}: {MODULES[one].what}", err=True)
        try:
            typer.echo(measure(one, size, device, dtype, repeats, out, reproduced))
        except Exception:  # the others are worth having, on a machine that is lent
            if name != "all":
                raise
            traceback.print_exc()
            failed.append(one)
    if failed:
        raise FusionError(f"Failed, for the reasons above: {', '.join(failed)}.")


def overview(folder: Path) -> str:
    """A line for each benchmark: what it measures, and how long that took, by its records."""
    from fusionlib.benchmarked import find_results

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

    Returns:
        The record's path.
    """
    from benchmarks.alternate import Setting, describe_machine
    from benchmarks.models import size_of
    from fusionlib.benchmarked import Result, in_words
    from fusionlib.loading import quietly, torch_place
    from fusionlib.manifest import git_commit
    from fusionlib.targets import with_targets

    size_of(size)
    usual = "bfloat16" if name in ("training", "memory") and device == "cuda" else DTYPES[device]
    setting = Setting(size, device, dtype or usual, repeats, reproduced)
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
    )
    typer.echo(in_words(result))
    return result.write(folder)


if __name__ == "__main__":
    typer.run(main)
