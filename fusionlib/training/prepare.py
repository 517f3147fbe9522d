"""From downloaded pictures to a training set of those that show one clear face.

LAION-Face lists pictures in which a detector found some face: crowds, statues, faces of ten pixels.
Selected pictures are copied byte for byte into new shards of the same layout, with the faces
written into each sample's JSON file, so that training need not detect them again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.inputs.photos import find_faces
from fusionlib.support.files import (
    Made,
    check_apart,
    check_folder,
    locked,
    replacing,
    write_text,
)
from fusionlib.support.paths import user_path
from fusionlib.support.signals import Stopped, received
from fusionlib.support.workers import worker_pool
from fusionlib.training.crops import face_record, recorded_face
from fusionlib.training.shards import PICTURES, Sample, find_shards, index_samples, scan_shard

logger = logging.getLogger(__name__)

PLAIN = 1000
"""Number of pictures from a folder of plain files that become one shard."""


MADE = Made(r"\d{5,}(\.tar|_stats\.json)|selection\.json", {"selection.json": '"min_face"'})
"""What a folder of selected pictures holds."""


@dataclass(frozen=True)
class Selection:
    """Which pictures are selected. The paper does not say; the numbers are ours.

    Attributes:
        max_faces: Largest number of faces; with several people it is unclear who the caption
            describes.
        min_face: Smallest side of the (largest) face in pixels; a reference is cut from it.
        min_side: Smallest shorter side of the picture in pixels.
        min_score: Smallest confidence of the detector; clear frontal faces have more than 1.
    """

    max_faces: int = 1
    min_face: int = 128
    min_side: int = 400
    min_score: float = 0.5


def select(sample: Sample, selection: Selection) -> tuple[dict[str, Any] | None, str]:
    """Decide on one picture.

    Returns:
        The entries for its JSON file (None if it is not selected), and the reason.
    """
    if not any(caption.strip() for caption in sample.captions):
        return None, sample.problem or "empty caption"
    try:
        image = sample.picture()
    except FusionError:
        return None, "unreadable"
    if min(image.size) < selection.min_side:
        return None, "picture too small"
    faces = find_faces(image)
    if not faces:
        return None, "no face"
    if len(faces) > selection.max_faces:
        return None, "too many faces"
    largest = max(faces, key=lambda face: face.side)
    if largest.side < selection.min_face:
        return None, "face too small"
    if largest.score < selection.min_score:
        return None, "face unclear"
    found = {
        "width": image.width,
        "height": image.height,
        "faces": [face_record(face) for face in faces],
    }
    return found, "kept"


def prepare_shards(
    source: str | Path,
    out: Path,
    *,
    pairs: int | None = None,
    selection: Selection | None = None,
    workers: int = 2,
) -> dict[str, int]:
    """Filter a downloaded set into a new one, resuming where an earlier run stopped.

    Shards are taken in order, each gives one new shard, and the last one is that which completes
    the number of pairs: the result does not depend on the number of workers.

    Args:
        source: Folder of shards or plain files, or a pattern of shards.
        out: Folder of the new set.
        pairs: Approximate number of pairs to select; None takes all.
        selection: Rules of the selection.
        workers: Number of processes. In each, dlib handles about two to five pictures a second.

    Returns:
        Counts of the selected pictures (``kept``), and of the others by reason.

    Raises:
        FusionError: A shard is missing, or ``out`` was made by other rules, is the source, holds
            files of somebody else's, or is written by another process.
    """
    selection, source = selection or Selection(), user_path(source)
    jobs, passed_over = _jobs(source)
    if not jobs:
        raise FusionError(f"there is no picture in {source}: give a folder of shards or of files")
    _check_out(out, source, jobs)
    finished = {path.name for path in out.glob("*_stats.json")}
    rules = out / "selection.json"
    text = json.dumps({"source": str(source)} | asdict(selection), indent=2) + "\n"
    if rules.is_file() and rules.read_text(encoding="utf-8") != text:
        raise FusionError(
            f"{out} was made from another source or by other rules (see {rules}): choose another "
            "folder, or remove this one"
        )
    counts = Counter(passed_over)
    pooled: AbstractContextManager[Executor] = ThreadPoolExecutor(1)
    if workers > 1:
        pooled = worker_pool(min(workers, len(jobs)))  # spawned: dlib does not like to be forked
    bar = tqdm(total=pairs, desc="kept", unit="pair")
    with locked(out, inside=True), bar:
        write_text(rules, text)
        with pooled as pool:
            waiting: list[Future[dict[str, int]]] = []
            names = enumerate(jobs)

            def submit(count: int) -> list[Future[dict[str, int]]]:
                return [
                    pool.submit(_prepare, job, out / f"{number:05d}.tar", selection)
                    for number, job in islice(names, count)
                ]

            waiting += submit(2 * workers)
            while waiting and (pairs is None or counts["kept"] < pairs):
                found = waiting.pop(0).result()
                counts.update(found)
                bar.update(found.get("kept", 0))
                waiting += submit(1)
            for future in waiting:
                future.cancel()
            taken = len(jobs) - len(waiting) - sum(1 for _ in names)
        extra = [f"{number:05d}" for number in range(taken, len(jobs))]
        for stem in extra:  # begun by a worker, not needed any more
            if f"{stem}_stats.json" not in finished:
                (out / f"{stem}.tar").unlink(missing_ok=True)
                (out / f"{stem}_stats.json").unlink(missing_ok=True)
    if more := [stem for stem in extra if (out / f"{stem}.tar").is_file()]:
        logger.warning(
            "%s keeps %d shards of an earlier run, more than the %s pairs that are asked for.",
            out, len(more), pairs,
        )  # fmt: skip
    return dict(counts)


def _check_out(out: Path, source: str | Path, jobs: Sequence[Path | list[Sample]]) -> None:
    """Refuse to write over a source, or over archives of somebody else's."""
    check_apart(out, source)  # a pattern is no folder: its shards follow
    for job in jobs:
        if isinstance(job, Path):
            check_apart(out, job.parent, inside=False)
    check_folder(out, MADE, whole=False)
    for shard in sorted(out.glob("*.tar")):
        if not shard.with_name(f"{shard.stem}_stats.json").is_file():
            raise FusionError(
                f"The output {out} holds {shard.name} without its statistics, which this command "
                "writes first: give a new folder, or move the file away."
            )


