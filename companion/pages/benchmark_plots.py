"""What benchmarks measured, as pictures: a dot and a 95% interval for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.plots import draw_interval, interval_axes
from companion.figures.style import INK, MEASURED, QUIET
from companion.pages.benchmark_records import Group, Result
from companion.pages.benchmark_tables import digits, missing, sentence

COLOURS = {"met": MEASURED, "missed": "#b3261e", "undecided": INK, None: MEASURED}
"""Colour of a row by the outcome of its target."""


def benchmark_plot(results: Sequence[Result], name: str, titled: str = "") -> Any:
    """Draw what was measured: a panel for each group, a dot and a 95% interval for each row.

    The dashed line is the target, the small upright mark the floor by counted operations, and the
    hollow diamond the ratio of counted kernels. With several records, the groups of each stand
    under its heading. Only groups are drawn whose titles begin as `titled` says; where nothing was
    measured, a sentence names the benchmark that does it.
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
    height = 0.31 * sum(heights) + 0.4 * (len(shown) + heads) + 0.3
    figure = Figure(figsize=(8, height), layout="constrained", dpi=130)
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    words = []
    for axes, (group, where) in zip(panels, shown, strict=True):
        said = _panel(axes, group)
        words.append(f"{where}: {said}" if where else said)
        axes.set_title(group.title, loc="left", fontsize=9, color=INK)
        if where:
            place = ((0, 1), (0, 24), ("figure fraction", "axes fraction"), "offset points")
            axes.annotate(where, *place, fontsize=10, fontweight="bold", color=INK)
    return with_alt_text(VectorFigure(figure), " ".join(words))


def _panel(axes: Any, group: Group) -> str:
    """Draw one group; returns what it shows in words."""
    said = []
    for height, row in enumerate(group.rows[::-1]):
        found = group.interval(row)
        compared = row is not group.rows[0]
        colour = COLOURS[group.outcome(row)] if compared or group.shows == "value" else QUIET
        draw_interval(axes, found, height, colour=colour, size=5.5, width=2.5)
        marks = [found.estimate, found.high]
        if compared and group.shows == "ratio":
            if floor := group.counted("operations", row):
                marks.append(floor)
                axes.plot([floor] * 2, [height - 0.28, height + 0.28], color=QUIET, linewidth=1.5)
            if kernels := group.counted("kernels", row):
                marks.append(kernels)
                hollow = {"markersize": 5, "mec": QUIET, "mfc": "none", "mew": 1.2, "zorder": 0}
                axes.plot(kernels, height, "D", **hollow)
        if row.target and row.target.of == group.shows and not row.target.against:
            marks.append(limit := row.target.limit)
            span = [height - 0.45, height + 0.45]
            axes.plot([limit] * 2, span, color=INK, linestyle=(0, (3, 2)), lw=1.2)
        # The number stands right of all marks, so that none runs through it.
        place = ((float(np.nanmax(marks)), height), (7, 0), "data", "offset points")
        axes.annotate(digits(found.estimate), *place, va="center", fontsize=8, color=colour)
        said.append(f"{row.name} {digits(found.estimate)}")
    first = group.rows[0].name
    label = {
        "value": group.unit,
        "ratio": f"times {first}",
        "difference": f"{group.unit} more than {first}",
    }[group.shows]
    interval_axes(axes, [row.name for row in group.rows], label, fontsize=8.5)
    axes.xaxis.label.set_size(8)
    axes.tick_params(axis="x", labelsize=8)
    lowest = min(group.interval(row).estimate for row in group.rows)
    left = axes.get_xlim()[0] if lowest < 0 else 0  # a difference may be less than nothing
    axes.set_xlim(left=left)
    axes.set_xmargin(0.12)
    axes.autoscale_view(scaley=False)
    axes.set_xlim(left=left)
    if group.shows == "ratio":
        axes.axvline(1, color=QUIET, linewidth=0.8, zorder=0)
    return f"{group.title}, {label}: {'; '.join(said[::-1])}."
