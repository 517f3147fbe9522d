"""What true PSNR a value that was left in 8 bits may stand for, and what a true one would need."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.style import INK, QUOTED, WORSE
from companion.figures.tables import marked_table
from companion.pages.paired_faces import FacePairs, Pixels
from companion.pages.psnr_audit import ENOUGH
from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

LEAST_SPREAD, MOST_SPREAD = 1.0, 100.0
"""Standard deviations of differences in grey levels between which solutions are looked for."""

NEAR = 0.05
"""Largest difference in dB of measured pairs that a printed value is compared with."""


def gaussian_psnrs(spread: float) -> tuple[float, float]:
    """True PSNR, and that left in 8 bits, of pictures with Gaussian differences, in dB.

    Args:
        spread: Standard deviation of the differences in grey levels, above 0. They are rounded, and
            stop at -255 and 255 as those of 8-bit pictures do.
    """
    difference = np.arange(-255, 256)
    edges = np.concatenate([[-np.inf], difference[:-1] + 0.5, [np.inf]])
    share = np.diff(norm.cdf(edges / spread))
    true, wrapped = (share @ error for error in (difference**2, difference**2 % 256))
    return float(10 * np.log10(255**2 / true)), float(10 * np.log10(255**2 / wrapped))


@cache
def lowest_wrapped() -> tuple[float, float]:
    """The spread at which PSNR left in 8 bits is lowest, and that value in dB."""
    found = minimize_scalar(
        lambda spread: gaussian_psnrs(spread)[1], bounds=(50, MOST_SPREAD), method="bounded"
    )
    return float(found.x), float(found.fun)


def true_psnr(wrapped: float) -> tuple[float, float]:
    """The true PSNR that a value left in 8 bits stands for, if differences are Gaussian.

    From equal pictures on, the value falls to its lowest as the differences spread. Beyond that it
    rises a little, because differences stop at 255; those solutions are left out.

    Args:
        wrapped: Value in dB.

    Returns:
        The spread of the differences in grey levels, and the true PSNR in dB.

    Raises:
        FusionError: No spread from `LEAST_SPREAD` to the one with the lowest value gives it.
    """
    spread, lowest = lowest_wrapped()
    highest = gaussian_psnrs(LEAST_SPREAD)[1]
    if not lowest <= wrapped <= highest:
        raise FusionError(
            f"Gaussian differences that are left in 8 bits give {lowest:.2f} to {highest:.2f} dB, "
            f"not {wrapped:.2f}."
        )
    found = brentq(lambda s: gaussian_psnrs(s)[1] - wrapped, LEAST_SPREAD, spread, xtol=1e-6)
    return float(found), gaussian_psnrs(found)[0]


def inversion_table(pairs: pd.DataFrame, quoted: pd.DataFrame, run: str) -> Styler:
    """Lay out the true PSNR that each printed value would stand for after an overflow.

    Args:
        pairs: Measured pairs, with ``psnr`` and ``psnr_8bit_overflow``.
        quoted: The paper's Table 2.
        run: The people and pictures that were compared.
    """
    rows = {}
    for name, value in _printed(quoted).items():
        spread, true = true_psnr(value)
        near = pairs.loc[(pairs["psnr_8bit_overflow"] - value).abs() < NEAR, "psnr"]
        here = f"{len(near)} pairs alone"
        if len(near) >= ENOUGH:
            low, middle, high = near.quantile([0.05, 0.5, 0.95])
            here = f"{middle:.1f} ({low:.1f} to {high:.1f}; {len(near)} pairs)"
        rows[str(name)] = {
            "printed, dB": f"{value:.2f}",
            "Gaussian differences: spread in grey levels": f"{spread:.0f}",
            "Gaussian differences: true PSNR, dB": f"{true:.1f}",
            "faces here: true PSNR, dB": here,
        }
    text = (
        "Computed from the printed values, as if they had been left in 8 bits; and measured here: "
        f"the median true PSNR, with the middle 90%, of pairs whose value left in 8 bits is within "
        f"{NEAR:g} dB of the printed one. {run}"
    )
    return marked_table(pd.DataFrame.from_dict(rows, orient="index"), text)


def inversion_plot(pairs: pd.DataFrame, quoted: pd.DataFrame) -> Image.Image:
    """Draw PSNR left in 8 bits over the true one: pairs of faces, and Gaussian differences.

    Args:
        pairs: Measured pairs, with ``psnr`` and ``psnr_8bit_overflow``.
        quoted: The paper's Table 2, whose values are rings on the curve.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.scatter(
        pairs["psnr"],
        pairs["psnr_8bit_overflow"],
        s=12,
        color=WORSE,
        alpha=0.35,
        linewidths=0,
        label="measured: pairs of faces",
    )
    spreads = np.geomspace(7.5, MOST_SPREAD, 200)
    curve = np.array([gaussian_psnrs(spread) for spread in spreads])
    axes.plot(*curve.T, color=INK, linewidth=1.6, label="computed: Gaussian differences")
    words: list[str] = []
    for name, value in _printed(quoted).items():
        true = true_psnr(value)[1]
        axes.axhline(value, color=QUOTED, linewidth=0.7, alpha=0.5, zorder=0)
        label = "quoted: the methods of Table 2, on the curve" if not words else None
        look: dict[str, Any] = {"mfc": "none", "mec": QUOTED, "mew": 2, "markersize": 9}
        axes.plot(true, value, "o", **look, linestyle="none", label=label, zorder=3)
        words.append(f"{name} {value:.2f} would be {true:.1f}")
    axes.set_xlabel("true PSNR in dB")
    axes.set_ylabel("PSNR left in 8 bits, in dB")
    axes.set_xlim(3, 25)
    axes.set_ylim(27.55, 29.25)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    alt = (
        f"PSNR left in 8 bits over the true PSNR in dB. {pairs['psnr'].notna().sum()} pairs of "
        f"faces have true PSNRs from {pairs['psnr'].min():.1f} to {pairs['psnr'].max():.1f} dB. "
        f"The curve for Gaussian differences is lowest at {lowest_wrapped()[1]:.2f} dB, hardly "
        f"higher where pictures are little alike, and rises where they are more. On it, "
        f"{', '.join(words)} dB."
    )
    return with_alt_text(VectorFigure(figure), alt)


