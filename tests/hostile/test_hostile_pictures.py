"""Hostile picture files: every kind, size, damage and name is read right or refused."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.inputs.photos import find_faces, prepare_photo
from tests.helpers.hostile import Case, Place, nothing_lost, refused, table, used
from tests.helpers.trees import linked, pipe, written

SIZE = (48, 40)
RED = (204, 0, 51)  # which palettes of the web hold
Given = Callable[[], Any]


def encoded(
    kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = SIZE, **how: Any
) -> bytes:
    """A red picture with a white corner, at its top on the left."""
    image = Image.new("RGB", size, RED)
    image.paste("white", (0, 0, size[0] // 4, size[1] // 4))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, **how)
    return buffer.getvalue()


def noise(kind: str, side: int = 96) -> bytes:
    """A picture that needs some thousand bytes, so that a part of it is a part."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, color: int, data: bytes, *more: bytes) -> bytes:
    """A PNG written by hand, to say of itself what is not so."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def deep_colour() -> bytes:
    """16 bits for each of red, green and blue: of Pillow's modes none holds them."""
    row = b"\0" + struct.pack(">HHH", *(value * 257 for value in RED)) * SIZE[0]
    return png(*SIZE, 16, 2, row * SIZE[1])


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", SIZE, color) for color in (RED, "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


def turned(orientation: int, kind: int = 3) -> bytes:
    """A JPEG with the camera's orientation, of a TIFF type: 3 is a number, 2 is text."""
    tag = struct.pack("<HHHIHHI", 1, 0x0112, kind, 1, orientation, 0, 0)
    return encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + tag, quality=95)


def picture(name: str, content: bytes | None = None) -> Given:
    return lambda: written(name, encoded() if content is None else content)


def device(name: str, target: str) -> Given:
    return lambda: linked(name, target)


def listening() -> Path:
    socket.socket(socket.AF_UNIX).bind("face.png")
    return Path("face.png")


def laid(make: Callable[[], Path], given: str) -> Given:
    """Lay something out, and give a path to it in other words."""

    def lay_out() -> str:
        make()
        return given

    return lay_out


def alpha() -> bytes:
    image = Image.new("RGBA", SIZE, (*RED, 255))
    image.paste((0, 0, 0, 0), (0, 0, 12, 10))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


TRUNCATED = "get a whole copy"
NO_IMAGE = "is not an image that can be read: give a JPEG, PNG"

