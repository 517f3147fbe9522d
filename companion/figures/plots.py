"""Plots of what was measured: estimates with their intervals, and one metric over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from companion.evaluation.comparison import (
    IdentityScores,
    identity_table,
    mean_over_people,
    method_recovery,
    paired_difference,
    with_prompt_followed,
)
from companion.evaluation.measure import Measurements
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
    """Identity and prompt of methods that are named by a system and a number, ``fused 0.5``.

    Args:
        measured: Measurements of a study, with classifiers.
        recogniser: Recogniser that judges identity.

    Returns:
        A row for each method: ``system``, ``number``, ``identity`` (recovery R) and ``prompt`` (the
        share of pictures that show everything the prompt asks for), the last two as `Interval`.
    """
    scores = measured.identity(recogniser)
    followed = with_prompt_followed(measured.images)
    rows = []
    for method in measured.images["method"].unique():
        system, _, number = str(method).rpartition(" ")
        rows.append(
            {
                "system": system,
                "number": float(number),
                "identity": method_recovery(scores, method),
                "prompt": mean_over_people(followed, "followed", method),
            }
        )
    return pd.DataFrame(rows)


def trade_off_plot(table: pd.DataFrame, number: str) -> Image.Image:
    """Draw identity against prompt, a path for each system: right and high is better.

    Args:
        table: Result of `trade_off`.
        number: What the numbers beside the marks are.
    """
    figure = Figure(figsize=(8.5, 5.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    words: list[str] = []
    labels: list[tuple[str, tuple[float, float], str]] = []
    for (system, rows), colour, marker in zip(
        table.groupby("system", sort=False), COLOURS, MARKERS, strict=False
    ):
        rows = rows.sort_values("number")
        x = [interval.estimate for interval in rows["identity"]]
        y = [interval.estimate for interval in rows["prompt"]]
        axes.plot(x, y, color=colour, linewidth=1.4, alpha=0.6)
        for identity, prompt in zip(rows["identity"], rows["prompt"], strict=True):
            draw_interval(
                axes, identity, prompt, colour=colour, marker=marker, size=7, width=1, alpha=0.35
            )
        axes.plot([], [], marker, color=colour, markersize=7, label=system)
        labels += [
            (f"{value:g}", (at, share), colour)
            for at, share, value in zip(x, y, rows["number"], strict=True)
            if np.isfinite([at, share]).all()
        ]
        first, last = (
            f"{_place(x[end], y[end])} at {rows['number'].iloc[end]:g}" for end in (0, -1)
        )
        words.append(f"{system} from {first} to {last}")
    axes.set_xlabel("identity recovery R: 0 a stranger, 1 another picture of the person", color=INK)
    axes.set_ylabel("pictures that show all that is asked for", color=INK)
    low, high = axes.get_ylim()
    low = min(low, SHARE_AXIS_START)
    high = min(high, 1 + 0.15 * (1 - low))  # no share is above 1: room for marks there
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # whole percents
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 1)])
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.tick_params(colors=QUIET)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, title=number)
    figure.draw_without_rendering()  # the layout decides where marks are
    _annotate(axes, labels)
    return with_alt_text(
        VectorFigure(figure), f"Identity against prompt, by {number}: {'; '.join(words)}."
    )


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


def _place(identity: float, prompt: float) -> str:
    """The place of a mark in words; an estimate is NaN where it rests on fewer than two people."""
    likeness = f"R {identity:.2f}" if np.isfinite(identity) else "too few faces found"
    shown = f"{prompt:.0%} of prompts" if np.isfinite(prompt) else "too few people"
    return f"{likeness} and {shown}"


def distance_plot(scores: IdentityScores, *, names: Mapping[str, str] | None = None) -> Image.Image:
    """Draw each person's distance to the reference, method by method, with means and intervals.

    The two ends of the scale stand above and below: pictures of other people, and other pictures of
    the same person. The dashed line is the distance below which DeepFace takes two pictures for one
    person.

    Args:
        scores: Scores of the study.
        names: What to call the methods, if not by their own names.
    """
    from deepface.config.threshold import thresholds

    table = identity_table(scores)
    figure = Figure(figsize=(8, 0.75 * len(table) + 1), layout="constrained", dpi=150)
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    called = [(names or {}).get(str(name), str(name)) for name in table.index]
    words = []
    for position, (name, row) in enumerate(table[::-1].iterrows()):
        if row["images"] is None or np.isnan(row["images"]):
            column = "impostor" if row["recovery"].estimate == 0 else "genuine"
            values, colour = scores.scale[column].dropna(), QUIET
        else:
            values, colour = scores.of(str(name)), MEASURED
        if values.empty:
            continue
        height = position + jitter.uniform(-0.22, 0.22, len(values))
        axes.scatter(values, height, s=14, color=colour, alpha=0.35, linewidths=0)
        interval = row["distance"]
        words.append(f"{called[-1 - position]} {interval}")
        draw_interval(axes, interval, position, colour=colour, size=9)
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
    label = f"cosine distance to the {_target(scores)} ({scores.recogniser})"
    interval_axes(axes, called, label)
    axes.set_ylim(-0.5, len(table) - 0.25)
    axes.set_xlim(left=0)
    alt = f"A dot for each person in {len(words)} rows over the {label}. Means: "
    return with_alt_text(VectorFigure(figure), f"{alt}{'; '.join(words[::-1])}.")


def paired_plot(scores: Sequence[IdentityScores], baseline: str) -> Image.Image:
    """Draw how much nearer to the reference each method is than one of them, picture by picture.

    A row for each method, a panel for each recogniser: to the right is nearer. The unit is the
    distance between another person's pictures and the person's own, so that recognisers can be
    compared. A difference that the interval decides is coloured; one that it leaves open, or that
    rests on too few pairs or people, is grey.

    Args:
        scores: Scores of one study, under one recogniser or more.
        baseline: Method that the others are compared with. Where a study lacks it, the picture
            says so.
    """
    methods = [str(name) for name in scores[0].images["method"].unique()]
    others = [name for name in methods if name != baseline] if baseline in methods else []
    size = (9, 0.42 * max(len(others), 2) + 1)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(1, len(scores), sharex=True, sharey=True, squeeze=False)[0]
    words = []
    for axes, score in zip(panels, scores, strict=True):
        found_words = []
        way = float((score.scale["impostor"] - score.scale["genuine"]).mean())
        axes.axvline(0, color=INK, linewidth=1, zorder=0)
        for position, name in enumerate(reversed(others)):
            found = paired_difference(score, name, baseline)
            interval = Interval(*(float(end) / way for end in vars(found.interval).values()))
            if not np.isfinite([interval.low, interval.high]).all():
                continue
            colour = {"supported": MEASURED, "not supported": WORSE}.get(found.verdict, QUIET)
            draw_interval(axes, interval, position, colour=colour)
            found_words.append(f"{name} {interval}, {found.pairs} of {found.cells} pairs")
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
