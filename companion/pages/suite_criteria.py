"""What a suite of people and models must show before anything is judged by it, measured.

Each function measures one part of the suite and returns the result beside the least value, which
was set before the outcome was known. The measures are in `companion.evaluation.separation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion.evaluation.alignment import ClipScorer
from companion.evaluation.comparison import IdentityScores, mean_over_people, method_recovery
from companion.evaluation.measure import Measurements
from companion.evaluation.quality import psnr, reconstruct
from companion.evaluation.readings import observe
from companion.evaluation.separation import (
    Separation,
    caption_retrieval,
    frechet_distance,
    told_apart,
)
from companion.evaluation.statistics import Interval
from companion.faces.recognisers import Instrument
from companion.pages.judging_judges import all_pictures, read_records
from companion.person import Person
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.support.files import write_atomically
from fusionlib.support.provenance import sha256_file, sha256_modules

CAPTION_FIELDS = ("style", "scene", "expression", "role", "gender")
"""Fields of a record that its caption usually names; captions that differ in one are different."""

WANTED = {"expression": 0.85, "style": 0.90, "scene": 0.85}
"""Share of the base model's pictures that show what the prompt says."""

FACES_FOUND = "faces found, over all styles"


@dataclass(frozen=True)
class Criterion:
    """One thing that a suite must show.

    Attributes:
        part: Part of the suite: people, autoencoder, CLIP, classifier, base, adapter; or renders,
            which some of these are compared with.
        what: What is measured, with its unit.
        least: Least acceptable value; None where the value is only there to compare with.
        measured: The value, or its interval over people.
        looked_at: Number and kind of what was measured.
    """

    part: str
    what: str
    least: float | None
    measured: float | Interval
    looked_at: str

    @property
    def value(self) -> float:
        """The measured value alone."""
        return self.measured.estimate if isinstance(self.measured, Interval) else self.measured

    @property
    def met(self) -> bool | None:
        """Whether the value is at least what was asked for; no value is not."""
        return None if self.least is None else bool(self.value >= self.least)


def criteria_of_people(found: Separation) -> list[Criterion]:
    """Recognisers made for photographs of real people must tell the rendered people apart.

    Args:
        found: Result of dlib on photographs with varying expression and pose.
    """
    looked = f"{found.pictures} photographs"
    return [
        Criterion("people", "told apart by dlib, AUC", 0.98, found.auc, looked),
        Criterion("people", "faces found", 0.99, found.found / found.pictures, looked),
    ]


def criteria_of_autoencoder(
    pipeline: Any,
    people: Sequence[Person],
    recogniser: Any,
    *,
    detector: str = "dlib",
    out: str | Path,
    cache: str | Path | None = None,
) -> list[Criterion]:
    """What the latents keep: of the pictures, and of who is in them.

    Args:
        pipeline: Stable Diffusion pipeline, whose autoencoder is measured.
        people: Two people or more, with pictures that the autoencoder has not seen.
        recogniser: Instrument of `companion.evaluation.readings`.
        detector: Face detector of DeepFace.
        out: Folder for the reconstructed pictures, made once.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.
    """
    paths, whose = all_pictures(people)
    weights = sha256_modules([pipeline.vae])
    values, restored = [], []
    folder = Path(out) / f"reconstructions-{weights[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        picture = load_image(path)
        target = folder / f"{sha256_file(path)[:32]}.png"
        if not target.is_file():
            restored_picture = reconstruct(pipeline, [picture])[0]
            write_atomically(target, partial(restored_picture.save, format="PNG"))
        values.append(psnr(np.asarray(load_image(target)), np.asarray(picture)))
        restored.append(target)
    seen = observe(restored, {"it": recogniser}, detector=detector, cache=cache, strict=True)
    found = told_apart(seen.values["it"], whose)
    looked = f"{len(paths)} photographs"
    return [
        Criterion("autoencoder", "PSNR, dB", 30.0, float(np.mean(values)), looked),
        Criterion("autoencoder", "told apart by dlib afterwards, AUC", 0.97, found.auc, looked),
    ]


def criteria_of_clip(
    checkpoint: str,
    folder: str | Path,
    *,
    candidates: int = 32,
    cache: str | Path | None = None,
) -> list[Criterion]:
    """Whether CLIP finds the caption of pictures whose combinations were kept from training.

    Args:
        checkpoint: Folder or hub id of the CLIP model.
        folder: Held-out pictures with records, see `companion.pages.judging_judges.read_records`.
        candidates: Number of captions to choose from.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Raises:
        FusionError: Fewer than two pictures show such a combination.
    """
    rows = [(path, record) for _, path, record in read_records(folder) if record.get("held_out")]
    if len(rows) < 2:
        raise FusionError(f"{folder} has no pictures whose records say held_out.")
    scorer = ClipScorer(checkpoint)
    seen = observe([path for path, _ in rows], {"clip": scorer}, cache=cache, strict=True)
    facts = [tuple(record.get(field) for field in CAPTION_FIELDS) for _, record in rows]
    top1 = caption_retrieval(
        seen.values["clip"],
        scorer.embed_texts([record["caption"] for _, record in rows]),
        facts,
        candidates=candidates,
    )
    looked = f"{len(rows)} pictures"
    what = f"right caption among {candidates}, top-1"
    return [Criterion("CLIP", what, 0.85, top1, looked)]


