"""Write people as a data set: webdataset shards (img2dataset's layout) or plain files.

A shard `00000.tar` holds, for each picture, `{key}.jpg`, `{key}.txt` (the caption), `{key}.json`
(all attributes), `{key}.mask.png` (the face, 255) and `{key}.depth.png` (near is bright). The key
is the person's number times 100 plus the view's, in nine digits. Every picture depends on (seed,
person, view) alone, so the number of worker processes changes nothing, and a shard that holds what
it should already is skipped.

Pictures of several people lie in shards of their own, `groups-00000.tar`, under the keys
`group000000000` and so on. Their JSON has `people` in place of `person`, from left to right, and
their mask is a palette image: 0 is nobody, 1 the first of them, 2 the second, 3 the third. All of
its colours but the first are brighter than half, so that as grey levels it is the mask of any face,
and `fusionlib.masks_from_colors(mask, [1, 2])` gives the identity masks of equation 7.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from companion.people.appearance import sample_person
from companion.people.caption import attributes, describe
from companion.people.groups import (
    choose_members,
    describe_group,
    group_attributes,
    render_group,
    sample_group,
)
from companion.people.render import inverse_depth
from companion.people.view import sample_view
from fusionlib.errors import FusionError

SAMPLES_PER_SHARD = 400
WORDINGS = 4  # captions of each picture; the first is also in the .txt file
PALETTE = (0, 0, 0, 255, 140, 120, 140, 230, 140, 150, 180, 255)  # of a group's mask
FORMAT = 2  # raised when the same seed would give other pictures


@dataclass(frozen=True)
class _Job:
    """One shard: which people or which groups of them, how, and where to."""

    path: Path
    people: range
    views: int
    seed: int
    size: int
    split: str
    groups: range = range(0)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.keys())

    def keys(self) -> list[str]:
        """The keys of its pictures, in order."""
        if self.groups:
            return [_group_key(index) for index in self.groups]
        return [_key(person, view) for person in self.people for view in range(self.views)]

    def samples(self) -> Iterator[Sample]:
        """Its pictures, as they are rendered."""
        if self.groups:
            for index in self.groups:
                yield make_group(self.seed, index, self.people, self.size, self.split)
        else:
            for person in self.people:
                yield from make_samples(self.seed, person, self.views, self.size, self.split)


@dataclass(frozen=True)
class Sample:
    """One finished picture: file name suffix to content, under a key."""

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


def make_samples(
    seed: int, person_index: int, views: int, size: int, split: str
) -> Iterator[Sample]:
    """Render all views of one person, in order.

    Args:
        seed: Seed of the data set.
        person_index: Number of the person.
        views: Pictures of that person, 1 to 100; the first is the reference.
        size: Height and width in pixels.
        split: Name written into the record; `train` leaves held-out combinations out.
    """
    from companion.people.render import render_views

    person = sample_person(seed, person_index)
    plan = [sample_view(seed, person_index, v, split=split) for v in range(views)]
    for view, picture in zip(plan, render_views(person, plan, size), strict=True):
        key = _key(person_index, view.index)
        captions = [describe(person, view, wording) for wording in range(WORDINGS)]
        caption = captions[0]
        record = {
            "key": key,
            "person": person_index,
            "view": view.index,
            "seed": seed,
            "split": split,
            "width": size,
            "height": size,
            "caption": caption,
            "captions": captions,
            **attributes(person, view),
        }
        yield Sample(
            key,
            record,
            {
                "jpg": _encode(picture.image, "JPEG", quality=95, subsampling=0),
                "txt": caption.encode(),
                "json": json.dumps(record, ensure_ascii=False).encode(),
                "mask.png": _encode(picture.mask, "PNG"),
                "depth.png": _encode(inverse_depth(picture.depth), "PNG"),
            },
        )


def make_group(seed: int, index: int, people: range, size: int, split: str) -> Sample:
    """Render one picture of several people.

    Args:
        seed: Seed of the data set.
        index: Number of the group.
        people: Numbers of the people of the set, of whom two or three are in the picture.
        size: Height and width in pixels.
        split: Name written into the record; `train` leaves held-out combinations out.
    """
    group = sample_group(seed, index, choose_members(seed, index, people), split=split)
    picture = render_group(group, size)
    labels = np.zeros((size, size), np.uint8)
    for number, mask in enumerate(picture.masks, start=1):
        labels[mask] = number
    key = _group_key(index)
    captions = [describe_group(group, wording) for wording in range(WORDINGS)]
    record = {
        "key": key,
        "group": index,
        "seed": seed,
        "split": split,
        "width": size,
        "height": size,
        "caption": captions[0],
        "captions": captions,
        **group_attributes(group),
    }
    files = {
        "jpg": _encode(picture.image, "JPEG", quality=95, subsampling=0),
        "txt": captions[0].encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
        "mask.png": _encode(labels, "PNG", palette=PALETTE),
        "depth.png": _encode(inverse_depth(picture.depth), "PNG"),
    }
    return Sample(key, record, files)


def _start_worker() -> None:
    # One process for each core: the numeric libraries and the rasteriser take one thread each.
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
    """The keys of the pictures in a shard, none where it is not there, and how it is damaged."""
    from fusionlib.training.shards import scan_shard

    if not shard.exists():
        return [], None
    samples, damage = scan_shard(shard)
    return [sample.key for sample in samples], damage


def _write_shard(job: _Job) -> int:
    """Render one shard under a temporary name, then give it its own."""
    temporary = job.path.with_name(f".{job.path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with tarfile.open(temporary, "w") as archive:
            for sample in job.samples():
                for suffix, content in sample.files.items():
                    info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                count += 1
        os.replace(temporary, job.path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _check(people: int, views: int, workers: int, groups: int = 0) -> None:
    if people < 1:
        raise FusionError(f"The number of people must be at least 1, not {people}.")
    if not 1 <= views <= 100:
        raise FusionError(f"The number of views must be from 1 to 100, not {views}.")
    if workers < 1:
        raise FusionError(f"The number of workers must be at least 1, not {workers}.")
    if groups < 0:
        raise FusionError(f"The number of groups must be at least 0, not {groups}.")
    if groups:
        choose_members(0, 0, range(people))  # complains of too few people


def _require_renderer() -> None:
    import importlib.util

    for package in ("anny", "pyvista"):
        if importlib.util.find_spec(package) is None:
            raise FusionError(
                f"Rendering people needs the package '{package}', which is not installed: "
                "install the extra with pip install 'fusionlib[people]'."
            )


def _folder(out: Path | str) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FusionError(f"Cannot create the folder {folder}: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise FusionError(f"Cannot write into the folder {folder}: choose another one.")
    return folder


def _parameters(**values: Any) -> dict[str, Any]:
    versions = {name: _version(name) for name in ("anny", "pyvista", "vtk", "numpy", "pillow")}
    return {"format": FORMAT, **values, "versions": versions}


def _recorded(folder: Path) -> dict[str, Any]:
    """The manifest of the set that a folder holds, finished or not; empty where there is none."""
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
    """Refuse to mix two data sets: what a finished shard was made with must be the same."""
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
    """The shards of a set: those of its people, then those of its groups."""
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
    """Refuse to make a set smaller: it may have taken hours, and the number be a slip."""
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
    """Render people into webdataset shards; resumes where an earlier run stopped.

    A set may be made larger: the shards that lack pictures are rendered anew, and the others kept.

    Args:
        out: Folder for `00000.tar`, ... and `manifest.json`; made if missing.
        people: How many people.
        views: Pictures of each, 1 to 100; view 0 is the neutral, frontal reference.
        seed: Seed of the whole set.
        size: Height and width in pixels.
        first_person: Number of the first person; sets that must not share people use
            ranges that do not overlap.
        workers: Processes.
        split: Name written into each record; `train` leaves held-out combinations out.
        groups: How many pictures of two or three of these people there are beside those of one.
            They are numbered from `first_person` on, so that sets without people in common have
            no arrangement in common either.

    Returns:
        Path of the manifest.

    Raises:
        FusionError: For impossible numbers, an unwritable folder, a folder that holds another or a
            larger data set, or missing packages.
    """
    from tqdm import tqdm

    _check(people, views, workers, groups)
    _require_renderer()
    folder = _folder(out)
    parameters = _parameters(
        people=people,
        views=views,
        seed=seed,
        size=size,
        first_person=first_person,
        split=split,
        samples_per_shard=max(1, SAMPLES_PER_SHARD // views) * views,
        groups=groups,
    )
    jobs = former = _jobs(folder, parameters)
    if old := _recorded(folder):
        _same_data(folder, old, parameters)
        former = _jobs(folder, parameters | old)
    held = {shard: _held(shard) for shard in {job.path for job in (*jobs, *former)}}
    _refuse_loss(folder, (key for keys, _ in held.values() for key in keys), jobs)
    manifest = folder / "manifest.json"
    todo = [job for job in jobs if held[job.path] != (job.keys(), None)]
    _write_text(manifest, json.dumps({**parameters, "complete": not todo}, indent=2) + "\n")
    total = people * views + groups
    with tqdm(total=total, unit="picture", desc=f"people ({split})") as bar:
        bar.update(total - sum(len(job) for job in todo))
        if todo:
            # The rasteriser's threads must not be forked.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(
                min(workers, len(todo)), mp_context=context, initializer=_start_worker
            ) as pool:
                # On a new machine the first load fills the package's cache: one process at a time.
                pool.submit(_load).result()
                for finished in as_completed([pool.submit(_write_shard, job) for job in todo]):
                    bar.update(finished.result())
    record = {
        **parameters,
        "complete": True,
        "samples": total,
        "shards": [{"file": job.path.name, "samples": len(job)} for job in jobs],
    }
    _write_text(manifest, json.dumps(record, indent=2) + "\n")
    return manifest


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
    """Render a small set of people as plain files, with an index: what the repository carries.

    Files are `{person:04d}_{view}.jpg`, `.txt`, `.json`, `.mask.png` and `.depth.png`, the person
    counted from `first_person`; `index.csv` lists them.

    Returns:
        Path of `index.csv`.

    Raises:
        FusionError: As `render_dataset`.
    """
    from tqdm import tqdm

    _check(people, views, 1)
    _require_renderer()
    folder = _folder(out)
    rows = []
    for number in tqdm(range(people), unit="person", desc=f"people ({split})"):
        for sample in make_samples(seed, first_person + number, views, size, split):
            stem = f"{number:04d}_{sample.record['view']}"
            for suffix, content in sample.files.items():
                (folder / f"{stem}.{suffix}").write_bytes(content)
            row = {**sample.record, "person": number, "file": f"{stem}.jpg"}
            rows.append({name: row[name] for name in INDEX_FIELDS})
    return _finish(
        folder,
        rows,
        people=people,
        views=views,
        seed=seed,
        size=size,
        first_person=first_person,
        split=split,
    )


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
    """Render a small set of pictures of two or three people as plain files, with an index.

    Files are `{group:04d}.jpg`, `.txt`, `.json`, `.mask.png` and `.depth.png`; `index.csv` lists
    them, with their people counted from `first_person`, as `export_files` counts them.

    Args:
        out: Folder, made if missing.
        groups: How many pictures.
        people: How many people there are to choose from, at least three.
        seed: Seed of the data set.
        size: Height and width in pixels.
        first_person: Number of the first person.
        split: Name written into each record.

    Returns:
        Path of `index.csv`.

    Raises:
        FusionError: As `render_dataset`.
    """
    from tqdm import tqdm

    _check(people, 1, 1, groups)
    if groups < 1:
        raise FusionError(f"The number of groups must be at least 1, not {groups}.")
    _require_renderer()
    folder = _folder(out)
    everyone = range(first_person, first_person + people)
    rows = []
    for number in tqdm(range(groups), unit="picture", desc=f"groups ({split})"):
        sample = make_group(seed, first_person + number, everyone, size, split)
        stem, record = f"{number:04d}", sample.record
        for suffix, content in sample.files.items():
            (folder / f"{stem}.{suffix}").write_bytes(content)
        rows.append(
            {
                "group": number,
                "file": f"{stem}.jpg",
                "people": " ".join(str(person - first_person) for person in record["people"]),
                "caption": record["caption"],
                "expressions": " ".join(member["expression"] for member in record["members"]),
                "style": record["style"],
                "scene": record["scene"],
                "roles": " ".join(member["role"] for member in record["members"]),
            }
        )
    return _finish(
        folder,
        rows,
        groups=groups,
        people=people,
        seed=seed,
        size=size,
        first_person=first_person,
        split=split,
    )


def _finish(folder: Path, rows: list[dict[str, Any]], **values: Any) -> Path:
    """Write the index and the manifest of a set of plain files; returns the index."""
    index = folder / "index.csv"
    with index.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    record = {**_parameters(**values), "complete": True, "samples": len(rows)}
    _write_text(folder / "manifest.json", json.dumps(record, indent=2) + "\n")
    return index


def person_record(seed: int, index: int) -> dict[str, Any]:
    """Everything that makes up a person, as plain values for JSON."""
    return asdict(sample_person(seed, index))
