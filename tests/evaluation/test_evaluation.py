"""Measurements agree with independent ones; intervals and verdicts with known distributions."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.stats import norm
from scipy.stats import t as student
from skimage.metrics import structural_similarity
from transformers import (
    AutoProcessor,
    CLIPModel,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from benchmarks.coverage import coverage, table
from companion.evaluation import readings as observe
from companion.evaluation.alignment import Classifier, ClipScorer
from companion.evaluation.comparison import (
    IdentityScores,
    estimate_mean,
    mean_over_people,
    method_recovery,
    paired_difference,
    with_likeness_kept,
)
from companion.evaluation.identity import cosine_distance, faces_found, identity_recovery
from companion.evaluation.measure import (
    _further_distances,
    check_scale,
    measure,
    with_face_size,
)
from companion.evaluation.quality import EYES, SIDE, face_region, psnr, psnr_8bit_overflow, ssim
from companion.evaluation.readings import Readings
from companion.evaluation.scale import Scale, places
from companion.evaluation.statistics import MIN_PEOPLE, Interval, bootstrap, effect_size, verdict
from companion.faces import aligned as faces
from companion.faces.aligned import (
    PACKAGED_WEIGHTS,
    AlignedFace,
    FaceFinder,
    align_faces,
    find_face,
    link_packaged_weights,
    with_faces,
)
from companion.faces.recognisers import (
    DeepFaceRecogniser,
    NetworkRecogniser,
    embed_faces,
    load_recogniser,
    load_recognisers,
)
from companion.figures.tables import traits_table
from companion.pages.psnr_audit import overflow_facts, picture_pairs
from companion.person import Person, load_people
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image, save_png
from fusionlib.profiles import ROOT, load_profile
from tests.helpers.recognisers import RECOGNISERS, embed, write_recognisers

HELDOUT = ROOT / "data" / "heldout"


@pytest.fixture(scope="module", autouse=True)
def deepface_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for DeepFace of one's own: everything comes from packages or from the tests."""
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


def verify(a: Image.Image, b: Image.Image, recogniser: str) -> float:
    """The distance by DeepFace's own function, from the pictures."""
    from deepface import DeepFace

    pictures = (np.asarray(picture)[:, :, ::-1] for picture in (a, b))
    return DeepFace.verify(*pictures, model_name=recogniser, detector_backend="dlib")["distance"]


def test_distances_are_those_of_deepface_verify(portraits: list[Image.Image]) -> None:
    embeddings = embed_faces(portraits, "Dlib", "dlib")
    for a, b in ((0, 1), (0, 2), (1, 3)):
        expected = verify(portraits[a], portraits[b], "Dlib")
        assert cosine_distance(embeddings[a], embeddings[b]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", RECOGNISERS)
def test_the_papers_recognisers_measure_as_deepface_verifies(
    deepface_home: Path, portraits: list[Image.Image], name: str
) -> None:
    write_recognisers(deepface_home)
    embeddings = embed_faces(portraits, name, "dlib")
    side, dimension = RECOGNISERS[name][1:]
    assert embeddings.shape == (5, dimension)
    assert faces_found(embeddings) == (4, 5)
    for a, b in ((0, 1), (0, 2)):
        expected = verify(portraits[a], portraits[b], name)
        assert expected > 1e-3
        assert cosine_distance(embeddings[a], embeddings[b]) == pytest.approx(expected, abs=1e-6)
    # And the network itself is the one whose weights lie in the file.
    pixels = np.random.default_rng(1).random((side, side, 3)).astype(np.float32)
    expected = embed(name, pixels)
    found = load_recogniser(name)._embed(pixels[:, :, ::-1])  # type: ignore[attr-defined]
    assert cosine_distance(found, expected) < 1e-6


def test_a_network_of_ones_own_is_a_recogniser_by_its_folder(
    portraits: list[Image.Image], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]))
    network.eval().save_pretrained(tmp_path / "network")
    processor = ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=1.0)
    processor.save_pretrained(tmp_path / "network")
    assert (tmp_path / "network" / "model.safetensors").is_file()
    embeddings = embed_faces([portraits[0], portraits[4]], str(tmp_path / "network"))
    face = find_face(portraits[0])
    assert face is not None
    crop = (face.crop * 255).round().astype(np.uint8)
    inputs = processor(images=crop, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        expected = network(**inputs).pooler_output[0, :, 0, 0]
    assert embeddings[0] == pytest.approx(expected.numpy(), rel=1e-5)
    assert np.isnan(embeddings[1]).all()
    for name, says in (("Nobody", "no recogniser 'Nobody'"), (str(tmp_path), "no recogniser")):
        with pytest.raises(FusionError, match=says):
            load_recogniser(name)
    (tmp_path / "network" / "model.safetensors").write_bytes(b"damaged")
    load_recogniser.cache_clear()
    with pytest.raises(FusionError, match="recogniser could not be loaded"):
        load_recogniser(str(tmp_path / "network"))


def small_network(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1])).save_pretrained(
        folder
    )
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder)
    return folder


def test_recognisers_of_one_name_are_called_by_their_folders(tmp_path: Path) -> None:
    folders = [str(small_network(tmp_path / name / "network")) for name in ("old", "new")]
    assert list(load_recognisers(folders[:1] * 2)) == ["network"]
    assert list(load_recognisers(folders)) == folders


