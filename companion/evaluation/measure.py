"""Measuring the pictures of a study: everything that one picture has to be looked at for, at once.

The cost of a picture is the same however many there are: each is opened, looked at and compared
with its own person's references; other people enter through the sum of their embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from companion.evaluation.alignment import Classifier, ClipScorer
from companion.evaluation.comparison import IdentityScores, Target
from companion.evaluation.quality import (
    face_region,
    psnr,
    psnr_8bit_overflow,
    skin_difference,
    ssim,
)
from companion.evaluation.readings import Readings, observe
from companion.faces.aligned import align_faces, detector_in_words
from companion.faces.recognisers import Instrument, load_recognisers
from companion.person import Person
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image


@dataclass(frozen=True)
class Measurements:
    """The pictures of a study with all that was measured.

    Attributes:
        images: The index with a row for each picture and these further columns: ``unreadable``,
            what is wrong with a file or None; ``face``, whether one was found, and ``found_by``,
            which detector did; for each recogniser ``distance NAME``, and the further distances of
            `_further_distances`; ``clip_score``; ``ssim``, ``psnr``, ``psnr_8bit_overflow`` and
            ``skin_difference`` of the face region against the reference's; ``HEAD_correct`` for
            what classifiers tell and something is asked of, ``expression_correct`` for example, 1
            or 0; ``HEAD_kept`` for traits, 1 where the classifier sees the same as in the person's
            reference. NaN where something could not be measured.
        scales: For each recogniser, what `IdentityScores` calls ``scale``; beside it, for the
            distances to pictures that no method saw, ``unseen_genuine`` and ``unseen_impostor``.
        detector: Name of the detector in DeepFace.
        against: What the distances lead to.
    """

    images: pd.DataFrame
    scales: Mapping[str, pd.DataFrame]
    detector: str
    against: Target

    @property
    def metrics(self) -> list[str]:
        """The columns of numbers."""
        kinds = ("distance ", "clip_score", "ssim", "psnr", "skin_difference")
        return [
            column
            for column in self.images.columns
            if column.startswith(kinds) or column.endswith(("_correct", "_kept"))
        ]

    def identity(self, recogniser: str) -> IdentityScores:
        """The distances under one recogniser."""
        images = self.images.assign(distance=self.images[f"distance {recogniser}"])
        return IdentityScores(
            recogniser, self.detector, self.against, images, self.scales[recogniser]
        )

    def unseen(self, recogniser: str) -> IdentityScores | None:
        """The distances to pictures of the person that no method saw, under one recogniser.

        On their scale another person's reference stands at 0 and the person's own at 1, so a system
        that copies its reference gets 1 and no more. None in records that lack them.
        """
        if f"unseen {recogniser}" not in self.images:
            return None
        scale = self.scales[recogniser]
        ends = {end: scale[f"unseen_{end}"] for end in ("genuine", "impostor")}
        images = self.images.assign(distance=self.images[f"unseen {recogniser}"])
        return IdentityScores(recogniser, self.detector, "others", images, pd.DataFrame(ends))


def measure(
    index: pd.DataFrame,
    people: Sequence[Person],
    *,
    recognisers: Sequence[str] = ("Dlib",),
    detector: str = "dlib",
    against: Target = "reference",
    clip: str | None = None,
    classifiers: Mapping[str, str | None] | None = None,
    traits: Sequence[str] = (),
    further_traits: Sequence[str] = (),
    quality: bool = True,
    cache: str | Path | None = None,
    strict: bool = True,
    progress: bool | None = None,
) -> Measurements:
    """Measure every picture of a study.

    Args:
        index: A row for each picture with method, person, prompt, seed and image (a path), as
            `companion.studies.study.run_study` returns it.
        people: People of the study.
        recognisers: Names in DeepFace, or folders: see `companion.faces.recognisers`. Those of
            folders are called by the folder's own name.
        detector: Name of the detector in DeepFace.
        against: Target of the distances: ``"reference"`` measures the distance to a person's first
            reference, as the paper does. ``"others"`` measures the mean distance to the person's
            other pictures, which no method saw: the fair target where methods see different
            references.
        clip: Folder or hub id of the CLIP model for the CLIP score, if it is wanted.
        classifiers: Folders or hub ids of image classifiers, by name; None for none. What a picture
            should show stands in the index's column of the name of a head (``expression``), or is
            what the prompt asks for: see `companion.evaluation.alignment.Classifier`.
        traits: Heads of the classifiers whose class belongs to the person, ``["gender"]``: what
            they see in a picture with a face is compared with what they see in the person's first
            reference.
        further_traits: Heads that are treated likewise, where there is a classifier that has them.
        quality: Whether to compare face regions with the first reference's.
        cache: Folder in which readings of pictures are kept for the next time.
        strict: Whether a picture that cannot be read is an error, or noted and passed over. A
            reference that cannot be read is one always.
        progress: Whether to show bars; by default where a terminal can.

    Raises:
        FusionError: A person has no reference, or no other picture where these are the target; a
            file cannot be read; a model is not there, or no classifier knows a trait.
    """
    known = {person.name: person for person in people}
    for name in index["person"].unique():
        if name not in known or not known[name].references:
            raise FusionError(f"The person {name!r} needs a reference to be measured by.")
        if against == "others" and recognisers and not known[name].others:
            raise FusionError(
                f"The person {name!r} has no other pictures to measure the distance to."
            )
    judges = load_recognisers(recognisers)
    scorer = ClipScorer(clip) if clip else None
    tellers = {what: Classifier(what, name) for what, name in (classifiers or {}).items() if name}
    asked = {what: _asked_for(teller, index) for what, teller in tellers.items()}
    asked_of = [*traits, *further_traits]
    same = {what: [head for head in asked_of if head in it.heads] for what, it in tellers.items()}
    if unknown := set(traits) - {head for heads in same.values() for head in heads}:
        raise FusionError(f"No classifier tells {', '.join(sorted(unknown))}.")
    tellers = {what: teller for what, teller in tellers.items() if asked[what] or same[what]}
    paths = [Path(path) for path in index["image"]]
    looked: dict[str, Any] = {"detector": detector, "cache": cache, "progress": progress}
    everything: dict[str, Instrument] = {f"distance {name}": it for name, it in judges.items()}
    everything |= {**tellers} | ({"clip_score": scorer} if scorer else {})
    made = observe(paths, everything, strict=strict, **looked)
    firsts = [person.references[0] for person in people]
    known_by = {f"traits {what}": teller for what, teller in tellers.items() if same[what]}
    references = observe(firsts, {**judges, **known_by}, strict=True, **looked)
    further = [path for person in people for path in person.others]
    others = observe(further, judges, strict=True, **looked)
    owners = np.repeat(np.arange(len(people)), [len(person.others) for person in people])

    number = {person.name: position for position, person in enumerate(people)}
    whose = np.array([number[name] for name in index["person"]], dtype=int)
    columns: dict[str, Any] = {"unreadable": made.unreadable, "face": made.faces}
    columns["found_by"] = made.found_by
    alike = _alike(tellers, references.values)
    scales = {}
    for name in judges:
        rest = _unit(others.values[name])
        centres, counts = (
            _sums(_unit(references.values[name]), np.arange(len(people)), len(people))
            if against == "reference"
            else _sums(rest, owners, len(people))
        )
        with np.errstate(invalid="ignore"):  # of those without a face
            centres = centres / counts[:, None]
        generated = _unit(made.values[f"distance {name}"])
        # Rounding alone could make the distance of a picture to itself negative.
        distance = np.clip(1 - (generated * centres[whose]).sum(axis=1), 0, 2)
        columns[f"distance {name}"] = distance
        scale = _scale(centres, rest, owners, itself=against == "others")
        shown = _unit(references.values[name])
        distances, ends = _further_distances(generated, whose, shown, rest, owners, alike)
        columns |= {f"{what} {name}": values for what, values in distances.items()}
        scales[name] = pd.DataFrame(scale | ends, index=[person.name for person in people])
    if scorer:
        columns["clip_score"] = scorer.scores(made.values["clip_score"], list(index["prompt"]))
        columns["clip_score"][(index["prompt"].str.strip() == "").to_numpy()] = np.nan
    if quality:
        columns |= _quality(paths, made, firsts, references, whose, progress)
    for what, teller in tellers.items():
        for head, wanted in asked[what].items():
            columns[f"{head}_correct"] = teller.hits(head, made.values[what], wanted)
        for head in same[what]:
            theirs = teller.seen(head, references.values[f"traits {what}"])
            wanted = [
                theirs[person] if found else None
                for person, found in zip(whose, made.faces, strict=True)
            ]
            columns[f"{head}_kept"] = teller.hits(head, made.values[what], wanted)
    return Measurements(index.assign(**columns), scales, detector, against)


def _asked_for(teller: Classifier, index: pd.DataFrame) -> dict[str, list[str | None]]:
    """What each picture should show, for each head that anything is asked of."""
    asked: dict[str, list[str | None]] = {}
    for head in teller.heads:
        wanted = (
            [label if isinstance(label, str) else None for label in index[head]]
            if head in index
            else [teller.asked_for(head, prompt) for prompt in index["prompt"]]
        )
        if any(label is not None for label in wanted):
            asked[head] = wanted
    return asked


def with_face_size(
    index: pd.DataFrame, *, detector: str = "dlib", cache: str | Path | None = None
) -> pd.DataFrame:
    """Add ``eyes_apart``: how far apart the eyes are, in widths of the picture.

    Args:
        index: See `measure`.
        detector: Name of the detector in DeepFace.
        cache: See `measure`.

    Returns:
        The index with the further column, NaN where no face is found.

    Raises:
        FusionError: A file cannot be read.
    """
    paths = [Path(path) for path in index["image"]]
    eyes = observe(paths, detector=detector, cache=cache, strict=True).eyes
    widths = [load_image(path).width for path in paths]
    apart = np.linalg.norm(eyes[:, 1] - eyes[:, 0], axis=-1) / widths
    return index.assign(eyes_apart=apart)


def count_faces(index: pd.DataFrame, *, detector: str = "dlib") -> dict[str, int]:
    """The number of pictures, and of those in which a face is found, for a table of facts."""
    faces = align_faces(map(load_image, index["image"]), detector)
    found = sum(face is not None for face in faces)
    return {"pictures": len(faces), f"with a face for {detector_in_words(detector)}": found}


def check_scale(people: Sequence[Person], against: Target = "reference") -> None:
    """Make sure that distances to these people can be put on a scale from a stranger to the person.

    Raises:
        FusionError: Fewer than two people, or a person with too few other pictures.
    """
    needed = 1 if against == "reference" else 2
    if len(people) < 2:
        raise FusionError("Identity is measured against strangers: the study needs two people.")
    for person in people:
        if not person.references or len(person.others) < needed:
            raise FusionError(
                f"The person {person.name!r} needs a reference and {needed} other picture(s) to "
                "measure by."
            )


def _unit(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """Embeddings of length 1, of which cosine distances are 1 - a.b; NaN stays NaN."""
    rows = embeddings.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _sums(
    units: NDArray[np.float64], owners: NDArray[np.intp], people: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each person the sum of their embeddings, and how many there are."""
    sums, counts = np.zeros((people, units.shape[1])), np.zeros(people)
    found = ~np.isnan(units).any(axis=1)
    np.add.at(sums, owners[found], units[found])
    np.add.at(counts, owners[found], 1)
    return sums, counts


