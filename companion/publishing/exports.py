"""Figures and tables of executed notebooks as files: PNG and PDF, CSV and LaTeX.

They are read from the notebook's stored outputs. An ``image/png`` is a figure. A figure that was
drawn has an ``application/pdf`` beside it (`companion.figures.display`); one of pixels is put on a
PDF page as it is. A ``text/csv`` is a table, with a ``text/latex`` beside it
(`companion.figures.tables`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from fusionlib.support.files import Made, replacing, write_bytes

EXPORTED = ("application/pdf", "text/csv", "text/latex")
"""Kinds of outputs that become files; a page shows the PNG or the HTML beside them."""

PIXELS_PER_INCH = 300
"""Resolution of a picture on its PDF page."""


@dataclass(frozen=True)
class StoredFigure:
    """A figure as a notebook stores it.

    Attributes:
        name: Name in the cell's metadata, or else a number.
        caption: Caption in the cell's metadata.
        alt: Alternative text in the cell's metadata.
        png: Content of the PNG file.
        pdf: Content of the PDF file, None where the notebook stores none.
    """

    name: str
    caption: str
    alt: str
    png: bytes
    pdf: bytes | None


@dataclass(frozen=True)
class StoredTable:
    """A table as a notebook stores it.

    Attributes:
        caption: Caption of the table.
        csv: Content of the CSV file.
        latex: Content of the LaTeX file.
    """

    caption: str
    csv: str
    latex: str


def remove_exports(out: Path, name: str) -> None:
    """Delete what was exported from a notebook, and nothing else."""
    folder = out / "exports" / name
    if not _exports(folder).foreign(folder):
        shutil.rmtree(folder, ignore_errors=True)


def export_notebook(
    executed: Path, out: Path, record: Mapping[str, Any], *, again: bool = True
) -> Path:
    """Write a notebook's figures and tables to ``out/exports/NAME``, and ``index.json`` over them.

    Args:
        executed: Executed notebook with its outputs.
        out: Folder of everything that is built.
        record: What the notebook was run from, for the index; its ``digest`` tells whether the
            files are of this run.
        again: Whether to write the files even if they are of this run.

    Returns:
        The folder.
    """
    import nbformat

    folder = out / "exports" / executed.stem
    if not again and _index(folder).get("digest") == record["digest"]:
        return folder
    notebook = nbformat.read(executed, as_version=4)
    files: dict[str, bytes] = {}
    figures = []
    for figure in find_figures(notebook):
        files[f"{figure.name}.png"] = figure.png
        files[f"{figure.name}.pdf"] = figure.pdf or pdf_of_pixels(figure.png)
        entry = {"png": f"{figure.name}.png", "pdf": f"{figure.name}.pdf"}
        vector = figure.pdf is not None
        figures.append(entry | {"vector": vector, "caption": figure.caption, "alt": figure.alt})
    tables = []
    for number, table in enumerate(find_tables(notebook), start=1):
        name = f"table-{number}"
        files |= {f"{name}.csv": table.csv.encode(), f"{name}.tex": table.latex.encode()}
        tables.append({"csv": f"{name}.csv", "latex": f"{name}.tex", "caption": table.caption})

    index = {
        "notebook": os.path.relpath(executed, folder),
        "manifest": os.path.relpath(out / "manifest.json", folder),
        "ran": notebook.metadata.get("papermill", {}).get("end_time"),
        **record,
        "figures": figures,
        "tables": tables,
    }
    files["index.json"] = (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
    with replacing(folder, _exports(folder, *files)) as partial:
        for name, content in files.items():
            write_bytes(partial / name, content)
    return folder


def find_figures(notebook: Any) -> Iterator[StoredFigure]:
    """The figures that a notebook (an `nbformat` node) shows, from its first cell to its last."""
    taken: set[str] = set()
    for cell, output in _outputs(notebook):
        data = output.get("data", {})
        if "image/png" not in data:
            continue
        settings = cell.metadata.get("mystnb", {})
        figure = settings.get("figure", {})
        name = base = figure.get("name") or "figure"
        number = 1
        while name in taken or name == "figure":
            number += base != "figure" or name in taken
            name = f"{base}-{number}"
        taken.add(name)
        yield StoredFigure(
            name=name,
            caption=figure.get("caption", ""),
            alt=settings.get("image", {}).get("alt", ""),
            png=b64decode(data["image/png"]),
            pdf=b64decode(data["application/pdf"]) if "application/pdf" in data else None,
        )


def find_tables(notebook: Any) -> Iterator[StoredTable]:
    """The tables that a notebook shows, from its first cell to its last."""
    for _, output in _outputs(notebook):
        data = output.get("data", {})
        if {"text/csv", "text/latex"} <= data.keys():
            caption = output.get("metadata", {}).get("text/csv", {}).get("caption", "")
            yield StoredTable(caption, data["text/csv"], data["text/latex"])


def drop_exported(output: Any) -> None:
    """Take from an output the kinds that become files, where a PNG or HTML is beside them."""
    data = output.get("data", {})
    if data.keys() & {"image/png", "text/html"}:
        for kind in EXPORTED:
            data.pop(kind, None)
            output.get("metadata", {}).pop(kind, None)


def pdf_of_pixels(png: bytes) -> bytes:
    """Put a picture on a PDF page of its size, pixel by pixel."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure
    from PIL import Image

    picture = Image.open(BytesIO(png)).convert("RGB")
    page = Figure(figsize=(picture.width / PIXELS_PER_INCH, picture.height / PIXELS_PER_INCH))
    axes = page.add_axes((0, 0, 1, 1))
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.axis("off")
    file = BytesIO()
    FigureCanvasPdf(page).print_pdf(file, metadata={"CreationDate": None})
    return file.getvalue()


def _outputs(notebook: Any) -> Iterator[tuple[Any, Any]]:
    """All outputs, each with its cell."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield cell, output


def _exports(folder: Path, *more: str) -> Made:
    """What a folder of exports may hold: the files that its index lists, and further ones."""
    index = _index(folder)
    entries = [*index.get("figures", ()), *index.get("tables", ())]
    listed = [name for entry in entries for name in entry.values() if isinstance(name, str)]
    return Made("|".join(map(re.escape, ("index.json", *listed, *more))))


def _index(folder: Path) -> dict[str, Any]:
    """The index of a folder of exports; empty where there is none that can be read."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
