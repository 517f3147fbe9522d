"""What benchmarks measured: a record that is a small JSON file, shown as a figure and a table.

`benchmarks/` writes the records (``python -m benchmarks``), the page "What it costs" shows them.
The single measurements are kept; medians, ratios and intervals follow from them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion.evaluation.statistics import Interval
from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.style import INK, MEASURED, QUIET
from companion.figures.tables import marked
from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

Of = Literal["value", "ratio", "difference"]
"""A number by itself, divided by the baseline's, or less the baseline's."""

Outcome = Literal["met", "missed", "undecided"]

NAMES = (
    "startup",
    "generation",
    "masks",
    "training",
    "memory",
    "study",
    "evaluation",
    "whole",
    "floor",
)
"""Of the benchmarks, in the order of the page; the last counts and times nothing."""

RESAMPLES = 9_999

MISSED = "#b3261e"


@dataclass(frozen=True)
class Target:
    """What a measurement shall reach.

    Attributes:
        of: the number that is meant.
        limit: where it lies.
        at_least: whether more is better.
        against: the row that it is compared with; by default the first.
    """

    of: Of
    limit: float
    at_least: bool = False
    against: str = ""

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
    """One of PyTorch's operators, or a kernel on CUDA, in a profile of one call.

    Attributes:
        name: PyTorch's.
        ms: milliseconds in all its calls, without what it calls itself.
        share: of the time of all operators.
    """

    name: str
    ms: float
    share: float


@dataclass(frozen=True)
class Row:
    """One of the things that were measured beside each other.

    Attributes:
        name: what it is.
        values: one for each round, in the unit of its group.
        operations: floating-point operations counted in one call, None where nobody counted.
        target: what is asked of it, if anything is.
        longest: its longest operators, where somebody looked.
        kernels: that one call starts, None where nobody counted.
    """

    name: str
    values: tuple[float, ...]
    operations: float | None = None
    target: Target | None = None
    longest: tuple[Operator, ...] = ()
    kernels: float | None = None

    @property
    def busy(self) -> float | None:
        """Milliseconds in all operators of one call, on CUDA in kernels, where somebody looked."""
        share = sum(each.share for each in self.longest)
        return sum(each.ms for each in self.longest) / share if share else None


@dataclass(frozen=True)
class Group:
    """Things that were measured in turn, round by round, in one process.

    Attributes:
        title: what is compared.
        unit: of the values.
        rows: the first is what the others are compared with.
        shows: the number that matters here.
        note: a sentence on how it was measured, where that does not go without saying.
    """

    title: str
    unit: str
    rows: tuple[Row, ...]
    shows: Of = "ratio"
    note: str = ""

    def baseline(self, target: Target | None = None) -> Row:
        """What a target compares with: the first row, unless it names another one."""
        named = target.against if target else ""
        return next((row for row in self.rows if row.name == named), self.rows[0])

    def interval(self, row: Row, of: Of | None = None, to: Row | None = None) -> Interval:
        """A row's number: of medians over the rounds, with a 95% interval by resampled rounds.

        Rounds are resampled whole (paired), so what slowed a whole round down does not widen the
        interval of a ratio. With a single round there is no interval: its ends are NaN.

        Args:
            row: of this group.
            of: which number; by default the one that matters here.
            to: what it is compared with; by default the first row.
        """
        of, to = of or self.shows, to or self.rows[0]
        ones, firsts = np.array(row.values), np.array(to.values)
        if of == "value":
            return _interval(ones, None, of)
        if row is to:
            fixed = 1.0 if of == "ratio" else 0.0
            return Interval(fixed, fixed, fixed)
        return _interval(ones, firsts, of)

    def floor(self, row: Row, to: Row | None = None) -> float | None:
        """Counted operations, divided by another row's: the ratio of times at equal speed."""
        first = (to or self.rows[0]).operations
        return row.operations / first if row.operations and first else None

    def kernel_ratio(self, row: Row, to: Row | None = None) -> float | None:
        """Counted kernels, divided by another row's: the ratio where their start decides."""
        first = (to or self.rows[0]).kernels
        return row.kernels / first if row.kernels and first else None

    def busy_ratio(self, row: Row, to: Row | None = None) -> float | None:
        """Time in the kernels, divided by another row's: the ratio where that decides."""
        first = (to or self.rows[0]).busy
        return row.busy / first if row.busy and first else None

    def found(self, row: Row, target: Target) -> Interval:
        """The number that a target is about."""
        return self.interval(row, target.of, self.baseline(target))

    def outcome(self, row: Row) -> Outcome | None:
        """Whether the row's target is met, None where it has none."""
        return row.target.judge(self.found(row, row.target)) if row.target else None


