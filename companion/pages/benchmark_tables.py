"""What the benchmarks shall reach, set before anything was measured, and what came of it.

A target names the rows of a benchmark that it is about, so that the page can say of each whether it
is met, missed, undecided or not measured, and by which command it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from companion.claims.claims import CLAIMS, Evidence, find_claim, record_claim
from companion.evaluation.comparison import Estimate
from companion.evaluation.statistics import Interval
from companion.figures.tables import marked
from companion.pages.benchmark_records import (
    GPU_ALONE,
    Group,
    Operator,
    Result,
    Row,
    Target,
    bracketed,
    digits,
    kernels_title,
    layer_title,
    sentence,
    with_code,
)

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
        tried: what was done to reach it, for who sees it missed.
    """

    benchmark: str
    size: str
    device: str
    group: str
    row: str
    target: Target
    unit: str
    told: str
    tried: str

    @property
    def where(self) -> str:
        """Size and device in words."""
        return f"{MODELS[self.size]}, {DEVICES[self.device]}"

    @property
    def alone(self) -> bool:
        """Whether it is about the GPU alone, with the kernels of the same layer on the clock."""
        return self.group.startswith(GPU_ALONE)

    @property
    def command(self) -> str:
        """What measures it."""
        words = ["python -m benchmarks", self.benchmark]
        words += ["--size full"] if self.size == "full" else []
        return " ".join(words + (["--device cuda"] if self.device == "cuda" else []))

    def find(self, groups: Iterable[Group]) -> tuple[Group, Row] | None:
        """The row that is meant, if it was measured, and what it is compared with."""
        for group in groups:
            if group.title.startswith(self.group):
                named = {row.name: row for row in group.rows}
                wanted = {self.row, self.target.against or self.row}
                return (group, named[self.row]) if wanted <= named.keys() else None
        return None

    def measured(self, results: Iterable[Result]) -> tuple[Group, Row] | None:
        """The same, in the record of its size and device."""
        for result in results:
            if (result.size, result.device) == (self.size, self.device):
                return self.find(result.groups)
        return None


_CPU, _GPU = ("embedded", "cpu"), ("full", "cuda")
_CLEAN = "fused, clean cache"
_ENCODED, _CACHED = "fused, encoded in every step", "fused, latents and text cached"
_IP_CACHED = "IP-Adapter, latents and CLIP cached"
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
_AS_CACHED = Target("ratio", 1.0, against=_IP_CACHED)

_SIDES = {_CPU: (8, 64, 32), _GPU: (64, 32)}
"""Positions to a side of the layers that are measured by themselves."""
_KERNELS = {"grouped": "sorted", "flex": "FlexAttention"}

_TRIED = {
    "generation": "The reference is encoded once and K_f, V_f are kept; the unconditional branch "
    "sees no face; strengths are one row that is added to the logits, for all queries; K' and V' "
    "are joined once for all steps.",
    "masks": "A dense mask, queries sorted by whom they may see, the same as sequences of one call "
    "of FlashAttention, and FlexAttention, each beside the others. On the clock such a layer takes "
    "as long as the processor needs to start its kernels: one with the mask, seven sorted, three "
    "in sequences. With them recorded in a graph, the GPU alone is left: there a sorted layer of "
    "64 × 64 reaches the target, and one of 32 × 32, whose groups are short, takes longer than the "
    "mask, which is what it is given. Masks are scaled for those sizes only that a layer has, and "
    "not on the GPU; what each group sees is joined once for all steps; a mask is made once, in "
    "rows that no kernel has to convert or copy.",
    "training": "Latents and text encoded once; h_f of every reference, too, which leaves out the "
    "reference's pass (a row of its own below); attention by plain matrix products. That pass, and "
    "the longer keys, are operations that IP-Adapter does not have.",
    "memory": "Activations computed twice; latents and text kept, so that neither autoencoder nor "
    "text encoder is loaded; the two projections alone in float32.",
    "study": "Batches, dropped, as a picture's last bits depend on its company there; processes of "
    "one thread each, kept.",
    "startup": "Heavy packages are imported where they are used.",
}
"""By benchmark."""

