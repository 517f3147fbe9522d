"""Writes people as a data set: webdataset shards (in img2dataset's layout) or plain files.

For each picture a shard `00000.tar` holds `{key}.jpg`, `{key}.txt` (the caption), `{key}.json`
(all attributes), `{key}.mask.png` (the face, 255) and `{key}.depth.png` (near is bright). The key
is 100 times the person's number plus the view's, in nine digits. A picture depends on (seed,
person, view) alone, so the number of worker processes changes nothing, and a shard that already
holds its pictures is skipped.

Pictures of several people lie in shards of their own, `groups-00000.tar`, with the keys
`group000000000` and so on. Their JSON has `people`, from left to right, in place of `person`. Their
mask is a palette image: 0 is the background, and 1, 2 and 3 are the faces from left to right. All
palette colours but the first are brighter than half, so read as grey levels it is the mask of any
face, and `fusionlib.masks_from_colors(mask, [1, 2])` returns the identity masks of equation 7.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from companion.people.appearance import sample_person
from companion.people.caption import attributes, describe
from companion.people.groups import (
    GroupPicture,
    choose_members,
    describe_group,
    group_attributes,
    render_group,
    sample_group,
)
from companion.people.render import Picture, inverse_depth, render_views
from companion.people.requirements import require
from companion.people.view import sample_view
from fusionlib.errors import FusionError
from fusionlib.support.files import (
    Made,
    check_folder,
    locked,
    write_atomically,
    write_bytes,
    write_text,
)
from fusionlib.support.provenance import package_versions
from fusionlib.support.workers import worker_pool

SAMPLES_PER_SHARD = 400
WORDINGS = 4  # captions for each picture; the first is also the .txt file
PALETTE = (0, 0, 0, 255, 140, 120, 140, 230, 140, 150, 180, 255)  # colours of a group's mask
FORMAT = 2  # increased when the same seed would give other pictures


@dataclass(frozen=True)
class _Job:
    """One shard to write: its path, and the people or the groups of people it holds."""

    path: Path
    people: range
    views: int
    seed: int
    size: int
    split: str
    groups: range = range(0)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.keys())

    def keys(self) -> list[str]:
        """Return the keys of the pictures, in order."""
        if self.groups:
            return [_group_key(index) for index in self.groups]
        return [_key(person, view) for person in self.people for view in range(self.views)]

    def samples(self) -> Iterator[Sample]:
        """Render the pictures one after another."""
        if self.groups:
            for index in self.groups:
                yield make_group(self.seed, index, self.people, self.size, self.split)
        else:
            for person in self.people:
                yield from make_samples(self.seed, person, self.views, self.size, self.split)


@dataclass(frozen=True)
class Sample:
    """One finished picture: its key, its record, and its files by the suffix of their name."""

    key: str
    record: dict[str, Any]
    files: dict[str, bytes]


def _key(person: int, view: int) -> str:
    return f"{person * 100 + view:09d}"


def _group_key(group: int) -> str:
    return f"group{group:09d}"


def _encode(
    array: np.ndarray, kind: str, palette: Sequence[int] | None = None, **options: Any
) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    if palette:
        image.putpalette(palette)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _sample(
    head: dict[str, Any],
    captions: list[str],
    labels: dict[str, Any],
    picture: Picture | GroupPicture,
    mask: bytes,
) -> Sample:
    """Encode a picture's files. Its record holds the head, size, captions and labels."""
    height, width = picture.image.shape[:2]
    record = {
        **head,
        "width": width,
        "height": height,
        "caption": captions[0],
        "captions": captions,
        **labels,
    }
    files = {
        "jpg": _encode(picture.image, "JPEG", quality=95, subsampling=0),
        "txt": captions[0].encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
        "mask.png": mask,
        "depth.png": _encode(inverse_depth(picture.depth), "PNG"),
    }
    return Sample(record["key"], record, files)


def make_samples(
    seed: int, person_index: int, views: int, size: int, split: str
) -> Iterator[Sample]:
    """Render all views of one person, in order.

    Args:
        seed: Seed of the data set.
        person_index: Number of the person.
        views: Number of pictures, 1 to 100; the first is the reference.
        size: Height and width in pixels.
        split: Name for the records; `train` leaves out held-out combinations.
    """
    person = sample_person(seed, person_index)
    plan = [sample_view(seed, person_index, v, split=split) for v in range(views)]
    for view, picture in zip(plan, render_views(person, plan, size), strict=True):
        which = {"key": _key(person_index, view.index), "person": person_index, "view": view.index}
        yield _sample(
            {**which, "seed": seed, "split": split},
            [describe(person, view, wording) for wording in range(WORDINGS)],
            attributes(person, view),
            picture,
            _encode(picture.mask, "PNG"),
        )


