"""Face embeddings that the compared systems take an identity from: ArcFace's, or dlib's.

The published systems were trained on ArcFace as insightface publishes it, so a face is found,
aligned to a template and scaled as in insightface, with its own ONNX files, which onnxruntime runs.
They are where that package puts them: ``~/.insightface/models/buffalo_l`` and ``.../antelopev2``.
The embedded counterparts are trained on dlib's recogniser, which comes with a Python package and
tells synthetic people apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionlib.errors import FusionError, NoFaceError
from fusionlib.support.paths import user_path
from fusionlib.support.provenance import sha256_file

TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Place ``(x, y)`` of the left and the right eye in the picture, the nose and the corners of the
mouth, in a face of 112 x 112 pixels."""

SIDES = (640, 320, 160)
"""Sides of the frames into which a picture is fitted for the detector, in pixels. The first is
insightface's; a face that fills the picture is too large for it, and is found in a smaller one."""

THRESHOLD, OVERLAP = 0.5, 0.4
"""Least score of a face, and the overlap of two faces above which the weaker one is dropped."""

STRIDES = (8, 16, 32)
"""Pixels between the detector's anchors, at each of its levels."""


@dataclass(frozen=True)
class Pack:
    """A set of files of insightface.

    Attributes:
        detector: File of the SCRFD detector with five landmarks.
        recogniser: File of the ArcFace network.
        remedy: What to do to get them.
    """

    detector: str
    recogniser: str
    remedy: str


_RELEASE = "https://github.com/deepinsight/insightface/releases/download/v0.7"

PACKS = {
    "buffalo_l": Pack(
        "det_10g.onnx", "w600k_r50.onnx", f"download and unpack {_RELEASE}/buffalo_l.zip"
    ),
    "antelopev2": Pack(
        "scrfd_10g_bnkps.onnx", "glintr100.onnx", f"download and unpack {_RELEASE}/antelopev2.zip"
    ),
    # Arc2Face's own ArcFace, trained on WebFace42M, goes beside antelopev2's detector.
    "arc2face": Pack(
        "scrfd_10g_bnkps.onnx",
        "arcface.onnx",
        f"download and unpack {_RELEASE}/antelopev2.zip, and run "
        "`hf download FoivosPar/Arc2Face arcface.onnx --local-dir` with that folder",
    ),
}
"""Which files each set consists of; all are for non-commercial research only."""


@dataclass(frozen=True)
class FoundFace:
    """A face in a picture.

    Attributes:
        box: Left, top, right and bottom edge, ``(4,)``, in pixels.
        points: x and y of `TEMPLATE`'s five points, ``(5, 2)``, in pixels.
        score: The detector's score, from 0 to 1.
    """

    box: NDArray[np.float64]
    points: NDArray[np.float64]
    score: float


