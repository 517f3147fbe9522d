"""What is made of pictures in which a number could not be measured, beside sums written out."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from companion.evaluation.statistics import Interval, bootstrap
from companion.evaluation.treatments import Filling, filling, treat

PEOPLE = [f"p{number}" for number in range(8)]


def mean(values: pd.Series) -> Interval:
    return bootstrap(values.to_numpy(), resamples=499)


def images(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"person": PEOPLE, "method": "a", "prompt": "p", "seed": 0} | columns)


def test_a_lost_face_is_a_strangers_or_anything_up_to_the_person() -> None:
    scale = pd.DataFrame({"genuine": 0.2, "impostor": 0.8}, index=PEOPLE)
    scale.loc["p1"] = [0.9, 0.7]  # a person who is nearer to strangers than to themself
    scale.loc["p2"] = np.nan  # nothing to measure the scale by
    fill = filling("distance", images(distance=[0.5] * 8), scale)
    assert (fill.low["p0"], fill.high["p0"], fill.composite["p0"]) == (0.2, 0.8, 0.8)
    assert (fill.low["p1"], fill.high["p1"], fill.composite["p1"]) == (0.7, 0.9, 0.7)
    assert fill.composite["p2"] == pytest.approx(scale["impostor"].mean()), "the average scale"


@pytest.mark.parametrize(
    "metric", ["face", "accepted", "followed", "shown", "likeness", "gender_kept", "style_correct"]
)
def test_in_a_share_a_lost_face_is_a_failure(metric: str) -> None:
    fill = filling(metric, images(**{metric: [1.0] * 8}))
    ends = (fill.composite, fill.low, fill.high)
    assert [set(end) for end in ends] == [{0.0}, {0.0}, {1.0}]


def test_other_numbers_are_as_bad_as_the_worst_tenth_and_as_good_as_the_best() -> None:
    values = list(np.linspace(0, 1, 8))
    for metric, worst in (("ssim", 0.1), ("skin_difference", 0.9), ("spread", 0.9)):
        fill = filling(metric, images(**{metric: values}))
        assert fill.composite.tolist() == pytest.approx([worst] * 8)
        assert (fill.low["p0"], fill.high["p0"]) == (pytest.approx(0.1), pytest.approx(0.9))


def test_treatments_are_the_sums_that_they_say() -> None:
    index = pd.MultiIndex.from_tuples([(name, "p", 0) for name in PEOPLE])
    index.names = ["person", "prompt", "seed"]
    a = np.array([1.0, 2, 3, 4, 5, 6, np.nan, np.nan])
    b = np.array([0.5, 1, 1, 1, 1, 1, 2, np.nan])
    cells = pd.DataFrame({"a": a, "b": b}, index=index)
    fill = Filling(*(pd.Series(value, index=PEOPLE) for value in (0.0, -1.0, 10.0)))
    found = treat(cells, {"a": 1.0, "b": -1.0}, fill, partial(mean))
    gains = a[:6] - b[:6]
    assert (found.pairs, found.cells) == (6, 8)
    assert found.complete.estimate == pytest.approx(gains.mean())
    assert found.composite.estimate == pytest.approx((gains.sum() + (0 - 2) + (0 - 0)) / 8)
    worst = np.append(gains, [-1 - 2, -1 - 10])
    best = np.append(gains, [10 - 2, 10 + 1])
    assert found.bounds.low == pytest.approx(min(mean(pd.Series(worst)).low, found.composite.low))
    assert found.bounds.high == pytest.approx(mean(pd.Series(best)).high)
    assert found.bounds.low <= found.composite.low <= found.composite.high <= found.bounds.high
    assert list(found.values) == pytest.approx([*gains, -2, 0])
    whole = treat(cells[:5], {"a": 1.0, "b": -1.0}, fill, partial(mean))
    assert whole.complete == whole.composite == whole.bounds, "nothing is missing"
