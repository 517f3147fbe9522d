"""What benchmarks measured: a small JSON file for each run.

`benchmarks/` writes the records (``python -m benchmarks``), the page "What it costs" shows them.
They keep the single measurements; medians, ratios and intervals follow from these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from companion.evaluation.statistics import Interval
from fusionlib.errors import FusionError
from fusionlib.support.files import write_text

Of = Literal["value", "ratio", "difference"]
"""A number by itself, divided by the baseline's, or less the baseline's."""

Counted = Literal["operations", "kernels", "busy"]
"""What a call does, beside the time that it takes: attributes of a `Row`."""

Outcome = Literal["met", "missed", "undecided"]

NAMES = ("startup", "generation", "masks", "training", "memory", "study", "whole")
"""The benchmarks in the order of the page."""


@dataclass(frozen=True)
class Target:
    """What a measurement has to reach."""

    of: Of
    limit: float
    at_least: bool = False  # whether more is better
    against: str = ""  # row that it is compared with; by default the first

    def judge(self, found: Interval) -> Outcome:
        """Met or missed only where the whole interval lies on one side of the limit."""
        sign = -1 if self.at_least else 1
        low, high = sorted((sign * found.low, sign * found.high))
        if high <= sign * self.limit:
            return "met"
        return "missed" if low > sign * self.limit else "undecided"

    def __str__(self) -> str:
        to = f" times {self.against}" if self.against else ""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{to}"


@dataclass(frozen=True)
class Operator:
    """One of PyTorch's operators, or a CUDA kernel, in the profile of one call."""

    name: str
    ms: float  # in all its calls, without the operators that it calls
    share: float  # of the time of all operators


@dataclass(frozen=True)
class Row:
    """One of the systems that were measured side by side."""

    name: str
    values: tuple[float, ...]  # one for each round, in the unit of the group
    operations: float | None = None  # floating-point operations of one call, if counted
    target: Target | None = None
    longest: tuple[Operator, ...] = ()  # longest operators, if the call was profiled
    kernels: float | None = None  # kernels that one call starts, if counted

    @property
    def busy(self) -> float | None:
        """Milliseconds in all operators of one call (on CUDA: kernels), if it was profiled."""
        share = sum(each.share for each in self.longest)
        return sum(each.ms for each in self.longest) / share if share else None


@dataclass(frozen=True)
class Group:
    """Rows that were measured in turn, round by round; the others are compared with the first."""

    title: str
    unit: str
    rows: tuple[Row, ...]
    shows: Of = "ratio"  # the number that matters
    note: str = ""  # how it was measured, where that does not go without saying

    def baseline(self, target: Target | None = None) -> Row:
        """The row that a target compares with: the first, unless the target names another."""
        named = target.against if target else ""
        return next((row for row in self.rows if row.name == named), self.rows[0])

    def interval(self, row: Row, of: Of | None = None, to: Row | None = None) -> Interval:
        """A row's number, of medians over the rounds, with a 95% interval by resampled rounds.

        By default the number is the one that matters, and compared with the first row's. Rounds
        are resampled whole (paired), so what slowed a whole round down does not widen the interval
        of a ratio. With a single round there is no interval: its ends are NaN.
        """
        of, to = of or self.shows, to or self.rows[0]
        if of == "value":
            return _bootstrap(of, row.values)
        if row is to:
            fixed = 1.0 if of == "ratio" else 0.0
            return Interval(fixed, fixed, fixed)
        return _bootstrap(of, row.values, to.values)

    def counted(self, of: Counted, row: Row, to: Row | None = None) -> float | None:
        """The ratio of a row's operations, kernels or time in them to another row's, if known.

        It is what a ratio of times comes to at equal speed, or where the start of the kernels, or
        the time in them, decides.
        """
        ours, others = getattr(row, of), getattr(to or self.rows[0], of)
        return ours / others if ours and others else None

    def found(self, row: Row, target: Target) -> Interval:
        """The number that a target is about."""
        return self.interval(row, target.of, self.baseline(target))

    def outcome(self, row: Row) -> Outcome | None:
        """Whether the row's target is met, None where it has none."""
        return row.target.judge(self.found(row, row.target)) if row.target else None


@dataclass(frozen=True)
class Result:
    """All that one run of a benchmark measured."""

    name: str  # of the benchmark
    size: str  # of the models: tiny, embedded or full
    device: str
    dtype: str
    machine: Mapping[str, Any]  # of `benchmarks.alternate.describe_machine`
    commit: str | None
    created: str  # when it ended, in ISO format
    seconds: float  # how long all of it took
    groups: tuple[Group, ...]

    @property
    def where(self) -> str:
        """Size, type and machine in a few words, for a heading."""
        return f"{self.size}, {self.dtype}, {self.machine.get('gpu') or self.machine['cpu']}"

    @property
    def run(self) -> str:
        """Where, when and from which commit it was measured, in a sentence."""
        machine = self.machine
        gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
        return (
            f"{self.size} on {self.device}: {gpu}{machine['cpu']}, {machine['cores']} cores, "
            f"{machine['threads']} threads, load {machine['load']:.1f} before it began, torch "
            f"{machine['torch']}, {self.dtype}, commit {(self.commit or 'unknown')[:8]}, "
            f"{self.created[:10]}."
        )

    def write(self, folder: Path) -> Path:
        """Write the record into a folder, atomically; returns its path."""
        path = folder / f"{self.name}-{self.size}-{self.device}.json"
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path


def read_result(path: str | Path) -> Result:
    """Read a record that `Result.write` wrote.

    Raises:
        FusionError: There is none, or it is damaged.
    """
    try:
        return TypeAdapter(Result).validate_json(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FusionError(
            f"The benchmark's record {path} cannot be read ({type(error).__name__}: {error}): make "
            "it again by `python -m benchmarks NAME`."
        ) from error


def find_results(folder: str | Path, name: str) -> list[Result]:
    """The records of one benchmark, the CPU's and small models first; there may be none."""
    order = {"tiny": 0, "embedded": 1, "full": 2}
    found = [read_result(path) for path in sorted(Path(folder).glob(f"{name}-*-*.json"))]
    return sorted(found, key=lambda r: (r.device != "cpu", order.get(r.size, 3)))


def every_result(folder: str | Path) -> dict[str, list[Result]]:
    """The records of a folder by the benchmark's name; an empty list where there are none.

    Raises:
        FusionError: A record is damaged.
    """
    return {name: find_results(folder, name) for name in NAMES}


def find_rows(
    groups: Iterable[Group], title: str, *names: str
) -> tuple[Group, tuple[Row, ...]] | None:
    """The first group whose title begins so and that has all rows of these names, with them."""
    for group in groups:
        named = {row.name: row for row in group.rows}
        if group.title.startswith(title) and named.keys() >= set(names):
            return group, tuple(named[name] for name in names)
    return None


def _median(*samples: Any, of: Of, axis: int = -1) -> Any:
    medians = [np.median(sample, axis=axis) for sample in samples]
    if of == "value":
        return medians[0]
    return medians[0] / medians[1] if of == "ratio" else medians[0] - medians[1]


def _bootstrap(of: Of, *samples: Sequence[float]) -> Interval:
    import scipy.stats

    if len({len(sample) for sample in samples}) != 1:
        raise FusionError("The rows of a group need one value for each round: not so here.")
    estimate = float(_median(*samples, of=of))
    if len(samples[0]) < 2:
        return Interval(estimate, np.nan, np.nan)
    found = scipy.stats.bootstrap(
        samples,
        partial(_median, of=of),
        paired=True,
        vectorized=True,
        method="percentile",  # BCa's jackknife fails for medians
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high))
