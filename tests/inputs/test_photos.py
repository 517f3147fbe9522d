"""A photograph of any kind becomes the level, square crop of one face, or one clear sentence."""

import io
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.inputs import photos
from fusionlib.inputs.photos import Face, find_faces, packaged_models, prepare_photo, read_photo
from fusionlib.profiles import ROOT

HELDOUT = ROOT / "data" / "heldout"


def portrait(person: int, size: int = 256) -> Image.Image:
    """A rendered person who looks at the camera; the face fills half of the picture."""
    picture = Image.open(HELDOUT / f"{person:04d}_0.jpg").convert("RGB")
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def true_centre(person: int, size: int = 256) -> np.ndarray:
    """The middle (x, y) of the face by the renderer's own mask."""
    mask = Image.open(HELDOUT / f"{person:04d}_0.mask.png").resize((size, size))
    rows, columns = np.nonzero(np.asarray(mask) > 127)
    return np.array([columns.mean(), rows.mean()])


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """800 x 600: a small person at (40, 300) and a large one at (380, 120), 400 pixels wide."""
    picture = Image.new("RGB", (800, 600), (96, 128, 96))
    picture.paste(portrait(0), (40, 300))
    picture.paste(portrait(1, 400), (380, 120))
    return picture


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures of one size, in grey levels."""
    assert one.size == other.size and one.mode == other.mode == "RGB"
    return float(np.abs(np.asarray(one).astype(float) - np.asarray(other)).mean())


def test_faces_are_where_the_renderer_put_them() -> None:
    for person in range(8):
        (face,) = find_faces(portrait(person))
        assert np.hypot(*(np.array(face.centre) - true_centre(person))) < 0.1 * 256
        (left_x, left_y), (right_x, right_y) = face.eyes
        assert face.box[0] < left_x < face.centre[0] < right_x < face.box[2]
        assert face.box[1] < min(left_y, right_y) and max(left_y, right_y) < face.centre[1]
        assert face.score > 0 and abs(face.tilt) < 10


def test_the_default_margin_frames_a_face_as_the_training_pictures_do() -> None:
    sides = [face.side for person in range(12) for face in find_faces(portrait(person))]
    assert np.mean(sides) * (1 + 2 * photos.FRAME) == pytest.approx(256, rel=0.06)


def test_a_face_in_a_large_picture_comes_back_as_it_was_pasted() -> None:
    picture = Image.new("RGB", (900, 700), (96, 128, 96))
    picture.paste(portrait(3, 300), (500, 350))
    crop = prepare_photo(picture, level=False)
    (face,) = find_faces(picture)
    corner = [round(middle - crop.width / 2) for middle in face.centre]
    expected = picture.crop((*corner, corner[0] + crop.width, corner[1] + crop.width))
    assert crop.width == crop.height == pytest.approx(300, rel=0.15)
    assert difference(crop, expected) < 3  # the centre may lie between two pixels


@pytest.mark.parametrize("tilt", [-30, -12, 12, 30])
def test_a_tilted_head_is_levelled(tilt: int) -> None:
    upright = portrait(2)
    # Pillow turns counter-clockwise.
    turned = upright.rotate(-tilt, Image.Resampling.BICUBIC, expand=True, fillcolor=(96, 128, 96))
    before = find_faces(upright)[0].tilt
    assert find_faces(turned)[0].tilt - before == pytest.approx(tilt, abs=5)
    level, tilted = prepare_photo(turned, size=256), prepare_photo(turned, size=256, level=False)
    assert abs(find_faces(level)[0].tilt) < 4
    assert find_faces(tilted)[0].tilt - before == pytest.approx(tilt, abs=5)
    middle = (64, 64, 192, 192)
    expected = prepare_photo(upright, size=256)
    error = difference(level.crop(middle), expected.crop(middle))
    assert error < 0.6 * difference(tilted.crop(middle), expected.crop(middle))


def test_one_of_several_faces_is_chosen_from_the_left_or_by_size(scene: Image.Image) -> None:
    small, large = find_faces(scene)
    assert small.centre[0] < 300 < large.centre[0] and small.side < large.side
    left, right = (prepare_photo(scene, face=index, size=128) for index in (0, 1))
    assert difference(prepare_photo(scene, face="largest", size=128), right) == 0
    for crop, person in ((left, 0), (right, 1)):
        mine, others = (prepare_photo(portrait(p), size=128) for p in (person, 1 - person))
        assert difference(crop, mine) < 0.5 * difference(crop, others)


def test_several_faces_without_a_choice_end_in_one_sentence(scene: Image.Image) -> None:
    with pytest.raises(FusionError) as caught:
        prepare_photo(scene)
    message = str(caught.value)
    places = [face.centre for face in find_faces(scene)]
    assert message.startswith("2 faces were found in photo, from left to right at ")
    assert all(f"({x:.0f}, {y:.0f})" in message for x, y in places)
    assert "face=0 to face=1" in message and 'face="largest"' in message and "box" in message


def test_no_face_ends_in_one_sentence_and_a_box_helps() -> None:
    grey = Image.new("RGB", (300, 200), "grey")
    assert find_faces(grey) == []
    with pytest.raises(FusionError, match="No face was found in photo.*box="):
        prepare_photo(grey)
    assert prepare_photo(grey, box=(0, 0, 100, 100)).size == (100, 100)


def test_a_face_at_the_edge_is_completed_by_its_mirror_image() -> None:
    whole = portrait(4)
    cut = whole.crop((int(true_centre(4)[0]) - 50, 0, 256, 256))  # close beside the face
    crop = prepare_photo(cut, level=False, margin=1.0)
    (face,) = find_faces(cut)
    missing = round(crop.width / 2 - face.centre[0])
    assert missing > 20, "the square should reach beyond the left edge"
    values = np.asarray(crop).astype(float)
    mirrored = values[:, missing : 2 * missing][:, ::-1]
    assert np.abs(values[:, :missing] - mirrored)[:, 3:-3].mean() < 8
    assert values.min(axis=2).max(axis=0).min() > 20, "no black column"


def test_a_box_is_cut_out_unchanged() -> None:
    picture = portrait(5)
    values = np.asarray(picture)
    assert np.array_equal(prepare_photo(picture, box=(40, 30, 140, 130)), values[30:130, 40:140])
    fractions = prepare_photo(picture, box=(0.25, 0.5, 0.5, 0.75))
    assert np.array_equal(fractions, values[128:192, 64:128])
    assert np.array_equal(prepare_photo(picture, box=(0, 0, 1, 1)), values)
    wide = prepare_photo(picture, box=(40, 100, 140, 150))  # widened to a square about its middle
    assert np.array_equal(wide, values[75:175, 40:140])
    assert prepare_photo(picture, box=(40, 30, 140, 130), size=64).size == (64, 64)


def test_camera_orientation_is_undone(tmp_path: Path) -> None:
    expected = prepare_photo(portrait(6))
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = portrait(6).transpose(turn)
        stored.save(tmp_path / "camera.png", exif=exif)
        assert np.array_equal(prepare_photo(tmp_path / "camera.png"), expected)
        with Image.open(tmp_path / "camera.png") as opened:
            assert np.array_equal(prepare_photo(opened), expected)


def rgb16_png(values: np.ndarray) -> bytes:
    """A PNG with 16 bits in each of three channels, which Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image: Image.Image, suffix: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=suffix, **options)
    return buffer.getvalue()