_PROFILED = ("generation", "masks", "training")
"""What runs in the process that measures: a profile sees nothing of the others."""


def _layers(
    where: tuple[str, str], kernels: Sequence[str]
) -> Iterator[tuple[str, tuple[str, str], str, str, Target, str, str]]:
    for side in _SIDES[where]:
        for kernel in kernels:
            told = f"Layer, {side} × {side}, three people, {_KERNELS[kernel]}"
            yield "masks", where, layer_title(3, side), kernel, _LESS, _DENSE, told


TARGETS = tuple(
    Wanted(benchmark, *where, group, row, target, unit, told, _TRIED[benchmark])
    for benchmark, where, group, row, target, unit, told in (
        ("generation", _CPU, "One", _CLEAN, _ratio(1.35), _BASE, "Picture, one reference"),
        ("generation", _CPU, "Four", _CLEAN, _ratio(2.2), _BASE, "Picture, four references"),
        *_layers(_CPU, ["grouped"]),
        ("study", _CPU, "", "2 processes", _FAST, "pictures/s", "Study, on two cores"),
        ("startup", _CPU, "", "import fusionlib", _more(0.3), _PYTHON, "import fusionlib"),
        ("startup", _CPU, "", "fusionlib --help", _more(0.5), _PYTHON, "fusionlib --help"),
        ("generation", _GPU, "One", _CLEAN, _ratio(1.2), _BASE, "Picture, one reference"),
        ("generation", _GPU, "Four", _CLEAN, _ratio(1.6), _BASE, "Picture, four references"),
        *_layers(_GPU, ["grouped", "flex"]),
        *(
            ("masks", _GPU, kernels_title(3, side), "grouped", _LESS, _DENSE,
             f"The GPU alone, {side} × {side}, three people, sorted")
            for side in _SIDES[_GPU]
        ),
        ("masks", _GPU, "Three references", "masks, by layer", _ratio(1.1), _UNMASKED,
         "Picture, three people, by layer"),
        ("masks", _GPU, "Three references", "masks, grouped", _ratio(1.1), _UNMASKED,
         "Picture, three people, sorted"),
        ("masks", _GPU, "Three references", "masks, flex", _ratio(1.1), _UNMASKED,
         "Picture, three people, FlexAttention"),
        ("training", _GPU, _STEP, _ENCODED, _ratio(1.0), _IP, "Training step, encoded"),
        ("training", _GPU, _STEP, _CACHED, _AS_CACHED, "", "Training step, cached"),
        ("memory", _GPU, _STEP, _ENCODED, _FITS, "MB", "Memory of a training step, encoded"),
        ("memory", _GPU, _STEP, _CACHED, _FITS, "MB", "Memory of a training step, cached"),
    )
)  # fmt: skip
"""In the order of the page."""


def targets_of(benchmark: str, size: str, device: str) -> tuple[Wanted, ...]:
    """What is asked of one run of a benchmark."""
    asked = (benchmark, size, device)
    return tuple(one for one in TARGETS if (one.benchmark, one.size, one.device) == asked)


def with_targets(
    groups: Sequence[Group], benchmark: str, size: str, device: str
) -> tuple[Group, ...]:
    """Groups as a benchmark measured them, their rows with what is asked of them here."""
    found = list(groups)
    for wanted in targets_of(benchmark, size, device):
        if place := wanted.find(found):
            group, row = place
            rows = (replace(r, target=wanted.target) if r is row else r for r in group.rows)
            found[found.index(group)] = replace(group, rows=tuple(rows))
    return tuple(found)


def targets_table(results: Mapping[str, Sequence[Result]]) -> Any:
    """Every target with what was found, and how to measure it, for the top of the page.

    Args:
        results: of `companion.pages.benchmark_records.every_result`.

    Returns:
        A table with a row for each target, whether or not it was measured.
    """
    rows = [_row(wanted, results) for wanted in TARGETS]
    table = pd.DataFrame(rows).set_index(["where", "what"])
    table.index.names = [None, None]
    caption = (
        "Measured here. A target is met or missed where the whole 95% interval says so. The floor "
        "is counted and not measured: operations in the same ratio. Beside it, for CUDA, stand the "
        "kernels, counted likewise, and the time in them by the profile of one call."
    )
    places = [one.measured(results.get(one.benchmark, ())) for one in TARGETS]
    notes = dict.fromkeys(place[0].note for place in places if place and place[0].note)
    caption = " ".join([caption, *notes])
    if not (table["found"] != "").any():
        caption = "Nothing was measured yet."
    styler: Styler = marked(table.style, "measured", caption)
    return styler.map(lambda said: "color: gray" if said.startswith("not") else "", ["outcome"])


