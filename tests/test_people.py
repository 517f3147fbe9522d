"""Synthetic people: sampling, captions, scenery, and the data set's layout and resumption."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.people import dataset, shade
from fusionlib.people.caption import (
    BACKGROUND_PHRASES,
    STYLE_PHRASES,
    attributes,
    describe,
)
from fusionlib.people.glasses import FRAMES
from fusionlib.people.head import expression_actions
from fusionlib.people.identity import SHAPE_MEAN, SHAPE_SPREAD, sample_person, skin_color
from fusionlib.people.render import inverse_depth
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
    assert len({p.hair_style for p in people}) == 7
    assert {p.glasses for p in people} == {"none", *FRAMES}


def test_no_part_of_a_face_is_extreme_in_all_its_measures() -> None:
    for index in range(100):
        person = sample_person(0, index)
        if person.gender == "woman":  # whose mean differs
            continue
        nose = [
            (person.shape[k] - SHAPE_MEAN.get(k, 0.0)) / spread
            for k, spread in SHAPE_SPREAD.items()
            if k.startswith("nose-")
        ]
        assert np.linalg.norm(nose) < 1.2 * np.sqrt(len(nose))
        assert np.abs(nose).max() <= 2.0 + 1e-9


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


def test_the_views_after_the_reference_show_all_expressions() -> None:
    assert len(EXPRESSIONS) == 6
    for person in range(20):
        for first in (1, 7):
            shown = {sample_view(3, person, v).expression for v in range(first, first + 6)}
            assert shown == set(EXPRESSIONS)


def test_lenses_run_from_long_to_wide_and_the_reference_has_a_portrait_lens() -> None:
    lenses = [sample_view(0, p, v).lens for p in range(60) for v in range(1, 4)]
    assert 10 <= min(lenses) < 11.5 and 25 < max(lenses) <= 28
    assert all(12 <= sample_view(0, p, 0).lens <= 16 for p in range(60))


def test_expressions_vary_but_depend_on_their_seed_alone() -> None:
    for name in EXPRESSIONS:
        assert expression_actions(name, 0.9, 5) == expression_actions(name, 0.9, 5)
        plays = [expression_actions(name, 1.0, seed) for seed in range(30)]
        assert all(0 <= v <= 2 for actions in plays for v in actions.values())
        assert len({tuple(sorted(p.items())) for p in plays}) > 1
    laugh = expression_actions("laughing", 1.0, 3)
    assert laugh["mouthSmileLeft"] != laugh["mouthSmileRight"]
    # Whatever comes along, a laugh is nearer to other laughs than to tears.
    names = sorted({n for e in EXPRESSIONS for n in expression_actions(e)})

    def vector(actions: dict[str, float]) -> np.ndarray:
        return np.array([actions.get(n, 0.0) for n in names])

    centres = {e: vector(expression_actions(e)) for e in EXPRESSIONS}
    for name in EXPRESSIONS:
        for seed in range(20):
            face = vector(expression_actions(name, 1.0, seed))
            nearest = min(centres, key=lambda e: float(np.linalg.norm(face - centres[e])))
            assert nearest == name
    with pytest.raises(FusionError, match="bored.*laughing"):
        expression_actions("bored")


# Light, on maps made by hand.


def test_a_pit_is_darker_than_the_plane_and_a_slope_is_not() -> None:
    row, column = np.mgrid[-80:80, -80:80]
    plane = 1.0 + 0.002 * column
    assert np.allclose(shade.hollows(plane, 0.001)[45:115, 45:115], 1, atol=1e-4)
    pit = 1.0 + 0.01 * np.exp(-((row**2 + column**2) / 60))
    open_ = shade.hollows(pit, 0.001)
    assert open_[80, 80] < 0.8 < open_[20, 20]
    assert shade.hollows(2.0 - pit, 0.001)[80, 80] > 0.99  # a hill


def test_what_stands_before_the_lamp_casts_a_shadow() -> None:
    key = np.array([0.0, -1.0, 0.0])
    right, up = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    # A screen ten centimetres before the wall hides the left half of it.
    depth = np.zeros((64, 64), np.float32)
    depth[:, :32] = -0.1
    seen = shade.ShadowMap(depth, np.zeros(3), key, right, up, 0.2)
    x = np.linspace(-0.15, 0.15, 31, dtype=np.float32)
    wall = np.stack([x, 0 * x, 0 * x], 1)
    lit = shade.shadow(wall, np.tile(key, (31, 1)).astype(np.float32), seen, 0.01)
    assert (lit[x < -0.03] == 0).all() and (lit[x > 0.03] == 1).all()
    assert 0 < lit[15] < 1  # and its edge is soft


def test_light_wanders_under_the_skin_red_further_than_blue() -> None:
    light = np.zeros((32, 64, 3), np.float32)
    light[:, :32] = 1
    spread = shade._scatter(light, np.ones((32, 64), np.float32), 0.001)
    assert spread[16, 32, 0] > 1.5 * spread[16, 32, 2] > 0 and spread[16, 34, 0] > 0
    assert spread[16, 10] == pytest.approx(1, abs=1e-3)


def test_developing_keeps_the_order_of_lights_and_ends_in_white() -> None:
    ramp = np.linspace(0, 3, 300, dtype=np.float32)[:, None].repeat(3, 1)
    out = shade.develop(ramp)[:, 0]
    assert (np.diff(out) >= 0).all() and out[0] == 0 and 250 < out[-1] <= 255
    middle = np.array([[[90, 120, 60]]], np.uint8)
    assert shade.develop(shade.linear(middle)) == pytest.approx(middle, abs=4)


def test_inverse_depth_is_bright_where_it_is_near() -> None:
    depth = np.array([[np.inf, 1.0], [1.2, 1.5]], np.float32)
    assert inverse_depth(depth).tolist()[0] == [0, 255]
    assert inverse_depth(depth)[1, 1] == 64 < inverse_depth(depth)[1, 0] < 255


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
            if person.hair_style != "bald":
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


@pytest.mark.slow
def test_two_figures_on_one_stage_have_masks_and_distances_of_their_own() -> None:
    pytest.importorskip("anny")
    pytest.importorskip("pyvista")
    from fusionlib.people import render

    view = sample_view(0, 1, 0)
    camera = render.portrait_camera(view)
    background = np.full((128, 128, 3), 120, np.uint8)
    figures = [
        render.move(render.pose(render.sit(sample_person(0, i)), view), np.eye(3), np.array(offset))
        for i, offset in ((1, [-0.06, 0.0, 0.0]), (2, [0.06, 0.20, 0.0]))
    ]
    light = render.view_light(view, camera)
    shot = render.photograph(figures, camera, light, background, reach=0.4)
    assert set(np.unique(shot.figure)) == {0, 1, 2}
    assert np.array_equal(np.isfinite(shot.depth), shot.figure > 0)
    assert (shot.image[shot.figure == 0] == 120).all()
    faces = [shot.face & (shot.figure == number) for number in (1, 2)]
    assert min(f.sum() for f in faces) > 300
    near, far = (float(np.median(shot.depth[f])) for f in faces)
    assert far - near == pytest.approx(0.20, abs=0.03)
    # The nearer one stands to the person's right, the picture's left, and hides the other.
    assert np.nonzero(faces[0])[1].mean() < np.nonzero(faces[1])[1].mean()
    assert faces[0].sum() > faces[1].sum()
    with pytest.raises(FusionError, match="not 0"):
        render.photograph([], camera, light, background)


@pytest.mark.slow
def test_a_portrait_is_deterministic_with_a_face_in_its_middle_and_a_depth() -> None:
    pytest.importorskip("anny")
    pytest.importorskip("pyvista")
    from fusionlib.people.render import render_views

    person, view = sample_person(0, 3), sample_view(0, 3, 0)
    first, again = (render_views(person, [view], 64)[0] for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert first.depth.shape == (64, 64) and np.isfinite(first.depth[32, 32])
    assert first.mask[32, 32] == 255 and 0.1 < (first.mask > 0).mean() < 0.6
    assert np.isfinite(first.depth[first.mask > 0]).mean() > 0.98
    face = first.depth[first.mask > 0]
    assert face.min() < first.depth[np.isfinite(first.depth)].mean()
