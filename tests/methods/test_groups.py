"""Several people in one picture: groups as people of a study, and who is who in what is made."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from companion.evaluation.comparison import paired_difference
from companion.evaluation.groups import (
    SIDE,
    cut_faces,
    group_summary,
    mask_gains,
    recognise_members,
)
from companion.methods.groups import fused_group, load_groups, posed_like_the_next
from companion.person import Person
from fusionlib import FusionPipeline, masks_from_colors
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from fusionlib.support.provenance import sha256_json

ROOT = ROOT
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
SPOTS = ((20, 40, 4, 30), (30, 60, 45, 80), (10, 36, 94, 126))  # top, bottom, left, right


class MeanColour:
    """An instrument that embeds the middle of a picture as its mean colour."""

    name, needs_face, dimension, fingerprint = "colour", False, 3, "mean colour"

    def read(self, image: Image.Image, face: object) -> np.ndarray:
        pixels = np.asarray(image, dtype=np.float32)
        quarter = len(pixels) // 4
        return pixels[quarter:-quarter, quarter:-quarter].mean(axis=(0, 1))


def painted(colours: tuple[tuple[int, int, int], ...]) -> Image.Image:
    pixels = np.full((128, 128, 3), 120, np.uint8)
    for (top, bottom, left, right), colour in zip(SPOTS, colours, strict=True):
        pixels[top:bottom, left:right] = colour
    return Image.fromarray(pixels)


@pytest.fixture()
def group(tmp_path: Path) -> tuple[Path, Path]:
    folder, heldout = tmp_path / "groups", tmp_path / "heldout"
    folder.mkdir()
    heldout.mkdir()
    painted(COLOURS).save(folder / "0001.jpg", quality=95, subsampling=0)
    layout = np.zeros((128, 128, 3), np.uint8)
    for (top, bottom, left, right), colour in zip(SPOTS, COLOURS, strict=True):
        layout[top:bottom, left:right] = colour
    Image.fromarray(layout).save(folder / "0001.mask.png")
    Image.new("L", (128, 128), 90).save(folder / "0001.depth.png")
    for number, colour in zip((7, 3, 5), COLOURS, strict=True):
        Image.new("RGB", (64, 64), colour).save(heldout / f"{number:04d}_0.jpg")
    index = [("person", "view", "file"), *((n, 0, f"{n:04d}_0.jpg") for n in (3, 5, 7))]
    with open(heldout / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows(index)
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["group", "file", "people"], [0, "0000.jpg", "1 2"]])
        writer.writerow([1, "0001.jpg", "7 3 5"])
    return folder, heldout


def test_a_group_is_a_person_with_the_faces_from_left_to_right(group: tuple[Path, Path]) -> None:
    folder, heldout = group
    (one,) = load_groups(folder, heldout, 3)
    names = [path.name for path in one.references]
    assert names == ["0007_0.jpg", "0003_0.jpg", "0005_0.jpg", "0001.mask.png", "0001.depth.png"]
    assert [path.name for path in one.others] == ["0001.jpg"]
    with pytest.raises(FusionError, match="1 groups of 3, fewer than the 2"):
        load_groups(folder, heldout, 3, 2)
    with pytest.raises(FusionError, match="index.csv"):
        load_groups(heldout, heldout, 3)
    with pytest.raises(FusionError, match="shows the person 1, who is not in"):
        load_groups(folder, heldout, 2)


def test_faces_are_cut_around_the_middle_of_their_masks(tmp_path: Path) -> None:
    painted(COLOURS).save(tmp_path / "picture.png")
    masks = np.zeros((3, 128, 128), bool)
    for mask, (top, bottom, left, right) in zip(masks, SPOTS, strict=True):
        mask[top:bottom, left:right] = True
    cuts = cut_faces(tmp_path / "picture.png", masks, tmp_path / "cut")
    for path, colour in zip(cuts, COLOURS, strict=True):
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (SIDE, SIDE, 3)
        assert np.abs(pixels[SIDE // 2, SIDE // 2].astype(int) - colour).max() <= 2
        # The margin shows what is around the mask, and beyond the edge what is at the edge.
        assert (pixels == 120).all(axis=-1).mean() > 0.2
    before = [path.stat().st_mtime_ns for path in cuts]
    again = cut_faces(tmp_path / "picture.png", masks, tmp_path / "cut")
    assert again == cuts and [path.stat().st_mtime_ns for path in again] == before


def test_who_is_who_sees_the_right_the_swapped_and_the_mixed(
    group: tuple[Path, Path], tmp_path: Path
) -> None:
    groups = load_groups(*group, 3)
    red, green, blue = COLOURS
    rows = []
    for method, colours in {
        "right": (red, green, blue),
        "turned": (green, blue, red),
        "one face": (green, green, green),
    }.items():
        path = tmp_path / f"{method}.png"
        painted(colours).save(path)
        rows.append([method, "group 1", "p", 0, str(path)])
    index = pd.DataFrame(rows, columns=["method", "person", "prompt", "seed", "image"])
    faces = recognise_members(index, groups, 3, MeanColour(), out=tmp_path)
    found = faces.groupby("method")["right"].mean()
    assert found.to_dict() == {
        "right": 1.0,
        "turned": 0.0,
        "one face": pytest.approx(1 / 3),
        "rendered": 1.0,
    }
    mine = faces[faces["method"] == "right"]
    assert (mine["own"] < 0.05).all() and (mine["others"] > 0.3).all()
    # One group has no interval; its numbers are there all the same.
    assert group_summary(faces)["right"]["faces found"] == "3 of 3"


def apart(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    a, b = np.array(one, float), np.array(other, float)
    return 1 - a @ b / np.sqrt(a @ a * (b @ b))


def test_every_group_is_compared_with_its_own_members(
    group: tuple[Path, Path], tmp_path: Path
) -> None:
    (first,) = load_groups(*group, 3)
    red, green, blue = COLOURS
    painted((green, blue, red)).save(tmp_path / "second.jpg", quality=95, subsampling=0)
    painted((green, red, blue)).save(tmp_path / "made.png")
    faces, layout = first.references[:3], first.references[3:]
    second = Person("group 2", (*faces[1:], faces[0], *layout), (tmp_path / "second.jpg",))
    index = pd.DataFrame(
        [("made", "group 2", "p", 0, str(tmp_path / "made.png"))],
        columns=["method", "person", "prompt", "seed", "image"],
    )
    found = recognise_members(index, [first, second], 3, MeanColour(), out=tmp_path)
    assert found.groupby(["method", "person"])["right"].apply(list).to_dict() == {
        ("made", "group 2"): [1, 0, 0],
        ("rendered", "group 1"): [1, 1, 1],
        ("rendered", "group 2"): [1, 1, 1],
    }
    made = found[found["method"] == "made"]
    own = [0, apart(red, blue), apart(blue, red)]
    others = [
        (apart(shown, one) + apart(shown, other)) / 2
        for shown, one, other in ((green, blue, red), (red, green, red), (blue, green, blue))
    ]
    assert made["own"].tolist() == pytest.approx(own, abs=0.1)
    assert made["others"].tolist() == pytest.approx(others, abs=0.1)


def test_a_face_that_is_not_found_is_nobodys(group: tuple[Path, Path], tmp_path: Path) -> None:
    class Sighted(MeanColour):
        def read(self, image: Image.Image, face: object) -> np.ndarray | None:
            colour = super().read(image, face)
            return None if np.ptp(colour) < 50 else colour

    red, green, _ = COLOURS
    for name, colours in (("first", (120, 120, 120)), ("last", COLOURS[2])):
        shown = (colours, green, (120, 120, 120)) if name == "first" else (red, green, colours)
        painted(shown).save(tmp_path / f"{name}.png")
    index = pd.DataFrame(
        [(name, "group 1", "p", 0, str(tmp_path / f"{name}.png")) for name in ("first", "last")],
        columns=["method", "person", "prompt", "seed", "image"],
    )
    found = recognise_members(index, load_groups(*group, 3), 3, Sighted(), out=tmp_path)
    first = found[found["method"] == "first"]
    assert first["right"].isna().tolist() == [True, False, True]
    assert first["own"].isna().tolist() == first["others"].isna().tolist() == [True, False, True]
    assert group_summary(found)["first"]["faces found"] == "1 of 3"
    assert mask_gains(first)["gain"].isna().tolist() == [True, False, True]


def test_another_layout_cuts_the_same_picture_anew(tmp_path: Path) -> None:
    painted(COLOURS).save(tmp_path / "picture.png")
    for (top, bottom, left, right), colour in zip(SPOTS, COLOURS, strict=True):
        mask = np.zeros((1, 128, 128), bool)
        mask[0, top:bottom, left:right] = True
        (cut,) = cut_faces(tmp_path / "picture.png", mask, tmp_path / "cut")
        middle = Image.open(cut).getpixel((SIDE // 2, SIDE // 2))
        assert np.abs(np.subtract(middle, colour)).max() <= 2


def test_every_group_counts_once_and_gains_are_of_single_places() -> None:
    rows = [("one", seed, place, 1.0, 0.2, 0.5) for seed in range(3) for place in range(2)]
    rows += [("two", 0, place, 0.0, 0.7, 0.4) for place in range(2)]
    columns = ["person", "seed", "place", "right", "own", "others"]
    fused = pd.DataFrame(rows, columns=columns).assign(method="fused", prompt="p")
    told = group_summary(fused)["fused"]
    means = [told[name].estimate for name in ("right person", "distance to the right person")]
    assert means == pytest.approx([0.5, 0.45]) and told["faces found"] == "8 of 8"
    assert told["to the others"].estimate == pytest.approx(0.45)
    plain = fused.assign(method="plain", own=0.6, others=0.5)
    gains = mask_gains(pd.concat([fused, plain]))
    found = paired_difference(gains, "fused", "plain", "gain")
    assert (found.pairs, found.cells, found.people) == (8, 8, 2)
    assert found.interval.estimate == pytest.approx(((0.3 + 0.1) + (-0.3 + 0.1)) / 2)


@pytest.fixture(scope="module")
def pipeline() -> FusionPipeline:
    pipeline = FusionPipeline.from_pretrained(ROOT / "data" / "models" / "embedded")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_group_is_what_the_pipeline_makes_of_faces_and_masks(
    pipeline: FusionPipeline, group: tuple[Path, Path]
) -> None:
    (one,) = load_groups(*group, 3)
    pictures = [Image.open(path).convert("RGB") for path in one.references]
    made = {}
    for masked in (True, False):
        method = fused_group(pipeline, 3, masked=masked, threads=1, num_inference_steps=2)
        assert method.references == 4
        prepared = method.prepare(pictures[:4])
        made[masked] = method.generate("a photo of three people", prepared, 5)
    masks = masks_from_colors(pictures[3])
    for masked in (True, False):
        expected = pipeline(
            "a photo of three people",
            references=pictures[:3],
            identity_masks=masks if masked else None,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(5),
        ).images[0]
        difference = np.asarray(made[masked]).astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 1
    assert np.abs(np.asarray(made[True]).astype(int) - np.asarray(made[False])).max() > 2
    masked, unmasked = (fused_group(pipeline, 3, masked=how).settings for how in (True, False))
    assert masked != unmasked, "one is never taken for the other"
    with pytest.raises(FusionError, match="ControlNet"):
        fused_group(pipeline, 3, depth=1.0)


def test_what_follows_a_depth_map_is_named_by_its_scale_and_its_controlnet(
    pipeline: FusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [fused_group(pipeline, 3).settings]
    for level in (0.0, 1.0):
        control = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(control.weight, level)
        monkeypatch.setattr(pipeline, "controlnet", control, raising=False)
        settings += [fused_group(pipeline, 3, depth=depth).settings for depth in (0.5, 1.0)]
    assert len({sha256_json(each) for each in settings}) == 5


def test_everybody_is_posed_like_the_next(tmp_path: Path) -> None:
    people = [
        Person(name, (tmp_path / f"{name}.jpg", tmp_path / "b.jpg"), (tmp_path / "o.jpg",))
        for name in ("ada", "bea", "cyd")
    ]
    for name in ("ada", "bea", "cyd"):
        for suffix in (".mask.png", ".depth.png"):
            (tmp_path / f"{name}{suffix}").touch()
    posed = posed_like_the_next(people)
    names = [[path.name for path in one.references] for one in posed]
    assert names[0] == ["ada.jpg", "bea.mask.png", "bea.depth.png"]
    assert names[2] == ["cyd.jpg", "ada.mask.png", "ada.depth.png"]
    assert [one.others for one in posed] == [one.others for one in people]
    with pytest.raises(FusionError, match="two or more"):
        posed_like_the_next(people[:1])
    (tmp_path / "bea.depth.png").unlink()
    with pytest.raises(FusionError, match=r"no .*bea\.depth\.png, which 'ada'"):
        posed_like_the_next(people)