class Embedder(Protocol):
    """What a system needs of a face recogniser; see `FaceEmbedder`."""

    @property
    def width(self) -> int:
        """Length of a vector."""
        ...

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hashes that identify its weights."""
        ...

    @property
    def needs(self) -> str:
        """Folder of its weights."""
        ...

    def find(self, image: Image.Image, what: str = "The picture") -> FoundFace:
        """Find the largest face."""
        ...

    def embed(self, image: Image.Image, face: FoundFace | None = None) -> NDArray[np.float32]:
        """The vector of a face, ``(width,)``."""
        ...


def load_embedder(pack: str, faces: str | Path | None = None) -> Embedder:
    """The recogniser that a system reads a face with.

    Args:
        pack: Name of insightface's files in `PACKS`.
        faces: Folder of these files, by default where insightface puts them; or ``"dlib"``.

    Raises:
        FusionError: A file or package is missing.
    """
    return DlibEmbedder() if faces == "dlib" else FaceEmbedder(pack, faces)


class DlibEmbedder:
    """Finds the largest face of a picture, and turns it into dlib's vector, through DeepFace.

    Raises:
        FusionError: The weights of dlib are not installed.
    """

    width = 128
    needs = "dlib"

    def __init__(self) -> None:
        from companion.faces.recognisers import load_recogniser

        self._recogniser = load_recogniser("Dlib")
        self.fingerprint = {"Dlib": self._recogniser.fingerprint}

    def find(self, image: Image.Image, what: str = "The picture") -> FoundFace:
        """Find the largest face.

        The detector of dlib marks eyes and nose; the corners of the mouth are `TEMPLATE`'s, after
        the turn, shift and scale that bring its eyes and nose to those of the face.

        Args:
            image: RGB, of any size.
            what: Name of the picture, for an error.

        Raises:
            NoFaceError: There is none.
        """
        from fusionlib.inputs.photos import find_faces

        faces = find_faces(image)
        if not faces:
            raise NoFaceError(
                f"{what} ({image.width} x {image.height} pixels) shows no face that dlib's "
                "detector finds: give one that is upright, looks at the camera and is not cut off."
            )
        face = max(faces, key=lambda face: face.side)
        known = np.array([*face.eyes, face.nose]) - 0.5  # pixels' middles are whole numbers here
        turn, shift = _similarity(TEMPLATE[:3], known)
        mouth = (TEMPLATE[3:] @ (1, 1j)) * turn + shift
        points = np.concatenate([known, np.stack([mouth.real, mouth.imag], axis=1)])
        return FoundFace(np.array(face.box), points, face.score)

    def embed(self, image: Image.Image, face: FoundFace | None = None) -> NDArray[np.float32]:
        """The vector of the largest face, ``(128,)``, not normalised.

        Args:
            image: RGB, of any size.
            face: Not used: DeepFace finds and turns the face in its own way.

        Raises:
            NoFaceError: There is no face.
        """
        from companion.faces.aligned import find_face

        found = find_face(image, "dlib")
        vector = None if found is None else self._recogniser.read(image, found)
        if vector is None:
            raise NoFaceError("DeepFace's detector dlib finds no face in the picture.")
        return np.asarray(vector, np.float32)


def _similarity(given: NDArray[Any], wanted: NDArray[Any]) -> tuple[complex, complex]:
    """Least-squares turn and shift that bring points to others, as ``turn * p + shift``."""
    source, goal = given @ (1, 1j), wanted @ (1, 1j)
    spread = source - source.mean()
    turn = complex(np.vdot(spread, goal) / np.vdot(spread, spread))
    return turn, complex(goal.mean() - turn * source.mean())


class FaceEmbedder:
    """Finds the largest face of a picture, and turns it into ArcFace's vector.

    Args:
        pack: A name in `PACKS`.
        folder: Folder with the pack's two files; by default where insightface puts them.

    Raises:
        FusionError: A file, or onnxruntime, is missing.
    """

    width = 512

    def __init__(self, pack: str, folder: str | Path | None = None) -> None:
        self.pack = PACKS[pack]
        home = "antelopev2" if pack == "arc2face" else pack
        default = Path.home() / ".insightface" / "models" / home
        self.folder = user_path(folder) if folder else default
        for file in (self.pack.detector, self.pack.recogniser):
            if not (self.folder / file).is_file():
                raise FusionError(
                    f"There is no {file} in {self.folder}: {self.pack.remedy}, or give faces= the "
                    "folder that holds it."
                )

    @property
    def needs(self) -> str:
        """Folder of its files."""
        return str(self.folder)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hash of each file."""
        files = (self.pack.detector, self.pack.recogniser)
        return {file: sha256_file(self.folder / file) for file in files}

    @cached_property
    def _detector(self) -> Any:
        return _session(self.folder / self.pack.detector)

    @cached_property
    def _recogniser(self) -> Any:
        return _session(self.folder / self.pack.recogniser)

    def find(self, image: Image.Image, what: str = "The picture") -> FoundFace:
        """Find the largest face.

        Args:
            image: RGB, of any size.
            what: Name of the picture, for an error.

        Raises:
            NoFaceError: There is none.
        """
        fixed = self._detector.get_inputs()[0].shape[-1]
        for side in (fixed,) if isinstance(fixed, int) else SIDES:
            faces = _detect(self._detector, image.convert("RGB"), side)
            if faces:
                return max(faces, key=lambda face: np.prod(face.box[2:] - face.box[:2]))
        raise NoFaceError(
            f"{what} ({image.width} x {image.height} pixels) shows no face that insightface's "
            "detector finds: give one that is upright, looks at the camera and is not cut off."
        )

    def embed(self, image: Image.Image, face: FoundFace | None = None) -> NDArray[np.float32]:
        """ArcFace's vector of a face, ``(512,)``, not normalised.

        Args:
            image: RGB, of any size.
            face: Face in the picture; by default the largest.

        Raises:
            NoFaceError: There is no face.
        """
        face = face or self.find(image)
        pixels = (np.asarray(align(image, face.points), np.float32) - 127.5) / 127.5
        feed = {self._recogniser.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]}
        vector: NDArray[np.float32] = self._recogniser.run(None, feed)[0][0]
        return vector