def in_every_mode(picture: Image.Image) -> dict[str, tuple[bytes, bool]]:
    """The picture in the files people have, and whether they still hold its colours."""
    grey = picture.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    alpha = picture.copy()
    alpha.putalpha(255)
    values = np.asarray(picture).astype(np.uint16) * 257
    return {
        "JPEG": (saved(picture, "jpeg", quality=95), True),
        "grey": (saved(grey, "png"), False),
        "grey and alpha": (saved(alpha.convert("LA"), "png"), False),
        "alpha": (saved(alpha, "png"), True),
        "palette": (saved(picture.quantize(256), "png"), True),
        "CMYK": (saved(picture.convert("CMYK"), "jpeg", quality=95), True),
        "16-bit grey PNG": (saved(Image.fromarray(deep), "png"), False),
        "16-bit grey TIFF": (saved(Image.fromarray(deep), "tiff"), False),
        "32-bit grey TIFF": (saved(Image.fromarray(deep.astype(np.int32)), "tiff"), False),
        "16-bit RGB PNG": (rgb16_png(values), True),
        "WebP": (saved(picture, "webp", quality=95), True),
    }


MODES = list(in_every_mode(Image.new("RGB", (64, 64))))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("opened", [False, True], ids=["file", "picture"])
def test_every_kind_of_picture_gives_the_same_crop(tmp_path: Path, mode: str, opened: bool) -> None:
    picture = portrait(7)
    content, coloured = in_every_mode(picture)[mode]
    path = tmp_path / "photo"
    path.write_bytes(content)
    expected = picture if coloured else picture.convert("L").convert("RGB")
    if opened:
        with Image.open(path) as photo:
            read = read_photo(photo)
    else:
        read = read_photo(path)
    assert difference(read, expected) < 5
    box = (40, 40, 220, 220)
    assert difference(prepare_photo(path, box=box), expected.crop(box)) < 5
    (face,), (truth,) = find_faces(read), find_faces(picture)
    assert np.allclose(face.box, truth.box, atol=12)


