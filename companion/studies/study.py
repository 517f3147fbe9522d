"""Studies: a declared grid of method x person x prompt x seed, and the images made for it.

Images are kept in a `companion.studies.store.Store`, which names every file by a hash over all that
determines the picture: the method's settings and weights, the content of the references it sees,
the prompt and the noise. So a study that was killed goes on where it stopped, another study with
the same ingredients finds the images, and a changed weight or setting is never taken for the old
one.

Every picture is made by itself. In a batch, rounding depends on a picture's company, and its bytes
would depend on how the work happened to be divided; alone, they depend on its ingredients only.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from companion.methods import Method
from companion.person import Person
from companion.studies.store import Store
from fusionlib.errors import FusionError, NoFaceError
from fusionlib.inputs.images import load_image
from fusionlib.support.provenance import manifest, sha256_file, sha256_json

logger = logging.getLogger(__name__)

BLOCK = 8
"""Most cells of one method and person that are made one after another by one process."""


@dataclass(frozen=True)
class Study:
    """Every method makes a picture of every person for every prompt and seed.

    Attributes:
        name: Name of the study's folder in the store.
        methods: Methods with different names.
        people: People with different names.
        prompts: Prompts for everyone, or the prompts for each person by name.
        seeds: Seeds of the noise.
        declaration: The file it was declared in, if any, for the record.
    """

    name: str
    methods: Sequence[Method]
    people: Sequence[Person]
    prompts: Sequence[str] | Mapping[str, Sequence[str]]
    seeds: Sequence[int] = (0,)
    declaration: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def prompts_of(self, person: str) -> Sequence[str]:
        """The prompts for one person, by name; none where a mapping does not know the person."""
        if isinstance(self.prompts, Mapping):
            return self.prompts.get(person, ())
        return self.prompts

    @property
    def all_prompts(self) -> list[str]:
        """Every prompt once, in order."""
        prompts = self.prompts
        lists = prompts.values() if isinstance(prompts, Mapping) else [prompts]
        return list(dict.fromkeys(prompt for prompts in lists for prompt in prompts))


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


@dataclass(frozen=True)
class Share:
    """The part of a study that one of several processes makes.

    Processes need not communicate: each takes every `count`-th block of cells, whatever the others
    do and whether or not they run.

    Attributes:
        number: Number of this process, from 0.
        count: Number of all processes.
    """

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise FusionError(
                f"A share is a number from 0 to below the count of processes, not {self.number} "
                f"of {self.count}."
            )


def noise_seed(person: str, seed: int) -> int:
    """Seed of the torch generator that draws a picture's noise.

    It depends on the person, so that methods that see no reference do not make the same few
    pictures for everyone, and not on the method, so that comparisons are paired.
    """
    digest = hashlib.sha256(f"{person}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def cells(study: Study) -> list[Cell]:
    """All cells of a study, method by method and person by person.

    Raises:
        FusionError: Something is there twice or not at all, a person has fewer references than a
            method sees, or a file is missing.
    """
    _check(study)
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
            for prompt in study.prompts_of(person.name):
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


def _check(study: Study) -> None:
    if not re.fullmatch(r"\w[\w.+ -]*", study.name):
        raise FusionError(
            f"The study's name {study.name!r} names a folder: use letters, digits, '-' and '_'."
        )
    for what, items in (
        ("method", [method.name for method in study.methods]),
        ("person", [person.name for person in study.people]),
        ("seed", study.seeds),
    ):
        if not items:
            raise FusionError(f"The study {study.name!r} has no {what}: name one or more.")
        _no_twice(study.name, what, items)
    if not study.all_prompts:
        raise FusionError(f"The study {study.name!r} has no prompt: name one or more.")
    for person in study.people:
        if not study.prompts_of(person.name):
            raise FusionError(f"The study {study.name!r} has no prompt for {person.name!r}.")
        _no_twice(study.name, "prompt", study.prompts_of(person.name))


def _no_twice(study: str, what: str, items: Sequence[Any]) -> None:
    twice = [item for item in items if list(items).count(item) > 1]
    if twice:
        raise FusionError(f"The study {study!r} has the {what} {twice[0]!r} twice.")


def run_study(
    study: Study, store: str | Path, *, share: Share | None = None, progress: bool | None = None
) -> pd.DataFrame:
    """Make the pictures of a study that the store does not hold yet.

    A person in whose references a method finds no face, though it needs one, is left out for that
    method, with a warning: see `left_out`. A picture of the store that is cut short is made again.

    Args:
        study: The study.
        store: Folder of the store; several studies and processes may share it.
        share: Part to make; by default everything.
        progress: Whether to show a bar with a forecast; by default where a terminal can.

    Returns:
        The study's cells but for those left out, one row each: method, person, prompt, seed,
        noise_seed, key and image (the path, there once all shares are made).

    Raises:
        FusionError: The study is malformed, a reference cannot be read, or the store cannot be
            written.
    """
    share = share or Share()
    shelf = Store(store)
    grid = cells(study)
    if share.number == 0:
        shelf.declare(study.name, map(_row, grid), describe_study(study))
    methods = {method.name: method for method in study.methods}
    people = {person.name: person for person in study.people}
    blocks = list(_blocks(grid))[share.number :: share.count]
    mine = {cell.key: cell for block in blocks for cell in block}
    there, done = shelf.keys() & mine.keys(), shelf.left_out().keys() & mine.keys()
    made = {key for key in there if shelf.whole(key)}
    for key in sorted(there - made):
        logger.warning("%s is cut short and is made again.", shelf.path(key))
    done |= made
    name = study.name if share.count == 1 else f"{study.name} {share.number + 1}/{share.count}"
    disable = None if progress is None else not progress
    with (
        shelf.writing(),
        tqdm(total=len(mine), initial=len(done), desc=name, unit="image", disable=disable) as bar,
    ):
        shelf.adopt(made)
        for block in blocks:
            missing = {cell.key: cell for cell in block if cell.key not in done}
            if not missing:
                continue
            method, person = methods[block[0].method], people[block[0].person]
            seen = [load_image(path) for path in person.references[: method.references]]
            try:
                faces = method.prepare(seen)
            except NoFaceError as error:
                logger.warning("%r is left out for %r: %s", person.name, method.name, error)
                for key, cell in mine.items():  # of all blocks, so that none is tried again
                    same = (cell.method, cell.person) == (method.name, person.name)
                    if same and key not in done:
                        shelf.leave_out(key, str(error))
                        done.add(key)
                        bar.update()
                continue
            for cell in missing.values():
                started = time.perf_counter()
                image = method.generate(cell.prompt, faces, cell.noise_seed)
                seconds = time.perf_counter() - started
                shelf.add(cell.key, image, cell.ingredients, seconds)
                done.add(cell.key)
                bar.update()
    return _with_images(pd.DataFrame(map(_row, grid)), shelf)


def _blocks(grid: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Runs of at most `BLOCK` cells of one method and one person."""
    for _, same in groupby(grid, key=lambda cell: (cell.method, cell.person)):
        group = list(same)
        for start in range(0, len(group), BLOCK):
            yield group[start : start + BLOCK]