def align(image: Image.Image, points: NDArray[np.float64], size: int = 112) -> Image.Image:
    """Turn, shift and scale a picture so that a face's five points lie on the template.

    Args:
        image: RGB.
        points: ``(5, 2)``, in pixels; the centre of a pixel is a whole number, as in OpenCV.
        size: Side of the result; the template is scaled to it.

    Raises:
        FusionError: All points are in one place.
    """
    if np.abs(points - points.mean(axis=0)).max() < 1e-6:
        raise FusionError(f"The face cannot be aligned: its five points are {points.tolist()}.")
    turn, shift = _similarity(points, TEMPLATE * (size / 112))
    # Pillow wants the inverse, between points that are whole numbers at the pixels' corners.
    back = 1 / turn
    offset = -shift * back + (0.5 + 0.5j) * (1 - back)
    coefficients = (back.real, -back.imag, offset.real, back.imag, back.real, offset.imag)
    return image.convert("RGB").transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )


def _session(path: Path) -> Any:
    """An ONNX file, ready to run on one thread, so that sums are the same on every CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise FusionError(
            "ArcFace needs onnxruntime, which is not installed: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise FusionError(f"{path} is damaged or no ONNX file: download it again.") from error


def _detect(detector: Any, image: Image.Image, side: int) -> list[FoundFace]:
    """The faces that SCRFD finds in a picture fitted into the upper left of a black square."""
    scale = side / max(image.size)
    fitted = image.resize(
        (max(1, int(image.width * scale)), max(1, int(image.height * scale))),
        Image.Resampling.BILINEAR,
    )
    frame = Image.new("RGB", (side, side))
    frame.paste(fitted)
    pixels = (np.asarray(frame, np.float32) - 127.5) / 128
    outputs = detector.run(None, {detector.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})
    boxes, points, scores = [], [], []
    for level, stride in enumerate(STRIDES):
        score, box, point = (outputs[level + 3 * kind] for kind in range(3))
        # Two anchors at each position, row by row; distances from there in strides.
        rows, columns = np.mgrid[: side // stride, : side // stride] * stride
        anchors = np.repeat(np.stack([columns.ravel(), rows.ravel()], axis=1), 2, axis=0)
        good = score.reshape(-1) >= THRESHOLD
        anchor = anchors[good]
        reach = box.reshape(-1, 4)[good] * stride
        boxes.append(np.concatenate([anchor - reach[:, :2], anchor + reach[:, 2:]], axis=1))
        points.append(anchor[:, None] + point.reshape(-1, 5, 2)[good] * stride)
        scores.append(score.reshape(-1)[good])
    every = zip(
        np.concatenate(boxes) / scale,
        np.concatenate(points) / scale,
        np.concatenate(scores),
        strict=True,
    )
    kept: list[FoundFace] = []
    for box, point, score in sorted(every, key=lambda find: -find[2]):
        if all(_overlap(box, other.box) <= OVERLAP for other in kept):
            kept.append(FoundFace(box.astype(float), point.astype(float), float(score)))
    return kept


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Intersection over union of two boxes."""
    common = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = np.prod(np.maximum(common, 0))
    union = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both
    return float(both / union) if union > 0 else 0.0
