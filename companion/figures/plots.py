"""Plots of what was measured: estimates with their intervals, and one metric over another."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from companion.evaluation.comparison import (
    IdentityScores,
    mean_over_people,
    paired_difference,
    with_prompt_followed,
)
from companion.evaluation.measure import Measurements
from companion.evaluation.scale import (
    ANCHORS,
    WITHOUT,
    anchors_of,
    faces_found,
    main_scale,
    place_of,
    shown_in_words,
    swapped_recovery,
    systems_of,
)
from companion.evaluation.statistics import Interval
from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.style import INK, MEASURED, QUIET, QUOTED, WORSE

COLOURS = (MEASURED, "#c4572b", "#4a6fb5", "#8a6d1b", "#7a5195")
MARKERS = "osD^v"
"""Colours and markers of systems, in their order; a marker also identifies one without colour."""

SHARE_AXIS_START = 0.9
"""Highest share at which an axis of shares may start, so that small differences look small."""


def draw_interval(
    axes: Axes,
    x: Interval | float,
    y: Interval | float,
    *,
    colour: str,
    marker: str = "o",
    size: float = 8,
    width: float = 3,
    alpha: float = 1,
) -> None:
    """Draw an estimate as a mark and its interval as a line, along x, along y, or along both.

    A number in place of an interval is the mark's position on that axis. Of an interval without
    known ends, the mark is drawn alone. `size` and `width` are in points; `alpha` is the line's.
    """
    at_x, at_y = (end.estimate if isinstance(end, Interval) else end for end in (x, y))
    look: dict[str, Any] = {"color": colour, "linewidth": width, "alpha": alpha}
    look["solid_capstyle"] = "butt"  # a cap beyond the end could cross zero where the end does not
    if isinstance(x, Interval):
        axes.plot([x.low, x.high], [at_y, at_y], **look)
    if isinstance(y, Interval):
        axes.plot([at_x, at_x], [y.low, y.high], **look)
    axes.plot(at_x, at_y, marker, color=colour, markersize=size)


def interval_axes(axes: Axes, names: Sequence[str], label: str, *, fontsize: float = 11) -> None:
    """Set axes up for intervals along x, with a named row for each, the first at the top.

    The row at index n of `names` is at y = ``len(names) - 1 - n``; `fontsize` is that of the names.
    """
    axes.set_yticks(range(len(names)), list(names)[::-1])
    axes.set_ylim(-0.6, max(len(names), 1) - 0.4)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0, labelsize=fontsize)
    axes.spines[["top", "right", "left"]].set_visible(False)


def trade_off(measured: Measurements, recogniser: str) -> pd.DataFrame:
    """Identity, prompt and faces of methods that are named by a system and a number, ``fused 0.5``.

    Args:
        measured: Measurements of a study, with classifiers.
        recogniser: Recogniser that judges identity.

    Returns:
        A row for each method: ``system``, ``number``, ``identity`` (R with lost faces counted as
        strangers'), ``of_faces`` (R of the pictures with a face), ``prompt`` (the share of pictures
        that show a face and everything the prompt asks for) and ``found`` (the share with a face),
        as `Interval`. A method without a number is a line to compare with: its number is NaN.
        ``attrs["scale"]`` says in words what R is measured by.
    """
    scale = main_scale(measured, recogniser)
    followed = with_prompt_followed(measured.images)
    rows = []
    for method in [*systems_of(measured.images), *anchors_of(measured.images)]:
        system, number = _numbered(method)
        place = place_of(scale.scores, method)
        rows.append(
            {
                "system": system,
                "number": number,
                "identity": place.composite,
                "of_faces": place.complete,
                "prompt": mean_over_people(followed, "followed", method),
                "found": faces_found(measured, method),
            }
        )
    table = pd.DataFrame(rows)
    table.attrs["scale"] = (
        f"{scale.in_words}\nby {scale.recogniser}, in distances to {scale.target}"
    )
    return table


def _numbered(method: str) -> tuple[str, float]:
    """The system and the number of a method's name; NaN where it has none."""
    system, _, number = method.rpartition(" ")
    try:
        return (system, float(number)) if system else (method, float("nan"))
    except ValueError:
        return method, float("nan")


