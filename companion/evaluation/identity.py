"""Identity distance and identity recovery."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cosine_distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine distance along the last axis, 1 - cos(a, b), from 0 to 2; NaN where either is NaN."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # Rounding alone could make the distance of a picture to itself negative.
    return np.clip(1 - np.sum(a * b, axis=-1) / norms, 0, 2)


def faces_found(embeddings: NDArray[np.float64]) -> tuple[int, int]:
    """How many rows of (images, dimension) hold a face, and how many rows there are."""
    return int(np.sum(~np.isnan(embeddings).any(axis=-1))), len(embeddings)


def identity_recovery(
    d_generated: NDArray[np.float64],
    d_genuine: NDArray[np.float64],
    d_impostor: NDArray[np.float64],
    axis: int = -1,
) -> NDArray[np.float64]:
    """Identity recovery R = (d_impostor - d_generated) / (d_impostor - d_genuine).

    0 says that generated faces are as far from the reference as a stranger's, 1 that they are as
    near as another picture of the same person. The means over people are taken before the division:
    a ratio for each person would be ruled by those whose two distances nearly agree.

    Args:
        d_generated: Distance of generated faces to the reference, one for each person.
        d_genuine: Distance of other pictures of the same person, in the same order.
        d_impostor: Distance of pictures of other people, in the same order.
        axis: The axis that counts people.
    """
    impostor = np.mean(d_impostor, axis=axis)
    return (impostor - np.mean(d_generated, axis=axis)) / (impostor - np.mean(d_genuine, axis=axis))
