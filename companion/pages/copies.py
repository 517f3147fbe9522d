"""Are generated pictures copies of training pictures?

A training set is large, and pictures of rendered people need not be stored: each can be rendered
again from the numbers of its person and view. So only an embedding of each training picture is
stored beside the models that saw it. For a generated picture, the most similar training pictures
are found by their embeddings and rendered. Held-out renders, which cannot be copies, show how
similar unrelated pictures are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from companion.evaluation.alignment import ClipScorer
from companion.evaluation.readings import observe
from companion.evaluation.separation import Vectors, nearest
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.support.files import check_writable, replacing


@dataclass(frozen=True)
class Seen:
    """Embeddings of the pictures of single people in a training set.

    Attributes:
        embeddings: Embeddings of length 1, ``(pictures, dimension)``.
        person: Number of each picture's person.
        view: Number of the picture among that person's.
        seed: Seed of the data set, with which any picture can be rendered again.
        clip: Fingerprint of the model that embedded them.
    """

    embeddings: NDArray[np.float32]
    person: NDArray[np.int64]
    view: NDArray[np.int64]
    seed: int
    clip: str


def embed_training_set(shards: str | Path, checkpoint: str, out: str | Path) -> int:
    """Embed every picture of a rendered training set and store the embeddings in float16.

    Args:
        shards: Shards that `fusionlib people render` wrote. Pictures of several people and pictures
            that cannot be read are left out.
        checkpoint: Folder or hub id of a CLIP model with its processor.
        out: ``.safetensors`` file to write when all pictures are embedded.

    Returns:
        Number of pictures.

    Raises:
        FusionError: There is no model or no shard, or the records name no person.
    """
    from safetensors.numpy import save_file

    from fusionlib.training.shards import index_samples

    out = check_writable(out, '"embeddings":')
    scorer = ClipScorer(checkpoint)
    rows, person, view, seeds = [], [], [], set()
    for sample in tqdm(index_samples(shards).samples, desc="embedding", mininterval=2.0):
        record = sample.record()
        if "person" not in record or "view" not in record:
            continue
        try:
            rows.append(scorer.read(sample.picture(), None).astype(np.float16))
        except FusionError:
            continue
        person.append(int(record["person"]))
        view.append(int(record["view"]))
        seeds.add(int(record["seed"]))
    if len(seeds) != 1:
        raise FusionError(
            f"{shards} needs pictures of one rendered data set, whose records name person, view "
            f"and seed; found {len(seeds)} seeds."
        )
    with replacing(out) as partial:
        save_file(
            {
                "embeddings": np.stack(rows),
                "person": np.array(person, dtype=np.int32),
                "view": np.array(view, dtype=np.int16),
            },
            partial,
            metadata={"seed": str(seeds.pop()), "clip": scorer.fingerprint},
        )
    return len(rows)


def load_training_embeddings(path: str | Path) -> Seen:
    """Read what `embed_training_set` wrote.

    Raises:
        FusionError: There is no such file, or it has other content.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("embeddings", "person", "view")}
            about = file.metadata() or {}
        vectors = arrays["embeddings"].astype(np.float32)
        return Seen(
            vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            arrays["person"].astype(np.int64),
            arrays["view"].astype(np.int64),
            int(about["seed"]),
            about["clip"],
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise FusionError(
            f"{path} holds no embedded training set ({error}): write one with `fusionlib data "
            "embed`."
        ) from error


def similarity(embeddings: Vectors, seen: Seen) -> NDArray[np.float64]:
    """Cosine of each picture to the most similar training picture, ``(pictures,)``."""
    vectors = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    best: NDArray[np.float64] = (vectors @ seen.embeddings.T).max(axis=1).astype(np.float64)
    return best


def render_nearest(
    embeddings: Vectors, seen: Seen, count: int = 3, *, size: int = 128
) -> list[list[Image.Image]]:
    """Render, for each picture, the training pictures most similar to it, the nearest first.

    Args:
        embeddings: Embeddings by the same CLIP model, ``(pictures, dimension)``.
        seen: Training set to search.
        count: Number of training pictures for each.
        size: Side of the renders in pixels.
    """
    rows = nearest(embeddings, seen.embeddings, count)
    made: dict[int, Image.Image] = {}
    for row in tqdm(sorted(set(rows.ravel().tolist())), desc="rendering", unit="picture"):
        made[row] = _render(seen.seed, int(seen.person[row]), int(seen.view[row]), size)
    return [[made[row] for row in line] for line in rows.tolist()]


def _render(seed: int, person: int, view: int, size: int) -> Image.Image:
    from companion.people.appearance import sample_person
    from companion.people.render import render_views
    from companion.people.view import sample_view

    plan = [sample_view(seed, person, view, split="train")]
    (picture,) = render_views(sample_person(seed, person), plan, size)
    return Image.fromarray(np.asarray(picture.image))


def nearest_in_training(
    paths: Sequence[Path],
    seen: Seen,
    scorer: ClipScorer,
    *,
    count: int = 3,
    size: int = 128,
    cache: str | Path | None = None,
) -> list[list[Image.Image]]:
    """Rows of pictures: each given one, then the training pictures most similar to it.

    Args:
        paths: Files of the pictures.
        seen: Training set to search.
        scorer: CLIP model that embedded the training set.
        count: Number of training pictures for each.
        size: Side of the renders in pixels.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Raises:
        FusionError: The training set was embedded by another model.
    """
    _check_model(seen, scorer)
    vectors = observe(paths, {"clip": scorer}, cache=cache, strict=True).values["clip"]
    found = render_nearest(vectors, seen, count, size=size)
    return [[load_image(path), *row] for path, row in zip(paths, found, strict=True)]


def similarity_to_training(
    sets: Mapping[str, Sequence[Path]],
    seen: Seen,
    scorer: ClipScorer,
    *,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """How similar pictures are to the training set, set by set.

    Generated pictures that are more similar to it than held-out renders would be near-copies.

    Args:
        sets: Files of pictures, by the name of their set.
        seen: Training set to search.
        scorer: CLIP model that embedded the training set.
        cache: Folder of readings, see `companion.evaluation.readings.observe`.

    Returns:
        A row for each set: ``pictures``, and of the cosines to the most similar training picture
        the ``median``, the ``95%`` quantile and the ``largest``.
    """
    _check_model(seen, scorer)
    rows = {}
    for name, paths in sets.items():
        vectors = observe(paths, {"clip": scorer}, cache=cache, strict=True).values["clip"]
        best = similarity(vectors, seen)
        rows[name] = {
            "pictures": len(best),
            "median": float(np.median(best)),
            "95%": float(np.quantile(best, 0.95)),
            "largest": float(best.max()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _check_model(seen: Seen, scorer: ClipScorer) -> None:
    if seen.clip != scorer.fingerprint:
        raise FusionError(
            "The training set was embedded by another CLIP model than the one in use: embed it "
            "again with `fusionlib data embed`."
        )
