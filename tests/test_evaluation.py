"""Identity distances agree with DeepFace; intervals and verdicts with known distributions."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.evaluation import comparison
from fusionlib.evaluation.comparison import (
    identity_table,
    measure_identity,
    paired_difference,
)
from fusionlib.evaluation.identity import (
    PACKAGED_WEIGHTS,
    align_faces,
    cosine_distance,
    embed_faces,
    faces_found,
    identity_recovery,
    link_packaged_weights,
)
from fusionlib.evaluation.statistics import Interval, bootstrap, verdict
from fusionlib.images import load_image
from fusionlib.study import Person, load_people

HELDOUT = Path(__file__).resolve().parent.parent / "data" / "heldout"


@pytest.fixture(scope="module", autouse=True)
def deepface_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home for DeepFace: everything it needs has to come from the packages."""
    home = tmp_path_factory.mktemp("deepface")
    before = os.environ.get("DEEPFACE_HOME")
    os.environ["DEEPFACE_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["DEEPFACE_HOME"]
    else:
        os.environ["DEEPFACE_HOME"] = before


@pytest.fixture(scope="module")
def portraits() -> list[Image.Image]:
    """Two pictures each of two held-out people, and one without a face."""
    people = load_people(HELDOUT, 2)
    paths = [path for person in people for path in (person.references[0], person.others[0])]
    return [*map(load_image, paths), Image.new("RGB", (128, 128), "grey")]


def test_distances_are_those_of_deepface_verify(portraits: list[Image.Image]) -> None:
    from deepface import DeepFace

    embeddings = embed_faces(portraits, "Dlib", "dlib")
    pairs = [(0, 1), (0, 2), (1, 3)]
    for a, b in pairs:
        expected = DeepFace.verify(
            *(np.asarray(portraits[number])[:, :, ::-1] for number in (a, b)),
            model_name="Dlib",
            detector_backend="dlib",
        )["distance"]
        assert cosine_distance(embeddings[a], embeddings[b]) == pytest.approx(expected, abs=1e-6)


def test_a_picture_without_a_face_is_counted_not_scored(portraits: list[Image.Image]) -> None:
    embeddings = embed_faces(portraits)
    assert embeddings.shape == (5, 128)
    assert np.isnan(embeddings[4]).all()
    assert faces_found(embeddings) == (4, 5)
    assert np.isnan(cosine_distance(embeddings[4], embeddings[0]))


def test_the_largest_of_several_faces_counts(portraits: list[Image.Image]) -> None:
    scene = Image.new("RGB", (400, 256), "white")
    scene.paste(portraits[2], (0, 0))
    scene.paste(portraits[0].resize((256, 256)), (140, 0))
    crowd, alone, small = embed_faces([scene, portraits[0].resize((256, 256)), portraits[2]])
    assert cosine_distance(crowd, alone) < cosine_distance(crowd, small) / 2


def test_an_aligned_face_is_upright_rgb_between_0_and_1(portraits: list[Image.Image]) -> None:
    face, none = align_faces([portraits[0], portraits[4]])
    assert none is None
    assert face is not None and face.ndim == 3 and face.shape[2] == 3
    assert face.min() >= 0 and 0.1 < face.max() <= 1
    swapped = Image.fromarray(np.asarray(portraits[0])[:, :, ::-1].copy())
    (blue,) = align_faces([swapped])
    assert blue is not None and face[..., 0].mean() > blue[..., 0].mean()  # skin is red, not blue


def test_only_the_free_weights_are_linked_and_dead_links_replaced(deepface_home: Path) -> None:
    folder = link_packaged_weights()
    assert folder == deepface_home / ".deepface" / "weights"
    assert sorted(path.name for path in folder.iterdir()) == sorted(PACKAGED_WEIGHTS)
    dead = folder / PACKAGED_WEIGHTS[0]
    dead.unlink()
    dead.symlink_to(deepface_home / "an environment that was deleted")
    assert (link_packaged_weights() / PACKAGED_WEIGHTS[0]).is_file()


def test_unknown_models_end_in_one_sentence() -> None:
    with pytest.raises(FusionError, match="recogniser 'Nobody'"):
        embed_faces([Image.new("RGB", (64, 64))], recogniser="Nobody")
    with pytest.raises(FusionError, match="detector 'nothing'"):
        align_faces([Image.new("RGB", (64, 64))], detector="nothing")


def test_nothing_is_printed_and_warnings_still_reach_the_user(deepface_home: Path) -> None:
    script = (
        "import warnings\n"
        "from PIL import Image; from fusionlib.evaluation.identity import embed_faces\n"
        "embed_faces([Image.new('RGB', (64, 64))])\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.warn('still heard')\n"
        "assert len(caught) == 1"
    )
    environment = {**os.environ, "DEEPFACE_HOME": str(deepface_home)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_cosine_distance_of_known_vectors() -> None:
    a = np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 4.0]])
    b = np.array([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [4.0, 3.0]])
    assert cosine_distance(a, b) == pytest.approx([0, 1, 2, 1 - 24 / 25])


