"""Words for those who do not see a picture: made where it is drawn, shown where it is published."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from nbformat import NotebookNode


def with_alt_text(image: Image.Image, alt: str) -> Image.Image:
    """Give a picture its alternative text, which a notebook stores beside the pixels.

    Args:
        image: of any class; it is changed, and shown as before.
        alt: what it shows, in a sentence or two.

    Returns:
        The same picture.
    """

    def png() -> tuple[bytes | None, dict[str, str]]:
        return type(image)._repr_png_(image), {"alt": alt}

    vars(image)["_repr_png_"] = png  # IPython takes data, or data with metadata
    image.info["alt"] = alt
    return image


WIDEST_ALT = 1000
"""Pixels of a glued picture: as many as a page is wide, for it is stored twice."""


class Html:
    """A piece of HTML, as a notebook shows it and `myst_nb.glue` keeps it."""

    def __init__(self, html: str) -> None:
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def as_html(image: Image.Image, alt: str | None = None) -> Html:
    """A picture as HTML: glued so, it keeps its alternative text on another page.

    Args:
        image: of any class.
        alt: what it shows; by default as `with_alt_text` has it.
    """
    file = BytesIO()
    small = image.convert("RGB")
    small.thumbnail((WIDEST_ALT, WIDEST_ALT))
    small.save(file, "JPEG", quality=85)
    data = b64encode(file.getvalue()).decode()
    words = escape(alt or image.info.get("alt", ""), quote=True)
    style = "display: block; margin: auto; max-width: 100%"
    return Html(f'<img alt="{words}" style="{style}" src="data:image/jpeg;base64,{data}"/>')


def publish_alt(notebook: NotebookNode) -> None:
    """Hand the alternative texts of an executed notebook to myst-nb, which reads them elsewhere.

    What an author wrote in a cell's metadata (``mystnb.image.alt``) is left as it is.

    Args:
        notebook: is changed.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                options = cell.metadata.setdefault("mystnb", {})
                options["image"] = {"alt": alt, **options.get("image", {})}


def grid_words(
    rows: int,
    columns: int,
    *,
    heads: Sequence[str] = (),
    labels: Sequence[str] = (),
    references: int = 0,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """What `companion.figures.grids.picture_grid` shows, from its labels.

    Args:
        rows: of pictures.
        columns: of pictures.
        heads: a label for each column.
        labels: a label for each row.
        references: so many columns on the left are inputs.
        groups: labels of runs of the other columns, each with the number of its columns.
    """
    words = [f"Pictures in {_count(rows, 'row')} and {_count(columns, 'column')}."]
    if any(labels):
        words.append(f"Rows from the top: {_listed(labels)}.")
    if any(heads):
        texts = [_listed(heads[:references])] if references else []
        at = references
        for title, span in groups or [("", columns - references)]:
            run = _listed(heads[at : at + span])
            texts.append(f"under {title}: {run}" if title else run)
            at += span
        words.append(f"From left to right: {'; '.join(filter(None, texts))}.")
    elif references:
        words.append(f"On the left: {_count(references, 'column')} of references.")
    return " ".join(words)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(filter(None, texts))


class VectorFigure(Image.Image):
    """A picture of a matplotlib figure, which a notebook stores as vector graphics besides.

    Args:
        figure: what to draw, at its own resolution.
    """

    def __init__(self, figure: Figure) -> None:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        super().__init__()
        self.__setstate__(pixels.__getstate__())
        self._figure = figure

    def pdf(self) -> bytes:
        """The figure as a PDF of one page. The same figure gives the same bytes."""
        file = BytesIO()
        FigureCanvasPdf(self._figure).print_pdf(file, metadata={"CreationDate": None})
        return file.getvalue()

    _repr_pdf_ = pdf  # where a notebook asks

    def _repr_jpeg_(self) -> None:
        """Lines do not want JPEG."""
