"""Differences of designs: the training seed as a random effect, beside people."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from benchmarks.designs import coverage, people_alone, simulated, table, with_trainings
from companion.evaluation.comparison import IdentityScores
from companion.evaluation.designs import (
    Training,
    at_each_length,
    crossed_difference,
    design_difference,
    one_training_note,
    read_training,
    training_means,
    trainings_behind,
    with_strangers,
)
from fusionlib.errors import FusionError


@pytest.mark.parametrize("trainings, residual", [(5, 1.0), (5, 5.0), (10, 1.0)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 1.0, 3.0])
def test_the_interval_holds_the_truth_in_95_of_100_studies(
    ratio: float, trainings: int, residual: float
) -> None:
    """2,000 simulated studies for each spread of the trainings and of what is left."""
    studies = simulated(ratio, 2000, trainings=trainings, residual=residual)
    assert 0.93 <= coverage(with_trainings, studies) <= 0.98


def test_people_alone_err_far_more_often_where_trainings_differ() -> None:
    alike, differing = simulated(0.0, 1000), simulated(1.0, 1000)
    assert coverage(people_alone, alike) > 0.93, "right where trainings do not differ"
    assert coverage(people_alone, differing) < 0.65
    found = table((0.0, 1.0), studies=200).map(lambda text: float(text.rstrip("%")))
    assert list(found.columns) == ["0", "1"] and len(found) == 3
    assert found["1"].iloc[0] > 90 > 65 > found["1"].iloc[1] > found["1"].iloc[2]


def by_loops(table: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of trainings, people and residual, number by number."""
    trainings, people = table.shape
    mean = sum(table[t, p] for t in range(trainings) for p in range(people)) / table.size
    rows = [sum(table[t, p] for p in range(people)) / people for t in range(trainings)]
    columns = [sum(table[t, p] for t in range(trainings)) / trainings for p in range(people)]
    of_rows = sum(people * (row - mean) ** 2 for row in rows) / (trainings - 1)
    of_columns = sum(trainings * (column - mean) ** 2 for column in columns) / (people - 1)
    left = 0.0
    for t in range(trainings):
        for p in range(people):
            left += (table[t, p] - rows[t] - columns[p] + mean) ** 2
    return of_rows, of_columns, left / ((trainings - 1) * (people - 1))


def test_components_and_interval_are_those_of_the_analysis_of_variance() -> None:
    (table,) = simulated(1.0, 1, trainings=5, people=8)
    of_trainings, of_people, left = by_loops(table)
    assert of_trainings > left and of_people > left, "no component is set to 0 here"
    found = crossed_difference(table)
    assert found.interval.estimate == pytest.approx(table.mean())
    assert found.between_trainings**2 == pytest.approx((of_trainings - left) / 8)
    assert found.between_people**2 == pytest.approx((of_people - left) / 5)
    assert found.residual**2 == pytest.approx(left)
    variance = found.between_trainings**2 / 5 + found.between_people**2 / 8 + left / 40
    squares = [(of_trainings / 40, 4), (of_people / 40, 7), (left / 40, 28)]
    freedom = variance**2 / sum(part**2 / free for part, free in squares)
    assert found.freedom == pytest.approx(freedom)
    half = scipy.stats.t.ppf(0.975, freedom) * variance**0.5
    assert found.interval.high - found.interval.estimate == pytest.approx(half)
    wider = crossed_difference(table, level=0.99)
    assert wider.interval.low < found.interval.low
    assert (found.trainings, found.people) == (5, 8)