def test_recovery_is_0_for_a_stranger_and_1_for_the_person() -> None:
    genuine, impostor = np.array([0.1, 0.3]), np.array([0.5, 0.9])
    assert identity_recovery(impostor, genuine, impostor) == 0
    assert identity_recovery(genuine, genuine, impostor) == 1
    assert identity_recovery(np.array([0.4, 0.4]), genuine, impostor) == pytest.approx(0.6)
    stacked = identity_recovery(*(np.stack([x, x]) for x in (impostor, genuine, impostor)), axis=1)
    assert stacked.tolist() == [0, 0]


def test_the_interval_covers_the_truth_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    studies, people, truth = 400, 40, np.exp(0.25**2 / 2)  # log-normal: skewed, as distances are
    covered = 0
    for values in rng.lognormal(0, 0.25, (studies, people)):
        interval = bootstrap(values, resamples=999)
        covered += interval.low <= truth <= interval.high
    # three standard errors about 94.5%, which the bootstrap has with 40 people
    assert 0.91 <= covered / studies <= 0.98


def test_the_paired_interval_of_a_ratio_uses_the_pairing() -> None:
    rng = np.random.default_rng(1)
    person = rng.uniform(0.2, 0.8, 200)  # what makes a person hard is in all three distances
    genuine, impostor = 0.1 + person, 0.6 + person
    generated = 0.35 + person
    paired = bootstrap(generated, genuine, impostor, statistic=identity_recovery)
    assert paired.estimate == pytest.approx(0.5)
    assert paired.high - paired.low < 1e-6
    shuffled = bootstrap(rng.permutation(generated), genuine, impostor, statistic=identity_recovery)
    assert shuffled.high - shuffled.low > 0.01


def test_intervals_are_seeded_and_refuse_what_they_cannot_use() -> None:
    values = np.random.default_rng(2).normal(size=30)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)
    assert bootstrap(np.full(5, 2.0)) == Interval(2, 2, 2)
    assert str(bootstrap(values[:1])) == "–"
    for wrong in ([values, values[:5]], [np.array([1.0, np.nan])], []):
        with pytest.raises(FusionError):
            bootstrap(*wrong)


def test_verdicts() -> None:
    assert verdict(Interval(0.2, 0.1, 0.3)) == "supported"
    assert verdict(Interval(-0.2, -0.3, -0.1)) == "not supported"
    assert verdict(Interval(0.1, -0.1, 0.3)) == "undecided"
    assert verdict(Interval(0.1, 0.0, 0.3)) == "undecided"


