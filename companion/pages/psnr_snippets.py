"""Ways in which PSNR is computed from 8-bit pictures, and what each gives on the same faces.

Each way is a function of two 8-bit pictures; the line that a table shows is the line that runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from companion.figures.tables import marked_table
from companion.pages.paired_faces import FacePairs, Pixels
from companion.pages.psnr_audit import ANOTHER, ENOUGH, SAME, place_printed, same_person_auc
from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


def _converted_first(a: Pixels, b: Pixels) -> Any:
    return np.mean((a.astype(float) - b.astype(float)) ** 2)


def _by_scikit_image(a: Pixels, b: Pixels) -> Any:
    from skimage.metrics import peak_signal_noise_ratio

    return peak_signal_noise_ratio(a, b)


def _by_opencv(a: Pixels, b: Pixels) -> Any:
    import cv2

    return cv2.PSNR(a, b)


def _all_wrapped(a: Pixels, b: Pixels) -> Any:
    return np.mean((a - b) ** 2)


def _square_wrapped(a: Pixels, b: Pixels) -> Any:
    import cv2

    return np.mean(cv2.absdiff(a, b) ** 2)


def _difference_wrapped(a: Pixels, b: Pixels) -> Any:
    return np.mean((a - b).astype(float) ** 2)


def _square_saturated(a: Pixels, b: Pixels) -> Any:
    import cv2

    return np.mean(cv2.multiply(cv2.absdiff(a, b), cv2.absdiff(a, b)))


def _difference_saturated(a: Pixels, b: Pixels) -> Any:
    import cv2

    return np.mean(cv2.subtract(a, b).astype(float) ** 2)


def _saturated_then_wrapped(a: Pixels, b: Pixels) -> Any:
    import cv2

    return np.mean(cv2.subtract(a, b) ** 2)


@dataclass(frozen=True)
class Snippet:
    """One way of computing PSNR.

    Attributes:
        what: What happens to the numbers.
        compute: Function of two 8-bit pictures of one shape.
        in_decibels: Whether the function gives decibels, or a mean squared error.
    """

    what: str
    compute: Callable[[Pixels, Pixels], Any]
    in_decibels: bool = False

    @property
    def code(self) -> str:
        """The line that computes it."""
        return inspect.getsource(self.compute).strip().splitlines()[-1].split("return ")[1]

    def psnr(self, image: Pixels, reference: Pixels) -> float:
        """What this way gives, in dB; infinite where it sees no difference."""
        with np.errstate(divide="ignore"):
            value = self.compute(image, reference)
            return float(value if self.in_decibels else 10 * np.log10(255**2 / np.float64(value)))


SNIPPETS = (
    Snippet("converted first", _converted_first),
    Snippet("scikit-image", _by_scikit_image, in_decibels=True),
    Snippet("OpenCV", _by_opencv, in_decibels=True),
    Snippet("difference and square wrap around", _all_wrapped),
    Snippet("true difference, its square wraps around", _square_wrapped),
    Snippet("the difference wraps around", _difference_wrapped),
    Snippet("true difference, its square stops at 255", _square_saturated),
    Snippet("the difference stops at 0", _difference_saturated),
    Snippet("the difference stops at 0, its square wraps around", _saturated_then_wrapped),
)
"""Proper ways first, then those that leave numbers in 8 bits."""


def snippet_values(faces: FacePairs) -> pd.DataFrame:
    """What each of `SNIPPETS` gives for each pair, in dB: a column each, NaN without two faces."""
    rows = [
        [np.nan if pair is None else snippet.psnr(*pair) for snippet in SNIPPETS] for pair in faces
    ]
    return pd.DataFrame(rows, columns=[snippet.what for snippet in SNIPPETS])


def snippet_table(pairs: pd.DataFrame, faces: FacePairs, quoted: pd.DataFrame, run: str) -> Styler:
    """Lay out what each of `SNIPPETS` gives on pairs of faces, and which could be the printed ones.

    Args:
        pairs: Measured pairs, with ``method`` and ``ssim``.
        faces: Their faces, of `companion.pages.paired_faces.paired_regions`.
        quoted: The paper's Table 2.
        run: The people and pictures that were compared.

    Raises:
        FusionError: Pairs and faces are not as many, or one kind of pairs has no two faces.
    """
    if len(pairs) != len(faces):
        raise FusionError(f"There are {len(pairs)} pairs and the faces of {len(faces)}.")
    values = pd.concat([pairs.reset_index(drop=True), snippet_values(faces)], axis=1)
    rows = {}
    for snippet in SNIPPETS:
        measured = values.dropna(subset=["ssim", snippet.what])
        psnr = measured[snippet.what]
        means = measured.groupby("method")[snippet.what].mean()
        placed = place_printed(measured, snippet.what, quoted)
        rows[snippet.what] = {
            "code, for 8-bit <code>a</code> and <code>b</code>": f"<code>{snippet.code}</code>",
            f"{SAME}, dB": f"{means[SAME]:.2f}",
            f"{ANOTHER}, dB": f"{means[ANOTHER]:.2f}",
            "from, to": f"{psnr.min():.2f}, {psnr.max():.2f}",
            "AUC": f"{same_person_auc(measured, snippet.what):.3f}",
            "printed values in range": f"{placed['within']} of {placed['printed'] - placed['few']}",
        }
    text = (
        "Measured here: PSNR by each way, mean and range over pairs; how well it tells one person "
        "from another; and how many printed values lie in the range of pairs of about their SSIM, "
        f"of those with at least {ENOUGH} such pairs. "
    )
    return marked_table(pd.DataFrame.from_dict(rows, orient="index"), text + run)