def criteria_of_classifier(found: pd.DataFrame) -> list[Criterion]:
    """The judge of the others must be right about renders.

    Args:
        found: Result of `companion.pages.judging_judges.classifier_accuracy`.
    """
    rows = found.to_dict(orient="index")
    return [
        Criterion(
            "classifier",
            f"{head} of renders",
            0.95,
            rows[head]["accuracy"],
            f"{rows[head]['pictures']} renders",
        )
        for head in WANTED
        if head in rows
    ]


def criteria_of_base(measured: Measurements, method: str = "text-only") -> list[Criterion]:
    """Whether the base model paints what a prompt says, and faces, whatever the style.

    Args:
        measured: Measurements of a study of the base model alone, with classifiers.
        method: Name of the method in the study.
    """
    images = measured.images[measured.images["method"] == method]
    several = images["person"].nunique() > 1  # there is no interval over one person
    asked = {f"{head}_correct": (f"{head} as prompted", least) for head, least in WANTED.items()}
    criteria = []
    for column, (what, least) in (asked | {"face": (FACES_FOUND, 0.97)}).items():
        known = images.get(column, pd.Series(dtype=float)).dropna()
        if len(known):
            shares = images.astype({column: float})
            share = mean_over_people(shares, column, method) if several else float(known.mean())
            criteria.append(Criterion("base", what, least, share, f"{len(known)} pictures"))
    return criteria


def faces_by_style(
    painted: pd.DataFrame,
    styles: Mapping[str, str],
    folder: str | Path,
    *,
    people: int | None = None,
    detector: str = "dlib",
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """How often the detector finds a face, style by style, in what was painted and in renders.

    A detector that was made for photographs misses some faces of every other style; what it misses
    in renders, which all have a face, no painted picture can be asked to show it.

    Args:
        painted: Measured pictures, with the columns prompt and face.
        styles: Style that each prompt asks for; pictures of other prompts are left out.
        folder: Renders with records, see `companion.pages.judging_judges.read_records`.
        people: Number of people whose renders are used, the first ones; by default all.
        detector: Face detector of DeepFace.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Returns:
        A row for each style that was painted and rendered: the shares ``painted`` and ``renders``,
        from 0 to 1, and how many pictures each is of.

    Raises:
        FusionError: The folder has another layout, or a picture in it cannot be read.
    """
    rows = [(record.get("style"), path) for _, path, record in read_records(folder, people)]
    seen = observe([path for _, path in rows], detector=detector, cache=cache, strict=True)
    renders = pd.DataFrame({"style": [style for style, _ in rows], "face": seen.faces})
    tables = {
        "painted": painted.assign(style=painted["prompt"].map(styles)),
        "renders": renders,
    }
    columns: dict[str, Any] = {}
    for name, images in tables.items():
        faces = images.groupby("style", sort=False)["face"]
        columns |= {name: faces.mean(), f"of {name}": faces.size()}
    return pd.DataFrame(columns).reindex(list(dict.fromkeys(styles.values()))).dropna()


def criteria_of_renders(by_style: pd.DataFrame) -> list[Criterion]:
    """What the base model's faces are to be compared with: those of renders, each style once.

    Args:
        by_style: Result of `faces_by_style`.
    """
    looked = f"{by_style['of renders'].sum():.0f} renders"
    return [Criterion("renders", FACES_FOUND, None, float(by_style["renders"].mean()), looked)]


def criteria_of_adapter(
    measured: Measurements,
    scores: Mapping[str, IdentityScores],
    method: str = "fused",
    *,
    least: float | None = 0.8,
) -> list[Criterion]:
    """Whether an adapter keeps the person and the prompt; nothing if the study is without it.

    Args:
        measured: Measurements of a study whose prompts ask for expressions unlike the references'.
        scores: Identity scores of the study, by the name of the recogniser.
        method: Name of the method in the study.
        least: Least value asked of the method, if any.
    """
    images = measured.images[measured.images["method"] == method]
    if images.empty:
        return []
    part = f"adapter {method}"
    looked = f"{images['person'].nunique()} people, {len(images)} pictures"
    criteria = [
        Criterion(part, f"R by {name}", least, method_recovery(one, method), looked)
        for name, one in scores.items()
    ]
    if "expression_correct" in images:
        kept = mean_over_people(images, "expression_correct", method)
        criteria.append(Criterion(part, "expression as prompted", least, kept, looked))
    return criteria


def distance_to_renders(
    generated: Sequence[Path],
    drawn: Sequence[Path],
    further: Sequence[Path],
    instruments: Mapping[str, Instrument],
    *,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """How far generated pictures are from renders as a distribution, beside renders from renders.

    Args:
        generated: Pictures generated from captions.
        drawn: Renders with these captions.
        further: Equally many other renders.
        instruments: Instruments whose features are compared, by name.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Returns:
        A row for each instrument: the Fréchet distances ``generated`` and ``renders``, both to
        the first renders.

    Raises:
        FusionError: The numbers of pictures differ, which would make the values incomparable.
    """
    if not len(generated) == len(drawn) == len(further):
        raise FusionError(
            f"Fréchet distances are comparable for equal numbers of pictures only, not for "
            f"{len(generated)}, {len(drawn)} and {len(further)}."
        )
    found = [
        observe(paths, instruments, cache=cache, strict=True).values
        for paths in (generated, drawn, further)
    ]
    rows = {}
    for name in instruments:
        made, first, second = (one[name][~np.isnan(one[name]).any(axis=1)] for one in found)
        count = min(map(len, (made, first, second)))  # without a face there is no feature
        made, first, second = (features[:count] for features in (made, first, second))
        rows[name] = {
            "generated": frechet_distance(made, first),
            "renders": frechet_distance(second, first),
            "pictures": count,
        }
    return pd.DataFrame.from_dict(rows, orient="index")
