"""The paper's own numbers, as data: ``data/paper/*.csv``, each with its place in the paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fusionlib.errors import FusionError

COLUMNS = ("paper", "section", "table", "caption", "row", "column", "metric", "better", "value")


def read_quoted(path: str | Path) -> pd.DataFrame:
    """Read one of the paper's tables.

    Returns:
        One row for each number: its place (``section``, ``table``, ``row``, ``column``), the
        table's caption, what it measures, which way is better, and the value; NaN where the paper
        prints a dash.

    Raises:
        FusionError: There is no such file, or it is no such table.
    """
    try:
        numbers = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise FusionError(f"The quoted table {path} cannot be read: {error}.") from error
    lacking = [column for column in COLUMNS if column not in numbers]
    if lacking or numbers.empty:
        raise FusionError(f"The quoted table {path} lacks {', '.join(lacking) or 'numbers'}.")
    return numbers


def as_printed(numbers: pd.DataFrame) -> pd.DataFrame:
    """Lay numbers out as the paper does: its rows, its columns, an arrow to what is better."""
    table = numbers.pivot(index="row", columns="column", values="value")
    table = table.loc[numbers["row"].unique(), numbers["column"].unique()]
    table.index.name = table.columns.name = None
    arrow = {
        column: f"{column} {'↓' if better == 'lower' else '↑'}"
        for column, better in zip(numbers["column"], numbers["better"], strict=True)
    }
    return table.rename(columns=arrow)
