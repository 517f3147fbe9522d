"""Pictures in which a number could not be measured, and three ways to treat them.

A lost face is an effect of a method, not a failure of measurement. So every number that needs a
face is computed three times:

- complete cases: the pictures that have it, which says how near the faces are that came out;
- composite: a picture without a face counts as one of a stranger, which says what a user gets;
- bounds: it may have been anybody from the person to a stranger, whatever is worst for the claim
  and whatever is best (Horowitz and Manski 2000, "Nonparametric analysis of randomized experiments
  with missing covariate and outcome data").

A statement that holds under all three does not depend on what is made of lost faces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from companion.evaluation.statistics import Interval

SHARES = ("face", "accepted", "followed", "shown", "likeness")
"""Columns of ones and zeros, or of shares."""

DECILES = (0.1, 0.9)
"""Quantiles of a metric's measured values between which a missing one plausibly lies, where no
scale says so."""


@dataclass(frozen=True)
class Filling:
    """What may stand for a missing number.

    Attributes:
        composite: The number of a picture that shows a stranger, for each person.
        low: The least plausible number, for each person.
        high: The greatest plausible number, for each person.
    """

    composite: pd.Series[float]
    low: pd.Series[float]
    high: pd.Series[float]


@dataclass(frozen=True)
class Treated:
    """One number under the three treatments.

    Attributes:
        complete: Over the cells in which all of it was measured.
        composite: Over all cells, lost faces as strangers'.
        bounds: Over all cells: the low end is that of the interval when all that is missing speaks
            against the number, the high end when it speaks for it; the estimate is the composite's.
        pairs: Cells that were measured whole.
        cells: All cells.
        measured: The complete cases' number for each person with any.
        values: The composite's number for each person.
    """

    complete: Interval
    composite: Interval
    bounds: Interval
    pairs: int
    cells: int
    measured: pd.Series[float]
    values: pd.Series[float]

    @property
    def each(self) -> dict[str, Interval]:
        """The three intervals by the name of the treatment."""
        return {
            "complete cases": self.complete,
            "composite": self.composite,
            "bounds": self.bounds,
        }


def filling(metric: str, images: pd.DataFrame, scale: pd.DataFrame | None = None) -> Filling:
    """What may stand for a picture's missing number.

    For a distance, it is that of a stranger, and plausibly anything from another picture of the
    person to a stranger. For a share, it is 0, and anything from 0 to 1. For other numbers, it is
    the worst tenth of what was measured, and anything from there to the best tenth.

    Args:
        metric: The column.
        images: Measured pictures of all methods.
        scale: For a distance: a row for each person with ``genuine`` and ``impostor``.
    """
    people = pd.Index(images["person"].unique())

    def same(value: float) -> pd.Series[float]:
        return pd.Series(value, index=people, dtype=float)

    if metric.startswith("distance") and scale is not None:
        ends = scale[["genuine", "impostor"]].reindex(people)
        ends = ends.fillna(ends.mean())  # a person without other pictures has the average scale
        return Filling(ends["impostor"], ends.min(axis=1), ends.max(axis=1))
    if metric in SHARES or metric.endswith(("_kept", "_correct")):
        return Filling(same(0), same(0), same(1))
    low, high = images[metric].replace([np.inf, -np.inf], np.nan).quantile(DECILES)
    worst = high if metric.startswith(LOWER_IS_BETTER) else low
    return Filling(same(worst), same(low), same(high))


LOWER_IS_BETTER = ("distance", "spread", "skin_difference")
"""Beginnings of the names of columns in which a lower number is better."""


def treat(
    cells: pd.DataFrame,
    weights: Mapping[str, float],
    fill: Filling | None,
    interval: Callable[[pd.Series[float]], Interval],
) -> Treated:
    """A weighted sum of several methods' numbers, as a mean over people, under each treatment.

    Args:
        cells: A row for each cell, indexed by person, prompt and seed; a column for each method.
        weights: Weight of each method: 1 and -1 for a difference.
        fill: What may stand for a missing number; None where all that is missing was not asked.
        interval: Makes the number of its values by person, a mean with its interval for example.
    """
    shown = cells[list(weights)].replace([np.inf, -np.inf], np.nan)
    signs = pd.Series(weights, dtype=float)

    def by_person(table: pd.DataFrame) -> pd.Series[float]:
        total = (table * signs).sum(axis=1, skipna=False).dropna()
        return total.groupby("person").mean()

    complete = by_person(shown)
    whole = int(shown.notna().all(axis=1).sum())
    if fill is None or whole == len(shown):
        found = interval(complete)
        return Treated(found, found, found, whole, len(shown), complete, complete)

    owner = shown.index.get_level_values("person")

    def filled(up: pd.Series[float], down: pd.Series[float]) -> pd.Series[float]:
        """By person, with `up` for what is added and missing, and `down` for what is taken away."""
        table = shown.copy()
        for method, sign in signs.items():
            values = (up if sign > 0 else down).reindex(owner).to_numpy()
            table[method] = table[method].where(table[method].notna(), values)
        return by_person(table)

    composite = filled(fill.composite, fill.composite)
    middle = interval(composite)
    ends = [interval(filled(fill.low, fill.high)), interval(filled(fill.high, fill.low))]
    bounds = Interval(
        middle.estimate,
        float(np.min([end.low for end in ends])),
        float(np.max([end.high for end in ends])),
    )
    return Treated(interval(complete), middle, bounds, whole, len(shown), complete, composite)