def make_group(seed: int, index: int, people: range, size: int, split: str) -> Sample:
    """Render one picture of several people.

    Args:
        seed: Seed of the data set.
        index: Number of the group.
        people: Numbers of the people in the set; two or three of them are in the picture.
        size: Height and width in pixels.
        split: Name for the record; `train` leaves out held-out combinations.
    """
    group = sample_group(seed, index, choose_members(seed, index, people), split=split)
    picture = render_group(group, size)
    labels = np.zeros((size, size), np.uint8)
    for number, mask in enumerate(picture.masks, start=1):
        labels[mask] = number
    return _sample(
        {"key": _group_key(index), "group": index, "seed": seed, "split": split},
        [describe_group(group, wording) for wording in range(WORDINGS)],
        group_attributes(group),
        picture,
        _encode(labels, "PNG", palette=PALETTE),
    )


def _start_worker() -> None:
    # There is a process for each core, so numeric libraries and the rasteriser get one thread.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"):
        os.environ[name] = "1"
    try:
        import torch

        torch.set_num_threads(1)
    except ImportError:
        pass


def _load() -> None:
    from companion.people.head import load_head_model

    load_head_model()


def _held(shard: Path) -> tuple[list[str], str | None]:
    """Return the keys of the pictures in a shard, none if it is missing, and its damage if any."""
    from fusionlib.training.shards import scan_shard

    if not shard.exists():
        return [], None
    samples, damage, _ = scan_shard(shard)
    return [sample.key for sample in samples], damage


