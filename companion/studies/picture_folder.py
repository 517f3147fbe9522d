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
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from companion.csv_tables import read_table
from companion.person import Person
from companion.studies.store import Store
from companion.studies.study import left_out, read_study
from fusionlib.errors import FusionError
from fusionlib.inputs.images import is_picture
from fusionlib.support.files import NEW, check_folder, replacing, write_text
from fusionlib.support.paths import Scan, find_file, is_hidden, is_text, scan_folder, user_path
from fusionlib.support.texts import file_name, find_name, same_name

REFERENCES, OTHERS, INDEX = "references", "others", "index.csv"


@dataclass(frozen=True)
class PictureFolder:
    """What a folder holds.

    Attributes:
        index: One row for each picture to judge: method, person, prompt (empty if none is known),
            seed and image, and the further columns of ``index.csv``.
        people: People with references and other pictures.
        passed_over: Reason for each file that is no picture or cannot be used, by path.
        hidden: Number of hidden files and folders, and of those that systems leave.
    """

    index: pd.DataFrame
    people: list[Person]
    passed_over: dict[str, str]
    hidden: int = 0

    @property
    def ignored(self) -> int:
        """The number of files that are passed over."""
        return len(self.passed_over)


def read_folder(folder: str | Path) -> PictureFolder:
    """Read a folder of pictures to judge; the pictures themselves are not opened.

    Raises:
        FusionError: It is of another shape, or a picture has no reference.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FusionError(
            f"There is no folder {folder}: give one with {REFERENCES}/, or a study's."
        )
    found = Scan()
    people = _people(folder, found)
    index = _read_index(folder) if (folder / INDEX).exists() else _walk(folder, found)
    known = {person: find_name(person, people) for person in index["person"].unique()}
    by_folder = {file_name(name): name for name in people}
    for person, image in zip(index["person"], index["image"], strict=True):
        known[person] = known[person] or by_folder.get(file_name(person))
        if known[person] is None:
            raise FusionError(
                f"{image} shows {person!r}, of whom there is no reference: add "
                f"{folder / REFERENCES / person}.png, or a folder of that name."
            )
    # A person is called as the index does: a folder may have had to leave some signs out.
    called = {place: person for person, place in known.items()}
    index["person"] = index["person"].map(lambda person: called[known[person]])
    shown = [replace(people[name], name=called[name]) for name in people if name in called]
    return PictureFolder(index, shown, found.passed_over, len(found.hidden))


def _people(folder: Path, found: Scan) -> dict[str, Person]:
    if not (folder / REFERENCES).is_dir():
        raise FusionError(
            f"{folder} has no folder {REFERENCES}/: put a picture of each person there, named as "
            f"the person is ({REFERENCES}/ada.jpg)."
        )
    references = _by_person(folder / REFERENCES, found)
    others = _by_person(folder / OTHERS, found) if (folder / OTHERS).is_dir() else {}
    for name in others:
        if find_name(name, references) is None:
            path = str(folder / OTHERS / name)
            found.passed_over[path] = "it shows a person without a reference"
    if not references:
        raise FusionError(f"{folder / REFERENCES} holds no picture.")
    further = {find_name(name, references): paths for name, paths in others.items()}
    return {
        name: Person(name, tuple(paths), tuple(further.get(name, ())))
        for name, paths in references.items()
    }


def _walk(folder: Path, found: Scan) -> pd.DataFrame:
    """Methods by the names of their folders."""
    rows = []
    for place in sorted(folder.iterdir()):
        if place.name in (REFERENCES, OTHERS):
            continue
        if is_hidden(place.name):
            found.hidden.append(str(place))
            continue
        if not place.is_dir():
            found.passed_over[str(place)] = "it lies beside the folders of methods"
            continue
        pictures, method = _by_person(place, found), same_name(place.name)
        rows += [
            {
                "method": method,
                "person": person,
                "prompt": "",
                "seed": seed,
                "image": str(path),
            }
            for person, paths in pictures.items()
            for seed, path in enumerate(paths)
        ]
    if not rows:
        raise FusionError(
            f"{folder} holds no pictures to judge: put them into METHOD/PERSON.png or "
            f"METHOD/PERSON/*.png beside {REFERENCES}/, or list them in {INDEX}."
        )
    return pd.DataFrame(rows)


def _by_person(folder: Path, found: Scan) -> dict[str, list[Path]]:
    """Pictures by person: ``ada.png``, or everything in ``ada/``."""
    pictures: dict[str, list[Path]] = {}
    scan = scan_folder(folder)
    found.hidden += scan.hidden
    found.passed_over |= scan.passed_over
    for path in scan.files:
        inside = path.relative_to(folder)
        if not is_picture(path):
            found.passed_over[str(path)] = "it is no picture"
            continue
        if not is_text(str(path)):
            found.passed_over[str(path)] = "its name is not UTF-8"
            continue
        if len(inside.parts) > 2:
            raise FusionError(
                f"{path} lies too deep: {folder} may hold PERSON.png and PERSON/*.png."
            )
        name = path.stem if len(inside.parts) == 1 else inside.parts[0]
        pictures.setdefault(same_name(name), []).append(path)
    return dict(sorted(pictures.items()))


def _read_index(folder: Path) -> pd.DataFrame:
    path = folder / INDEX
    index = read_table(path, ("image", "person"))
    for column in ("image", "person"):
        if index[column].isna().any():
            row = int(index[column].isna().argmax()) + 2  # as an editor counts, after the heading
            raise FusionError(f"{path} has no {column} in line {row}.")
    if index.empty:
        raise FusionError(f"{path} lists no picture.")
    images = [find_file(folder, name) for name in index["image"]]
    for name, image in zip(index["image"], images, strict=True):
        if image is None:
            raise FusionError(f"{path} lists {name}, which does not lie in {folder}.")
    index["person"] = index["person"].map(same_name)
    index["method"] = (
        index["method"].fillna("").map(same_name) if "method" in index else folder.name
    )
    index["prompt"] = index["prompt"].fillna("") if "prompt" in index else ""
    if "seed" not in index:
        index["seed"] = index.groupby(["method", "person", "prompt"]).cumcount()
    whole = pd.to_numeric(index["seed"], errors="coerce")
    wrong = whole.isna() | (whole % 1 != 0) | (whole.abs() >= 2**53)  # inf, too
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
    return index.assign(image=[str(image) for image in images])


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
        if len(set(map(file_name, names))) < len(names):
            raise FusionError(f"Two of the names {sorted(names)} would be one folder's.")
    with replacing(out, NEW) as partial:
        for person in people:
            for folder, paths in ((REFERENCES, person.references), (OTHERS, person.others)):
                _copy(paths, partial / folder / file_name(person.name))
        targets = []
        for (method, person_name), rows in index.groupby(["method", "person"], sort=False):
            place = Path(file_name(str(method))) / file_name(str(person_name))
            _copy([Path(path) for path in rows["image"]], partial / place)
            targets += [(key, place / f"{n:04}.png") for n, key in enumerate(rows.index)]
        images = pd.Series({key: path.as_posix() for key, path in targets})
        table = index.drop(columns=["key", "noise_seed"]).assign(image=images)
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
