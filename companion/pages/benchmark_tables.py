"""What benchmarks measured, as tables: targets met and missed, optimisations, and all the rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion.claims.claims import find_claim
from companion.claims.evidence import Evidence, record_claim
from companion.evaluation.comparison import estimate_of
from companion.evaluation.statistics import Interval
from companion.figures.tables import marked_table
from companion.pages.benchmark_records import Counted, Group, Operator, Result, Row, find_rows
from companion.pages.benchmark_targets import (
    DEVICES,
    MODELS,
    Optimisation,
    Wanted,
    read_optimisations,
    read_targets,
)

Results = Mapping[str, Sequence[Result]]
"""Records by the benchmark's name: see `companion.pages.benchmark_records.every_result`."""


def targets_table(results: Results) -> Any:
    """Every target with what was found, or how to measure it, for the top of the page."""
    table = _of_targets({wanted: _row(wanted, results) for wanted in read_targets()})
    caption = "Nothing was measured yet."
    if (table["found"] != "").any():
        places = [_place(one, results) for one in read_targets()]
        caption = (
            "Measured here. A target is met or missed where the whole 95% interval says so. The "
            "floor is counted and not measured: operations in the same ratio. Beside it, for CUDA, "
            "stand the kernels, counted likewise, and the time in them by the profile of one call."
        )
        notes = dict.fromkeys(place[0].note for place in places if place and place[0].note)
        caption = " ".join([caption, *notes])
    styler: Any = marked_table(table, caption)
    return styler.map(lambda said: "color: gray" if said.startswith("no") else "", ["outcome"])


def missed_table(results: Results) -> Any:
    """Every target that is missed, with what was tried; a sentence where none is missed."""
    rows: dict[Wanted, dict[str, str]] = {}
    said = set()
    for wanted, _, _ in _missed(results):
        rows[wanted] = _row(wanted, results)
        rows[wanted]["tried"] = "as above" if wanted.tried in said else wanted.tried
        said.add(wanted.tried)
    if not rows:
        return sentence("No target is missed by what was measured.")
    table = _of_targets(rows)[["target", "found", "tried"]]  # the rest is in the table of all
    return marked_table(table, "Measured here: the targets that are missed.")


def profile_table(results: Results) -> Any:
    """Where the time goes in what misses its target, and in what it is compared with.

    A sentence stands in its place where no target is missed, or none of them was profiled.
    """
    tables, unseen = {}, {}
    for wanted, group, row in _missed(results):
        if row.longest:
            tables[wanted.name] = _side_by_side(group.baseline(wanted.target), row)
        elif wanted.profiled:
            unseen[f"{wanted.command} --profile"] = True
    if not tables:
        return sentence(f"Not profiled yet: `{'`, `'.join(unseen)}`." if unseen else "")
    caption = (
        "Measured here, by torch.profiler, in one call: milliseconds in the longest operators (on "
        "CUDA kernels), without what they call, and their share. What is empty is not among them."
        + (f" Not profiled yet: {', '.join(unseen)}." if unseen else "")
    )
    return marked_table(pd.concat(tables, names=["", ""]), caption)


def optimisations_table(results: Results) -> Any:
    """What was done for speed, with what it gains by the records; a sentence without records."""
    if not any(results.values()):
        return sentence("Nothing was measured yet: `make bench`.")
    rows = {one.what: _gain(one, results) for one in read_optimisations()}
    caption = (
        "Measured here: what a thing takes, or makes in a second, with it, divided by the same "
        "without it; ratios of medians, in brackets the 95% interval."
    )
    return marked_table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def benchmark_table(results: Sequence[Result], name: str) -> Any:
    """All rows that one benchmark measured; a sentence names it where there are none."""
    if not results:
        return sentence(missing(name))
    notes = [group.note for result in results for group in result.groups if group.note]
    said = [*(result.run for result in results), *dict.fromkeys(notes)]
    caption = f"{' '.join(said)} Medians over rounds, in brackets the 95% interval."
    styler = marked_table(benchmark_frame(results), f"Measured here. {caption}")
    styler.cell_ids = False  # type: ignore[attr-defined]  # a third of a long table's HTML
    return styler


