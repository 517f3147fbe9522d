"""Tables of the book: every cell as text, under a caption that says where its numbers come from."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from companion.claims.quoted import as_printed, read_quoted
from companion.evaluation.comparison import (
    IdentityScores,
    means_by_method,
    paired_difference,
    with_prompt_followed,
)
from companion.evaluation.measure import Measurements
from companion.evaluation.scale import (
    Scale,
    anchors_of,
    baseline_of,
    faces_found,
    faces_gained,
    first_detector,
    main_scale,
    nearest_share,
    places,
    ranked_people,
    reference_scale,
    swapped_recovery,
    systems_of,
    without_anchors,
)
from companion.faces.aligned import detector_in_words
from companion.figures.style import MEASURED, QUOTED
from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

    from companion.evaluation.separation import Separation

PROSE = 60
"""Characters from which on a cell is read as a sentence: left-aligned, in a wide column."""

_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "…": r"\dots{}", "–": "--", "—": "---"}
    | {"“": "``", "”": "''", "‘": "`", "’": "'", "−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
    | {"·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "↑": r"$\uparrow$"}
    | {"↓": r"$\downarrow$", "→": r"$\rightarrow$", "λ": r"$\lambda$", "Δ": r"$\Delta$"}
)
"""Characters that LaTeX reserves, or that its fonts lack, and what to write for them."""


def marked_table(
    frame: pd.DataFrame,
    caption: str,
    columns: Mapping[str, str] | None = None,
    *,
    kind: Literal["measured", "quoted"] | None = "measured",
    header: bool = True,
) -> Styler:
    """Lay out a frame with the border and the caption that say where its numbers come from.

    Every cell becomes the text that is shown. A notebook that shows the table stores it as CSV and
    LaTeX beside the HTML, from which `companion.publishing.exports` writes files.

    Args:
        frame: Numbers, intervals or text; a missing value is shown as a dash.
        caption: What was measured or quoted, and where.
        columns: Headings, each with a template that is filled from the row's fields, such as
            ``{"faces found": "{found} of {pictures}", "AUC ↑": "{auc:.3f}"}``. By default all
            columns are shown, under their names.
        kind: Whether the numbers were measured here or are quoted from the paper; None draws no
            border.
        header: Whether the headings are shown.

    Returns:
        A styler, to which further styles can be added.
    """
    if columns is not None:
        rows = frame.to_dict("records")
        filled = [{name: text.format_map(row) for name, text in columns.items()} for row in rows]
        frame = pd.DataFrame(filled, index=frame.index, columns=list(columns))
    cells = frame.map(str).replace(["nan", "None"], "–")
    styler = cells.style.set_caption(caption)
    if not header:
        styler.hide(axis="columns")
    if kind is not None:
        _mark(styler, cells, kind)

    def files(**_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        return table_files(cells, caption, header=header), {
            "text/csv": {"caption": _plain(caption)}
        }

    vars(styler)["_repr_mimebundle_"] = files  # IPython adds these kinds to the HTML
    return styler


def _mark(styler: Styler, cells: pd.DataFrame, kind: Literal["measured", "quoted"]) -> None:
    prose = [name for name in cells if cells[name].str.len().max() > PROSE]
    # An interval stays in one line: its comma is followed by a hard space.
    styler.format(lambda cell: re.sub(r", (?=[^][]*\])", ",\u00a0", str(cell)))
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
    styler.set_table_styles(
        [{"selector": selector, "props": props} for selector, props in rules.items()]
    )


def table_files(cells: pd.DataFrame, caption: str, *, header: bool = True) -> dict[str, str]:
    """A table as CSV and as LaTeX in the style of booktabs, by kind of output.

    Args:
        cells: Text, of which HTML elements are left out.
        caption: The caption, which CSV goes without.
        header: Whether the headings are part of the table. In CSV those of several levels are
            joined: ``quoted: SSIM``.
    """
    plain = cells.map(_plain).rename(index=_plain, columns=_plain)
    latex = plain.map(_latex).rename(index=_latex, columns=_latex)
    latex.index.names = [_latex(str(name)) if name else None for name in latex.index.names]
    if latex.index.nlevels == latex.columns.nlevels == 1:  # the name stands beside the headings
        latex.columns.name, latex.index.name = latex.index.name, None
    styler = latex.style if header else latex.style.hide(axis="columns")
    text = styler.to_latex(
        caption=_latex(_plain(caption)),
        column_format=_column_format(plain),
        hrules=True,
        multicol_align="c",
        position_float="centering",
        sparse_index=False,
    )
    if not header:
        text = text.replace("\\midrule\n", "", 1)
    if cells.columns.nlevels > 1:
        text = text.replace("\\\\\n", f"\\\\\n{_group_rules(plain)}\n", 1)
        plain.columns = [
            ": ".join(filter(None, dict.fromkeys(name))) for name in plain.columns.tolist()
        ]
    return {
        "text/csv": plain.to_csv(header=header, lineterminator="\n"),
        "text/latex": "% \\usepackage{booktabs}\n" + text,
    }


def _group_rules(cells: pd.DataFrame) -> str:
    """Lines under the headings that span several columns, which pandas does not draw."""
    rules, start = [], cells.index.nlevels + 1
    for name, columns in groupby(cells.columns.get_level_values(0)):
        end = start + len(list(columns)) - 1
        if name and end > start:
            rules.append(rf"\cmidrule(lr){{{start}-{end}}}")
        start = end + 1
    return " ".join(rules)


def _column_format(cells: pd.DataFrame) -> str:
    """How LaTeX sets each column: numbers to the right, long texts in a paragraph."""
    names = [cells.index.get_level_values(level) for level in range(cells.index.nlevels)]
    formats: list[str] = []
    for column in (*names, *cells.to_numpy().T):
        numbers = all(text[0] in "-–−+.0123456789" for text in column if text)
        kind = "r" if numbers and len(formats) >= len(names) else "l"
        formats.append(r"p{0.5\linewidth}" if max(map(len, column), default=0) > PROSE else kind)
    return "".join(formats)


def _plain(text: Any) -> str:
    """Text without HTML's elements and hard spaces."""
    text = re.sub(r"<br */?>", " ", str(text))
    return " ".join(html.unescape(re.sub(r"</?[a-z][^>]*>", "", text)).split())