READ = table(
    # Kinds and modes: all become the same red with a white corner.
    used("grey JPEG", picture("a.jpg", encoded("JPEG", "L", quality=95))),
    used("CMYK JPEG", picture("a.jpg", encoded("JPEG", "CMYK", quality=95))),
    used("palette PNG", picture("a.png", encoded("PNG", "P"))),
    used("one-bit PNG", picture("a.png", encoded("PNG", "1"))),
    used("grey and alpha", picture("a.png", encoded("PNG", "LA"))),
    used("alpha over white", picture("a.png", alpha())),
    used("16 bits a colour", picture("a.png", deep_colour())),
    used("GIF", picture("a.gif", encoded("GIF", "P"))),
    used("animated GIF", picture("a.gif", animation("GIF"))),
    used("animated PNG", picture("a.png", animation("PNG"))),
    used("animated WebP", picture("a.webp", animation("WEBP"))),
    used("pages of a TIFF", picture("a.tif", animation("TIFF"))),
    used("compressed TIFF", picture("a.tiff", encoded("TIFF", compression="tiff_lzw"))),
    used("AVIF", picture("a.avif", encoded("AVIF", quality=95))),
    used("JPEG 2000", picture("a.jp2", encoded("JPEG2000"))),
    used("BMP", picture("a.bmp", encoded("BMP"))),
    used("PPM", picture("a.ppm", encoded("PPM"))),
    used("TGA", picture("a.tga", encoded("TGA"))),
    used("several pictures in a JPEG", picture("a.mpo", animation("MPO"))),
    used("progressive JPEG", picture("a.jpg", encoded("JPEG", progressive=True, quality=95))),
    # What a file says of itself, and is not.
    used("PNG that is called jpg", picture("a.jpg")),
    used("JPEG that is called txt", picture("a.txt", encoded("JPEG", quality=95))),
    used("without a suffix", picture("photo")),
    used("suffix in capitals", picture("a.PNG")),
    used("two suffixes", picture("a.png.crdownload")),
    used("bytes behind the end", picture("a.png", encoded() + b"\0" * 999)),
    used("HTML behind the end", picture("a.jpg", encoded("JPEG", quality=95) + b"<html>" * 99)),
    used("colour profile of nonsense", picture("a.png", encoded(icc_profile=b"no profile"))),
    used("EXIF of nonsense", picture("a.jpg", encoded("JPEG", exif=b"Exif\0\0II*", quality=95))),
    used("orientation that is none", picture("a.jpg", turned(9))),
    used("orientation zero", picture("a.jpg", turned(0))),
    used("orientation in words", picture("a.jpg", turned(ord("6"), kind=2))),
    used("density of zero", picture("a.jpg", encoded("JPEG", dpi=(0, 0), quality=95))),
    # Names.
    used("space in the name", picture("my face.png")),
    used("newline in the name", picture("my\nface.png")),
    used("quotes in the name", picture("\"my\" 'face'.png")),
    used("dash before the name", picture("-rf.png")),
    used("only dashes", picture("--")),
    used("emoji in the name", picture("😀👩🏽‍🦰.png")),
    used("accent as a sign of its own", picture("Ade\u0301le.png")),
    used("right to left", picture("\u202eface.png")),
    used("percent signs", picture("100%s%20.png")),
    used("wildcards in the name", picture("[a]*?.png")),
    used("braces in the name", picture("{0..9}.png")),
    used("dollar and tilde", picture("~$HOME.png")),
    used("a path of Windows", picture("C:\\photos\\me.png")),
    used("dots at the end", picture("face.png...")),
    used("control characters", picture("a\x07\x1b[31m.png")),
    refused("not UTF-8", picture(os.fsdecode(b"caf\xe9.png")), "png is not UTF-8", "rename"),
    used("longest name", picture("n" * 251 + ".png")),
    used("deep folder", picture("/".join(["d" * 100] * 12) + "/a.png")),
    # Ways to a file.
    used("link", lambda: linked("a.png", str(written("real.png", encoded())))),
    used("link to a link", lambda: linked("b", str(linked("a", str(written("c", encoded())))))),
    used("through the folder above", laid(picture("a/b.png"), "a/../a/./b.png")),
    used("doubled slashes", laid(picture("a/b.png"), "a//b.png")),
    used("in a linked folder", laid(lambda: (written("a/b.png", encoded()), linked("l", "a"))[1], "l/b.png")),
    used("text in place of a path", laid(picture("a.png"), "a.png")),
    # Damage.
    refused("nothing in it", picture("a.png", b""), "a.png", NO_IMAGE),
    refused("one byte", picture("a.png", b"\x89"), "a.png", NO_IMAGE),
    refused("zeros", picture("a.png", bytes(5000)), "a.png", NO_IMAGE),
    refused("HTML", picture("a.jpg", b"<!DOCTYPE html><title>404</title>"), "a.jpg", NO_IMAGE),
    refused("JSON", picture("a.jpg", b'{"error": "gone"}'), "a.jpg", NO_IMAGE),
    refused("SVG", picture("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "a.svg", NO_IMAGE),
    refused("PDF", picture("a.jpg", b"%PDF-1.7\n%\xe2\xe3"), "a.jpg", NO_IMAGE),
    refused("a pointer of Git LFS", picture("a.jpg", b"version https://git-lfs"), "a.jpg", NO_IMAGE),
    refused("pickle", picture("a.png", b"\x80\x04cos\nsystem\n."), "a.png", NO_IMAGE),
    refused("shell script", picture("a.png", b"#!/bin/sh\nrm -rf ~\n"), "a.png", NO_IMAGE),
    refused("zip", picture("a.png", b"PK\x03\x04" + bytes(99)), "a.png", NO_IMAGE),
    refused("text in UTF-16", picture("a.png", "hello".encode("utf-16")), "a.png", NO_IMAGE),
    *[
        refused(
            f"{share:.0%} of a {kind}",
            picture(f"a.{kind}", noise(kind)[: int(len(noise(kind)) * share)]),
            f"a.{kind}",
            TRUNCATED,
        )
        for kind in ("jpeg", "png", "bmp", "tiff")
        for share in (0.5, 0.95)
    ],
    refused("half a WebP", picture("a.webp", noise("webp")[:999]), "a.webp", TRUNCATED),
    refused("half a GIF", picture("a.gif", noise("gif")[:999]), "a.gif", TRUNCATED),
    refused("half an AVIF", picture("a.avif", noise("avif")[:999]), "a.avif", "image"),
    refused("half a JPEG 2000", picture("a.jp2", noise("jpeg2000")[:999]), "a.jp2", "image"),
    refused("head of a PNG", picture("a.png", encoded()[:20]), "a.png", TRUNCATED),
    refused("flipped bytes", picture("a.png", encoded().replace(b"IHDR", b"IHDQ")), "a.png", NO_IMAGE),
    refused("wrong sum", picture("a.png", noise("png")[:-40] + bytes(40)), "a.png", TRUNCATED),
    refused("no rows", picture("a.png", png(64, 64, 8, 2, b"")), "a.png", TRUNCATED),
    refused("no such depth", picture("a.png", png(64, 64, 99, 2, bytes(193 * 64))), "a.png", "image"),
    refused("width zero", picture("a.png", png(0, 64, 8, 2, b"")), "a.png", NO_IMAGE),
    refused(
        "a bomb of text",
        picture("a.png", png(*SIZE, 8, 0, bytes(49 * 40), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 << 20))))),
        "a.png", TRUNCATED,
    ),
    # Sizes.
    refused("one pixel", picture("a.png", encoded(size=(1, 1))), "1x1", "at least 32"),
    refused("a line", picture("a.png", encoded(size=(4000, 1))), "4000x1", "at least 32"),
    refused("one too few", picture("a.png", encoded(size=(31, 400))), "31x400", "at least 32"),
    used("just enough", picture("a.png", encoded(size=(32, 32)))),
    used("a tower", picture("a.png", encoded(size=(32, 6000)))),
    refused(
        "a bomb of pixels", picture("a.png", png(60000, 60000, 8, 0, b"\0")),
        "a.png", "pixels", "scale it down",
    ),
    refused(
        "more than there are", picture("a.png", png(2**31 - 1, 2**31 - 1, 8, 0, b"\0")), "a.png", "pixels"
    ),
    # What is no file.
    refused("missing", lambda: "none.png", "none.png", "check the path"),
    refused("empty path", lambda: "", "path is empty"),
    refused("a folder", lambda: written("a.png/b").parent, "a.png is a folder", "one image file"),
    refused("a link to a folder", lambda: linked("a.png", "home"), "a.png is a folder"),
    refused("a dead link", lambda: linked("a.png", "gone.png"), "a.png", "check the path"),
    refused("a link to itself", lambda: linked("a.png", "a.png"), "a.png", "check the path"),
    refused("two links in a circle", lambda: linked("a", str(linked("b", "a"))), "a", "check the path"),
    refused("a pipe", lambda: pipe("a.png"), "a.png", "file"),
    refused("a socket", listening, "face.png", "file"),
    refused("no end of zeros", device("a.png", "/dev/zero"), "a.png", "file"),
    refused("no device", device("a.png", "/dev/null"), "a.png", "file"),
    refused("a file for a folder", laid(picture("a.png"), "a.png/b.png"), "a.png/b.png", "check the path"),
    refused("slash behind a file", laid(picture("a.png"), "b.png/"), "b.png", "check the path"),
    refused("a name too long", lambda: "n" * 300 + ".png", "nnn", "longer than"),
    refused("a zero byte in the name", lambda: "a\0b.png", "b.png", "path"),
    refused("the address of a page", lambda: "https://example.com/a.png", "example.com/a.png", "path"),
)  # fmt: skip


