"""How well the judges judge: recognisers and the classifier on pictures with known content."""

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


def all_pictures(people: Sequence[Person]) -> tuple[list[Path], list[str]]:
    """Every picture of people, references or not, and the name of the person in each."""
    pairs = [
        (path, person.name) for person in people for path in (*person.references, *person.others)
    ]
    return [path for path, _ in pairs], [name for _, name in pairs]


def recogniser_separation(
    recognisers: Sequence[str],
    people: Sequence[Person],
    *,
    detector: str = "dlib",
    cache: str | Path | None = None,
) -> dict[str, Separation]:
    """Compare every picture of people with every other, references or not.

    Args:
        recognisers: Names in DeepFace, or folders of networks.
        people: Two people or more, some of them with two pictures or more.
        detector: Face detector of DeepFace.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Returns:
        What each recogniser makes of them, by its name.

    Raises:
        FusionError: There is no such recogniser, or not one pair of each kind.
    """
    paths, whose = all_pictures(people)
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
        checkpoint: Classifier, see `companion.evaluation.alignment.Classifier`.
        folder: Folder with ``index.csv``, whose columns are person and file, and beside each
            picture its record as JSON, such as ``data/heldout``.
        only: Values that a picture's record must have, such as ``{"style": "photo"}``.
        people: Number of people whose pictures are classified, the first ones; by default all.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Returns:
        A row for each head that the records have labels for: ``classes``, ``pictures``,
        ``accuracy`` (an `Interval` over people) and ``commonest``, the share of the most frequent
        class, which always answering it would reach.

    Raises:
        FusionError: The folder has another layout, or there is no such classifier.
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
    """The person, the file and the record of each picture in a folder.

    Args:
        folder: Folder of pictures and records, see `classifier_accuracy`.
        people: Number of people whose records are read, the first ones; by default all.

    Raises:
        FusionError: The folder has another layout.
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