def _scale(
    centres: NDArray[np.float64],
    others: NDArray[np.float64],
    owners: NDArray[np.intp],
    *,
    itself: bool,
) -> dict[str, NDArray[np.float64]]:
    """Mean distances from each person's targets to their own and to other people's pictures.

    A mean of cosine distances is one minus a product of means: no pair has to be formed.

    Args:
        centres: Array ``(people, dimension)``: the mean of each person's targets.
        others: Array ``(pictures, dimension)``: the other pictures of all people.
        owners: Person to whom each of them belongs.
        itself: Whether the targets are these pictures; none is compared with itself then.
    """
    sums, counts = _sums(others, owners, len(centres))
    with np.errstate(invalid="ignore", divide="ignore"):
        if itself:  # of all k x k pairs, k are of a picture with itself
            # A person with one such face has no pair; rounding would make that infinite, not NaN.
            pairs = np.where(counts > 1, counts * (counts - 1), np.nan)
            genuine = 1 - ((sums**2).sum(axis=1) - counts) / pairs
        else:
            genuine = 1 - (centres * sums).sum(axis=1) / counts
        strangers = (sums.sum(axis=0) - sums) / (counts.sum() - counts)[:, None]
        impostor = 1 - (centres * strangers).sum(axis=1)
    return {"genuine": genuine, "impostor": impostor}


