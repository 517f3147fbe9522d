"""Figures and tables of the book: pictures shown sharp, quoted and measured numbers kept apart."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fusionlib.described import described, grid_words
from fusionlib.drawing import Drawing
from fusionlib.errors import FusionError
from fusionlib.evaluation.comparison import (
    IdentityScores,
    identity_table,
    paired_difference,
    summary,
)
from fusionlib.evaluation.paper import as_printed, read_quoted
from fusionlib.evaluation.statistics import Interval
from fusionlib.images import load_image
from fusionlib.study import Person, Study, label_run

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

    from fusionlib.evaluation.suite import Separation

INK, QUIET, WORSE = "#22272e", "#6b7280", "#d1495b"
QUOTED, MEASURED = "#7a5195", "#00796b"
"""Colours of the two kinds of numbers: purple is quoted from the paper, teal was measured here. The
book's style sheet has the same, and lighter ones for dark pages."""


def picture_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    references: int = 0,
    groups: Sequence[tuple[str, int]] = (),
    upscale: int = 2,
) -> Image.Image:
    """Lay pictures out with labels, enlarged by a whole factor so that they stay sharp.

    Args:
        rows: rows of pictures of one size; ``None`` leaves a place empty.
        columns: a label above each column.
        labels: a label left of each row.
        references: so many columns on the left are inputs: they are framed and set apart.
        groups: labels above runs of the other columns, each with the number of its columns.
        upscale: enlargement of each picture (Lanczos).

    Returns:
        One picture, which a notebook shows by itself, with the labels as alternative text.
    """
    widths = {len(row) for row in rows}
    sizes = {image.size for row in rows for image in row if image is not None}
    if len(widths) != 1 or len(sizes) != 1:
        raise FusionError("A picture grid needs rows of one length and pictures of one size.")
    (count,), ((width, height),) = widths, sizes
    width, height = width * upscale, height * upscale
    gap, apart = max(width // 32, 2), max(width // 10, 4)
    size = max(count * width // 50, 14)  # legible however wide the whole is on a page
    words = [word for text in columns for word in text.split()]
    longest = max((_font(size).getlength(word) for word in words), default=0)
    if longest > width:  # words are not broken, and must not run into each other
        size = max(int(size * width / longest), 14)
    font, line = _font(size), round(size * 1.3)

    spans = [(text, span * (width + gap) - gap) for text, span in groups]
    titles = [_wrapped(text, font, span) for text, span in spans]
    heads = [_wrapped(text, font, width) for text in columns]
    bottoms = []  # of the two lines of headings
    top = 0
    for texts in (titles, heads):
        top += max((text.count("\n") + 1 for text in texts), default=0) * line
        top += gap if texts else 0
        bottoms.append(top)

    starts = {references} if references else set()
    starts |= {references + sum(span for _, span in groups[:n]) for n in range(1, len(groups))}
    lefts = [round(size * 8.5) if labels else 0]
    for column in range(1, count + 1):
        lefts.append(lefts[-1] + width + gap + (apart if column in starts else 0))
    canvas = Image.new("RGB", (lefts[count] - gap, top + len(rows) * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(canvas)

    at = references
    for text, (_, span) in zip(titles, groups, strict=True):
        middle = (lefts[at] + lefts[at + span - 1] + width) // 2
        above = (middle, bottoms[0] - gap)
        draw.multiline_text(above, text, fill=INK, font=font, anchor="md", align="center")
        at += span
    for column, text in enumerate(heads):
        above = (lefts[column] + width // 2, bottoms[1] - gap)
        colour = QUIET if column < references else INK
        draw.multiline_text(above, text, fill=colour, font=font, anchor="md", align="center")
    for row, pictures in enumerate(rows):
        y = top + row * (height + gap)
        if labels:
            text = _wrapped(labels[row], font, lefts[0] - gap * 2)
            beside = (lefts[0] - gap * 2, y + height // 2)
            draw.multiline_text(beside, text, fill=INK, font=font, anchor="rm", align="right")
        for column, picture in enumerate(pictures):
            if picture is None:
                continue
            x = lefts[column]
            canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y))
            if column < references:
                frame = (x, y, x + width - 1, y + height - 1)
                draw.rectangle(frame, outline=QUIET, width=max(gap // 3, 1))
    alt = grid_words(
        len(rows), count, heads=columns, labels=labels, references=references, groups=groups
    )
    return described(canvas, alt)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    letters = max(int(width / (font.getlength("n" * 20) / 20)), 1)
    return "\n".join(textwrap.wrap(text, letters, break_long_words=False))


WIDEST = 9
"""Pictures of one person side by side: of more, none is large enough to look at."""


def study_grid(
    index: pd.DataFrame,
    people: Sequence[Person],
    *,
    prompts: Sequence[str],
    references: int = 1,
    called: Sequence[str] = (),
    seed: int = 0,
    labels: Sequence[str] = (),
) -> Image.Image:
    """Show a study: a row for each person, the references first, then every prompt and method.

    Where that makes more than `WIDEST` pictures, each method has a row of its own and each prompt a
    column; with several references each prompt has a band of its own, and with one prompt the
    methods stand in several. Pictures of several sizes are all shown as large as the largest; where
    a method left a person out, the place stays empty.

    Args:
        index: of the study, as `fusionlib.study.run_study` returns it.
        people: whom to show.
        prompts: which prompts to show, side by side.
        references: how many of a person's references to show.
        called: what to call these, if not by their numbers.
        seed: which seed to show.
        labels: a label left of each row, if a person has one row.

    Raises:
        FusionError: the study has no picture of a prompt with this seed.
    """
    of_seed = index[index["seed"] == seed]
    unknown = set(prompts) - set(of_seed["prompt"])
    if unknown:
        raise FusionError(f"The study has no pictures of {', '.join(map(repr, sorted(unknown)))}.")
    images = of_seed.set_index(["method", "person", "prompt"])["image"]
    methods = list(of_seed["method"].unique())
    heads = list(called) or [
        f"reference {n}" if references > 1 else "reference" for n in range(1, references + 1)
    ]

    firsts = [load_image(path) for path in of_seed.drop_duplicates("method")["image"]]
    largest = max((image.size for image in firsts), key=lambda size: size[0])

    def row(person: Person, cells: Sequence[tuple[str, str]], first: bool) -> list[Any]:
        made = [images.get((method, person.name, prompt)) for method, prompt in cells]
        paths = [*(person.references[:references] if first else ()), *made]
        shown = [
            path and ImageOps.fit(load_image(path), largest, Image.Resampling.LANCZOS)
            for path in paths
        ]
        return shown if first else [*[None] * references, *shown]

    quoted = [f"“{prompt}”" for prompt in prompts]
    by_prompt = [[(method, prompt) for method in methods] for prompt in prompts]
    cells = [cell for part in by_prompt for cell in part]
    wide = references + len(cells) > WIDEST
    if wide and references <= 1 and len(methods) > 1 and len(prompts) > 1:
        by_method = [[(method, prompt) for prompt in prompts] for method in methods]
        rows = [
            row(person, part, first=number == 0)
            for person in people
            for number, part in enumerate(by_method)
        ]
        return picture_grid(
            rows,
            columns=[*heads, *quoted],
            labels=methods * len(people),
            references=references,
        )
    bands: list[tuple[Sequence[tuple[str, str]], bool]]
    if not wide:
        bands = [(cells, True)]
    elif len(prompts) > 1:
        bands = [(part, True) for part in by_prompt]
    else:
        bands = _bands(cells, references)
    columns = max(len(part) + references * shown for part, shown in bands)
    grids = []
    for part, shown in bands:
        seen = references if shown else 0
        free = columns - seen - len(part)
        rows = [row(person, part, first=shown) for person in people]
        titles = [f"“{prompt}”" for prompt in dict.fromkeys(prompt for _, prompt in part)]
        grids.append(
            picture_grid(
                [[*(each if shown else each[references:]), *[None] * free] for each in rows],
                columns=[*heads[:seen], *(method for method, _ in part), *[""] * free],
                labels=labels,
                references=seen,
                groups=[(text, len(part) // len(titles)) for text in titles] if shown else (),
                upscale=1 if len(bands) > 1 else 2,  # many pictures: as large as they were made
            )
        )
    return grids[0] if len(grids) == 1 else stacked(grids)


def _bands(
    cells: Sequence[tuple[str, str]], references: int
) -> list[tuple[Sequence[tuple[str, str]], bool]]:
    """What stands in each band, and whether the references do, too.

    One reference is repeated beside each band; several stand in the first one only.
    """
    if references <= 1:
        size = math.ceil(len(cells) / math.ceil(len(cells) / (WIDEST - references)))
        return [(cells[at : at + size], True) for at in range(0, len(cells), size)]
    whole = len(cells) + references
    size = math.ceil(whole / math.ceil(whole / WIDEST))
    first = max(size - references, 1)
    rest = range(first, len(cells), size)
    return [(cells[:first], True), *((cells[at : at + size], False) for at in rest)]


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as one, with the alternative texts of all."""
    apart = max(picture.width for picture in pictures) // 40
    height = sum(picture.height + apart for picture in pictures) - apart
    canvas = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height + apart
    return described(canvas, " ".join(picture.info["alt"] for picture in pictures))


def prompt_grid(index: pd.DataFrame, *, columns: int = 8) -> Image.Image:
    """Show a study of one method: a row for each prompt, its first pictures side by side."""
    rows = [
        [load_image(path) for path in index.loc[index["prompt"] == prompt, "image"][:columns]]
        for prompt in index["prompt"].unique()
    ]
    return picture_grid(rows, labels=[f"“{prompt}”" for prompt in index["prompt"].unique()])


def pairs_grid(index: pd.DataFrame, people: Sequence[Person]) -> Image.Image:
    """Show a study in which each person has a prompt of their own: the reference, then each method.

    Args:
        index: of the study; of several prompts or seeds of a person the first is shown.
        people: whom to show.
    """
    methods = list(index["method"].unique())
    rows, labels = [], []
    for person in people:
        mine = index[index["person"] == person.name].drop_duplicates("method").set_index("method")
        paths = mine["image"].to_dict()
        if not paths:
            continue  # no method has this person
        made = [load_image(paths[name]) if name in paths else None for name in methods]
        size = next(image.size for image in made if image)
        seen = load_image(person.references[0])
        rows.append([ImageOps.fit(seen, size, Image.Resampling.LANCZOS), *made])
        labels.append(f"“{mine['prompt'].iloc[0]}”")
    return picture_grid(rows, columns=["reference", *methods], labels=labels, references=1)


def summary_table(rows: Mapping[str, Mapping[str, object]], run: str) -> Styler:
    """Lay out numbers or intervals, a row for each method, marked as measured here."""
    shown = pd.DataFrame(list(rows.values()), index=list(rows)).map(str)
    return marked(shown.style, "measured", f"Measured here, with 95% intervals. {run}")


def distance_plot(scores: IdentityScores, *, names: Mapping[str, str] | None = None) -> Image.Image:
    """Draw each person's distance to the reference, method by method, with means and intervals.

    The two ends of the scale stand above and below: pictures of other people, and other pictures of
    the same person. The dashed line is the distance below which DeepFace takes two pictures for one
    person.

    Args:
        scores: of the study.
        names: how to call the methods, if not by their own names.
    """
    from deepface.config.threshold import thresholds

    table = identity_table(scores)
    figure = Figure(figsize=(8, 0.75 * len(table) + 1), layout="constrained", dpi=150)
    axes = figure.subplots()
    spread = np.random.default_rng(0)
    words = []
    for position, (name, row) in enumerate(table[::-1].iterrows()):
        if row["images"] is None or np.isnan(row["images"]):
            column = "impostor" if row["recovery"].estimate == 0 else "genuine"
            values, colour = scores.scale[column].dropna(), QUIET
        else:
            values, colour = scores.of(str(name)), MEASURED
        if values.empty:
            continue
        height = position + spread.uniform(-0.22, 0.22, len(values))
        axes.scatter(values, height, s=14, color=colour, alpha=0.35, linewidths=0)
        interval = row["distance"]
        words.append(f"{(names or {}).get(str(name), name)} {interval}")
        axes.plot([interval.low, interval.high], [position] * 2, color=colour, linewidth=3)
        axes.plot(interval.estimate, position, "o", color=colour, markersize=9)
        axes.annotate(
            f"{interval.estimate:.3f}",
            (interval.estimate, position + 0.28),
            ha="center",
            va="bottom",
            fontsize=10,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    if scores.recogniser in thresholds:
        threshold = thresholds[scores.recogniser]["cosine"]
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            " DeepFace: same person",
            (threshold, len(table) - 0.45),
            color=INK,
            fontsize=9,
            va="center",
        )
    axes.set_yticks(
        range(len(table)), [(names or {}).get(str(n), str(n)) for n in table.index[::-1]]
    )
    axes.set_ylim(-0.5, len(table) - 0.25)
    axes.set_xlim(left=0)
    target = "reference" if scores.against == "reference" else "person's other pictures"
    label = f"cosine distance to the {target} ({scores.recogniser})"
    axes.set_xlabel(label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=11)
    alt = f"A dot for each person in {len(words)} rows over the {label}. Means: "
    return described(Drawing(figure), f"{alt}{'; '.join(words[::-1])}.")


def paired_plot(scores: Sequence[IdentityScores], baseline: str) -> Image.Image:
    """Draw how much nearer to the reference each method is than one of them, picture by picture.

    A row for each method, a panel for each recogniser: to the right is nearer. The unit is the way
    from another person's pictures to the person's own, so that recognisers can be compared. What
    the interval decides is coloured; what it leaves open, or would rest on too few pairs or people,
    is grey.

    Args:
        scores: of one study, under one recogniser or more.
        baseline: the method that the others are compared with. Where a study lacks it, the picture
            says so.
    """
    methods = [str(name) for name in scores[0].images["method"].unique()]
    others = [name for name in methods if name != baseline] if baseline in methods else []
    size = (9, 0.42 * max(len(others), 2) + 1)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(1, len(scores), sharex=True, sharey=True, squeeze=False)[0]
    words = []
    for axes, score in zip(panels, scores, strict=True):
        told = []
        way = float((score.scale["impostor"] - score.scale["genuine"]).mean())
        axes.axvline(0, color=INK, linewidth=1, zorder=0)
        for position, name in enumerate(reversed(others)):
            found = paired_difference(score, name, baseline)
            mean, low, high = (float(end) / way for end in vars(found.interval).values())
            if not np.isfinite([low, high]).all():
                continue
            interval = Interval(mean, low, high)
            colour = {"supported": MEASURED, "not supported": WORSE}.get(found.verdict, QUIET)
            axes.plot([low, high], [position] * 2, color=colour, linewidth=3)
            axes.plot(mean, position, "o", color=colour, markersize=8)
            told.append(f"{name} {interval}, {found.pairs} of {found.cells} pairs")
        axes.set_yticks(range(len(others)), others[::-1])
        axes.set_ylim(-0.6, max(len(others), 1) - 0.4)
        axes.set_xlabel(f"gain in identity recovery R ({score.recogniser})", color=INK)
        axes.tick_params(axis="y", length=0, labelsize=11)
        axes.tick_params(axis="x", colors=QUIET)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
        words.append(f"by {score.recogniser}: {'; '.join(told[::-1]) or 'nothing'}")
    if not others:
        text = f"Nothing to compare: {baseline} and another method are needed."
        panels[0].text(0.5, 0.5, text, transform=panels[0].transAxes, ha="center", color=QUIET)
    target = "reference" if scores[0].against == "reference" else "person's other pictures"
    alt = (
        f"How much nearer to the {target} than {baseline}, in parts of the way from a stranger to "
        f"the person: {'. '.join(words)}."
    )
    return described(Drawing(figure), alt)


def psnr_plot(pairs: pd.DataFrame, quoted: pd.DataFrame) -> Image.Image:
    """Draw PSNR over SSIM for many pairs of faces, computed properly and in 8 bits.

    Args:
        pairs: one row for each pair, with columns ``ssim``, ``psnr`` and ``psnr_8bit_overflow``.
        quoted: the paper's Table 2, as `fusionlib.evaluation.paper.read_quoted` returns it.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained", dpi=150)
    axes = figure.subplots()
    for column, colour, label in (
        ("psnr", MEASURED, "measured, in floating point"),
        ("psnr_8bit_overflow", WORSE, "measured, differences left in 8 bits"),
    ):
        axes.scatter(
            pairs["ssim"], pairs[column], s=12, color=colour, alpha=0.45, linewidths=0, label=label
        )
    printed = quoted.pivot(index="row", columns="column", values="value")
    axes.scatter(
        printed["SSIM"],
        printed["PSNR"],
        s=90,
        facecolors="none",
        edgecolors=QUOTED,
        linewidths=2,
        label="quoted: the methods of the paper's Table 2",
        zorder=3,
    )
    axes.set_xlabel("SSIM")
    axes.set_ylabel("PSNR in dB")
    axes.legend(frameon=False, fontsize=10, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    alt = (
        f"PSNR over SSIM of {len(pairs)} pairs of faces, with SSIM {_range(pairs['ssim'])}. "
        f"Computed in floating point, PSNR runs {_range(pairs['psnr'])} dB; with differences left "
        f"in 8 bits, {_range(pairs['psnr_8bit_overflow'])} dB. The {len(printed)} methods of the "
        f"paper's Table 2 lie {_range(printed['PSNR'])} dB."
    )
    return described(Drawing(figure), alt)


def _range(values: pd.Series[float]) -> str:
    return f"from {values.min():.2f} to {values.max():.2f}"


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
        quoted: as `fusionlib.evaluation.paper.read_quoted` returns it.
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
        images: of `fusionlib.evaluation.measure.Measurements`; the CLIP score and the accuracy of
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
    table = summary(images, metrics).map(str)
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
            `fusionlib.evaluation.comparison.paired_difference`.
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
        found: of `fusionlib.evaluation.judges.recognition`.
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
        found: of `fusionlib.evaluation.judges.classification`.
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


def run_label(profile: str, study: Study, over: str = "people") -> str:
    """One sentence that names a run: the profile, the study's size, its weights' first digits.

    Args:
        profile: its name.
        study: whose people count only where they have references.
        over: what to call them, see `fusionlib.study.label_run`.
    """
    people = sum(bool(person.references) for person in study.people)
    sizes = (people, len(study.all_prompts), len(study.seeds))
    weights = [method.settings["weights"] for method in study.methods]
    return label_run(profile, *sizes, weights, over)
