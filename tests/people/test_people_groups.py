"""Pictures of several people: arrangement, captions, depth maps, shards and renderings."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companion.people import dataset
from companion.people import groups as group
from companion.people.appearance import Appearance, sample_person
from companion.people.caption import EXPRESSION_PHRASES, MOST_WORDS, STYLE_PHRASES, role_name
from companion.people.groups import (
    Group,
    GroupPicture,
    choose_members,
    describe_group,
    group_attributes,
    sample_group,
)
from companion.people.render import inverse_depth
from companion.people.view import EXPRESSIONS, View, is_held_out
from fusionlib.errors import FusionError
from fusionlib.inputs.layout import masks_from_colors
from fusionlib.training.pictures import load_pictures

PEOPLE = range(40, 70)


def groups(count: int) -> list[Group]:
    return [sample_group(0, i, choose_members(0, i, PEOPLE)) for i in range(count)]


def test_a_group_depends_on_its_numbers_alone() -> None:
    assert groups(3) == groups(3)
    assert sample_group(0, 1, (41, 42)) != sample_group(0, 2, (41, 42))
    assert sample_group(1, 1, (41, 42)) != sample_group(0, 1, (41, 42))


def test_members_are_two_or_three_different_people_of_the_set() -> None:
    chosen = [choose_members(0, i, PEOPLE) for i in range(100)]
    assert all(len(set(c)) == len(c) and set(c) <= set(PEOPLE) for c in chosen)
    assert 30 < sum(len(c) == 2 for c in chosen) < 70
    assert {len(c) for c in chosen} == {2, 3}
    assert len({person for c in chosen for person in c}) == len(PEOPLE)


@pytest.mark.parametrize("members", [(1,), (1, 1), (1, 2, 3, 4)])
def test_other_groups_are_refused(members: tuple[int, ...]) -> None:
    with pytest.raises(FusionError, match="two or three different people"):
        sample_group(0, 0, members)
    with pytest.raises(FusionError, match="at least 3 people"):
        choose_members(0, 0, range(2))


def test_people_stand_side_by_side_and_turn_to_each_other() -> None:
    outer = []
    for made in groups(100):
        places = np.array([member.place for member in made.members])
        gaps = np.diff(places[:, 0])
        assert (gaps > 0.17).all() and (gaps < 0.24).all()  # a head is 0.15 to 0.18 m wide
        assert np.ptp(places[:, 1]) < 0.2 and np.abs(places[:, 2]).max() < 0.06
        assert np.abs(places[:, 0]).max() + 0.07 < made.width / 2  # the face is in the picture
        assert all(abs(member.view.yaw) <= 22 for member in made.members)
        outer += [made.members[0].view.yaw, -made.members[-1].view.yaw]
    # A positive yaw shows the side of the head that lies to the right in the picture.
    assert np.mean(outer) < -5


def test_members_share_the_scene_and_keep_what_is_their_own() -> None:
    differ = set()
    for made in groups(40):
        views = [member.view for member in made.members]
        for name in ("scene", "time", "style", "light_azimuth", "light_strength"):
            assert len({getattr(view, name) for view in views}) == 1
        differ.add(len({view.expression for view in views}) > 1)
        assert len({view.clothes for view in views}) == len(views)
    assert differ == {True, False}


def test_training_shows_nobody_in_a_combination_that_is_held_out() -> None:
    def shares(split: str) -> float:
        made = [sample_group(0, i, choose_members(0, i, PEOPLE), split=split) for i in range(80)]
        views = [member.view for g in made for member in g.members]
        return float(np.mean([is_held_out(v.style, v.scene, v.expression, v.role) for v in views]))

    assert shares("train") == 0
    assert shares("heldout") > 0.03


def test_captions_say_how_many_or_who() -> None:
    numbers = {2: "two", 3: "three"}
    words_of = {name: {*first, *last} for name, (first, last) in EXPRESSION_PHRASES.items()}
    for made in groups(20):
        people = [sample_person(0, member.person) for member in made.members]
        moods = {member.view.expression for member in made.members}
        genders = {person.gender for person in people}
        for wording in range(4):
            text = describe_group(made, wording)
            assert text == describe_group(made, wording)
            begin, follow = STYLE_PHRASES[made.scene.style]
            assert text.startswith(begin) or text.endswith(follow)
            for expression in set(EXPRESSIONS) - moods:
                assert not any(re.search(rf"\b{word}\b", text) for word in words_of[expression])
            for gender, plural in (("woman", "women"), ("man", "men")):
                if gender not in genders:
                    assert not re.search(rf"\b({gender}|{plural})\b", text)
            described = [
                _said_in(text, p, m.view) for p, m in zip(people, made.members, strict=True)
            ]
            assert numbers[len(people)] in text.split() or all(described)
            assert len(text.replace("-", " ").split()) <= MOST_WORDS
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |,,|,$", text)
    made = sample_group(0, 0, (41, 42, 43))
    assert len({describe_group(made, wording) for wording in range(40)}) > 20


def _said_in(text: str, person: Appearance, view: View) -> bool:
    return any(
        noun in text.replace(",", "").split()
        for noun in (person.gender, "person", role_name(person, view))
    )


def test_depth_maps_are_linear_in_the_inverse_of_the_distance() -> None:
    depth = inverse_depth(np.array([[1.0, 1.5, 3.0], [2.0, np.inf, np.inf]]))
    # From 255 at 1 m to 64 at 3 m: 64 + 191 (1/d - 1/3) / (1 - 1/3); nothing behind is 0.
    assert depth.tolist() == [[255, 160, 64], [112, 0, 0]]
    assert not inverse_depth(np.full((2, 2), np.inf)).any()


# The data set, with a renderer that paints rectangles.


def paint(made: Group, size: int) -> GroupPicture:
    masks = np.zeros((len(made.members), size, size), bool)
    for number, member in enumerate(made.members):
        middle = round((member.place[0] / made.width + 0.5) * size)
        masks[number, 4:12, max(0, middle - 2) : middle + 2] = True
    depth = np.where(masks.any(0), 1.5, np.inf).astype(np.float32)
    depth[0, 0], depth[0, 1] = 1.0, 2.0
    return GroupPicture(np.full((size, size, 3), made.index % 256, np.uint8), masks, depth)


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(*arguments: int) -> Iterator[dataset.Sample]:
        seed, person, views, size, split = arguments
        for view in range(views):
            key = f"{person * 100 + view:09d}"
            image = dataset._encode(np.full((size, size, 3), person, np.uint8), "JPEG")
            grey = dataset._encode(np.full((size, size), 9, np.uint8), "PNG")
            record = {"person": person, "caption": "a person", "seed": seed, "split": split}
            files = {"jpg": image, "txt": b"a person", "json": json.dumps(record).encode()}
            yield dataset.Sample(key, record, files | {"mask.png": grey, "depth.png": grey})

    monkeypatch.setattr(dataset, "make_samples", alone)
    monkeypatch.setattr(dataset, "render_group", paint)
    monkeypatch.setattr(dataset, "SAMPLES_PER_SHARD", 4)
    monkeypatch.setattr(dataset, "require", lambda *packages: None)
    monkeypatch.setattr(dataset, "_load", lambda: None)
    # A patched function does not reach a new process: work in threads of this one.
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", lambda n, **_: ThreadPoolExecutor(n))


@pytest.mark.usefixtures("painted")
def test_groups_lie_in_shards_beside_the_people_and_are_read_with_them(tmp_path: Path) -> None:
    numbers = {"people": 5, "views": 2, "size": 16, "first_person": 40}
    manifest = dataset.render_dataset(tmp_path, **numbers, groups=6)
    record = json.loads(manifest.read_text())
    assert record["samples"] == 16 and record["groups"] == 6
    assert {s["file"]: s["samples"] for s in record["shards"]} == {
        "00000.tar": 4, "00001.tar": 4, "00002.tar": 2, "groups-00000.tar": 4, "groups-00001.tar": 2
    }  # fmt: skip
    pictures = load_pictures(tmp_path, 16, depth=True)
    assert len(pictures) == 16 and pictures.skipped == 0
    people, ours = pictures.person[:10], pictures.person[10:]
    assert sorted(set(people.tolist())) == [40, 41, 42, 43, 44]
    assert (ours < 0).all() and len(set(ours.tolist())) == 6  # nobody's second picture
    assert pictures.masks[10:].any((1, 2)).all()
    assert pictures.depth is not None and pictures.depth.shape == (16, 16, 16)
    for mask, depth in zip(pictures.masks[10:], pictures.depth[10:], strict=True):
        expected = np.where(mask == 1, 128, 0)  # 64 + 191 (1/1.5 - 1/2) / (1 - 1/2)
        expected[0, 0], expected[0, 1] = 255, 64
        assert np.array_equal(depth, expected)
    both = pictures.mirrored().depth
    assert both is not None and np.array_equal(both[16:], pictures.depth[:, :, ::-1])
    assert load_pictures(tmp_path, 16).depth is None

    kept = (tmp_path / "groups-00001.tar").read_bytes()
    (tmp_path / "groups-00001.tar").unlink()
    dataset.render_dataset(tmp_path, **numbers, groups=6, workers=1)
    assert (tmp_path / "groups-00001.tar").read_bytes() == kept
    # Members are chosen among all people: with another number of them it is another set.
    with pytest.raises(FusionError, match="people = 5, not 7"):
        dataset.render_dataset(tmp_path, **numbers | {"people": 7}, groups=6)


@pytest.mark.usefixtures("painted")
def test_people_without_depth_maps_are_skipped_where_these_are_needed(tmp_path: Path) -> None:
    dataset.render_dataset(tmp_path, people=3, views=1, size=16, groups=1)
    shard = tmp_path / "00000.tar"
    with tarfile.open(shard) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    del files["000000100.depth.png"]
    with tarfile.open(shard, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert load_pictures(tmp_path, 16, depth=True).skipped == 1
    assert load_pictures(tmp_path, 16).skipped == 0


@pytest.mark.usefixtures("painted")
def test_a_set_of_files_has_an_index_and_masks_by_identity(tmp_path: Path) -> None:
    index = dataset.export_groups(tmp_path, groups=5, people=8, size=32, first_person=1000)
    with index.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{n:04d}.jpg" for n in range(5)]
    for number, row in enumerate(rows):
        who = [int(person) for person in row["people"].split()]
        assert all(0 <= person < 8 for person in who)
        record = json.loads((tmp_path / f"{number:04d}.json").read_text())
        assert record["people"] == [1000 + person for person in who]
        assert len(row["expressions"].split()) == len(row["roles"].split()) == len(who)
        made = sample_group(0, 1000 + number, record["people"], split="heldout")
        assert record["captions"][0] == row["caption"] == describe_group(made)
        assert record["members"] == group_attributes(made)["members"]
        mask = tmp_path / f"{number:04d}.mask.png"
        masks = masks_from_colors(mask, range(1, len(who) + 1))
        assert np.array_equal(masks.numpy(), paint(made, 32).masks)
        # As grey levels it is the mask of any face.
        grey = np.asarray(Image.open(mask).convert("L")) > 127
        assert np.array_equal(grey, masks.any(0).numpy())
    with pytest.raises(FusionError, match="groups must be at least 1"):
        dataset.export_groups(tmp_path, groups=0, people=8)
    with pytest.raises(FusionError, match="at least 3 people"):
        dataset.export_groups(tmp_path, groups=1, people=2)


@pytest.mark.slow
def test_rendered_groups_are_what_they_say() -> None:
    """Loads `anny` (minutes on a machine that has not loaded it before)."""
    pytest.importorskip("anny")
    pytest.importorskip("pyvista")
    from scipy.spatial import Delaunay

    from companion.people import render
    from fusionlib.inputs.photos import find_faces

    seen, expected = 0, 0
    # The detector knows photographs, and few of the other styles.
    for made in [made for made in groups(20) if made.scene.style == "photo"][:6]:
        picture = group.render_group(made, 128)
        count = len(made.members)
        assert picture.image.shape == (128, 128, 3) and picture.depth.shape == (128, 128)
        assert picture.masks.shape == (count, 128, 128) and picture.masks.dtype == bool
        assert picture.masks.sum(0).max() == 1
        middles = [np.nonzero(mask)[1].mean() for mask in picture.masks]
        assert middles == sorted(middles)
        for mask in picture.masks:
            assert 0.02 < mask.mean() < 0.2
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
            # A face is nearer than its own shoulders' back, and than the background.
            assert np.median(inverse_depth(picture.depth)[mask]) > 100
            assert np.isfinite(picture.depth[mask]).all()
        assert np.isinf(picture.depth[:10]).mean() > 0.5
        # A detector that knows nothing of the masks finds a face in each.
        faces = [find.centre for find in find_faces(Image.fromarray(picture.image))]
        found = [picture.masks[:, round(y), round(x)] for x, y in faces]
        seen, expected = seen + int(np.any(found, axis=0).sum()), expected + count
        # Nothing of a head lies in another.
        heads = [
            group._placed(
                render.pose(render.sit(sample_person(0, member.person)), member.view), member
            ).face_points
            for member in made.members
        ]
        for one, head in enumerate(heads):
            hull = Delaunay(head)
            assert all((hull.find_simplex(h) < 0).all() for o, h in enumerate(heads) if o != one)
    assert seen >= 0.75 * expected  # 34 of 37 in the first sixteen photographs
    again = group.render_group(made, 128)
    assert np.array_equal(again.image, picture.image)
    assert np.array_equal(again.depth, picture.depth)
