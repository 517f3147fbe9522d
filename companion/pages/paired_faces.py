"""The faces that pairs of pictures compare, cut out and aligned, for a closer look at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.quality import face_region
from companion.evaluation.readings import observe
from companion.person import Person
from fusionlib.inputs.images import load_image

Pixels = NDArray[np.uint8]

FacePairs = Sequence[tuple[Pixels, Pixels] | None]
"""The face regions of a picture and of a reference for each pair, None where a face is missing."""


def paired_regions(
    pairs: pd.DataFrame,
    people: Sequence[Person],
    *,
    detector: str = "dlib",
    cache: str | Path | None = None,
) -> FacePairs:
    """Cut out the faces that pairs compare, as `companion.evaluation.measure.measure` does.

    Args:
        pairs: Pairs of `companion.pages.psnr_audit.picture_pairs`.
        people: People of the pairs, whose first reference each picture is compared with.
        detector: Name of the detector in DeepFace.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.
    """
    references = {person.name: person.references[0] for person in people}
    paths = [Path(path) for path in pairs["image"]]
    seen = observe([*paths, *references.values()], detector=detector, cache=cache)
    eyes = dict(zip([*paths, *references.values()], seen.eyes, strict=True))
    regions = {
        path: None if np.isnan(at).any() else face_region(load_image(path), at)
        for path, at in eyes.items()
    }
    found: list[tuple[Pixels, Pixels] | None] = []
    for path, name in zip(paths, pairs["person"], strict=True):
        shown, reference = regions[path], regions[references[name]]
        found.append(None if shown is None or reference is None else (shown, reference))
    return found
