"""From measured pictures to statements about methods (Tables 1 and 2 of the paper).

For each person, numbers are averaged over that person's pictures first, so that every person
counts once and the intervals are over people. Methods are compared in pairs of pictures: the same
person, prompt and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.identity import identity_recovery
from companion.evaluation.statistics import (
    MIN_PEOPLE,
    Interval,
    Verdict,
    bootstrap,
    effect_size,
    verdict,
)
from companion.evaluation.treatments import (
    DECILES,
    LOWER_IS_BETTER,
    Filling,
    Treated,
    filling,
    treat,
)
from fusionlib.errors import FusionError

Target = Literal["reference", "others"]

ROUNDING = 1e-12
"""A difference below this is none: sums of equal numbers in another order differ by less."""


@dataclass(frozen=True)
class IdentityScores:
    """Distances of a study's pictures to the people they should show, under one recogniser.

    Attributes:
        recogniser: Name of the recogniser.
        detector: Name of the detector in DeepFace.
        against: What the distances lead to: the reference, or the person's other pictures.
        images: The study's index with a column ``distance``, NaN where no face was found in the
            picture (or in the reference).
        scale: One row for each person: ``genuine``, the mean distance of the reference to the
            same person's other pictures, and ``impostor``, to the other people's other pictures.
    """

    recogniser: str
    detector: str
    against: Target
    images: pd.DataFrame
    scale: pd.DataFrame

    def of(self, method: str) -> pd.Series[float]:
        """Mean distance of a method's pictures, for each person with at least one face."""
        return by_person(self.images, "distance", method)


@dataclass(frozen=True)
class PairedDifference:
    """How much better one method is than another, in the same cells.

    Attributes:
        metric: The column that is compared.
        interval: Mean improvement over people, with its interval, among the cells in which both
            were measured: positive where this one is better.
        effect: That mean in units of its spread between people, with its interval: see
            `companion.evaluation.statistics.effect_size`.
        ahead: Share of people where this one is better.
        by_seed: Mean improvement for each seed alone: what another seed would have shown.
        pairs: Pictures (person, prompt, seed) that were measured under both methods.
        cells: Pictures that either method made. One that the other did not make, as of a person
            that it left out, is a pair without a number.
        people: People with at least one such pair.
        verdict: Verdict on the claim that this one is better, if all three treatments of missing
            numbers give it (`companion.evaluation.treatments`); else "undecided".
        composite: The same improvement with pictures without a face counted as strangers'.
        bounds: What it can be at the worst and at the best, whatever those pictures might show.
        values: The composite's improvement of each person.
    """

    metric: str
    interval: Interval
    effect: Interval
    ahead: float
    by_seed: Mapping[int, float]
    pairs: int
    cells: int
    people: int
    verdict: Verdict
    composite: Interval | None = None
    bounds: Interval | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A number that stands for itself, where a claim is not about two methods.

    Attributes:
        interval: Mean over people, with its interval, over what could be measured.
        pairs: Pictures (or pairs of them) that were measured.
        cells: All pictures.
        people: People with at least one measured picture.
        composite: See `PairedDifference`.
        bounds: See `PairedDifference`.
        values: See `PairedDifference`.
    """

    interval: Interval
    pairs: int
    cells: int
    people: int
    composite: Interval | None = None
    bounds: Interval | None = None
    values: tuple[float, ...] = ()


def by_person(images: pd.DataFrame, metric: str, method: str) -> pd.Series[float]:
    """Mean of a metric over a method's pictures, for each person with at least one number.

    Raises:
        FusionError: There is no such method.
    """
    rows = images[images["method"] == method]
    if rows.empty:
        known = ", ".join(map(repr, images["method"].unique()))
        raise FusionError(f"The study has no method {method!r}: it has {known}.")
    return rows.groupby("person")[metric].mean().dropna()


def mean_over_people(images: pd.DataFrame, metric: str, method: str) -> Interval:
    """Mean of a metric over people, with its interval; infinite if a picture's number is."""
    values = by_person(images, metric, method).to_numpy()
    if np.isinf(values).any():  # PSNR of equal pictures
        return Interval(np.inf, np.inf, np.inf)
    return bootstrap(values)