@READ
def test_a_picture_is_read_or_refused(place: Place, case: Case) -> None:
    image = place.read(case, load_image)
    if image is not None:
        assert image.mode == "RGB" and min(image.size) >= 32
        middle = np.asarray(image)[image.height // 2, image.width // 2].astype(int)
        corner = np.asarray(image)[3, 3]
        grey = len(set(middle.tolist())) == 1
        assert grey or np.abs(middle - RED).max() <= 12, "red in the middle"
        assert corner.min() > 240 or np.abs(corner - middle).max() <= 12, "white or red at the top"


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_picture_is_upright(place: Place, orientation: int) -> None:
    path = written("a.jpg", turned(orientation))
    with nothing_lost(place.root):
        upright = load_image(path)
    assert upright.size == (SIZE if orientation < 5 else SIZE[::-1])
    white = np.asarray(upright).min(axis=2) > 200
    rows, columns = np.nonzero(white)
    right, low = columns.mean() > upright.width / 2, rows.mean() > upright.height / 2
    corner = {2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    assert (right, low) == corner[orientation]


def test_a_file_that_may_not_be_read_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("a.png", encoded())

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", locked)
    with (
        nothing_lost(place.root),
        pytest.raises(FusionError, match=r"a\.png may not be read.*permissions"),
    ):
        load_image(path)


inf, nan = float("inf"), float("nan")

OPTIONS = table(
    *[
        refused(name, {"box": box}, "box", *says)
        for name, box, says in (
            ("box of three", (0, 0, 9), ("four numbers",)),
            ("box of five", (0, 0, 9, 9, 9), ("four numbers",)),
            ("box in words", "0,0,9,9", ("box",)),
            ("box of words", ("0", "0", "9", "9"), ("numbers",)),
            ("box of nothing", (None,) * 4, ("numbers",)),
            ("box NaN", (0, 0, nan, 40), ("finite",)),
            ("box without end", (0, 0, inf, 40), ("finite",)),
            ("box of booleans", (False, False, True, True), ("numbers",)),
            ("box as a number", 5, ("four numbers",)),
            ("box as a dictionary", {"left": 0}, ("four numbers",)),
            ("box inside out", (40, 0, 0, 40), ("left before its right",)),
            ("box upside down", (0, 40, 40, 0), ("top above its bottom",)),
            ("box of no area", (9, 9, 9, 9), ("left before its right",)),
            ("box outside", (0, 0, 49, 40), ("48 x 40",)),
            ("box before the start", (-1, 0, 40, 40), ("48 x 40",)),
            ("box beyond all numbers", (0, 0, 1e308, 40), ("48 x 40",)),
            ("box too small", (0, 0, 8, 8), ("at least 32",)),
        )
    ],
    *[
        refused(f"{name} {value!r}", {name: value, **more}, name)
        for name, values, more in (
            ("size", (0, -1, 31, 2.5, "64", nan, True, [64]), {"box": (0, 0, 40, 40)}),
            ("margin", (-0.1, nan, inf, "1", None, 99, True), {}),
            ("face", (-1, 1.5, "left", True, nan, [0]), {}),
        )
        for value in values
    ],
    refused("face and box", {"face": 0, "box": (0, 0, 40, 40)}, "face and box", "exclude"),
    used("box in fractions", {"box": (0, 0, 1, 1)}),
    used("box of numpy's numbers", {"box": tuple(np.float32([0, 0, 40, 40]))}),
    used("size of numpy's", {"box": (0, 0, 40, 40), "size": np.int64(64)}),
)  # fmt: skip


@OPTIONS
def test_a_photograph_is_cut_or_the_option_named(place: Place, case: Case) -> None:
    path = written("a.png", encoded())
    image = place.read(case, lambda options: prepare_photo(path, **options))
    assert image is None or image.width == image.height >= 32


NO_PICTURE = table(
    *[
        refused(f"{type(value).__name__} {number}", lambda value=value: value, "photo", "path")
        for number, value in enumerate((None, 5, b"a.png", ["a.png"], {}, np.zeros((40, 40, 3), np.uint8)))
    ],
    refused("a picture too small", lambda: Image.new("RGB", (8, 8)), "8x8", "at least 32"),
    refused("a picture of no pixels", lambda: Image.new("RGB", (0, 0)), "0x0", "at least 32"),
    refused(
        "a file that is gone when it is read", lambda: Image.open(io.BytesIO(noise("png")[:900])),
        "photo", "whole copy",
    ),
    *[
        used(f"mode {mode}", lambda mode=mode: Image.new(mode, (40, 40)))
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "I;16")
    ],
    refused("mode La", lambda: Image.new("La", (40, 40)), "photo", "La", "convert it first"),
)  # fmt: skip


@NO_PICTURE
def test_a_picture_in_memory_is_looked_at_or_refused(place: Place, case: Case) -> None:
    faces = place.read(case, find_faces)
    assert faces in (None, [])