def _further_distances(
    generated: NDArray[np.float64],
    whose: NDArray[np.intp],
    references: NDArray[np.float64],
    others: NDArray[np.float64],
    owners: NDArray[np.intp],
    alike: NDArray[np.intp] | None,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Distances of each picture to what nobody showed the method, and to other people.

    Args:
        generated: Unit vectors ``(images, dimension)``.
        whose: Person of each.
        references: Unit vectors of the first references, ``(people, dimension)``.
        others: Unit vectors of the other pictures of all people.
        owners: Person of each of them.
        alike: Another person of like gender and age for each person, -1 where there is none.

    Returns:
        For each picture ``unseen``, the mean distance to the person's other pictures;
        ``strangers``, that to all other people's references; ``rank``, the place of the own
        reference among all of them, from 1; and ``swapped``, the distance to the reference of a
        person of like gender and age. NaN where there is no face, or no such picture. And the ends
        of the scale of ``unseen`` for each person: where the own reference stands, and other
        people's on average.
    """
    people = len(references)
    sums, counts = _sums(others, owners, people)
    first_sums, known = _sums(references, np.arange(people), people)
    with np.errstate(invalid="ignore", divide="ignore"):
        unseen = sums / counts[:, None]
        strangers = (first_sums.sum(axis=0) - first_sums) / (known.sum() - known)[:, None]
        own = (generated * references[whose]).sum(axis=1)
        every = generated @ np.nan_to_num(references).T
        every[:, known == 0] = -np.inf  # where no face was found, nobody is near
        rank = np.where(np.isnan(own), np.nan, 1.0 + (every > own[:, None] + 1e-12).sum(axis=1))
        columns = {
            "unseen": np.clip(1 - (generated * unseen[whose]).sum(axis=1), 0, 2),
            "strangers": np.clip(1 - (generated * strangers[whose]).sum(axis=1), 0, 2),
            "rank": rank,
        }
        if alike is not None:
            other = np.where((alike >= 0)[:, None], references[alike], np.nan)
            columns["swapped"] = np.clip(1 - (generated * other[whose]).sum(axis=1), 0, 2)
        ends = {
            "unseen_genuine": 1 - (references * unseen).sum(axis=1),
            "unseen_impostor": 1 - (strangers * unseen).sum(axis=1),
        }
    return columns, ends


def _alike(
    tellers: Mapping[str, Classifier], read: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.intp] | None:
    """For each person the next one in whom a classifier sees the same gender and age; -1: nobody.

    None where no classifier tells both.
    """
    for what, teller in tellers.items():
        if not {"gender", "age_word"} <= set(teller.heads) or f"traits {what}" not in read:
            continue
        seen = [teller.seen(head, read[f"traits {what}"]) for head in ("gender", "age_word")]
        kinds = list(zip(*seen, strict=True))
        count = len(kinds)
        return np.array(
            [
                next(
                    (
                        other % count
                        for other in range(person + 1, person + count)
                        if kinds[other % count] == kinds[person]
                    ),
                    -1,
                )
                for person in range(count)
            ]
        )
    return None


def _quality(
    paths: Sequence[Path],
    made: Readings,
    firsts: Sequence[Path],
    references: Readings,
    whose: NDArray[np.intp],
    progress: bool | None,
) -> dict[str, NDArray[np.float64]]:
    """The face region of each picture against that of its person's first reference."""
    metrics = (ssim, psnr, psnr_8bit_overflow, skin_difference)
    columns = {metric.__name__: np.full(len(paths), np.nan) for metric in metrics}
    regions: dict[int, NDArray[np.uint8]] = {}
    disable = None if progress is None else not progress
    for row, path in enumerate(tqdm(paths, desc="comparing", unit="image", disable=disable)):
        person = int(whose[row])
        if np.isnan(made.eyes[row]).any() or np.isnan(references.eyes[person]).any():
            continue
        if person not in regions:
            regions[person] = face_region(load_image(firsts[person]), references.eyes[person])
        region = face_region(load_image(path), made.eyes[row])
        for metric in metrics:
            columns[metric.__name__][row] = metric(region, regions[person])
    return columns
