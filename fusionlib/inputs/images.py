"""Pictures read and written: any image file becomes plain RGB, a PNG records how it was made."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from fusionlib.errors import FusionError
from fusionlib.support.files import check_writable, write_atomically
from fusionlib.support.paths import user_path

logger = logging.getLogger(__name__)

MIN_SIDE = 32
"""Least number of pixels on the shorter side; in smaller pictures no face can be recognised."""

CAMERAS = ("JPEG", "MPO", "HEIF")
"""Formats of photographs, which may have twice as many pixels as Pillow takes for safe: phones have
108 megapixels. A few bytes of other formats can stand for as many."""

METADATA_KEY = "fusionlib"
"""Keyword of the PNG text chunk (iTXt) with the record of how an image was made."""


HEIF = (".heic", ".heif", ".hif")
"""Suffixes of an iPhone's pictures, which Pillow decodes where pillow-heif is installed."""

UNDECODABLE = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS")
"""Formats that Pillow knows by name, and decodes only with programs that it does not bring."""


@functools.cache
def picture_suffixes() -> tuple[str, ...]:
    """Suffixes of picture files, in lower case and with their dots; the usual ones come first."""
    known = Image.registered_extensions()
    decoded = {e for e, kind in known.items() if kind in Image.OPEN and kind not in UNDECODABLE}
    usual = (".jpg", ".jpeg", ".png", ".webp")
    return *usual, *sorted((decoded | {".mpo", *HEIF}) - {*usual})


def is_picture(path: str | PurePath) -> bool:
    """Whether a file is a picture by its name."""
    return PurePath(path).suffix.lower() in picture_suffixes()


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit sRGB, upright and opaque.

    The camera's orientation tag and the colour profile are applied, transparency is laid over
    white, and grey, CMYK, palette and 16-bit pictures become 8-bit RGB. Of an animation the first
    frame is read.

    Args:
        path: Any file that Pillow can decode; HEIC needs the package pillow-heif.

    Returns:
        A picture in mode ``RGB``, at least `MIN_SIDE` pixels on each side.

    Raises:
        FusionError: The file is missing, is no image, is damaged, too small or far too large.
    """
    path = user_path(path)
    if path.is_dir():
        raise FusionError(f"{path} is a folder: give the path of one image file.")
    if not path.is_file():
        raise FusionError(f"There is no image file {path}: check the path.")
    opened = open_picture(path, str(path))
    if min(opened.size) < MIN_SIDE:
        width, height = opened.size
        raise FusionError(
            f"{path} is {width}x{height} pixels: at least {MIN_SIDE} on each side are "
            "needed to see a face."
        )
    return to_rgb(opened)


def open_picture(source: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image file, upright and in its own mode.

    Args:
        source: The file, or its content.
        name: Name of the file, for an error.

    Raises:
        FusionError: The file is no image, is damaged or far too large.
    """
    try:
        with warnings.catch_warnings():
            # Up to twice its limit Pillow only warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _know_heif()
            with Image.open(source) as opened:
                limit = Image.MAX_IMAGE_PIXELS or math.inf
                if opened.format in CAMERAS:
                    limit *= 2
                if opened.width * opened.height > limit:
                    raise Image.DecompressionBombError
                opened.load()
                return ImageOps.exif_transpose(opened)
    except FusionError:
        raise
    except Image.DecompressionBombError as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise FusionError(
            f"{name} has more than {limit:,} pixels (a photograph as JPEG or HEIC may have "
            f"{2 * limit:,}): scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        if _is_heif(source):
            raise FusionError(
                f"{name} is a HEIC picture, which needs a package that is not installed: "
                "pip install pillow-heif, or save the picture as JPEG."
            ) from error
        raise FusionError(
            f"{name} is not an image that can be read: give a JPEG, PNG, WebP or similar file."
        ) from error
    except PermissionError as error:
        raise FusionError(f"{name} may not be read: check the file's permissions.") from error
    except Exception as error:  # a decoder may raise anything for damaged bytes
        raise FusionError(
            f"{name} is damaged or cut short ({error}): get a whole copy of it."
        ) from error


@functools.cache
def _know_heif() -> None:
    """Let Pillow decode HEIC, where the package for it is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def _is_heif(source: Path | BinaryIO) -> bool:
    """Whether a file begins like HEIC."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(12)
    else:
        source.seek(0)
        head = source.read(12)
    return head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit sRGB: deep grey is scaled, transparent parts become white."""
    if image.mode.startswith("I") or image.mode == "F":
        return reduce_depth(image).convert("RGB")
    image = _in_srgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """The picture with its colour profile applied; as it is where it has none, or sRGB's."""
    content = image.info.get("icc_profile")
    if not content:
        return image
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        if image.mode in ("P", "PA", "LA"):  # whose profile is one of RGB, or of grey
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if profile.profile.xcolor_space.strip() == "GRAY":
            alpha = image.getchannel("A") if image.has_transparency_data else None
            image = image.convert("L")
        else:
            alpha = None
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        srgb = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode=mode
        )
        assert srgb is not None
        if alpha is not None:
            srgb.putalpha(alpha)
        srgb.info.pop("icc_profile", None)
        return srgb
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("a colour profile is damaged, and not applied: %s", error)
        return image


def reduce_depth(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point grey to 8 bits, where Pillow would clip."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F":
        peak = 1.0 if values.max() <= 1 else 255.0
    else:
        peak = 255.0 if image.mode == "I" and values.max() <= 255 else 65535.0
    return Image.fromarray((values / peak * 255).round().clip(0, 255).astype(np.uint8))


def prepare_output(path: str | Path) -> Path:
    """Make sure that a PNG can be written to a path, before hours of work are spent on it.

    Raises:
        FusionError: The name does not end in ``.png``, is a folder, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise FusionError(
            f"The output {path} must end in .png: the file records how the image was made, which "
            "other formats cannot hold."
        )
    return check_writable(path)


def save_png(image: Image.Image, path: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write a PNG in one step: a reader sees the whole file or none, even after a kill.

    Args:
        image: The picture.
        path: File to write; missing parent folders are created.
        metadata: Anything JSON can hold, stored in the file for `read_metadata`.

    Raises:
        FusionError: The file cannot be written.
    """
    path = prepare_output(path)
    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata or {}, sort_keys=True, ensure_ascii=False))
    try:
        write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=info))
    except OSError as error:
        raise FusionError(f"The output {path} cannot be written: {error}.") from error
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what `save_png` recorded; an empty dictionary if the file holds no such record."""
    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(METADATA_KEY)
    return json.loads(text) if text else {}


def image_grid(
    images: Sequence[Image.Image | None], columns: int, *, padding: int = 2
) -> Image.Image:
    """Lay images out as a contact sheet on white, row by row; ``None`` leaves a place empty.

    All images take the size of the largest one's box; none is scaled.
    """
    shown = [image for image in images if image is not None]
    if not shown or columns < 1:
        raise FusionError("A contact sheet needs at least one image and one column.")
    width = max(image.width for image in shown) + padding
    height = max(image.height for image in shown) + padding
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width - padding, rows * height - padding), "white")
    for index, image in enumerate(images):
        if image is not None:
            sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
