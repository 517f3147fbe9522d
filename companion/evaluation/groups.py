"""Who is who in a picture of several people: each face is looked at in its own place.

A method is asked for identity i in mask i. So the picture is cut around every mask, and a
recogniser finds which of the group's members the face there is nearest to. Chance is one over their
number; a method that mixes the members up, or gives all of them one face, is not better than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from companion.evaluation.identity import cosine_distance
from companion.evaluation.readings import observe
from companion.evaluation.statistics import Interval, bootstrap
from companion.faces.recognisers import Instrument
from companion.person import Person
from fusionlib.inputs.images import load_image
from fusionlib.inputs.layout import masks_from_colors
from fusionlib.support.files import write_atomically
from fusionlib.support.provenance import sha256_file

MARGIN = 0.45
"""Margin around the mask's box, in its longer sides: a detector needs to see hair."""

SIDE = 160
"""Side of the cut pictures in pixels: faces in a group are small, and detectors need some size."""


def cut_faces(picture: Path, masks: NDArray[np.bool_], folder: Path) -> list[Path]:
    """Cut a picture around each mask, once.

    Args:
        picture: Picture of a group.
        masks: Boolean array ``(members, height, width)``.
        folder: Folder for the cut pictures, which are named by the picture's content.

    Returns:
        One picture of `SIDE` x `SIDE` pixels for each mask, its border repeated where it is cut at
        the picture's edge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = sha256_file(picture)[:32]
    places = []
    image: Image.Image | None = None
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        half = int(np.ceil(max(bottom - top, right - left) * (0.5 + MARGIN)))
        y, x = int(top + bottom) // 2, int(left + right) // 2
        target = folder / f"{stem}-{y}-{x}-{half}.png"
        places.append(target)
        if target.is_file():
            continue
        image = image or load_image(picture)
        padded = np.pad(np.asarray(image), ((half, half), (half, half), (0, 0)), mode="edge")
        face = Image.fromarray(padded[y : y + 2 * half, x : x + 2 * half])
        shown = face.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        write_atomically(target, partial(shown.save, format="PNG"))
    return places


def recognise_members(
    index: pd.DataFrame,
    groups: Sequence[Person],
    members: int,
    recogniser: Instrument,
    *,
    detector: str = "dlib",
    out: str | Path,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """Find out, for every face of a study of groups, which member it shows.

    Args:
        index: Index of the study, see `companion.studies.study.run_study`.
        groups: Groups of `companion.methods.groups.load_groups`.
        members: Number of people in each.
        recogniser: An instrument that looks at faces.
        detector: Name of the detector in DeepFace.
        out: Folder for the cut pictures.
        cache: See `companion.evaluation.readings.observe`.

    Returns:
        A row for each face: ``method``, ``person`` (the group), ``prompt``, ``seed``, ``place``
        from the left, ``own``, the distance to the member who belongs there, ``others``, the mean
        distance to the other members, and ``right``, 1 if the own one is the smallest, else 0. NaN
        where no face is found. The method ``rendered`` is the group as it was rendered.
    """
    folder = Path(out) / "cut"
    known = {group.name: group for group in groups}
    layouts = {
        name: masks_from_colors(Image.open(group.references[members]).convert("RGB")).numpy()
        for name, group in known.items()
    }
    rendered = pd.DataFrame(
        {
            "method": "rendered",
            "person": [group.name for group in groups],
            "prompt": "",
            "seed": 0,
            "image": [str(group.others[0]) for group in groups],
        }
    )
    pictures = pd.concat([index, rendered], ignore_index=True)
    cuts = [
        path
        for picture, name in zip(pictures["image"], pictures["person"], strict=True)
        for path in cut_faces(Path(picture), layouts[name], folder)
    ]
    looked: dict[str, Any] = {"detector": detector, "cache": cache, "strict": True}
    seen = observe(cuts, {"it": recogniser}, **looked).values["it"]
    faces = [path for group in groups for path in group.references[:members]]
    references = observe(faces, {"it": recogniser}, **looked).values["it"]
    order = {group.name: number for number, group in enumerate(groups)}
    rows = []
    for number, picture in enumerate(pictures.to_dict("records")):
        first = order[picture["person"]] * members
        candidates = references[first : first + members]
        for place in range(members):
            distances = cosine_distance(seen[number * members + place][None], candidates)
            own = float(distances[place])
            nearest = float(np.argmin(distances) == place) if np.isfinite(distances).all() else None
            rows.append(
                {key: picture[key] for key in ("method", "person", "prompt", "seed")}
                | {"place": place, "own": own, "others": float(np.delete(distances, place).mean())}
                | {"right": np.nan if nearest is None else nearest}
            )
    return pd.DataFrame(rows)


def group_summary(faces: pd.DataFrame) -> Mapping[str, dict[str, Interval | str]]:
    """For each method what `recognise_members` found, with intervals over groups.

    Returns:
        By method: ``right person``, the share of faces nearest to who belongs there, ``own`` and
        ``others``, the mean distances, and ``faces found``.
    """
    found: dict[str, dict[str, Interval | str]] = {}
    for method, rows in faces.groupby("method", sort=False):
        means = rows.groupby("person")[["right", "own", "others"]].mean().dropna()
        found[str(method)] = {
            "right person": bootstrap(means["right"].to_numpy()),
            "distance to the right person": bootstrap(means["own"].to_numpy()),
            "to the others": bootstrap(means["others"].to_numpy()),
            "faces found": f"{int(rows['right'].notna().sum())} of {len(rows)}",
        }
    return found


def mask_gains(faces: pd.DataFrame) -> pd.DataFrame:
    """How much nearer each face is to its own person than to the others, as ``gain``.

    Args:
        faces: Table of `recognise_members`.

    Returns:
        A table for `companion.evaluation.comparison.paired_difference`, in which every place of a
        picture is a cell of its own; NaN where no face was found.
    """
    places = [
        f"{prompt}, place {n}" for prompt, n in zip(faces["prompt"], faces["place"], strict=True)
    ]
    return faces.assign(prompt=places, gain=faces["others"] - faces["own"])
