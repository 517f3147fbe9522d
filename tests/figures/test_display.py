"""Pictures say what they show, from the cell that draws them to the page that shows them."""

import re
from base64 import b64decode
from io import BytesIO

import nbformat
import pandas as pd
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from companion.claims.quoted import read_quoted
from companion.evaluation.statistics import Interval
from companion.figures.display import as_html, publish_alt, with_alt_text
from companion.figures.grids import picture_grid
from companion.figures.plots import psnr_plot, trade_off_plot
from companion.pages.training_lesson import curves
from fusionlib.profiles import ROOT


def plain() -> Image.Image:
    return Image.new("RGB", (16, 16), "red")


def test_a_notebook_stores_the_words_beside_the_pixels() -> None:
    formatter = InteractiveShell.instance().display_formatter
    before, _ = formatter.format(plain(), include=["image/png"])
    data, metadata = formatter.format(
        with_alt_text(plain(), "A red square."), include=["image/png"]
    )
    assert data == before
    assert metadata == {"image/png": {"alt": "A red square."}}


def test_a_grid_names_its_rows_columns_and_groups() -> None:
    grid = picture_grid(
        [[plain()] * 5] * 2,
        columns=["reference", "text", "fused", "text", "fused"],
        labels=["Ada", "Ben"],
        references=1,
        groups=[("“sad”", 2), ("“glad”", 2)],
    )
    assert grid.info["alt"] == (
        "Pictures in 2 rows and 5 columns. Rows from the top: Ada, Ben. From left to right: "
        "reference; under “sad”: text, fused; under “glad”: text, fused."
    )
    bare = picture_grid([[plain(), plain()]], references=1)
    assert bare.info["alt"] == (
        "Pictures in 1 row and 2 columns. On the left: 1 column of references."
    )


def test_plots_name_the_values_that_they_draw() -> None:
    pairs = pd.DataFrame({"ssim": [0.2, 0.4], "psnr": [9.0, 15.0], "psnr_8bit_overflow": 27.9})
    alt = psnr_plot(pairs, read_quoted(ROOT / "data/paper/table2.csv")).info["alt"]
    assert "2 pairs" in alt and "from 9.00 to 15.00 dB" in alt and "27.93 to 28.40" in alt

    log = pd.DataFrame({"step": [10, 20], "loss": [2.0, 2.0], "grad_norm": 1.0, "mse_t0": 1.0})
    assert "20 training steps: the weighted loss, from 2.000 to 2.000" in curves(log).info["alt"]


def test_a_trade_off_says_where_too_few_faces_were_found() -> None:
    some, none = Interval(0.5, 0.4, 0.6), Interval(*[float("nan")] * 3)
    rows = [("depth", 1.0, none, none, some, some), ("depth", 0.0, some, some, some, some)]
    columns = ["system", "number", "identity", "of_faces", "prompt", "found"]
    table = pd.DataFrame(rows, columns=columns)
    assert trade_off_plot(table, "scale").info["alt"] == (
        "Identity against prompt, by scale, lost faces counted as strangers': depth from R 0.50, "
        "50% of prompts and 50% of faces at 0 to R of too few people, 50% of prompts and 50% of "
        "faces at 1; another person at 0.00."
    )


def test_an_author_has_the_last_word_on_the_page() -> None:
    output = nbformat.v4.new_output(
        "display_data", {"image/png": ""}, metadata={"image/png": {"alt": "Drawn."}}
    )
    cells = [nbformat.v4.new_code_cell(outputs=[output]) for _ in range(2)]
    cells[0].metadata["mystnb"] = {"figure": {"caption": "A figure."}}
    cells[1].metadata["mystnb"] = {"image": {"alt": "Written."}}
    cells.append(nbformat.v4.new_markdown_cell("Words."))
    notebook = nbformat.v4.new_notebook(cells=cells)
    publish_alt(notebook)
    assert cells[0].metadata["mystnb"] == {
        "figure": {"caption": "A figure."},
        "image": {"alt": "Drawn."},
    }
    assert cells[1].metadata["mystnb"] == {"image": {"alt": "Written."}}


def test_a_picture_that_is_glued_keeps_its_words() -> None:
    made = with_alt_text(Image.new("RGB", (4, 3), "red"), 'a "red" <field>')
    html = as_html(made)._repr_html_()
    assert 'alt="a &quot;red&quot; &lt;field&gt;"' in html
    data = re.search(r'base64,([^"]+)"', html)
    assert data is not None
    red, green, blue = Image.open(BytesIO(b64decode(data[1]))).getpixel((0, 0))
    assert red > 240 and max(green, blue) < 15
    wide = as_html(Image.new("RGB", (3000, 30)))._repr_html_()
    found = re.search(r'base64,([^"]+)"', wide)
    assert found is not None and Image.open(BytesIO(b64decode(found[1]))).size == (1000, 10)
    assert 'alt="other"' in as_html(made, "other")._repr_html_()
