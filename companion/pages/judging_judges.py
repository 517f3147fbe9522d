"""How well the judges judge: recognisers and the classifier on pictures of which all is known."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from companion.evaluation.alignment import Classifier
from companion.evaluation.readings import observe
from companion.evaluation.separation import Separation, told_apart
from companion.evaluation.statistics import bootstrap
from companion.faces.recognisers import load_recognisers
from companion.person import Person
from fusionlib.errors import FusionError


def recogniser_separation(
    recognisers: Sequence[str],
    people: Sequence[Person],
    *,
    detector: str = "dlib",
    cache: str | Path | None = None,
) -> dict[str, Separation]:
    """Compare every picture of people with every other, references or not.

    Args:
        recognisers: names in DeepFace, or folders of networks.
        people: two or more, some of them with two pictures or more.
        detector: of DeepFace.
        cache: see `companion.evaluation.readings.observe`.

    Returns:
        What each recogniser makes of them, by its name.

    Raises:
        FusionError: there is no such recogniser, or not one pair of each kind.
    """
    paths = [path for person in people for path in (*person.references, *person.others)]
    whose = [person.name for person in people for _ in (*person.references, *person.others)]
    judges = load_recognisers(recognisers)
    seen = observe(paths, judges, detector=detector, cache=cache, strict=True)
    return {name: told_apart(seen.values[name], whose) for name in judges}


def classifier_accuracy(
    checkpoint: str,
    folder: str | Path,
    *,
    only: Mapping[str, str] | None = None,
    people: int | None = None,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """How often a classifier is right about pictures that come with their records.

    Args:
        checkpoint: see `companion.evaluation.alignment.Classifier`.
        folder: holds ``index.csv`` with the columns person and file, and beside each picture its
            record as JSON, as ``data/heldout`` does.
        only: keep only pictures whose records have these values, ``{"style": "photo"}``.
        people: look at so many people only, the first ones.
        cache: see `companion.evaluation.readings.observe`.

    Returns:
        A row for each head of which the records know something: ``classes``, ``pictures``,
        ``accuracy`` (an `Interval` over people) and ``commonest``, the share of the most frequent
        class, which always answering it would reach.

    Raises:
        FusionError: the folder is of another shape, or there is no such classifier.
    """
    classifier = Classifier("classifier", checkpoint)
    rows = [
        (person, path, record)
        for person, path, record in read_records(folder, people)
        if all(record.get(field) == value for field, value in (only or {}).items())
    ]
    seen = observe([path for _, path, _ in rows], {"it": classifier}, cache=cache, strict=True)
    table = {}
    for head, classes in classifier.heads.items():
        wanted = [record.get(head) for *_, record in rows]
        wanted = [label if isinstance(label, str) else None for label in wanted]
        hits = pd.Series(classifier.hits(head, seen.values["it"], wanted))
        if hits.isna().all():
            continue
        means = hits.groupby([person for person, *_ in rows]).mean().dropna()
        known = Counter(label for label in wanted if label is not None)
        table[head] = {
            "classes": len(classes),
            "pictures": int(hits.notna().sum()),
            "accuracy": bootstrap(means.to_numpy()),
            "commonest": known.most_common(1)[0][1] / known.total(),
        }
    return pd.DataFrame.from_dict(table, orient="index")


def read_records(
    folder: str | Path, people: int | None = None
) -> list[tuple[str, Path, dict[str, Any]]]:
    """What is known of the pictures in a folder: whose each is, its file, its record.

    Args:
        folder: see `classifier_accuracy`.
        people: read so many people only, the first ones.

    Raises:
        FusionError: the folder is of another shape.
    """
    folder = Path(folder)
    try:
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            index = [(row["person"], folder / row["file"]) for row in csv.DictReader(file)]
        names = list(dict.fromkeys(person for person, _ in index))[:people]
        return [
            (person, path, json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
            for person, path in index
            if person in names
        ]
    except (OSError, KeyError, ValueError) as error:
        raise FusionError(
            f"{folder} needs an index.csv with the columns person and file, and a JSON file beside "
            f"each picture: {error}."
        ) from error
