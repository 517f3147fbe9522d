"""What the benchmarks have to reach, and what was done for speed: ``data/benchmarks/*.yaml``.

A target names the row of a benchmark that it is about, an optimisation the two rows that show what
it gains. So the page can say of each what was measured, and otherwise by which command to do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from companion.entries import read_entries
from companion.pages.benchmark_records import Group, Of, Result, Row, Target, find_rows
from fusionlib.profiles import ROOT

FOLDER = ROOT / "data" / "benchmarks"

MODELS = {"embedded": "embedded", "full": "Stable Diffusion 1.5", "tiny": "tiny"}
DEVICES = {"cpu": "CPU", "cuda": "CUDA"}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str = Field(min_length=1)


class Wanted(_Entry):
    """A target, and the measurement that it is about; ``targets.yaml`` explains its entries."""

    benchmark: str = Field(min_length=1)
    size: Literal["embedded", "full"]
    device: Literal["cpu", "cuda"]
    group: str
    row: str = Field(min_length=1)
    of: Of
    at_most: float | None = None
    at_least: float | None = None
    against: str = ""
    unit: str = ""
    profiled: bool = False
    dropped: bool = False
    tried: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_bound(self) -> Wanted:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("needs either `at_most` or `at_least`")
        return self

    @property
    def target(self) -> Target:
        """What is asked of the row."""
        limit = self.at_most if self.at_least is None else self.at_least
        return Target(self.of, limit or 0.0, self.at_least is not None, self.against)

    @property
    def where(self) -> str:
        """Size and device in words."""
        return f"{MODELS[self.size]}, {DEVICES[self.device]}"

    @property
    def name(self) -> str:
        """The target with the place where it is measured, which differs for each."""
        return f"{self.what} ({self.where})"

    @property
    def command(self) -> str:
        """The command that measures it."""
        full = " --size full" if self.size == "full" else ""
        cuda = " --device cuda" if self.device == "cuda" else ""
        return f"python -m benchmarks {self.benchmark}{full}{cuda}"

    def find(self, groups: Iterable[Group]) -> tuple[Group, Row] | None:
        """The group and the row that are meant, if they were measured."""
        found = find_rows(groups, self.group, self.row, self.against or self.row)
        return (found[0], found[1][0]) if found else None

    def measured(self, results: Iterable[Result]) -> tuple[Group, Row] | None:
        """The same, from the record of its size and device."""
        for result in results:
            if (result.size, result.device) == (self.size, self.device):
                return self.find(result.groups)
        return None


class Optimisation(_Entry):
    """Something that was done for speed; ``optimisations.yaml`` explains its entries."""

    expected: str | None = None
    benchmark: str = ""
    group: str = ""
    row: str = ""
    without: str = ""
    measured: str = ""
    decision: str = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_or_numbers(self) -> Optimisation:
        rows = (self.benchmark, self.row, self.without)
        if any(rows) if self.measured else not all(rows):
            raise ValueError("needs `benchmark`, `row` and `without`, or else `measured`")
        return self


Optimisations = tuple[Optimisation, ...]


@cache
def read_targets(path: str | Path = FOLDER / "targets.yaml") -> tuple[Wanted, ...]:
    """All targets in the order of the page; a `FusionError` names an entry that does not fit."""
    return tuple(read_entries(path, Wanted, "target", "what", key="name").values())


@cache
def read_optimisations(path: str | Path = FOLDER / "optimisations.yaml") -> Optimisations:
    """All optimisations in the order of the page, likewise."""
    return tuple(read_entries(path, Optimisation, "optimisation", "what").values())


def targets_of(*run: str) -> tuple[Wanted, ...]:
    """The targets of one run: of a benchmark, at a size, on a device."""
    return tuple(one for one in read_targets() if (one.benchmark, one.size, one.device) == run)


def with_targets(groups: Sequence[Group], *run: str) -> tuple[Group, ...]:
    """Groups as a run measured them, with the targets of their rows; `run`: see `targets_of`."""
    found = list(groups)
    for wanted in targets_of(*run):
        if place := wanted.find(found):
            group, row = place
            rows = (replace(r, target=wanted.target) if r is row else r for r in group.rows)
            found[found.index(group)] = replace(group, rows=tuple(rows))
    return tuple(found)
