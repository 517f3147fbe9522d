"""Drawn figures: pixels for a page, lines and letters for a printer."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from PIL import Image


class Drawing(Image.Image):
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