def trade_off_plot(table: pd.DataFrame, number: str) -> Image.Image:
    """Draw identity against prompt, a path for each system, and below it the faces that are found.

    Above, right and high is better: marks on the paths count a lost face as a stranger's, faint
    ones leave it out. Methods without a number, and another person at 0, are vertical lines.

    Args:
        table: Result of `trade_off`.
        number: What the numbers beside the marks are.
    """
    figure = Figure(figsize=(6.6, 7.4), layout="constrained", dpi=150)
    axes, below = figure.subplots(2, 1, height_ratios=(2.6, 1))
    words: list[str] = []
    labels: list[tuple[str, tuple[float, float], str]] = []
    paths = table[table["number"].notna()]
    for (system, rows), colour, marker in zip(
        paths.groupby("system", sort=False), COLOURS, MARKERS, strict=False
    ):
        rows = rows.sort_values("number")
        x = [interval.estimate for interval in rows["identity"]]
        y = [interval.estimate for interval in rows["prompt"]]
        found = [interval.estimate for interval in rows["found"]]
        axes.plot(x, y, color=colour, linewidth=1.4, alpha=0.6)
        for _, row in rows.iterrows():
            look: dict[str, Any] = {"colour": colour, "marker": marker, "alpha": 0.35}
            draw_interval(axes, row["identity"], row["prompt"], size=7, width=1, **look)
            draw_interval(below, row["number"], row["found"], size=6, width=1.5, **look)
            faint = {"color": colour, "markersize": 6, "markerfacecolor": "none", "alpha": 0.45}
            axes.plot(row["of_faces"].estimate, row["prompt"].estimate, marker, **faint)
        below.plot(rows["number"], found, color=colour, linewidth=1.4, alpha=0.6)
        axes.plot([], [], marker, color=colour, markersize=7, label=system)
        labels += [
            (f"{value:g}", (at, share), colour)
            for at, share, value in zip(x, y, rows["number"], strict=True)
            if np.isfinite([at, share]).all()
        ]
        first, last = (
            f"{_place(x[end], y[end], found[end])} at {rows['number'].iloc[end]:g}"
            for end in (0, -1)
        )
        words.append(f"{system} from {first} to {last}")
    lines = {"another person": 0.0} | {
        str(row["system"]): row["identity"].estimate
        for _, row in table[table["number"].isna()].iterrows()
    }
    axes.set_xlabel(table.attrs.get("scale", "identity recovery R"), color=INK)
    axes.set_ylabel("a face, and all that is asked for", color=INK)
    _share_axis(axes)
    words += _draw_ends(axes, lines)
    axes.plot([], [], "o", color=QUIET, markerfacecolor="none", label="without lost faces")
    axes.legend(frameon=False, title=number, fontsize=9)
    below.set_xlabel(number, color=INK)
    below.set_ylabel("faces found", color=INK)
    _share_axis(below)
    for each in (axes, below):
        each.tick_params(colors=QUIET)
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
    figure.draw_without_rendering()  # the layout decides where marks are
    _annotate(axes, labels)
    return with_alt_text(
        VectorFigure(figure),
        f"Identity against prompt, by {number}, lost faces counted as strangers': "
        f"{'; '.join(words)}.",
    )


def _share_axis(axes: Axes) -> None:
    """Set the y axis up for shares, in whole percents."""
    low, high = axes.get_ylim()
    low = min(low, SHARE_AXIS_START)
    high = min(high, 1 + 0.15 * (1 - low))  # no share is above 1: room for marks there
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 1)])
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")


LINES = {
    "text-only": "text alone",
    "the reference, restored": "restored",
    "the reference itself": "the reference",
    "another picture of the same person": "another picture",
}
"""Short names of the places to compare with."""


def _draw_ends(axes: Axes, lines: Mapping[str, float]) -> list[str]:
    """Draw places to compare with as thin vertical lines, with their names above the axes.

    Args:
        axes: Axes with R along x.
        lines: R by name; what is no number is left out.

    Returns:
        Each line in words.
    """
    shown = sorted(
        ((at, LINES.get(name, name)) for name, at in lines.items() if np.isfinite(at)),
        key=lambda line: line[0],
    )
    for number, (at, name) in enumerate(shown):
        fixed = at in (0.0, 1.0)
        look: dict[str, Any] = {"color": QUIET, "linewidth": 1, "zorder": 0}
        axes.axvline(at, linestyle="-" if fixed else (0, (4, 3)), **look)
        before = shown[number - 1][0] if number else -np.inf
        after = shown[number + 1][0] if number + 1 < len(shown) else np.inf
        # A name stands on the side where more room is left; the outer ones stand outside.
        left = at - before > after - at
        axes.annotate(
            f"{name} " if left else f" {name}",
            (at, 1),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(0, 3),
            ha="right" if left else "left",
            va="bottom",
            fontsize=9,
            color=QUIET,
        )
    return [f"{name} at {at:.2f}" for at, name in shown]