def _as_html(name: Any) -> str:
    """A name that a person gave, so that a page shows each of its signs."""
    return html.escape(str(name), quote=False)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def facts_table(rows: Mapping[str, object], run: str) -> Styler:
    """Lay out named results, one to a line, marked as measured here."""
    frame = pd.DataFrame({"": list(map(str, rows.values()))}, index=list(rows))
    styler = marked_table(frame, f"Measured here. {run}", header=False)
    return styler.set_table_styles(
        [{"selector": "td", "props": "text-align: left;"}], overwrite=False
    )


def summary_table(rows: Mapping[str, Mapping[str, object]], run: str) -> Styler:
    """Lay out numbers or intervals, a row for each method, marked as measured here."""
    frame = pd.DataFrame(list(rows.values()), index=list(map(_as_html, rows)))
    return marked_table(frame, f"Measured here, with 95% intervals. {run}")


def quoted_table(path: str | Path) -> Styler:
    """Lay out one of the paper's tables (``data/paper/*.csv``), marked as quoted."""
    numbers = read_quoted(path)
    return marked_table(_two_digits(as_printed(numbers)), _place(numbers), kind="quoted")


def _two_digits(numbers: pd.DataFrame) -> pd.DataFrame:
    return numbers.map(lambda value: f"{value:.2f}" if isinstance(value, float) else value)


def _place(numbers: pd.DataFrame) -> str:
    first = numbers.iloc[0]
    return (
        f"Quoted from the paper: Table {first['table']} (Section {first['section']}). "
        f"{first['caption']}"
    )


def side_by_side(quoted: pd.DataFrame, measured: pd.DataFrame, run: str) -> Styler:
    """Lay the paper's numbers and ours side by side, each in columns of its own and so marked.

    Rows are matched by their names alone. A row that only one side has is a dash on the other.

    Args:
        quoted: The paper's table, of `companion.claims.quoted.read_quoted`.
        measured: What was measured here, in rows and columns of any names; numbers or intervals.
        run: The run, see `run_label`.
    """
    printed, ours = _two_digits(as_printed(quoted)), _two_digits(measured)
    table = pd.concat({"quoted": printed, "measured here": ours}, axis=1)
    table = table.loc[[*printed.index, *ours.index.difference(printed.index, sort=False)]]
    styler = marked_table(table, f"{_place(quoted)} Measured here: {run}")
    styles: dict[Any, Any] = {}
    for kind, columns in (("quoted", printed.columns), ("measured", ours.columns)):
        colour = f"var(--{kind}, {QUOTED if kind == 'quoted' else MEASURED})"
        for name in columns:
            key = ("quoted" if kind == "quoted" else "measured here", name)
            edge = "double" if kind == "quoted" else "solid"
            line = f"border-left: 5px {edge} {colour};" if name == columns[0] else ""
            styles[key] = [{"selector": "", "props": f"color: {colour}; {line}"}]
    return styler.set_table_styles(styles, overwrite=False, axis=0)