@dataclass(frozen=True)
class Result:
    """All that one run of a benchmark measured.

    Attributes:
        name: of the benchmark.
        size: of the models: ``tiny``, ``embedded`` or ``full``.
        device: ``cpu`` or ``cuda``.
        dtype: of the models.
        machine: what it ran on, as `benchmarks.alternate.describe_machine` tells it.
        commit: of the code.
        created: when it ended, in ISO format.
        seconds: how long all of it took.
        groups: what was measured.
        profiled: whether the longest operators were looked at, where a target is set.
    """

    name: str
    size: str
    device: str
    dtype: str
    machine: Mapping[str, Any]
    commit: str | None
    created: str
    seconds: float
    groups: tuple[Group, ...]
    profiled: bool = False

    @cached_property
    def file_name(self) -> str:
        """``NAME-SIZE-DEVICE.json``."""
        return f"{self.name}-{self.size}-{self.device}.json"

    @property
    def where(self) -> str:
        """Size, type and machine in a few words, for a heading."""
        return f"{self.size}, {self.dtype}, {self.machine.get('gpu') or self.machine['cpu']}"

    def write(self, folder: Path) -> Path:
        """Write the record, with the numbers that follow from it for who reads it without us."""
        content = asdict(self)
        for group, shown in zip(self.groups, content["groups"], strict=True):
            for row, entry in zip(group.rows, shown["rows"], strict=True):
                quartiles = np.quantile(row.values, [0.25, 0.5, 0.75])
                ratio = group.interval(row, "ratio")
                entry["derived"] = {
                    "quartiles": [float(q) for q in quartiles],
                    "ratio": [_or_none(v) for v in (ratio.estimate, ratio.low, ratio.high)],
                    "floor": group.floor(row),
                    "kernel_ratio": group.kernel_ratio(row),
                    "outcome": group.outcome(row),
                }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        partial = path.with_suffix(".partial")  # a run that is cut off leaves the former record
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, path)
        return path


def read_result(path: str | Path) -> Result:
    """Read a record that `Result.write` wrote.

    Raises:
        FusionError: there is none, or it is damaged.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        groups = []
        for group in content.pop("groups"):
            rows = []
            for entry in group.pop("rows"):
                entry.pop("derived", None)
                target = entry.pop("target")
                values = tuple(map(float, entry.pop("values")))
                longest = tuple(Operator(**each) for each in entry.pop("longest", ()))
                asked = Target(**target) if target else None
                rows.append(Row(values=values, target=asked, longest=longest, **entry))
            groups.append(Group(rows=tuple(rows), **group))
        return Result(groups=tuple(groups), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FusionError(
            f"The benchmark's record {path} cannot be read ({type(error).__name__}: {error}): make "
            "it again by `python -m benchmarks NAME`."
        ) from error


def find_results(folder: str | Path, name: str) -> list[Result]:
    """The records of one benchmark: the CPU's first, small models first; none is no error."""
    order = {"tiny": 0, "embedded": 1, "full": 2}
    found = [read_result(path) for path in sorted(Path(folder).glob(f"{name}-*-*.json"))]
    return sorted(found, key=lambda r: (r.device != "cpu", order.get(r.size, 3)))