STABILISER = (0.03 * 255) ** 2
"""SSIM's constant C2 for 8-bit pictures."""


def needed_contrast(psnr: float, ssim: float) -> tuple[float, float]:
    """What a true PSNR and an SSIM say together of the pictures, in grey levels.

    With equal local means, 1 - SSIM is the squared error over the sum of both pictures' local
    variances and `STABILISER`.

    Args:
        psnr: True PSNR in dB.
        ssim: SSIM, below 1.

    Returns:
        The root of the mean squared error, and the local standard deviation of each picture; 0 if
        the stabiliser alone is more than enough.
    """
    error = 255 / 10 ** (psnr / 20)
    variance = (error**2 / (1 - ssim) - STABILISER) / 2
    return error, float(np.sqrt(max(variance, 0)))


def local_contrast(picture: Pixels) -> float:
    """Local standard deviation of an RGB picture in grey levels, in SSIM's window.

    It is the root mean square over places and channels.
    """
    pixels = picture.astype(np.float64)
    window = {"sigma": (1.5, 1.5, 0), "truncate": 3.5}
    variance = gaussian_filter(pixels**2, **window) - gaussian_filter(pixels, **window) ** 2
    return float(np.sqrt(np.clip(variance, 0, None).mean()))


def other_reading_facts(faces: FacePairs, quoted: pd.DataFrame) -> dict[str, str]:
    """What the printed values need if they are true, beside the faces here.

    Args:
        faces: Faces of `companion.pages.paired_faces.paired_regions`.
        quoted: The paper's Table 2.
    """
    table = quoted.pivot(index="row", columns="column", values="value")
    needed = [needed_contrast(*row) for row in table[["PSNR", "SSIM"]].to_numpy()]
    errors, contrasts = (np.array(values) for values in zip(*needed, strict=True))
    own = np.array([local_contrast(pair[0]) for pair in faces if pair is not None])
    low, middle, high = np.quantile(own, [0.05, 0.5, 0.95]) if len(own) else [np.nan] * 3
    return {
        "root mean squared difference, if the printed PSNRs are true": (
            f"{errors.min():.1f} to {errors.max():.1f} grey levels"
        ),
        "local contrast that gives the printed SSIMs with it": (
            f"{contrasts.min():.1f} to {contrasts.max():.1f} grey levels"
        ),
        "local contrast of the faces here, median (middle 90%)": (
            f"{middle:.1f} ({low:.1f} to {high:.1f}) grey levels"
        ),
    }


def _printed(quoted: pd.DataFrame) -> pd.Series[float]:
    return quoted[quoted["column"] == "PSNR"].set_index("row")["value"]
