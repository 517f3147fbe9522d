"""Write people as a data set: webdataset shards (img2dataset's layout) or plain files.

A shard `00000.tar` holds, for each picture, `{key}.jpg`, `{key}.txt` (the caption), `{key}.json`
(all attributes) and `{key}.mask.png` (the face, 255). The key is the person's number times 100
plus the view's, in nine digits. Every picture depends on (seed, person, view) alone, so the number
of worker processes changes nothing, and a shard that is there already is skipped.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.people.caption import attributes, describe
from fusionlib.people.identity import sample_person
from fusionlib.people.view import sample_view

SAMPLES_PER_SHARD = 400
WORDINGS = 4  # captions of each picture; the first is also in the .txt file
FORMAT = 2  # raised when the same seed would give other pictures


@dataclass(frozen=True)
class _Job:
    """One shard: which people, how, and where to."""

    path: Path
    people: range
    views: int
    seed: int
    size: int
    split: str


@dataclass(frozen=True)
class Sample:
    """One finished picture: file name suffix to content, under a key."""

    key: str
    record: dict[str, Any]
    files: dict[str, bytes]


def _encode(array: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
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
    from fusionlib.people.render import render_views

    person = sample_person(seed, person_index)
    plan = [sample_view(seed, person_index, v, split=split) for v in range(views)]
    for view, picture in zip(plan, render_views(person, plan, size), strict=True):
        key = f"{person_index * 100 + view.index:09d}"
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
            },
        )


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
    from fusionlib.people.head import load_head_model

    load_head_model()


def _write_shard(job: _Job) -> int:
    """Render one shard under a temporary name, then give it its own."""
    temporary = job.path.with_name(f".{job.path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with tarfile.open(temporary, "w") as archive:
            for index in job.people:
                for sample in make_samples(job.seed, index, job.views, job.size, job.split):
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


def _check(people: int, views: int, workers: int) -> None:
    if people < 1:
        raise FusionError(f"The number of people must be at least 1, not {people}.")
    if not 1 <= views <= 100:
        raise FusionError(f"The number of views must be from 1 to 100, not {views}.")
    if workers < 1:
        raise FusionError(f"The number of workers must be at least 1, not {workers}.")


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


def _same_data(folder: Path, parameters: dict[str, Any]) -> None:
    """Refuse to mix two data sets: what a finished shard was made with must be the same."""
    path = folder / "manifest.json"
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FusionError(f"Cannot read {path}: remove it, or choose another folder.") from error
    for name in ("format", "views", "seed", "size", "first_person", "split", "samples_per_shard"):
        if old.get(name) != parameters[name]:
            raise FusionError(
                f"The folder {folder} holds people made with {name} = {old.get(name)!r}, not "
                f"{parameters[name]!r}: choose another folder or remove this one."
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
) -> Path:
    """Render people into webdataset shards; resumes where an earlier run stopped.

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

    Returns:
        Path of the manifest.

    Raises:
        FusionError: For impossible numbers, an unwritable folder, a folder that holds another
            data set, or missing packages.
    """
    from tqdm import tqdm

    _check(people, views, workers)
    _require_renderer()
    folder = _folder(out)
    each = max(1, SAMPLES_PER_SHARD // views)
    last = first_person + people
    jobs = [
        _Job(
            folder / f"{n:05d}.tar", range(start, min(start + each, last)), views, seed, size, split
        )
        for n, start in enumerate(range(first_person, last, each))
    ]
    parameters = _parameters(
        people=people,
        views=views,
        seed=seed,
        size=size,
        first_person=first_person,
        split=split,
        samples_per_shard=each * views,
    )
    _same_data(folder, parameters)
    manifest = folder / "manifest.json"
    done = [job for job in jobs if job.path.exists()]
    todo = [job for job in jobs if not job.path.exists()]
    _write_text(manifest, json.dumps({**parameters, "complete": not todo}, indent=2) + "\n")
    with tqdm(total=people * views, unit="picture", desc=f"people ({split})") as bar:
        bar.update(sum(len(job.people) for job in done) * views)
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
        "samples": people * views,
        "shards": [{"file": job.path.name, "samples": len(job.people) * views} for job in jobs],
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

    Files are `{person:04d}_{view}.jpg`, `.txt`, `.json` and `.mask.png`, the person counted from
    `first_person`; `index.csv` lists them.

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
    index = folder / "index.csv"
    with index.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, INDEX_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    parameters = _parameters(
        people=people, views=views, seed=seed, size=size, first_person=first_person, split=split
    )
    record = {**parameters, "complete": True, "samples": len(rows)}
    _write_text(folder / "manifest.json", json.dumps(record, indent=2) + "\n")
    return index


def person_record(seed: int, index: int) -> dict[str, Any]:
    """Everything that makes up a person, as plain values for JSON."""
    return asdict(sample_person(seed, index))