def test_what_was_read_belongs_to_the_weights_that_read_it(
    classifier: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instrument is known by its weights and classes, wherever its folder lies."""
    here = NetworkRecogniser(small_network(tmp_path / "a" / "network"))
    there = NetworkRecogniser(small_network(tmp_path / "b" / "network"))
    other = NetworkRecogniser(small_network(tmp_path / "c" / "network", seed=1))
    assert here.fingerprint == there.fingerprint != other.fingerprint

    clip = shutil.copytree(tiny_checkpoint / "clip", tmp_path / "clip")
    before = ClipScorer(str(tiny_checkpoint / "clip")), ClipScorer(str(clip))
    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    model.save_pretrained(clip)
    assert before[0].fingerprint == before[1].fingerprint != ClipScorer(str(clip)).fingerprint

    teller = Classifier("it", str(classifier)).fingerprint
    renamed = shutil.copytree(classifier, tmp_path / "renamed")
    assert Classifier("it", str(renamed)).fingerprint == teller
    text = (renamed / "config.json").read_text()
    (renamed / "config.json").write_text(text.replace('"angry"', '"furious"'))
    assert Classifier("it", str(renamed)).fingerprint != teller
    weights = ResNetForImageClassification.from_pretrained(classifier)
    with torch.no_grad():
        weights.classifier[1].bias[0] += 1
    weights.save_pretrained(tmp_path / "trained anew")
    processor = ConvNextImageProcessor.from_pretrained(classifier)
    processor.save_pretrained(tmp_path / "trained anew")
    assert Classifier("it", str(tmp_path / "trained anew")).fingerprint != teller

    prints = set()
    for level in (1.0, 1.0, 2.0):  # DeepFace's weights are known by what they answer
        monkeypatch.setattr(
            DeepFaceRecogniser, "_embed", lambda *_, at=level: np.full(128, at, np.float32)
        )
        prints.add(DeepFaceRecogniser("Dlib").fingerprint)
    assert len(prints) == 2

    finders = {FaceFinder("dlib").fingerprint, FaceFinder("retinaface").fingerprint}
    monkeypatch.setattr(faces, "package_versions", lambda _: {"deepface": "another"})
    assert len(finders | {FaceFinder("dlib").fingerprint}) == 3


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
    assert face is not None and face.crop.ndim == 3 and face.crop.shape[2] == 3
    assert face.crop.min() >= 0 and 0.1 < face.crop.max() <= 1
    assert face.eyes is not None and face.eyes[0][0] < face.eyes[1][0]
    swapped = Image.fromarray(np.asarray(portraits[0])[:, :, ::-1].copy())
    (blue,) = align_faces([swapped])  # skin is red, not blue
    assert blue is not None and face.crop[..., 0].mean() > blue.crop[..., 0].mean()


def test_only_the_free_weights_are_linked_and_dead_links_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    folder = link_packaged_weights()
    assert folder == tmp_path / ".deepface" / "weights"
    assert sorted(path.name for path in folder.iterdir()) == sorted(PACKAGED_WEIGHTS)
    dead = folder / PACKAGED_WEIGHTS[0]
    dead.unlink()
    dead.symlink_to(tmp_path / "an environment that was deleted")
    assert (link_packaged_weights() / PACKAGED_WEIGHTS[0]).is_file()


def test_unknown_models_end_in_one_sentence() -> None:
    with pytest.raises(FusionError, match="no recogniser 'Nobody'"):
        embed_faces([Image.new("RGB", (64, 64))], recogniser="Nobody")
    with pytest.raises(FusionError, match="detector 'nothing'"):
        align_faces([Image.new("RGB", (64, 64))], detector="nothing")


def test_nothing_is_printed_and_warnings_still_reach_the_user(deepface_home: Path) -> None:
    script = (
        "import warnings\n"
        "from PIL import Image; from companion.faces.recognisers import embed_faces\n"
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


class Counting:
    """An instrument that counts how often it is asked."""

    def __init__(self, name: str, *, needs_face: bool, fingerprint: str = "1") -> None:
        self.name, self.needs_face, self.fingerprint = name, needs_face, fingerprint
        self.dimension = 2
        self.asked = 0

    def read(self, image, face):  # type: ignore[no-untyped-def]
        self.asked += 1
        if self.needs_face and face is None:
            return None
        return np.array([image.width, self.asked], dtype=np.float32)


def test_a_picture_is_looked_at_once_for_all_instruments_and_never_again(
    portraits: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def count(image, detector):  # type: ignore[no-untyped-def]
        found.append(image)
        return find_face(image, detector)

    monkeypatch.setattr(observe, "find_face", count)
    paths = []
    for number, picture in enumerate([portraits[0], portraits[4], portraits[0]]):  # one twice
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    face, whole = Counting("face", needs_face=True), Counting("whole", needs_face=False)
    cache = tmp_path / "cache"
    first = observe.observe(paths, {"a": face, "b": whole}, cache=cache, progress=False)
    assert (len(found), face.asked, whole.asked) == (2, 2, 2)
    assert first.faces.tolist() == [True, False, True]
    assert np.isnan(first.values["a"][1]).all() and first.values["b"].tolist()[1] == [128, 2]
    assert np.isfinite(first.eyes[0]).all() and np.isnan(first.eyes[1]).all()

    again = observe.observe(paths, {"a": face, "b": whole}, cache=cache, progress=False)
    assert (len(found), face.asked, whole.asked) == (2, 2, 2)
    for name, values in first.values.items():
        assert np.array_equal(again.values[name], values, equal_nan=True)
    assert np.array_equal(again.eyes, first.eyes, equal_nan=True)
    assert again.faces.tolist() == first.faces.tolist()

    other = Counting("face", needs_face=True, fingerprint="2")  # other weights: read anew
    observe.observe(paths, {"a": other}, cache=cache, progress=False)
    assert other.asked == 2
    portraits[2].save(paths[0])  # another picture under an old name
    observe.observe(paths, {"b": whole}, cache=cache, progress=False)
    assert whole.asked == 3


def test_a_face_found_by_another_detector_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = AlignedFace(np.zeros((8, 8, 3)), ((1.0, 2.0), (3.0, 2.0)), "dlib")
    monkeypatch.setattr(observe, "find_face", lambda _, by: replace(crop, found_by=by))
    path = save_png(Image.new("RGB", (64, 64)), tmp_path / "a.png")
    face, whole = Counting("face", needs_face=True), Counting("whole", needs_face=False)
    for detector in ("dlib", "retinaface", "dlib"):
        found = observe.observe(
            [path], {"a": face, "b": whole}, detector=detector, cache=tmp_path, progress=False
        )
        assert found.faces.all()
    assert (face.asked, whole.asked) == (2, 1)


def test_people_without_a_face_are_passed_over(
    tmp_path: Path, portraits: list[Image.Image]
) -> None:
    people = [
        Person(str(number), (save_png(portraits[which], tmp_path / f"{number}.png"),))
        for number, which in enumerate([4, 0, 2])
    ]
    assert with_faces(people, 1) == people[1:2] and with_faces(people, 2) == people[1:]
    half = replace(people[1], references=(*people[1].references, *people[0].references))
    assert with_faces([half, people[2]], 1) == people[2:], "in each of the references"
    with pytest.raises(FusionError, match="of 2 people, fewer than the 3"):
        with_faces(people, 3)


def test_eyes_are_so_many_widths_apart(tmp_path: Path, portraits: list[Image.Image]) -> None:
    wider = ImageOps.expand(portraits[0], (0, 0, portraits[0].width, 0))
    paths = [save_png(one, tmp_path / f"{n}.png") for n, one in enumerate([portraits[0], wider])]
    apart = with_face_size(pd.DataFrame({"image": paths}))["eyes_apart"]
    face = find_face(portraits[0])
    assert face is not None and face.eyes is not None
    (x0, y0), (x1, y1) = face.eyes
    assert apart[0] == pytest.approx(math.hypot(x1 - x0, y1 - y0) / portraits[0].width, rel=1e-5)
    assert apart[1] == pytest.approx(apart[0] / 2, rel=0.1)


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


PROMPTS = ["a face", "a laughing face"]


def test_clip_score_is_a_direct_computation_with_transformers(
    tiny_checkpoint: Path, portraits: list[Image.Image]
) -> None:
    folder = str(tiny_checkpoint / "clip")
    scorer = ClipScorer(folder)
    images = np.stack([scorer.read(picture, None) for picture in portraits[:2]])
    found = scorer.scores(images, PROMPTS)
    model, processor = CLIPModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    for picture, prompt, score in zip(portraits[:2], PROMPTS, found, strict=True):
        inputs = processor(text=[prompt], images=picture, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds)
        assert score == pytest.approx(100 * float(cosine), abs=1e-3)
        logit = float(output.logits_per_image / model.logit_scale.exp().detach())
        assert score == pytest.approx(100 * logit, abs=1e-3)
    assert np.isnan(scorer.scores(np.full((1, scorer.dimension), np.nan), ["a face"])).all()
    assert np.isfinite(scorer.scores(images[:1], ["a very long prompt " * 50])).all()
    with pytest.raises(FusionError, match="CLIP model folder"):
        ClipScorer("nowhere/at/all")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    labels = ["neutral", "laughing", "angry", "crying"]
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], id2label=dict(enumerate(labels))
    )
    folder = tmp_path_factory.mktemp("classifier")
    ResNetForImageClassification(config).eval().save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=1.0).save_pretrained(folder)
    return folder


def test_a_classifier_is_right_where_its_best_label_is_the_wanted_one(
    classifier: Path, portraits: list[Image.Image]
) -> None:
    teller = Classifier("expression", str(classifier))
    assert teller.heads == {"expression": ["neutral", "laughing", "angry", "crying"]}
    probabilities = np.stack([teller.read(picture, None) for picture in portraits])
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    model = ResNetForImageClassification.from_pretrained(classifier)
    processor = ConvNextImageProcessor.from_pretrained(classifier)
    with torch.no_grad():
        logits = model(**processor(images=portraits, return_tensors="pt")).logits
    best = [model.config.id2label[int(number)] for number in logits.argmax(-1)]
    assert teller.hits("expression", probabilities, best).tolist() == [1] * 5
    labels = teller.heads["expression"]
    assert teller.seen("expression", probabilities) == best
    wrong = [labels[(labels.index(label) + 1) % 4] for label in best]
    assert teller.hits("expression", probabilities, wrong).tolist() == [0] * 5
    assert np.isnan(teller.hits("expression", probabilities[:1], [None])).all()
    assert teller.asked_for("expression", "a photo of a Laughing person") == "laughing"
    assert teller.asked_for("expression", "a photo of a person") is None
    assert teller.asked_for("expression", "an angry and a crying person") is None
    assert teller.asked_for("expression", "angryish") is None
    teller._asked["expression"] |= {"crying out": "angry"}
    assert teller.asked_for("expression", "a person crying out loud") == "angry", "the longer words"


def test_quality_is_that_of_the_formulas_and_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    assert psnr(a, b) == pytest.approx(20 * np.log10(255) - 10 * np.log10(error))
    channels = [
        structural_similarity(
            a[..., c].astype(float), b[..., c].astype(float), data_range=255,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for c in range(3)
    ]  # fmt: skip
    assert ssim(a, b) == pytest.approx(np.mean(channels))
    assert ssim(a, a) == 1 and psnr(a, a) == psnr_8bit_overflow(a, a) == np.inf
    wrapped = np.mean([(int(x) - int(y)) ** 2 % 256 for x, y in zip(a.flat, b.flat, strict=True)])
    assert psnr_8bit_overflow(a, b) == pytest.approx(10 * np.log10(255**2 / wrapped))
    flat = np.zeros((16, 16, 3), dtype=np.uint8)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert psnr_8bit_overflow(every, flat) == pytest.approx(27.90, abs=0.01)  # spread evenly


def test_faces_are_laid_on_one_frame_before_they_are_compared() -> None:
    """A picture that was turned, scaled and shifted shows the same region again."""
    y, x = np.mgrid[0:200, 0:200]
    waves = [128 + 90 * np.sin(x / 17 + c) * np.cos(y / 23 - c) for c in range(3)]
    picture = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    eyes = np.array([[80.0, 90.0], [120.0, 92.0]])
    straight = face_region(picture, eyes)
    assert straight.shape == (SIDE, SIDE, 3)
    for factor, degrees in ((1.5, 0), (1, 20), (3, -15)):
        big = picture.resize([round(200 * factor)] * 2, Image.Resampling.BICUBIC)
        middle = np.array([big.width / 2 - 0.5] * 2)
        turned = big.rotate(degrees, Image.Resampling.BICUBIC)
        angle = np.radians(degrees)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        moved = ((eyes + 0.5) * factor - 0.5 - middle) @ turn.T + middle
        region = face_region(turned, moved)
        inside = np.s_[20:-20, 20:-20]
        assert np.abs(region[inside].astype(int) - straight[inside]).mean() < 1.5
    left, right = (np.array(point) for point in EYES)
    assert right[0] - left[0] == pytest.approx(35.2, abs=0.1)
    dots = Image.new("RGB", (200, 200))
    dots.putpixel((80, 90), (255, 0, 0))
    dots.putpixel((120, 92), (0, 255, 0))
    region = face_region(dots, eyes).astype(int)
    for channel, place in ((0, left), (1, right)):
        row, column = np.unravel_index(region[..., channel].argmax(), (SIDE, SIDE))
        assert abs(column - place[0]) <= 1 and abs(row - place[1]) <= 1


@pytest.mark.parametrize("apart", [50.0, 80.0, 130.0])
def test_a_region_shows_each_place_of_the_frame_to_a_part_of_a_pixel(apart: float) -> None:
    """On pictures whose colours say where they are, rising in one channel as they fall in one."""
    eyes = np.array([[190.25, 200.0], [190.25 + apart, 206.5]])
    (ax, ay), (bx, by) = EYES
    # The similarity that takes the frame's eyes to the picture's, solved as linear equations.
    frame = [[ax, -ay, 1, 0], [ay, ax, 0, 1], [bx, -by, 1, 0], [by, bx, 0, 1]]
    a, b, c, d = np.linalg.solve(frame, eyes.ravel())
    v, u = np.mgrid[0:SIDE, 0:SIDE]
    y, x = np.mgrid[0:500, 0:500]
    for ramp, expected in ((x, a * u - b * v + c), (y, b * u + a * v + d)):
        colours = np.stack([0.43 * ramp, 250 - 0.43 * ramp, 0 * ramp], axis=-1)
        dithered = np.floor(colours + np.random.default_rng(0).random(colours.shape))
        region = face_region(Image.fromarray(dithered.astype(np.uint8)), eyes).astype(float)
        places = (region[..., 0] - region[..., 1] + 250) / 0.86
        assert (places - expected).mean() == pytest.approx(0, abs=0.1)


def test_a_region_of_a_large_picture_is_averaged() -> None:
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    region = face_region(Image.fromarray(stripes), [[200.0, 250.0], [200.0 + 4.02 * 35.24, 250.0]])
    assert abs(region.mean() - 127.5) < 1 and region.std() < 5


@pytest.mark.parametrize("people, least", [(10, 0.91), (20, 0.93), (40, 0.93)])
def test_the_interval_covers_the_truth_in_95_of_100_studies(people: int, least: float) -> None:
    """1,000 simulated studies: people differ, prompts and seeds of a person do, too."""
    share = coverage(bootstrap, people, studies=1000, resamples=999, skewed=False)
    assert least <= share <= 0.97


def test_the_table_of_coverage_has_every_kind_of_interval() -> None:
    found = table((5, 20), studies=40, resamples=99)
    assert list(found.columns) == [5, 20] and len(found) == 4
    shares = found.map(lambda text: float(text.rstrip("%")))
    assert (shares > 60).all().all() and (shares.iloc[0] >= shares.iloc[2]).all(), "wider"


def test_pictures_of_one_person_are_not_independent_people() -> None:
    """Taking images for people would make the interval too narrow: it would miss too often."""
    rng = np.random.default_rng(1)
    right = wrong = 0
    for _ in range(200):
        images = rng.normal(0, 1, (20, 1)) + rng.normal(0, 0.3, (20, 8))
        right += bootstrap(images.mean(axis=1), resamples=499).excludes(0)
        wrong += bootstrap(images.ravel(), resamples=499).excludes(0)
    assert right < 30 and wrong > 60  # of 200; 10 would be expected


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


def test_the_interval_is_bca_by_the_book_widened_as_students_t() -> None:
    """Efron's formulas for the mean of few, skewed numbers, from resamples drawn here."""
    values = np.random.default_rng(4).lognormal(0, 1, 12)
    n, mean = len(values), values.mean()
    means = np.random.default_rng(5).choice(values, (200_000, n)).mean(axis=1)
    left_out = np.array([np.delete(values, i).mean() for i in range(n)])
    lean = left_out.mean() - left_out
    acceleration = (lean**3).sum() / (6 * (lean**2).sum() ** 1.5)
    bias = norm.ppf((means < mean).mean())
    z = student.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
    ends = [
        np.quantile(means, norm.cdf(bias + (bias + s) / (1 - acceleration * (bias + s))))
        for s in (-z, z)
    ]
    found = bootstrap(values, resamples=200_000)
    width = ends[1] - ends[0]
    assert [found.low, found.high] == pytest.approx(ends, abs=0.015 * width)


def test_an_interval_has_a_width_if_anything_of_it_varies() -> None:
    d = np.random.default_rng(3).uniform(0.2, 0.4, 30)
    found = bootstrap(d, np.full(30, 0.1), np.full(30, 0.6), statistic=identity_recovery)
    assert found.estimate == pytest.approx((0.6 - d.mean()) / 0.5)
    plain = bootstrap(d)  # of a mean, of which this is a straight line
    assert found.low == pytest.approx((0.6 - plain.high) / 0.5, abs=2e-3)
    assert found.high == pytest.approx((0.6 - plain.low) / 0.5, abs=2e-3)


def test_intervals_are_seeded_and_refuse_what_they_cannot_use() -> None:
    values = np.random.default_rng(2).normal(size=30)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)
    assert bootstrap(np.full(5, 2.0)) == Interval(2, 2, 2)
    assert str(bootstrap(values[:0])) == "–"
    for few in range(1, MIN_PEOPLE):  # their mean, and nothing on how sure it is
        found = bootstrap(values[:few])
        assert str(found) == f"{values[:few].mean():.3f}" and verdict(found) == "undecided"
        assert np.isnan([found.low, found.high]).all()
    assert bootstrap(values[:MIN_PEOPLE]).excludes(values[:MIN_PEOPLE].max())
    assert str(Interval(-1e-9, -0.01, 1e-9)) == "0.000 [-0.010, 0.000]"
    for wrong in ([values, values[:5]], [np.array([1.0, np.nan])], []):
        with pytest.raises(FusionError):
            bootstrap(*wrong)


