"""How often intervals for two *designs* hold the truth: ``book/records/design_coverage.csv``.

Each simulated study has trainings and people that differ, and a residual of every training and
person. It is judged once with the training as a random effect, and twice by people alone: by the
mean over its trainings, and by its first training, as where there is only one. The seed is fixed:
every machine finds the same numbers.

    python -m benchmarks.designs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from companion.evaluation.designs import crossed_difference
from companion.evaluation.statistics import Interval
from fusionlib.profiles import ROOT

Values = NDArray[np.float64]

TRAININGS, PEOPLE = 5, 40
TRUTH, SPREAD = 0.04, 0.05  # mean, and standard deviation over people: cosine distance
RESIDUAL = 1.0  # standard deviation of the residual, in those between people
RATIOS = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Standard deviations between trainings, in those between people."""


def simulated(
    ratio: float,
    studies: int,
    *,
    trainings: int = TRAININGS,
    people: int = PEOPLE,
    residual: float = RESIDUAL,
) -> Values:
    """Differences of true mean `TRUTH`, ``(studies, trainings, people)``."""
    rng = np.random.default_rng(0)
    of_training = ratio * rng.normal(size=(studies, trainings, 1))
    of_person = rng.normal(size=(studies, 1, people))
    left = residual * rng.normal(size=(studies, trainings, people))
    differences: Values = TRUTH + SPREAD * (of_training + of_person + left)
    return differences


def with_trainings(differences: Values) -> Interval:
    """The interval with the training as a random effect."""
    return crossed_difference(differences).interval


def people_alone(differences: Values) -> Interval:
    """Student's interval over people's means, as if the trainings were all that there are."""
    means = differences.mean(axis=0)
    half = scipy.stats.t.ppf(0.975, len(means) - 1) * scipy.stats.sem(means)
    return Interval(means.mean(), means.mean() - half, means.mean() + half)


def one_training(differences: Values) -> Interval:
    """The same of the first training, as if it were the design."""
    return people_alone(differences[:1])


def coverage(how: Callable[[Values], Interval], studies: Values) -> float:
    """The share of simulated studies whose interval holds the truth."""
    return float(np.mean([not how(study).excludes(TRUTH) for study in studies]))


def table(ratios: Sequence[float] = RATIOS, *, studies: int = 2000) -> pd.DataFrame:
    """Shares in percent: a row for each kind of interval, a column for each spread of trainings."""
    rows = {
        "five trainings, the training as a random effect": with_trainings,
        "five trainings, people alone": people_alone,
        "one training, people alone": one_training,
    }
    shares = {}
    for ratio in ratios:
        differences = simulated(ratio, studies)
        shares[f"{ratio:g}"] = [f"{coverage(how, differences):.1%}" for how in rows.values()]
    return pd.DataFrame(shares, index=pd.Index(rows, name="spread of trainings"))


if __name__ == "__main__":
    found = table()
    print(found.to_string())
    found.to_csv(ROOT / "book" / "records" / "design_coverage.csv")
