"""Notebooks are made of calls: short cells, and imports from the two packages themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

import companion
from fusionlib.profiles import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
A_DOZEN = 12


def trees(notebook: Path) -> Iterator[tuple[str, ast.Module]]:
    """The code cells without those that prepare Colab, whose commands are no Python."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", []):
            yield cell.id, ast.parse(cell.source)


def statements(tree: ast.Module) -> list[ast.stmt]:
    """What a cell does; imports and parameters are lists of names, as long as they have to be."""
    return [one for one in tree.body if not isinstance(one, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_from_the_packages_and_calls_what_they_have(notebook: Path) -> None:
    importing = []
    for name, tree in trees(notebook):
        parameters = all(
            isinstance(one, ast.Assign) and not any(isinstance(n, ast.Call) for n in ast.walk(one))
            for one in tree.body
        )
        lines = sum(one.end_lineno - one.lineno + 1 for one in statements(tree) if one.end_lineno)
        assert parameters or lines <= A_DOZEN, f"{name} has {lines} lines"
        for node in ast.walk(tree):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While), name
            if isinstance(node, ast.Import | ast.ImportFrom):
                importing.append(name)
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert module in ("fusionlib", "companion", "myst_nb"), f"{name}: {module}"
    assert len(set(importing)) == 1, "imports stand in one cell"


def test_companion_lists_the_names_that_notebooks_use_and_no_other() -> None:
    used = {
        alias.name
        for notebook in NOTEBOOKS
        for _, tree in trees(notebook)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "companion"
        for alias in node.names
    }
    assert used == set(companion.__all__)
