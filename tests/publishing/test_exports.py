"""What the notebooks show is exported: figures as PNG and PDF, tables as CSV and LaTeX."""

import json
import re
import struct
import zlib
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import format_display_data
from IPython.display import Math
from matplotlib.figure import Figure
from PIL import Image

from companion.figures.display import VectorFigure
from companion.figures.tables import marked_table
from companion.publishing.book import fit_page, one_page
from companion.publishing.exports import export_notebook, find_figures, find_tables, pdf_of_pixels


def drawn(text: str = "a label") -> VectorFigure:
    figure = Figure(figsize=(2, 1), dpi=100)
    figure.text(0.1, 0.5, text)
    return VectorFigure(figure)


def cell(shown: Any, **mystnb: Any) -> Any:
    """A code cell that shows an object, as a kernel would store it."""
    kinds, metadata = format_display_data(shown)
    data = {k: b64encode(v).decode() if isinstance(v, bytes) else v for k, v in kinds.items()}
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    return nbformat.v4.new_code_cell("show", outputs=[output], metadata={"mystnb": mystnb})


def write(folder: Path, *cells: Any) -> Path:
    folder.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), folder / "study.ipynb")
    return folder / "study.ipynb"


def test_a_drawing_is_an_image_and_a_pdf_with_letters() -> None:
    drawing = drawn()
    assert isinstance(drawing, Image.Image) and drawing.size == (200, 100)
    assert np.asarray(drawing).min() < 100, "the label is seen"
    again = drawing.copy().rotate(90, expand=True)  # what Pillow can do, it can do with a drawing
    assert again.size == (100, 200)
    pdf = drawing.pdf()
    assert b"/Font" in pdf and b"/Subtype /Image" not in pdf and pdf == drawn().pdf()
    kinds, _ = format_display_data(drawing)
    assert set(kinds) == {"text/plain", "image/png", "application/pdf"}
    kinds, _ = format_display_data(drawing, include=["image/png"])
    assert set(kinds) == {"image/png"}


def test_pixels_come_through_a_pdf_unchanged() -> None:
    """The picture's own samples stand in the PDF, not resampled ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    pdf = pdf_of_pixels(file.getvalue())
    (found,) = re.finditer(rb"/Subtype /Image.*?stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    assert b"/Width 30" in found[0] and b"/Height 20" in found[0]
    lines = np.frombuffer(zlib.decompress(found[1]), np.uint8).reshape(20, -1)
    # matplotlib stores rows from the bottom up, and flips them on the page.
    assert undo_predictors(lines) == pixels[::-1].tobytes()


def undo_predictors(lines: np.ndarray) -> bytes:
    """A PNG is exactly such lines, compressed, under a header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width = lines.shape[0], (lines.shape[1] - 1) // 3
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")
    return np.asarray(Image.open(BytesIO(png))).tobytes()


def test_figures_are_called_as_the_pages_call_them() -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[
            cell(drawn(), figure={"name": "fig-a", "caption": "One."}, image={"alt": "a word"}),
            cell(Image.new("RGB", (4, 4))),
            cell(drawn("second"), figure={"name": "fig-a"}),
            cell(drawn()),
            cell("no figure"),
        ]
    )
    figures = list(find_figures(notebook))
    assert [figure.name for figure in figures] == ["fig-a", "figure-1", "fig-a-2", "figure-2"]
    assert (figures[0].caption, figures[0].alt) == ("One.", "a word")
    assert [figure.pdf is not None for figure in figures] == [True, False, True, True]


