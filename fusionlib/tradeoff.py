"""Identity against the prompt: what a system gains in one and loses in the other along a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fusionlib.described import described
from fusionlib.drawing import Drawing
from fusionlib.evaluation.comparison import mean_over_people, recovery, with_prompt_followed
from fusionlib.evaluation.measure import Measurements
from fusionlib.figures import INK, MEASURED, QUIET

COLOURS = (MEASURED, "#c4572b", "#4a6fb5", "#8a6d1b", "#7a5195")
"""Of the systems, in their order; told apart without colour by their marks."""

MARKS = "osD^v"

LOWEST = 0.9
"""Where the axis of shares begins at the latest, so that small differences do not look large."""


def trade_off(measured: Measurements, recogniser: str) -> pd.DataFrame:
    """Identity and prompt of methods that are called after a system and a number, ``fused 0.5``.

    Args:
        measured: a study, with classifiers.
        recogniser: by which to judge identity.

    Returns:
        A row for each method: ``system``, ``number``, ``identity`` (recovery R) and ``prompt`` (the
        share of pictures that show everything that is asked for), each an `Interval`.
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
                "identity": recovery(scores, method),
                "prompt": mean_over_people(followed, "followed", method),
            }
        )
    return pd.DataFrame(rows)


def trade_off_plot(table: pd.DataFrame, number: str) -> Image.Image:
    """Draw each system's path, its numbers beside the marks: right and high is better.

    Args:
        table: of `trade_off`.
        number: what the numbers are.
    """
    figure = Figure(figsize=(8.5, 5.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    words: list[str] = []
    labels: list[tuple[str, tuple[float, float], str]] = []
    for (system, rows), colour, mark in zip(
        table.groupby("system", sort=False), COLOURS, MARKS, strict=False
    ):
        rows = rows.sort_values("number")
        x = [interval.estimate for interval in rows["identity"]]
        y = [interval.estimate for interval in rows["prompt"]]
        axes.plot(x, y, color=colour, linewidth=1.4, alpha=0.6)
        for across, up, at, share in zip(rows["identity"], rows["prompt"], x, y, strict=True):
            for xs, ys in (
                ([across.low, across.high], [share, share]),
                ([at, at], [up.low, up.high]),
            ):
                axes.plot(xs, ys, color=colour, linewidth=1, alpha=0.35)
        axes.plot(x, y, mark, color=colour, markersize=7, label=system)
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
    low = min(low, LOWEST)
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
    return described(Drawing(figure), f"Identity against prompt, by {number}: {'; '.join(words)}.")


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
    """A mark in words. A mean over people needs two of them, with a face in a picture of each."""
    likeness = f"R {identity:.2f}" if np.isfinite(identity) else "too few faces found"
    shown = f"{prompt:.0%} of prompts" if np.isfinite(prompt) else "too few people"
    return f"{likeness} and {shown}"
