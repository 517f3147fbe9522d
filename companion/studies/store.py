"""The store: where the pictures of studies land, named by what they were made from.

    store/images/3f/3f2a....png         a picture; its name is the hash of its ingredients,
                                        which it holds as metadata
    store/index/*.parquet               one row for each picture: when, where, in what time
    store/left_out/*.parquet            one row for each picture that cannot be made
    store/studies/table1/cells.parquet  a study's cells, and the key of each one's picture
    store/studies/table1/manifest.json  how it was declared, with which weights, versions, commit

Nothing in it is ever changed: pictures and rows are only added, each in one step. The pictures are
the truth and the index follows them: what a killed process made and did not list is listed by the
next run. Only a picture that something else cut short, such as a full disk under a copy of the
store, is made again by the next run, and listed once more.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from companion.append_table import AppendTable
from fusionlib.errors import FusionError
from fusionlib.inputs.images import save_png
from fusionlib.support.files import check_writable, write_atomically, write_text
from fusionlib.support.provenance import git_commit, sha256_file

PNG_END = b"IEND\xaeB`\x82"
"""The last chunk of every PNG, with its checksum."""

INDEX = pa.schema(
    {
        "key": pa.string(),
        "sha256": pa.string(),  # of the file
        "bytes": pa.int64(),
        "created": pa.timestamp("ms", tz="UTC"),
        "seconds": pa.float64(),  # null where the process was killed before it could list it
        "worker": pa.string(),
        "commit": pa.string(),
    }
)

LEFT_OUT = pa.schema(
    {
        "key": pa.string(),
        "reason": pa.string(),
        "created": pa.timestamp("ms", tz="UTC"),
    }
)

CELLS = pa.schema(
    {
        "method": pa.string(),
        "person": pa.string(),
        "prompt": pa.string(),
        "seed": pa.int64(),
        "noise_seed": pa.int64(),
        "key": pa.string(),
    }
)


STUDY = {"manifest.json": '"study"', "cells.parquet": "noise_seed"}
"""Files of a study, and how each is known."""


class Store:
    """A folder of pictures; several studies, processes and machines may share it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._index = AppendTable(self.root / "index", INDEX)
        self._left_out = AppendTable(self.root / "left_out", LEFT_OUT)
        self._commit: str | None = None

    def path(self, key: str) -> Path:
        """Where a picture lies, whether or not it is there."""
        return self.root / "images" / key[:2] / f"{key}.png"

    def keys(self) -> set[str]:
        """Keys of all pictures that are there: a look at the folders' lists, no file is opened."""
        try:
            folders = [entry.path for entry in os.scandir(self.root / "images") if entry.is_dir()]
        except FileNotFoundError:
            return set()
        return {
            entry.name.removesuffix(".png")
            for folder in folders
            for entry in os.scandir(folder)
            if entry.name.endswith(".png") and not entry.name.startswith(".")
        }

    def whole(self, key: str) -> bool:
        """Whether a picture is there to its end: its last bytes are read, and nothing is decoded.

        A picture with other damage passes for whole.
        """
        try:
            with self.path(key).open("rb") as file:
                file.seek(-len(PNG_END), os.SEEK_END)
                return file.read() == PNG_END
        except OSError:  # it is shorter than that, or not there
            return False

    def index(self) -> pd.DataFrame:
        """One row for each listed picture: the columns of `INDEX`."""
        return self._index.read()

    @contextmanager
    def writing(self) -> Iterator[Store]:
        """While pictures are added; at the end the last ones are listed."""
        self._commit = git_commit()
        with self._index, self._left_out:
            yield self

    def add(
        self, key: str, image: Image.Image, ingredients: Mapping[str, Any], seconds: float
    ) -> None:
        """Write a picture and list it.

        Raises:
            FusionError: The store cannot be written.
        """
        save_png(image, self.path(key), dict(ingredients))
        self._list(key, datetime.now(UTC), seconds)

    def leave_out(self, key: str, reason: str) -> None:
        """Note that a picture cannot be made of its ingredients, so that it is not tried again."""
        self._left_out.append({"key": key, "reason": reason, "created": datetime.now(UTC)})

    def left_out(self) -> dict[str, str]:
        """Why each picture that cannot be made cannot, by its key.

        A machine that finds a face where another machine's detector found none makes the picture
        after all. To try all of them again, delete the folder ``left_out``.
        """
        noted = self._left_out.read(["reason"])
        reasons = dict(zip(noted["key"], noted["reason"], strict=True))
        there = self.keys() if reasons else set()
        return {key: reason for key, reason in reasons.items() if key not in there}

    def adopt(self, keys: Iterable[str]) -> None:
        """List pictures that are there and not in the index, as after a kill."""
        missing = set(keys)
        if missing:
            missing -= set(self._index.read(columns=[])["key"])
        for key in sorted(missing):
            written = datetime.fromtimestamp(self.path(key).stat().st_mtime, UTC)
            self._list(key, written, None)

    def _list(self, key: str, created: datetime, seconds: float | None) -> None:
        path = self.path(key)
        self._index.append(
            {
                "key": key,
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
                "created": created,
                "seconds": seconds,
                "worker": f"{platform.node()}:{os.getpid()}",
                "commit": None if seconds is None else self._commit,
            }
        )

    def studies(self) -> list[str]:
        """Names of the studies that were declared here."""
        return sorted(path.parent.name for path in (self.root / "studies").glob("*/cells.parquet"))

    def declare(
        self, name: str, cells: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]
    ) -> None:
        """Write down what a study consists of, before its first picture is made.

        Raises:
            FusionError: The store cannot be written.
        """
        folder = self.root / "studies" / name
        for file, mark in STUDY.items():
            check_writable(folder / file, mark)
        table = pa.Table.from_pylist(list(cells), schema=CELLS)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        try:
            write_text(folder / "manifest.json", text)
            write_atomically(folder / "cells.parquet", lambda file: pq.write_table(table, file))
        except OSError as error:
            raise FusionError(f"The store {self.root} cannot be written: {error}.") from error

    def cells(self, name: str) -> pd.DataFrame:
        """The cells of a study, one row each: the columns of `CELLS`.

        Raises:
            FusionError: No such study was declared here.
        """
        try:
            return pq.ParquetFile(self.root / "studies" / name / "cells.parquet").read().to_pandas()
        except (OSError, pa.ArrowException) as error:
            known = ", ".join(self.studies()) or "none"
            raise FusionError(
                f"{self.root} holds no study {name!r} (its studies: {known}): give the folder of a "
                "store and the name that `fusionlib study run` was given."
            ) from error

    def manifest(self, name: str) -> dict[str, Any]:
        """How a study was declared.

        Raises:
            FusionError: No such study was declared here.
        """
        path = self.root / "studies" / name / "manifest.json"
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FusionError(f"The study's record {path} cannot be read: {error}.") from error
        return record