def _annotate(axes: Axes, labels: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write a label beside each mark, in the corner that other marks and labels leave free."""
    per_point = axes.figure.dpi / 72
    marks = [axes.transData.transform(at) / per_point for _, at, _ in labels]
    taken = [(x - 5.0, y - 5.0, x + 5.0, y + 5.0) for x, y in marks]

    for (text, at, colour), (x, y) in zip(labels, marks, strict=True):
        width, height = 5.8 * len(text), 8.0  # of the letters, in points
        corners = [(6.0, 6.0), (6.0, -6 - height), (-6 - width, 6.0), (-6 - width, -6 - height)]
        corners += [(-width / 2, 9.0), (-width / 2, -9 - height), (-width / 2, 9 + height)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in corners]
        hidden = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = int(np.argmin(hidden))
        left, bottom, right, top = boxes[best]
        taken.append((left - 3, bottom, right + 3, top))  # "0" beside "0.25" is no "00.25"
        axes.annotate(
            text,
            at,
            color=colour,
            fontsize=9,
            textcoords="offset points",
            xytext=corners[best],
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def _place(identity: float, prompt: float, found: float) -> str:
    """The place of a mark in words; an estimate is NaN where it rests on too few people."""
    likeness = f"R {identity:.2f}" if np.isfinite(identity) else "R of too few people"
    shown = f"{prompt:.0%} of prompts" if np.isfinite(prompt) else "too few people"
    return f"{likeness}, {shown} and {found:.0%} of faces"


def identity_plot(measured: Measurements, *, names: Mapping[str, str] | None = None) -> Image.Image:
    """Draw the main result of a study: R of each method, and how often it shows a face.

    A panel for each recogniser, a row for each method. A mark with its interval counts a picture
    without a face as a stranger's; the hollow mark beside it is R of the faces that came out. A
    faint tick is R of the same pictures for another person of the same gender and age. Thin lines
    are another person, the text alone, the reference after the autoencoder and the reference
    itself. Where a record lacks the distances to pictures that no system was shown, those to the
    reference are drawn, and the axis says so.

    Args:
        measured: Measurements of the study.
        names: What to call the methods, if not by their own names.
    """
    methods = systems_of(measured.images)
    found = {method: faces_found(measured, method).estimate for method in methods}
    scales = [main_scale(measured, name) for name in measured.scales]
    size = (6.6, len(scales) * (0.36 * max(len(methods), 2) + 0.75) + 0.6)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(len(scales), 1, sharex=True, squeeze=False)[:, 0]
    called = [(names or {}).get(method, method) for method in methods]
    words = []
    for axes, scale in zip(panels, scales, strict=True):
        told = []
        for position, method in enumerate(reversed(methods)):
            place = place_of(scale.scores, method)
            quiet = method == WITHOUT
            look: dict[str, Any] = {"colour": QUIET if quiet else MEASURED, "size": 8}
            draw_interval(axes, place.composite, position, **look)
            axes.plot(
                place.complete.estimate, position, "o", color=look["colour"], markersize=8,
                markerfacecolor="none", markeredgewidth=1,
            )  # fmt: skip
            alike = swapped_recovery(measured, scale.recogniser, method).estimate
            axes.plot(alike, position, "|", color=INK, markersize=13, alpha=0.5)
            share = f"{found[method]:.0%} faces" if np.isfinite(found[method]) else "–"
            axes.annotate(
                share if np.isfinite(place.composite.estimate) else f"{share}, too few people",
                (1, position),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontsize=9,
                color=QUIET,
            )
            name = called[-1 - position]
            told.append(f"{name} {place.composite} ({place.complete} of the {share} found)")
        interval_axes(axes, called, "")
        lines = {"another person": 0.0, scale.one: 1.0}
        for name in (WITHOUT, *ANCHORS):
            if name in set(measured.images["method"]) and name != scale.one:
                lines[name] = place_of(scale.scores, name).composite.estimate
        ends = _draw_ends(axes, lines)
        title = f"{scale.recogniser}, {shown_in_words(scale.recogniser, methods)}".rstrip(", ")
        axes.set_title(textwrap.fill(title, 80), fontsize=10, color=INK, loc="left", pad=18)
        axes.tick_params(axis="x", colors=QUIET)
        axes.grid(axis="x", alpha=0.25)
        words.append(f"By {title}: {'; '.join([*told[::-1], *ends])}")
    first = scales[0]
    panels[-1].set_xlabel(f"{first.in_words}\nin distances to {first.target}", color=INK)
    left, right = panels[-1].get_xlim()
    panels[-1].set_xlim(min(left, -0.3), max(right, 1.0) + 0.35)
    hollow: dict[str, Any] = {"color": MEASURED, "markerfacecolor": "none", "markersize": 8}
    marks = {
        "lost faces as strangers'": Line2D([], [], marker="o", color=MEASURED, markersize=8),
        "of faces found": Line2D([], [], linestyle="", marker="o", **hollow),
        "for somebody alike": Line2D([], [], linestyle="", marker="|", color=INK, markersize=13),
    }
    ticked = any(f"swapped {scale.recogniser}" in measured.images for scale in scales)
    shown = list(marks)[: 3 if ticked else 2]
    figure.legend(
        [marks[name] for name in shown], shown, loc="outside lower center", ncols=3, frameon=False,
        fontsize=9,
    )  # fmt: skip
    alt = f"A row for each method over {first.in_words}, in distances to {first.target}. "
    return with_alt_text(VectorFigure(figure), f"{alt}{'. '.join(words)}.")


def paired_plot(scores: Sequence[IdentityScores], baseline: str) -> Image.Image:
    """Draw how much nearer to the person each method is than one of them, picture by picture.

    A row for each method, a panel for each recogniser: to the right is nearer. The unit is the
    distance between another person's pictures and the person's own, so that recognisers can be
    compared. A mark with its interval counts a lost face as a stranger's, the hollow one beside it
    leaves such pairs out. A difference that is decided however lost faces are treated is coloured;
    one that is left open, or that rests on too few people, is grey.

    Args:
        scores: Scores of one study, under one recogniser or more.
        baseline: Method that the others are compared with. Where a study lacks it, the picture
            says so.
    """
    methods = systems_of(scores[0].images)
    others = [name for name in methods if name != baseline] if baseline in methods else []
    size = (6.6, len(scores) * (0.36 * max(len(others), 2) + 0.8))
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
    words = []
    for axes, score in zip(panels, scores, strict=True):
        found_words = []
        way = float((score.scale["impostor"] - score.scale["genuine"]).mean())
        axes.axvline(0, color=INK, linewidth=1, zorder=0)
        for position, name in enumerate(reversed(others)):
            found = paired_difference(score, name, baseline)
            whole, some = (
                Interval(*(float(end) / way for end in vars(each).values()))
                for each in (found.composite or found.interval, found.interval)
            )
            if not np.isfinite([whole.low, whole.high]).all():
                continue
            colour = {"supported": MEASURED, "not supported": WORSE}.get(found.verdict, QUIET)
            draw_interval(axes, whole, position, colour=colour)
            hollow = {"color": colour, "markersize": 8, "markerfacecolor": "none"}
            axes.plot(some.estimate, position, "o", **hollow)
            found_words.append(f"{name} {whole}, {found.pairs} of {found.cells} pairs with faces")
        interval_axes(axes, others, f"gain in identity recovery R ({score.recogniser})")
        axes.xaxis.label.set_color(INK)
        axes.tick_params(axis="x", colors=QUIET)
        axes.grid(axis="x", alpha=0.25)
        words.append(f"by {score.recogniser}: {'; '.join(found_words[::-1]) or 'nothing'}")
    if not others:
        text = f"Nothing to compare: {baseline} and another method are needed."
        panels[0].text(0.5, 0.5, text, transform=panels[0].transAxes, ha="center", color=QUIET)
    alt = (
        f"How much nearer to the {_target(scores[0])} than {baseline}, in parts of the way from a "
        f"stranger to the person: {'. '.join(words)}."
    )
    return with_alt_text(VectorFigure(figure), alt)


def _target(scores: IdentityScores) -> str:
    return "reference" if scores.against == "reference" else "person's other pictures"


def psnr_plot(pairs: pd.DataFrame, quoted: pd.DataFrame) -> Image.Image:
    """Draw PSNR over SSIM for many pairs of faces, computed properly and in 8 bits.

    Args:
        pairs: A row for each pair, with columns ``ssim``, ``psnr`` and ``psnr_8bit_overflow``.
        quoted: The paper's Table 2, as `companion.claims.quoted.read_quoted` returns it.
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
    return with_alt_text(VectorFigure(figure), alt)


def _range(values: pd.Series[float]) -> str:
    return f"from {values.min():.2f} to {values.max():.2f}"
