"""A table in Parquet that only grows, written by any number of processes at once.

It is a folder of Parquet files. Each process writes files of its own, replaces each by a longer one
in one step, and leaves those of others alone. So a reader finds whole rows and nothing else at any
time, while others write and after any kill, and no lock is needed. A file is closed at
`ROWS_PER_FILE` rows, so that an append costs the same however long the table has become.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fusionlib.errors import FusionError
from fusionlib.support.files import write_atomically

ROWS_PER_FILE = 4096
"""Rows after which a process begins a new file."""

FLUSH_SECONDS = 2.0
"""Longest time for which a row is in memory only: the work that a kill can cost."""


class AppendTable:
    """A table that only grows. Its first column is a key: of equal keys the last row counts.

    Args:
        folder: Folder of the files, made at the first row.
        schema: Columns of the table, for pyarrow.

    Use it as a context manager to append, so that the last rows are written, too.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema
        self._rows: list[Mapping[str, Any]] = []
        self._flushed = 0
        self._last_flush = time.monotonic()
        self._file: Path | None = None

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows that any process has written, the key's column first.

        Args:
            columns: Columns to read besides the key; by default all.

        Raises:
            FusionError: A file of the folder is damaged, or belongs to another table.
        """
        key = self.schema.names[0]
        wanted = self.schema.names if columns is None else [key, *columns]
        schema = pa.schema([self.schema.field(name) for name in wanted])
        tables = [schema.empty_table()]
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                tables.append(pq.ParquetFile(path).read(wanted).select(wanted).cast(schema))
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                raise FusionError(
                    f"The index file {path} is damaged ({str(error).splitlines()[0]}): delete it; "
                    "what it listed is found again by the next run."
                ) from error
        return pa.concat_tables(tables).to_pandas().drop_duplicates(key, keep="last")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it reaches the disk within `FLUSH_SECONDS` of work, or at the end."""
        self._rows.append(row)
        overdue = time.monotonic() - self._last_flush >= FLUSH_SECONDS
        if overdue or len(self._rows) >= ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are in memory only.

        Raises:
            FusionError: The folder cannot be written.
        """
        if len(self._rows) > self._flushed:
            table = pa.Table.from_pylist(self._rows, schema=self.schema)
            if self._file is None:  # named by the time, so that later files are read later
                self._file = self.folder / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file, lambda file: pq.write_table(table, file))
            except OSError as error:
                raise FusionError(
                    f"The folder {self.folder} cannot be written: {error}."
                ) from error
            self._flushed = len(self._rows)
        if len(self._rows) >= ROWS_PER_FILE:
            self._rows, self._flushed, self._file = [], 0, None
        self._last_flush = time.monotonic()

    def __enter__(self) -> AppendTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()
