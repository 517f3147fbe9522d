"""Does the order of the references matter? Every order is painted and compared with the first.

The paper says that it does (Section 3.3). A softmax over a list of keys does not depend on the
list's order, so only rounding should be left; a control shows what a difference looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image


def reversal_effect(
    pipeline: Any, prompt: str, paths: Sequence[Path], *, seed: int = 0, **sampling: Any
) -> float:
    """The largest change of any pixel when the references are given in reverse order.

    Args:
        pipeline: Pipeline with an adapter.
        prompt: Text prompt.
        paths: Files of two references or more.
        seed: Seed of the noise.
        sampling: Further arguments of the pipeline's call.

    Returns:
        In grey levels of 255, unrounded: a picture file holds no less than half of one.

    Raises:
        FusionError: There are fewer than two references, or one cannot be read.
    """
    faces = [load_image(path) for path in paths]
    _check(faces)
    one, other = (
        _paint(pipeline, prompt, seed, references=shown, **sampling)
        for shown in (faces, faces[::-1])
    )
    return 255 * float(np.abs(one - other).max())


def zero_strength_effect(
    pipeline: Any, prompt: str, paths: Sequence[Path], *, seed: int = 0, **sampling: Any
) -> float:
    """The largest change of any pixel between references of strength 0 and none."""
    faces = [load_image(path) for path in paths]
    none = _paint(pipeline, prompt, seed, **sampling)
    zero = _paint(pipeline, prompt, seed, references=faces, strengths=0.0, **sampling)
    return 255 * float(np.abs(zero - none).max())


def _check(faces: Sequence[Image.Image]) -> None:
    if len(faces) < 2:
        raise FusionError(
            f"faces must hold two references or more to be ordered, not {len(faces)}."
        )


def _paint(pipeline: Any, prompt: str, seed: int, **arguments: Any) -> NDArray[Any]:
    noise = torch.Generator("cpu").manual_seed(seed)
    made = pipeline(prompt, generator=noise, output_type="np", **arguments)
    image: NDArray[Any] = made.images[0]
    return image


def order_effect(
    pipeline: Any, prompt: str, faces: Sequence[Image.Image], *, seed: int = 0, **sampling: Any
) -> pd.DataFrame:
    """Paint one prompt from one noise with every order of the references.

    Args:
        pipeline: Pipeline with an adapter.
        prompt: Text prompt.
        faces: Two references or more; n of them are painted in n! orders.
        seed: Seed of the noise.
        sampling: Further arguments of the pipeline's call.

    Returns:
        A row for each other order, by its name ("2, 1, 3"), and one for ``control``, which leaves
        the last reference out. Compared with the first order: ``largest``, the largest difference
        of any pixel's channel on a scale from 0 to 1; ``grey_levels``, the same in the saved
        picture's 256 levels; ``differing`` of ``count``: channels whose level is another.

    Raises:
        FusionError: There are fewer than two references.
    """
    _check(faces)

    def paint(shown: Sequence[Image.Image]) -> NDArray[Any]:
        return _paint(pipeline, prompt, seed, references=list(shown), **sampling)

    first, *others = permutations(range(len(faces)))
    wanted = {", ".join(str(n + 1) for n in order): [faces[n] for n in order] for order in others}
    wanted["control"] = list(faces[:-1])
    before = paint([faces[n] for n in first])
    rows = {}
    for name, shown in wanted.items():
        after = paint(shown)
        levels = [(image * 255).round().astype(int) for image in (before, after)]
        apart = np.abs(levels[0] - levels[1])
        rows[name] = {
            "largest": float(np.abs(before - after).max()),
            "grey_levels": int(apart.max()),
            "differing": int((apart > 0).sum()),
            "count": apart.size,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype(
        {"grey_levels": int, "differing": int, "count": int}
    )
