"""Does a face made from two people's references lie between them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from companion.evaluation.comparison import Estimate, estimate_of
from companion.evaluation.measure import measure
from companion.person import Person
from fusionlib.errors import FusionError


def people_pairs(people: Sequence[Person]) -> list[Person]:
    """The first person with the second, the third with the fourth: a reference of each."""
    return [
        Person(f"{a.name}+{b.name}", (a.references[0], b.references[0]))
        for a, b in zip(people[::2], people[1::2], strict=False)
    ]


def morph_gains(
    index: pd.DataFrame,
    pairs: Sequence[Person],
    *,
    first: str,
    middle: str,
    second: str,
    recogniser: str = "Dlib",
    detector: str = "dlib",
    cache: str | Path | None = None,
) -> Estimate:
    """How much nearer to *both* people a blend is than a picture of the other one alone.

    For each pair two gains are measured: how much nearer the blend is to the second person than the
    picture of the first is, and the other way round. The smaller of the two counts, so a blend that
    shows one of the people only gains nothing.

    Args:
        index: Index of a study over the pairs.
        pairs: Pairs, each a `Person` with two references, one of each of two people.
        first: Method that shows the first person alone.
        middle: Method that blends the two.
        second: Method that shows the second person alone.
        recogniser: Name or folder of the recogniser.
        detector: Face detector of DeepFace.
        cache: Folder of readings, see `companion.evaluation.measure.measure`.

    Returns:
        The mean over pairs; pairs in which a face was not found are counted as missing.

    Raises:
        FusionError: A pair does not have two references, or the study lacks one of the methods.
    """
    for pair in pairs:
        if len(pair.references) != 2:
            raise FusionError(f"The pair {pair.name!r} needs two references, one of each person.")
    for method in (first, middle, second):
        if method not in set(index["method"]):
            raise FusionError(f"The study has no method {method!r}.")

    def distances(side: int) -> pd.DataFrame:
        """Mean distance to the first or second person: a row for each pair, a column a method."""
        people = [replace(pair, references=(pair.references[side],), others=()) for pair in pairs]
        images = measure(
            index,
            people,
            recognisers=[recogniser],
            detector=detector,
            quality=False,
            cache=cache,
        ).images
        (column,) = [str(name) for name in images if str(name).startswith("distance ")]
        return images.groupby(["person", "method"])[column].mean().unstack("method")

    to_first, to_second = distances(0), distances(1)
    gains = pd.concat(
        [to_second[first] - to_second[middle], to_first[second] - to_first[middle]], axis=1
    ).min(axis=1, skipna=False)
    return estimate_of(gains.to_numpy())
