"""What the notebooks show is exported: figures as PNG and PDF, tables as CSV and LaTeX."""

import csv
import json
import re
import struct
import zlib
from base64 import b64encode
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import format_display_data
from matplotlib.figure import Figure
from PIL import Image

from companion.figures.display import VectorFigure
from companion.publishing.book import fit_page, one_page
from companion.publishing.exports import export_notebook, find_figures, pdf_of_pixels
from companion.publishing.html_tables import read_tables


def drawn(text: str = "a label") -> VectorFigure:
    figure = Figure(figsize=(2, 1), dpi=100)
    figure.text(0.1, 0.5, text)
    return VectorFigure(figure)


def cell(shown: Any, **mystnb: Any) -> Any:
    """A code cell that shows an object, as a kernel would store it."""
    kinds, _ = format_display_data(shown)
    data = {k: b64encode(v).decode() if isinstance(v, bytes) else v for k, v in kinds.items()}
    output = nbformat.v4.new_output("execute_result", data, execution_count=1)
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
    table = pd.DataFrame({"distance": [0.123]}, index=["fused"]).style.set_caption("Measured.")
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
    assert (folder / "table-1.csv").read_text() == ",distance\nfused,0.123000\n"

    write(tmp_path / "executed", cell(table))
    export_notebook(executed, tmp_path, record, again=False)
    assert (folder / "figure-1.pdf").exists(), "the same run is not exported twice"
    export_notebook(executed, tmp_path, record | {"digest": "two"}, again=False)
    assert {path.name for path in folder.iterdir()} == {"index.json", "table-1.csv", "table-1.tex"}


def test_a_table_is_read_as_pandas_wrote_it() -> None:
    columns = pd.MultiIndex.from_tuples([("quoted", "SSIM"), ("quoted", "PSNR"), ("here", "SSIM")])
    rows = pd.MultiIndex.from_tuples([("one", "a"), ("one", "b"), ("two", "a")])
    numbers = pd.DataFrame(np.arange(9).reshape(3, 3), rows, columns).astype(str)
    for html in (numbers.style.to_html(), numbers.to_html(), numbers.to_html(sparsify=False)):
        (table,) = read_tables(f"<p>before</p>{html}")
        assert table.labels == 2 and len(table.heads) == 2
        assert table.heads[0][2:] == ("quoted", "quoted", "here")
        found = list(csv.reader(StringIO(table.csv())))
        assert found[0] == ["", "", "quoted: SSIM", "quoted: PSNR", "here: SSIM"]
        assert [row[:2] for row in found[1:]] == [list(row) for row in rows]
        assert [row[2:] for row in found[1:]] == numbers.to_numpy().tolist()


def test_headless_tables_and_awkward_cells() -> None:
    html = (
        "<style>td {}</style><table><caption>What &amp; <b>why</b></caption><tr><th>a<br>b</th>"
        "<td>1, 2 <table><tr><td>x</td></tr></table></td></tr><tr><td></td></tr></table>"
    )
    (table,) = read_tables(html)
    assert table.caption == "What & why" and table.heads == ()
    assert table.csv() == 'a b,"1, 2 x"\n'
    assert read_tables("<p>none</p>") == [] == read_tables("<table></table>")


def test_latex_has_booktabs_and_no_sign_that_it_would_stumble_over() -> None:
    cells = {"R ↑ of A_b": ["50% & {more}", "–0.5 ± 1"], "#": ["λ^2 −1", "\\x~$"]}
    styler = pd.DataFrame(cells, index=["first_row", "<2>"]).style.set_caption("100% “so”")
    (table,) = read_tables(styler.to_html())
    latex = table.latex()
    assert latex.isascii()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{100\% ``so''}"):
        assert latex.count(rule) == 1
    assert r" & R $\uparrow$ of A\_b & \# \\" in latex
    assert r"first\_row & 50\% \& \{more\} & $\lambda$\textasciicircum{}2 $-$1 \\" in latex
    escaped = (
        r"\textless{}2\textgreater{} & --0.5 $\pm$ 1 & \textbackslash{}x\textasciitilde{}\$ \\"
    )
    assert escaped in latex
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in rows), "three columns in each"


def test_groups_of_columns_have_one_heading_and_a_line_in_latex() -> None:
    columns = pd.MultiIndex.from_tuples([("quoted", "A"), ("quoted", "B"), ("here", "A")])
    (table,) = read_tables(pd.DataFrame([[1, 2, 3]], ["x"], columns).style.to_html())
    latex = table.latex()
    assert r" & \multicolumn{2}{c}{quoted} & here \\" in latex and r"\cmidrule(lr){2-3}" in latex
    assert r"\begin{tabular}{lrrr}" in latex


@pytest.mark.parametrize("excuse", [None, "Its notebook failed at In [3]."])
def test_a_page_shows_pixels_only_and_says_what_is_missing(excuse: str | None) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Title"),
            cell(drawn()),
            cell(Image.new("L", (2, 2))),
        ]
    )
    notebook.cells[1].metadata["tags"] = ["parameters"]
    fit_page(notebook, excuse)
    kinds = [set(o.data) for c in notebook.cells for o in c.get("outputs", [])]
    assert kinds == [{"image/png", "text/plain"}] * 2
    assert notebook.cells[0].source == "# Title"
    assert (excuse is not None) == ("not finished" in notebook.cells[1].source)
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
