"""The scale on which every table and figure of a study stands, and each method's place on it.

Identity recovery R is read against pictures of the person that no system was shown: 0 is another
person, 1 the reference itself, so that a copy of the reference gains no more than what the
reference says of the person. Between the two stand the anchors, which are pictures, but no systems:
the reference after the autoencoder, above which no system over that autoencoder is to be expected,
and the reference itself.

A face that is lost is an effect of a method. So R stands twice wherever it stands: with a picture
without a face counted as a stranger's, which is what a user gets, and among the faces that came
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from companion.evaluation.comparison import (
    IdentityScores,
    PairedDifference,
    estimate_recovery,
    mean_over_people,
    method_recovery,
    paired_difference,
)
from companion.evaluation.measure import Measurements
from companion.evaluation.statistics import Interval, bootstrap

REFERENCE, RESTORED = "the reference itself", "the reference, restored"
ANCHORS = (RESTORED, REFERENCE)
"""What studies call the methods of `companion.methods.anchors`, from the lower to the higher."""

WITHOUT = "text-only"
"""The method without a reference, with which others are compared where a study has it."""

SHOWN_VECTORS = ("faceid", "faceid-plus", "faceid-portrait", "instantid", "arc2face")
"""Systems that are shown a vector of the face; in the embedded profile it is dlib's."""

UNKNOWN = Interval(np.nan, np.nan, np.nan)


def without_anchors(images: pd.DataFrame) -> pd.DataFrame:
    """The pictures that a system made: those of `ANCHORS` are left out."""
    return images[~images["method"].isin(ANCHORS)]


def systems_of(images: pd.DataFrame) -> list[str]:
    """The methods in their order, without `ANCHORS`."""
    return list(map(str, without_anchors(images)["method"].unique()))


def anchors_of(images: pd.DataFrame) -> list[str]:
    """Those of `ANCHORS` of which there are pictures, from the lower to the higher."""
    return [name for name in ANCHORS if images["method"].eq(name).any()]


def baseline_of(images: pd.DataFrame, baseline: str | None = None) -> str:
    """The method that others are compared with.

    It is the one asked for, `WITHOUT`, or the first: whichever of these the study has.
    """
    methods = [*systems_of(images), *anchors_of(images)]
    return next(name for name in (baseline, WITHOUT, methods[0]) if name in methods)


@dataclass(frozen=True)
class Scale:
    """A scale from another person at 0 to what stands at 1, and the distances to be put on it.

    Attributes:
        scores: Distances, and the ends of the scale for each person. People without a scale are
            left out.
        unseen: Whether distances lead to pictures of the person that no system was shown.
        one: What stands at 1.
    """

    scores: IdentityScores
    unseen: bool
    one: Literal["the reference itself", "another picture of the same person"]

    @property
    def recogniser(self) -> str:
        """Name of the recogniser."""
        return self.scores.recogniser

    @property
    def target(self) -> str:
        """What distances lead to, in words."""
        unseen = "pictures of the person that no system was shown"
        return unseen if self.unseen else "the reference"

    @property
    def in_words(self) -> str:
        """The two ends, in words."""
        return f"R: 0 is another person, 1 {self.one}"


def main_scale(measured: Measurements, recogniser: str) -> Scale:
    """The scale of a study's tables and figures under one recogniser.

    It leads to pictures that no system was shown. Records that lack these distances, and people
    without other pictures, have that of `reference_scale`.
    """
    unseen = measured.unseen(recogniser)
    if unseen is None or unseen.scale.dropna().empty:
        return reference_scale(measured, recogniser)
    return Scale(_of_known(unseen), unseen=True, one="the reference itself")


def reference_scale(measured: Measurements, recogniser: str) -> Scale:
    """The scale of distances as they were measured, to the very reference by default."""
    scores = measured.identity(recogniser)
    unseen = measured.against == "others"
    return Scale(_of_known(scores), unseen=unseen, one="another picture of the same person")


def _of_known(scores: IdentityScores) -> IdentityScores:
    """Scores of the people who have a scale; of everyone, where nobody has one."""
    known = scores.scale.dropna().index
    if known.empty:
        return scores
    return replace(scores, images=scores.images[scores.images["person"].isin(known)])


@dataclass(frozen=True)
class Place:
    """A method's place on a scale.

    Attributes:
        distance: Mean distance over people, among the pictures with a face.
        complete: R among the pictures with a face.
        composite: R with every picture without a face counted as a stranger's.
    """

    distance: Interval
    complete: Interval
    composite: Interval


def place_of(scores: IdentityScores, method: str) -> Place:
    """A method's place on the scale of some distances; all NaN where it has no pictures there."""
    if not scores.images["method"].eq(method).any():
        return Place(UNKNOWN, UNKNOWN, UNKNOWN)
    found = estimate_recovery(scores, method)
    return Place(
        mean_over_people(scores.images, "distance", method),
        found.interval,
        found.composite or found.interval,
    )


