"""Faces that another detector found, framed as dlib's detector frames them.

A recogniser sees what lies in the detector's box, so that another box is another embedding. dlib's
box follows from where eyes and nose lie, but for the steps of its image pyramid; so it can be
computed from the points of any detector that finds them. Everything here is counted in distances
between the eyes, so that it holds for faces of all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[int, int, int, int]
"""``(x, y, width, height)`` in pixels."""

Point = tuple[int, int]


@dataclass(frozen=True)
class Framing:
    """How dlib's eyes and box follow from the points of another detector.

    The unit of all lengths is the distance between the eyes as the other detector sees them; "drop"
    is the distance of the nose from the middle between the eyes, so that a head that turns, whose
    eyes come nearer to each other, keeps its size.

    Attributes:
        eyes: Shift from the other detector's eyes to dlib's, to the picture's right and downwards.
        side: Weights of the eyes' distance and of the drop whose sum is the side of the box.
        down: Weights of both whose sum is how far below the eyes' middle the box has its centre,
            along the face's own axis.
        across: Shift of the box's centre to the picture's right.
    """

    eyes: tuple[float, float]
    side: tuple[float, float]
    down: tuple[float, float]
    across: float

    def frame(
        self, left: ArrayLike, right: ArrayLike, nose: ArrayLike
    ) -> tuple[Box, tuple[Point, Point]]:
        """The box and the eyes that dlib would give, in whole pixels as dlib gives them.

        Args:
            left: ``(x, y)`` of the eye on the picture's left, in pixels.
            right: The same of the eye on its right.
            nose: The same of the nose.

        Returns:
            The box, which may reach over the picture's edge, and the eyes on the left and right.
        """
        seen = measure_points(left, right, nose)
        first, second = (
            np.asarray(eye, dtype=float) + np.array(self.eyes) * seen.apart for eye in (left, right)
        )
        side = seen.sizes @ np.array(self.side)
        below = seen.sizes @ np.array(self.down)
        centre = (first + second) / 2 + below * seen.axis + (self.across * seen.apart, 0.0)
        x, y = np.rint(centre - side / 2).astype(int).tolist()
        whole = int(np.rint(side))
        a, b = (np.rint(eye).astype(int).tolist() for eye in (first, second))
        return (x, y, whole, whole), ((a[0], a[1]), (b[0], b[1]))


MTCNN = Framing(eyes=(-0.076, -0.040), side=(2.077, 0.621), down=(0.360, 0.219), across=-0.023)
"""Fitted by `companion.pages.two_detectors.fit_framing` on the 397 renders of photographs of the
first 99 held-out people in which both detectors find a face; the other people show that it holds.
The shift of the eyes is mostly MTCNN's: in a mirrored picture it finds them on the other side."""


@dataclass(frozen=True)
class MeasuredPoints:
    """What a `Framing` is computed from.

    Attributes:
        apart: Distance between the eyes.
        sizes: ``(2,)``: that distance, and that of the nose from the middle between the eyes.
        axis: ``(2,)``: unit vector from the eyes down the face.
    """

    apart: float
    sizes: NDArray[np.float64]
    axis: NDArray[np.float64]


def measure_points(left: ArrayLike, right: ArrayLike, nose: ArrayLike) -> MeasuredPoints:
    """Measure eyes and nose, given as to `Framing.frame`."""
    a, b, tip = (np.asarray(point, dtype=float) for point in (left, right, nose))
    across = b - a
    apart = float(np.linalg.norm(across)) or 1.0  # eyes in one point: no direction, and no error
    drop = float(np.linalg.norm(tip - (a + b) / 2))
    return MeasuredPoints(apart, np.array([apart, drop]), np.array([-across[1], across[0]]) / apart)
