"""Notebooks under pytest: their order, what of their outputs is compared, what a failure breaks."""

import re
from collections.abc import Generator
from graphlib import TopologicalSorter
from typing import Any

import pytest

from companion.publishing.exports import EXPORTED
from companion.publishing.notebooks import comes_after
from companion.publishing.stored_outputs import ADDRESS, CHECKED, TABLE_ID

UNCOMPARED = (*EXPORTED, "stderr")
"""Kinds of outputs that are not compared, besides nbval's: pictures, widgets."""

UNSTABLE = {
    ADDRESS.pattern: "",
    TABLE_ID.pattern: "T_",
    r">\d+%</td>": ">%</td>",  # shares of attention, which come out of the networks
}
"""What a comparison looks past, and what stands in its place."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the cells of notebooks behind those that their notebook comes after."""
    files: set[Any] = {item.parent for item in items if item.path.suffix == ".ipynb"}
    folders = {file.path.parent for file in files}
    after = comes_after([path for folder in folders for path in sorted(folder.glob("*.ipynb"))])
    order = list(TopologicalSorter(after).static_order())
    items.sort(key=lambda item: order.index(item.path.stem) if item.parent in files else -1)
    for file in files:
        file.skip_compare += UNCOMPARED
        file.sanitize_patterns.update(UNSTABLE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Under a cell that failed, say what is no longer so."""
    report = yield
    if report.failed and item.path.suffix == ".ipynb":
        report.sections.append(("What this cell shows", broken(item.cell, item.path.stem)))
    return report


def broken(cell: Any, notebook: str) -> str:
    """What a cell's success stands for: its own statement, and the claims of the paper.

    Args:
        cell: an `nbformat` node.
        notebook: whose cell it is.
    """
    from companion.claims.claims import read_claims

    said = []
    if CHECKED in cell.metadata.get("tags", []):
        said.append(
            f"Broken: {cell.metadata['fusionlib']['states']}. If the change is meant, run "
            f'`make notebooks ARGS="{notebook}"` and read what it changes.'
        )
    claims = read_claims()
    quoted = re.findall(
        r"[\"']([a-z0-9-]+)[\"']",
        cell.source if re.search(r"record_(claims?|training)\(", cell.source) else "",
    )
    here = [claims[name] for name in quoted if name in claims]
    of_all = [
        claim for claim in claims.values() if claim.tested_by("embedded") == f"notebooks/{notebook}"
    ]
    rests = "rests on this cell" if here else f"rests on {notebook}"
    said += [f"The claim '{claim.id}' ({claim.title}) {rests}." for claim in here or of_all]
    return "\n".join(said) or "No claim of the paper rests on it."
