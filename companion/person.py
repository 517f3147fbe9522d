"""Held-out people: whose pictures a study makes, and where their references come from.

A held-out person is one that no model saw in training. A folder of such people holds an
``index.csv`` with a row for each picture: person, view (0 is the best reference), file and style.
``fusionlib people render --files`` writes one of synthetic people, `frame_people` makes one of
photographs, and `load_people` reads either.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fusionlib.errors import FusionError
from fusionlib.inputs.images import is_picture
from fusionlib.inputs.photos import prepare_photo
from fusionlib.support.files import NEW, check_folder, replacing
from fusionlib.support.paths import Scan, find_file, is_text, scan_folder, user_path
from fusionlib.support.texts import read_text, same_name


@dataclass(frozen=True)
class Person:
    """A person to make pictures of.

    Attributes:
        name: Name in tables, and part of the noise's seed.
        references: Pictures that a method may see, the best one first.
        others: Further pictures of the same person, which no method sees, to measure against.
    """

    name: str
    references: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()


def load_people(
    folder: str | Path | None,
    count: int | None = None,
    *,
    references: int = 1,
    others: int = 1,
    only: Mapping[str, str] | None = None,
) -> list[Person]:
    """Read people from a folder of pictures with an ``index.csv``.

    Args:
        folder: Folder that holds ``index.csv`` with the columns person, view and file (a path in
            the folder). A person's views are sorted by number; view 0 is the best reference. None,
            as in a profile that brings no people, is an error.
        count: Number of people to read, from the first on; None reads all.
        references: Number of a person's views that are references; the rest are further pictures
            of the same person.
        others: Number of further pictures without which a person is passed over.
        only: Values that columns must have, ``{"style": "photo"}`` for example, so that further
            pictures are of the kind that the prompts ask for.

    Raises:
        FusionError: There is no such index, it lacks a column, or it has too few people.
    """
    if folder is None:
        raise FusionError(
            "This profile brings no people: collect photographs of people who agreed in a folder "
            "with an index.csv (columns person, view, file, style), and name it as `heldout:` in a "
            "profile of your own that begins with `extends:`."
        )
    folder = user_path(folder)
    try:
        with io.StringIO(read_text(folder / "index.csv"), newline="") as file:
            reader = csv.DictReader(file)
            rows = [
                _view(row, reader.line_num)
                for row in reader
                if all(row[column] == value for column, value in (only or {}).items())
            ]
            if not reader.fieldnames:
                raise FusionError("it is empty")
    except (OSError, KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        wanted = ", ".join(["person", "view", "file", *(only or {})])
        raise FusionError(
            f"{folder} needs a file index.csv with the columns {wanted}: {error}."
        ) from error
    people = []
    rows.sort(key=lambda row: (natural_order(row[0]), row[1]))
    for name, views in groupby(rows, key=lambda row: row[0]):
        listed = [(view, file) for _, view, file in views]
        if len({view for view, _ in listed}) < len(listed):
            raise FusionError(f"{folder / 'index.csv'} lists a view of {name!r} twice.")
        found = [find_file(folder, file) for _, file in listed]
        if None in found:
            gone = listed[found.index(None)][1]
            raise FusionError(
                f"{folder / 'index.csv'} lists {gone}, which does not lie in {folder}."
            )
        paths = tuple(path for path in found if path)
        if len(paths) >= references + others:
            people.append(Person(name, paths[:references], paths[references:]))
    if count is not None and count > len(people):
        raise FusionError(
            f"{folder} holds {len(people)} people with {references + others} fitting pictures or "
            f"more, fewer than the {count} asked for."
        )
    return people[:count]


def _view(row: Mapping[str, str | None], line: int) -> tuple[str, int, str]:
    """Person, number and file of a view, as a row of the index gives them."""
    person, view, file = same_name(row["person"] or ""), int(row["view"] or ""), row["file"] or ""
    if not person or not file.strip() or view < 0:
        raise FusionError(f"line {line} lacks a person, a view from 0 on, or a file")
    return person, view, file


def natural_order(name: str) -> tuple[int, int | str]:
    """Sorting key: numbers by their value, before all other names."""
    return (0, int(name)) if name.isdecimal() else (1, name)


def frame_people(
    source: str | Path, out: str | Path, size: int
) -> tuple[dict[int, int], list[str]]:
    """Cut the faces out of photographs of people who agreed, and write them with an ``index.csv``.

    Args:
        source: Folder with a folder of pictures for each person, whose name is the person's. The
            first picture by name becomes the reference.
        out: Folder to write.
        size: Side of the written pictures, in pixels.

    Returns:
        The number of people for each number of pictures, and a sentence for each picture that was
        left out.

    Raises:
        FusionError: There are no pictures, or `out` exists.
    """
    source, out = user_path(source), user_path(out)
    if out.exists():
        raise FusionError(f"{out} exists: name a new folder, or remove it first.")
    check_folder(out, NEW)
    pictures: dict[Path, list[Path]] = {}
    for file in scan_folder(source).files if source.is_dir() else ():
        inside = file.relative_to(source)
        if len(inside.parts) > 1 and is_picture(file) and is_text(str(file)):
            pictures.setdefault(source / inside.parts[0], []).append(file)
    if not any(pictures.values()):
        raise FusionError(f"{source} has no folders of pictures, one for each person.")
    rows, problems = [], []
    with replacing(out, NEW) as new:
        for folder, files in pictures.items():
            view = 0
            for file in files:
                try:
                    face = prepare_photo(file, size=size)
                except FusionError as error:
                    problems.append(str(error))
                    continue
                name = f"{folder.name}/{view:03d}.png"
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                face.save(new / name)
                rows.append((folder.name, view, name, "photo"))
                view += 1
        if not rows:
            raise FusionError(f"None of the pictures in {source} shows one face: {problems[0]}")
        with open(new / "index.csv", "w", newline="", encoding="utf-8") as index:
            csv.writer(index).writerows([("person", "view", "file", "style"), *rows])
    return dict(Counter(Counter(person for person, *_ in rows).values())), problems


def passed_over(source: str | Path) -> dict[str, str]:
    """Reason for each file that `frame_people` does not look at, by path; hidden ones apart."""
    source = user_path(source)
    found = scan_folder(source) if source.is_dir() else Scan()
    reasons = found.passed_over
    for file in found.files:
        if not is_picture(file):
            reasons[str(file)] = "it is no picture"
        elif not is_text(str(file)):
            reasons[str(file)] = "its name is not UTF-8"
        elif file.parent == source:
            reasons[str(file)] = "it lies in no person's folder"
    return reasons