def every_result(folder: str | Path) -> dict[str, list[Result]]:
    """The records of a folder by the benchmark's name; of one without any, an empty list.

    Operations that nobody counted where the time was taken are those of ``floor``, if it knows,
    and so are kernels, on CUDA.

    Raises:
        FusionError: a record is damaged.
    """
    names = {path.name.split("-")[0] for path in Path(folder).glob("*-*-*.json")}
    floors = {result.size: result for result in find_results(folder, "floor")}
    return {
        name: [_counted(each, floors.get(each.size)) for each in find_results(folder, name)]
        for name in sorted({*NAMES, *names})
    }


def _counted(result: Result, floor: Result | None) -> Result:
    """With what `floor` counted and the record does not know; kernels matter on CUDA alone."""

    def key(group: Group, row: Row) -> tuple[str, str]:
        return group.title.split(",")[0], row.name  # behind it stands what was measured

    known = {key(g, r): r for g in (floor.groups if floor else ()) for r in g.rows}
    if result.name == "floor":
        return result

    def counted(group: Group, row: Row) -> Row:
        found = known.get(key(group, row))
        if found is None:
            return row
        kernels = found.kernels if result.device == "cuda" else None
        return replace(row, operations=row.operations or found.operations, kernels=kernels)

    groups = (replace(g, rows=tuple(counted(g, row) for row in g.rows)) for g in result.groups)
    return replace(result, groups=tuple(groups))


def missing(name: str) -> str:
    """What stands where nobody has measured yet."""
    return f"Not measured yet: `python -m benchmarks {name}`."


def benchmark_plot(results: Sequence[Result], name: str, titled: str = "") -> Any:
    """Draw what was measured: a dot and a 95% interval for each row.

    The dashed line is the target, the small upright mark the floor by counted operations, and the
    hollow diamond the ratio of counted kernels. Each group is a panel; with several records, those
    of each stand under its heading.

    Args:
        results: of `find_results`.
        name: of the benchmark, for what stands in place of a figure that cannot be drawn.
        titled: how the titles of the groups begin that are drawn; by default all are.

    Returns:
        A picture, or, where nothing was measured, a sentence for the notebook to show.
    """
    if not results:
        return sentence(missing(name))
    shown = [
        (group, result.where if number == 0 and len(results) > 1 else "")
        for result in results
        for number, group in enumerate(g for g in result.groups if g.title.startswith(titled))
    ]
    heights = [len(group.rows) + 1.2 for group, _ in shown]
    heads = sum(bool(where) for _, where in shown)
    figure = Figure(
        figsize=(8, 0.31 * sum(heights) + 0.4 * (len(shown) + heads) + 0.3),
        layout="constrained",
        dpi=130,
    )
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    words = []
    for axes, (group, where) in zip(panels, shown, strict=True):
        said = _panel(axes, group)
        words.append(f"{where}: {said}" if where else said)
        axes.set_title(group.title, loc="left", fontsize=9, color=INK)
        if where:
            axes.annotate(
                where,
                (0, 1),
                xytext=(0, 24),
                xycoords=("figure fraction", "axes fraction"),
                textcoords="offset points",
                fontsize=10,
                fontweight="bold",
                color=INK,
            )
    return with_alt_text(VectorFigure(figure), " ".join(words))


def layer_title(identities: int, side: int) -> str:
    """The title of a group of the benchmark ``masks``: one layer, so many people and positions."""
    people = "1 identity" if identities == 1 else f"{identities} identities"
    return f"{people}, one layer of {side} x {side} positions"


GPU_ALONE = "The GPU alone"
"""How the title of a group begins in which no processor starts the kernels one by one."""


def kernels_title(identities: int, side: int) -> str:
    """The title of a group of the same layer, of which the GPU's time alone is measured."""
    return f"{GPU_ALONE}: {layer_title(identities, side)}"


