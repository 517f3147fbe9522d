"""From measured pictures to statements about methods (Tables 1 and 2 of the paper).

For each person, numbers are averaged over that person's pictures first, so that every person
counts once and the intervals are over people. Methods are compared in pairs of pictures: the same
person, prompt and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from fusionlib.errors import FusionError

MIN_PAIRED = 0.9
"""Share of the pictures that must show a face under both methods for a verdict to be given:
with fewer, those left out could turn it."""

Target = Literal["reference", "others"]

LOWER_IS_BETTER = ("distance",)
"""Beginnings of the names of columns in which a lower number is better."""


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
        interval: Mean improvement over people, with its interval: positive where this one is
            better.
        effect: That mean in units of its spread between people, with its interval: see
            `companion.evaluation.statistics.effect_size`.
        ahead: Share of people where this one is better.
        by_seed: Mean improvement for each seed alone: what another seed would have shown.
        pairs: Pictures (person, prompt, seed) that were measured under both methods.
        cells: Pictures that either method made. One that the other did not make, as of a person
            that it left out, is a pair without a number.
        people: People with at least one such pair.
        verdict: Verdict on the claim that this one is better.
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


@dataclass(frozen=True)
class Estimate:
    """A number that stands for itself, where a claim is not about two methods.

    Attributes:
        interval: Mean over people, with its interval.
        pairs: Pictures (or pairs of them) that were measured.
        cells: All pictures.
        people: People with at least one measured picture.
    """

    interval: Interval
    pairs: int
    cells: int
    people: int


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
    scores: IdentityScores | pd.DataFrame, method: str, other: str, metric: str = "distance"
) -> PairedDifference:
    """Compare two methods of a study cell by cell.

    Cells without a number under either method (no face, or no picture) are left out and counted; if
    more than a tenth are, or there are fewer than five people, the verdict is "undecided" whatever
    the interval. Prompts that ask for nothing that a classifier reads are no cells of it.

    Args:
        scores: Scores of `companion.evaluation.measure`, or their table of images.
        method: The method that might be better.
        other: The method it is compared with.
        metric: A column of the table.

    Raises:
        FusionError: The study lacks a method.
    """
    cells = _cells(scores, (method, other), metric)
    sign = -1 if metric.startswith(LOWER_IS_BETTER) else 1
    gain = (sign * (cells[method] - cells[other])).replace([np.inf, -np.inf], np.nan).dropna()
    people = gain.groupby("person").mean().to_numpy()
    interval = bootstrap(people)
    enough = len(gain) >= MIN_PAIRED * len(cells)
    return PairedDifference(
        metric=metric,
        interval=interval,
        effect=bootstrap(people, statistic=effect_size),
        ahead=float(np.mean(people > 0)) if len(people) else float("nan"),
        by_seed={
            int(str(seed)): float(values.groupby("person").mean().mean())
            for seed, values in gain.groupby("seed")
        },
        pairs=len(gain),
        cells=len(cells),
        people=len(people),
        verdict=verdict(interval) if enough else "undecided",
    )


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
    if metric != "followed" and not metric.endswith("_correct"):
        return images
    return images[images.groupby("prompt")[metric].transform("count") > 0]


def method_recovery(scores: IdentityScores, method: str) -> Interval:
    """Identity recovery R of a method, over the people with a face in one picture or more.

    Where distances lead to a person's other pictures, a person with only one has no scale. With too
    few people left for an interval there is no R: all of it is NaN.
    """
    generated = scores.of(method).rename("generated")
    joined = scores.scale.join(generated, how="inner").dropna()
    if len(joined) < min(len(generated), MIN_PEOPLE):
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap(
        joined["generated"].to_numpy(),
        joined["genuine"].to_numpy(),
        joined["impostor"].to_numpy(),
        statistic=identity_recovery,
    )


def estimate_of(
    values: Sequence[float] | NDArray[np.floating[Any]], cells: int | None = None
) -> Estimate:
    """The mean of one value for each person (or pair of people), with its interval.

    Args:
        values: Values that could be measured.
        cells: Number of values that there should be, if some are missing.
    """
    numbers = np.asarray(values, dtype=np.float64)
    count = len(numbers) if cells is None else cells
    return Estimate(bootstrap(numbers), len(numbers), count, len(numbers))


def estimate_mean(images: pd.DataFrame, metric: str, method: str) -> Estimate:
    """Mean of a metric over the people of a method's pictures, with what it was measured on.

    Raises:
        FusionError: There is no such method.
    """
    values = by_person(images, metric, method)
    shown = _asked(images[images["method"] == method], metric)[metric]
    return Estimate(bootstrap(values.to_numpy()), int(shown.count()), len(shown), len(values))


def estimate_recovery(scores: IdentityScores, method: str) -> Estimate:
    """Identity recovery R of a method, as `method_recovery` has it, with what it was measured on.

    Raises:
        FusionError: There is no such method.
    """
    counted = estimate_mean(scores.images, "distance", method)
    return replace(counted, interval=method_recovery(scores, method))


def estimate_change(
    scores: IdentityScores | pd.DataFrame,
    change: tuple[str, str],
    baseline: tuple[str, str],
    metric: str = "distance",
) -> Estimate:
    """How much more a number changes from one method to another than between two others.

    Args:
        scores: See `paired_difference`.
        change: Two methods; the number of the second is subtracted from that of the first.
        baseline: Two methods likewise, whose difference is subtracted.
        metric: A column of the table.

    Returns:
        The mean over people of (a - b) - (c - d), over those pictures (person, prompt, seed) for
        which there are all four numbers; the others are counted.

    Raises:
        FusionError: There is no such method.
    """
    cells = _cells(scores, (*change, *baseline), metric)
    a, b, c, d = (cells[name] for name in (*change, *baseline))
    changed = ((a - b) - (c - d)).dropna()
    people = changed.groupby("person").mean().to_numpy()
    return Estimate(bootstrap(people), len(changed), len(cells), len(people))


def best_of(images: pd.DataFrame, metric: str, methods: Sequence[str]) -> str:
    """The method with the best mean over people; no name if the study lacks one of them.

    Args:
        images: Measured pictures.
        metric: A column of them; only cells count for which all methods have a number.
        methods: Methods to choose from.
    """
    if not set(methods) <= set(images["method"]):
        return ""
    means = _cells(images, methods, metric).dropna().groupby("person").mean().mean()
    sign = -1 if metric.startswith(LOWER_IS_BETTER) else 1
    return "" if means.empty or means.isna().all() else str((sign * means).idxmax())


def with_prompt_followed(images: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``followed``: 1 where a picture shows everything that its prompt asks for.

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
    return images.assign(followed=images[read].min(axis=1))


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


def with_accepted(scores: IdentityScores) -> pd.DataFrame:
    """Add the column ``accepted``: 1 where the recogniser takes a picture for the person's.

    The threshold is DeepFace's for this recogniser; where no face was found it is NaN.

    Raises:
        FusionError: DeepFace has no threshold for this recogniser.
    """
    from deepface.config.threshold import thresholds

    if scores.recogniser not in thresholds:
        raise FusionError(
            f"DeepFace has no threshold for {scores.recogniser!r}: use one of its own recognisers."
        )
    distance = scores.images["distance"]
    accepted = (distance <= thresholds[scores.recogniser]["cosine"]).astype(float)
    return scores.images.assign(accepted=accepted.where(distance.notna()))


def identity_table(scores: IdentityScores) -> pd.DataFrame:
    """The table of a study: one row for each method, between the two ends of the scale.

    Returns:
        Indexed by what was measured; columns ``distance`` and ``recovery`` (`Interval`), ``found``
        and ``images`` (counts; ``None`` on the rows of the scale).
    """
    rows: dict[str, dict[str, object]] = {}

    def end_of_scale(column: Literal["genuine", "impostor"], value: float) -> dict[str, object]:
        return {
            "distance": bootstrap(scores.scale[column].dropna().to_numpy()),
            "recovery": Interval(value, value, value),
            "found": None,
            "images": None,
        }

    rows["another person"] = end_of_scale("impostor", 0.0)
    for method in scores.images["method"].unique():
        pictures = scores.images[scores.images["method"] == method]
        rows[method] = {
            "distance": bootstrap(scores.of(method).to_numpy()),
            "recovery": method_recovery(scores, method),
            "found": int(pictures["distance"].notna().sum()),
            "images": len(pictures),
        }
    rows["another picture of the same person"] = end_of_scale("genuine", 1.0)
    return pd.DataFrame.from_dict(rows, orient="index")
