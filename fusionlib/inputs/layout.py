"""Identity masks from a layout: the place of each identity's face, M_1 ... M_n of Eq. 7.

Masks come from one picture for each identity, from one picture with a color for each, from boxes,
or from faces or regions that are found in a picture. Each function returns what ``FusionPipeline``
takes as ``identity_masks``: boolean ``(identities, height, width)``. Where two masks overlap, Eq. 7
closes both faces and only the text is seen; that is rarely intended, so a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from fusionlib.checks import check_masks, is_real
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image, open_picture, reduce_depth
from fusionlib.inputs.photos import find_faces, name_of, pixel_box, read_photo
from fusionlib.masking import scale_identity_masks
from fusionlib.support.paths import user_path

Picture = str | Path | Image.Image
"""The path of an image file, or a picture in any mode."""

Color = int | str | tuple[int, int, int]
"""A palette index, grey level or label; a name, "red" or "#ff0000"; or (red, green, blue)."""

MAX_COLORS = 16
"""Most colors of a layout; more mean soft edges or a photograph, not a color for each face."""

SPECK = 0.1
"""Fraction of the largest region's pixels below which a region is ignored."""


def masks_from_files(
    files: Sequence[Picture], *, size: tuple[int, int] | None = None, resize: bool = False
) -> Tensor:
    """Read identity masks from pictures, one for each identity: white where its face shall be.

    Pixels brighter than half belong to the mask; transparent ones do not.

    Args:
        files: The pictures, in the order of the identities.
        size: ``(height, width)`` of the image that is to be generated; None accepts any.
        resize: Whether to scale masks that are not of that size (see ``scale_identity_masks``).

    Returns:
        Boolean ``(identities, height, width)``.

    Raises:
        FusionError: If a file cannot be read, is all dark, or has another size.

    Warns:
        UserWarning: If masks overlap; names the identities and the pixels.

    Example:
        >>> from PIL import Image, ImageDraw
        >>> from fusionlib import masks_from_files
        >>> left, right = Image.new("L", (128, 128)), Image.new("L", (128, 128))
        >>> ImageDraw.Draw(left).ellipse((8, 24, 56, 104), fill="white")
        >>> ImageDraw.Draw(right).ellipse((72, 24, 120, 104), fill="white")
        >>> masks = masks_from_files([left, right], size=(128, 128))  # or the files' names
        >>> masks.shape, masks[:, 64, 30].tolist()  # who is at row 64, column 30?
        (torch.Size([2, 128, 128]), [True, False])
    """
    if not isinstance(files, Sequence) or isinstance(files, str) or len(files) == 0:
        raise FusionError(
            f"files must be a list with one mask for each identity, not {files!r}: for one picture "
            "with a color for each identity use masks_from_colors."
        )
    names = [name_of(file, f"files[{index}]") for index, file in enumerate(files)]
    masks = []
    for file, name in zip(files, names, strict=True):
        mask = brightness(_open(file, name)) > 127
        if not mask.any():
            raise FusionError(
                f"{name} marks no place: paint white, on black, where that face shall be."
            )
        masks.append(mask)
    return _finish(masks, names, size, resize)