def test_everything_a_notebook_shows_is_exported_and_listed(tmp_path: Path) -> None:
    table = marked_table(pd.DataFrame({"distance": ["0.123"]}, index=["fused"]), "Measured.")
    cells = [cell(drawn()), cell(Image.new("RGB", (3, 3), "red")), cell(table)]
    executed = write(tmp_path / "executed", *cells)
    record = {"digest": "one", "parameters": {"people": 3}}
    folder = export_notebook(executed, tmp_path, record)
    assert folder == tmp_path / "exports" / "study"
    index = json.loads((folder / "index.json").read_text())
    named = {f for entry in index["figures"] + index["tables"] for f in entry.values()}
    files = {path.name for path in folder.iterdir()} - {"index.json"}
    assert files == {name for name in named if isinstance(name, str) and "." in name[-4:]} - {
        "Measured."
    }
    assert index["parameters"] == {"people": 3} and index["tables"][0]["caption"] == "Measured."
    assert (folder / index["notebook"]).samefile(executed)
    assert Image.open(folder / "figure-2.png").getpixel((0, 0)) == (255, 0, 0)
    assert (folder / "table-1.csv").read_text() == ",distance\nfused,0.123\n"

    write(tmp_path / "executed", cell(table))
    export_notebook(executed, tmp_path, record, again=False)
    assert (folder / "figure-1.pdf").exists(), "the same run is not exported twice"
    export_notebook(executed, tmp_path, record | {"digest": "two"}, again=False)
    assert {path.name for path in folder.iterdir()} == {"index.json", "table-1.csv", "table-1.tex"}


def test_tables_are_found_in_their_order() -> None:
    shown = [cell(marked_table(pd.DataFrame({name: [1]}), f"Of {name}.")) for name in ("a", "b")]
    tables = list(find_tables(nbformat.v4.new_notebook(cells=[*shown, cell("no table")])))
    assert [table.caption for table in tables] == ["Of a.", "Of b."]
    assert tables[1].csv == ",b\n0,1\n" and r"0 & 1 \\" in tables[1].latex


@pytest.mark.parametrize("notice", [None, "Its notebook failed at In [3]."])
def test_a_page_shows_pixels_only_and_says_what_is_missing(notice: str | None) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Title"),
            cell(drawn()),
            cell(Image.new("L", (2, 2))),
            cell(marked_table(pd.DataFrame({"x": [1]}), "One.")),
            cell(Math("x^2")),
        ]
    )
    notebook.cells[1].metadata["tags"] = ["parameters"]
    fit_page(notebook, notice)
    kinds = [set(o.data) for c in notebook.cells for o in c.get("outputs", [])]
    assert kinds[:2] == [{"image/png", "text/plain"}] * 2
    assert kinds[2:] == [{"text/html", "text/plain"}, {"text/latex", "text/plain"}]
    assert notebook.cells[0].source == "# Title"
    assert (notice is not None) == ("not finished" in notebook.cells[1].source)
    nbformat.validate(notebook)


def test_links_to_other_pages_stay_within_the_one_page_of_the_pdf() -> None:
    html = (
        '<a href="../notebooks/claims.html">a</a><a href="../book/methods/fused.html#top">b</a>'
        '<a href="https://example.org/book/x.html">c</a><a href="#here">d</a>'
    )
    links = re.findall(r'href="([^"]*)"', one_page(html))
    assert links == [
        "#document-notebooks/claims",
        "#top",
        "https://example.org/book/x.html",
        "#here",
    ]


def test_a_page_keeps_a_widgets_still_and_leaves_progress_bars_out() -> None:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "bar"}
    bar = nbformat.v4.new_output("display_data", view)
    still = nbformat.v4.new_output("display_data", view | {"image/png": "aGk="})
    said = nbformat.v4.new_output("stream", text="done")
    one = nbformat.v4.new_code_cell("paint()", outputs=[bar, still, bar, said])
    notebook = nbformat.v4.new_notebook(cells=[one], metadata={"widgets": {"state": {}}})
    fit_page(notebook)
    assert [o.output_type for o in notebook.cells[0].outputs] == ["display_data", "stream"]
    assert "image/png" in notebook.cells[0].outputs[0].data
    assert "widgets" not in notebook.metadata
