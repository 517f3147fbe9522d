"""Figures and tables of the book: pictures shown sharp, quoted and measured numbers kept apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from companion.claims.quoted import as_printed, read_quoted
from companion.evaluation.comparison import (
    IdentityScores,
    identity_table,
    means_by_method,
    paired_difference,
)
from companion.figures.style import MEASURED, QUOTED

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

    from companion.evaluation.separation import Separation


def summary_table(rows: Mapping[str, Mapping[str, object]], run: str) -> Styler:
    """Lay out numbers or intervals, a row for each method, marked as measured here."""
    shown = pd.DataFrame(list(rows.values()), index=list(rows)).map(str)
    return marked(shown.style, "measured", f"Measured here, with 95% intervals. {run}")


def quoted_table(path: str | Path) -> Styler:
    """Lay out one of the paper's tables (``data/paper/*.csv``), marked as quoted."""
    numbers = read_quoted(path)
    return marked(as_printed(numbers).style.format("{:.2f}", na_rep="–"), "quoted", _place(numbers))


def _place(numbers: pd.DataFrame) -> str:
    first = numbers.iloc[0]
    return (
        f"Quoted from the paper: Table {first['table']} (Section {first['section']}). "
        f"{first['caption']}"
    )


def side_by_side(quoted: pd.DataFrame, measured: pd.DataFrame, run: str) -> Styler:
    """Lay the paper's numbers and ours side by side, each in columns of its own and so marked.

    A row that only one of the two has is a dash in the other's columns: nothing is matched that
    does not have the same name.

    Args:
        quoted: as `companion.claims.quoted.read_quoted` returns it.
        measured: what was measured here, in rows and columns of any names; numbers or intervals.
        run: see `run_label`.
    """
    printed = as_printed(quoted).map(lambda value: "–" if pd.isna(value) else f"{value:.2f}")
    ours = measured.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
    table = pd.concat({"quoted": printed, "measured here": ours}, axis=1).fillna("–")
    table = table.loc[[*printed.index, *ours.index.difference(printed.index, sort=False)]]
    styler = marked(table.style, "measured", f"{_place(quoted)} Measured here: {run}")
    styles: dict[Any, Any] = {}
    for kind, columns in (("quoted", printed.columns), ("measured", ours.columns)):
        colour = f"var(--{kind}, {QUOTED if kind == 'quoted' else MEASURED})"
        for name in columns:
            key = ("quoted" if kind == "quoted" else "measured here", name)
            edge = "double" if kind == "quoted" else "solid"
            line = f"border-left: 5px {edge} {colour};" if name == columns[0] else ""
            styles[key] = [{"selector": "", "props": f"color: {colour}; {line}"}]
    return styler.set_table_styles(styles, overwrite=False, axis=0)


def measured_table(
    scores: IdentityScores | Sequence[IdentityScores],
    run: str,
    *,
    names: Mapping[str, str] | None = None,
) -> Styler:
    """Lay out the identity table of a study, marked as measured here.

    Args:
        scores: of the study, under one recogniser or several.
        run: under which profile, from which weights, on what: see `run_label`.
        names: how to call the methods, if not by their own names.
    """
    judges = [scores] if isinstance(scores, IdentityScores) else list(scores)
    shown: dict[str, list[str]] = {}
    for judge in judges:
        table = identity_table(judge)
        scale = table["images"].isna()
        which = f" ({judge.recogniser})" if len(judges) > 1 else ""
        shown[f"cosine distance{which} ↓"] = list(table["distance"].map(str))
        shown[f"identity recovery R{which} ↑"] = [
            f"{interval.estimate:.0f} (by definition)" if end else str(interval)
            for interval, end in zip(table["recovery"], scale, strict=True)
        ]
        shown["faces found"] = [  # the same for all: faces are found once
            "" if end else f"{row.found:.0f} of {row.images:.0f}"
            for row, end in zip(table.itertuples(), scale, strict=True)
        ]
    called = [(names or {}).get(str(name), str(name)) for name in table.index]
    text = (
        f"Measured here by {' and '.join(judge.recogniser for judge in judges)}, on faces found by "
        f"DeepFace's {judges[0].detector} detector, with 95% intervals over people. {run}"
    )
    return marked(pd.DataFrame(shown, index=called).style, "measured", text)


def alignment_table(
    images: pd.DataFrame, run: str, *, names: Mapping[str, str] | None = None
) -> Styler:
    """Lay out whether pictures show what their prompts ask for, marked as measured here.

    Args:
        images: of `companion.evaluation.measure.Measurements`; the CLIP score and the accuracy of
            each thing that a classifier tells are shown where they were measured, and whether it
            sees a person's traits as in the reference.
        run: see `run_label`.
        names: how to call the methods, if not by their own names.
    """
    metrics = {"CLIP score ↑": "clip_score"} if "clip_score" in images else {}
    for column in images.columns:
        head, _, told = column.replace("_", " ").rpartition(" ")
        if told in ("correct", "kept"):
            metrics[f"{head} {'accuracy' if told == 'correct' else told} ↑"] = column
    table = means_by_method(images, metrics).map(str)
    for name, column in metrics.items():
        asked = images.groupby("method")[column].count()
        if asked.sum() < len(images):  # of some pictures nothing is asked
            table[name] += [f" ({asked[method]} pictures)" for method in table.index]
    table.index = pd.Index([(names or {}).get(str(name), str(name)) for name in table.index])
    text = f"Measured here, with 95% intervals over people. {run}"
    return marked(table.style, "measured", text)