def masks_from_colors(
    layout: Picture,
    colors: Sequence[Color] | None = None,
    *,
    background: str | tuple[int, int, int] = "black",
    size: tuple[int, int] | None = None,
    resize: bool = False,
) -> Tensor:
    """Read identity masks from one picture that has a color for each identity.

    Args:
        layout: The picture, drawn without soft edges and saved without loss (PNG).
        colors: The color of each identity, in their order: names, ``(red, green, blue)``, or
            numbers, which are palette indices, grey levels or labels. None takes every color but
            the background's, ordered from left to right by the middle of what they cover.
        background: The color of no identity; transparent parts count as background, too.
        size: ``(height, width)`` of the image that is to be generated; None accepts any.
        resize: Whether to scale masks that are not of that size (see ``scale_identity_masks``).

    Returns:
        Boolean ``(identities, height, width)``; they cannot overlap.

    Raises:
        FusionError: If the file cannot be read, a color is none or is not in the picture, the
            picture has too many colors or only one, or it has another size.

    Example:
        >>> from PIL import Image
        >>> from fusionlib import masks_from_colors
        >>> layout = Image.new("RGB", (128, 64), "black")
        >>> layout.paste("red", (8, 16, 48, 56))
        >>> layout.paste("blue", (80, 16, 120, 56))
        >>> masks = masks_from_colors(layout, ["blue", "red"])  # blue is identity 0
        >>> masks.shape, masks[:, 32, 100].tolist()
        (torch.Size([2, 64, 128]), [True, False])
    """
    name = name_of(layout, "layout")
    picture = _open(layout, name)
    listed = isinstance(colors, Sequence) and not isinstance(colors, str) and len(colors) > 0
    if colors is not None and not listed:
        raise FusionError(
            f"colors must be a list with one color for each identity, not {colors!r}."
        )
    if colors is not None and all(isinstance(color, int) for color in colors):
        if len(picture.getbands()) > 1:
            raise FusionError(
                f"colors holds numbers, but {name} has no palette or grey levels to look them up "
                f"in (mode {picture.mode}): give names or (red, green, blue)."
            )
        values = np.asarray(picture).astype(np.int64)
        wanted = [int(color) for color in colors if isinstance(color, int)]
        shown = [str(value) for value in wanted]
    else:
        empty = _pack(background, "background")
        values = _packed(picture, empty, name)
        if colors is None:
            wanted = _left_to_right(values, empty, name)
        else:
            wanted = [_pack(color, f"colors[{index}]") for index, color in enumerate(colors)]
        shown = [f"#{value:06x}" for value in wanted]
    masks = [values == value for value in wanted]
    for index, mask in enumerate(masks):
        if not mask.any():
            raise FusionError(f"colors[{index}], {shown[index]}, is nowhere in {name}.")
        if wanted[index] in wanted[:index]:
            raise FusionError(f"colors[{index}], {shown[index]}, stands for two identities.")
    return _finish(masks, shown, size, resize, name)


def masks_from_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """Make identity masks from boxes, one for each identity.

    Args:
        boxes: ``(left, top, right, bottom)`` of each identity, in pixels, or, if no number of the
            box is above 1, in fractions of the width and height.
        size: ``(height, width)`` of the image that is to be generated.

    Returns:
        Boolean ``(identities, height, width)``.

    Raises:
        FusionError: If a box is none, is empty or reaches beyond the image.

    Warns:
        UserWarning: If masks overlap; names the identities and the pixels.

    Example:
        >>> from fusionlib import masks_from_boxes
        >>> masks = masks_from_boxes([(0, 0.2, 0.45, 1), (0.55, 0.2, 1, 1)], size=(100, 200))
        >>> masks.shape
        torch.Size([2, 100, 200])
        >>> masks[:, 50, [10, 100, 190]].int().tolist()  # on the left, in the middle, on the right
        [[1, 0, 0], [0, 0, 1]]
    """
    height, width = _checked_size(size)
    if not isinstance(boxes, Sequence) or len(boxes) == 0:
        raise FusionError(
            f"boxes must be a list with one (left, top, right, bottom) for each identity, "
            f"not {boxes!r}."
        )
    names = [f"boxes[{index}]" for index in range(len(boxes))]
    masks = []
    for box, name in zip(boxes, names, strict=True):
        left, top, right, bottom = pixel_box(box, (width, height), name)
        masks.append(_rectangle((height, width), left, top, right, bottom))
    return _finish(masks, names, None, False)


