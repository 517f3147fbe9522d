"""Folders of pictures and their references: how other people's methods come into the same table.

    FOLDER/references/ada.jpg     a reference picture of a person, or a folder of several,
    FOLDER/references/ben/*.png   of which the first by name is measured against
    FOLDER/others/ada/*.jpg       if there are any: further pictures of the same person
    FOLDER/METHOD/ada.png         what a method made of that person: one picture,
    FOLDER/METHOD/ben/*.png       or a folder of them
    FOLDER/index.csv              if there is one: of each picture (column image) the person,
                                  method, prompt and seed

`fusionlib study export` writes such a folder, and `fusionlib evaluate` reads it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from companion.person import Person
from companion.studies.store import Store
from companion.studies.study import left_out, read_study
from fusionlib.errors import FusionError
from fusionlib.support.files import NEW, check_folder, replacing, write_text

REFERENCES, OTHERS, INDEX = "references", "others", "index.csv"


@dataclass(frozen=True)
class PictureFolder:
    """What a folder holds.

    Attributes:
        index: One row for each picture to judge: method, person, prompt (empty if none is known),
            seed and image, and the further columns of ``index.csv``.
        people: People with references and other pictures.
        ignored: Files that are no pictures.
    """

    index: pd.DataFrame
    people: list[Person]
    ignored: int


def read_folder(folder: str | Path) -> PictureFolder:
    """Read a folder of pictures to judge; the pictures themselves are not opened.

    Raises:
        FusionError: It is of another shape, or a picture has no reference.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FusionError(
            f"There is no folder {folder}: give one with {REFERENCES}/, or a study's."
        )
    people, ignored = _people(folder)
    if (folder / INDEX).exists():
        index = _read_index(folder)
    else:
        index, more = _walk(folder)
        ignored += more
    for person, image in zip(index["person"], index["image"], strict=True):
        if person not in people:
            raise FusionError(
                f"{image} shows {person!r}, of whom there is no reference: add "
                f"{folder / REFERENCES / person}.png, or a folder of that name."
            )
    shown = [people[name] for name in people if name in set(index["person"])]
    return PictureFolder(index, shown, ignored)


def _people(folder: Path) -> tuple[dict[str, Person], int]:
    if not (folder / REFERENCES).is_dir():
        raise FusionError(
            f"{folder} has no folder {REFERENCES}/: put a picture of each person there, named as "
            f"the person is ({REFERENCES}/ada.jpg)."
        )
    references, ignored = _by_person(folder / REFERENCES)
    others, more = _by_person(folder / OTHERS) if (folder / OTHERS).is_dir() else ({}, 0)
    if not references:
        raise FusionError(f"{folder / REFERENCES} holds no picture.")
    people = {
        name: Person(name, tuple(paths), tuple(others.get(name, ())))
        for name, paths in references.items()
    }
    return people, ignored + more


def _walk(folder: Path) -> tuple[pd.DataFrame, int]:
    """Methods by the names of their folders."""
    rows, ignored = [], 0
    for place in sorted(folder.iterdir()):
        if place.name in (REFERENCES, OTHERS) or place.name.startswith("."):
            continue
        if not place.is_dir():
            ignored += 1
            continue
        pictures, more = _by_person(place)
        ignored += more
        rows += [
            {"method": place.name, "person": person, "prompt": "", "seed": seed, "image": str(path)}
            for person, paths in pictures.items()
            for seed, path in enumerate(paths)
        ]
    if not rows:
        raise FusionError(
            f"{folder} holds no pictures to judge: put them into METHOD/PERSON.png or "
            f"METHOD/PERSON/*.png beside {REFERENCES}/, or list them in {INDEX}."
        )
    return pd.DataFrame(rows), ignored


