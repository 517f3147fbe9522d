"""Designs and not networks: trainings from several seeds, with the seed as a random effect.

One training is one draw: another seed would have given another network of the same design. So a
statement about two *designs* needs several trainings of each, and an interval that counts how much
trainings differ beside how much people do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from companion.evaluation.comparison import IdentityScores
from companion.evaluation.statistics import MIN_PEOPLE, Interval
from companion.evaluation.treatments import LOWER_IS_BETTER, filling
from fusionlib.errors import FusionError

MIN_TRAININGS = 3
"""Least number of trainings of each design: how much two differ says next to nothing of how much
trainings spread."""

_NAME = re.compile(r"(?P<design>.+), (?P<steps>\d+) steps, seed (?P<seed>\d+)")


@dataclass(frozen=True)
class Training:
    """One training of a design.

    Attributes:
        design: Name of the method, ``fused`` for example.
        steps: Optimiser steps.
        seed: Seed of the training.
    """

    design: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Its name among the methods of a study: ``fused, 600 steps, seed 1``."""
        return f"{self.design}, {self.steps} steps, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Name of the folder of its weights: ``fused-600-steps-seed-1``."""
        return f"{self.design}-{self.steps}-steps-seed-{self.seed}"


def read_training(name: str) -> Training | None:
    """The training that a study's method is named after; None for any other name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return Training(found["design"], int(found["steps"]), int(found["seed"]))


@dataclass(frozen=True)
class DesignDifference:
    """How much better one design is than another, for another training and other people, too.

    Attributes:
        interval: Mean improvement, with its interval: positive where the design is better.
        freedom: Degrees of freedom of Student's t; NaN where nothing varies.
        between_trainings: Standard deviation of the improvement between trainings, beyond what
            people and the residual give their means.
        between_people: The same between people.
        residual: Standard deviation of what is left of a training and a person.
        trainings: Trainings of each design.
        people: People.
    """

    interval: Interval
    freedom: float
    between_trainings: float
    between_people: float
    residual: float
    trainings: int
    people: int


@dataclass(frozen=True)
class LengthComparison:
    """The difference of two designs after trainings of several lengths.

    Attributes:
        differences: By the number of steps, in ascending order.
        agreement: ``agree`` if all intervals lie on the same side of 0, ``disagree`` if two of them
            lie on opposite sides, else ``undecided``.
    """

    differences: Mapping[int, DesignDifference]
    agreement: Literal["agree", "disagree", "undecided"]


def crossed_difference(
    differences: NDArray[np.floating[Any]], level: float = 0.95
) -> DesignDifference:
    """The mean of differences over trainings and people that are both drawn at random.

    The model is ``difference = mu + a_training + b_person + e``. The components of variance are
    those of the two-way analysis of variance without replication (method of moments); a negative
    one counts as 0. The variance of the grand mean is the sum of ``a``'s over the trainings, of
    ``b``'s over the people and of ``e``'s over both; its degrees of freedom are Satterthwaite's
    (1946), and the interval is Student's t. With five trainings that differ much, it has about four
    degrees of freedom, however many people there are.

    Args:
        differences: A number for each training and person, ``(trainings, people)``, already
            averaged over prompts and seeds of the noise.
        level: Level of the interval.

    Returns:
        The difference. With fewer than `companion.evaluation.statistics.MIN_PEOPLE` people the
        interval's ends are NaN.

    Raises:
        FusionError: The numbers are no table, there are fewer than three trainings or two people,
            or a number is missing.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2:
        raise FusionError(
            "The difference of two designs needs a table with a row for each training and a column "
            f"for each person: got the shape {table.shape}."
        )
    trainings, people = table.shape
    if trainings < MIN_TRAININGS or people < 2:
        raise FusionError(
            f"The difference of two designs needs at least {MIN_TRAININGS} trainings of each, and "
            f"two people: got {trainings} and {people}. Train from more seeds "
            "(`fusionlib train designs`)."
        )
    if not np.isfinite(table).all():
        raise FusionError(
            f"{int((~np.isfinite(table)).sum())} numbers of a training and a person are missing: "
            "give pictures without a face a number first (`with_strangers`), and leave out prompts "
            "that ask for nothing."
        )
    mean = float(table.mean())
    by_training, by_person = table.mean(axis=1), table.mean(axis=0)
    left = table - by_training[:, None] - by_person[None, :] + mean
    free = np.array([trainings - 1, people - 1, (trainings - 1) * (people - 1)])
    sums = [
        people * ((by_training - mean) ** 2).sum(),
        trainings * ((by_person - mean) ** 2).sum(),
        (left**2).sum(),
    ]
    squares = np.array(sums) / free
    of_trainings = max(0.0, (squares[0] - squares[2]) / people)
    of_people = max(0.0, (squares[1] - squares[2]) / trainings)
    # The variance of the grand mean as a sum of mean squares, without those of components set to 0.
    kept = np.array([of_trainings > 0, of_people > 0], dtype=float)
    parts = np.array([kept[0], kept[1], 1 - kept.sum()]) * squares / table.size
    variance = float(parts.sum())
    freedom = float(variance**2 / (parts**2 / free).sum()) if variance > 0 else float("nan")
    half = 0.0
    if variance > 0:
        half = float(scipy.stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    if people < MIN_PEOPLE:
        half = float("nan")
    return DesignDifference(
        interval=Interval(mean, mean - half, mean + half),
        freedom=freedom,
        between_trainings=float(np.sqrt(of_trainings)),
        between_people=float(np.sqrt(of_people)),
        residual=float(np.sqrt(squares[2])),
        trainings=trainings,
        people=people,
    )


def training_means(
    images: pd.DataFrame, design: str, steps: int, metric: str = "distance"
) -> pd.DataFrame:
    """A metric of each training of a design, averaged over prompts and seeds of the noise.

    Args:
        images: Measured pictures, of methods that are named as by `Training.name`.
        design: Name of the design.
        steps: Length of its trainings.
        metric: A column without missing numbers.

    Returns:
        Indexed by the seed of the training, a column for each person.

    Raises:
        FusionError: There is no such training, or a picture or its number is missing.
    """
    chosen = {
        name: each.seed
        for name in images["method"].unique()
        if (each := read_training(name)) and (each.design, each.steps) == (design, steps)
    }
    if not chosen:
        raise FusionError(
            f"There are no pictures by {design!r} after {steps} steps: `fusionlib train designs` "
            "trains it, and the study data/studies/trainings.yaml paints them."
        )
    rows = images[images["method"].isin(chosen)]
    training = rows["method"].map(chosen).rename("training")
    cells = rows.assign(training=training).pivot(
        index=["person", "prompt", "seed"], columns="training", values=metric
    )
    missing = int((~np.isfinite(cells.to_numpy(dtype=np.float64))).sum())
    if missing:
        raise FusionError(
            f"{missing} of {cells.size} pictures by {design!r} after {steps} steps have no "
            f"{metric}: give pictures without a face a number first (`with_strangers`), and leave "
            "out prompts that ask for nothing."
        )
    return cells.groupby("person").mean().T


def design_difference(
    images: pd.DataFrame,
    design: str,
    other: str,
    steps: int,
    metric: str = "distance",
    level: float = 0.95,
) -> DesignDifference:
    """Compare two designs by their trainings of one length, see `crossed_difference`.

    Trainings of two designs from one seed saw the same samples under the same noise, and are paired
    as the pictures of one person are. Seeds from which only one of them was trained are left out.

    Args:
        images: Measured pictures, see `training_means`.
        design: The design that might be better.
        other: The design that it is compared with.
        steps: Length of their trainings.
        metric: A column of the pictures; of distances, less is better.
        level: Level of the interval.

    Raises:
        FusionError: See `training_means` and `crossed_difference`; or the designs were shown
            different people.
    """
    ours, theirs = (training_means(images, name, steps, metric) for name in (design, other))
    if set(ours.columns) != set(theirs.columns):
        raise FusionError(
            f"{design!r} and {other!r} have pictures of different people: run the study again, "
            "which makes those that are missing."
        )
    sign = -1.0 if metric.startswith(LOWER_IS_BETTER) else 1.0
    shared = ours.index.intersection(theirs.index)
    gains = sign * (ours.loc[shared] - theirs.loc[shared, ours.columns])
    return crossed_difference(gains.to_numpy(), level)


def at_each_length(
    images: pd.DataFrame, design: str, other: str, metric: str = "distance", level: float = 0.95
) -> LengthComparison:
    """Compare two designs after trainings of each length, and see whether the lengths agree.

    A difference that holds after short trainings only, or turns with their length, says nothing of
    designs that are trained to the end.

    Args:
        images: Measured pictures, see `training_means`.
        design: The design that might be better.
        other: The design that it is compared with.
        metric: A column of the pictures; of distances, less is better.
        level: Level of the intervals.

    Raises:
        FusionError: Both were trained for fewer than two lengths; or see `design_difference`.
    """
    trained = [each for name in images["method"].unique() if (each := read_training(name))]
    of_each = ({each.steps for each in trained if each.design == name} for name in (design, other))
    lengths = sorted(set.intersection(*of_each))
    if len(lengths) < 2:
        raise FusionError(
            f"{design!r} and {other!r} were both trained for {len(lengths)} lengths, and a "
            "comparison needs two: `fusionlib train designs` trains them."
        )
    found = {
        steps: design_difference(images, design, other, steps, metric, level) for steps in lengths
    }
    sides = [
        int(np.sign(each.interval.estimate)) if each.interval.excludes(0) else 0
        for each in found.values()
    ]
    if {-1, 1} <= set(sides):
        return LengthComparison(found, "disagree")
    return LengthComparison(found, "undecided" if 0 in sides else "agree")


def with_strangers(scores: IdentityScores) -> pd.DataFrame:
    """The table of pictures, in which a picture without a face has a stranger's distance.

    That is what `companion.evaluation.treatments` calls the composite.
    """
    fill = filling("distance", scores.images, scores.scale).composite
    distance = scores.images["distance"]
    return scores.images.assign(distance=distance.fillna(scores.images["person"].map(fill)))


def trainings_behind(weights: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """How many trainings stand behind each design of a study.

    Args:
        weights: Hashes of the weights of each method by its name, as
            `companion.studies.records.Record.weights` has them. Methods that `Training.name` names
            are trainings of one design and length; any other method is a design by itself.

    Returns:
        The number of different weights by design. The base model alone is no design.
    """
    found: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for name, hashes in weights.items():
        own = tuple(sorted((part, sha) for part, sha in hashes.items() if part != "base_model"))
        if own:
            training = read_training(name)
            design = f"{training.design}, {training.steps} steps" if training else name
            found.setdefault(design, set()).add(own)
    return {design: len(networks) for design, networks in found.items()}


def one_training_note(weights: Mapping[str, Mapping[str, str]], only: Iterable[str] = ()) -> str:
    """A sentence on what a comparison is said of, where there are too few trainings of a design.

    Args:
        weights: Hashes of the weights of each method, see `trainings_behind`.
        only: Names of the methods that are compared; by default all.

    Returns:
        The sentence, without a full stop; "" where each design has at least three trainings, or
        none is trained.
    """
    names = set(only) or set(weights)
    counts = trainings_behind({name: weights[name] for name in weights if name in names})
    few = {design: count for design, count in counts.items() if count < MIN_TRAININGS}
    if not few:
        return ""
    said = "said of these networks, not of the designs"
    if set(counts.values()) == {1}:
        return f"one training each: {said}"
    listed = ", ".join(f"{count} of {design}" for design, count in few.items())
    return f"too few trainings ({listed}): {said}"
