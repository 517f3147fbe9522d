"""What the paper's own numbers say: its tables beside thresholds, each other and its sentences.

Nothing here is measured. Everything follows from the quoted tables (``data/paper/*.csv``), from the
thresholds of the installed DeepFace, from the shapes of published modules, and from Eq. 7. The
observations are written in ``data/paper/observations.yaml``, and their numbers are filled in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import factorial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import scipy.stats
from pydantic import BaseModel, ConfigDict, Field

from companion.entries import read_entries
from companion.figures.tables import marked_table
from companion.methods.published_sizes import published_weights
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

OBSERVATIONS = ROOT / "data" / "paper" / "observations.yaml"

IN_DEEPFACE = {"VGG-faces": "VGG-Face", "Facenet512": "Facenet512", "ArcFace": "ArcFace"}
"""DeepFace's names for the recognisers of Table 1, by the paper's."""

FORMER_THRESHOLDS = {"VGG-faces": 0.40}
"""Thresholds of DeepFace until January 2024. Its VGG-Face then had 2622 outputs; the present 4096
have a threshold of their own (github.com/serengil/deepface/issues/944)."""

BASELINES = ("IPA-FaceID", "IPA-FaceID-Plus")
"""The two compared systems for which Table 2 prints a CLIP score."""

OURS = ("Ours v1", "Ours v2")


def against_thresholds(table1: pd.DataFrame) -> pd.DataFrame:
    """Table 1 beside the distances up to which DeepFace accepts two pictures as one person.

    Args:
        table1: The paper's Table 1, of `companion.claims.quoted.read_quoted`.

    Returns:
        A row for each number: ``system``, ``recogniser``, ``distance``, ``threshold``, ``former``
        (the threshold of earlier versions, NaN where it was the same), ``below`` and
        ``below_former`` (by the present threshold where there was no other).

    Raises:
        FusionError: DeepFace has no threshold for a recogniser of the table.
    """
    from deepface.config.threshold import thresholds

    unknown = sorted(set(table1["column"]) - set(IN_DEEPFACE))
    if unknown:
        raise FusionError(f"DeepFace's threshold for {unknown[0]!r} of Table 1 is not known.")
    found = table1.rename(columns={"row": "system", "column": "recogniser", "value": "distance"})
    found = found[["system", "recogniser", "distance"]].reset_index(drop=True)
    found["threshold"] = [thresholds[IN_DEEPFACE[name]]["cosine"] for name in found["recogniser"]]
    found["former"] = found["recogniser"].map(FORMER_THRESHOLDS)
    found["below"] = found["distance"] < found["threshold"]
    found["below_former"] = found["distance"] < found["former"].fillna(found["threshold"])
    return found


def trade_off_line(table1: pd.DataFrame, table2: pd.DataFrame) -> pd.DataFrame:
    """How CLIP scores go with distances, and where the paper's systems lie off the baselines' line.

    The line leads through the two `BASELINES`, in the plane of distance and CLIP score.

    Args:
        table1: The paper's Table 1.
        table2: The paper's Table 2.

    Returns:
        A row for each recogniser: ``spearman`` and ``pearson`` over the systems with a CLIP score,
        ``systems`` (their number), ``slope`` and ``start`` of the line (CLIP points for a unit of
        distance, and the CLIP score at distance 0), and for each system of `OURS` by how many CLIP
        points it lies above the line.
    """
    distances = table1.pivot(index="row", columns="column", values="value")
    clip = table2[table2["column"] == "CLIP Score"].set_index("row")["value"].dropna()
    rows = {}
    for recogniser in table1["column"].unique():
        distance = distances.loc[clip.index, recogniser]
        first, second = BASELINES
        slope = (clip[first] - clip[second]) / (distance[first] - distance[second])
        start = clip[first] - slope * distance[first]
        rows[recogniser] = {
            "spearman": float(scipy.stats.spearmanr(distance, clip).statistic),
            "pearson": float(scipy.stats.pearsonr(distance, clip).statistic),
            "systems": len(clip),
            "slope": slope,
            "start": start,
            **{name: clip[name] - (start + slope * distance[name]) for name in OURS},
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def open_face_keys() -> pd.DataFrame:
    """Which face keys Eq. 7 leaves open to a query, for three people and each kind of place.

    Returns:
        A row for each place, a column for the text and one for each face; True where it is open.
        Computed by `fusionlib.identity_attention_mask`, from masks of one row of places.
    """
    import torch

    from fusionlib import identity_attention_mask

    places = {f"in the mask of person {i + 1}": {i} for i in range(3)}
    places |= {"where the masks of 1 and 2 overlap": {0, 1}, "outside all masks": set()}
    masks = torch.tensor([[[i in inside for inside in places.values()]] for i in range(3)])
    seen = identity_attention_mask(masks, [0, 1, 2], (1, len(places)), 1, [1, 1, 1])
    columns = ["the text", *(f"the face of person {i + 1}" for i in range(3))]
    return pd.DataFrame(seen.numpy(), index=list(places), columns=columns)


def open_keys_table() -> Styler:
    """Lay out `open_face_keys`."""
    words = open_face_keys().replace({True: "open", False: "closed"})
    words.index.name = "a query"
    return marked_table(words, "What a query may attend to by Eq. 7, for three people.", kind=None)


class Observation(BaseModel):
    """Something that the paper's numbers say; ``observations.yaml`` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(min_length=1)
    where: str = Field(min_length=1)
    numbers: str = Field(min_length=1)
    limits: str = Field(min_length=1)

    def filled(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """The cells of its row, with the values that it names.

        Raises:
            FusionError: It names a value that is not among the facts.
        """
        try:
            numbers, limits = (text.format_map(facts) for text in (self.numbers, self.limits))
        except (KeyError, ValueError, TypeError) as error:
            raise FusionError(
                f"The observation {self.title!r} names the value {error}, which is not computed: "
                "see companion.pages.paper_numbers.quoted_facts."
            ) from error
        return {
            "the numbers, and where they stand": f"{numbers} ({self.where})",
            "what they do not show": limits,
        }


def read_observations(path: str | Path = OBSERVATIONS) -> tuple[Observation, ...]:
    """All observations in the order of the page; a `FusionError` names one that does not fit."""
    return tuple(read_entries(path, Observation, "observation", "title").values())


def quoted_facts(table1: pd.DataFrame, table2: pd.DataFrame) -> dict[str, Any]:
    """The values that ``observations.yaml`` names in braces, computed from the quoted tables."""
    limits = against_thresholds(table1)
    vgg = limits[limits["recogniser"] == "VGG-faces"]
    line = trade_off_line(table1, table2)
    systems = int(line["systems"].iloc[0])
    clip = table2[table2["column"] == "CLIP Score"].set_index("row")["value"]
    baselines = {
        name: [values[system] for system in BASELINES] for name, values in _columns(table1).items()
    }
    counted = published_weights(["fused", "ip-adapter", "faceid", "faceid-plus"])
    return {
        **{column: values.to_dict() for column, values in _columns(table1).items()},
        **{column: values.to_dict() for column, values in _columns(table2).items()},
        "least": limits.groupby("recogniser")["distance"].min().to_dict(),
        "most": limits.groupby("recogniser")["distance"].max().to_dict(),
        "threshold": limits.groupby("recogniser")["threshold"].first().to_dict(),
        "below": int(limits["below"].sum()),
        "means": len(limits),
        "former": FORMER_THRESHOLDS["VGG-faces"],
        "below_former": int(vgg["below_former"].sum()),
        "rows": len(vgg),
        "line": line.to_dict("index"),
        "systems": systems,
        "orders": factorial(systems),
        "clip_lead": {name: clip[name] - clip["Ours v2"] for name in clip.index},
        "lowest_clip": clip.idxmin(),
        "gap": {name: abs(far - near) for name, (far, near) in baselines.items()},
        "printed": int(table1["value"].count() + table2["value"].count()),
        "weights": {name: count / 1e6 for name, count in counted.items()},
        "times": counted["fused"] / counted["ip-adapter"],
    }


def observation_table(
    table1: pd.DataFrame, table2: pd.DataFrame, path: str | Path = OBSERVATIONS
) -> Styler:
    """Lay out the observations: the numbers, where they stand, and what they do not show.

    Raises:
        FusionError: An observation names a value that is not computed.
    """
    facts = quoted_facts(table1, table2)
    rows = {one.title: one.filled(facts) for one in read_observations(path)}
    text = (
        "Computed from numbers and sentences of the paper; nothing here was measured. Weights are "
        "counted from the shapes of modules, thresholds are those of the installed DeepFace."
    )
    styler = marked_table(pd.DataFrame.from_dict(rows, orient="index"), text, kind="quoted")
    lines = "text-align: left; vertical-align: top;"
    return styler.set_table_styles([{"selector": "th, td", "props": lines}], overwrite=False)


def _columns(table: pd.DataFrame) -> dict[str, pd.Series[float]]:
    printed = table.pivot(index="row", columns="column", values="value")
    return {str(name): printed[name].dropna() for name in printed}
