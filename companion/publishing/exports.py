"""Figures and tables of executed notebooks as files: PNG and PDF, CSV and LaTeX.

Whatever a notebook shows is exported, read from its stored outputs: an ``image/png`` is a figure, a
``<table>`` in ``text/html`` a table. A figure that was drawn has an ``application/pdf`` beside it
(`companion.figures.display`); one of pixels is put on a PDF page as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from companion.publishing.html_tables import Table, read_tables
from fusionlib.support.files import write_text

PIXELS_PER_INCH = 300
"""Of a picture on its PDF page."""


@dataclass(frozen=True)
class Figure:
    """A figure as a notebook stores it.

    Attributes:
        name: as the cell's metadata calls it, or a number of its own.
        caption: of the cell's metadata.
        alt: what to say to who cannot see it, of the cell's metadata.
        png: the file's bytes.
        pdf: the same of the PDF, None where the notebook stores none.
    """

    name: str
    caption: str
    alt: str
    png: bytes
    pdf: bytes | None


def remove_exports(out: Path, name: str) -> None:
    """Delete what was exported from a notebook."""
    shutil.rmtree(out / "exports" / name, ignore_errors=True)


def export_notebook(
    executed: Path, out: Path, record: Mapping[str, Any], *, again: bool = True
) -> Path:
    """Write a notebook's figures and tables to ``out/exports/NAME``, and ``index.json`` over them.

    Args:
        executed: the notebook with its outputs.
        out: folder of everything that is built.
        record: what the notebook was run from, for the index; its ``digest`` tells whether the
            files are those of this run.
        again: write them even if they are.

    Returns:
        The folder.
    """
    import nbformat

    folder = out / "exports" / executed.stem
    if not again and _digest(folder) == record["digest"]:
        return folder
    notebook = nbformat.read(executed, as_version=4)
    partial = folder.with_name(f".{executed.stem}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    figures = []
    for figure in find_figures(notebook):
        (partial / f"{figure.name}.png").write_bytes(figure.png)
        (partial / f"{figure.name}.pdf").write_bytes(figure.pdf or pdf_of_pixels(figure.png))
        entry = {"png": f"{figure.name}.png", "pdf": f"{figure.name}.pdf"}
        vector = figure.pdf is not None
        figures.append(entry | {"vector": vector, "caption": figure.caption, "alt": figure.alt})
    tables = []
    for number, table in enumerate(find_tables(notebook), start=1):
        name = f"table-{number}"
        (partial / f"{name}.csv").write_text(table.csv(), encoding="utf-8")
        (partial / f"{name}.tex").write_text(table.latex(), encoding="utf-8")
        tables.append({"csv": f"{name}.csv", "latex": f"{name}.tex", "caption": table.caption})

    index = {
        "notebook": os.path.relpath(executed, folder),
        "manifest": os.path.relpath(out / "manifest.json", folder),
        "ran": notebook.metadata.get("papermill", {}).get("end_time"),
        **record,
        "figures": figures,
        "tables": tables,
    }
    write_text(partial / "index.json", json.dumps(index, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def find_figures(notebook: Any) -> Iterator[Figure]:
    """The figures that a notebook (an `nbformat` node) shows, from its first cell to its last."""
    taken: set[str] = set()
    for cell, data in _shown(notebook):
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
        yield Figure(
            name=name,
            caption=figure.get("caption", ""),
            alt=settings.get("image", {}).get("alt", ""),
            png=b64decode(data["image/png"]),
            pdf=b64decode(data["application/pdf"]) if "application/pdf" in data else None,
        )


def find_tables(notebook: Any) -> Iterator[Table]:
    """The tables that a notebook shows, from its first cell to its last."""
    for _, data in _shown(notebook):
        yield from read_tables(data.get("text/html", ""))


def pdf_of_pixels(png: bytes) -> bytes:
    """Put a picture on a PDF page of its size, pixel by pixel."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure as Page
    from PIL import Image

    picture = Image.open(BytesIO(png)).convert("RGB")
    page = Page(figsize=(picture.width / PIXELS_PER_INCH, picture.height / PIXELS_PER_INCH))
    axes = page.add_axes((0, 0, 1, 1))
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.axis("off")
    file = BytesIO()
    FigureCanvasPdf(page).print_pdf(file, metadata={"CreationDate": None})
    return file.getvalue()


def _shown(notebook: Any) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """Cells and what they show, by kind."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield cell, output.get("data", {})


def _digest(folder: Path) -> str | None:
    try:
        digest: str = json.loads((folder / "index.json").read_text(encoding="utf-8"))["digest"]
        return digest
    except (OSError, ValueError, KeyError):
        return None
