"""Any picture a user brings becomes upright, opaque 8-bit RGB, or one clear sentence."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.inputs.images import image_grid, load_image, prepare_output, read_metadata, save_png
from fusionlib.support.provenance import (
    git_commit,
    manifest,
    package_versions,
    sha256_file,
    sha256_folder,
    sha256_json,
)


@pytest.fixture
def gradient() -> np.ndarray:
    """40 x 48 pixels, darker on the left, red stronger at the top."""
    rows, columns = np.mgrid[0:40, 0:48]
    return np.stack([255 - rows * 6, columns * 5, columns * 5], axis=-1).astype(np.uint8)


def test_rgb_comes_back_unchanged(tmp_path: Path, gradient: np.ndarray) -> None:
    Image.fromarray(gradient).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), gradient)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_orientation_is_applied(
    tmp_path: Path, gradient: np.ndarray, orientation: int
) -> None:
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo[orientation](gradient))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), gradient)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png")
    values = np.asarray(load_image(tmp_path / "a.png"))
    assert (values[:, :20] == 0).all() and (values[:, 20:] == 255).all()


def test_half_transparent_black_over_white_is_grey(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.unique(np.asarray(load_image(tmp_path / "a.png"))).tolist() == [127]


@pytest.mark.parametrize(
    "stored",
    [
        Image.fromarray((np.arange(40 * 40).reshape(40, 40) * 40).astype(np.uint16)),
        Image.fromarray((np.arange(40 * 40).reshape(40, 40) * 40).astype(np.int32)),
        Image.fromarray((np.arange(40 * 40).reshape(40, 40) * 40 / 65535).astype(np.float32)),
    ],
    ids=["16 bit", "32 bit", "float"],
)
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, stored: Image.Image) -> None:
    stored.save(tmp_path / "a.tif")
    expected = np.arange(40 * 40).reshape(40, 40) * 40 / 65535 * 255
    values = np.asarray(load_image(tmp_path / "a.tif"))
    assert values.shape == (40, 40, 3)
    assert np.abs(values.astype(float) - expected[..., None]).max() <= 0.5


@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("1", "png"), ("CMYK", "jpg")])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.new("RGB", (40, 50), "white").convert(mode).save(tmp_path / f"a.{suffix}")
    image = load_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (40, 50))
    assert np.asarray(image).min() > 250


def _truncated(folder: Path, suffix: str) -> Path:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=suffix)
    path = folder / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda d: d / "none.png", "no image file"),
        (lambda d: d, "is a folder"),
        (lambda d: _write(d / "a.png", b"not an image at all"), "not an image"),
        (lambda d: _write(d / "a.png", b""), "not an image"),
        (lambda d: _truncated(d, "png"), "damaged or cut short"),
        (lambda d: _truncated(d, "jpeg"), "damaged or cut short"),
        (lambda d: _saved(d, Image.new("RGB", (1, 1))), "1x1 pixels"),
        (lambda d: _saved(d, Image.new("RGB", (500, 31))), "500x31 pixels"),
        (lambda d: _saved(d, Image.new("1", (20_000, 20_000))), "scale it down"),
        (lambda d: _saved(d, Image.new("1", (10_000, 10_000))), "scale it down"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path: Path, make, says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(FusionError, match=says) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _saved(folder: Path, image: Image.Image) -> Path:
    image.save(folder / "a.png")
    return folder / "a.png"


def test_png_records_how_it_was_made(tmp_path: Path, gradient: np.ndarray) -> None:
    record = {"prompt": "une femme rit, 笑", "seed": 3, "strengths": [0.5, 1.0]}
    path = save_png(Image.fromarray(gradient), tmp_path / "new" / "a.png", record)
    assert read_metadata(path) == record
    assert np.array_equal(np.asarray(load_image(path)), gradient)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]  # no temporary file stays


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, gradient: np.ndarray) -> None:
    path = save_png(Image.fromarray(gradient), tmp_path / "a.png", {"version": "old"})

    class Broken(Image.Image):
        def save(self, *args: object, **kwargs: object) -> None:
            raise OSError("no space left on device")

    with pytest.raises(FusionError, match="no space left"):
        save_png(Broken(), path, {"version": "new"})
    assert read_metadata(path) == {"version": "old"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "name, says", [("a.jpg", "must end in .png"), ("d.png", "is a folder"), ("f/a.png", "written")]
)
def test_outputs_are_checked_before_work_starts(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "d.png").mkdir()
    (tmp_path / "f").write_text("a file where a folder is needed")
    with pytest.raises(FusionError, match=says):
        prepare_output(tmp_path / name)


def test_image_grid_places_images_by_row() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [Image.new("RGB", (10, 8), colour) for colour in colours]
    sheet = image_grid([images[0], None, images[1], images[2]], columns=2, padding=2)
    assert sheet.size == (22, 18)
    assert [sheet.getpixel(at) for at in [(5, 4), (17, 4), (5, 14), (17, 14)]] == [
        colours[0], (255, 255, 255), colours[1], colours[2]
    ]  # fmt: skip
    with pytest.raises(FusionError):
        image_grid([], columns=2)


def test_hashes_follow_content_and_nothing_else(tmp_path: Path) -> None:
    assert (
        sha256_file(_write(tmp_path / "empty", b""))
        == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _write(tmp_path / name / "b", b"2")
        _write(tmp_path / name / "a", b"1")
    assert sha256_folder(tmp_path / "one") == sha256_folder(tmp_path / "two")
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert sha256_folder(tmp_path / "one") != sha256_folder(tmp_path / "two")
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_manifest_names_settings_versions_and_commit(tmp_path: Path) -> None:
    record = json.loads(json.dumps(manifest(seed=3)))
    assert record["seed"] == 3
    assert record["versions"]["numpy"] == np.__version__
    assert record["commit"] == git_commit()
    assert package_versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}
    assert git_commit(tmp_path) is None
