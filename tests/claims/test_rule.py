"""Properties of the rule that gives verdicts, and how often it errs where the truth is known."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.verdicts import (
    FOUR,
    SIZES,
    SMALLEST,
    SPREADS,
    Setting,
    agreement,
    answers,
    by_bootstrap,
    by_student,
    settings,
    simulated,
    summary,
    table,
    treated,
)
from companion.claims.rule import (
    agreed,
    answer,
    holm,
    over_several,
    p_value,
    people_needed,
)
from companion.evaluation.statistics import Interval, bootstrap
from companion.evaluation.treatments import Filling, treat

numbers = st.floats(-1, 1)
widths = st.floats(0.001, 1)
smallest_ones = st.floats(0.001, 0.5)
TIE = "no difference that matters"


def turned(interval: Interval) -> Interval:
    return Interval(-interval.estimate, -interval.high, -interval.low)


@given(numbers, widths, smallest_ones)
def test_swapping_the_methods_turns_the_answer(middle: float, half: float, small: float) -> None:
    interval = Interval(middle, middle - half, middle + half)
    one, other = answer("more", interval, 0, small), answer("more", turned(interval), 0, small)
    if one == "supported" and interval.high > small:
        assert other == "not supported"
    assert (one == TIE) == (other == TIE), "a tie is one from either side"
    assert not (one == other == "supported")
    assert answer("as much", interval, 0, small) == answer("as much", turned(interval), 0, small)


@given(numbers, widths, smallest_ones, st.floats(-1, 1))
def test_answers_depend_on_the_distance_to_the_threshold_alone(
    middle: float, half: float, small: float, threshold: float
) -> None:
    def clear_of(ends: tuple[float, float], lines: tuple[float, ...]) -> bool:
        return all(abs(end - line) > 1e-9 for end in ends for line in lines)

    low, high = middle - half, middle + half
    if not clear_of((low, high), (0, small, -small)):
        return
    moved = Interval(middle + threshold, low + threshold, high + threshold)
    interval = Interval(middle, low, high)
    assert answer("more", moved, threshold, small) == answer("more", interval, 0, small)


@given(numbers, widths, smallest_ones, st.floats(0.01, 1))
def test_a_narrower_interval_never_contradicts_a_wider_one(
    middle: float, half: float, small: float, share: float
) -> None:
    """It may say more: where the wider one decided, "supported" may become a tie and no other."""
    wide = Interval(middle, middle - half, middle + half)
    narrow = Interval(middle, middle - half * share, middle + half * share)
    for asks in ("more", "no less", "as much"):
        before, after = answer(asks, wide, 0, small), answer(asks, narrow, 0, small)
        if before in ("supported", "not supported") and after != before:
            assert asks == "more" and after == TIE
        if before == TIE:
            assert after == TIE


def test_an_answer_counts_if_all_treatments_give_it() -> None:
    assert agreed({"a": "supported", "b": "supported"}) == ("supported", "")
    verdict, why = agreed({"a": "supported", "b": TIE})
    assert verdict == "undecided" and "supported by a; no difference that matters by b" in why
    nan = float("nan")
    assert answer("more", Interval(1, nan, nan), 0, 0.1) == "undecided"


@given(st.lists(st.sampled_from(FOUR), min_size=2, max_size=5), st.data())
def test_several_comparisons_hold_together_and_fail_alone(
    single: list[str], data: st.DataObject
) -> None:
    def widened(one: str) -> str:
        return data.draw(st.sampled_from([one, "undecided"]))

    wide = [widened(one) for one in single]
    for asks in ("more", "no less", "as much"):
        found = over_several(single, wide, asks)  # type: ignore[arg-type]
        order = list(range(len(single)))[::-1]
        again = over_several([single[i] for i in order], [wide[i] for i in order], asks)  # type: ignore[arg-type]
        assert found == again, "in any order"
        assert (found == "supported") == (set(single) == {"supported"})
        if found == "not supported":
            assert "not supported" in wide
        if found == TIE:
            assert asks == "more" and set(single) <= {"supported", TIE} and TIE in wide


def test_p_values_are_those_of_students_test() -> None:
    values = np.random.default_rng(0).normal(0.03, 0.1, 40)

    def one_sided(boundary: float, side: str) -> float:
        return float(scipy.stats.ttest_1samp(values, boundary, alternative=side).pvalue)

    two = scipy.stats.ttest_1samp(values, 0).pvalue
    assert p_value("more", "supported", values, 0, 0.05) == pytest.approx(two)
    moved = scipy.stats.ttest_1samp(values, 0.2).pvalue
    assert p_value("more", "not supported", values, 0.1, 0.1) == pytest.approx(moved)
    both = 2 * max(one_sided(-0.08, "greater"), one_sided(0.08, "less"))
    assert p_value("more", TIE, values, 0, 0.08) == pytest.approx(both)
    assert p_value("as much", "supported", values, 0, 0.08) == pytest.approx(both)
    low = 2 * one_sided(-0.05, "greater")
    assert p_value("no less", "supported", values, 0, 0.05) == pytest.approx(low)
    below = p_value("no less", "not supported", values - 0.2, 0, 0.05)
    assert below == pytest.approx(2 * one_sided(0.15, "less"))
    for shift in (0.3, -0.3):
        away = p_value("as much", "not supported", values + shift, 0, 0.05)
        assert away == pytest.approx(2 * min(one_sided(-shift + 0.05, "greater"),
                                             one_sided(-shift - 0.05, "less")))  # fmt: skip
    assert p_value("more", "undecided", values, 0, 0.05) == 1
    assert p_value("more", "supported", np.full(10, 0.1), 0, 0.05) == 2 / 2**10
    assert p_value("more", "supported", values[:4], 0, 0.05) == 1, "fewer than five"


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_holm_rejects_what_his_procedure_rejects(p_values: list[float]) -> None:
    """Step by step, as Holm (1979) has it: compare the k-th smallest with 0.05 / (m - k + 1)."""
    named = {str(place): p for place, p in enumerate(p_values)}
    rejected = []
    for k, name in enumerate(sorted(named, key=lambda name: named[name])):
        if named[name] >= 0.05 / (len(named) - k):
            break
        rejected.append(name)
    corrected = holm(named)
    # A value on the very line may be on either side of it by rounding.
    if all(abs(p - 0.05) > 1e-9 for p in corrected.values()):
        assert sorted(name for name, p in corrected.items() if p < 0.05) == sorted(rejected)
    assert all(corrected[name] >= p for name, p in named.items())


@pytest.mark.parametrize(
    "asks, effect, small",
    [("more", 0.03, 0.05), ("more", 0.0, 0.05), ("more", 0.04, 0.0), ("no less", -0.02, 0.05),
     ("no less", -0.08, 0.05), ("as much", 0.09, 0.05)],
)  # fmt: skip
def test_as_many_people_as_are_named_decide_in_80_of_100_studies(
    asks: str, effect: float, small: float
) -> None:
    spread, people = 0.15, 40
    half = scipy.stats.t.ppf(0.975, people - 1) * spread / np.sqrt(people)
    now = Interval(effect, effect - half, effect + half)
    needed = people_needed(asks, now, people, 0, small)  # type: ignore[arg-type]
    assert needed is not None

    def decided(count: int) -> float:
        values = np.random.default_rng(0).normal(effect, spread, (1000, count))
        means = values.mean(axis=1)
        halves = scipy.stats.t.ppf(0.975, count - 1) * scipy.stats.sem(values, axis=1)
        told = [
            answer(asks, Interval(m, m - h, m + h), 0, small)  # type: ignore[arg-type]
            for m, h in zip(means, halves, strict=True)
        ]
        return float(np.mean([one != "undecided" for one in told]))

    assert decided(needed) > 0.76, "about 80%, or more where two boundaries are near"
    if asks != "more" or small == 0:
        assert decided(needed) < 0.84, "and no more than it takes"
        assert decided(needed // 2) < 0.62


# --- simulated studies ------------------------------------------------------------------------


def settings_of(words: str) -> list[Setting]:
    return [one for one in settings() if words in one.truth]


def test_many_studies_at_once_are_judged_as_one_by_one() -> None:
    """All are filled by one call of `treat`; each alone gives the same intervals."""
    (setting,) = settings_of("no effect, its method loses 10% of faces, at random")
    size, spread = (6, 2, 2), SPREADS["dlib"]
    cells, fill, _ = simulated(setting, spread, size, 5)
    assert fill is not None
    together = treated(cells, fill, -1.0, 6, by_bootstrap)
    assert len(together) == 5
    for study, found in enumerate(together):
        people = range(6 * study, 6 * study + 6)
        alone = treat(
            cells.loc[list(people)],
            {"a": -1.0, "b": 1.0},
            Filling(*(one.loc[list(people)] for one in (fill.composite, fill.low, fill.high))),
            lambda values: bootstrap(values.to_numpy(), resamples=999),
        )
        for name, interval in alone.each.items():
            for end in ("estimate", "low", "high"):
                assert getattr(found[name], end) == pytest.approx(getattr(interval, end)), name


def test_simulated_studies_have_the_spreads_that_they_are_given() -> None:
    setting = Setting("", (), effect=0.1, lost=(0.1, 0.0), dependence=0.5)
    for spread in SPREADS.values():
        cells, fill, smallest = simulated(setting, spread, (100, 2, 2), 60)
        assert cells.isna().mean().tolist() == pytest.approx([0.1, 0], abs=0.001)
        gain = (cells["b"] - cells["a"]).groupby("person")
        assert cells["b"].std() ** 2 == pytest.approx(
            spread.level_between**2 + spread.level_within**2 + spread.between**2 / 4, rel=0.05
        )
        within = np.sqrt(gain.var().mean())
        assert within == pytest.approx(spread.within, rel=0.05)
        assert fill is not None and smallest.mean() == pytest.approx(SMALLEST, rel=0.02)
        lost = cells.loc[cells["a"].isna(), "b"].mean()
        assert lost > cells["b"].mean(), "what is lost was farther away"
        whole, *_ = simulated(Setting("", (), effect=0.1), spread, (100, 2, 2), 60)
        gains = (whole["b"] - whole["a"]).groupby("person")
        assert gains.mean().mean() == pytest.approx(0.1, abs=0.01)
        between = gains.mean().var() - gains.var().mean() / 4
        assert np.sqrt(between) == pytest.approx(spread.between, rel=0.1)


@pytest.mark.parametrize("size", list(SIZES))
def test_the_rule_rarely_errs_and_finds_what_matters(size: str) -> None:
    told = {}
    for words in (
        "no effect, every face found",
        "no effect, its method loses 10% of faces, at random",
        "no effect, the other loses 10% of faces, at random",
        "twice the smallest effect, both lose 1% of faces",
        "no less: a true loss of the smallest effect, distances",
        "no less: a true loss of the smallest effect, share of faces, 99%",
    ):
        (setting,) = settings_of(words)
        how = by_student if setting.kind == "distance" else by_bootstrap
        given = Counter(
            answers(setting, SPREADS["dlib"], SIZES[size], studies=400, intervals=how, seed=3)
        )
        told[words] = sum(given[name] for name in setting.wrong) / 400
        if setting.right:
            assert given[setting.right] / 400 > 0.78, words
    assert max(told.values()) <= 0.06, told  # 5%, give or take what 400 studies can tell


def test_students_intervals_answer_as_the_bootstrap_does() -> None:
    chosen = settings_of("no effect, its method loses 10% of faces, at") + settings_of("CLIP")
    found = agreement(chosen, studies=60, resamples=499)
    assert (found["alike"] > 0.9).all()


def test_the_tables_have_a_row_for_each_truth() -> None:
    chosen = [*settings_of("no effect, every"), *settings_of("twice the smallest effect, both l")]
    found = table(chosen, list(SIZES)[2:], studies=20)
    assert found[list(FOUR)].sum(axis=1).tolist() == pytest.approx([1] * len(found))
    assert len(found) == len(chosen) * 2 * 2
    short = summary(found)
    assert len(short) == len(chosen) + 3, "wrong answers of each, and what was found of three"
    assert set(short.columns) == {"simulated", "counted", *list(SIZES)[2:]}
    assert isinstance(short, pd.DataFrame)
