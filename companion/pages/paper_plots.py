"""The paper's own numbers as pictures, see `companion.pages.paper_numbers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.plots import interval_axes
from companion.figures.style import INK, QUIET, QUOTED
from companion.pages.paper_numbers import BASELINES, OURS, against_thresholds, trade_off_line


def threshold_plot(table1: pd.DataFrame) -> Image.Image:
    """Draw the distances of Table 1 as dots against DeepFace's thresholds, a panel a recogniser.

    Args:
        table1: The paper's Table 1, of `companion.claims.quoted.read_quoted`.
    """
    found = against_thresholds(table1)
    recognisers = list(found["recogniser"].unique())
    figure = Figure(figsize=(7, 2.05 * len(recognisers) + 0.4), layout="constrained", dpi=150)
    panels = figure.subplots(len(recognisers), 1, sharex=True, squeeze=False)[:, 0]
    words = []
    for axes, recogniser in zip(panels, recognisers, strict=True):
        rows = found[found["recogniser"] == recogniser].reset_index(drop=True)
        label = "mean cosine distance to the reference, as printed"
        interval_axes(axes, list(rows["system"]), label if axes is panels[-1] else "", fontsize=10)
        for position, row in zip(range(len(rows))[::-1], rows.itertuples(), strict=True):
            axes.plot(row.distance, position, "o", **_look(row.system), markersize=7)
            place = ((row.distance, position), (-8, 0), "data", "offset points")
            axes.annotate(f"{row.distance:.2f}", *place, **_BESIDE, fontsize=9)
        limit, former = rows["threshold"].iloc[0], rows["former"].iloc[0]
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1.2, zorder=0)
        said = f"{recogniser}: accepted up to {limit:.2f}"
        axes.set_title(said, loc="left", fontsize=10, color=INK)
        words.append(f"{said}; {_listed(rows['system'], rows['distance'])}")
        if not np.isnan(former):
            axes.axvline(former, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
            before = f"until January 2024: {former:.2f}"
            axes.set_title(before, loc="right", fontsize=9, color=QUIET)
            words[-1] += f"; as a dotted line, accepted {before}"
        axes.tick_params(axis="x", colors=QUIET)
    panels[0].set_xlim(0, 1.06 * found["threshold"].max())
    alt = "Distances of the paper's Table 1 as dots, DeepFace's thresholds as lines. "
    alt += " ".join(f"{sentence}." for sentence in words)
    return with_alt_text(VectorFigure(figure), alt)


def trade_off_line_plot(table1: pd.DataFrame, table2: pd.DataFrame) -> Image.Image:
    """Draw CLIP score against distance, with the line through the two baselines that have both.

    Right and high is better. A system without a CLIP score is a mark on the axis below.

    Args:
        table1: The paper's Table 1.
        table2: The paper's Table 2.
    """
    lines = trade_off_line(table1, table2)
    distances = table1.pivot(index="row", columns="column", values="value")
    clip = table2[table2["column"] == "CLIP Score"].set_index("row")["value"]
    scored = clip.dropna()
    size = (6.5, 2.6 * len(lines) + 0.3)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(len(lines), 1, sharey=True, squeeze=False)[:, 0]
    low, high = scored.min() - 0.9, scored.max() + 0.5
    words = []
    for axes, (recogniser, line) in zip(panels, lines.iterrows(), strict=True):
        distance = distances[recogniser]
        reach = 0.16 * (distance.max() - distance.min())
        ends = np.array([distance.max() + reach, distance.min() - reach])
        axes.plot(ends, line["start"] + line["slope"] * ends, color=QUIET, linewidth=1.2, zorder=0)
        for name in OURS:
            on_line = scored[name] - line[name]
            axes.plot([distance[name]] * 2, [on_line, scored[name]], color=QUOTED, linewidth=1)
        for name in map(str, scored.index):
            score = scored[name]
            axes.plot(distance[name], score, "o", **_look(name), markersize=8)
            under = name in OURS and line[name] <= 0
            place = ((distance[name], score), (-8, -9 if under else 0), "data", "offset points")
            if not under:
                place = ((distance[name], score), (9, 5), "data", "offset points")
            side = "right" if under else "left"
            axes.annotate(name, *place, ha=side, va="center", fontsize=9, color=QUOTED)
        for name in clip.index.difference(scored.index):
            axes.plot(distance[name], low, "|", color=QUOTED, markersize=14, clip_on=False)
            place = ((distance[name], low), (5, 5), "data", "offset points")
            axes.annotate(f"{name}: no score", *place, ha="left", fontsize=8, color=QUIET)
        off = ", ".join(f"{name} {_signed(line[name])}" for name in OURS)
        named = f"{recogniser}: rank correlation {line['spearman']:.2f}"
        axes.set_title(named, loc="left", fontsize=9, color=INK)
        axes.set_title(f"off the line: {off}", loc="right", fontsize=9, color=QUOTED)
        axes.set_xlim(*ends)
        axes.set_ylim(low, high)
        axes.tick_params(colors=QUIET)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        at = _listed(distance.index.to_series(), distance)
        words.append(
            f"{recogniser}: distances {at}; rank correlation with CLIP score "
            f"{line['spearman']:.2f}; off the line {off}."
        )
    panels[-1].set_xlabel("mean cosine distance: right is nearer", color=INK)
    panels[len(panels) // 2].set_ylabel("CLIP score: high is better", color=INK)
    alt = (
        "CLIP score against distance, a panel for each recogniser, and the line through "
        f"{' and '.join(BASELINES)}. CLIP scores: {_listed(scored.index.to_series(), scored)}. "
        f"{' '.join(words)}"
    )
    return with_alt_text(VectorFigure(figure), alt)


_BESIDE: dict[str, Any] = {
    "ha": "right",
    "va": "center",
    "color": QUOTED,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
}
"""Look of a number on the left of its mark, over lines."""


def _look(system: str) -> dict[str, Any]:
    """The paper's systems are filled, the systems that it compares with are hollow."""
    face = QUOTED if system in OURS else "white"
    return {"markerfacecolor": face, "markeredgecolor": QUOTED, "markeredgewidth": 1.6}


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _listed(names: pd.Series[str], values: pd.Series[float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in zip(names, values, strict=True))