def masks_from_faces(
    picture: Picture,
    count: int | None = None,
    *,
    margin: float = 0.25,
    size: tuple[int, int] | None = None,
    resize: bool = False,
) -> Tensor:
    """Make an identity mask of each face that is found in a picture, from left to right.

    Give it a picture that the generated one shall follow, such as the one from which a ControlNet's
    layout was made. The detector finds faces in photographs and in renderings of people. In a depth
    map it finds some faces and misses others, in a map of poses or outlines it finds none: use the
    picture from which the map was made, or ``masks_from_regions``.

    Args:
        picture: A picture with faces.
        count: How many faces there must be; None accepts any number from 1.
        margin: Width to add on each side of a face, in sides of its box (brows to chin).
        size: ``(height, width)`` of the image that is to be generated; None accepts any.
        resize: Whether to scale masks that are not of that size (see ``scale_identity_masks``).

    Returns:
        Boolean ``(identities, height, width)``, rectangles.

    Raises:
        FusionError: If the file cannot be read, no face or another number of faces is found, or the
            picture has another size.

    Warns:
        UserWarning: If masks overlap; names the identities and the pixels.

    Example:
        >>> from PIL import Image
        >>> from fusionlib import masks_from_faces
        >>> couple = Image.new("RGB", (256, 128))
        >>> couple.paste(Image.open("data/heldout/0000_0.jpg"), (0, 0))
        >>> couple.paste(Image.open("data/heldout/0001_0.jpg"), (128, 0))
        >>> masks = masks_from_faces(couple, count=2, margin=0.1)
        >>> masks.shape, masks[:, 64, [64, 192]].tolist()  # the middle of each half
        (torch.Size([2, 128, 256]), [[True, False], [False, True]])
    """
    if not (is_real(margin) and 0 <= margin <= 5):
        raise FusionError(f"margin must be a number from 0 to 5 sides of the face, not {margin!r}.")
    if count is not None:
        _check_count(count)
    name = name_of(picture, "picture")
    opened = read_photo(picture, name)
    faces = find_faces(opened)
    if not faces or (count is not None and len(faces) != count):
        asked = "" if count is None else f", and count asks for {count}"
        raise FusionError(
            f"{len(faces) or 'No'} face(s) were found in {name}{asked}: give the photograph that a "
            "depth map or pose was made from, or use masks_from_regions, masks_from_boxes or "
            "masks_from_files."
        )
    masks = []
    for face in faces:
        more = margin * face.side
        left, top = (max(0, round(edge - more)) for edge in face.box[:2])
        right, bottom = (round(edge + more) for edge in face.box[2:])
        masks.append(_rectangle((opened.height, opened.width), left, top, right, bottom))
    names = [f"face {index} from the left" for index in range(len(faces))]
    return _finish(masks, names, size, resize, name)


def masks_from_regions(
    layout: Picture,
    count: int,
    *,
    threshold: int | None = None,
    box: bool = False,
    size: tuple[int, int] | None = None,
    resize: bool = False,
) -> Tensor:
    """Make an identity mask of each bright region of a layout, from left to right.

    It is meant for the depth map of a ControlNet, in which near parts are bright: people who stand
    apart are separate regions, and if their shoulders touch, their heads are separate above some
    grey level. It does not recognise faces, so look at the result. People that no level separates
    need masks or boxes. For a map of poses on black use ``box=True``, the rectangle around each.

    Args:
        layout: The picture.
        count: How many regions there must be. Those smaller than a tenth of the largest do not
            count.
        threshold: The grey level, 0 to 254, above which a pixel belongs to a region. None starts
            with the level that separates near from far (Otsu's method), and raises it until there
            are `count` regions.
        box: Whether to take the rectangle around each region in place of its shape.
        size: ``(height, width)`` of the image that is to be generated; None accepts any.
        resize: Whether to scale masks that are not of that size (see ``scale_identity_masks``).

    Returns:
        Boolean ``(identities, height, width)``.

    Raises:
        FusionError: If the file cannot be read, there is another number of regions, scipy is not
            installed, or the picture has another size.

    Warns:
        UserWarning: If masks overlap (with ``box=True``); names the identities and the pixels.

    Example:
        A depth map of two people whose shoulders touch; their heads are nearer:

        >>> from PIL import Image
        >>> from fusionlib import masks_from_regions
        >>> depth = Image.new("L", (128, 128), 20)
        >>> depth.paste(120, (10, 80, 118, 128))
        >>> depth.paste(200, (20, 20, 50, 90))
        >>> depth.paste(200, (78, 20, 108, 90))
        >>> masks = masks_from_regions(depth, count=2)
        >>> masks.flatten(1).sum(1).tolist()  # two heads of 30 x 70 pixels
        [2100, 2100]
    """
    _check_count(count)
    if threshold is not None and not (isinstance(threshold, int) and 0 <= threshold <= 254):
        raise FusionError(f"threshold must be a grey level from 0 to 254, not {threshold!r}.")
    name = name_of(layout, "layout")
    grey = brightness(_open(layout, name))
    levels = range(_otsu(grey), 255) if threshold is None else [threshold]
    counts = []
    for level in levels:
        labels, regions = _regions(grey > level)
        counts.append(len(regions))
        if len(regions) == count:
            break
    else:
        raise FusionError(
            f"{name} has {counts[0]} separate region(s) brighter than {levels[0]}, and count asks "
            f"for {count}{'' if threshold is not None else ', at no higher level either'}: try "
            "another threshold or count, or give the places with masks_from_boxes or "
            "masks_from_files."
        )
    masks = sorted((labels == region for region in regions), key=_middle)
    if box:
        masks = [_bounding_box(mask) for mask in masks]
    names = [f"region {index} from the left" for index in range(count)]
    return _finish(masks, names, size, resize, name)


