"""Does the order of the references matter? Every order is painted and compared with the first.

The paper says that it does (Section 3.3). A softmax over a list of keys does not depend on the
list's order, so only rounding should be left; a control shows what a difference looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from fusionlib.errors import FusionError


def order_effect(
    pipeline: Any, prompt: str, faces: Sequence[Image.Image], *, seed: int = 0, **sampling: Any
) -> pd.DataFrame:
    """Paint one prompt from one noise with every order of the references.

    Args:
        pipeline: with an adapter.
        prompt: what to paint.
        faces: two references or more; n of them are painted in n! orders.
        seed: of the noise.
        sampling: further arguments of the pipeline's call.

    Returns:
        A row for each other order, by its name ("2, 1, 3"), and one for ``control``, which leaves
        the last reference out. Compared with the first order: ``largest``, the largest difference
        of any pixel's channel on a scale from 0 to 1; ``grey_levels``, the same in the saved
        picture's 256 levels; ``differing`` of ``count``: channels whose level is another.

    Raises:
        FusionError: there are fewer than two references.
    """
    if len(faces) < 2:
        raise FusionError(
            f"faces must hold two references or more to be ordered, not {len(faces)}."
        )

    def paint(shown: Sequence[Image.Image]) -> NDArray[Any]:
        noise = torch.Generator("cpu").manual_seed(seed)
        made = pipeline(
            prompt, references=list(shown), generator=noise, output_type="np", **sampling
        )
        image: NDArray[Any] = made.images[0]
        return image

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
