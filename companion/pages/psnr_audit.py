"""An audit of a metric: what the PSNR column of the paper's Table 2 can and cannot show.

Every value in it lies between 27.93 and 28.40 dB. Squared differences that are left in 8 bits wrap
modulo 256, and give about 27.9 dB for almost any pair of pictures. These functions apply both ways
of computing PSNR to many pairs of faces: of one person, and of different people.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats

from companion.person import Person
from fusionlib.errors import FusionError

SAME, ANOTHER = "same person", "another person"


def picture_pairs(people: Sequence[Person]) -> pd.DataFrame:
    """Pairs of pictures, laid out as a study's index for `companion.evaluation.measure.measure`.

    Each person's reference is paired with the person's own other pictures (method `SAME`) and with
    those of the next person (method `ANOTHER`).

    Raises:
        FusionError: There are fewer than two people.
    """
    if len(people) < 2:
        raise FusionError("Pairs of different people need two people.")
    rows = [
        {"method": kind, "person": person.name, "prompt": "", "seed": seed, "image": str(path)}
        for person, following in zip(people, [*people[1:], people[0]], strict=True)
        for kind, shown in ((SAME, person), (ANOTHER, following))
        for seed, path in enumerate(shown.others)
    ]
    return pd.DataFrame(rows)


NEAR = 0.05
"""Largest difference in SSIM of pairs that a printed value is compared with."""

ENOUGH = 5
"""Least number of pairs whose range is worth reporting."""


def overflow_facts(pairs: pd.DataFrame, quoted: pd.DataFrame | None = None) -> dict[str, str]:
    """What was found: ranges of both PSNRs, and how each goes with SSIM.

    Args:
        pairs: Measured pairs, with columns ``ssim``, ``psnr`` and ``psnr_8bit_overflow``.
        quoted: The paper's table, of `companion.claims.quoted.read_quoted`, to place its values
            among those of pairs of similar SSIM.

    Raises:
        FusionError: Fewer than ten pairs were measured.
    """
    measured = pairs.dropna(subset=["ssim", "psnr", "psnr_8bit_overflow"])
    if len(measured) < 10:
        raise FusionError(f"Ten measured pairs are needed to speak of ranges, not {len(measured)}.")
    proper, wrapped = measured["psnr"], measured["psnr_8bit_overflow"]
    tenths = measured.groupby(pd.qcut(measured["ssim"].rank(method="first"), 10)).mean(
        numeric_only=True
    )

    def correlation(values: pd.Series[float]) -> str:
        found = scipy.stats.pearsonr(values, measured["ssim"])
        low, high = found.confidence_interval(0.95)
        return f"{found.statistic:.2f} [{low:.2f}, {high:.2f}]"

    printed = {}
    if quoted is not None:
        printed = _where_printed_values_lie(measured, quoted)
    return {
        "pairs of faces": f"{len(measured)} of {len(pairs)} (in the others no face is found)",
        "PSNR": _range(proper),
        "PSNR left in 8 bits": _range(wrapped),
        "of these between 27.5 and 28.5 dB": f"{wrapped.between(27.5, 28.5).mean():.1%}",
        "PSNR, means over tenths of the pairs by SSIM": _range(tenths["psnr"]),
        "the same, left in 8 bits": _range(tenths["psnr_8bit_overflow"]),
        "correlation of PSNR with SSIM": correlation(proper),
        "correlation of PSNR left in 8 bits with SSIM": correlation(wrapped),
        **printed,
    }


def _where_printed_values_lie(measured: pd.DataFrame, quoted: pd.DataFrame) -> dict[str, str]:
    table = quoted.pivot(index="row", columns="column", values="value")
    above, within, few = 0, 0, 0
    for psnr, ssim in zip(table["PSNR"], table["SSIM"], strict=True):
        near = measured[(measured["ssim"] - ssim).abs() < NEAR]
        if len(near) < ENOUGH:
            few += 1
            continue
        wrapped = near["psnr_8bit_overflow"]
        above += bool(psnr > near["psnr"].max())
        within += bool(wrapped.min() <= psnr <= wrapped.max())
    similar = f"every pair here whose SSIM is within {NEAR:g} of its own"
    of = f"of {len(table)}" + (f" ({few} have fewer than {ENOUGH} such pairs)" if few else "")
    return {
        f"printed values of PSNR above the PSNR of {similar}": f"{above} {of}",
        "printed values in the range of these pairs, left in 8 bits": f"{within} {of}",
    }


def _range(values: pd.Series[float]) -> str:
    spread = np.std(values, ddof=1)
    return f"{values.min():.2f} to {values.max():.2f} dB (standard deviation {spread:.2f})"