class FakeFaces:
    """Embeddings by file name, so that a table's numbers can be worked out by hand."""

    def __init__(self, angles: dict[str, float]) -> None:
        self.angles = angles

    def __call__(self, names, recogniser: str, detector: str) -> np.ndarray:  # type: ignore[no-untyped-def]
        angles = np.array([self.angles[name] for name in names])
        return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def test_against_the_others_a_picture_is_not_measured_with_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    angles = {"a/r": 9.0, "a/1": 0.0, "a/2": 0.2, "b/r": 9.0, "b/1": 1.0, "b/2": 1.4, "made": 0.1}
    monkeypatch.setattr(comparison, "load_image", lambda path: path)
    monkeypatch.setattr(comparison, "embed_faces", FakeFaces(angles))
    people = [
        Person(name, (Path(name, "r"),), (Path(name, "1"), Path(name, "2"))) for name in ("a", "b")
    ]
    index = pd.DataFrame(
        [("m", "a", "a face", 0, "made")], columns=["method", "person", "prompt", "seed", "image"]
    )
    scores = measure_identity(index, people, against="others")
    assert scores.images["distance"].tolist() == pytest.approx([1 - np.cos(0.1)])
    assert scores.scale["genuine"].tolist() == pytest.approx([1 - np.cos(0.2), 1 - np.cos(0.4)])
    across = np.mean([1 - np.cos(x) for x in (1.0, 1.4, 0.8, 1.2)])
    assert scores.scale["impostor"].tolist() == pytest.approx([across, across])
    with pytest.raises(FusionError, match="2 other picture"):
        measure_identity(index, [people[0], Person("c", (Path("r"),))], against="others")


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> comparison.IdentityScores:
    """Six people at right angles or more; "near" is at 0.1 + of the reference, "far" at 1."""
    angles: dict[str, float] = {}
    people, rows = [], []
    for number in range(6):
        home = number * 2 * np.pi / 6
        name = f"p{number}"
        angles |= {f"{name}/ref": home, f"{name}/other": home + 0.1}
        people.append(Person(name, (Path(name, "ref"),), (Path(name, "other"),)))
        for method, away in (("far", 1.0), ("near", 0.2 + 0.02 * number)):
            for seed in (0, 1):
                image = f"{name}/{method}{seed}"
                angles[image] = home + away
                rows.append((method, name, "a face", seed, image))
    angles["p0/near0"] = np.nan  # no face in one of the pictures
    index = pd.DataFrame(rows, columns=["method", "person", "prompt", "seed", "image"])
    monkeypatch.setattr(comparison, "load_image", lambda path: path)
    monkeypatch.setattr(comparison, "embed_faces", FakeFaces(angles))
    return measure_identity(index, people)


def test_the_table_has_the_numbers_worked_out_by_hand(scores: comparison.IdentityScores) -> None:
    table = identity_table(scores)
    assert list(table.index) == [
        "another person", "far", "near", "another picture of the same person"
    ]  # fmt: skip
    genuine = 1 - np.cos(0.1)
    impostor = np.mean([1 - np.cos(k * np.pi / 3 + 0.1) for k in range(1, 6)])
    near = np.mean([1 - np.cos(0.2 + 0.02 * k) for k in range(6)])
    distance = table["distance"].map(lambda interval: interval.estimate)
    assert distance.to_numpy() == pytest.approx([impostor, 1 - np.cos(1.0), near, genuine])
    recovery = table["recovery"].map(lambda interval: interval.estimate)
    assert recovery["near"] == pytest.approx((impostor - near) / (impostor - genuine))
    assert recovery.iloc[0] == 0 and recovery.iloc[-1] == 1
    assert (table.loc["near", "found"], table.loc["near", "images"]) == (11, 12)
    assert table.loc["near", "recovery"].low < recovery["near"] < table.loc["near", "recovery"].high


def test_methods_are_compared_in_pairs(scores: comparison.IdentityScores) -> None:
    difference = paired_difference(scores, "near", "far")
    near = np.mean([1 - np.cos(0.2 + 0.02 * k) for k in range(6)])
    assert difference.interval.estimate == pytest.approx(1 - np.cos(1.0) - near)
    assert (difference.pairs, difference.cells, difference.people) == (11, 12, 6)
    assert difference.verdict == "supported"
    assert paired_difference(scores, "far", "near").verdict == "not supported"
    with pytest.raises(FusionError, match="no method 'other'"):
        paired_difference(scores, "near", "other")


def test_a_method_without_any_face_is_shown_as_such(scores: comparison.IdentityScores) -> None:
    scores.images.loc[scores.images["method"] == "far", "distance"] = np.nan
    table = identity_table(scores)
    assert (str(table.loc["far", "distance"]), str(table.loc["far", "recovery"])) == ("–", "–")
    assert (table.loc["far", "found"], table.loc["far", "images"]) == (0, 12)
    difference = paired_difference(scores, "near", "far")
    assert (difference.pairs, difference.people, difference.verdict) == (0, 0, "undecided")


def test_many_missing_faces_leave_a_claim_undecided(scores: comparison.IdentityScores) -> None:
    scores.images.loc[scores.images["image"].isin(["p1/near0", "p2/near0"]), "distance"] = np.nan
    difference = paired_difference(scores, "near", "far")
    assert difference.pairs == 9 < comparison.MIN_PAIRED * difference.cells
    assert difference.interval.low > 0
    assert difference.verdict == "undecided"