def _jobs(source: str | Path) -> tuple[Sequence[Path | list[Sample]], Counter[str]]:
    """The inputs of one new shard each, shards or parts of a folder of plain files.

    The second value counts the reasons for which plain files are in none of them.
    """
    shards = find_shards(source)
    if shards:
        return shards, Counter()
    found = index_samples(source)
    samples = found.samples
    jobs = [samples[start : start + PLAIN] for start in range(0, len(samples), PLAIN)]
    return jobs, Counter(found.skipped.values())


def _prepare(job: Path | list[Sample], target: Path, selection: Selection) -> dict[str, int]:
    """Make one shard, which is finished when it and its statistics are there."""
    stats = target.with_name(f"{target.stem}_stats.json")
    if stats.is_file() and target.is_file():
        return json.loads(stats.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    samples, damage, others = scan_shard(job) if isinstance(job, Path) else (job, None, {})
    counts["damaged shards"] += damage is not None
    counts.update(others.values())
    with replacing(target) as partial:
        with webdataset.TarWriter(str(partial), encoder=False, mtime=0) as archive:
            for number, sample in enumerate(samples):
                if stop := received():
                    raise Stopped(stop)
                facts, reason = select(sample, selection)
                counts[reason] += 1
                if facts is not None:
                    archive.write(_selected(sample, f"{target.stem}{number:05d}", facts))
        # First, so that a shard without statistics is known to be somebody else's.
        write_text(stats, json.dumps(counts))
    return dict(counts)


def _selected(sample: Sample, key: str, facts: dict[str, Any]) -> dict[str, str | bytes]:
    """The files of a sample in its new shard."""
    extension = next(e for e in PICTURES if e in sample.files)
    known = {"captions": sample.captions, "person": sample.person, "style": sample.style}
    record = known | facts | {"source": sample.place}
    files: dict[str, str | bytes] = {
        "__key__": key,
        extension: sample.content(extension),
        "txt": sample.captions[0].encode(),
        "json": json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace"),
    }
    if "mask.png" in sample.files:
        files["mask.png"] = sample.content("mask.png")
    return files


def statistics(shards: str | Path) -> dict[str, str]:
    """The contents of a training set, as rows of a table.

    Args:
        shards: Folder of shards or plain files, or a pattern of shards.
    """
    found = index_samples(shards)
    samples = found.samples
    people = Counter(sample.person for sample in samples if sample.person is not None)
    alone = [sample for sample in samples if sample.person is None or people[sample.person] < 2]
    faces, damaged = [], 0
    for sample in samples:
        try:
            faces += [recorded_face(sample)] if sample.faces else []
        except FusionError:
            damaged += 1
    words = [len(caption.split()) for sample in samples for caption in sample.captions]
    rows = {
        "samples": f"{len(samples):,}",
        "skipped": f"{len(found.skipped):,}",
        **{f"  {why}": f"{n:,}" for why, n in Counter(found.skipped.values()).most_common()},
        "used, with texts that are damaged": f"{len(found.noted):,}",
        "damaged shards": f"{len(found.damaged):,}",
        "people named": f"{len(people):,}",
        "pictures that are their own reference": f"{len(alone):,}",
        "words in a caption": _quantiles(words),
        "with a recorded face": f"{len(faces):,}",
        **({"with a damaged record of faces": f"{damaged:,}"} if damaged else {}),
    }
    if faces:
        rows["side of the face, pixels"] = _quantiles([face.side for face in faces])
        rows["confidence of the detector"] = _quantiles([face.score for face in faces], 2)
        rows["tilt, degrees"] = _quantiles([face.tilt for face in faces], 1)
    return rows


def _quantiles(values: list[Any], digits: int = 0) -> str:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:.{digits}f} (90% from {low:.{digits}f} to {high:.{digits}f})"
