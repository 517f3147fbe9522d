"""Identity masks from pictures, colors, boxes, faces and depth maps, against known masks."""

import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fusionlib.errors import FusionError
from fusionlib.inputs.layout import (
    masks_from_boxes,
    masks_from_colors,
    masks_from_faces,
    masks_from_files,
    masks_from_regions,
    warn_of_overlaps,
)
from fusionlib.profiles import ROOT

HELDOUT = ROOT / "data" / "heldout"
DEPTH = Path(__file__).parent / "depth_two_people.png"
"""Held-out people 0 and 1 side by side, rendered as depth: bright is near. 256 x 128 pixels."""

ROWS, COLUMNS = np.mgrid[:60, :80]
DISKS = np.stack([np.hypot(ROWS - 30, COLUMNS - x) < 14 for x in (20, 58)])
"""Two disks that do not touch, (2, 60, 80), computed and not drawn."""


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def two_colors(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    return picture(DISKS[0][..., None] * np.array(left) + DISKS[1][..., None] * np.array(right))


def labels(mode: str) -> Image.Image:
    """The disks as labels 1 and 2 on 0."""
    values = DISKS[0] + 2 * DISKS[1]
    if mode == "I;16":
        return Image.fromarray(values.astype(np.uint16))
    image = picture(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    return image


def same(masks: torch.Tensor, expected: np.ndarray) -> bool:
    assert masks.dtype == torch.bool
    return masks.shape == expected.shape and bool((masks.numpy() == expected).all())


@pytest.fixture(scope="module")
def people() -> tuple[Image.Image, np.ndarray]:
    """Two held-out people side by side, 400 x 200, and the renderer's masks of their faces."""
    image, truth = Image.new("RGB", (400, 200), (96, 128, 96)), np.zeros((2, 200, 400), bool)
    for person in (0, 1):
        place = slice(200 * person, 200 * person + 200)
        with Image.open(HELDOUT / f"{person:04d}_0.jpg") as face:
            image.paste(face.resize((200, 200), Image.Resampling.BICUBIC), (200 * person, 0))
        with Image.open(HELDOUT / f"{person:04d}_0.mask.png") as mask:
            truth[person, :, place] = np.asarray(mask.resize((200, 200))) > 127
    return image, truth


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK", "I;16", "F"])
def test_files_are_read_in_every_mode(tmp_path: Path, mode: str) -> None:
    files = []
    for index, disk in enumerate(DISKS):
        if mode == "I;16":
            image = Image.fromarray(disk.astype(np.uint16) * 65535)
        elif mode == "F":
            image = Image.fromarray(disk.astype(np.float32))
        else:
            image = picture(255 * disk).convert(mode)
        files.append(tmp_path / f"{index}.{'tiff' if mode in ('F', 'CMYK') else 'png'}")
        image.save(files[-1])
    assert same(masks_from_files(files), DISKS)
    assert same(masks_from_files([str(file) for file in reversed(files)]), DISKS[::-1])
    assert same(masks_from_files([Image.open(file) for file in files]), DISKS)


def test_half_brightness_and_transparency_decide() -> None:
    ramp = np.tile(np.arange(256), (40, 1))
    assert same(masks_from_files([picture(ramp)]), ramp[None] > 127)
    painted = picture(np.full((60, 80), 255)).convert("RGB")
    painted.putalpha(picture(255 * DISKS[0]))
    assert same(masks_from_files([painted]), DISKS[:1])


def test_a_mask_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture(255 * np.rot90(DISKS[0])).save(tmp_path / "turned.png", exif=exif)
    assert same(masks_from_files([tmp_path / "turned.png"]), DISKS[:1])


def test_resize_scales_and_without_it_sizes_must_agree(tmp_path: Path) -> None:
    files = [picture(255 * disk) for disk in DISKS]
    twice = DISKS.repeat(2, axis=1).repeat(2, axis=2)
    assert same(masks_from_files(files, size=(120, 160), resize=True), twice)
    mixed = [files[0], picture(255 * twice[1])]
    assert same(masks_from_files(mixed, size=(60, 80), resize=True), DISKS)
    colored = two_colors((255, 0, 0), (0, 0, 255))
    half = masks_from_colors(colored, size=(30, 40), resize=True).numpy()
    share = DISKS.reshape(2, 30, 2, 40, 2).mean(axis=(2, 4))
    assert (half == (share >= 0.5)).all()
    files[1].save(tmp_path / "second.png")
    with pytest.raises(FusionError, match=r"second.png is 80 x 60 pixels and not 64 x 64 .*resize"):
        masks_from_files([picture(np.full((64, 64), 255)), tmp_path / "second.png"])


def test_overlaps_are_warned_of_with_identities_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "both.png"
    picture(255 * DISKS[0]).save(path)
    shared = int((DISKS[0] & (COLUMNS < 20)).sum())
    left = picture(255 * (COLUMNS < 20))
    with pytest.warns(UserWarning) as caught:
        masks = masks_from_files([left, picture(255 * DISKS[1]), path])
    assert len(caught) == 1 and masks.shape[0] == 3
    said = str(caught[0].message)
    assert "identity 0 (files[0]) and identity 2" in said and str(path) in said
    assert f"overlap in {shared} pixels" in said
    assert caught[0].filename == __file__
    boxes = [(0, 0, 30, 60), (20, 0, 60, 30), (50, 10, 80, 60)]
    with pytest.warns(UserWarning) as caught:
        masks_from_boxes(boxes, (60, 80))
    first, second = (str(warning.message) for warning in caught)
    assert "identity 0 (boxes[0]) and identity 1 (boxes[1]) overlap in 300 pixels" in first
    assert "identity 1 (boxes[1]) and identity 2 (boxes[2]) overlap in 200 pixels" in second
    with pytest.warns(UserWarning, match="identity 0 and identity 1 overlap in 1 pixels") as caught:
        warn_of_overlaps(torch.ones(2, 1, 1, dtype=torch.bool))
    assert caught[0].filename == __file__


def test_disjoint_masks_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_overlaps(torch.from_numpy(DISKS))
        masks_from_boxes([(0, 0, 40, 60), (40, 0, 80, 60)], (60, 80))


def test_colors_are_found_from_left_to_right_or_in_the_order_given(tmp_path: Path) -> None:
    image = two_colors((0, 0, 255), (255, 0, 0))
    image.save(tmp_path / "layout.png")
    for given in (image, tmp_path / "layout.png", image.quantize(8), image.convert("CMYK")):
        assert same(masks_from_colors(given), DISKS)
    for colors in (["red", "blue"], ["#ff0000", (0, 0, 255)]):
        assert same(masks_from_colors(image, colors), DISKS[::-1])
    assert same(masks_from_colors(image, ["red"]), DISKS[1:])


def test_background_and_transparency_are_nobody() -> None:
    values = np.asarray(two_colors((0, 0, 255), (255, 0, 0))).copy()
    values[~DISKS.any(0)] = (255, 255, 255)
    assert same(masks_from_colors(picture(values), background="white"), DISKS)
    assert len(masks_from_colors(picture(values))) == 3, "white is a color where black is nobody"
    clear = picture(values)
    clear.putalpha(picture(255 * DISKS.any(0)))
    assert same(masks_from_colors(clear), DISKS)


@pytest.mark.parametrize("mode", ["P", "L", "I;16"])
def test_numbers_are_palette_indices_grey_levels_or_labels(tmp_path: Path, mode: str) -> None:
    labels(mode).save(tmp_path / "labels.png")
    assert same(masks_from_colors(tmp_path / "labels.png", [2, 1]), DISKS[::-1])
    assert same(masks_from_colors(labels(mode), [1]), DISKS[:1])


def test_boxes_in_pixels_and_in_fractions() -> None:
    expected = np.zeros((2, 60, 80), bool)
    expected[0, 6:30, 8:40] = expected[1, 30:60, 40:80] = True
    pixels = [(8, 6, 40, 30), (40, 30, 80, 60)]
    assert same(masks_from_boxes(pixels, (60, 80)), expected)
    fractions = [(0.1, 0.1, 0.5, 0.5), (0.5, 0.5, 1, 1)]
    assert same(masks_from_boxes(fractions, (60, 80)), expected)
    assert same(masks_from_boxes([pixels[1], fractions[0]], (60, 80)), expected[::-1])


def test_each_face_that_is_found_becomes_a_mask(
    people: tuple[Image.Image, np.ndarray], tmp_path: Path
) -> None:
    image, truth = people
    image.save(tmp_path / "people.png")
    masks = masks_from_faces(tmp_path / "people.png", 2).numpy()
    for index in (0, 1):
        rows, columns = np.nonzero(masks[index])
        assert masks[index].sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "a rectangle"
        assert masks[index][truth[index]].mean() > 0.97 and not masks[index][truth[1 - index]].any()
        assert masks[index].sum() < 2.5 * truth[index].sum()
    tight = masks_from_faces(image, margin=0).numpy()
    assert (tight <= masks).all() and (tight.sum((1, 2)) < 0.6 * masks.sum((1, 2))).all()
    assert masks_from_faces(image, size=(64, 128), resize=True).shape == (2, 64, 128)
    with pytest.warns(UserWarning, match="face 0 from the left.* and .*face 1 from the left"):
        masks_from_faces(image, margin=2)
    with pytest.raises(FusionError, match="2 face.* in picture, and count asks for 3.*regions"):
        masks_from_faces(image, 3)


def test_people_who_touch_in_a_depth_map_are_parted_at_their_heads() -> None:
    masks = masks_from_regions(DEPTH, 2).numpy()
    truth = np.zeros((2, 128, 256), bool)
    for person in (0, 1):
        with Image.open(HELDOUT / f"{person:04d}_0.mask.png") as mask:
            left = (6, 128)[person]  # moved together, so that their shoulders touch
            truth[person, :, left : left + 128] = np.asarray(mask) > 127
    for index in (0, 1):  # measured: all of both faces
        assert masks[index][truth[index]].mean() > 0.95 and not masks[index][truth[1 - index]].any()
    assert not (masks[0] & masks[1]).any()
    with pytest.raises(FusionError, match=f"{DEPTH.name} has 1 separate .* than 50, .* for 2"):
        masks_from_regions(DEPTH, 2, threshold=50)


def test_regions_are_those_that_were_drawn() -> None:
    grey = picture(40 + 120 * DISKS[0] + 200 * DISKS[1])
    assert same(masks_from_regions(grey, 2), DISKS)
    assert same(masks_from_regions(grey, 1, threshold=200), DISKS[1:])
    flat = DISKS.any(0) | ((ROWS == 2) & (COLUMNS == 2))  # the speck is nobody
    assert same(masks_from_regions(picture(255 * flat), 2), DISKS)
    bridge = (ROWS == 30) & (COLUMNS > 20) & (COLUMNS < 58)
    joined = picture(np.where(DISKS.any(0), 220, 140 * bridge))
    assert same(masks_from_regions(joined, 2), DISKS)


def test_a_map_of_poses_gives_the_rectangle_around_each() -> None:
    image = Image.new("RGB", (80, 60))
    draw = ImageDraw.Draw(image)
    draw.line([(10, 5), (20, 25), (12, 50)], fill=(255, 128, 0), width=2)
    draw.line([(50, 10), (70, 40)], fill=(0, 255, 128), width=2)
    drawn = np.asarray(image).max(axis=2) > 0
    expected = np.zeros((2, 60, 80), bool)
    for index, half in enumerate((COLUMNS < 40, COLUMNS >= 40)):
        rows, columns = np.nonzero(drawn & half)
        expected[index, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert same(masks_from_regions(image, 2, threshold=0, box=True), expected)


def test_noise_of_thousands_of_regions_takes_little_memory() -> None:
    noise = picture(np.random.default_rng(0).integers(0, 256, (400, 400)))
    tracemalloc.start()
    try:
        with pytest.raises(FusionError, match="layout has .* separate region"):
            masks_from_regions(noise, 3000, threshold=250)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * 400 * 400, "there are over 2000 regions: no mask of each may be made"


WHITE = picture(np.full((60, 80), 255))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: masks_from_files("mask.png"), "files must be a list"),
        (lambda: masks_from_files([]), "files must be a list"),
        (lambda: masks_from_files([WHITE, 7]), r"files\[1\] must be the path .* not int"),
        (lambda: masks_from_files(["no.png"]), "no image file no.png"),
        (lambda: masks_from_files([__file__]), "test_layout.py is not an image"),
        (lambda: masks_from_files([WHITE, picture(0 * ROWS)]), r"files\[1\] marks no place"),
        (lambda: masks_from_files([WHITE], size=(64, 64)), r"files\[0\] is 80 x 60 .* 64 x 64"),
        (lambda: masks_from_files([WHITE], size=64), r"size must be \(height, width\)"),
        (lambda: masks_from_files([WHITE], size=(0, 64)), r"size must be \(height, width\)"),
        (lambda: masks_from_colors(WHITE, "red"), "colors must be a list"),
        (lambda: masks_from_colors(WHITE, 5), "colors must be a list"),
        (lambda: masks_from_colors(WHITE, ["rouge"]), r"colors\[0\] must be a color .* 'rouge'"),
        (lambda: masks_from_colors(WHITE, [(1, 2, 999)]), r"colors\[0\] must be a color"),
        (lambda: masks_from_colors(WHITE, ["white", 3]), r"colors\[1\] must be a color"),
        (lambda: masks_from_colors(WHITE, ["white"] * 2), r"colors\[1\].*two identities"),
        (lambda: masks_from_colors(WHITE, ["red"]), r"colors\[0\], #ff0000, is nowhere in layout"),
        (lambda: masks_from_colors(labels("L"), [3]), r"colors\[0\], 3, is nowhere in layout"),
        (lambda: masks_from_colors(labels("I;16")), "layout has 16-bit grey levels"),
        (lambda: masks_from_colors(WHITE.convert("RGB"), [1]), "colors holds numbers, but layout"),
        (lambda: masks_from_colors(WHITE, background="noir"), "background must be a color"),
        (lambda: masks_from_colors(WHITE, background="white"), "layout has 0 colors besides"),
        (lambda: masks_from_colors(HELDOUT / "0000_0.jpg"), "0000_0.jpg has .* colors besides"),
        (lambda: masks_from_boxes([], (60, 80)), "boxes must be a list"),
        (lambda: masks_from_boxes([(0, 0, 9, 9), 5], (60, 80)), r"boxes\[1\] must be four"),
        (lambda: masks_from_boxes([(0, 0, 80, 61)], (60, 80)), r"boxes\[0\] .* 80 x 60 pixels"),
        (
            lambda: masks_from_boxes([(9, 0, 3, 9)], (60, 80)),
            r"boxes\[0\] .* left before its right",
        ),
        (lambda: masks_from_boxes([(0, 0, 9, 9)], "64"), "size must be"),
        (lambda: masks_from_faces(WHITE), "No face.* in picture: give the photograph"),
        (lambda: masks_from_faces(WHITE.resize((20, 20))), "picture is 20x20 pixels"),
        (lambda: masks_from_faces(None), "picture must be the path"),
        (lambda: masks_from_faces(WHITE, margin="wide"), "margin must be"),
        (lambda: masks_from_faces(WHITE, count=0), "count must be"),
        (lambda: masks_from_regions(WHITE, 0), "count must be"),
        (lambda: masks_from_regions(WHITE, 1, threshold=255), "threshold must be a grey level"),
        (lambda: masks_from_regions(WHITE, 2), "layout has 1 separate .* count asks for 2"),
        (lambda: warn_of_overlaps(torch.ones(2, 3, 3)), "masks must be boolean"),
        (
            lambda: warn_of_overlaps(torch.from_numpy(DISKS), ["one"]),
            "names must hold one for each",
        ),
    ],
)
def test_malformed_input_ends_in_one_sentence_that_names_it(
    make: Callable[[], object], says: str
) -> None:
    with pytest.raises(FusionError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    content = (HELDOUT / "0000_0.mask.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for make in (lambda file: masks_from_files([file]), masks_from_colors, masks_from_faces):
        with pytest.raises(FusionError, match="cut.png is damaged or cut short"):
            make(tmp_path / "cut.png")
    with (
        Image.open(tmp_path / "cut.png") as opened,
        pytest.raises(FusionError, match=r"files\[0\] cannot be read"),
    ):
        masks_from_files([opened])