def _layers(results: Sequence[Result]) -> dict[str, dict[int, Interval]]:
    """How many times longer a dense mask takes than sorted queries, by layer and people."""
    found: dict[str, dict[int, Interval]] = {}
    for result in results:
        for group in result.groups:
            title = re.fullmatch(r"(\d+) identit\w+, one layer of (\d+) x .*", group.title)
            named = {row.name: row for row in group.rows}
            if title and "grouped" in named:
                where = f"{title[2]} × {title[2]}, {'GPU' if result.device == 'cuda' else 'CPU'}"
                ratio = group.interval(named["grouped"], "ratio")  # to the dense mask's time
                times = Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low)
                found.setdefault(where, {})[int(title[1])] = times
    # The CPU's before the GPU's, and from few positions to many.
    return dict(sorted(found.items(), key=lambda item: (item[0][-3:], int(item[0].split()[0]))))


def masks_table(results: Sequence[Result]) -> Any:
    """How many times longer an attention layer takes with a dense mask than sorted.

    Args:
        results: of the benchmark ``masks``, see `find_results`.

    Returns:
        A table in HTML, which other pages can show, too, or, where nothing was measured, a
        sentence likewise.
    """
    layers = _layers(results)
    if not layers:
        return _Sentence(missing("masks"))
    table = pd.DataFrame({where: pd.Series(times) for where, times in layers.items()}).T
    table = table.map(lambda times: bracketed(times) if isinstance(times, Interval) else "")
    table = table.rename(columns=lambda people: "1 person" if people == 1 else f"{people} people")
    shown = [result for result in results if _layers([result])]
    caption = " ".join(map(_ran, shown)) + " Ratios of medians, in brackets the 95% interval."
    styler: Styler = marked(table.style, "measured", f"Measured here. {caption}")
    return styler


