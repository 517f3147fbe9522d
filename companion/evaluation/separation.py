"""What a suite of models and the people it was trained on must show before it may judge anything.

Whether recognisers tell the people apart, before and after the autoencoder; whether CLIP finds the
right caption among others; how far generated pictures are from real ones as a distribution, and
that they are not copies of training pictures. Each works on what `companion.evaluation.readings`
read off pictures, so a picture is looked at once for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionlib.errors import FusionError

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Separation:
    """How well a recogniser tells people apart.

    Attributes:
        auc: Probability that two pictures of one person are nearer to each other than two of
            different people (the area under the ROC curve): 0.5 is chance, 1 never errs.
        genuine: Mean cosine distance of two pictures of one person.
        impostor: Mean cosine distance of pictures of two people.
        found: Pictures with a face; the others have no distance and are left out.
        pictures: All pictures.
    """

    auc: float
    genuine: float
    impostor: float
    found: int
    pictures: int


def told_apart(embeddings: Vectors, person: Sequence[Hashable]) -> Separation:
    """Compare every picture with every other one.

    Args:
        embeddings: Array ``(pictures, dimension)``, a row of NaN where no face was found.
        person: Person in each picture.

    Raises:
        FusionError: Fewer than two people, or no person with two pictures.
    """
    from scipy.stats import rankdata

    seen = np.asarray(~np.isnan(embeddings).any(axis=1))
    vectors = embeddings[seen].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owner = np.unique([str(name) for name in person], return_inverse=True)[1][seen]
    first, second = np.triu_indices(len(vectors), 1)
    distance = np.clip(1 - (vectors @ vectors.T)[first, second], 0, 2)
    same = owner[first] == owner[second]
    if not same.any() or same.all():
        raise FusionError("Telling people apart needs two people, and two faces of one of them.")
    # Mann and Whitney's U of the impostors' distances over the product of the counts.
    genuine, impostor = int(same.sum()), int((~same).sum())
    ranks = rankdata(distance)[~same].sum()
    auc = (ranks - impostor * (impostor + 1) / 2) / (genuine * impostor)
    return Separation(
        float(auc),
        float(distance[same].mean()),
        float(distance[~same].mean()),
        int(seen.sum()),
        len(seen),
    )


def caption_retrieval(
    images: Vectors,
    texts: Vectors,
    facts: Sequence[Hashable],
    *,
    candidates: int = 32,
    seed: int = 0,
) -> float:
    """The share of pictures whose own caption is nearest to them among `candidates` captions.

    The others are drawn among the captions of pictures with other facts: a caption that is as
    right as the picture's own is no error.

    Args:
        images: Array ``(pictures, dimension)``.
        texts: Array ``(pictures, dimension)``, the caption of each picture.
        facts: What each picture shows, as far as captions say it.
        candidates: Captions to choose from, the right one among them.
        seed: Seed of the draws.

    Raises:
        FusionError: There are too few pictures with other facts.
    """
    image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (images, texts))
    kinds = np.unique([str(fact) for fact in facts], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    hits = 0
    for number, kind in enumerate(kinds):
        others = np.flatnonzero(kinds != kind)
        if len(others) < candidates - 1:
            raise FusionError(
                f"Retrieval among {candidates} captions needs {candidates - 1} pictures that show "
                f"something else; there are {len(others)}."
            )
        wrong = rng.choice(others, candidates - 1, replace=False)
        similarity = text[[number, *wrong]] @ image[number]
        hits += int(similarity[0] > similarity[1:].max())
    return hits / len(kinds)


def frechet_distance(first: Vectors, second: Vectors) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian (Heusel 2017, section 2).

    With the features of Inception this is the FID. Features of any network will do as long as two
    values are compared under the same one; it falls with the number of pictures, so compare equal
    numbers.

    Args:
        first: Array ``(pictures, dimension)``.
        second: Array ``(pictures, dimension)``.
    """
    means = [features.astype(np.float64).mean(axis=0) for features in (first, second)]
    a, b = (np.cov(features.astype(np.float64), rowvar=False) for features in (first, second))
    # The trace of (ab)^(1/2) is the sum of the roots of the eigenvalues of ab, which are those of a
    # product of two positive matrices: real, and not negative but for rounding.
    roots = np.sqrt(np.clip(np.linalg.eigvals(np.atleast_2d(a @ b)).real, 0, None))
    gap = means[0] - means[1]
    return float(gap @ gap + np.trace(np.atleast_2d(a + b)) - 2 * roots.sum())


def nearest(queries: Vectors, pool: Vectors, count: int = 1) -> NDArray[np.intp]:
    """For each query the `count` most similar rows of a pool by cosine, most similar first.

    Args:
        queries: Array ``(n, dimension)``.
        pool: Array ``(m, dimension)``.
        count: Number of rows for each query, at most m.

    Returns:
        ``(n, count)`` row numbers of the pool.
    """
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, pool)]
    order = np.argsort(-(unit[0] @ unit[1].T), axis=1, kind="stable")
    return order[:, :count]
