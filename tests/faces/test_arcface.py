"""Faces as insightface sees them: found, laid on the template, turned into a vector."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.transform import SimilarityTransform

from companion.faces.arcface import TEMPLATE, FaceEmbedder, align, load_embedder
from fusionlib.errors import FusionError, NoFaceError
from fusionlib.inputs.photos import find_faces
from fusionlib.profiles import ROOT
from tests.helpers.insightface_files import POINTS, recogniser_matrix, write_detector, write_packs

HELDOUT = ROOT / "data" / "heldout"


def bright(x: int, y: int, size: tuple[int, int] = (320, 320), side: int = 8) -> Image.Image:
    """Black, with a white square from a point on."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (x, y, x + side, y + side))
    return image


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packs(tmp_path_factory.mktemp("insightface"))


@pytest.mark.parametrize("size", [112, 224])
def test_alignment_is_insightfaces(size: int) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (20, 25, 3), np.uint8))
    image = coarse.resize((500, 400), Image.Resampling.BICUBIC)
    points = TEMPLATE @ np.array([[1.9, 0.5], [-0.5, 1.9]]) + (150, 40) + rng.normal(0, 2, (5, 2))
    # As insightface does it, by the two libraries it calls.
    transform = SimilarityTransform.from_estimate(points, TEMPLATE * (size / 112))
    expected = cv2.warpAffine(np.asarray(image), transform.params[:2], (size, size))
    aligned = np.asarray(align(image, points, size)).astype(int)
    # OpenCV places samples on a grid of 1/32 pixel.
    assert np.abs(aligned - expected).max() <= 4 and np.abs(aligned - expected).mean() < 0.5


def test_points_go_where_the_template_has_them() -> None:
    points = TEMPLATE * 2 + (40, 30)
    image = Image.new("RGB", (320, 320))
    for x, y in points:
        image.paste((255, 255, 255), (round(x) - 2, round(y) - 2, round(x) + 3, round(y) + 3))
    aligned = np.asarray(align(image, points).convert("L"))
    for x, y in TEMPLATE:
        assert aligned[round(y), round(x)] > 200
    assert (aligned > 100).sum() < 5 * 16
    with pytest.raises(FusionError, match="cannot be aligned"):
        align(image, np.ones((5, 2)))


@pytest.mark.parametrize("size", [(320, 320), (320, 160), (160, 320), (640, 640)])
def test_a_face_is_found_where_it_is(packs: Path, size: tuple[int, int]) -> None:
    scale = 640 / max(size)
    face = FaceEmbedder("buffalo_l", packs / "buffalo_l").find(bright(96, 64, size))
    assert np.abs(face.points.mean(0) - (96, 64)).max() <= 8  # an anchor of a bright cell
    assert np.allclose(face.points - face.points.mean(0), POINTS * 8 / scale, atol=0.01)
    assert np.allclose(face.box[2:] - face.box[:2], 2 * 5 * 8 / scale) and face.score > 0.9


def test_of_overlapping_finds_the_strongest_stays_and_the_largest_of_all_counts(
    packs: Path,
) -> None:
    from companion.faces import arcface as face_embedding

    embedder = FaceEmbedder("buffalo_l", packs / "buffalo_l")
    image = bright(64, 64, (640, 640), side=16)  # four cells, eight anchors
    image.paste((250, 250, 250), (320, 320, 328, 328))
    found = face_embedding._detect(embedder._detector, image, 640)
    assert len(found) == 2 and found[0].score > found[1].score


def test_a_vector_is_what_the_network_makes_of_the_aligned_face(packs: Path) -> None:
    embedder = FaceEmbedder("antelopev2", packs / "antelopev2")
    rng = np.random.default_rng(1)
    image = bright(96, 64)
    image.paste(Image.fromarray(rng.integers(0, 90, (100, 320, 3), np.uint8)), (0, 100))
    face = embedder.find(image)
    pixels = (np.asarray(align(image, face.points), float) - 127.5) / 127.5
    small = pixels.reshape(7, 16, 7, 16, 3).mean((1, 3)).transpose(2, 0, 1)  # red comes first
    expected = small.ravel() @ recogniser_matrix(1)
    vector = embedder.embed(image)
    assert vector.shape == (512,) and np.allclose(vector, expected, atol=1e-4)
    assert not np.allclose(FaceEmbedder("arc2face", embedder.folder).embed(image), expected)


def test_a_face_too_large_for_the_first_frame_is_sought_in_smaller_ones(
    packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from companion.faces import arcface as face_embedding

    tried, detect = [], face_embedding._detect

    def blind_at_first(detector, image, side):  # type: ignore[no-untyped-def]
        tried.append(side)
        return detect(detector, image, side) if side < 640 else []

    monkeypatch.setattr(face_embedding, "_detect", blind_at_first)
    assert FaceEmbedder("buffalo_l", packs / "buffalo_l").find(bright(96, 64)).score > 0.9
    assert tried == [640, 320]


def test_a_detector_of_one_size_is_given_that_size(tmp_path: Path, packs: Path) -> None:
    write_detector(tmp_path / "det_10g.onnx", side=320)
    (tmp_path / "w600k_r50.onnx").symlink_to(packs / "buffalo_l" / "w600k_r50.onnx")
    assert FaceEmbedder("buffalo_l", tmp_path).find(bright(96, 64)).score > 0.9


def test_what_is_missing_is_said_with_the_remedy(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FusionError, match=r"no det_10g.onnx in .*unpack https.*buffalo_l\.zip"):
        FaceEmbedder("buffalo_l", tmp_path)
    embedder = FaceEmbedder("buffalo_l", packs / "buffalo_l")
    with pytest.raises(NoFaceError, match=r"Reference 2 \(64 x 64 pixels\) shows no face"):
        embedder.find(Image.new("RGB", (64, 64)), "Reference 2")
    (tmp_path / "det_10g.onnx").write_bytes(b"html")
    (tmp_path / "w600k_r50.onnx").write_bytes(b"html")
    with pytest.raises(FusionError, match="det_10g.onnx is damaged"):
        FaceEmbedder("buffalo_l", tmp_path).find(bright(0, 0))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FusionError, match="pip install onnxruntime"):
        FaceEmbedder("buffalo_l", packs / "buffalo_l").find(bright(0, 0))


def test_dlibs_vector_and_the_points_that_it_does_not_mark() -> None:
    """The held-out people: eyes and nose where they are, a mouth below, and the person known."""
    embedder = load_embedder("buffalo_l", "dlib")
    names = ("0000_0", "0000_1", "0001_0", "0002_0")
    pictures = [Image.open(HELDOUT / f"{name}.jpg").convert("RGB") for name in names]
    vectors = []
    for picture in pictures:
        face = embedder.find(picture)
        left, right, nose, *mouth = face.points
        assert left[0] < nose[0] < right[0] and abs(left[1] - right[1]) < 15
        assert all(corner[1] > nose[1] for corner in mouth) and mouth[0][0] < mouth[1][0]
        (known,) = find_faces(picture)
        np.testing.assert_allclose(face.points[:3] + 0.5, [*known.eyes, known.nose])
        vector = embedder.embed(picture, face)
        assert vector.shape == (embedder.width,)
        vectors.append(vector / np.linalg.norm(vector))
    same, *others = (float(vectors[0] @ other) for other in vectors[1:])
    assert same > max(others)
    with pytest.raises(NoFaceError, match="Reference 1 .* shows no face"):
        embedder.find(Image.new("RGB", (128, 128)), "Reference 1")