def masks_plot(results: Sequence[Result]) -> Any:
    """Draw what `masks_table` tells.

    Args:
        results: of the benchmark ``masks``, see `find_results`.

    Returns:
        A picture, or, where nothing was measured, a sentence for the notebook to show.
    """
    lines = _layers(results)
    if not lines:
        return sentence(missing("masks"))
    places = list(dict.fromkeys(where.rpartition(", ")[2] for where in lines))
    figure = Figure(figsize=(7.5, 3.4), layout="constrained", dpi=150)
    panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    words = []
    for axes, place in zip(panels, places, strict=True):
        axes.axhline(1, color=QUIET, linewidth=0.8, zorder=0)
        ends = {}
        for number, (where, measured) in enumerate(
            (where, measured) for where, measured in lines.items() if where.endswith(place)
        ):
            people = list(measured)
            found = np.array([(t.low, t.estimate, t.high) for t in measured.values()]).T
            axes.errorbar(
                people,
                found[1],
                np.nan_to_num([found[1] - found[0], found[2] - found[1]]),
                color=(MEASURED, INK, QUIET)[number % 3],
                marker="os^D"[number % 4],
                markersize=5,
                linewidth=1.6,
            )
            ends[where.rpartition(", ")[0]] = people[-1], found[1][-1]
            each = zip(people, found[1], strict=True)
            words.append(f"{where}: {', '.join(f'{digits(t)} for {n}' for n, t in each)}")
        highest = -np.inf
        for side, (last, height) in sorted(ends.items(), key=lambda end: end[1][1]):
            highest = max(height, highest + 0.13)  # a line of text
            axes.annotate(
                side, (last, height), xytext=(last + 0.14, highest), va="center", fontsize=8.5
            )
        axes.set_title(place, loc="left", fontsize=9.5, color=INK)
        axes.set_xticks([1, 2, 3, 4])
        axes.set_xlim(0.8, 5)
        axes.set_xlabel("people in the picture", fontsize=9)
        axes.tick_params(labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("dense mask: times as long as sorted", fontsize=9)
    alt = "How many times longer a layer takes with a dense mask than with sorted queries, for one "
    return with_alt_text(VectorFigure(figure), f"{alt}to four people. {'; '.join(words)}.")


def _panel(axes: Any, group: Group) -> str:
    """Draw one group; returns what it shows in words."""
    colours = {"met": MEASURED, "missed": MISSED}
    said = []
    for height, row in enumerate(group.rows[::-1]):
        found = group.interval(row)
        outcome = group.outcome(row)
        colour = colours.get(outcome or "met", INK)
        if row is group.rows[0] and group.shows != "value":
            colour = QUIET
        if not np.isnan(found.low):
            axes.plot([found.low, found.high], [height] * 2, color=colour, linewidth=2.5)
        axes.plot(found.estimate, height, "o", color=colour, markersize=5.5)
        marks = [found.estimate, found.high]
        floor = group.floor(row)
        if group.shows == "ratio" and floor is not None and row is not group.rows[0]:
            marks.append(floor)
            axes.plot([floor] * 2, [height - 0.28, height + 0.28], color=QUIET, linewidth=1.5)
        kernels = group.kernel_ratio(row)
        if group.shows == "ratio" and kernels is not None and row is not group.rows[0]:
            marks.append(kernels)
            axes.plot(kernels, height, "D", markersize=5, mec=QUIET, mfc="none", mew=1.2, zorder=0)
        if row.target and row.target.of == group.shows and not row.target.against:
            marks.append(row.target.limit)
            at = [row.target.limit] * 2
            axes.plot(at, [height - 0.45, height + 0.45], color=INK, linestyle=(0, (3, 2)), lw=1.2)
        axes.annotate(  # right of all marks, so that none runs through it
            digits(found.estimate),
            (float(np.nanmax(marks)), height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )
        said.append(f"{row.name} {digits(found.estimate)}")
    names = [row.name for row in group.rows[::-1]]
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_ylim(-0.6, len(names) - 0.4)
    lowest = min(group.interval(row).estimate for row in group.rows)
    left = axes.get_xlim()[0] if lowest < 0 else 0  # a difference may be less than nothing
    axes.set_xlim(left=left)
    axes.set_xmargin(0.12)
    axes.autoscale_view(scaley=False)
    axes.set_xlim(left=left)
    if group.shows == "ratio":
        axes.axvline(1, color=QUIET, linewidth=0.8, zorder=0)
    axes.set_xlabel(quantity(group), fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return f"{group.title}, {quantity(group)}: {'; '.join(said[::-1])}."


def quantity(group: Group) -> str:
    """What the number that matters is counted in."""
    if group.shows == "value":
        return group.unit
    first = group.rows[0].name
    return f"times {first}" if group.shows == "ratio" else f"{group.unit} more than {first}"


def benchmark_table(results: Sequence[Result], name: str) -> Any:
    """Lay out what was measured, marked as measured here, with targets met or missed.

    Args:
        results: of `find_results`.
        name: of the benchmark.

    Returns:
        A table with a row for each thing that was measured, or, where nothing was, a sentence.
    """
    if not results:
        return sentence(missing(name))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for result in results:
        for group in result.groups:
            for row in group.rows:
                key = (f"{result.size}, {result.device}", group.title, row.name)
                rows[key] = _cells(group, row)
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    table.index = pd.MultiIndex.from_tuples(rows, names=["models", "what", ""])
    if table.index.get_level_values(0).nunique() == 1:
        table = table.droplevel(0)
    table = table.loc[:, (table != "").any()]
    # What counts comes first: a narrow page shows no more than the first columns.
    table = table[sorted(table, key=lambda name: name not in ("median (quartiles)", *_COMPARED))]
    notes = [group.note for result in results for group in result.groups if group.note]
    caption = (
        " ".join([*map(_ran, results), *dict.fromkeys(notes)])
        + " Medians over rounds, in brackets the 95% interval."
    )
    style = table.style
    style.cell_ids = False  # type: ignore[attr-defined]  # a third of a long table's HTML
    styler: Styler = marked(style, "measured", f"Measured here. {caption}")
    return styler


_COMPARED = ("ratio", "difference")


def _cells(group: Group, row: Row) -> dict[str, str]:
    first = row is group.rows[0]
    quartiles = np.quantile(row.values, [0.25, 0.75])
    spread = f" ({digits(quartiles[0])} to {digits(quartiles[1])})" if len(row.values) > 2 else ""
    cells = {"median (quartiles)": f"{digits(float(np.median(row.values)))}{spread} {group.unit}"}
    if group.shows != "value" and not first:
        compared = "ratio" if group.shows == "ratio" else "difference"
        cells[compared] = bracketed(group.interval(row))
    floor = group.floor(row)
    cells["floor by operations"] = f"{floor:.2f}" if floor is not None and not first else ""
    kernels = group.kernel_ratio(row)
    cells["by kernels"] = f"{kernels:.2f}" if kernels is not None and not first else ""
    cells["target"] = f"{row.target}" if row.target else ""
    if row.target and (row.target.against or row.target.of != group.shows):
        cells["target"] += f": {bracketed(group.found(row, row.target))}"
    cells["outcome"] = group.outcome(row) or ""
    return cells


def _ran(result: Result) -> str:
    machine = result.machine
    gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
    return (
        f"{result.size} on {result.device}: {gpu}{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, load {machine['load']:.1f} before it began, torch "
        f"{machine['torch']}, {result.dtype}, commit {(result.commit or 'unknown')[:8]}, "
        f"{result.created[:10]}."
    )


def in_words(result: Result) -> str:
    """A record as lines for a terminal."""
    lines = [_ran(result)]
    for group in result.groups:
        lines.append(f"\n{group.title}" + (f" ({group.note})" if group.note else ""))
        for row in group.rows:
            cells = {k: v for k, v in _cells(group, row).items() if v}
            cells["median"] = cells.pop("median (quartiles)")
            lines.append(f"  {row.name:34} " + ", ".join(f"{k} {v}" for k, v in cells.items()))
    return "\n".join(lines)


def digits(value: float) -> str:
    """A number to three significant digits, without powers of ten."""
    if not np.isfinite(value):
        return "–"
    places = 2 if value == 0 else max(2 - int(np.floor(np.log10(abs(value)))), 0)
    return f"{value:,.{min(places, 4)}f}"


def bracketed(found: Interval) -> str:
    """An estimate with its interval, if it has one."""
    if np.isnan(found.low):
        return digits(found.estimate)
    return f"{digits(found.estimate)} [{digits(found.low)}, {digits(found.high)}]"


def _interval(ones: np.ndarray, firsts: np.ndarray | None, of: Of) -> Interval:
    import scipy.stats

    def statistic(ones: Any, firsts: Any = None, axis: int = -1) -> Any:
        median = np.median(ones, axis=axis)
        if firsts is None:
            return median
        other = np.median(firsts, axis=axis)
        return median / other if of == "ratio" else median - other

    samples = (ones,) if firsts is None else (ones, firsts)
    if len({len(sample) for sample in samples}) != 1:
        raise FusionError("The rows of a group need one value for each round: not so here.")
    estimate = float(statistic(*samples))
    if len(ones) < 2:
        return Interval(estimate, np.nan, np.nan)
    found = scipy.stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",  # BCa's jackknife fails for medians
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high))


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def with_code(text: str) -> str:
    """What stands between backticks as code, in HTML."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", text)


def sentence(text: str) -> Any:
    """A sentence in Markdown, as a notebook shows it."""
    from IPython.display import Markdown

    return Markdown(text)


@dataclass(frozen=True)
class _Sentence:
    """A sentence that other pages can show, too: they take HTML and pictures only."""

    text: str

    def _repr_html_(self) -> str:
        return f"<p>{with_code(self.text)}</p>"