def missed_table(results: Mapping[str, Sequence[Result]]) -> Any:
    """Every target that is missed, with what was tried.

    Args:
        results: of `companion.pages.benchmark_records.every_result`.

    Returns:
        A table, or a sentence where none is missed.
    """
    missed = [wanted for wanted, _, _ in _missed(results)]
    if not missed:
        return sentence("No target is missed by what was measured.")
    first = {wanted.tried: wanted for wanted in reversed(missed)}  # said once for each benchmark
    rows = [
        {
            **_row(wanted, results),
            "tried": wanted.tried if first[wanted.tried] is wanted else "as above",
        }
        for wanted in missed
    ]
    shown = ["target", "found", "tried"]  # the rest stands in the table of all targets
    table = pd.DataFrame(rows).set_index(["where", "what"])[shown]
    table.index.names = [None, None]
    return marked(table.style, "measured", "Measured here: the targets that are missed.")


def profile_table(results: Mapping[str, Sequence[Result]]) -> Any:
    """Where the time goes in what misses its target, and in what it is compared with.

    Args:
        results: of `companion.pages.benchmark_records.every_result`.

    Returns:
        A table of the longest operators, or, where no target is missed or nobody looked, a
        sentence.
    """
    missed = _missed(results)
    tables = {
        f"{wanted.told} ({wanted.where})": _side_by_side(group.baseline(wanted.target), row)
        for wanted, group, row in missed
        if row.longest
    }
    unseen = dict.fromkeys(
        f"{wanted.command} --profile"
        for wanted, _, row in missed
        if wanted.benchmark in _PROFILED and not row.longest and not wanted.alone
    )
    if not tables:
        return sentence(f"Not profiled yet: `{'`, `'.join(unseen)}`." if unseen else "")
    caption = (
        "Measured here, by torch.profiler, in one call: milliseconds in the longest operators (on "
        "CUDA kernels), without what they call, and their share. What is empty is not among them."
        + (f" Not profiled yet: {', '.join(unseen)}." if unseen else "")
    )
    table = pd.concat(tables, names=["", ""])
    return marked(table.style, "measured", caption)


def _missed(results: Mapping[str, Sequence[Result]]) -> list[tuple[Wanted, Group, Row]]:
    places = [(one, one.measured(results.get(one.benchmark, ()))) for one in TARGETS]
    return [
        (one, *place)
        for one, place in places
        if place and one.target.judge(place[0].found(place[1], one.target)) == "missed"
    ]


def _side_by_side(baseline: Row, row: Row) -> pd.DataFrame:
    def column(longest: Sequence[Operator]) -> dict[str, str]:
        return {each.name: f"{digits(each.ms)} ({each.share:.0%})" for each in longest}

    columns = {"this": column(row.longest)}
    if baseline is not row:
        columns["compared with"] = column(baseline.longest)
    names = list(dict.fromkeys(name for each in columns.values() for name in each))
    return pd.DataFrame(columns).reindex(names).fillna("")


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
        results: of that benchmark, see `companion.pages.benchmark_records.find_results`.
        profile: its name.
        path: of the claims.

    Raises:
        FusionError: see `companion.claims.claims.record_claim`.

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