def faces_table(
    measured: Measurements,
    run: str,
    *,
    baseline: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Styler:
    """Lay out what every picture has: a face or none, and the nearest of all references.

    Args:
        measured: Measurements of the study.
        run: The profile, the weights and the pictures, see `run_label`.
        baseline: Method that the others are compared with; where it is none, or the study lacks
            it, the text alone or else the first one.
        names: What to call the methods, if not by their own names.
    """
    images = measured.images
    methods, base = [*systems_of(images), *anchors_of(images)], baseline_of(images, baseline)
    called = names or {}
    more = f"more than {called.get(base, _as_html(base))}"
    ranked = [name for name in measured.scales if f"rank {name}" in images]
    first = first_detector(measured)
    rows: dict[str, dict[str, object]] = {}
    for method in methods:
        row: dict[str, object] = {"faces found ↑": faces_found(measured, method)}
        if len(methods) > 1:
            gained = faces_gained(measured, method, base).interval if method != base else None
            row[more] = "–" if gained is None else gained
        if first:
            row[f"by {first} alone ↑"] = faces_found(measured, method, first)
            if len(methods) > 1:
                alone = faces_gained(measured, method, base, first) if method != base else None
                row[f"{more} "] = "–" if alone is None else alone.interval
        for judge in ranked:
            row[f"recognised ({judge}) ↑"] = nearest_share(measured, judge, method)
        rows[called.get(method, _as_html(method))] = row
    text = (
        f"Measured here: share of pictures in which {detector_in_words(measured.detector)} finds "
        f"a face, and by how much it is more than {called.get(base, base)}'s, from the same noise."
    )
    if first:
        text += f" {first} is the stricter of them: the others accept smeared faces, too."
    if ranked:
        among = {ranked_people(measured, name) for name in ranked}
        counts = " or ".join(map(str, sorted(among)))
        text += (
            f" Recognised is a picture to which, of {counts} people's references, the person's own "
            "is the nearest; one without a face is not."
        )
    text += f" 95% intervals over people. {run}"
    return marked_table(pd.DataFrame.from_dict(rows, orient="index"), text)


LOST = "R, lost faces count ↑"
"""Heading of R with a picture without a face counted as a stranger's."""


def measured_table(
    measured: Measurements, run: str, *, names: Mapping[str, str] | None = None
) -> Styler:
    """Lay out how near each method comes to the person, in pictures that no system was shown.

    Args:
        measured: Measurements of the study. Where a record lacks the distances to unseen pictures,
            those to the reference stand here, and the caption says so.
        run: The profile, the weights and the pictures, see `run_label`.
        names: What to call the methods, if not by their own names.
    """
    scales = [main_scale(measured, name) for name in measured.scales]
    return _places_table(scales, measured, run, names or {})


def reference_table(
    measured: Measurements, run: str, *, names: Mapping[str, str] | None = None
) -> Styler:
    """Lay out how near each method comes to the very reference, and to somebody like the person.

    The reference was shown, so this rewards copies of it: `measured_table` comes first.

    Args:
        measured: Measurements of the study.
        run: The profile, the weights and the pictures, see `run_label`.
        names: What to call the methods, if not by their own names.

    Raises:
        FusionError: The study was measured against other pictures than the reference.
    """
    if measured.against == "others":
        raise FusionError(
            "This study was measured against people's other pictures, not against the reference: "
            "show `measured_table`."
        )
    scales = [reference_scale(measured, name) for name in measured.scales]
    return _places_table(scales, measured, run, names or {}, swapped=True)


def _places_table(
    scales: Sequence[Scale],
    measured: Measurements,
    run: str,
    names: Mapping[str, str],
    *,
    swapped: bool = False,
) -> Styler:
    """One row for each method and recogniser, between the ends of the scale."""
    swapped = swapped and any(f"swapped {scale.recogniser}" in measured.images for scale in scales)
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for scale in scales:
        for name, place in places(scale).to_dict("index").items():
            end = f"{place['complete'].estimate:.0f} (by definition)" if place["end"] else None
            row = {"distance ↓": place["distance"], LOST: end or place["composite"]}
            row["R of faces found ↑"] = end or place["complete"]
            if swapped:
                alike = swapped_recovery(measured, scale.recogniser, str(name))
                row["R for somebody alike"] = "" if end else alike
            rows[scale.recogniser, names.get(str(name), _as_html(name))] = row
    index = pd.MultiIndex.from_tuples(list(rows))
    called = [name for _, name in rows]
    frame = pd.DataFrame(list(rows.values()), index=index if len(scales) > 1 else called)
    first = scales[0]
    text = (
        f"Measured here by {' and '.join(scale.recogniser for scale in scales)}, on faces found by "
        f"{detector_in_words(measured.detector)}: cosine distance to {first.target}, and "
        f"{first.in_words}, once with a lost face counted as a stranger's. "
    )
    if not first.unseen and not swapped:
        text += "Distances to pictures that no system was shown are not on record. "
    if swapped:
        text += (
            "The last column is R of the same pictures for another person of the same gender and "
            "age. "
        )
    return marked_table(frame, f"{text}95% intervals over people. {run}")


def alignment_table(
    images: pd.DataFrame, run: str, *, names: Mapping[str, str] | None = None
) -> Styler:
    """Lay out whether pictures show what their prompts ask for, marked as measured here.

    Args:
        images: Pictures of `companion.evaluation.measure.Measurements`. Shown are the CLIP score,
            the accuracy of each attribute that a classifier reads, face or no face, and the share
            that shows a face and everything that was asked for.
        run: The run, see `run_label`.
        names: What to call the methods, if not by their own names.
    """
    images = without_anchors(images)  # no prompt changes them
    metrics = {"CLIP score ↑": "clip_score"} if "clip_score" in images else {}
    heads = [column for column in images.columns if column.endswith("_correct")]
    metrics |= {f"{_head(column)} accuracy ↑": column for column in heads}
    if heads and "face" in images:
        images = with_prompt_followed(images)
        metrics["face and all asked for ↑"] = "followed"
    return _means_table(images, metrics, run, names or {})


def traits_table(
    images: pd.DataFrame, run: str, *, names: Mapping[str, str] | None = None
) -> Styler:
    """Lay out how often a classifier reads a person's traits as in the reference.

    Args:
        images: Pictures of `companion.evaluation.measure.Measurements`, measured with traits.
        run: The run, see `run_label`.
        names: What to call the methods, if not by their own names.
    """
    kept = [column for column in images.columns if column.endswith("_kept")]
    metrics = {f"{_head(column)} kept ↑": column for column in kept}
    text = f"Of the pictures with a face. {run}"
    return _means_table(without_anchors(images), metrics, text, names or {})


def _head(column: str) -> str:
    """What a classifier reads, from the column's name."""
    return column.rpartition("_")[0].replace("_", " ")


def _means_table(
    images: pd.DataFrame, metrics: Mapping[str, str], run: str, names: Mapping[str, str]
) -> Styler:
    """Means over people of some columns, a row for each method."""
    table = means_by_method(images, metrics).map(str)
    for name, column in metrics.items():
        asked = images.groupby("method")[column].count()
        if asked.sum() < len(images):  # of some pictures nothing is asked
            table[name] += [f" ({asked[method]} pictures)" for method in table.index]
    table.index = pd.Index([names.get(str(name), _as_html(name)) for name in table.index])
    return marked_table(table, f"Measured here, with 95% intervals over people. {run}")


def prompts_table(
    metrics: Mapping[str, tuple[IdentityScores | pd.DataFrame, str]],
    method: str,
    other: str,
    run: str,
) -> Styler:
    """Lay out, prompt by prompt, how much better one method is than another.

    Args:
        metrics: For each heading, what was measured and the metric in it: see
            `companion.evaluation.comparison.paired_difference`.
        method: The method that might be better.
        other: The method that it is compared with.
        run: The run, see `run_label`.
    """
    rows: dict[str, dict[str, object]] = {}
    for heading, (scores, metric) in metrics.items():
        images = scores.images if isinstance(scores, IdentityScores) else scores
        for prompt, asked in images.groupby("prompt", sort=False):
            found = paired_difference(asked, method, other, metric)
            rows.setdefault(_as_html(prompt), {})[heading] = (
                f"{found.interval} ({found.pairs} of {found.cells} pairs)" if found.pairs else "–"
            )
    text = (
        f"How much better {method} is than {other}, prompt by prompt, with 95% intervals over "
        f"people. Looked at afterwards: no claim is decided by it. {run}"
    )
    return marked_table(pd.DataFrame.from_dict(rows, orient="index"), text)


def recognition_table(found: Mapping[str, Separation], run: str) -> Styler:
    """Lay out how well recognisers tell known people apart.

    Args:
        found: Results of `companion.pages.judging_judges.recogniser_separation`, by recogniser.
        run: The people and pictures that were compared.
    """
    columns = {
        "AUC ↑": "{auc:.3f}",
        "distance, same person": "{genuine:.3f}",
        "distance, two people": "{impostor:.3f}",
        "faces found": "{found} of {pictures}",
    }
    frame = pd.DataFrame(map(vars, found.values()), index=list(found))
    return marked_table(frame, f"Measured here, over all pairs of pictures. {run}", columns)


def classification_table(found: pd.DataFrame, run: str) -> Styler:
    """Lay out how often a classifier is right.

    Args:
        found: Results of `companion.pages.judging_judges.classifier_accuracy`.
        run: The people and pictures that were classified.
    """
    columns = {name: f"{{{name}}}" for name in ("classes", "pictures")}
    columns |= {"accuracy ↑": "{accuracy}", "commonest class alone": "{commonest:.3f}"}
    text = f"Measured here, with 95% intervals over people. {run}"
    return marked_table(found.rename(index=lambda head: head.replace("_", " ")), text, columns)
