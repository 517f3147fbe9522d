"""Readings: what instruments read off single pictures, each read once and kept.

A recogniser's embedding, a CLIP embedding, a classifier's probabilities: each depends on one
picture and on one instrument alone. So each is kept under the hash of the picture's file and the
fingerprint of the instrument, and however often a picture is compared, it is looked at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from companion.append_table import AppendTable
from companion.faces.aligned import FaceFinder, find_face
from companion.faces.recognisers import Instrument
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.support.provenance import sha256_file

SCHEMA = pa.schema({"image": pa.string(), "value": pa.list_(pa.float32())})


@dataclass(frozen=True)
class Readings:
    """What was read off pictures, in their order.

    Attributes:
        values: For each instrument an array ``(pictures, dimension)``; a row of NaN where there was
            nothing to read.
        faces: Array ``(pictures,)``: whether a face was found.
        eyes: Array ``(pictures, 2, 2)``: x and y of the eye on the left and of that on the right,
            NaN where there is no face.
        found_by: For each picture the detector that found the face, or None.
        unreadable: For each picture the problem with its file, or None.
    """

    values: Mapping[str, NDArray[np.float32]]
    faces: NDArray[np.bool_]
    eyes: NDArray[np.float32]
    found_by: list[str | None]
    unreadable: list[str | None]


def observe(
    paths: Sequence[Path],
    instruments: Mapping[str, Instrument] | None = None,
    *,
    detector: str = "dlib",
    cache: str | Path | None = None,
    strict: bool = False,
    progress: bool | None = None,
) -> Readings:
    """Read instruments off pictures; detection is done once for each picture, for all of them.

    Args:
        paths: Image files.
        instruments: Instruments by name; whether there is a face is always read.
        detector: Name of the detector, or several joined by ``+``: see
            `companion.faces.aligned.align_faces`.
        cache: Folder in which everything that was read is kept, also if the process is killed;
            several processes may share it.
        strict: Whether a file that is no image is an error, or noted and passed over.
        progress: Whether to show a bar; by default where a terminal can.

    Raises:
        FusionError: `strict`, and a file cannot be read; or the detector is not there.
    """
    finder = FaceFinder(detector)
    instruments = instruments or {}
    everything: list[Instrument] = [finder, *instruments.values()]
    problems: dict[str, str] = {}  # by the hash, as everything else
    hashes: list[str] = []
    for path in paths:
        try:
            hashes.append(sha256_file(path))
        except OSError as error:
            hashes.append(f"no file {path}")
            problems[hashes[-1]] = f"{path} cannot be read ({error.strerror})."

    tables = [_table(instrument, finder, cache) for instrument in everything]
    known = [_known(table, hashes) for table in tables]
    todo = {
        digest: path
        for digest, path in zip(hashes, paths, strict=True)
        if digest not in problems and any(digest not in values for values in known)
    }
    with ExitStack() as stack:
        for table in tables:
            if table is not None:
                stack.enter_context(table)
        disable = None if progress is None else not progress
        for digest, path in tqdm(todo.items(), desc="measuring", unit="image", disable=disable):
            try:
                image = load_image(path)
            except FusionError as error:
                problems[digest] = str(error)
                continue
            new = [digest not in values for values in known]
            look = any(n and one.needs_face for n, one in zip(new, everything, strict=True))
            face = find_face(image, detector) if look else None
            for instrument, table, values, missing in zip(
                everything, tables, known, new, strict=True
            ):
                if missing:
                    value = instrument.read(image, face)
                    values[digest] = value
                    if table is not None:
                        table.append({"image": digest, "value": value})

    # Files of equal content, such as empty ones, have a problem in common, and are named each.
    unreadable = [
        problems[digest].replace(str(todo.get(digest, path)), str(path))
        if digest in problems
        else None
        for digest, path in zip(hashes, paths, strict=True)
    ]
    if strict and problems:
        raise FusionError(next(iter(problems.values())))
    found, *stacked = (
        _stack(values, hashes, instrument.dimension)
        for instrument, values in zip(everything, known, strict=True)
    )
    faces = np.array([known[0].get(digest) is not None for digest in hashes], dtype=bool)
    eyes = found[:, :4].reshape(-1, 2, 2)
    found_by = [
        finder.detectors[int(row[4])] if face else None
        for row, face in zip(found, faces, strict=True)
    ]
    by_name = dict(zip(instruments, stacked, strict=True))
    return Readings(by_name, faces, eyes, found_by, unreadable)


def _table(
    instrument: Instrument, finder: FaceFinder, cache: str | Path | None
) -> AppendTable | None:
    if cache is None:
        return None
    what = f"{instrument.name} {instrument.fingerprint}"
    if instrument.needs_face:
        what += f" {finder.fingerprint}"
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "_", instrument.name)
    return AppendTable(Path(cache) / f"{name}-{digest}", SCHEMA)


def _known(
    table: AppendTable | None, hashes: Sequence[str]
) -> dict[str, NDArray[np.float32] | None]:
    if table is None:
        return {}
    rows = table.read()
    rows = rows[rows["image"].isin(set(hashes))]
    return dict(zip(rows["image"], rows["value"], strict=True))


def _stack(
    values: Mapping[str, NDArray[np.float32] | None], hashes: Sequence[str], dimension: int
) -> NDArray[np.float32]:
    stacked = np.full((len(hashes), dimension), np.nan, dtype=np.float32)
    for row, digest in zip(stacked, hashes, strict=True):
        value = values.get(digest)
        if value is not None:
            row[:] = value
    return stacked