def _write_shard(job: _Job) -> int:
    """Render one shard and return its number of pictures."""

    def write(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for sample in job.samples():
                for suffix, content in sample.files.items():
                    info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

    write_atomically(job.path, write)
    return len(job)


def _write_manifest(folder: Path, record: dict[str, Any]) -> Path:
    path = folder / "manifest.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    return path


def _check(people: int, views: int = 1, workers: int = 1, groups: int = 0) -> None:
    """Refuse impossible numbers, and a missing renderer."""
    if people < 1:
        raise FusionError(f"The number of people must be at least 1, not {people}.")
    if not 1 <= views <= 100:
        raise FusionError(f"The number of views must be from 1 to 100, not {views}.")
    if workers < 1:
        raise FusionError(f"The number of workers must be at least 1, not {workers}.")
    if groups < 0:
        raise FusionError(f"The number of groups must be at least 0, not {groups}.")
    if groups:
        choose_members(0, 0, range(people))  # raises an error if there are too few people
    require("anny", "pyvista")


MANIFEST = {"manifest.json": '"first_person"'}
"""How a folder of rendered people is known."""

SHARDS = Made(r"(groups-)?\d{5,}\.tar|manifest\.json", MANIFEST)
"""What a folder of shards holds."""

FILES = Made(
    r"\d{4,}(_\d+)?\.(jpg|txt|json|mask\.png|depth\.png)|index\.csv|manifest\.json", MANIFEST
)
"""What a folder of plain files holds."""


def _folder(out: Path | str, made: Made) -> Path:
    """Make the folder of a set, which may hold such a set and nothing else."""
    folder = check_folder(out, made, whole=False)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parameters(**values: Any) -> dict[str, Any]:
    """Return what a manifest says of how a set was made."""
    versions = package_versions(("anny", "pyvista", "vtk", "numpy", "pillow"))
    return {"format": FORMAT, **values, "versions": versions}


def _recorded(folder: Path) -> dict[str, Any]:
    """Return the manifest in a folder, whether its set is finished or not; empty if missing."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FusionError(f"Cannot read {path}: remove it, or choose another folder.") from error
    if not isinstance(old, dict):
        raise FusionError(f"{path} is no manifest: remove it, or choose another folder.")
    return old


def _same_data(folder: Path, old: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Refuse to mix two data sets: finished shards must come from the same settings."""
    names = ["format", "views", "seed", "size", "first_person", "split", "samples_per_shard"]
    if old.get("groups"):
        names += ["groups", "people"]  # members are chosen among all people
    for name in names:
        if old.get(name) != parameters[name]:
            raise FusionError(
                f"The folder {folder} holds people made with {name} = {old.get(name)!r}, not "
                f"{parameters[name]!r}: choose another folder or remove this one."
            )


def _jobs(folder: Path, parameters: dict[str, Any]) -> list[_Job]:
    """Return the shards of a set: those of its people, then those of its groups."""
    people, views, first_person = (parameters[n] for n in ("people", "views", "first_person"))
    how = views, parameters["seed"], parameters["size"], parameters["split"]
    each = parameters["samples_per_shard"] // views
    last = first_person + people
    jobs = [
        _Job(folder / f"{n:05d}.tar", range(start, min(start + each, last)), *how)
        for n, start in enumerate(range(first_person, last, each))
    ]
    everyone, last = range(first_person, last), first_person + parameters["groups"]
    for n, start in enumerate(range(first_person, last, SAMPLES_PER_SHARD)):
        numbers = range(start, min(start + SAMPLES_PER_SHARD, last))
        jobs.append(_Job(folder / f"groups-{n:05d}.tar", everyone, *how, numbers))
    return jobs


def _refuse_loss(folder: Path, held: Iterable[str], jobs: Iterable[_Job]) -> None:
    """Refuse to make a set smaller: it may have taken hours, and the number may be a typo."""
    more = set(held).difference(*(job.keys() for job in jobs))
    if more:
        raise FusionError(
            f"The folder {folder} holds {len(more)} picture(s) more than are asked for: ask for as "
            "many people and groups as it has, or choose another folder or remove this one."
        )


def render_dataset(
    out: Path | str,
    *,
    people: int,
    views: int,
    seed: int = 0,
    size: int = 128,
    first_person: int = 0,
    workers: int = 2,
    split: str = "train",
    groups: int = 0,
) -> Path:
    """Render people into webdataset shards, and resume where an earlier run stopped.

    A set may be made larger: shards that lack pictures are rendered again, the others stay.

    Args:
        out: Folder for `00000.tar`, ... and `manifest.json`, created if missing.
        people: Number of people.
        views: Number of pictures of each, 1 to 100; view 0 is the neutral, frontal reference.
        seed: Seed of the whole set.
        size: Height and width in pixels.
        first_person: Number of the first person. Sets that must not share people use ranges that
            do not overlap.
        workers: Number of processes.
        split: Name for the records; `train` leaves out held-out combinations.
        groups: Number of additional pictures that show two or three of these people. They are
            numbered from `first_person`, so sets that share no people share no arrangement either.

    Returns:
        Path of the manifest.

    Raises:
        FusionError: If a number is impossible, the folder cannot be written or holds another or a
            larger data set, or packages are missing.
    """
    from tqdm import tqdm

    _check(people, views, workers, groups)
    folder = _folder(out, SHARDS)
    made: dict[str, Any] = {"people": people, "views": views, "seed": seed, "size": size}
    each = max(1, SAMPLES_PER_SHARD // views) * views
    made |= {"first_person": first_person, "split": split, "samples_per_shard": each}
    parameters = _parameters(**made, groups=groups)
    jobs = former = _jobs(folder, parameters)
    if old := _recorded(folder):
        _same_data(folder, old, parameters)
        former = _jobs(folder, parameters | old)
    held = {shard: _held(shard) for shard in {job.path for job in (*jobs, *former)}}
    _refuse_loss(folder, (key for keys, _ in held.values() for key in keys), jobs)
    todo = [job for job in jobs if held[job.path] != (job.keys(), None)]
    total = people * views + groups
    with (
        locked(folder, inside=True),
        tqdm(total=total, unit="picture", desc=f"people ({split})") as bar,
    ):
        _write_manifest(folder, {**parameters, "complete": not todo})
        bar.update(total - sum(len(job) for job in todo))
        if todo:
            count = min(workers, len(todo))
            # Processes are spawned, since the rasteriser's threads must not be forked.
            with worker_pool(count, _start_worker, ProcessPoolExecutor) as pool:
                # On a new machine the first load fills anny's cache, so one process goes first.
                pool.submit(_load).result()
                for finished in as_completed([pool.submit(_write_shard, job) for job in todo]):
                    bar.update(finished.result())
    shards = [{"file": job.path.name, "samples": len(job)} for job in jobs]
    record = {**parameters, "complete": True, "samples": total, "shards": shards}
    return _write_manifest(folder, record)


INDEX_FIELDS = (
    "person",
    "view",
    "file",
    "caption",
    "expression",
    "style",
    "scene",
    "time",
    "role",
    "clothes",
    "headwear",
    "gender",
    "age",
    "hair",
    "beard",
    "glasses",
    "yaw",
    "pitch",
    "held_out",
)


def export_files(
    out: Path | str,
    *,
    people: int,
    views: int,
    seed: int = 0,
    size: int = 128,
    first_person: int = 0,
    split: str = "heldout",
) -> Path:
    """Render a small set of people as plain files with an index, as the repository carries it.

    Files are `{person:04d}_{view}.jpg`, `.txt`, `.json`, `.mask.png` and `.depth.png`, with people
    counted from `first_person`; `index.csv` lists them. The arguments are those of
    `render_dataset`.

    Returns:
        Path of `index.csv`.

    Raises:
        FusionError: As `render_dataset`.
    """
    from tqdm import tqdm

    _check(people, views)
    folder = _folder(out, FILES)

    def row(record: dict[str, Any]) -> dict[str, Any]:
        number = record["person"] - first_person
        row = {**record, "person": number, "file": f"{number:04d}_{record['view']}.jpg"}
        return {name: row[name] for name in INDEX_FIELDS}

    numbers = range(first_person, first_person + people)
    progress = tqdm(numbers, unit="person", desc=f"people ({split})")
    samples = (s for number in progress for s in make_samples(seed, number, views, size, split))
    made = _parameters(
        people=people, views=views, seed=seed, size=size, first_person=first_person, split=split
    )
    return _export(folder, samples, row, made)


def export_groups(
    out: Path | str,
    *,
    groups: int,
    people: int,
    seed: int = 0,
    size: int = 128,
    first_person: int = 0,
    split: str = "heldout",
) -> Path:
    """Render a small set of pictures of two or three people as plain files with an index.

    Files are `{group:04d}.jpg`, `.txt`, `.json`, `.mask.png` and `.depth.png`. `index.csv` lists
    them, with people counted from `first_person` as in `export_files`. The arguments are those of
    `render_dataset`; `groups` is the number of pictures.

    Returns:
        Path of `index.csv`.

    Raises:
        FusionError: As `render_dataset`.
    """
    from tqdm import tqdm

    if groups < 1:
        raise FusionError(f"The number of groups must be at least 1, not {groups}.")
    _check(people, groups=groups)
    folder = _folder(out, FILES)

    def row(record: dict[str, Any]) -> dict[str, Any]:
        number, members = record["group"] - first_person, record["members"]
        return {
            "group": number,
            "file": f"{number:04d}.jpg",
            "people": " ".join(str(person - first_person) for person in record["people"]),
            "caption": record["caption"],
            "expressions": " ".join(member["expression"] for member in members),
            "style": record["style"],
            "scene": record["scene"],
            "roles": " ".join(member["role"] for member in members),
        }

    everyone = range(first_person, first_person + people)
    numbers = range(first_person, first_person + groups)
    progress = tqdm(numbers, unit="picture", desc=f"groups ({split})")
    samples = (make_group(seed, number, everyone, size, split) for number in progress)
    made = _parameters(
        groups=groups, people=people, seed=seed, size=size, first_person=first_person, split=split
    )
    return _export(folder, samples, row, made)


def _export(
    folder: Path,
    samples: Iterable[Sample],
    row: Callable[[dict[str, Any]], dict[str, Any]],
    parameters: dict[str, Any],
) -> Path:
    """Write plain files, their index (a row from each record) and a manifest; return the index."""
    rows = []
    index, text = folder / "index.csv", io.StringIO()
    with locked(folder, inside=True):
        _write_manifest(folder, {**parameters, "complete": False})
        for sample in samples:
            rows.append(row(sample.record))
            stem = rows[-1]["file"].removesuffix(".jpg")
            for suffix, content in sample.files.items():
                write_bytes(folder / f"{stem}.{suffix}", content)
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(index, text.getvalue())
        _write_manifest(folder, {**parameters, "complete": True, "samples": len(rows)})
    return index