def _row(cell: Cell) -> dict[str, Any]:
    return {name: value for name, value in vars(cell).items() if name != "ingredients"}


def _with_images(index: pd.DataFrame, store: Store) -> pd.DataFrame:
    there = index[~index["key"].isin(store.left_out().keys())].reset_index(drop=True)
    return there.assign(image=[str(store.path(key)) for key in there["key"]])


def describe_study(study: Study) -> dict[str, Any]:
    """The manifest of a study: methods with settings and weights, people, prompts, versions."""
    return manifest(
        study=study.name,
        declaration=dict(study.declaration),
        methods=[
            {
                "name": method.name,
                "settings": dict(method.settings),
                "needs": list(method.needs),
                "citation": method.citation,
            }
            for method in study.methods
        ],
        people=[
            {
                "name": person.name,
                "references": [str(path.resolve()) for path in person.references],
                "others": [str(path.resolve()) for path in person.others],
            }
            for person in study.people
        ],
        prompts=study.all_prompts,
        seeds=list(study.seeds),
    )


def run_label(profile: str, study: Study, over: str = "people") -> str:
    """One sentence that names a run: profile, size of the study, first digits of its weights.

    Args:
        profile: Name of the profile.
        study: The study, whose people are counted only where they have references.
        over: Name for the people, see `label_run`.
    """
    people = sum(bool(person.references) for person in study.people)
    sizes = (people, len(study.all_prompts), len(study.seeds))
    weights = [method.settings["weights"] for method in study.methods]
    return label_run(profile, *sizes, weights, over)