def benchmark_frame(results: Sequence[Result]) -> pd.DataFrame:
    """The cells of `benchmark_table`, as text."""
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
    first = ("median (quartiles)", "ratio", "difference")
    return table[sorted(table, key=lambda column: column not in first)]


def masks_table(results: Sequence[Result]) -> Any:
    """How many times longer an attention layer takes with a dense mask than sorted.

    Both the table and the sentence that stands in its place are HTML, for other pages, too.
    """
    layers = dense_to_sorted(results)
    if not layers:
        return sentence(missing("masks"))
    table = pd.DataFrame({where: pd.Series(times) for where, times in layers.items()}).T
    table = table.map(lambda times: bracketed(times) if isinstance(times, Interval) else "")
    table = table.rename(columns=lambda people: "1 person" if people == 1 else f"{people} people")
    runs = " ".join(result.run for result in results if dense_to_sorted([result]))
    caption = f"Measured here. {runs} Ratios of medians, in brackets the 95% interval."
    return marked_table(table, caption)


def dense_to_sorted(results: Sequence[Result]) -> dict[str, dict[int, Interval]]:
    """How many times longer a dense mask takes than sorted queries, by layer and people."""
    found: dict[str, dict[int, Interval]] = {}
    for result in results:
        for group in result.groups:
            title = re.fullmatch(r"(\d+) identit\w+, one layer of (\d+) x .*", group.title)
            place = find_rows([group], "", "grouped")
            if title and place:
                where = f"{title[2]} × {title[2]}, {'GPU' if result.device == 'cuda' else 'CPU'}"
                ratio = group.interval(place[1][0], "ratio")  # to the dense mask's time
                times = Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low)
                found.setdefault(where, {})[int(title[1])] = times
    # The CPU's before the GPU's, and from few positions to many.
    return dict(sorted(found.items(), key=lambda item: (item[0][-3:], int(item[0].split()[0]))))


WHOLE_UNET, TWO_LAYERS = "the whole UNet, without references", "fused, encoded in every step"
"""Rows of the benchmark ``training`` that decide whether training is cheap."""


def record_training(
    out: str | Path, claim: str, results: Sequence[Result], profile: str
) -> list[Evidence]:
    """Record what the benchmark ``training`` says of the claim that training is cheap.

    The sentence speaks of training two layers instead of more, so a step of theirs is compared with
    one of the whole UNet on the same picture, both encoding everything in every step. There is no
    evidence where the claim cannot be tested, or this was not measured. Of several sizes, the
    largest counts. It is also written into the notebook's `out`.
    """
    if profile in find_claim(claim).obstacle:
        return []
    evidence = []
    for result in sorted(results, key=lambda one: one.size == "full"):
        for group in result.groups:
            rows = {row.name: row.values for row in group.rows}
            if WHOLE_UNET not in rows or TWO_LAYERS not in rows:
                continue
            pairs = zip(rows[TWO_LAYERS], rows[WHOLE_UNET], strict=True)
            found = estimate_of([1 - ours / whole for ours, whole in pairs])
            run = f"{result.where}, {result.created[:10]}"
            evidence = [record_claim(out, claim, found, profile=profile, run=run)]
            break  # the first group is that of one picture a step
    return evidence


def missing(name: str) -> str:
    """What stands where nothing was measured yet."""
    return f"Not measured yet: `python -m benchmarks {name}`."


def sentence(text: str) -> Any:
    """A sentence in HTML, as a notebook shows it and other pages, too; backticks mark code."""
    from IPython.display import HTML

    return HTML(f"<p>{_with_code(text)}</p>" if text else "")


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


