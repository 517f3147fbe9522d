"""Several people in one picture: groups as people of a study, and who is who in what is made."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fusionlib import FusionPipeline, masks_from_colors
from fusionlib.errors import FusionError
from fusionlib.evaluation.group import SIDE, cut_faces, group_summary, who_is_who
from fusionlib.methods.group import fused_group, load_groups, posed_like_the_next
from fusionlib.study import Person

ROOT = Path(__file__).resolve().parent.parent
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
    faces = who_is_who(index, groups, 3, MeanColour(), out=tmp_path)
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
    with pytest.raises(FusionError, match="ControlNet"):
        fused_group(pipeline, 3, depth=1.0)


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
