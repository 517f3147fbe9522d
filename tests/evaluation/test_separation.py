"""What a suite must show: each measure against a naive computation or a known value."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from companion.evaluation.separation import caption_retrieval, frechet_distance, nearest, told_apart
from companion.pages.training_records import FOLDERS
from fusionlib.errors import FusionError
from fusionlib.profiles import load_profile


def test_the_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    person = [0, 0, 0, 1, 1, 2, 2, 3]
    embeddings = rng.normal(size=(8, 5)) + np.asarray(person)[:, None] * 0.4
    embeddings[4] = embeddings[1]  # distances that are equal count half
    embeddings[6] = np.nan
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    same, different = [], []
    for i in range(8):
        for j in range(i):
            if 6 not in (i, j):
                pair = same if person[i] == person[j] else different
                pair.append(round(1 - float(unit[i] @ unit[j]), 12))
    wins = [(s < d) + 0.5 * (s == d) for s in same for d in different]
    result = told_apart(embeddings, person)
    assert result.auc == pytest.approx(np.mean(wins), abs=1e-6)
    assert result.genuine == pytest.approx(np.mean(same))
    assert result.impostor == pytest.approx(np.mean(different))
    assert (result.found, result.pictures) == (7, 8)


def test_people_who_cannot_be_compared() -> None:
    with pytest.raises(FusionError, match="two people"):
        told_apart(np.eye(3), ["a", "a", "a"])
    with pytest.raises(FusionError, match="two faces"):
        told_apart(np.eye(3), ["a", "b", "c"])


def test_retrieval_of_perfect_and_of_meaningless_embeddings() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(400, 16))
    facts = list(range(400))
    assert caption_retrieval(images, images, facts) == 1
    chance = caption_retrieval(images, rng.normal(size=(400, 16)), facts, candidates=8)
    assert 0.06 < chance < 0.2
    # Captions of pictures that show the same are no wrong answers.
    doubled = np.repeat(images[:100], 2, axis=0)
    assert caption_retrieval(doubled, doubled, [i // 2 for i in range(200)]) == 1
    assert caption_retrieval(doubled, doubled, range(200), candidates=200) == 0
    texts = rng.normal(size=(400, 16))
    again = {caption_retrieval(images, texts, facts, candidates=8) for _ in range(4)}
    assert len(again) == 1, "the others are drawn by the seed"
    with pytest.raises(FusionError, match="needs 31 pictures"):
        caption_retrieval(images[:20], images[:20], facts[:20])


def test_the_frechet_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200_000, 2)) * [1.0, 2.0]
    b = rng.normal(size=(200_000, 2)) * [3.0, 2.0] + [1.0, -2.0]
    # Of independent coordinates: squared gaps of the means and of the standard deviations.
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_nearest_neighbours_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    pool, queries = rng.normal(size=(30, 4)), rng.normal(size=(5, 4))
    for query, found in zip(queries, nearest(queries, pool, 3), strict=True):
        cosines = [query @ p / np.linalg.norm(p) for p in pool]
        assert list(found) == list(np.argsort(cosines)[::-1][:3])


def test_the_suites_weights_are_small_and_in_half_precision() -> None:
    suite = Path(load_profile("embedded").base_model)
    folders = {*FOLDERS.values(), "text_encoder"}
    files = [file for name in folders for file in (suite / name).rglob("*.safetensors")]
    assert len(files) == len(folders) == 8
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 50e6 and sum(sizes) < 100e6
    for file in files:
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, f"{file}: {kinds}"  # I64: batches that a norm has seen