def label_run(
    profile: str,
    people: int,
    prompts: int,
    seeds: int,
    weights: Iterable[Mapping[str, str]],
    over: str = "people",
) -> str:
    """One sentence that names a run, for captions.

    Args:
        profile: Name of the profile.
        people: Number of people; 0 where a study has no references.
        prompts: Number of prompts.
        seeds: Number of seeds.
        weights: Hashes of each method's weights, by the name of the model.
        over: Name for the people in the plural, where each stands for several.
    """
    sizes = [
        f"{count} {noun if count == 1 else plural}"
        for count, noun, plural in (
            (people, "person" if over == "people" else over.removesuffix("s"), over),
            (prompts, "prompt", "prompts"),
            (seeds, "seed", "seeds"),
        )
        if count
    ]
    used: dict[str, None] = {}  # an ordered set: methods share a base model, and differ in adapters
    for each in weights:
        used |= {f"{name.replace('_', ' ')} {value[:8]}": None for name, value in each.items()}
    hashes = ", ".join(used)
    return f"Profile {profile}: {', '.join(sizes)}; weights: {hashes}."


def study_status(store: str | Path, name: str) -> pd.DataFrame:
    """How far a study is, by the index alone: no picture is opened.

    Returns:
        One row for each method: cells, done, left_out (pictures that cannot be made), and seconds,
        a forecast of what is left for one process (NaN where no picture of that method was timed
        yet).

    Raises:
        FusionError: The store holds no such study.
    """
    shelf = Store(store)
    grid = shelf.cells(name)
    made = grid.merge(shelf.index()[["key", "seconds"]], on="key", how="left", indicator=True)
    made = made.assign(
        done=made["_merge"] == "both", left_out=made["key"].isin(shelf.left_out().keys())
    )
    table = made.groupby("method", sort=False).agg(
        cells=("key", "size"),
        done=("done", "sum"),
        left_out=("left_out", "sum"),
        seconds=("seconds", "mean"),
    )
    left = table["cells"] - table["done"] - table["left_out"]
    return table.assign(seconds=table["seconds"] * left)


def left_out(folder: str | Path) -> pd.DataFrame:
    """Who was left out of a study, ``store/studies/<name>``, by which method and why.

    Returns:
        One row for each method and person left out: method, person and reason.

    Raises:
        FusionError: The store holds no such study.
    """
    folder = Path(folder).resolve()
    shelf = Store(folder.parent.parent)
    index, reasons = shelf.cells(folder.name), shelf.left_out()
    gone = index[index["key"].isin(reasons.keys())]
    gone = gone.assign(reason=gone["key"].map(reasons))
    return gone.drop_duplicates(["method", "person"])[["method", "person", "reason"]]


def read_study(folder: str | Path) -> tuple[pd.DataFrame, list[Person]]:
    """Read a finished study: ``store/studies/<name>``.

    Returns:
        The index as `run_study` returned it, without what is `left_out`, and the people.

    Raises:
        FusionError: The folder holds no study, or pictures of it are missing.
    """
    folder = Path(folder).resolve()
    if not (folder / "cells.parquet").is_file():
        raise FusionError(
            f"{folder} holds no study: give a folder STORE/studies/NAME that "
            "`fusionlib study run` wrote."
        )
    shelf = Store(folder.parent.parent)
    index = shelf.cells(folder.name)
    missing = len(set(index["key"]) - shelf.keys() - shelf.left_out().keys())
    if missing:
        raise FusionError(
            f"The study {folder.name!r} lacks {missing} of {len(index)} pictures: finish it with "
            "`fusionlib study run`."
        )
    try:
        people = [
            Person(
                name=person["name"],
                references=tuple(Path(path) for path in person["references"]),
                others=tuple(Path(path) for path in person["others"]),
            )
            for person in shelf.manifest(folder.name)["people"]
        ]
    except (KeyError, TypeError) as error:
        raise FusionError(f"The record {folder / 'manifest.json'} names no people.") from error
    return _with_images(index, shelf), people
