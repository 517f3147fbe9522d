"""Pictures from phones and other programs: colour profiles, HEIC, and very many pixels."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fusionlib.errors import FusionError
from fusionlib.inputs.images import is_picture, load_image, picture_suffixes

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """sRGB's profile with its red and its blue primary exchanged, under another name."""
    profile = bytearray(SRGB)
    place = {}
    for n in range(int.from_bytes(profile[128:132], "big")):
        entry = 132 + 12 * n
        place[bytes(profile[entry : entry + 4])] = entry + 4
    red, blue = place[b"rXYZ"], place[b"bXYZ"]
    first, second = profile[red : red + 8], profile[blue : blue + 8]
    profile[red : red + 8], profile[blue : blue + 8] = second, first
    text = "sRGB".encode("utf-16-be")
    return bytes(profile).replace(text, "mine".encode("utf-16-be")).replace(b"sRGB", b"mine")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_applied(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (40, 40), (200, 40, 90)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=swapped())
    red, _, blue = np.asarray(load_image(tmp_path / "a.png"))[20, 20].astype(int)
    assert blue > red + 60, "red and blue are exchanged"
    image.save(tmp_path / "b.png", icc_profile=SRGB)
    image.save(tmp_path / "c.png")
    assert load_image(tmp_path / "b.png").tobytes() == load_image(tmp_path / "c.png").tobytes()


def test_a_damaged_profile_does_not_lose_the_picture(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), (200, 40, 90))
    image.save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert load_image(tmp_path / "a.png").tobytes() == image.tobytes()


def test_large_photographs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    Image.new("RGB", (120, 120)).save(tmp_path / "phone.jpg")
    assert load_image(tmp_path / "phone.jpg").size == (120, 120)
    Image.new("RGB", (150, 150)).save(tmp_path / "larger.jpg")
    Image.new("RGB", (120, 120)).save(tmp_path / "a.png")
    for name in ("larger.jpg", "a.png"):
        with pytest.raises(FusionError, match=r"more than 10,000 pixels .*20,000.*scale it down"):
            load_image(tmp_path / name)


def test_heic_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    if ".heic" not in Image.registered_extensions():
        with pytest.raises(FusionError, match="is a HEIC picture.*pip install pillow-heif"):
            load_image(path)


def test_pictures_are_known_by_their_suffixes() -> None:
    names = ("a.JPG", "a.jfif", "a.bmp", "a.tif", "a.gif", "a.avif", "a.jp2", "a.HEIC", "a.b.png")
    assert all(map(is_picture, names))
    assert not any(map(is_picture, ("a.pdf", "a.h5", "a.mpg", "a.txt", "jpg")))
    assert picture_suffixes()[:4] == (".jpg", ".jpeg", ".png", ".webp")


def test_the_home_folder_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert load_image("~/a.png").size == load_image("$HOME/a.png").size == (40, 40)