def warn_of_overlaps(
    masks: Tensor, names: Sequence[str] | None = None, *, stacklevel: int = 1
) -> None:
    """Warn of every two identity masks that overlap: by Eq. 7, neither face is seen there.

    Args:
        masks: Boolean ``(identities, H, W)``.
        names: Names of the identities, beside their numbers.
        stacklevel: As for ``warnings.warn``; 1 blames the line that calls this function.

    Raises:
        FusionError: If the masks have another shape or dtype, or names are missing.

    Warns:
        UserWarning: Names the identities and the number of pixels, for each pair.

    Example:
        >>> import warnings
        >>> import torch
        >>> from fusionlib import warn_of_overlaps
        >>> masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        >>> masks[0, :, :40] = masks[1, :, 30:] = True
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_overlaps(masks, names=["Ada", "Bea"])
        >>> print(caught[0].message)  # doctest: +NORMALIZE_WHITESPACE
        The masks of identity 0 (Ada) and identity 1 (Bea) overlap in 640 pixels: there neither
        face is seen, only the text (Eq. 7).
    """
    check_masks(masks)
    called = [f"identity {index}" for index in range(len(masks))]
    if names is not None:
        if len(names) != len(masks):
            raise FusionError(f"names must hold one for each of {len(masks)} masks, not {names!r}.")
        called = [f"{call} ({name})" for call, name in zip(called, names, strict=True)]
    for one, other in combinations(range(len(masks)), 2):
        pixels = int((masks[one] & masks[other]).sum())
        if pixels:
            warnings.warn(
                f"The masks of {called[one]} and {called[other]} overlap in {pixels} pixels: there "
                "neither face is seen, only the text (Eq. 7).",
                UserWarning,
                stacklevel=stacklevel + 1,
            )


def _finish(
    masks: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
    size: tuple[int, int] | None,
    resize: bool,
    source: str | None = None,
) -> Tensor:
    """Stack the masks at the given size, or their own, and warn of overlaps."""
    wanted = masks[0].shape if size is None else _checked_size(size)
    for mask, name in zip(masks, names, strict=True):
        if mask.shape != wanted and not (resize and size is not None):
            raise FusionError(
                f"{source or name} is {mask.shape[1]} x {mask.shape[0]} pixels and not "
                f"{wanted[1]} x {wanted[0]} like the {'others' if size is None else 'image'}: "
                "give the image's size=(height, width) and resize=True to scale it."
            )
    tensors = [torch.from_numpy(np.array(mask)) for mask in masks]
    if len({mask.shape for mask in masks}) == 1:  # together, so that no mask grows into another
        stacked = scale_identity_masks(torch.stack(tensors), (wanted[0], wanted[1]))
    else:
        stacked = torch.cat(
            [scale_identity_masks(t[None], (wanted[0], wanted[1])) for t in tensors]
        )
    warn_of_overlaps(stacked, names, stacklevel=3)
    return stacked