def test_a_photograph_of_24_megapixels() -> None:
    picture = Image.new("RGB", (6000, 4000), (96, 128, 96))
    picture.paste(portrait(0, 1500), (3000, 1200))
    crop = prepare_photo(picture, size=512)
    mine, other = (prepare_photo(portrait(p, 1500), size=512) for p in (0, 1))
    assert difference(crop, mine) < 0.3 * difference(crop, other)


def test_tilt_is_clockwise() -> None:
    face = Face(((20.0, 40.0), (60.0, 80.0)), (30.0, 90.0), 1.0)
    assert face.tilt == pytest.approx(45)
    assert face.centre == (35, 75) and face.side == pytest.approx(2.25 * math.hypot(40, 40))


def test_without_dlib_or_its_weights_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = portrait(0)
    photos._dlib.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "dlib", None)
        with pytest.raises(FusionError, match="pip install dlib-bin"):
            prepare_photo(picture)
        assert prepare_photo(picture, box=(0, 0, 1, 1)).size == (256, 256), "a box needs no dlib"
    with monkeypatch.context() as patched:
        patched.setattr(photos.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(FusionError, match="pip install face-recognition-models"):
            packaged_models()
    assert (packaged_models() / "shape_predictor_5_face_landmarks.dat").is_file()


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "photo.png"
    content = saved(portrait(0), "png")
    if kind == "text":
        path.write_text("no picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "huge":
        Image.new("1", (12_000, 12_000)).save(path)
    elif kind == "tiny":
        portrait(0).resize((20, 20)).save(path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    "kind, says",
    [
        ("missing", "no image file"),
        ("text", "not an image"),
        ("empty", "not an image"),
        ("cut", "damaged or cut short"),
        ("huge", "scale it down"),
        ("tiny", "20x20 pixels"),
        ("folder", "is a folder"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, kind: str, says: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(FusionError, match=says) as caught:
        prepare_photo(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"photo": 3}, "photo must be the path .* not int"),
        ({"photo": np.zeros((64, 64, 3), np.uint8)}, "photo must be the path .* not ndarray"),
        ({"photo": Image.new("RGB", (31, 300))}, "photo is 31x300 pixels"),
        ({"photo": Image.new("La", (64, 64)), "box": (0, 0, 1, 1)}, "photo, .* mode La"),
        ({"face": -1}, "face must be a number counted from the left"),
        ({"face": "smallest"}, "face must be .* 'smallest'"),
        ({"face": True}, "face must be"),
        ({"face": 1}, "One face was found in .*none is number 1.*choose one with face=0"),
        ({"face": 0, "box": (0, 0, 1, 1)}, "face and box exclude each other"),
        ({"box": (0, 0, 100)}, "box must be four numbers"),
        ({"box": "0 0 9 9"}, "box must be four numbers"),
        ({"box": (0, 0, "9", 9)}, "box must hold finite numbers"),
        ({"box": (0, 0, math.nan, 9)}, "box must hold finite numbers"),
        ({"box": (100, 0, 50, 90)}, "box .* left before its right"),
        ({"box": (0, 0, 300, 90)}, "box .* lie in the picture of 256 x 256"),
        ({"box": (-0.5, 0, 0.5, 1)}, "box .* lie in the picture"),
        ({"box": (0, 0, 20, 20)}, "box is 20 x 20 pixels"),
        ({"margin": -0.1}, "margin must be"),
        ({"margin": math.inf}, "margin must be"),
        ({"margin": "wide"}, "margin must be"),
        ({"size": 16}, "size must be 32 pixels"),
        ({"size": 64.5}, "size must be 32 pixels"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, says: str) -> None:
    with pytest.raises(FusionError, match=says) as caught:
        prepare_photo(**({"photo": portrait(0)} | arguments))
    assert "\n" not in str(caught.value)


def test_a_cut_file_that_was_opened_lazily(tmp_path: Path) -> None:
    with (
        Image.open(bad_file(tmp_path, "cut")) as photo,
        pytest.raises(FusionError, match="whole copy"),
    ):
        read_photo(photo)
