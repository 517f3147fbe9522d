"""Pictures as a notebook shows them: with alternative text, as HTML, and as vector graphics."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from IPython.display import HTML
    from nbformat import NotebookNode


def with_alt_text(image: Image.Image, alt: str) -> Image.Image:
    """Give a picture its alternative text, which a notebook stores beside the pixels.

    Args:
        image: Picture of any class; it is changed in place, and shown as before.
        alt: What it shows, in a sentence or two.

    Returns:
        The same picture.
    """

    def png() -> tuple[bytes | None, dict[str, str]]:
        return type(image)._repr_png_(image), {"alt": alt}

    vars(image)["_repr_png_"] = png  # IPython takes data, or data with metadata
    image.info["alt"] = alt
    return image


WIDEST_HTML = 1000
"""Largest side in pixels of a picture as HTML: a page's width, since it is stored twice."""


def as_html(image: Image.Image, alt: str | None = None) -> HTML:
    """A picture as HTML, which keeps its alternative text when it is glued into another page.

    Args:
        image: Picture of any class.
        alt: What it shows; by default the text given to `with_alt_text`.
    """
    from IPython.display import HTML

    file = BytesIO()
    small = image.convert("RGB")
    small.thumbnail((WIDEST_HTML, WIDEST_HTML))
    small.save(file, "JPEG", quality=85)
    data = b64encode(file.getvalue()).decode()
    words = escape(alt or image.info.get("alt", ""), quote=True)
    style = "display: block; margin: auto; max-width: 100%"
    return HTML(f'<img alt="{words}" style="{style}" src="data:image/jpeg;base64,{data}"/>')


def publish_alt(notebook: NotebookNode) -> None:
    """Copy the alternative texts of an executed notebook to where myst-nb reads them.

    What an author wrote in a cell's metadata (``mystnb.image.alt``) is left as it is.

    Args:
        notebook: Executed notebook; it is changed in place.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                options = cell.metadata.setdefault("mystnb", {})
                options["image"] = {"alt": alt, **options.get("image", {})}


class VectorFigure(Image.Image):
    """A picture of a matplotlib figure, which a notebook stores as vector graphics, too.

    Args:
        figure: Figure to draw, at its own resolution.
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
        """Return no JPEG, which blurs lines."""
