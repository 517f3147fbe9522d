"""How often the rule of verdicts errs, where the truth is known: ``book/records/verdicts.csv``.

Simulated studies of two methods have people who differ, pictures that differ, and a scale from the
person to a stranger; some pictures lose their face, by chance or because it is far from the person.
The spreads are those that dlib measured between methods of Table 1's study. What is judged is the
very rule of `companion.claims`.

    python -m benchmarks.verdicts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from companion.claims.rule import Answer, Asks, agreed, answer
from companion.evaluation.statistics import Interval, bootstrap
from companion.evaluation.treatments import filling, treat
from fusionlib.profiles import ROOT

WITHIN, BETWEEN = 0.0125, 0.005
"""Standard deviations of a picture's distance, and between people of the true difference."""

NEAR, WAY, SPREAD = 0.041, 0.073, 0.014
"""Mean distance of other pictures of the person, the way from there to a stranger, and the latter's
standard deviation between people."""

SMALLEST = 0.05 * WAY

LOST = 0.002
"""Share of Table 1's pictures in which neither detector found a face."""

SIZES = {
    "100 people, 2 prompts, 2 seeds": (100, 4),
    "138 people, 2 seeds": (138, 2),
    "40 people, 2 prompts": (40, 2),
}
"""Studies as they are: people, and pictures of each by each method."""


@dataclass(frozen=True)
class Truth:
    """What is true of the simulated methods.

    Attributes:
        effect: How much nearer the claim's method is, in smallest effects of interest.
        lost: Share of faces that the claim's method loses.
        other_lost: Share that the other one loses.
        worst: Whether it is the faces farthest from the person that are lost, and not any.
        asks: What the claim asks.
        right: The answers that are no error.
    """

    effect: float
    lost: float = LOST
    other_lost: float = LOST
    worst: bool = False
    asks: Asks = "more"
    right: tuple[Answer, ...] = ("not supported", "no difference that matters", "undecided")


TRUTHS: dict[str, Truth] = {
    "no effect, no face lost": Truth(0, 0, 0),
    "no effect, each loses 0.2%": Truth(0),
    "no effect, it loses 5% more": Truth(0, 0.05),
    "no effect, it loses 10% more": Truth(0, 0.1),
    "no effect, the other loses 10% more": Truth(0, other_lost=0.1),
    "no effect, it loses its worst 10%": Truth(0, 0.1, worst=True),
    "no effect, the other loses its worst 10%": Truth(0, other_lost=0.1, worst=True),
    "an effect of the smallest size": Truth(1, right=("supported", "undecided")),
    "an effect of twice the smallest": Truth(2, right=("supported", "undecided")),
    "the same, each loses 2%": Truth(2, 0.02, 0.02, right=("supported", "undecided")),
    "the same, each loses 5%": Truth(2, 0.05, 0.05, right=("supported", "undecided")),
    "no less is asked, and it is less by the smallest effect": Truth(
        -1, asks="no less", right=("not supported", "undecided")
    ),
}


def simulated(truth: Truth, people: int, pictures: int, rng: np.random.Generator) -> pd.DataFrame:
    """The pictures of one study: method, person, prompt, seed and distance."""
    names = [str(number) for number in range(people)]
    level = rng.normal(NEAR + 0.6 * WAY, 0.01, (people, 1))
    gain = rng.normal(truth.effect * SMALLEST, BETWEEN, (people, 1))
    tables = []
    for method, shift, share in (("it", -gain, truth.lost), ("other", 0.0, truth.other_lost)):
        noise = rng.normal(0, WITHIN, (people, pictures))
        distance = level + shift + noise
        order = noise if truth.worst else rng.random((people, pictures))
        distance[order > np.quantile(order, 1 - share)] = np.nan
        table = pd.DataFrame(distance, index=pd.Index(names, name="person"))
        table = table.melt(var_name="seed", value_name="distance", ignore_index=False)
        tables.append(table.reset_index().assign(method=method, prompt="p"))
    return pd.concat(tables, ignore_index=True)


def verdict(images: pd.DataFrame, asks: Asks, rng: np.random.Generator, resamples: int) -> Answer:
    """The rule's answer on one study."""
    names = images["person"].unique()
    genuine = rng.normal(NEAR, 0.005, len(names))
    ends = {"genuine": genuine, "impostor": genuine + rng.normal(WAY, SPREAD, len(names))}
    fill = filling("distance", images, pd.DataFrame(ends, index=names))
    cells = images.pivot(index=["person", "prompt", "seed"], columns="method", values="distance")
    found = treat(cells, {"it": -1.0, "other": 1.0}, fill, partial(_mean, resamples=resamples))
    return agreed({how: answer(asks, it, 0.0, SMALLEST) for how, it in found.each.items()})[0]


def _mean(values: pd.Series[float], resamples: int) -> Interval:
    return bootstrap(values.to_numpy(), resamples=resamples)


def shares(
    truth: Truth, people: int, pictures: int, *, studies: int, resamples: int
) -> dict[Answer, float]:
    """How often each answer is given."""
    rng = np.random.default_rng(people)
    answers = Counter(
        verdict(simulated(truth, people, pictures, rng), truth.asks, rng, resamples)
        for _ in range(studies)
    )
    return {said: count / studies for said, count in answers.items()}


Kind = Literal["supported", "not supported", "no difference that matters", "undecided"]
ANSWERS: tuple[Kind, ...] = (
    "supported",
    "not supported",
    "no difference that matters",
    "undecided",
)


def table(
    *,
    studies: int = 400,
    resamples: int = 999,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Shares in percent: a row for each truth and size, a column for each answer, and errors."""
    rows = []
    for called, truth in TRUTHS.items():
        for size, (people, pictures) in SIZES.items():
            found = shares(truth, people, pictures, studies=studies, resamples=resamples)
            wrong = sum(share for said, share in found.items() if said not in truth.right)
            told = {said: f"{found.get(said, 0.0):.1%}" for said in ANSWERS}
            rows.append({"true": called, "study": size, **told, "errors": f"{wrong:.1%}"})
            report(f"{called}; {size}: {told}, errors {wrong:.1%}")
    return pd.DataFrame(rows).set_index("true")


if __name__ == "__main__":
    made = table(report=print)
    made.to_csv(ROOT / "book" / "records" / "verdicts.csv")
