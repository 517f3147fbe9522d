"""CSV files that users write: every value stays the text that it is, whatever it looks like."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fusionlib.errors import FusionError, first_line
from fusionlib.support.texts import read_text


def read_table(path: str | Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of texts. Neither ``007`` nor ``NA`` nor ``1e5`` becomes anything else.

    Args:
        path: File with a heading, separated by commas, semicolons or tabs.
        columns: Columns that there have to be.

    Returns:
        The rows; what is empty is NaN.

    Raises:
        FusionError: The file cannot be read, is no table, or lacks a column.
    """
    try:
        text = read_text(path)
        heading = text.lstrip().partition("\n")[0]
        separator = max(",;\t", key=heading.count)
        names = [name.strip() for name in next(csv.reader([heading], delimiter=separator), [])]
        if twice := [name for name in names if names.count(name) > 1]:
            raise FusionError(f"the column {twice[0]!r} is there twice")
        table = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
        )
    except OSError as error:
        raise FusionError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise FusionError(
            f"{path} is not a table of comma-separated values: {first_line(error)}."
        ) from error
    table = table.rename(columns=lambda name: str(name).strip())
    for column in columns:
        if column not in table:
            raise FusionError(
                f"{path} lacks the column {column!r}: it has {', '.join(map(str, table))}."
            )
    return table
