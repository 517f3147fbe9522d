"""An audit of a metric: what the PSNR column of the paper's Table 2 can and cannot show.

Every value in it lies between 27.93 and 28.40 dB. Squared differences that are left in 8 bits wrap
modulo 256, and give about 27.9 dB for almost any pair of pictures: the scale is lost, though more
alike pairs still have higher values. These functions apply both ways of computing PSNR to many
pairs of faces: of one person, and of different people.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats

from companion.pages.paired_faces import FacePairs
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
    proper = place_printed(measured, "psnr", quoted)
    wrapped = place_printed(measured, "psnr_8bit_overflow", quoted)
    few = proper["few"]
    similar = f"every pair here whose SSIM is within {NEAR:g} of its own"
    of = f"of {proper['printed']}"
    of += f" ({few} have fewer than {ENOUGH} such pairs)" if few else ""
    return {
        f"printed values of PSNR above the PSNR of {similar}": f"{proper['above']} {of}",
        "printed values in the range of these pairs, left in 8 bits": f"{wrapped['within']} {of}",
    }


def place_printed(measured: pd.DataFrame, column: str, quoted: pd.DataFrame) -> dict[str, int]:
    """Where the printed values of PSNR lie among pairs whose SSIM is within `NEAR` of their own.

    Args:
        measured: Pairs without gaps, with ``ssim`` and the column.
        column: One way of computing PSNR.
        quoted: The paper's Table 2.

    Returns:
        Counts of printed values: all (``printed``), those ``above`` every such pair, those
        ``within`` their range, and those with fewer than `ENOUGH` such pairs (``few``).
    """
    table = quoted.pivot(index="row", columns="column", values="value")
    found = {"printed": len(table), "above": 0, "within": 0, "few": 0}
    for psnr, ssim in zip(table["PSNR"], table["SSIM"], strict=True):
        near = measured.loc[(measured["ssim"] - ssim).abs() < NEAR, column]
        if len(near) < ENOUGH:
            found["few"] += 1
            continue
        found["above"] += bool(psnr > near.max())
        found["within"] += bool(near.min() <= psnr <= near.max())
    return found


def same_person_auc(pairs: pd.DataFrame, column: str) -> float:
    """Probability that a pair of one person has a higher value than a pair of two people.

    Equal values count half; 0.5 is chance, 1 never errs.

    Args:
        pairs: Pairs of `picture_pairs`, with the column; NaN where it could not be measured.
        column: A metric that is higher for more alike pictures.

    Raises:
        FusionError: One kind of pairs was not measured.
    """
    same, another = (
        pairs.loc[pairs["method"] == kind, column].dropna() for kind in (SAME, ANOTHER)
    )
    if same.empty or another.empty:
        raise FusionError(f"No pair of {ANOTHER if another.empty else SAME} was measured.")
    found = scipy.stats.mannwhitneyu(same, another)
    return float(found.statistic / (len(same) * len(another)))


MEAN_OF = 100
"""Pairs that a printed mean is taken to be of. The paper gives a number for CLIP scores alone."""


SMALL = 16
"""The first difference whose square does not fit into 8 bits."""


def order_facts(
    pairs: pd.DataFrame, faces: FacePairs, table1: pd.DataFrame, table2: pd.DataFrame
) -> dict[str, object]:
    """What is left of PSNR in 8 bits: its order, and how sure its means are.

    Args:
        pairs: Measured pairs of `picture_pairs`.
        faces: Their faces, of `companion.pages.paired_faces.paired_regions`.
        table1: The paper's Table 1, of `companion.claims.quoted.read_quoted`.
        table2: The paper's Table 2.

    Raises:
        FusionError: One kind of pairs was not measured.
    """
    ways = {"PSNR": "psnr", "PSNR left in 8 bits": "psnr_8bit_overflow", "SSIM": "ssim"}
    facts: dict[str, object] = {
        f"{name}: tells one person from another (AUC)": f"{same_person_auc(pairs, column):.3f}"
        for name, column in ways.items()
    }
    measured = pairs.dropna(subset=list(ways.values()))
    for name in list(ways)[:2]:
        rank = scipy.stats.spearmanr(measured[ways[name]], measured["ssim"]).statistic
        facts[f"{name}: rank correlation with SSIM"] = f"{rank:.2f}"

    small = [
        np.nan if pair is None else (np.abs(np.subtract(*pair, dtype=int)) < SMALL).mean()
        for pair in faces
    ]
    share = pd.Series(small, index=pairs.index).loc[measured.index]
    moves = scipy.stats.pearsonr(measured["psnr_8bit_overflow"], share).statistic
    facts[f"left in 8 bits: correlation with the share of differences below {SMALL}"] = (
        f"{moves:.2f}"
    )

    same = measured.loc[measured["method"] == SAME, "psnr_8bit_overflow"]
    error = float(same.std() / np.sqrt(MEAN_OF))
    table = table2.pivot(index="row", columns="column", values="value")
    printed = table["PSNR"].sort_values()
    steps = ", ".join(f"{step:.2f}" for step in printed.diff().dropna())
    lead = float(np.ptp(printed)) / (error * np.sqrt(2))
    facts |= {
        f"left in 8 bits: standard error of a mean of {MEAN_OF} pairs of one person": (
            f"{error:.3f} dB"
        ),
        "steps between the printed values, in their order": f"{steps} dB",
        "largest printed difference, in standard errors of a difference of two such means": (
            f"{lead:.0f}"
        ),
    }
    distances = table1.pivot(index="row", columns="column", values="value")
    others = {"SSIM": table["SSIM"]}
    others |= {f"distance by {name}": distances[name] for name in distances}
    for name, values in others.items():
        rank = scipy.stats.spearmanr(table["PSNR"], values.loc[table.index]).statistic
        facts[f"printed PSNR: rank correlation with printed {name}"] = f"{rank:.2f}"
    return facts


def _range(values: pd.Series[float]) -> str:
    spread = np.std(values, ddof=1)
    return f"{values.min():.2f} to {values.max():.2f} dB (standard deviation {spread:.2f})"