def _by_person(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """Pictures by person: ``ada.png``, or everything in ``ada/``."""
    found: dict[str, list[Path]] = {}
    ignored = 0
    for path in _files(folder):
        inside = path.relative_to(folder)
        if len(inside.parts) > 2:
            raise FusionError(
                f"{path} lies too deep: {folder} may hold PERSON.png and PERSON/*.png."
            )
        if path.suffix.lower() not in Image.registered_extensions():
            ignored += 1
            continue
        name = path.stem if len(inside.parts) == 1 else inside.parts[0]
        found.setdefault(name, []).append(path)
    return dict(sorted(found.items())), ignored


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if (path.is_file() or path.is_symlink()) and not hidden:  # a dead link is counted, too
            yield path


def _read_index(folder: Path) -> pd.DataFrame:
    path = folder / INDEX
    try:
        index = pd.read_csv(path, dtype={"person": str, "method": str, "prompt": str, "image": str})
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FusionError(f"{path} is not a table of comma-separated values: {reason}.") from error
    for column in ("image", "person"):
        if column not in index:
            raise FusionError(
                f"{path} lacks the column {column!r}: it has {', '.join(map(str, index))}."
            )
        if index[column].isna().any():
            row = int(index[column].isna().argmax()) + 2  # as an editor counts, after the heading
            raise FusionError(f"{path} has no {column} in line {row}.")
    if index.empty:
        raise FusionError(f"{path} lists no picture.")
    for name in index["image"]:
        if not (folder / name).is_file():
            raise FusionError(f"{path} lists {name}, which does not lie in {folder}.")
    index["method"] = index["method"].fillna("") if "method" in index else folder.name
    index["prompt"] = index["prompt"].fillna("") if "prompt" in index else ""
    if "seed" not in index:
        index["seed"] = index.groupby(["method", "person", "prompt"]).cumcount()
    whole = pd.to_numeric(index["seed"], errors="coerce")
    wrong = whole.isna() | (whole % 1 != 0)
    if wrong.any():
        raise FusionError(f"{path} has no whole number as seed in line {int(wrong.argmax()) + 2}.")
    index["seed"] = whole.astype(int)
    twice = index.duplicated(["method", "person", "prompt", "seed"])
    if twice.any():
        name = index["image"][twice].iloc[0]
        raise FusionError(
            f"{path} lists two pictures of one method, person, prompt and seed; the second is "
            f"{name}: give them different seeds."
        )
    return index.assign(image=[str(folder / name) for name in index["image"]])


def export_study(store: str | Path, name: str, out: str | Path) -> Path:
    """Lay a finished study out as a folder with speaking names, for others to look at or judge.

    Args:
        store: Store that holds the study.
        name: Name of the study.
        out: Folder to write; it must not exist.

    Returns:
        The folder.

    Raises:
        FusionError: The study is not finished, or the folder exists or cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise FusionError(f"{out} exists: name a new folder, so that nothing is mixed up.")
    check_folder(out, NEW)
    shelf = Store(store)
    shelf.cells(name)  # says what there is, if there is no such study
    index, people = read_study(shelf.root / "studies" / name)
    for names in (set(index["method"]) | {REFERENCES, OTHERS}, {person.name for person in people}):
        if len(set(map(_safe, names))) < len(names):
            raise FusionError(f"Two of the names {sorted(names)} would be one folder's.")
    with replacing(out, NEW) as partial:
        for person in people:
            for folder, paths in ((REFERENCES, person.references), (OTHERS, person.others)):
                _copy(paths, partial / folder / _safe(person.name))
        targets = []
        for (method, person_name), rows in index.groupby(["method", "person"], sort=False):
            place = Path(_safe(str(method))) / _safe(str(person_name))
            _copy([Path(path) for path in rows["image"]], partial / place)
            targets += [(key, place / f"{n:04}.png") for n, key in enumerate(rows.index)]
        images = pd.Series({key: path.as_posix() for key, path in targets})
        table = index.drop(columns=["key", "noise_seed"]).assign(
            image=images, person=index["person"].map(_safe)
        )
        write_text(partial / INDEX, table.to_csv(index=False))
        gone = left_out(shelf.root / "studies" / name).to_dict("records")
        record = {**shelf.manifest(name), "left_out": gone}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_text(partial / "manifest.json", text)
    return out


def _copy(paths: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(tqdm(paths, desc=folder.name, leave=False, disable=None)):
        shutil.copyfile(path, folder / f"{number:04}{path.suffix}")


def _safe(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "_"