def test_the_effect_size_is_unbiased_and_known_by_hand() -> None:
    assert effect_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 * (1 - 3 / 7))
    rng = np.random.default_rng(0)
    samples = rng.normal(0.5, 1, (20_000, 10))
    assert effect_size(samples).mean() == pytest.approx(0.5, abs=0.01)  # uncorrected: 0.547
    found = bootstrap(rng.normal(0.5, 1, 400), statistic=effect_size)
    assert found.low < 0.5 < found.high and found.high - found.low < 0.3
    assert np.isnan(effect_size(np.array([1.0]))) and np.isnan(effect_size(np.array([1.0, 2.0])))


def test_verdicts() -> None:
    assert verdict(Interval(0.2, 0.1, 0.3)) == "supported"
    assert verdict(Interval(-0.2, -0.3, -0.1)) == "not supported"
    assert verdict(Interval(0.1, -0.1, 0.3)) == "undecided"
    assert verdict(Interval(0.1, 0.0, 0.3)) == "undecided"
    assert verdict(Interval(-0.1, -0.3, 0.0)) == "undecided"
    assert verdict(Interval(0.0, 0.0, 0.0)) == "undecided", "twice the same pictures"


@pytest.fixture
def angles(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Embeddings by file name, as angles, so that numbers can be worked out by hand."""

    def look(paths, instruments=None, **_):  # type: ignore[no-untyped-def]
        found = np.array([known[str(path)] for path in paths], dtype=np.float64)
        values = np.stack([np.cos(found), np.sin(found)], axis=-1)
        faces, eyes = ~np.isnan(found), np.full((len(found), 2, 2), np.nan)
        nothing = [None] * len(found)
        return Readings(dict.fromkeys(instruments or {}, values), faces, eyes, nothing, nothing)

    known: dict[str, float] = {}
    monkeypatch.setattr("companion.evaluation.measure.observe", look)
    return known


def test_against_the_others_a_picture_is_not_measured_with_itself(
    angles: dict[str, float],
) -> None:
    angles |= {"a/r": 9.0, "a/1": 0.0, "a/2": 0.2, "b/r": 9.0, "b/1": 1.0, "b/2": 1.4, "made": 0.1}
    people = [
        Person(name, (Path(name, "r"),), (Path(name, "1"), Path(name, "2"))) for name in ("a", "b")
    ]
    index = pd.DataFrame(
        [("m", "a", "a face", 0, "made")], columns=["method", "person", "prompt", "seed", "image"]
    )
    scores = measure(index, people, quality=False, against="others").identity("Dlib")
    assert scores.images["distance"].tolist() == pytest.approx([1 - np.cos(0.1)])
    assert scores.scale["genuine"].tolist() == pytest.approx([1 - np.cos(0.2), 1 - np.cos(0.4)])
    across = np.mean([1 - np.cos(x) for x in (1.0, 1.4, 0.8, 1.2)])
    assert scores.scale["impostor"].tolist() == pytest.approx([across, across])
    angles["a/2"] = np.nan  # no face in one of them
    found = measure(index, people, quality=False, against="others").identity("Dlib")
    assert found.images["distance"].tolist() == pytest.approx([1 - np.cos(0.1)])
    assert np.isnan(found.scale["genuine"]["a"])
    for angle in np.linspace(0, 3, 20):  # whatever the rounding of a unit vector's length
        angles["a/1"] = angle
        alone = measure(index, people, quality=False, against="others").identity("Dlib")
        assert np.isnan(alone.scale["genuine"]["a"])
    with pytest.raises(FusionError, match="2 other picture"):
        check_scale([people[0], Person("c", (Path("r"),))], "others")


def test_one_person_alone_has_distances_and_no_scale(angles: dict[str, float]) -> None:
    angles |= {"r": 0.0, "made": 0.3}
    index = pd.DataFrame(
        [("m", "a", "", 0, "made")], columns=["method", "person", "prompt", "seed", "image"]
    )
    people = [Person("a", (Path("r"),))]
    scores = measure(index, people, quality=False).identity("Dlib")
    assert scores.images["distance"].tolist() == pytest.approx([1 - np.cos(0.3)])
    table = places(Scale(scores, unseen=False, one="another picture of the same person"))
    assert (str(table["distance"].iloc[0]), str(table.loc["m", "complete"])) == ("–", "–")
    with pytest.raises(FusionError, match="person 'a' needs a reference"):
        measure(index, [Person("a")])
    with pytest.raises(FusionError, match="'a' has no other pictures"):
        measure(index, people, quality=False, against="others")
    with pytest.raises(FusionError, match="needs two people"):
        check_scale([replace(people[0], others=(Path("r"),))])
    with pytest.raises(FusionError, match="No classifier tells age, gender"):
        measure(index, people, quality=False, traits=["gender", "age"])


@pytest.fixture
def scores(angles: dict[str, float]) -> IdentityScores:
    """Six people at right angles or more; "near" is at 0.1 + of the reference, "far" at 1."""
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
    return measure(index, people, quality=False).identity("Dlib")


def test_the_table_has_the_numbers_worked_out_by_hand(scores: IdentityScores) -> None:
    table = places(Scale(scores, unseen=False, one="another picture of the same person"))
    assert list(table.index) == [
        "another person", "far", "near", "another picture of the same person"
    ]  # fmt: skip
    genuine = 1 - np.cos(0.1)
    impostor = np.mean([1 - np.cos(k * np.pi / 3 + 0.1) for k in range(1, 6)])
    near = np.mean([1 - np.cos(0.2 + 0.02 * k) for k in range(6)])
    distance = table["distance"].map(lambda interval: interval.estimate)
    assert distance.to_numpy() == pytest.approx([impostor, 1 - np.cos(1.0), near, genuine])
    recovery = table["complete"].map(lambda interval: interval.estimate)
    assert recovery["near"] == pytest.approx((impostor - near) / (impostor - genuine))
    assert recovery.iloc[0] == 0 and recovery.iloc[-1] == 1
    told = table.loc["near", "complete"]
    assert told.low < recovery["near"] < told.high
    first = (1 - np.cos(0.2) + impostor) / 2  # a face of p0 was lost, and counts as a stranger's
    lost = np.mean([first, *(1 - np.cos(0.2 + 0.02 * k) for k in range(1, 6))])
    composite = table.loc["near", "composite"].estimate
    assert composite == pytest.approx((impostor - lost) / (impostor - genuine))


def test_recovery_is_not_told_of_the_few_who_have_a_scale(scores: IdentityScores) -> None:
    assert np.isfinite(method_recovery(scores, "near").low)
    some = scores.scale.assign(genuine=[0.005] * MIN_PEOPLE + [np.nan])
    told = method_recovery(replace(scores, scale=some), "near")
    assert np.isfinite(told.low), "five are enough"
    few = scores.scale.assign(genuine=[0.005] * 4 + [np.nan] * 2)
    assert str(method_recovery(replace(scores, scale=few), "near")) == "–"
    four = scores.images[scores.images["person"].isin(["p0", "p1", "p2", "p3"])]
    alone = method_recovery(replace(scores, scale=few, images=four), "near")
    assert str(alone) == "–", "nothing is told of four"


def test_methods_are_compared_in_pairs(scores: IdentityScores) -> None:
    difference = paired_difference(scores, "near", "far")
    gains = [np.cos(0.2 + 0.02 * k) - np.cos(1.0) for k in range(6)]
    assert difference.interval.estimate == pytest.approx(np.mean(gains))
    assert (difference.pairs, difference.cells, difference.people) == (11, 12, 6)
    assert difference.verdict == "undecided", "one of six people has a lost face, and might turn it"
    assert difference.ahead == 1 and difference.interval.low > 0
    assert difference.composite and difference.bounds
    assert difference.bounds.low <= difference.composite.low < difference.composite.high
    found = scores.images.assign(distance=scores.images["distance"].fillna(0.02))
    whole = paired_difference(replace(scores, images=found), "near", "far")
    assert whole.verdict == "supported" and whole.composite == whole.interval == whole.bounds
    hedges = np.mean(gains) / np.std(gains, ddof=1) * (1 - 3 / 19)
    assert difference.effect.estimate == pytest.approx(hedges)
    assert list(difference.by_seed) == [0, 1]
    assert difference.by_seed[0] == pytest.approx(np.mean(gains[1:]))  # p0 has no face there
    assert difference.by_seed[1] == pytest.approx(np.mean(gains))
    worse = paired_difference(scores, "far", "near")
    assert worse.interval.high < 0 and worse.ahead == 0
    with pytest.raises(FusionError, match="no method 'other'"):
        paired_difference(scores, "near", "other")


def test_people_whom_a_method_leaves_out_count_as_pairs_without_a_number(
    scores: IdentityScores,
) -> None:
    images = scores.images
    made = images[(images["method"] == "far") | ~images["person"].isin(["p5"])]
    for difference in (
        paired_difference(made.assign(ssim=1.0), "near", "far"),
        paired_difference(made.assign(ssim=1.0), "far", "near"),
    ):
        assert (difference.pairs, difference.cells, difference.people) == (9, 12, 5)


def test_five_people_are_enough_and_four_are_not(scores: IdentityScores) -> None:
    found = scores.images.assign(distance=scores.images["distance"].fillna(0.02))
    images = found[found["person"] != "p5"]
    difference = paired_difference(images, "near", "far")
    assert (difference.pairs, difference.cells, difference.people) == (10, 10, 5)
    assert difference.verdict == "supported"
    four = paired_difference(images[images["person"] != "p4"], "near", "far")
    assert (four.people, four.verdict) == (4, "undecided")


def uneven(**columns: list[float]) -> pd.DataFrame:
    """Two people by two methods: of ada there are three prompts, of ben there is one."""
    cells = [("ada", "one"), ("ada", "two"), ("ada", "three"), ("ben", "one")]
    rows = [(method, *cell, 0) for method in ("new", "old") for cell in cells]
    return pd.DataFrame(rows, columns=["method", "person", "prompt", "seed"]).assign(**columns)


def test_every_person_counts_once_for_each_seed_too() -> None:
    images = uneven(ssim=[0.5, 0.5, 0.5, 0.1, 0.2, 0.2, 0.2, 0.1])
    difference = paired_difference(images, "new", "old", "ssim")
    assert difference.by_seed[0] == difference.interval.estimate == pytest.approx(0.15)
    assert difference.ahead == 0.5, "ben's two are alike, which is not better"


def test_nobody_is_ahead_by_rounding() -> None:
    """0.1 + 0.2 - 0.3 is not 0 in floating point: shares of three traits cancel like that."""
    rows = [
        {"method": method, "person": str(person), "prompt": str(cell), "seed": 0, "ssim": value}
        for method, values in (("a", (0.1, 0.2, 0.0)), ("b", (0.0, 0.0, 0.3)))
        for cell, value in enumerate(values)
        for person in range(6)
    ]
    found = paired_difference(pd.DataFrame(rows), "a", "b", "ssim")
    assert found.interval.estimate != 0 and abs(found.interval.estimate) < 1e-15
    assert found.ahead == 0


@pytest.mark.parametrize("metric", ["style_correct", "followed"])
def test_what_a_prompt_does_not_ask_for_is_no_cell(metric: str) -> None:
    told = [1.0, np.nan, 0.0, 1.0, 0.0, np.nan, np.nan, 0.0]
    images = uneven(**{metric: told})  # "two" asks for nothing; one of "three" cannot be read
    difference = paired_difference(images, "new", "old", metric)
    assert (difference.pairs, difference.cells) == (2, 3)
    assert difference.interval.estimate == 1
    mean = estimate_mean(images, metric, "old")
    assert (mean.pairs, mean.cells) == (2, 2)
    assert paired_difference(images.assign(ssim=told), "new", "old", "ssim").cells == 4


def test_a_copy_among_other_pictures_has_an_infinite_mean() -> None:
    images = uneven(psnr=[20.0, np.inf, 21.0, 22.0, 19.0, 20.0, 21.0, 22.0])
    assert mean_over_people(images, "psnr", "new") == Interval(np.inf, np.inf, np.inf)
    assert mean_over_people(images, "psnr", "old").estimate == 21


def test_a_metric_that_grows_is_compared_the_other_way_round(scores: IdentityScores) -> None:
    images = scores.images.assign(ssim=1 - scores.images["distance"])
    grown, shrunk = (
        paired_difference(images, "near", "far", metric) for metric in ("ssim", "distance")
    )
    assert grown == replace(shrunk, metric="ssim"), "treatments and all"
    images.loc[1, "ssim"] = np.inf  # cannot be paired, and is not silently averaged
    assert paired_difference(images, "near", "far", "ssim").pairs == 10


def test_a_method_without_any_face_is_shown_as_such(scores: IdentityScores) -> None:
    scores.images.loc[scores.images["method"] == "far", "distance"] = np.nan
    table = places(Scale(scores, unseen=False, one="another picture of the same person"))
    assert (str(table.loc["far", "distance"]), str(table.loc["far", "complete"])) == ("–", "–")
    assert table.loc["far", "composite"].estimate == 0, "of strangers all"
    difference = paired_difference(scores, "near", "far")
    assert (difference.pairs, difference.people, difference.verdict) == (0, 0, "undecided")


def test_lost_faces_count_as_strangers_or_as_anything_up_to_the_person(
    scores: IdentityScores,
) -> None:
    """The three treatments, recomputed from the distances by hand."""
    images = scores.images.assign(distance=scores.images["distance"].fillna(0.02))
    lost = images["image"].isin(["p1/near0", "p2/near0"])
    gains = images.pivot(index=["person", "seed"], columns="method", values="distance")
    gains = (gains["far"] - gains["near"]).groupby("person").mean()

    def with_lost(distance: pd.Series) -> float:
        """The mean gain with these distances of p1 and p2 in place of what was lost."""
        filled = images.copy()
        filled.loc[lost, "distance"] = filled.loc[lost, "person"].map(distance)
        cells = filled.pivot(index=["person", "seed"], columns="method", values="distance")
        return float((cells["far"] - cells["near"]).groupby("person").mean().mean())

    table = replace(scores, images=images.assign(distance=images["distance"].mask(lost)))
    difference = paired_difference(table, "near", "far")
    assert (difference.pairs, difference.cells) == (10, 12)
    assert difference.composite and difference.bounds
    strangers, person = scores.scale["impostor"], scores.scale["genuine"]
    assert difference.composite.estimate == pytest.approx(with_lost(strangers))
    assert difference.bounds.low < with_lost(np.maximum(strangers, person))
    assert difference.bounds.high > with_lost(np.minimum(strangers, person))


def test_distances_to_unseen_pictures_and_to_strangers_are_what_loops_give() -> None:
    rng = np.random.default_rng(0)

    def units(count: int) -> NDArray[np.float64]:
        rows = rng.normal(size=(count, 8))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    references, others, made = units(5), units(9), units(6)
    references[3], made[5] = np.nan, np.nan
    owners, whose = np.array([0, 0, 1, 1, 2, 2, 3, 4, 4]), np.array([0, 1, 2, 3, 4, 0])
    alike = np.array([2, -1, 0, 4, 3])
    columns, ends = _further_distances(made, whose, references, others, owners, alike)
    for row, person in enumerate(whose[:5]):
        far = [1 - made[row] @ reference for reference in references]
        strange = [d for other, d in enumerate(far) if other not in (person, 3)]
        assert columns["strangers"][row] == pytest.approx(np.mean(strange))
        unseen = [1 - made[row] @ other for other in others[owners == person]]
        assert columns["unseen"][row] == pytest.approx(np.mean(unseen))
        if person == 3:
            assert np.isnan(columns["rank"][row]), "no face in the reference"
        else:
            assert columns["rank"][row] == 1 + sum(d < far[person] for d in strange)
        known = alike[person] >= 0 and alike[person] != 3
        assert np.isfinite(columns["swapped"][row]) == known
        if known:
            assert columns["swapped"][row] == pytest.approx(far[alike[person]])
    assert all(np.isnan(values[5]) for values in columns.values()), "no face in the picture"
    for person in (0, 1, 2, 4):
        own = [1 - references[person] @ other for other in others[owners == person]]
        assert ends["unseen_genuine"][person] == pytest.approx(np.mean(own))
        rest = [
            1 - references[stranger] @ other
            for stranger in range(5)
            if stranger not in (person, 3)
            for other in others[owners == person]
        ]
        assert ends["unseen_impostor"][person] == pytest.approx(np.mean(rest))


def audit(people: int) -> pd.DataFrame:
    known = load_people(HELDOUT, people, others=5)
    return measure(picture_pairs(known), known, recognisers=[], progress=False).images


def check_audit(pairs: pd.DataFrame) -> None:
    """PSNR left in 8 bits moves little, proper PSNR much; both rise with SSIM."""
    measured = pairs.dropna(subset=["ssim"])
    proper, wrapped = measured["psnr"], measured["psnr_8bit_overflow"]
    assert wrapped.between(27.5, 28.5).mean() > 0.8 and 27.5 < wrapped.mean() < 28.5
    assert proper.std() > 5 * wrapped.std() and proper.max() < wrapped.min()
    assert proper.max() - proper.min() > 8
    different = measured[measured["method"] == "another person"]
    assert different["psnr_8bit_overflow"].between(27.5, 28.5).mean() > 0.95
    correlation = measured[["psnr", "psnr_8bit_overflow", "ssim"]].corr()["ssim"]
    assert correlation["psnr"] > correlation["psnr_8bit_overflow"] > 0
    facts = overflow_facts(pairs)
    assert facts["pairs of faces"].startswith(f"{len(measured)} of {len(pairs)} ")
    assert facts["correlation of PSNR with SSIM"].startswith(f"{correlation['psnr']:.2f} [")


def test_printed_values_are_placed_among_pairs_of_their_ssim() -> None:
    rising = np.linspace(0.3, 0.9, 100)
    pairs = pd.DataFrame(
        {"ssim": rising, "psnr": 10 + 10 * rising, "psnr_8bit_overflow": 27.9 + rising}
    )
    rows = [("a", 28.3, 0.4), ("b", 14.0, 0.4), ("c", 30.0, 0.4), ("d", 28.0, 0.1)]
    quoted = pd.DataFrame(
        [
            {"row": row, "column": column, "value": value}
            for row, psnr, ssim in rows
            for column, value in (("PSNR", psnr), ("SSIM", ssim))
        ]
    )
    above, within = list(overflow_facts(pairs, quoted).values())[-2:]
    few = "(1 have fewer than 5 such pairs)"
    assert (above, within) == (f"2 of 4 {few}", f"1 of 4 {few}")
    assert len(overflow_facts(pairs)) == len(overflow_facts(pairs, quoted)) - 2
    high = quoted.replace({"value": {28.3: 14.4}})  # among the highest of its pairs, not above them
    assert list(overflow_facts(pairs, high).values())[-2] == f"1 of 4 {few}"


def test_psnr_left_in_8_bits_loses_the_scale_and_rises_with_likeness() -> None:
    check_audit(audit(12))
    with pytest.raises(FusionError, match="Ten measured pairs"):
        overflow_facts(pd.DataFrame({"ssim": [], "psnr": [], "psnr_8bit_overflow": []}))
    with pytest.raises(FusionError, match="two people"):
        picture_pairs(load_people(HELDOUT, 1))


def test_a_trait_is_kept_where_the_classifier_sees_what_it_sees_in_the_reference(
    tmp_path: Path,
) -> None:
    people = load_people(HELDOUT, 12, only={"style": "photo"})
    genders = [json.loads(each.references[0].with_suffix(".json").read_text()) for each in people]
    first = people[0]
    other = next(
        person
        for person, record in zip(people, genders, strict=True)
        if record["gender"] != genders[0]["gender"]
    )
    nobody = save_png(Image.new("RGB", (128, 128)), tmp_path / "nobody.png")
    rows = [("copy", first.references[0]), ("stranger", other.references[0]), ("nobody", nobody)]
    index = pd.DataFrame(
        [(method, first.name, "a photo of a person", 0, str(path)) for method, path in rows],
        columns=["method", "person", "prompt", "seed", "image"],
    )
    profile = load_profile("embedded")
    found = measure(
        index,
        [first, other],
        quality=False,
        classifiers={"classifier": profile.classifier},
        traits=["gender", "hair_color"],
        progress=False,
    )
    images = with_likeness_kept(found.images).set_index("method")
    assert images.loc["copy", ["gender_kept", "hair_color_kept", "likeness"]].tolist() == [1, 1, 1]
    assert images.loc["stranger", "gender_kept"] == 0
    assert np.isnan(images.loc["nobody", "gender_kept"]), "nothing is kept or lost without a face"
    assert images.loc["stranger", "likeness"] == images.loc["stranger", "hair_color_kept"] / 2
    assert {"gender_kept", "style_correct"} <= set(found.metrics)
    assert "gender kept ↑" in traits_table(found.images, "here").data
    with pytest.raises(FusionError, match="No trait"):
        with_likeness_kept(index)


@pytest.mark.slow
def test_psnr_left_in_8_bits_loses_the_scale_for_a_thousand_pairs() -> None:
    pairs = audit(100)
    assert len(pairs) == 1200 and pairs["ssim"].notna().sum() > 950
    check_audit(pairs)


def test_everything_is_measured_at_once(
    classifier: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A copy of the reference, another person and no face, against numbers made by hand."""
    people = load_people(HELDOUT, 2, only={"style": "photo"})
    Image.new("RGB", (128, 128)).save(tmp_path / "nobody.png")
    copy, stranger = people[0].references[0], people[1].references[0]
    rows = [("copy", copy), ("stranger", stranger), ("nobody", tmp_path / "nobody.png")]
    index = pd.DataFrame(
        [(method, people[0].name, "a laughing face", 0, str(path)) for method, path in rows],
        columns=["method", "person", "prompt", "seed", "image"],
    )
    found = measure(
        index,
        people,
        clip=str(tiny_checkpoint / "clip"),
        classifiers={"expression": str(classifier)},
        progress=False,
    )
    images = found.images.set_index("method")
    assert images["face"].tolist() == [True, True, False]
    pictures = [load_image(path) for path in (stranger, copy)]
    assert images["distance Dlib"]["copy"] == pytest.approx(0, abs=1e-6)
    expected = verify(*pictures, "Dlib")
    assert images["distance Dlib"]["stranger"] == pytest.approx(expected, abs=1e-6)
    assert (images["ssim"]["copy"], images["psnr"]["copy"]) == (1, np.inf)
    regions = [face_region(picture, find_face(picture).eyes) for picture in pictures]  # type: ignore[union-attr,arg-type]
    for metric in (ssim, psnr, psnr_8bit_overflow):
        assert images[metric.__name__]["stranger"] == pytest.approx(metric(*regions))
    alone = images.loc["nobody"]
    assert alone[["distance Dlib", "ssim", "psnr"]].isna().all()
    assert images["clip_score"].notna().all() and images["expression_correct"].isin([0, 1]).all()
    assert found.metrics == [
        "distance Dlib", "clip_score", "ssim", "psnr", "psnr_8bit_overflow", "skin_difference",
        "expression_correct",
    ]  # fmt: skip
    assert images["skin_difference"]["copy"] == 0 < images["skin_difference"]["stranger"]
    assert images["found_by"].tolist()[:2] == ["dlib", "dlib"] and alone.isna()["found_by"]
    labelled = index.assign(expression=["angry", None, "laughing"])
    again = measure(labelled, people, quality=False, classifiers={"expression": str(classifier)})
    assert again.images["expression_correct"].isna().tolist() == [False, True, False]