def test_a_negative_component_counts_as_none() -> None:
    """Trainings that differ less than the residual allows: their means are all alike."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 30)) + 2 * rng.normal(size=(1, 30))
    table -= table.mean(axis=1, keepdims=True)
    found = crossed_difference(table)
    assert found.between_trainings == 0 and found.freedom == pytest.approx(29)
    means = table.mean(axis=0)  # then it is Student's interval over people
    alone = scipy.stats.t.interval(0.95, 29, means.mean(), scipy.stats.sem(means))
    assert (found.interval.low, found.interval.high) == pytest.approx(alone)


def test_four_degrees_of_freedom_where_five_trainings_decide() -> None:
    found = crossed_difference(simulated(30.0, 1)[0])
    assert found.freedom == pytest.approx(4, abs=0.1)
    none = crossed_difference(np.full((3, 5), 0.5))
    assert (none.interval.low, none.interval.high) == (0.5, 0.5) and np.isnan(none.freedom)
    few = crossed_difference(simulated(1.0, 1, people=4)[0]).interval
    assert np.isfinite(few.estimate) and np.isnan([few.low, few.high]).all()


@pytest.mark.parametrize(
    "numbers, words",
    [
        (np.zeros((2, 40)), "at least 3 trainings"),
        (np.zeros((5, 1)), "two people"),
        (np.zeros(5), "a row for each training"),
        (np.where(np.eye(5), np.nan, 0.0), "5 numbers.*with_strangers"),
        (np.where(np.eye(5), np.inf, 0.0), "5 numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(numbers: np.ndarray, words: str) -> None:
    with pytest.raises(FusionError, match=words):
        crossed_difference(numbers)


def test_names_tell_design_length_and_seed() -> None:
    training = Training("ip-adapter", 1200, 3)
    assert training.name == "ip-adapter, 1200 steps, seed 3"
    assert read_training(training.name) == training
    assert training.folder == "ip-adapter-1200-steps-seed-3"
    assert read_training("fused") is read_training("fused, seed 1") is None


def pictures(gains: Mapping[int, float], seeds: Any = (1, 2, 3, 4, 5)) -> pd.DataFrame:
    """Distances of two designs by steps: `gains` is how much nearer ``fused`` is."""
    rng = np.random.default_rng(0)
    rows = []
    for steps, gain in gains.items():
        for seed in seeds:
            luck = rng.normal(0, 0.1)  # of the samples, which both designs see
            for person in "abcdefgh":
                for prompt in ("a photo", "a drawing"):
                    for noise in (4, 5):
                        place = {"person": person, "prompt": prompt, "seed": noise}
                        other = 0.5 + luck + rng.normal(0, 0.02)
                        ours = other - gain + rng.normal(0, 0.005)
                        for design, distance in (("fused", ours), ("decoupled", other)):
                            name = Training(design, steps, seed).name
                            rows.append({"method": name, **place, "distance": distance})
    return pd.DataFrame(rows)


def test_trainings_are_paired_by_their_seed_and_averaged_over_prompts_and_noise() -> None:
    images = pictures({600: 0.03})
    means = training_means(images, "fused", 600)
    assert means.shape == (5, 8) and list(means.index) == [1, 2, 3, 4, 5]
    name = Training("fused", 600, 2).name
    of_one = images[(images["method"] == name) & (images["person"] == "c")]
    assert means.loc[2, "c"] == pytest.approx(of_one["distance"].mean())
    found = design_difference(images, "fused", "decoupled", 600)
    assert found.interval.estimate == pytest.approx(0.03, abs=0.005), "nearer is better"
    assert found.between_trainings < 0.01 < means.mean(axis=1).std(), "what both saw cancels"
    assert found.interval.low > 0
    back = design_difference(images, "decoupled", "fused", 600)
    assert back.interval.estimate == pytest.approx(-found.interval.estimate)
    shuffled = design_difference(images.sample(frac=1, random_state=1), "fused", "decoupled", 600)
    assert shuffled.interval.low == pytest.approx(found.interval.low)
    higher = images.rename(columns={"distance": "clip_score"})
    turned = design_difference(higher, "fused", "decoupled", 600, "clip_score")
    assert turned.interval.estimate == pytest.approx(-found.interval.estimate)
    unpaired = images[images["method"] != Training("decoupled", 600, 5).name]
    assert design_difference(unpaired, "fused", "decoupled", 600).trainings == 4


def test_missing_pictures_and_faces_are_refused_and_not_left_out() -> None:
    images = pictures({600: 0.03})
    lost = images.copy()
    lost.loc[[0, 7], "distance"] = np.nan
    with pytest.raises(FusionError, match="have no distance: give pictures without a face"):
        design_difference(lost, "fused", "decoupled", 600)
    with pytest.raises(FusionError, match="have no distance"):
        training_means(images.drop(index=0), "fused", 600)
    with pytest.raises(FusionError, match="no pictures by 'fused' after 900 steps"):
        training_means(images, "fused", 900)
    with pytest.raises(FusionError, match="at least 3 trainings"):
        design_difference(pictures({600: 0.03}, seeds=(1, 2)), "fused", "decoupled", 600)
    theirs = images["method"].str.startswith("decoupled") & (images["person"] == "a")
    with pytest.raises(FusionError, match="different people"):
        design_difference(images[~theirs], "fused", "decoupled", 600)


@pytest.mark.parametrize(
    "gains, agreement",
    [
        ({600: 0.03, 1200: 0.05}, "agree"),
        ({600: -0.03, 1200: -0.05}, "agree"),
        ({600: 0.03, 1200: -0.03}, "disagree"),
        ({600: 0.03, 1200: 0.0}, "undecided"),
        ({600: 0.03, 900: 0.0, 1200: -0.03}, "disagree"),
    ],
)
def test_two_lengths_agree_where_both_intervals_lie_on_one_side(
    gains: dict[int, float], agreement: str
) -> None:
    found = at_each_length(pictures(gains), "fused", "decoupled")
    assert found.agreement == agreement and list(found.differences) == sorted(gains)
    for steps, gain in gains.items():
        assert found.differences[steps].interval.estimate == pytest.approx(gain, abs=0.005)


def test_one_length_is_not_enough() -> None:
    with pytest.raises(FusionError, match="both trained for 1 lengths"):
        at_each_length(pictures({600: 0.03}), "fused", "decoupled")


def test_a_picture_without_a_face_counts_as_a_strangers() -> None:
    images = pd.DataFrame(
        {"method": "fused", "person": ["a", "a", "b", "c"], "prompt": "p", "seed": [0, 1, 0, 0]}
    ).assign(distance=[0.1, np.nan, np.nan, np.nan])
    scale = pd.DataFrame(
        {"genuine": [0.1, 0.2, np.nan], "impostor": [0.6, 0.8, np.nan]}, index=["a", "b", "c"]
    )
    scores = IdentityScores("Dlib", "dlib", "reference", images, scale)
    assert with_strangers(scores)["distance"].tolist() == pytest.approx([0.1, 0.6, 0.8, 0.7])
    assert images["distance"].isna().sum() == 3, "the table itself stays"


def test_the_note_counts_networks_and_not_names() -> None:
    base = {"base_model": "0"}
    weights = {
        "text-only": base,
        "fused": base | {"adapter": "1"},
        "ip-adapter": {"pipeline": "2"},
    }
    assert trainings_behind(weights) == {"fused": 1, "ip-adapter": 1}
    said = "said of these networks, not of the designs"
    assert one_training_note(weights) == f"one training each: {said}"
    assert one_training_note(weights, ["text-only"]) == ""
    several = {
        Training(design, 600, seed).name: {"adapter": f"{design} {seed}"}
        for design, seeds in (("fused", range(5)), ("decoupled", range(2)))
        for seed in seeds
    }
    assert trainings_behind(several) == {"fused, 600 steps": 5, "decoupled, 600 steps": 2}
    assert one_training_note(several) == f"too few trainings (2 of decoupled, 600 steps): {said}"
    five = [name for name in several if name.startswith("fused")]
    assert one_training_note(several, five) == ""
    copied = {name: {"adapter": "the same"} for name in five}
    assert one_training_note(copied) == f"one training each: {said}"
