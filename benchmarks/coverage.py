"""How often the 95% intervals hold the truth, where it is known: ``book/records/coverage.csv``.

Each simulated study has people who differ, and noise within people: two prompts and two seeds of
each, skewed as distances are. The seed is fixed: every machine finds the same numbers.

    python -m benchmarks.coverage
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from companion.evaluation.statistics import Interval, bootstrap
from fusionlib.profiles import ROOT

Values = NDArray[np.float64]

PEOPLE = (5, 10, 20, 40, 60, 100)
TRUTH, SPREAD = 0.04, 0.05  # mean and standard deviation over people: cosine distance
SHAPE = 0.5  # of the log-normal distribution, whose skewness is then 1.75


def simulated(people: int, studies: int, *, skewed: bool) -> Values:
    """Gains, ``(studies, people)``, of true mean `TRUTH`; `skewed`: people differ log-normally."""
    rng = np.random.default_rng(0)
    size = (studies, people, 1, 1)
    between = rng.lognormal(0, SHAPE, size) if skewed else rng.normal(0, 1, size)
    known = scipy.stats.lognorm(SHAPE) if skewed else scipy.stats.norm()
    between = (between - known.mean()) / known.std()
    within = rng.gamma(2, 0.02, (studies, people, 2, 2)) - 0.04  # mean 0
    gains: Values = (TRUTH + SPREAD * between + within).mean(axis=(2, 3))
    return gains


def plain(values: Values, resamples: int) -> Interval:
    """The same interval without the widening for few people."""
    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(float(values.mean()), float(found.low), float(found.high))


def coverage(
    interval: Callable[..., Interval], people: int, *, studies: int, resamples: int, skewed: bool
) -> float:
    """The share of simulated studies whose interval holds the truth."""
    gains = simulated(people, studies, skewed=skewed)
    held = [not interval(values, resamples=resamples).excludes(TRUTH) for values in gains]
    return float(np.mean(held))


def table(
    people: Sequence[int] = PEOPLE, *, studies: int = 1000, resamples: int = 9999
) -> pd.DataFrame:
    """Shares in percent: a row for each kind of interval and of people, a column for each size."""
    rows = {
        "intervals that hold the true difference": (bootstrap, False),
        "the same, log-normal between people": (bootstrap, True),
        "without the widening": (plain, False),
        "without the widening, log-normal": (plain, True),
    }
    size = {"studies": studies, "resamples": resamples}
    shares = {
        count: [f"{coverage(how, count, skewed=s, **size):.1%}" for how, s in rows.values()]
        for count in people
    }
    return pd.DataFrame(shares, index=pd.Index(rows, name="people"))


if __name__ == "__main__":
    found = table()
    print(found.to_string())
    found.to_csv(ROOT / "book" / "records" / "coverage.csv")
