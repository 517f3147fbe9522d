"""Glasses: frames of several shapes with thin, coloured rims, a bridge and temples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from companion.people.appearance import Appearance
from companion.people.mesh import Mesh, join, tube

Array = np.ndarray


@dataclass(frozen=True)
class _Frame:
    """Shape of a lens and its rim.

    Attributes:
        width: Half width in metres.
        height: Half height in metres.
        power: Exponent of the outline; 2 is an ellipse, more is squarer.
        rim: Radius of the rim in metres.
        flick: Rise of the outer corner.
        sag: Drop of the outer lower corner.
    """

    width: float
    height: float
    power: float
    rim: float
    flick: float = 0.0
    sag: float = 0.0


FRAMES: dict[str, _Frame] = {
    "round": _Frame(0.0225, 0.0215, 2.0, 0.00095),
    "square": _Frame(0.0255, 0.0180, 4.5, 0.0015, sag=0.08),
    "rimless": _Frame(0.0240, 0.0165, 2.8, 0.00035, sag=0.05),
    "cat-eye": _Frame(0.0255, 0.0175, 2.7, 0.0014, flick=0.30, sag=0.06),
    "aviator": _Frame(0.0265, 0.0205, 2.5, 0.0007, flick=0.05, sag=0.25),
}


def glasses_mesh(person: Appearance, eyes: tuple[Array, Array], front: float) -> Mesh | None:
    """Return a person's glasses, or None if they wear none.

    Args:
        person: Person whose glasses they are.
        eyes: Centres of the left and the right eye, (3,) in metres.
        front: y of the bridge of the nose in metres, which the frame must clear.
    """
    if person.glasses == "none":
        return None
    frame, color = FRAMES[person.glasses], np.asarray(person.glasses_color)
    if person.glasses == "rimless":
        color = 0.5 * color + 0.32
    angle = np.linspace(0, 2 * np.pi, 57)
    cos, sin = np.cos(angle), np.sin(angle)
    ox = np.sign(cos) * np.abs(cos) ** (2 / frame.power) * frame.width
    oz = np.sign(sin) * np.abs(sin) ** (2 / frame.power) * frame.height
    oz = oz - frame.sag * np.clip(-oz, 0, None) * (ox / frame.width)
    level = (eyes[0][2] + eyes[1][2]) / 2 - 0.0015
    apart = max((eyes[0][0] - eyes[1][0]) / 2, frame.width + 0.0065)
    pieces = []
    for sign in (1.0, -1.0):
        x = apart + ox
        z = level + oz + frame.flick * np.clip(ox, 0, None) ** 2 / frame.width * (oz > -0.004)
        # The frame bends back along the face and leans in at the bottom.
        y = front + 0.55 * np.clip(x - 0.010, 0, None) ** 2 / 0.06 - 0.10 * (z - level)
        pieces.append(tube(np.stack([sign * x, y, z], 1), frame.rim, color))
        corner = int(np.argmax(x + 0.5 * (z - level)))
        hinge = np.array([sign * x[corner], y[corner], z[corner]])
        side = sign * max(0.0775, abs(hinge[0]) + 0.002)
        t = np.linspace(0, 1, 9)
        temple = np.stack(
            [
                hinge[0] + (side - hinge[0]) * np.clip(4 * t, 0, 1),
                hinge[1] + (-0.040 - hinge[1]) * t,
                hinge[2] + (level + 0.006 - hinge[2]) * t,
            ],
            1,
        )
        pieces.append(tube(temple, max(frame.rim, 0.0007), color))
    t = np.linspace(-1, 1, 11)
    reach = apart - frame.width + 0.0012
    arch = np.stack(
        [reach * t, front - 0.0012 * (1 - t**2), level + 0.004 + 0.0022 * (1 - t**2)], 1
    )
    pieces.append(tube(arch, max(frame.rim, 0.0007), color))
    if person.glasses == "aviator":
        bar = np.stack(
            [1.6 * reach * t, front + 0 * t, np.full(11, level + 0.55 * frame.height + 0.004)], 1
        )
        pieces.append(tube(bar, frame.rim, color))
    return join(pieces)
