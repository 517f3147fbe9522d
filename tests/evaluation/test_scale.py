"""The scale of tables and figures, recomputed from made-up embeddings and distances."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from companion.evaluation.measure import Measurements
from companion.evaluation.scale import (
    RESTORED,
    faces_gained,
    main_scale,
    nearest_share,
    place_of,
    ranked_people,
    reference_scale,
    shown_in_words,
    swapped_recovery,
)

PEOPLE = [f"p{number}" for number in range(8)]


@pytest.fixture
def measured() -> Measurements:
    """Eight people, two pictures each by two systems; random distances, some faces lost."""
    rng = np.random.default_rng(5)
    rows = [
        {"method": method, "person": person, "prompt": "a face", "seed": seed, "image": "x",
         "face": not (method == "fused" and rng.random() < 0.3)}
        for method in ("text-only", "fused") for person in PEOPLE for seed in (0, 1)
    ]  # fmt: skip
    images = pd.DataFrame(rows)
    for name, (low, high) in {"distance": (0.1, 0.3), "unseen": (0.2, 0.4)}.items():
        away = pd.Series(rng.uniform(low, high, len(images)))
        images[f"{name} Dlib"] = away.where(images["face"])
    images["swapped Dlib"] = images["unseen Dlib"] + 0.05
    images["rank Dlib"] = pd.Series(rng.integers(1, 3, len(images))).where(images["face"])
    scale = pd.DataFrame(
        {
            "genuine": rng.uniform(0.1, 0.15, 8),
            "impostor": rng.uniform(0.5, 0.6, 8),
            "unseen_genuine": rng.uniform(0.1, 0.15, 8),
            "unseen_impostor": rng.uniform(0.5, 0.6, 8),
        },
        index=PEOPLE,
    )
    return Measurements(images, {"Dlib": scale}, "dlib", "reference")


def by_hand(measured: Measurements, column: str, ends: tuple[str, str], lost: bool) -> float:
    """R of `fused`, person by person in a loop; lost faces count or are left out."""
    scale = measured.scales["Dlib"]
    made, genuine, impostor = [], [], []
    for person in PEOPLE:
        rows = measured.images[
            (measured.images["person"] == person) & (measured.images["method"] == "fused")
        ]
        values = [
            value if face else float(scale.loc[person, ends[1]])
            for value, face in zip(rows[column], rows["face"], strict=True)
            if face or lost
        ]
        if values:
            made.append(np.mean(values))
            genuine.append(scale.loc[person, ends[0]])
            impostor.append(scale.loc[person, ends[1]])
    return float((np.mean(impostor) - np.mean(made)) / (np.mean(impostor) - np.mean(genuine)))


def test_r_is_read_against_unseen_pictures_and_lost_faces_are_strangers(
    measured: Measurements,
) -> None:
    assert not measured.images["face"].all()
    ends = ("unseen_genuine", "unseen_impostor")
    scale = main_scale(measured, "Dlib")
    assert scale.unseen and scale.one == "the reference itself"
    place = place_of(scale.scores, "fused")
    assert place.composite.estimate == pytest.approx(by_hand(measured, "unseen Dlib", ends, True))
    assert place.complete.estimate == pytest.approx(by_hand(measured, "unseen Dlib", ends, False))
    assert place.composite.estimate < place.complete.estimate
    second = reference_scale(measured, "Dlib")
    place = place_of(second.scores, "fused")
    ends = ("genuine", "impostor")
    assert not second.unseen and second.one == "another picture of the same person"
    assert place.complete.estimate == pytest.approx(by_hand(measured, "distance Dlib", ends, False))
    assert np.isnan(place_of(second.scores, RESTORED).complete.estimate), "which was not painted"


def test_people_without_other_pictures_are_no_strangers(measured: Measurements) -> None:
    """Their pictures have no distance, which is not the doing of a method."""
    images, scale = measured.images.copy(), measured.scales["Dlib"].copy()
    images.loc[images["person"] == "p0", "unseen Dlib"] = np.nan
    scale.loc["p0", ["unseen_genuine", "genuine"]] = np.nan
    some = replace(measured, images=images, scales={"Dlib": scale})
    fewer = images[images["person"] != "p0"]
    expected = replace(measured, images=fewer, scales={"Dlib": scale.drop(index="p0")})
    for method in ("text-only", "fused"):
        assert place_of(main_scale(some, "Dlib").scores, method) == place_of(
            main_scale(expected, "Dlib").scores, method
        )
    scale[["unseen_genuine", "unseen_impostor"]] = np.nan
    nobody = replace(measured, scales={"Dlib": scale})
    assert main_scale(nobody, "Dlib").target == "the reference"


def test_against_other_pictures_nothing_was_shown(measured: Measurements) -> None:
    others = replace(measured, against="others")
    assert reference_scale(others, "Dlib").unseen
    assert reference_scale(others, "Dlib").target == main_scale(others, "Dlib").target
    assert ranked_people(others, "Dlib") == 8


def test_a_lost_face_is_not_recognised(measured: Measurements) -> None:
    images = measured.images
    fused = images[images["method"] == "fused"]
    shares = [
        np.mean([rank == 1 for rank in fused.loc[fused["person"] == person, "rank Dlib"]])
        for person in PEOPLE
    ]
    assert nearest_share(measured, "Dlib", "fused").estimate == pytest.approx(np.mean(shares))
    unknown = images.assign(**{"rank Dlib": images["rank Dlib"].where(images["person"] != "p1")})
    told = nearest_share(replace(measured, images=unknown), "Dlib", "text-only").estimate
    text = images[(images["method"] == "text-only") & (images["person"] != "p1")]
    assert told == pytest.approx(text["rank Dlib"].eq(1).mean()), "there was a face, and no rank"
    scale = measured.scales["Dlib"].copy()
    scale.loc["p1", "impostor"] = np.nan  # no face in that person's reference
    assert ranked_people(replace(measured, scales={"Dlib": scale}), "Dlib") == 7
    assert ranked_people(measured, "Dlib") == 8


def test_r_for_somebody_alike_is_that_of_the_pictures_shifted(measured: Measurements) -> None:
    scale = measured.scales["Dlib"].mean()
    way = scale["unseen_impostor"] - scale["unseen_genuine"]
    own = place_of(main_scale(measured, "Dlib").scores, "text-only").complete.estimate
    alike = swapped_recovery(measured, "Dlib", "text-only").estimate
    assert own - alike == pytest.approx(0.05 / way)
    images = measured.images.copy()
    images.loc[images["person"].isin(PEOPLE[:4]), "swapped Dlib"] = np.nan
    few = swapped_recovery(replace(measured, images=images), "Dlib", "text-only")
    assert np.isnan(few.estimate), "of four people who have somebody alike there is no R"


def test_faces_are_paired(measured: Measurements) -> None:
    found = faces_gained(measured, "fused", "text-only")
    lost = measured.images.loc[measured.images["method"] == "fused", "face"]
    assert found.interval.estimate == pytest.approx(lost.mean() - 1)
    assert found.interval.low < found.interval.estimate < found.interval.high <= 0
    assert (found.pairs, found.cells, found.people) == (16, 16, 8)


def test_who_was_shown_what_is_said_of_the_systems_of_a_study() -> None:
    shown = ["text-only", "instantid 0.5", "instantid 1", "fused"]
    assert shown_in_words("Dlib", shown) == "whose vector of the face instantid was shown"
    assert shown_in_words("identity", shown) == "of which no system was shown anything"
    assert shown_in_words("Dlib", ["faceid", "arc2face"]).endswith("faceid and arc2face were shown")
    assert shown_in_words("Dlib", ["fused"]) == shown_in_words("ArcFace", shown) == ""