def means_by_method(images: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Every metric of every method: the mean over people with its interval.

    Args:
        images: Measured pictures, with a column for each metric.
        metrics: Columns to average, by the heading for each.

    Returns:
        A row for each method, a column for each metric, of `Interval`.
    """
    methods = list(images["method"].unique())
    columns = {
        name: [mean_over_people(images, metric, method) for method in methods]
        for name, metric in metrics.items()
    }
    return pd.DataFrame(columns, index=methods)


def paired_difference(
    scores: IdentityScores | pd.DataFrame,
    method: str,
    other: str,
    metric: str = "distance",
    level: float = 0.95,
) -> PairedDifference:
    """Compare two methods of a study cell by cell.

    Cells without a number under either method (no face, or no picture) are counted, left out of
    `interval`, and treated as `companion.evaluation.treatments` says for the others. With fewer
    than five people the verdict is "undecided" whatever the interval. Prompts that ask for nothing
    that a classifier reads are no cells of it.

    Args:
        scores: Scores of `companion.evaluation.measure`, or their table of images.
        method: The method that might be better.
        other: The method it is compared with.
        metric: A column of the table.
        level: Level of the intervals.

    Raises:
        FusionError: The study lacks a method.
    """
    cells = _cells(scores, (method, other), metric)
    sign = -1.0 if metric.startswith(LOWER_IS_BETTER) else 1.0
    found = _treated(scores, cells, {method: sign, other: -sign}, metric, level)
    people = found.measured.to_numpy()
    answers = {verdict(interval) for interval in found.each.values()}
    gain = sign * (cells[method] - cells[other]).replace([np.inf, -np.inf], np.nan).dropna()
    return PairedDifference(
        metric=metric,
        interval=found.complete,
        effect=bootstrap(people, statistic=effect_size),
        ahead=float(np.mean(people > ROUNDING)) if len(people) else float("nan"),
        by_seed={
            int(str(seed)): float(values.groupby("person").mean().mean())
            for seed, values in gain.groupby("seed")
        },
        pairs=found.pairs,
        cells=found.cells,
        people=len(people),
        verdict=answers.pop() if len(answers) == 1 else "undecided",
        composite=found.composite,
        bounds=found.bounds,
        values=tuple(found.values),
    )


def _treated(
    scores: IdentityScores | pd.DataFrame,
    cells: pd.DataFrame,
    weights: Mapping[str, float],
    metric: str,
    level: float,
) -> Treated:
    """A weighted sum of methods' numbers under each treatment of missing ones."""
    return treat(cells, weights, _filling(scores, metric), partial(_mean, level=level))


def _mean(values: pd.Series[float], level: float) -> Interval:
    return bootstrap(values.to_numpy(), level=level)


def _filling(scores: IdentityScores | pd.DataFrame, metric: str) -> Filling:
    if isinstance(scores, IdentityScores):
        return filling(metric, scores.images, scores.scale)
    return filling(metric, scores)


def _cells(
    scores: IdentityScores | pd.DataFrame, methods: Sequence[str], metric: str
) -> pd.DataFrame:
    """A metric of several methods side by side: a row for each cell of which any made a picture.

    Raises:
        FusionError: The study lacks a method.
    """
    images = scores.images if isinstance(scores, IdentityScores) else scores
    for name in methods:
        by_person(images, metric, name)
    images = _asked(images[images["method"].isin(methods)], metric)
    cells = images.pivot(index=["person", "prompt", "seed"], columns="method", values=metric)
    return cells.reindex(columns=list(methods))


def _asked(images: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The pictures whose prompt asks for what a metric reads, an expression for example."""
    if metric not in ("followed", "shown") and not metric.endswith("_correct"):
        return images
    return images[images.groupby("prompt")[metric].transform("count") > 0]


def method_recovery(scores: IdentityScores, method: str) -> Interval:
    """Identity recovery R of a method, over the people with a face in one picture or more.

    Where distances lead to a person's other pictures, a person with only one has no scale. With too
    few people left for an interval there is no R: all of it is NaN.
    """
    return _recovery(scores.of(method), scores.scale, 0.95)


def _recovery(generated: pd.Series[float], scale: pd.DataFrame, level: float) -> Interval:
    """R of distances by person, on the scale of those people."""
    joined = scale[["genuine", "impostor"]].join(generated.rename("generated"), how="inner")
    joined = joined.dropna()
    if len(joined) < MIN_PEOPLE:
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap(
        joined["generated"].to_numpy(),
        joined["genuine"].to_numpy(),
        joined["impostor"].to_numpy(),
        statistic=identity_recovery,
        level=level,
    )


def estimate_of(
    values: Sequence[float] | NDArray[np.floating[Any]],
) -> Estimate:
    """The mean of one value for each person (or pair of people), with its interval.

    A value that could not be measured counts, in the composite, as the worst tenth of the others,
    and within the bounds as anything from there to the best tenth.

    Args:
        values: Values, NaN where one could not be measured.
    """
    numbers = pd.DataFrame({"": np.asarray(values, dtype=np.float64)})
    numbers.index = pd.Index(range(len(numbers)), name="person")
    low, high = numbers[""].quantile(DECILES)
    ends = [pd.Series(value, index=numbers.index) for value in (low, low, high)]
    return _estimate(treat(numbers, {"": 1.0}, Filling(*ends), partial(_mean, level=0.95)))


def estimate_mean(
    scores: IdentityScores | pd.DataFrame, metric: str, method: str, level: float = 0.95
) -> Estimate:
    """Mean of a metric over the people of a method's pictures, with what it was measured on.

    Args:
        scores: See `paired_difference`.
        metric: A column of the table.
        method: The method.
        level: Level of the intervals.

    Raises:
        FusionError: There is no such method.
    """
    cells = _cells(scores, (method,), metric)
    return _estimate(_treated(scores, cells, {method: 1.0}, metric, level))


def estimate_recovery(scores: IdentityScores, method: str, level: float = 0.95) -> Estimate:
    """Identity recovery R of a method, as `method_recovery` has it, with what it was measured on.

    Raises:
        FusionError: There is no such method.
    """
    cells = _cells(scores, (method,), "distance")
    recovery = partial(_recovery, scale=scores.scale, level=level)
    fill = _filling(scores, "distance")
    found = treat(cells, {method: 1.0}, fill, recovery)
    # A ratio of means has no value for each person; its linear part has (the delta method).
    ends = scores.scale.reindex(found.values.index)
    gap = ends["impostor"] - ends["genuine"]
    ratio = found.composite.estimate
    single = ratio + (ends["impostor"] - found.values - ratio * gap) / gap.mean()
    return replace(_estimate(found), values=tuple(single.dropna()))


def estimate_change(
    scores: IdentityScores | pd.DataFrame,
    change: tuple[str, str],
    baseline: tuple[str, str],
    metric: str = "distance",
    level: float = 0.95,
) -> Estimate:
    """How much more a number changes from one method to another than between two others.

    Args:
        scores: See `paired_difference`.
        change: Two methods; the number of the second is subtracted from that of the first.
        baseline: Two methods likewise, whose difference is subtracted.
        metric: A column of the table.
        level: Level of the intervals.

    Returns:
        The mean over people of (a - b) - (c - d), over those pictures (person, prompt, seed) for
        which there are all four numbers; the others are counted.

    Raises:
        FusionError: There is no such method.
    """
    cells = _cells(scores, (*change, *baseline), metric)
    weights = dict(zip((*change, *baseline), (1.0, -1.0, -1.0, 1.0), strict=True))
    return _estimate(_treated(scores, cells, weights, metric, level))


def _estimate(found: Treated) -> Estimate:
    return Estimate(
        interval=found.complete,
        pairs=found.pairs,
        cells=found.cells,
        people=len(found.measured),
        composite=found.composite,
        bounds=found.bounds,
        values=tuple(found.values),
    )


def with_prompt_followed(images: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``followed``: 1 where a picture shows a face and all that its prompt asks for.

    Args:
        images: Measured pictures, with a column ``HEAD_correct`` for each head of a classifier; of
            a thing that a prompt does not ask for, NaN. A picture of which nothing is asked is NaN.

    Raises:
        FusionError: No classifier read the pictures.
    """
    read = images.columns[images.columns.str.endswith("_correct")]
    if read.empty:
        raise FusionError(
            "No classifier told what the pictures show: pass `classifiers` to `measure`."
        )
    return images.assign(followed=with_a_face(images, images[read].min(axis=1)))


def with_a_face(images: pd.DataFrame, shown: pd.Series[float]) -> pd.Series[float]:
    """What pictures show, 1 or 0, where it counts only beside a face; NaN stays NaN."""
    faces = images["face"].astype(float) if "face" in images else 1.0
    return shown * faces


def with_person_shown(scores: IdentityScores, strangers: pd.Series[float]) -> pd.DataFrame:
    """Add the column ``shown``: ``followed``, and the face is nearer to the person than to others.

    Args:
        scores: Distances to the person.
        strangers: Mean distance of each picture to other people's references.
    """
    images = with_prompt_followed(scores.images)
    nearer = (images["distance"] < strangers).astype(float)  # False without a face
    return images.assign(shown=images["followed"] * nearer)


def with_spread(images: pd.DataFrame) -> pd.DataFrame:
    """How much a person's pictures differ in likeness: a row for each person and method.

    Args:
        images: Measured pictures with a column ``distance``.

    Returns:
        Columns method, person, prompt, seed (of no meaning) and ``spread``, the standard deviation
        of the distances; NaN with fewer than two faces.
    """
    spread = images.groupby(["method", "person"], sort=False)["distance"].std().rename("spread")
    return spread.reset_index().assign(prompt="all", seed=0)


def with_likeness_kept(images: pd.DataFrame, traits: Sequence[str] | None = None) -> pd.DataFrame:
    """Add the column ``likeness``: the share of a person's traits that a picture keeps.

    Args:
        images: Pictures measured with ``traits``: a column ``HEAD_kept`` for each.
        traits: Traits that count; all by default.

    Raises:
        FusionError: None of them, or not all that are named, were compared.
    """
    compared = images.columns[images.columns.str.endswith("_kept")]
    kept = compared if traits is None else [f"{trait}_kept" for trait in traits]
    if not len(kept) or not set(kept) <= set(compared):
        raise FusionError(
            f"{'No trait was' if traits is None else 'Not all of these traits were'} compared: "
            "pass `classifiers` and `traits` to `measure`."
        )
    return images.assign(likeness=images[list(kept)].mean(axis=1))


def has_threshold(recogniser: str) -> bool:
    """Whether DeepFace has a distance below which this recogniser takes two faces for one."""
    from deepface.config.threshold import thresholds

    return recogniser in thresholds


def with_accepted(scores: IdentityScores) -> pd.DataFrame:
    """Add the column ``accepted``: 1 where the recogniser takes a picture for the person's.

    The threshold is DeepFace's for this recogniser; where no face was found it is NaN.

    Raises:
        FusionError: DeepFace has no threshold for this recogniser.
    """
    from deepface.config.threshold import thresholds

    if not has_threshold(scores.recogniser):
        raise FusionError(
            f"DeepFace has no threshold for {scores.recogniser!r}: use one of its own recognisers."
        )
    distance = scores.images["distance"]
    accepted = (distance <= thresholds[scores.recogniser]["cosine"]).astype(float)
    return scores.images.assign(accepted=accepted.where(distance.notna()))
