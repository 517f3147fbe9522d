"""Pictures read and written: any image file becomes plain RGB, a PNG records how it was made."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from fusionlib.errors import FusionError
from fusionlib.support.files import check_writable, write_atomically

MIN_SIDE = 32
"""Least number of pixels on the shorter side; in smaller pictures no face can be recognised."""

METADATA_KEY = "fusionlib"
"""Keyword of the PNG text chunk (iTXt) with the record of how an image was made."""


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright and opaque.

    The camera's orientation tag is applied, transparency is laid over white, and grey, CMYK,
    palette and 16-bit pictures become 8-bit RGB. Of an animation the first frame is read.

    Args:
        path: Any file that Pillow can decode.

    Returns:
        A picture in mode ``RGB``, at least `MIN_SIDE` pixels on each side.

    Raises:
        FusionError: The file is missing, is no image, is damaged, too small or far too large.
    """
    path = Path(path)
    if path.is_dir():
        raise FusionError(f"{path} is a folder: give the path of one image file.")
    if not path.is_file():
        raise FusionError(f"There is no image file {path}: check the path.")
    try:
        with warnings.catch_warnings():
            # Up to twice its limit Pillow only warns; such a picture is a mistake or an attack.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if min(opened.size) < MIN_SIDE:
                    width, height = opened.size
                    raise FusionError(
                        f"{path} is {width}x{height} pixels: at least {MIN_SIDE} on each side are "
                        "needed to see a face."
                    )
                opened.load()
                return to_rgb(ImageOps.exif_transpose(opened))
    except FusionError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FusionError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise FusionError(
            f"{path} is not an image that can be read: give a JPEG, PNG, WebP or similar file."
        ) from error
    except PermissionError as error:
        raise FusionError(f"{path} may not be read: check the file's permissions.") from error
    except Exception as error:  # a decoder may raise anything for damaged bytes
        raise FusionError(
            f"{path} is damaged or cut short ({error}): get a whole copy of it."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB: deep grey is scaled, transparent parts become white."""
    if image.mode.startswith("I") or image.mode == "F":
        return reduce_depth(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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