def _row(wanted: Wanted, results: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    place = wanted.measured(results.get(wanted.benchmark, ()))
    counted = [r.groups for r in results.get("floor", ()) if r.size == wanted.size]

    def known(ratio: Callable[[Group, Row, Row], float | None]) -> str:
        """What stands behind the ratio that the target is about, if anybody counted or looked."""
        for groups in [[place[0]] if place else [], *counted]:
            found = wanted.find(groups) if wanted.target.of == "ratio" else None
            value = ratio(*found, found[0].baseline(wanted.target)) if found else None
            if value:
                return f"{value:.2f}"
        return ""

    on_gpu = wanted.device == "cuda"
    told = {
        "where": wanted.where,
        "what": wanted.told,
        "target": f"{wanted.target} {wanted.unit}".strip(),
        "found": "",
        "outcome": f"not measured: {wanted.command}",
        "floor, counted": known(Group.floor),
        "kernels, counted": known(Group.kernel_ratio) if on_gpu else "",
        "time in kernels": known(Group.busy_ratio) if on_gpu else "",
    }
    if place:
        found = place[0].found(place[1], wanted.target)
        outcome: str = wanted.target.judge(found)
        if np.isnan(found.low):  # of one round, which has no interval
            alone = Interval(found.estimate, found.estimate, found.estimate)
            outcome = f"{wanted.target.judge(alone)}, in one round"
        told |= {"found": bracketed(found), "outcome": outcome}
    return told


@dataclass(frozen=True)
class Optimisation:
    """Two rows of a benchmark.

    Attributes:
        told: what was done.
        expected: what it should gain; None where counted operations say it.
        benchmark: its name.
        group: how its title begins; the first group of which that is true is meant.
        row: with it.
        without: the row that it is compared with.
        decision: what became of it, and why.
    """

    told: str
    expected: str | None
    benchmark: str
    group: str
    row: str
    without: str
    decision: str

    def find(self, groups: Sequence[Group]) -> tuple[Group, Row, Row] | None:
        """The group and both rows, if they were measured."""
        for group in groups:
            named = {row.name: row for row in group.rows}
            if group.title.startswith(self.group) and {self.row, self.without} <= named.keys():
                return group, named[self.row], named[self.without]
        return None


_STEP, _CACHED = "A training step of one picture", "fused, latents and text cached"


_ENCODED, _KEPT = "fused, encoded in every step", "fused, latents, text and h_f cached"


OPTIMISATIONS = (
    Optimisation(
        "The reference encoded once, without noise, rather than at every step",
        None, "generation", "One reference", "fused, clean cache", "fused, shared timestep",
        "kept, as the default",
    ),
    Optimisation(
        "K' and V' of the text and the faces joined once, not at each step; a picture of one face",
        None, "generation", "One reference", "fused, clean cache",
        "fused, clean cache, joined at each step",
        "kept, in the clean mode with joint guidance, unless a callback might change them",
    ),
    Optimisation(
        "The same, a picture of four faces",
        None, "generation", "Four references", "fused, clean cache",
        "fused, clean cache, joined at each step",
        "kept",
    ),
    Optimisation(
        "The same, a picture of three people with masks",
        None, "masks", "Three references", "masks, by layer",
        "masks, by layer, joined at each step",
        "kept",
    ),
    Optimisation(
        "Queries sorted by whom they may see, in place of a mask, in a layer of 64 x 64 positions",
        None, "masks", layer_title(3, 64), "grouped", "dense",
        "kept, for large layers",
    ),
    Optimisation(
        "The same, by the GPU alone",
        "less time: as many operations fewer", "masks", kernels_title(3, 64), "grouped", "dense",
        "kept",
    ),
    Optimisation(
        "The same in a layer of 32 x 32 positions, by the GPU alone",
        "less time: as many operations fewer", "masks", kernels_title(3, 32), "grouped", "dense",
        "dropped on CUDA: up to this size a layer is given the mask",
    ),
    Optimisation(
        "The same in a layer of 8 x 8 positions",
        None, "masks", layer_title(3, 8), "grouped", "dense",
        "dropped: small layers are given the mask",
    ),
    Optimisation(
        "A mask in small layers, sorted queries in the larger ones",
        "less time: fewer kernels to start", "masks", "Three references", "masks, by layer",
        "masks, grouped",
        "kept, as the default",
    ),
    Optimisation(
        "The sorted groups as sequences of different lengths, in one call of FlashAttention",
        "less time: three kernels to start in place of seven", "masks", "Three references",
        "masks, sequences", "masks, grouped",
        "dropped: it gains no more than a mask does in small layers, and in large ones its kernel "
        "takes longer than the one that PyTorch chooses",
    ),
    Optimisation(
        "The same in a layer of 64 x 64 positions, by the GPU alone",
        "no more time: the operations are the same", "masks", kernels_title(3, 64), "sequences",
        "grouped",
        "dropped",
    ),
    Optimisation(
        "The same in one kernel, by FlexAttention",
        "no more time: nothing is sorted", "masks", "Three references", "masks, flex",
        "masks, grouped",
        "offered, as `backend=\"flex\"`, and nowhere the default",
    ),
    Optimisation(
        "Strengths added to the logits, one row for all queries, in place of one more channel of "
        "the keys; a layer",
        "less time: nothing is copied or filled up", "masks", "Strengths",
        "added matrix", "one more channel",
        "kept, as the default",
    ),
    Optimisation(
        "The same, a picture",
        "less time, for the same reason", "masks", "One reference at half",
        "added matrix", "one more channel",
        "kept",
    ),
    Optimisation(
        "Latents and text of the training set encoded once",
        None, "training", _STEP, _CACHED, _ENCODED,
        "kept where the set fits into memory; elsewhere by `cached_variants`",
    ),
    Optimisation(
        "h_f of every picture of the training set computed once, too",
        None, "training", _STEP, _KEPT, _CACHED,
        "kept, as `cache_references`, the default: where h_f of the whole set fits into memory",
    ),
    Optimisation(
        "Attention in training by plain matrix products",
        "the same time: the operations are the same", "training", _STEP,
        f"{_CACHED}, plain attention", _CACHED,
        "kept in the recipes of the small models, `attention: plain`",
    ),
    Optimisation(
        "Activations computed twice, to hold fewer of them",
        "less memory, a third more time", "memory", _STEP, f"{_ENCODED}, checkpointing", _ENCODED,
        "offered, as `gradient_checkpointing`",
    ),
    Optimisation(
        "Pictures of a study in batches of four",
        "less time for a picture: weights are read once for four", "study", "Seconds for a picture",
        "batches of 4", "batches of 1",
        "dropped: in a batch a picture's last bits depend on its company",
    ),
    Optimisation(
        "Pictures of a study by two processes, of one thread each",
        "twice as many", "study", "Pictures a second", "2 processes", "1 process",
        "kept, as `--workers`",
    ),
    Optimisation(
        "Heavy packages imported where they are used",
        "less time than it takes to import torch", "startup", "A process", "fusionlib --help",
        "import torch",
        "kept",
    ),
)  # fmt: skip
"""In the order of the page."""


def optimisations_table(results: Mapping[str, Sequence[Result]]) -> Any:
    """Lay out what was done for speed, with what it gains by the records.

    Args:
        results: of `companion.pages.benchmark_records.every_result`.

    Returns:
        A table with a row for each, whether or not it was measured; a sentence without records.
    """
    if not any(results.values()):
        return sentence("Nothing was measured yet: `make bench`.")
    rows = {one.told: _cells(one, results.get(one.benchmark, ())) for one in OPTIMISATIONS}
    table = pd.DataFrame.from_dict(rows, orient="index")
    caption = (
        "Measured here: what a thing takes, or makes in a second, with it, divided by the same "
        "without it; ratios of medians, in brackets the 95% interval."
    )
    styler: Any = marked(table.style, "measured", caption)
    return styler


def _cells(one: Optimisation, results: Sequence[Result]) -> dict[str, str]:
    expected, measured = [one.expected] if one.expected else [], []
    for result in results:
        found = one.find(result.groups)
        if found is None:
            continue
        group, row, without = found
        where = f"{MODELS[result.size]}, {DEVICES[result.device]}"
        measured.append(f"{bracketed(group.interval(row, 'ratio', without))} ({where})")
        if not one.expected:
            counted = (
                ("operations", group.floor(row, without)),
                ("kernels", group.kernel_ratio(row, without)),
            )
            expected += [f"{digits(ratio)} by {what}" for what, ratio in counted if ratio]
    return {
        "expected": "; ".join(dict.fromkeys(expected)),
        "measured": "; ".join(measured) or f"not yet: python -m benchmarks {one.benchmark}",
        "decision": with_code(one.decision),
    }
