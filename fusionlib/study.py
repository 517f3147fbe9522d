"""Studies: a declared grid of method x person x prompt x seed, and the images made for it.

Images land in a store, a folder in which every file is named by a hash over all that determines the
picture: the method's settings and weights, the content of the references it sees, the prompt and
the noise. So a study that was killed goes on where it stopped, another study with the same
ingredients finds the images, and a changed weight or setting is never taken for the old one.

    store/images/3f/3f2a....png      the pictures; each holds its ingredients as metadata
    store/studies/table1/index.csv   the cells of a study and the pictures that belong to them
    store/studies/table1/manifest.json
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from fusionlib.errors import FusionError
from fusionlib.images import load_image, save_png, write_atomically
from fusionlib.manifest import manifest, sha256_file, sha256_json
from fusionlib.methods import Method


@dataclass(frozen=True)
class Person:
    """Somebody to make pictures of.

    Attributes:
        name: in tables and as part of the noise's seed.
        references: pictures that a method may see, the most telling one first.
        others: further pictures of the same person, which no method sees, to measure against.
    """

    name: str
    references: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Study:
    """Every method makes a picture of every person for every prompt and seed."""

    name: str
    methods: Sequence[Method]
    people: Sequence[Person]
    prompts: Sequence[str]
    seeds: Sequence[int] = (0,)


@dataclass(frozen=True)
class Cell:
    """One picture of a study; `key` is the hash of its ingredients and names its file."""

    method: str
    person: str
    prompt: str
    seed: int
    noise_seed: int
    key: str
    ingredients: Mapping[str, Any] = field(repr=False, compare=False)

    def path(self, store: Path) -> Path:
        """Where the picture lies in a store."""
        return store / "images" / self.key[:2] / f"{self.key}.png"


def noise_seed(person: str, seed: int) -> int:
    """Seed of the torch generator that draws a picture's noise.

    It depends on the person, so that methods that see no reference do not make the same few
    pictures for everybody, and not on the method, so that comparisons are paired.
    """
    digest = hashlib.sha256(f"{person}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def cells(study: Study) -> list[Cell]:
    """All cells of a study, method by method.

    Raises:
        FusionError: a person has fewer references than a method sees, or a file is missing.
    """
    hashes: dict[Path, str] = {}
    grid = []
    for method in study.methods:
        for person in study.people:
            seen = person.references[: method.references]
            if len(seen) < method.references:
                raise FusionError(
                    f"The method {method.name!r} sees {method.references} reference(s) of a person "
                    f"and {person.name!r} has {len(seen)}: add pictures or leave one of them out."
                )
            for path in seen:
                if path not in hashes:
                    if not path.is_file():
                        raise FusionError(f"There is no reference image {path}.")
                    hashes[path] = sha256_file(path)
            for prompt in study.prompts:
                for seed in study.seeds:
                    ingredients: dict[str, Any] = {
                        "settings": dict(method.settings),
                        "references": [hashes[path] for path in seen],
                        "prompt": prompt,
                        "noise_seed": noise_seed(person.name, seed),
                    }
                    grid.append(
                        Cell(
                            method=method.name,
                            person=person.name,
                            prompt=prompt,
                            seed=seed,
                            noise_seed=ingredients["noise_seed"],
                            key=sha256_json(ingredients),
                            ingredients=ingredients,
                        )
                    )
    return grid


def run_study(
    study: Study, store: str | Path, *, batch_size: int = 8, progress: bool | None = None
) -> pd.DataFrame:
    """Make the pictures of a study that the store does not hold yet.

    Pictures are made in batches. A batch of which a part is missing is made again as a whole, and
    only what is missing is written: so a study that was interrupted ends with the same bytes as one
    that was not, although rounding may depend on a batch's company.

    Args:
        study: what to make.
        store: folder of the store; several studies may share it.
        batch_size: pictures made at once.
        progress: whether to show a bar; by default where a terminal can.

    Returns:
        The index, one row for each cell: method, person, prompt, seed, noise_seed, key and image
        (the path). It is also written to ``store/studies/<name>/index.csv``.

    Raises:
        FusionError: a reference cannot be read or the store cannot be written.
    """
    store = Path(store)
    grid = cells(study)
    methods = {method.name: method for method in study.methods}
    people = {person.name: person for person in study.people}
    if len(methods) != len(study.methods) or len(people) != len(study.people):
        raise FusionError(f"Two methods or two people of the study {study.name!r} share a name.")
    done = sum(cell.path(store).exists() for cell in grid)
    disable = None if progress is None else not progress
    with tqdm(total=len(grid), initial=done, desc=study.name, unit="image", disable=disable) as bar:
        for batch in _batches(grid, batch_size):
            missing = [cell for cell in batch if not cell.path(store).exists()]
            if not missing:
                continue
            method = methods[batch[0].method]
            images = method.generate(
                [
                    [
                        load_image(path)
                        for path in people[cell.person].references[: method.references]
                    ]
                    for cell in batch
                ],
                [cell.prompt for cell in batch],
                [cell.noise_seed for cell in batch],
            )
            for cell, image in zip(batch, images, strict=True):
                if cell in missing:
                    save_png(image, cell.path(store), dict(cell.ingredients))
            bar.update(len(missing))
    return _write_index(study, grid, store)


def _batches(grid: Sequence[Cell], size: int) -> Iterator[list[Cell]]:
    """Runs of at most `size` cells of one method."""
    for _, same in groupby(grid, key=lambda cell: cell.method):
        group = list(same)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _write_index(study: Study, grid: Sequence[Cell], store: Path) -> pd.DataFrame:
    index = pd.DataFrame(
        [
            {
                "method": cell.method,
                "person": cell.person,
                "prompt": cell.prompt,
                "seed": cell.seed,
                "noise_seed": cell.noise_seed,
                "key": cell.key,
                "image": cell.path(Path()).as_posix(),
            }
            for cell in grid
        ]
    )
    record = manifest(
        study=study.name,
        methods=[{"name": m.name, "settings": dict(m.settings)} for m in study.methods],
        people=[
            {
                "name": person.name,
                "references": [str(path.resolve()) for path in person.references],
                "others": [str(path.resolve()) for path in person.others],
            }
            for person in study.people
        ],
        prompts=list(study.prompts),
        seeds=list(study.seeds),
    )
    folder = store / "studies" / study.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = index.to_csv(index=False)
        write_atomically(folder / "index.csv", lambda file: file.write(text.encode()))
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "manifest.json", lambda file: file.write(text.encode()))
    except OSError as error:
        raise FusionError(f"The store {store} cannot be written: {error}.") from error
    return index.assign(image=[str(store / image) for image in index["image"]])


def read_study(folder: str | Path) -> tuple[pd.DataFrame, list[Person]]:
    """Read a finished study: ``store/studies/<name>``.

    Returns:
        The index as `run_study` returned it, and the people.

    Raises:
        FusionError: the folder holds no study.
    """
    folder = Path(folder)
    try:
        index = pd.read_csv(folder / "index.csv", dtype={"person": str, "method": str})
        record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        store = folder.parent.parent
        people = [
            Person(
                name=person["name"],
                references=tuple(Path(path) for path in person["references"]),
                others=tuple(Path(path) for path in person["others"]),
            )
            for person in record["people"]
        ]
        return index.assign(image=[str(store / image) for image in index["image"]]), people
    except (OSError, KeyError, ValueError) as error:
        raise FusionError(
            f"{folder} holds no finished study: give a folder store/studies/<name> that holds "
            "index.csv and manifest.json."
        ) from error


def load_people(
    folder: str | Path,
    count: int | None = None,
    *,
    references: int = 1,
    others: int = 1,
    only: Mapping[str, str] | None = None,
) -> list[Person]:
    """Read people from a folder of pictures with an ``index.csv``.

    Args:
        folder: holds ``index.csv`` with the columns person, view and file (a path in the folder).
            A person's views are sorted by number; view 0 is the best reference.
        count: read so many people only, the first ones.
        references: so many of a person's views are references, the rest are further pictures of
            the same person.
        others: who has fewer further pictures than this is passed over.
        only: keep only views with these values in these columns, ``{"style": "photo"}`` for
            example, so that further pictures are of the kind that the prompts ask for.

    Raises:
        FusionError: there is no such index, it lacks a column, or it has too few people.
    """
    folder = Path(folder)
    try:
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            rows = [
                (row["person"], int(row["view"]), row["file"])
                for row in csv.DictReader(file)
                if all(row[column] == value for column, value in (only or {}).items())
            ]
    except (OSError, KeyError, ValueError) as error:
        wanted = ", ".join(["person", "view", "file", *(only or {})])
        raise FusionError(
            f"{folder} needs a file index.csv with the columns {wanted}: {error}."
        ) from error
    people = []
    rows.sort(key=lambda row: (_natural(row[0]), row[1]))
    for name, views in groupby(rows, key=lambda row: row[0]):
        paths = tuple(folder / file for _, _, file in views)
        if len(paths) >= references + others:
            people.append(Person(name, paths[:references], paths[references:]))
    if count is not None and count > len(people):
        raise FusionError(
            f"{folder} holds {len(people)} people with {references + others} fitting pictures or "
            f"more, fewer than the {count} asked for."
        )
    return people[:count]


def _natural(name: str) -> tuple[int, int | str]:
    return (0, int(name)) if name.isdecimal() else (1, name)
