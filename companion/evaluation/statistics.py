"""How sure a measured difference is: bootstrap intervals over people, and verdicts from them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from fusionlib.errors import FusionError

Verdict = Literal["supported", "not supported", "undecided"]

MIN_PEOPLE = 5
"""Least number of people for an interval and a verdict. Resampled means lie between the least and
the largest value, and the values of four people all lie on one side of the truth in one study of
eight, by chance alone."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that aims to hold the true value in 95% of studies like this.

    How close to that it comes is simulated: ``book/records/coverage.csv``.

    All three are NaN where there was nothing to estimate from, and the two ends alone where there
    are fewer than `MIN_PEOPLE`, or the statistic of some resamples is no number.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.estimate):
            return "–"
        if not np.isfinite([self.low, self.high]).all():
            return f"{self.estimate:z.3f}"
        digits = self._digits()
        return f"{self.estimate:z.{digits}f} [{self.low:z.{digits}f}, {self.high:z.{digits}f}]"

    def _digits(self) -> int:
        """Three digits after the point, or so many more that no end's sign is hidden by zeros."""
        ends = [end for end in (self.low, self.high) if abs(end) >= 5e-7]  # below: rounding
        return next(digits for digits in range(3, 8) if all(round(end, digits) for end in ends))

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of `value`."""
        return value < self.low or value > self.high


def bootstrap(
    *samples: NDArray[np.floating[Any]],
    statistic: Callable[..., Any] = np.mean,
    resamples: int = 9_999,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """95% interval of a statistic, by the bias-corrected, accelerated bootstrap (BCa).

    Several samples are drawn together (paired): entry i of each belongs to the same person. Pass
    one value for each person, not for each image: images of one person are not independent. For few
    people the interval is widened as Student's t is over the normal distribution (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap"), without which it would miss too often. With
    fewer than `MIN_PEOPLE` there is no interval: its ends are NaN.

    Args:
        samples: One or more (people,) arrays without NaN.
        statistic: Function called as ``statistic(*samples, axis=...)``; must work along any axis.
        resamples: Number of resampled studies.
        seed: Seed of the resampling, so that a table is the same every time.
        level: Level of the interval.

    Raises:
        FusionError: Samples of different lengths, or a value that is not finite.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        shapes = ", ".join(str(array.shape) for array in arrays) or "nothing"
        raise FusionError(
            "A bootstrap interval needs samples of one common length, one value for each person: "
            f"got {shapes}."
        )
    if len(arrays[0]) == 0:
        return Interval(np.nan, np.nan, np.nan)
    if not all(np.isfinite(array).all() for array in arrays):
        raise FusionError(
            "A bootstrap interval was asked for values that are not finite: leave out, and count, "
            "pictures without a face first."
        )
    estimate = float(statistic(*arrays, axis=-1))
    if len(arrays[0]) < MIN_PEOPLE:
        return Interval(estimate, np.nan, np.nan)
    if all(np.ptp(array) == 0 for array in arrays):
        return Interval(estimate, estimate, estimate)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        found = scipy.stats.bootstrap(
            arrays,
            statistic,
            n_resamples=resamples,
            paired=True,
            vectorized=True,
            method="BCa",
            confidence_level=min(_expanded(len(arrays[0]), level), 1 - 2 / resamples),
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high))


def _expanded(people: int, level: float) -> float:
    """The level to ask a bootstrap for, so that with so few people it holds the truth at `level`.

    The resampled means spread by sqrt((n - 1) / n) too little, and their quantiles are the normal
    distribution's where those of Student's t are due.
    """
    quantile = scipy.stats.t.ppf((1 + level) / 2, people - 1) * np.sqrt(people / (people - 1))
    return float(2 * scipy.stats.norm.cdf(quantile) - 1)


def effect_size(differences: NDArray[np.floating[Any]], axis: int = -1) -> NDArray[np.float64]:
    """Standardised mean of paired differences: Cohen's d_z with Hedges' correction.

    The mean over the standard deviation between people, shrunk for few of them: two would shrink it
    to nothing, and have none. By Cohen's rule of thumb 0.2 is a small, 0.5 a medium and 0.8 a large
    effect. Works as a `bootstrap` statistic.

    Args:
        differences: A difference for each person.
        axis: The axis that counts people.
    """
    people = np.shape(differences)[axis]
    if people < 3:
        return np.full(np.mean(differences, axis=axis).shape, np.nan)
    with np.errstate(all="ignore"):  # equal differences have no spread
        d = np.mean(differences, axis=axis) / np.std(differences, axis=axis, ddof=1)
    return np.asarray(d * (1 - 3 / (4 * (people - 1) - 1)))


def verdict(improvement: Interval) -> Verdict:
    """Judge a claim "this is better" by the interval of the improvement (positive: better)."""
    if improvement.low > 0:
        return "supported"
    if improvement.high < 0:
        return "not supported"
    return "undecided"