def _with_code(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", text)


def _place(wanted: Wanted, results: Results) -> tuple[Group, Row] | None:
    return wanted.measured(results.get(wanted.benchmark, ()))


def _missed(results: Results) -> list[tuple[Wanted, Group, Row]]:
    places = [(one, place) for one in read_targets() if (place := _place(one, results))]
    return [
        (one, group, row)
        for one, (group, row) in places
        if one.target.judge(group.found(row, one.target)) == "missed"
    ]


def _of_targets(rows: Mapping[Wanted, Mapping[str, str]]) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples([(one.where, one.what) for one in rows], names=[None, None])
    return pd.DataFrame(list(rows.values()), index=index)


def _row(wanted: Wanted, results: Results) -> dict[str, str]:
    target, place = wanted.target, _place(wanted, results)

    def known(of: Counted) -> str:
        """What stands behind the ratio that the target is about, if it was counted or profiled."""
        if not place or target.of != "ratio":
            return ""
        value = place[0].counted(of, place[1], place[0].baseline(target))
        return f"{value:.2f}" if value else ""

    outcome = "no longer measured" if wanted.dropped else f"not measured: {wanted.command}"
    found = None
    if place:
        found = place[0].found(place[1], target)
        outcome = target.judge(found)
        if np.isnan(found.low):  # of one round, which has no interval
            alone = Interval(found.estimate, found.estimate, found.estimate)
            outcome = f"{target.judge(alone)}, in one round"
    on_gpu = wanted.device == "cuda"
    return {
        "target": f"{target} {wanted.unit}".strip(),
        "found": bracketed(found) if found else "",
        "outcome": outcome,
        "floor, counted": known("operations"),
        "kernels, counted": known("kernels") if on_gpu else "",
        "time in kernels": known("busy") if on_gpu else "",
    }


def _side_by_side(baseline: Row, row: Row) -> pd.DataFrame:
    def column(longest: Sequence[Operator]) -> dict[str, str]:
        return {each.name: f"{digits(each.ms)} ({each.share:.0%})" for each in longest}

    columns = {"this": column(row.longest)}
    if baseline is not row:
        columns["compared with"] = column(baseline.longest)
    names = list(dict.fromkeys(name for each in columns.values() for name in each))
    return pd.DataFrame(columns).reindex(names).fillna("")


def _gain(one: Optimisation, results: Results) -> dict[str, str]:
    expected, measured = [one.expected] if one.expected else [], []
    for result in results.get(one.benchmark, ()):
        if found := find_rows(result.groups, one.group, one.row, one.without):
            group, (row, without) = found
            where = f"{MODELS[result.size]}, {DEVICES[result.device]}"
            measured.append(f"{bracketed(group.interval(row, 'ratio', without))} ({where})")
            if not one.expected:
                counts = {
                    "operations": group.counted("operations", row, without),
                    "kernels": group.counted("kernels", row, without),
                }
                expected += [f"{digits(n)} by {of}" for of, n in counts.items() if n]
    untold = f"not yet: python -m benchmarks {one.benchmark}"
    return {
        "expected": "; ".join(dict.fromkeys(expected)),
        "measured": one.measured or "; ".join(measured) or untold,
        "decision": _with_code(one.decision),
    }


def _cells(group: Group, row: Row) -> dict[str, str]:
    first = row is group.rows[0]
    low, median, high = np.quantile(row.values, [0.25, 0.5, 0.75])
    spread = f" ({digits(low)} to {digits(high)})" if len(row.values) > 2 else ""
    cells = {"median (quartiles)": f"{digits(median)}{spread} {group.unit}"}
    if group.shows != "value" and not first:
        cells[group.shows] = bracketed(group.interval(row))
    floor, kernels = group.counted("operations", row), group.counted("kernels", row)
    cells["floor by operations"] = f"{floor:.2f}" if floor and not first else ""
    cells["by kernels"] = f"{kernels:.2f}" if kernels and not first else ""
    cells["target"] = f"{row.target}" if row.target else ""
    if row.target and (row.target.against or row.target.of != group.shows):
        cells["target"] += f": {bracketed(group.found(row, row.target))}"
    cells["outcome"] = group.outcome(row) or ""
    return cells