def prompts_table(
    told: Mapping[str, tuple[IdentityScores | pd.DataFrame, str]],
    method: str,
    other: str,
    run: str,
) -> Styler:
    """Lay out, prompt by prompt, how much better one method is than another.

    Args:
        told: by heading, what was measured and the metric in it: see
            `companion.evaluation.comparison.paired_difference`.
        method: the one that might be better.
        other: the one it is compared with.
        run: see `run_label`.
    """
    rows: dict[str, dict[str, object]] = {}
    for heading, (scores, metric) in told.items():
        images = scores.images if isinstance(scores, IdentityScores) else scores
        for prompt, asked in images.groupby("prompt", sort=False):
            found = paired_difference(asked, method, other, metric)
            rows.setdefault(str(prompt), {})[heading] = (
                f"{found.interval} ({found.pairs} of {found.cells} pairs)" if found.pairs else "–"
            )
    text = (
        f"How much better {method} is than {other}, prompt by prompt, with 95% intervals over "
        f"people. Looked at afterwards: no claim is decided by it. {run}"
    )
    return marked(pd.DataFrame.from_dict(rows, orient="index").style, "measured", text)


def recognition_table(found: Mapping[str, Separation], run: str) -> Styler:
    """Lay out how well recognisers tell known people apart.

    Args:
        found: of `companion.pages.judging_judges.recogniser_separation`.
        run: on whose pictures.
    """
    shown = pd.DataFrame(
        {
            "AUC ↑": [f"{one.auc:.3f}" for one in found.values()],
            "distance, same person": [f"{one.genuine:.3f}" for one in found.values()],
            "distance, two people": [f"{one.impostor:.3f}" for one in found.values()],
            "faces found": [f"{one.found} of {one.pictures}" for one in found.values()],
        },
        index=list(found),
    )
    return marked(shown.style, "measured", f"Measured here, over all pairs of pictures. {run}")


def classification_table(found: pd.DataFrame, run: str) -> Styler:
    """Lay out how often a classifier is right.

    Args:
        found: of `companion.pages.judging_judges.classifier_accuracy`.
        run: on whose pictures.
    """
    shown = found.assign(
        accuracy=found["accuracy"].map(str), commonest=found["commonest"].map("{:.3f}".format)
    ).rename(columns={"accuracy": "accuracy ↑", "commonest": "commonest class alone"})
    shown.index = shown.index.str.replace("_", " ")
    text = f"Measured here, with 95% intervals over people. {run}"
    return marked(shown.style, "measured", text)


def facts_table(rows: Mapping[str, object], run: str) -> Styler:
    """Lay out named results, one to a line, marked as measured here."""
    shown = pd.DataFrame({"": [str(value) for value in rows.values()]}, index=list(rows))
    styler = marked(shown.style.hide(axis="columns"), "measured", f"Measured here. {run}")
    return styler.set_table_styles(
        [{"selector": "td", "props": "text-align: left;"}], overwrite=False
    )


PROSE = 60
"""A cell of more letters than this is text, which is read from the left, and needs room."""


def _unbroken(cell: Any) -> Any:
    """An interval stays in one line: its comma is followed by a hard space."""
    return re.sub(r", (?=[^][]*\])", ",\u00a0", cell) if isinstance(cell, str) else cell


def marked(styler: Styler, kind: Literal["quoted", "measured"], caption: str) -> Styler:
    """Give a table the frame and the caption that say where its numbers come from.

    Args:
        styler: is changed.
        kind: whose numbers they are.
        caption: what was quoted or measured, and where.
    """
    cells: Any = styler.data  # type: ignore[attr-defined]
    words = [name for name in cells if any(isinstance(cell, str) for cell in cells[name])]
    prose = [name for name in words if max(len(str(cell)) for cell in cells[name]) > PROSE]
    styler.format(_unbroken, subset=words)
    # `!important`: pandas names a cell by its id, which the table's own rule below outdoes.
    styler.set_properties(subset=prose, **{"text-align": "left !important", "min-width": "16em"})
    colour = f"var(--{kind}, {QUOTED if kind == 'quoted' else MEASURED})"
    # Only lines and text are coloured: the page's background may be light or dark.
    frame = f"border-left: 5px {'double' if kind == 'quoted' else 'solid'} {colour};"
    over = f"caption-side: top; text-align: left; color: {colour}; padding: 0 0 .4em .6em;"
    heads = [f"th.col_heading.col{at}" for at, name in enumerate(cells) if name in prose]
    rules = {
        "": f"{frame} border-collapse: collapse; margin: 1em 0;",
        "caption": over,
        "th, td": "text-align: right; padding: .3em .9em;",
        "th.row_heading": "text-align: left; font-weight: normal;",
        **dict.fromkeys(heads, "text-align: left;"),
    }
    return styler.set_caption(caption).set_table_styles(
        [{"selector": selector, "props": props} for selector, props in rules.items()]
    )
