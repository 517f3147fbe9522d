"""What the benchmarks shall reach, set before anything was measured, and what came of it.

A target names the rows of a benchmark that it is about, so that the page can say of each whether it
is met, missed, undecided or not measured, and by which command it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fusionlib.benchmarked import Group, Result, Row, Target, bracketed, layer_title
from fusionlib.evaluation.claims import CLAIMS, Evidence, find_claim, record_claim
from fusionlib.evaluation.comparison import Estimate
from fusionlib.evaluation.statistics import Interval
from fusionlib.figures import marked

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

MODELS = {"embedded": "embedded", "full": "Stable Diffusion 1.5", "tiny": "tiny"}
DEVICES = {"cpu": "CPU", "cuda": "CUDA"}


@dataclass(frozen=True)
class Wanted:
    """A target, and the measurement that it is about.

    Attributes:
        benchmark: its name.
        size: of the models.
        device: ``cpu`` or ``cuda``.
        group: how its title begins; the first group of which that is true is meant.
        row: its name.
        target: what is asked of it.
        unit: of the target.
        told: what is meant, in words.
    """

    benchmark: str
    size: str
    device: str
    group: str
    row: str
    target: Target
    unit: str
    told: str

    @property
    def command(self) -> str:
        """What measures it."""
        words = ["python -m benchmarks", self.benchmark]
        words += ["--size full"] if self.size == "full" else []
        return " ".join(words + (["--device cuda"] if self.device == "cuda" else []))

    def find(self, groups: Iterable[Group]) -> tuple[Group, Row] | None:
        """The row that is meant, if it was measured."""
        for group in groups:
            if group.title.startswith(self.group):
                named = [row for row in group.rows if row.name == self.row]
                return (group, named[0]) if named else None
        return None


_CPU, _GPU = ("embedded", "cpu"), ("full", "cuda")
_CLEAN = "fused, clean cache"
_ENCODED, _CACHED = "fused, encoded in every step", "fused, latents and text cached"
_STEP = "A training step of one picture"
_BASE, _IP = "times base model", "times IP-Adapter"
_DENSE, _UNMASKED = "times dense", "times without masks"
_PYTHON = "s more than Python"


def _ratio(limit: float) -> Target:
    return Target("ratio", limit)


def _more(limit: float) -> Target:
    return Target("difference", limit)


_LESS, _FITS = _ratio(0.769), Target("value", 12_000)  # less by 1.3 times; a card of 12 GB
_FAST = Target("value", 1.5, at_least=True)

TARGETS = tuple(
    Wanted(benchmark, *where, group, row, target, unit, told)
    for benchmark, where, group, row, target, unit, told in (
        ("generation", _CPU, "One", _CLEAN, _ratio(1.35), _BASE, "Picture, one reference"),
        ("generation", _CPU, "Four", _CLEAN, _ratio(2.2), _BASE, "Picture, four references"),
        ("masks", _CPU, layer_title(3, 8), "grouped", _LESS, _DENSE, "Layer, 8 × 8, three people"),
        ("masks", _CPU, layer_title(3, 64), "grouped", _LESS, _DENSE,
         "Layer, 64 × 64, three people"),
        ("study", _CPU, "", "2 processes", _FAST, "pictures/s", "Study, on two cores"),
        ("startup", _CPU, "", "import fusionlib", _more(0.3), _PYTHON, "import fusionlib"),
        ("startup", _CPU, "", "fusionlib --help", _more(0.5), _PYTHON, "fusionlib --help"),
        ("generation", _GPU, "One", _CLEAN, _ratio(1.2), _BASE, "Picture, one reference"),
        ("generation", _GPU, "Four", _CLEAN, _ratio(1.6), _BASE, "Picture, four references"),
        ("masks", _GPU, layer_title(3, 64), "grouped", _LESS, _DENSE,
         "Layer, 64 × 64, three people"),
        ("masks", _GPU, "Three references", "masks, grouped", _ratio(1.1), _UNMASKED,
         "Picture, three people, sorted"),
        ("masks", _GPU, "Three references", "masks, flex", _ratio(1.1), _UNMASKED,
         "Picture, three people, FlexAttention"),
        ("training", _GPU, _STEP, _ENCODED, _ratio(1.0), _IP, "Training step, encoded"),
        ("training", _GPU, _STEP, _CACHED, _ratio(1.0), _IP, "Training step, cached"),
        ("memory", _GPU, _STEP, _ENCODED, _FITS, "MB", "Memory of a training step, encoded"),
        ("memory", _GPU, _STEP, _CACHED, _FITS, "MB", "Memory of a training step, cached"),
    )
)  # fmt: skip
"""In the order of the page."""


def with_targets(
    groups: Sequence[Group], benchmark: str, size: str, device: str
) -> tuple[Group, ...]:
    """Groups as a benchmark measured them, their rows with what is asked of them here."""
    found = list(groups)
    for wanted in TARGETS:
        if (wanted.benchmark, wanted.size, wanted.device) != (benchmark, size, device):
            continue
        if place := wanted.find(found):
            group, row = place
            rows = (replace(r, target=wanted.target) if r is row else r for r in group.rows)
            found[found.index(group)] = replace(group, rows=tuple(rows))
    return tuple(found)


def targets_table(results: Mapping[str, Sequence[Result]]) -> Any:
    """Every target with what was found, and how to measure it, for the top of the page.

    Args:
        results: of `fusionlib.benchmarked.every_result`.

    Returns:
        A table with a row for each target, whether or not it was measured.
    """
    rows = [_row(wanted, results.get(wanted.benchmark, ())) for wanted in TARGETS]
    table = pd.DataFrame(rows).set_index(["where", "what"])
    table.index.names = ["", ""]
    caption = "Measured here. A target is met or missed where the whole 95% interval says so."
    if not (table["found"] != "").any():
        caption = "Nothing was measured yet."
    styler: Styler = marked(table.style, "measured", caption)
    return styler.map(lambda said: "color: gray" if said.startswith("not") else "", ["outcome"])


def record_training(
    out: str | Path,
    claim: str,
    results: Sequence[Result],
    profile: str,
    path: str | Path = CLAIMS,
) -> list[Evidence]:
    """Record what the benchmark ``training`` says of the claim that training is cheap.

    Args:
        out: the folder that the notebook was handed.
        claim: its id.
        results: of that benchmark, see `fusionlib.benchmarked.find_results`.
        profile: its name.
        path: of the claims.

    Raises:
        FusionError: see `fusionlib.evaluation.claims.record_claim`.

    Returns:
        The evidence; none where the claim cannot be tested, or nobody measured at the size of
        Stable Diffusion 1.5 on CUDA.
    """
    if profile in find_claim(claim, path).obstacle:
        return []
    evidence = []
    for result in results:
        # As IP-Adapter's own script trains: both encode everything in every step.
        wanted = next(one for one in TARGETS if one.row == _ENCODED)
        place = wanted.find(result.groups)
        if place and (result.size, result.device) == _GPU:
            group, row = place
            more = group.interval(row, "difference")
            rounds = len(row.values)
            found = Estimate(
                Interval(-more.estimate, -more.high, -more.low), rounds, rounds, rounds
            )
            run = f"{result.where}, {result.created[:10]}"
            evidence.append(record_claim(out, claim, found, profile=profile, run=run, path=path))
    return evidence


def _row(wanted: Wanted, results: Iterable[Result]) -> dict[str, str]:
    told = {
        "where": f"{MODELS[wanted.size]}, {DEVICES[wanted.device]}",
        "what": wanted.told,
        "target": f"{wanted.target} {wanted.unit}",
        "found": "",
        "outcome": "not measured" + (": wants CUDA" if wanted.device == "cuda" else ""),
        "measured by": wanted.command,
    }
    for result in results:
        place = wanted.find(result.groups)
        if place and (result.size, result.device) == (wanted.size, wanted.device):
            group, row = place
            interval = group.interval(row, wanted.target.of)
            told |= {"found": bracketed(interval), "outcome": wanted.target.judge(interval)}
    return told