def _checked_size(size: Any) -> tuple[int, int]:
    fits = isinstance(size, Sequence) and len(size) == 2
    if not fits or not all(isinstance(length, int) and length > 0 for length in size):
        raise FusionError(f"size must be (height, width) in pixels, not {size!r}.")
    return size[0], size[1]


def _check_count(count: Any) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise FusionError(f"count must be the number of identities, 1 or more, not {count!r}.")


def _open(picture: Picture, name: str) -> Image.Image:
    """A picture, upright, in its own mode, which keeps colors and labels as they are."""
    if isinstance(picture, Image.Image):
        try:
            return ImageOps.exif_transpose(picture)
        except (ValueError, OSError) as error:  # a lazily opened file is decoded only here
            raise FusionError(
                f"{name} cannot be read ({error}): get a whole copy of it."
            ) from error
    if not isinstance(picture, str | Path):
        raise FusionError(
            f"{name} must be the path of an image file or a PIL image, "
            f"not {type(picture).__name__}."
        )
    load_image(picture)  # raises a clear error for any broken file
    return open_picture(user_path(picture), name)


def brightness(picture: Image.Image) -> NDArray[np.uint8]:
    """Brightness from 0 to 255; transparent parts are black."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.asarray(reduce_depth(picture))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return np.asarray(picture.convert("L"))


def _packed(picture: Image.Image, empty: int, name: str) -> NDArray[np.int64]:
    """Each pixel's color as 0xRRGGBB, `empty` where it is transparent."""
    if picture.mode.startswith("I") or picture.mode == "F":
        raise FusionError(
            f"{name} has 16-bit grey levels and no colors: name the levels, as in colors=[1, 2]."
        )
    red, green, blue, alpha = np.moveaxis(np.asarray(picture.convert("RGBA")), -1, 0).astype(int)
    return np.where(alpha < 128, empty, red << 16 | green << 8 | blue)


def _pack(color: Any, name: str) -> int:
    """A color as 0xRRGGBB."""
    try:
        rgb = ImageColor.getrgb(color) if isinstance(color, str) else tuple(color)
        if len(rgb) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in rgb):
            return rgb[0] << 16 | rgb[1] << 8 | rgb[2]
    except (TypeError, ValueError):
        pass
    raise FusionError(
        f'{name} must be a color such as "red", "#ff0000" or (255, 0, 0), not {color!r}.'
    )


def _left_to_right(values: NDArray[np.int64], empty: int, name: str) -> list[int]:
    """The picture's colors besides the background's, by the middle of what they cover."""
    present = [int(value) for value in np.unique(values) if value != empty]
    if not 1 <= len(present) <= MAX_COLORS:
        raise FusionError(
            f"{name} has {len(present)} colors besides the background, and one for each identity "
            f"(at most {MAX_COLORS}) is needed: draw without soft edges and save as PNG, or name "
            "the identities' colors."
        )
    return sorted(present, key=lambda value: _middle(values == value))


def _regions(bright: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[int]]:
    """A map with the number of each pixel's connected region, and the numbers of large regions."""
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise FusionError(
            "masks_from_regions needs scipy, which is not installed: pip install scipy"
        ) from error
    labels, _ = label(bright, np.ones((3, 3)))  # corners connect, too
    pixels = np.bincount(labels.ravel())
    pixels[0] = 0
    return labels, np.flatnonzero(pixels >= max(1, SPECK * pixels.max())).tolist()


def _middle(mask: NDArray[np.bool_]) -> float:
    """The mean column of a region."""
    return float(np.nonzero(mask)[1].mean())


def _bounding_box(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, columns = np.nonzero(mask)
    return _rectangle(mask.shape, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def _rectangle(
    shape: tuple[int, ...], left: int, top: int, right: int, bottom: int
) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _otsu(grey: NDArray[np.uint8]) -> int:
    """The grey level that splits dark from bright with the greatest variance between classes."""
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    dark = share.cumsum()
    mean = (share * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * dark - mean) ** 2 / (dark * (1 - dark))
    return int(np.nanargmax(np.where(np.isfinite(between), between, -1)))