def places(scale: Scale) -> pd.DataFrame:
    """Every method's place, between the ends of the scale.

    Returns:
        Indexed by what stands there: another person, the systems, the reference after the
        autoencoder, then the reference itself and another picture of the person, as far as they
        are measured or an end of the scale. Columns ``distance``, ``complete`` and ``composite``
        (`Interval`), and ``end``, whether the place is one by definition.
    """
    ends = scale.scores.scale.dropna()

    def end(column: str, value: float) -> dict[str, object]:
        fixed = Interval(value, value, value)
        distance = bootstrap(ends[column].to_numpy())
        return {"distance": distance, "complete": fixed, "composite": fixed, "end": True}

    images = scale.scores.images
    rows: dict[str, dict[str, object]] = {"another person": end("impostor", 0.0)}
    methods = [*systems_of(images), *anchors_of(images)]
    if scale.one not in methods:
        after = len(methods) if scale.unseen else len(systems_of(images))
        methods.insert(after, scale.one)
    for method in methods:
        if method == scale.one:
            rows[method] = end("genuine", 1.0)
        else:
            rows[method] = {**vars(place_of(scale.scores, method)), "end": False}
    return pd.DataFrame.from_dict(rows, orient="index")


def swapped_recovery(measured: Measurements, recogniser: str, method: str) -> Interval:
    """R of a method's pictures for somebody else of the same gender and age.

    It says how much of a method's R is owed to what the classifier sees in a face at a glance. Read
    on the scale of the people who have such a companion, who are companions of each other in turn,
    among the pictures with a face. NaN where it was not measured.
    """
    distances = measured.images.get(f"swapped {recogniser}")
    unseen = measured.unseen(recogniser)
    if distances is None or unseen is None or not unseen.images["method"].eq(method).any():
        return UNKNOWN
    images = unseen.images.assign(distance=distances)
    return method_recovery(replace(unseen, images=images), method)


def faces_found(measured: Measurements, method: str, by: str | None = None) -> Interval:
    """Share of a method's pictures in which a face is found, as a mean over people.

    Args:
        measured: Measurements of the study.
        method: The method.
        by: The only detector that counts; by default any.
    """
    return mean_over_people(_with_faces(measured.images, by), "face", method)


def faces_gained(
    measured: Measurements, method: str, baseline: str, by: str | None = None
) -> PairedDifference:
    """How many more of a method's pictures show a face than another's, cell by cell.

    Args:
        measured: Measurements of the study.
        method: The method.
        baseline: The method it is compared with.
        by: The only detector that counts; by default any.
    """
    return paired_difference(_with_faces(measured.images, by), method, baseline, "face")


def _with_faces(images: pd.DataFrame, by: str | None) -> pd.DataFrame:
    found = images["face"] if by is None else images["found_by"].eq(by)
    return images.assign(face=found.astype(float))


def first_detector(measured: Measurements) -> str | None:
    """The detector that looks first, where another one looks after it and it is known who found."""
    first, *others = measured.detector.split("+")
    return first if others and "found_by" in measured.images else None


def nearest_share(measured: Measurements, recogniser: str, method: str) -> Interval:
    """Share of pictures to which the own reference is the nearest of all people's (rank 1).

    A picture without a face misses. One in whose person's reference the recogniser finds no face is
    no case of it. NaN where it was not measured.
    """
    rank = measured.images.get(f"rank {recogniser}")
    if rank is None or not measured.images["method"].eq(method).any():
        return UNKNOWN
    told = rank.notna() | ~measured.images["face"].astype(bool)
    nearest = rank.eq(1).astype(float).where(told)
    return mean_over_people(measured.images.assign(nearest=nearest), "nearest", method)


def ranked_people(measured: Measurements, recogniser: str) -> int:
    """Number of people among whose references the own one is looked for."""
    scale = measured.scales[recogniser]
    known = 0 if measured.against == "others" else int(scale["impostor"].notna().sum())
    return known or len(scale)  # without other pictures nobody has a stranger's distance


def shown_in_words(recogniser: str, methods: Sequence[str]) -> str:
    """Which of some methods were shown what a recogniser sees, in words; empty where none were.

    Args:
        recogniser: Name of the recogniser.
        methods: Names of methods; what follows a space, such as a scale, is no part of them.
    """
    names = list(dict.fromkeys(str(name).partition(" ")[0] for name in methods))
    shown = [name for name in names if name in SHOWN_VECTORS]
    if not shown:
        return ""
    if recogniser == "Dlib":
        listed = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
        return f"whose vector of the face {listed} {'was' if len(shown) == 1 else 'were'} shown"
    if recogniser == "identity":
        return "of which no system was shown anything"
    return ""
