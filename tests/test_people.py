"""Synthetic people: sampling, captions, scenery, and the data set's layout and resumption."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.people import dataset
from fusionlib.people.caption import (
    BACKGROUND_PHRASES,
    STYLE_PHRASES,
    attributes,
    describe,
)
from fusionlib.people.hairstyle import (
    DYED,
    HAIR_COLORS,
    HAIR_STYLES,
    hair_phrase,
    hairline_margin,
)
from fusionlib.people.identity import Person, sample_person, skin_color
from fusionlib.people.scenery import apply_style, draw_background
from fusionlib.people.view import BACKGROUNDS, EXPRESSIONS, STYLES, sample_view

HELDOUT = Path(__file__).parents[1] / "data" / "heldout"


def test_a_person_depends_on_seed_and_number_alone() -> None:
    assert sample_person(0, 7) == sample_person(0, 7)
    assert sample_person(0, 7) != sample_person(0, 8)
    assert sample_person(0, 7) != sample_person(1, 7)


def test_people_are_spread_widely_and_plausibly() -> None:
    people = [sample_person(0, i) for i in range(200)]
    shapes = np.array([list(p.shape.values()) for p in people])
    assert shapes.shape[1] >= 100
    assert np.abs(shapes).max() <= 1.3
    assert shapes.std(0).min() > 0.1
    tones = np.array([p.skin for p in people]).mean(1)
    assert tones.min() < 0.35 and tones.max() > 0.75
    assert {p.gender for p in people} == {"woman", "man"}
    assert {p.age_word for p in people} == {"young", "middle-aged", "old"}
    assert all(18 <= p.age <= 80 for p in people)
    assert all(p.beard == "none" for p in people if p.gender == "woman")
    assert len({p.hair.style for p in people}) > 16
    assert {p.glasses for p in people} == {"none", "round", "square"}


def test_every_hair_style_is_worn_and_many_by_both_genders() -> None:
    people = [sample_person(1, i) for i in range(1500)]
    worn = {g: {p.hair.style for p in people if p.gender == g} for g in ("woman", "man")}
    assert worn["woman"] | worn["man"] == set(HAIR_STYLES) and len(HAIR_STYLES) >= 14
    assert len(worn["woman"] & worn["man"]) >= 12
    assert not worn["woman"] & {"bald", "horseshoe"}
    assert {p.hair.color_name for p in people} == set(HAIR_COLORS)


def test_hair_color_goes_with_skin_and_age() -> None:
    people = [sample_person(2, i) for i in range(800)]

    def share(names: set[str], group: list[Person]) -> float:
        return sum(p.hair.color_name in names for p in group) / len(group)

    dark = [p for p in people if sum(p.skin) < 1.2]
    light = [p for p in people if sum(p.skin) > 2.2]
    assert share({"blond", "red", "strawberry blond"}, dark) < 0.02
    assert share({"blond", "red", "strawberry blond"}, light) > 0.15
    young, old = ([p for p in people if low <= p.age < low + 12] for low in (18, 69))
    assert share({"gray", "white"}, young) == 0 and np.mean([p.hair.gray for p in young]) < 0.01
    assert share({"gray", "white"}, old) > 0.35 and np.mean([p.hair.gray for p in old]) > 0.5
    assert share(set(DYED), people) < 0.06


def test_hair_is_said_in_plain_words() -> None:
    hair = sample_person(0, 0).hair
    hair = replace(hair, style="bob", color_name="brown", fringe=1.0, gray=0.0)
    assert hair_phrase(hair) == "a brown bob with a fringe"
    assert hair_phrase(replace(hair, style="plaits")) == "brown hair in two plaits and a fringe"
    assert hair_phrase(replace(hair, style="curly", gray=0.5)) == "curly graying brown hair"
    assert hair_phrase(replace(hair, style="bald")) == ""
    assert (
        replace(hair, color_name="blue", color=(0.1, 0.3, 0.7)).natural == HAIR_COLORS["dark brown"]
    )
    for style in HAIR_STYLES[1:]:
        assert "brown" in hair_phrase(replace(hair, style=style))


def test_the_hairline_is_where_the_style_says() -> None:
    hair = replace(sample_person(0, 0).hair, style="cropped", hairline=0.0)
    crown, brow, nape = (np.array(a) for a in ((0.0, 10.0), (0.0, 80.0), (180.0, 120.0)))
    assert hairline_margin(hair, *crown) > 0 > hairline_margin(hair, *brow)
    assert hairline_margin(hair, *nape) > 0
    assert hairline_margin(replace(hair, hairline=-4.0), *brow) < hairline_margin(hair, *brow)
    tonsure = replace(hair, style="horseshoe")
    assert hairline_margin(tonsure, *crown) < 0 < hairline_margin(tonsure, *nape)
    assert hairline_margin(replace(hair, style="bald"), *nape) < 0


def test_skin_darkens_with_tone() -> None:
    brightness = [sum(skin_color(t)) for t in np.linspace(0, 1, 9)]
    assert brightness == sorted(brightness, reverse=True)


def test_the_two_sides_of_a_face_are_nearly_alike() -> None:
    shape = sample_person(0, 3).shape
    left = {k[2:]: v for k, v in shape.items() if k.startswith("l-")}
    right = {k[2:]: v for k, v in shape.items() if k.startswith("r-")}
    assert left.keys() == right.keys() and left
    assert max(abs(left[k] - right[k]) for k in left) < 0.4


def test_view_zero_is_the_reference_and_no_view_leaves_its_range() -> None:
    for person in range(60):
        for number in range(6):
            view = sample_view(0, person, number)
            assert view == sample_view(0, person, number)
            assert abs(view.yaw) <= 20 and abs(view.pitch) <= 8
            assert view.background in BACKGROUNDS and view.style in STYLES
            if number == 0:
                assert view.expression == "neutral" and view.style == "photo"
                assert abs(view.yaw) < 5 and abs(view.light_azimuth) <= 15


def test_four_views_after_the_reference_show_all_expressions() -> None:
    for person in range(20):
        shown = {sample_view(3, person, v).expression for v in range(1, 5)}
        assert shown == set(EXPRESSIONS)


def test_most_pictures_are_photos() -> None:
    styles = [sample_view(0, p, v).style for p in range(300) for v in range(1, 4)]
    assert 0.64 < styles.count("photo") / len(styles) < 0.76
    assert set(styles) == set(STYLES)


def test_captions_say_what_the_picture_shows() -> None:
    for person_index in range(80):
        person = sample_person(0, person_index)
        for number in range(4):
            view = sample_view(0, person_index, number)
            text = describe(person, view)
            assert text == describe(person, view)
            assert text.startswith(STYLE_PHRASES[view.style])
            other_gender = {"woman": "man", "man": "woman"}[person.gender]
            assert re.search(rf"\b({person.gender}|person)\b", text)
            assert not re.search(rf"\b{other_gender}\b", text)
            if view.expression != "neutral":
                assert view.expression in text
            for other in set(EXPRESSIONS) - {view.expression, "neutral"}:
                assert other not in text
            if person.glasses == "none":
                assert "glasses" not in text
            if person.hair.style != "bald":
                assert "bald" not in text
            for name in set(BACKGROUNDS) - {view.background}:
                assert not any(text.endswith(phrase) for phrase in BACKGROUND_PHRASES[name])
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", text)


def test_captions_are_worded_in_several_ways() -> None:
    person, view = sample_person(0, 0), sample_view(0, 0, 1)
    texts = {describe(person, view, wording) for wording in range(40)}
    assert len(texts) > 15
    genders = [person.gender in text.split() for text in texts]
    assert any(genders) and not all(genders)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_are_deterministic_pictures(name: str) -> None:
    first = draw_background(name, 64, np.random.default_rng(5))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, draw_background(name, 64, np.random.default_rng(5)))


def test_backgrounds_differ() -> None:
    means = [
        draw_background(n, 64, np.random.default_rng(0)).reshape(-1, 3).mean(0) for n in BACKGROUNDS
    ]
    gaps = [np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]]
    assert min(gaps) > 5


@pytest.mark.parametrize("style", STYLES)
def test_styles_change_the_picture_as_they_should(style: str) -> None:
    picture = draw_background("garden", 64, np.random.default_rng(1))
    out = apply_style(picture, style, np.random.default_rng(0))
    assert out.shape == picture.shape and out.dtype == np.uint8
    colorless = bool((out[..., 0] == out[..., 1]).all() and (out[..., 1] == out[..., 2]).all())
    assert colorless == (style in ("noir", "line art"))
    assert np.array_equal(out, picture) == (style == "photo")


def test_unknown_names_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(FusionError, match="moon.*beach"):
        draw_background("moon", 64, rng)
    with pytest.raises(FusionError, match="cubist.*watercolor"):
        apply_style(np.zeros((8, 8, 3), np.uint8), "cubist", rng)


# The data set's layout, with a renderer that paints plain squares.


class _Painter:
    """Stands in for the renderer; counts how many people it was asked for."""

    def __init__(self) -> None:
        self.people: list[int] = []

    def __call__(
        self, seed: int, person: int, views: int, size: int, split: str
    ) -> Iterator[dataset.Sample]:
        self.people.append(person)
        for number in range(views):
            view = sample_view(seed, person, number)
            who = sample_person(seed, person)
            key = f"{person * 100 + number:09d}"
            record = {"key": key, "person": person, "view": number, "split": split}
            record |= {"caption": describe(who, view), **attributes(who, view)}
            image = np.full((size, size, 3), (person * 40 + number) % 256, np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            files = {
                "jpg": buffer.getvalue(),
                "txt": record["caption"].encode(),
                "json": json.dumps(record).encode(),
                "mask.png": b"",
            }
            yield dataset.Sample(key, record, files)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> _Painter:
    painter = _Painter()
    monkeypatch.setattr(dataset, "make_samples", painter)
    monkeypatch.setattr(dataset, "SAMPLES_PER_SHARD", 4)
    monkeypatch.setattr(dataset, "_require_renderer", lambda: None)
    monkeypatch.setattr(dataset, "_load", lambda: None)
    # A patched function does not reach a new process: work in threads of this one.
    from concurrent.futures import ThreadPoolExecutor

    def pool(workers: int, **_: object) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(dataset, "ProcessPoolExecutor", pool)
    return painter


def test_shards_hold_img2dataset_samples(tmp_path: Path, painter: _Painter) -> None:
    manifest = dataset.render_dataset(tmp_path / "set", people=5, views=2, size=16, first_person=3)
    record = json.loads(manifest.read_text())
    assert record["complete"] and record["samples"] == 10 and record["first_person"] == 3
    assert [s["samples"] for s in record["shards"]] == [4, 4, 2]
    assert sorted(painter.people) == [3, 4, 5, 6, 7]
    names: list[str] = []
    for shard in record["shards"]:
        with tarfile.open(manifest.parent / shard["file"]) as archive:
            names += archive.getnames()
    suffixes = ["jpg", "txt", "json", "mask.png"]
    assert names == [
        f"{p * 100 + v:09d}.{s}" for p in range(3, 8) for v in (0, 1) for s in suffixes
    ]
    assert sorted(p.name for p in manifest.parent.iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
        "manifest.json",
    ]


def test_a_finished_shard_is_not_made_again(tmp_path: Path, painter: _Painter) -> None:
    dataset.render_dataset(tmp_path, people=4, views=2, size=16, workers=1)
    before = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").unlink()
    painter.people.clear()
    dataset.render_dataset(tmp_path, people=4, views=2, size=16, workers=3)
    assert sorted(painter.people) == [2, 3]
    assert (tmp_path / "00001.tar").read_bytes() == before


def test_a_broken_run_leaves_no_half_shard(
    tmp_path: Path, painter: _Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> Iterator[dataset.Sample]:
        yield from painter(0, 0, 1, 16, "train")
        raise RuntimeError("stopped")

    monkeypatch.setattr(dataset, "make_samples", broken)
    with pytest.raises(RuntimeError, match="stopped"):
        dataset.render_dataset(tmp_path, people=1, views=2, size=16)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
    assert not json.loads((tmp_path / "manifest.json").read_text())["complete"]


def test_a_folder_with_another_set_is_refused(tmp_path: Path, painter: _Painter) -> None:
    dataset.render_dataset(tmp_path, people=1, views=2, size=16)
    with pytest.raises(FusionError, match="seed = 0, not 1"):
        dataset.render_dataset(tmp_path, people=1, views=2, size=16, seed=1)


def test_plain_files_come_with_an_index(tmp_path: Path, painter: _Painter) -> None:
    index = dataset.export_files(tmp_path, people=2, views=3, size=16, first_person=50)
    with index.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["file"] for r in rows] == [f"{p:04d}_{v}.jpg" for p in (0, 1) for v in (0, 1, 2)]
    for row in rows:
        stem = row["file"].removesuffix(".jpg")
        assert (tmp_path / f"{stem}.txt").read_text() == row["caption"]
        assert (tmp_path / f"{stem}.mask.png").exists()
    assert painter.people == [50, 51]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"people": 0}, "number of people"),
        ({"views": 0}, "number of views"),
        ({"views": 101}, "number of views"),
        ({"workers": 0}, "number of workers"),
    ],
)
def test_impossible_numbers_are_refused(
    tmp_path: Path, wrong: dict[str, int], message: str
) -> None:
    numbers = {"people": 1, "views": 1, "workers": 1} | wrong
    with pytest.raises(FusionError, match=message):
        dataset.render_dataset(tmp_path, **numbers)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "anny" else find(name, *a)
    )
    with pytest.raises(FusionError, match="'anny'.*fusionlib\\[people\\]"):
        dataset.render_dataset(tmp_path, people=1, views=1)


def test_sampling_needs_no_renderer() -> None:
    import subprocess

    code = (
        "import sys, fusionlib.people.dataset, fusionlib.people.caption;"
        "sys.exit(bool({'anny', 'pyvista', 'vtk', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_committed_heldout_set_is_whole() -> None:
    with (HELDOUT / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 600
    assert len({r["person"] for r in rows}) == 100
    total = 0
    for row in rows:
        path = HELDOUT / row["file"]
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["caption"] == row["caption"] == path.with_suffix(".txt").read_text()
        assert record["person"] >= 1_000_000 and record["split"] == "heldout"
        mask = np.asarray(Image.open(path.with_suffix("").with_suffix(".mask.png")))
        with Image.open(path) as image:
            assert image.size == (128, 128) == mask.shape[::-1]
        assert set(np.unique(mask)) == {0, 255}
        assert 0.08 < (mask > 0).mean() < 0.6
        if row["view"] == "0":
            assert row["expression"] == "neutral" and row["style"] == "photo"
        # The committed captions are what the code of today says about these people.
        person = sample_person(record["seed"], record["person"])
        view = sample_view(record["seed"], record["person"], record["view"])
        assert [describe(person, view, w) for w in range(dataset.WORDINGS)] == record["captions"]
        assert record["captions"][0] == row["caption"]
    total = sum(p.stat().st_size for p in HELDOUT.iterdir())
    assert total < 8_000_000


@pytest.mark.slow
def test_hair_and_headwear_fit_every_head() -> None:
    pytest.importorskip("anny")
    from fusionlib.people.hair import hair_mesh
    from fusionlib.people.head import load_head_model
    from fusionlib.people.headwear import HEADWEAR, headwear_mesh
    from fusionlib.people.scalp import skull

    model = load_head_model()
    marks = model.landmarks

    def over_an_eye(points: np.ndarray) -> int:
        """How many points hide the eyes from a camera in front."""
        from_eye = np.abs(np.abs(points[:, 0]) - marks.eye_left[0])
        level = np.abs(points[:, 2] - marks.eyes[2])
        return int(
            ((from_eye < 0.012) & (level < 0.006) & (points[:, 1] < marks.eyes[1] - 0.008)).sum()
        )

    for index, style in enumerate(HAIR_STYLES):
        person = sample_person(5, index)
        person = replace(person, hair=replace(person.hair, style=style))
        raw = model.neutral(person)
        scale, rotation, shift = model.alignment(raw)
        head = raw @ (scale * rotation.T) + shift
        mesh = hair_mesh(person, head)
        assert (mesh is None) == (style == "bald")
        kind = HEADWEAR[index % len(HEADWEAR)]
        hat = headwear_mesh(kind, (0.5, 0.1, 0.1), head)
        assert hat is not None
        for part in (mesh, hat):
            if part is None:
                continue
            assert np.isfinite(part.points).all() and np.isfinite(part.normals).all()
            assert part.faces.min() >= 0 and part.faces.max() < len(part.points)
            assert part.colors.min() >= 0 and part.colors.max() <= 1
            assert over_an_eye(part.points) == 0, (style, kind)
        if mesh is None:
            continue
        assert len(mesh.faces) < 60_000
        again = hair_mesh(person, head)
        assert again is not None and np.array_equal(mesh.points, again.points)
        # Hair lies on the skull, but for a few strands drawn through it by their neighbours.
        _, distance, radius = skull(head).reach(mesh.points.astype(np.float32))
        upper = mesh.points[:, 2] > marks.eyes[2]
        depth = (radius - distance)[upper]
        assert np.percentile(depth, 99) < 0.004 and depth.max() < 0.05
        # A beanie lies over the hair beneath it: nothing sticks out of its top.
        under = hair_mesh(person, head, "beanie")
        assert under is not None
        top = headwear_mesh("beanie", (0.5, 0.1, 0.1), head)
        assert top is not None and under.points[:, 2].max() < top.points[:, 2].max()


@pytest.mark.slow
def test_the_renderer_makes_the_committed_people_again() -> None:
    """Loads `anny` (minutes on a machine that has not loaded it before)."""
    pytest.importorskip("anny")
    pytest.importorskip("pyvista")
    samples = list(dataset.make_samples(0, 1_000_000, 2, 128, "heldout"))
    for number, sample in enumerate(samples):
        made = np.asarray(Image.open(io.BytesIO(sample.files["jpg"])), np.float32)
        kept = np.asarray(Image.open(HELDOUT / f"0000_{number}.jpg"), np.float32)
        # Another processor or driver may round otherwise.
        assert np.abs(made - kept).mean() < 2.0
        mask = np.asarray(Image.open(io.BytesIO(sample.files["mask.png"]))) > 0
        old = np.asarray(Image.open(HELDOUT / f"0000_{number}.mask.png")) > 0
        assert (mask & old).sum() / (mask | old).sum() > 0.98
