"""The identity table of a study (Table 1 of the paper), with the scale it is to be read on.

For each person, distances are averaged over that person's pictures first, so that every person
counts once and the intervals are over people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fusionlib.errors import FusionError
from fusionlib.evaluation.identity import cosine_distance, embed_faces, identity_recovery
from fusionlib.evaluation.statistics import Interval, Verdict, bootstrap, verdict
from fusionlib.images import load_image
from fusionlib.study import Person

MIN_PAIRED = 0.9
"""Share of the pictures that must show a face under both methods for a verdict to be given:
with fewer, those left out could turn it."""


Target = Literal["reference", "others"]


@dataclass(frozen=True)
class IdentityScores:
    """Distances of a study's pictures to the people they should show, under one recogniser.

    Attributes:
        recogniser: of DeepFace.
        detector: of DeepFace.
        against: what the distances lead to: the reference, or the person's other pictures.
        images: the study's index with a column ``distance``, NaN where no face was found in the
            picture (or in the reference).
        scale: one row for each person: ``genuine``, the mean distance of the reference to the
            same person's other pictures, and ``impostor``, to the other people's other pictures.
    """

    recogniser: str
    detector: str
    against: Target
    images: pd.DataFrame
    scale: pd.DataFrame

    def of(self, method: str) -> pd.Series[float]:
        """Mean distance of a method's pictures, for each person with at least one face."""
        rows = self.images[self.images["method"] == method]
        if rows.empty:
            known = ", ".join(map(repr, self.images["method"].unique()))
            raise FusionError(f"The study has no method {method!r}: it has {known}.")
        return rows.groupby("person")["distance"].mean().dropna()


@dataclass(frozen=True)
class PairedDifference:
    """How much nearer to the reference one method is than another, in the same cells.

    Attributes:
        interval: of the mean over people of (distance of the other - distance of this one):
            positive where this one is nearer.
        pairs: pictures (person, prompt, seed) with a face under both methods.
        cells: pictures that both methods made.
        people: people with at least one such pair.
        verdict: on the claim that this one is nearer.
    """

    interval: Interval
    pairs: int
    cells: int
    people: int
    verdict: Verdict


def measure_identity(
    index: pd.DataFrame,
    people: Sequence[Person],
    *,
    recogniser: str = "Dlib",
    detector: str = "dlib",
    against: Target = "reference",
) -> IdentityScores:
    """Measure how far every picture of a study is from the person it should show.

    Args:
        index: of the study, as `fusionlib.study.run_study` returns it.
        people: of the study.
        recogniser: of DeepFace; distances are cosine distances of its embeddings.
        detector: of DeepFace.
        against: ``"reference"`` measures the distance to a person's first reference, as the paper
            does. ``"others"`` measures the mean distance to the person's other pictures, which no
            method saw: the fair target where methods see different references.

    Raises:
        FusionError: fewer than two people, or a person with too few other pictures for the scale.
    """
    needed = 1 if against == "reference" else 2
    if len(people) < 2:
        raise FusionError("Identity is measured against strangers: the study needs two people.")
    for person in people:
        if not person.references or len(person.others) < needed:
            raise FusionError(
                f"The person {person.name!r} needs a reference and {needed} other picture(s) to "
                "measure by."
            )

    def embed(paths: Sequence[object]) -> NDArray[np.float64]:
        return embed_faces((load_image(str(path)) for path in paths), recogniser, detector)

    others = [embed(person.others) for person in people]
    targets = others
    if against == "reference":
        targets = list(embed([person.references[0] for person in people])[:, None])
    genuine, impostor = [], []
    for number, target in enumerate(targets):
        same = cosine_distance(target[:, None], others[number])
        if target is others[number]:
            np.fill_diagonal(same, np.nan)  # a picture's distance to itself says nothing
        strangers = np.concatenate(others[:number] + others[number + 1 :])
        genuine.append(_mean(same))
        impostor.append(_mean(cosine_distance(target[:, None], strangers)))
    names = [person.name for person in people]
    scale = pd.DataFrame({"genuine": genuine, "impostor": impostor}, index=names)

    target_of = dict(zip(names, targets, strict=True))
    made = embed(list(index["image"]))
    distances = [
        _mean(cosine_distance(target_of[name], embedding))
        for name, embedding in zip(index["person"], made, strict=True)
    ]
    return IdentityScores(recogniser, detector, against, index.assign(distance=distances), scale)


def paired_difference(scores: IdentityScores, method: str, other: str) -> PairedDifference:
    """Compare two methods of a study cell by cell.

    Pictures without a face under either method are left out and counted; if more than a tenth are,
    the verdict is "undecided" whatever the interval.

    Raises:
        FusionError: the study lacks a method.
    """
    scores.of(method), scores.of(other)
    cells = scores.images.pivot(
        index=["person", "prompt", "seed"], columns="method", values="distance"
    )
    gain = (cells[other] - cells[method]).dropna()
    by_person = gain.groupby("person").mean()
    interval = bootstrap(by_person.to_numpy())
    return PairedDifference(
        interval=interval,
        pairs=len(gain),
        cells=len(cells),
        people=len(by_person),
        verdict=verdict(interval) if len(gain) >= MIN_PAIRED * len(cells) else "undecided",
    )


def recovery(scores: IdentityScores, method: str) -> Interval:
    """Identity recovery R of a method, over the people with a face in one picture or more."""
    joined = scores.scale.join(scores.of(method).rename("generated"), how="inner").dropna()
    return bootstrap(
        joined["generated"].to_numpy(),
        joined["genuine"].to_numpy(),
        joined["impostor"].to_numpy(),
        statistic=identity_recovery,
    )


def identity_table(scores: IdentityScores) -> pd.DataFrame:
    """The table of a study: one row for each method, between the two ends of the scale.

    Returns:
        Indexed by what was measured; columns ``distance`` and ``recovery`` (`Interval`), ``found``
        and ``images`` (counts; ``None`` on the rows of the scale).
    """
    rows: dict[str, dict[str, object]] = {}
    scale = scores.scale.dropna()

    def end_of_scale(column: Literal["genuine", "impostor"], value: float) -> dict[str, object]:
        return {
            "distance": bootstrap(scale[column].to_numpy()),
            "recovery": Interval(value, value, value),
            "found": None,
            "images": None,
        }

    rows["another person"] = end_of_scale("impostor", 0.0)
    for method in scores.images["method"].unique():
        pictures = scores.images[scores.images["method"] == method]
        rows[method] = {
            "distance": bootstrap(scores.of(method).to_numpy()),
            "recovery": recovery(scores, method),
            "found": int(pictures["distance"].notna().sum()),
            "images": len(pictures),
        }
    rows["another picture of the same person"] = end_of_scale("genuine", 1.0)
    return pd.DataFrame.from_dict(rows, orient="index")


def _mean(distances: NDArray[np.float64]) -> float:
    """Mean over the pictures with a face; NaN if none has one."""
    found = distances[~np.isnan(distances)]
    return float(found.mean()) if found.size else float("nan")
