"""Head and shoulders of the `anny` body as one linear model.

`anny` takes seconds to load and computes a whole body. A picture needs the upper body only, so the
blend shapes of its vertices are copied once for each process; a face is then one matrix product.

Coordinates are those of `anny`: metres, x to the person's left, y backwards, z up. Every skull is
aligned with the template's by a similarity transform, so that all pictures are framed alike and
size does not tell people apart.
"""

from __future__ import annotations

import contextlib
import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from companion.people.appearance import Appearance
from companion.people.colors import stream
from companion.people.requirements import require
from fusionlib.errors import FusionError

Array = np.ndarray


def _both(**actions: float) -> dict[str, float]:
    """Return the actions of both sides for the names that they share."""
    return {f"{name}{side}": value for name, value in actions.items() for side in ("Left", "Right")}


# Facial actions of each expression at full strength; 1 is the limit that `anny` names.
EXPRESSION_ACTIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "laughing": {
        **_both(mouthSmile=1.25, mouthUpperUp=0.85, mouthLowerDown=0.35, mouthDimple=0.35),
        **_both(cheekSquint=1.0, eyeSquint=0.42, browOuterUp=0.35, mouthStretch=0.30),
        "jawOpen": 0.30,
    },
    "angry": {
        **_both(browDown=1.6, noseSneer=0.4, eyeWide=0.4, browOuterUp=0.35),
        **_both(mouthFrown=0.25, mouthStretch=0.5, mouthUpperUp=0.6, mouthLowerDown=1.0),
        "jawForward": 0.4,
        "jawOpen": 0.16,
    },
    "crying": {
        **_both(mouthFrown=0.95, mouthStretch=0.45, mouthLowerDown=0.5, cheekSquint=0.5),
        **_both(eyeSquint=0.40, eyeBlink=0.10, mouthUpperUp=0.2),
        "browInnerUp": 1.15,
        "jawOpen": 0.2,
    },
    "surprised": {
        **_both(eyeWide=0.9, browOuterUp=0.9),
        "browInnerUp": 0.75,
        "jawOpen": 0.62,
        "mouthFunnel": 0.35,
    },
    "disgusted": {
        **_both(noseSneer=1.25, browDown=0.5, mouthUpperUp=0.95, eyeSquint=0.7),
        **_both(cheekSquint=0.6, mouthFrown=0.6, mouthLowerDown=0.45, eyeBlink=0.1),
        "jawOpen": 0.16,
        "tongueOut": 0.45,
    },
}
# Actions that sometimes come with an expression, and their probabilities.
_SOMETIMES: dict[str, list[tuple[float, dict[str, float]]]] = {
    "neutral": [
        (0.5, _both(mouthSmile=0.20)),
        (0.2, {"browInnerUp": 0.15}),
        (0.2, _both(mouthPress=0.25)),
    ],
    "laughing": [
        (0.35, {"jawOpen": 0.25}),
        (0.25, _both(eyeBlink=0.25)),
        (0.15, {"tongueOut": 0.12}),
    ],
    "angry": [
        (0.3, {"jawOpen": 0.32, **_both(mouthUpperUp=0.3)}),
        (
            0.25,
            {
                "jawOpen": -0.2,
                **_both(mouthLowerDown=-1.2, mouthUpperUp=-0.8, mouthPress=1.0, mouthFrown=0.75),
            },
        ),
    ],
    "crying": [(0.4, {"jawOpen": 0.22}), (0.3, _both(eyeBlink=0.18))],
    "surprised": [(0.3, {"jawOpen": -0.35}), (0.25, {"mouthFunnel": 0.25})],
    "disgusted": [(0.4, {"jawOpen": 0.14, "tongueOut": 0.5})],
}

_PARTS = {
    "head": ["head"],
    "socket": ["eye_cavity.L", "eye_cavity.R"],
    "mouth": ["mouth_cavity"],
    "tongue": ["tongue"],
    "eye.L": ["eye_front.L", "eye_back.L"],
    "eye.R": ["eye_front.R", "eye_back.R"],
    "body": ["body"],
}


@dataclass(frozen=True)
class Landmarks:
    """Points of the template, each (3,) in metres."""

    eye_left: Array
    eye_right: Array
    mouth: Array
    nose: Array
    chin: Array
    ear_left: Array

    @property
    def eyes(self) -> Array:
        """Return the point between the eyes."""
        return (self.eye_left + self.eye_right) / 2


@dataclass(frozen=True)
class HeadModel:
    """Head and shoulders as a linear model.

    Attributes:
        template: (V, 3) vertices of the mean body.
        shapes: (K, V * 3) blend shapes, in the order of `anny`'s coefficients.
        faces: Part name to (F, 3) vertex indices.
        uv: (U, 2) texture coordinates of the head's texture corners in 0..1, v upwards.
        uv_vertex: (U,) vertex index of each texture corner.
        uv_faces: (F, 3) triangles of the head as texture corners.
        skull: (S,) vertices used to align faces.
        landmarks: Points of the template.
        lid_edge: Vertices of the eyelids' front edge, where lashes grow.
        action_rows: Row of `shapes` for each facial action.
        anny: Model of the package `anny`, which maps parameters to coefficients.
    """

    template: Array
    shapes: Array
    faces: dict[str, Array]
    uv: Array
    uv_vertex: Array
    uv_faces: Array
    skull: Array
    landmarks: Landmarks
    lid_edge: Array
    action_rows: dict[str, int]
    anny: Any

    def neutral(self, person: Appearance) -> Array:
        """Return (V, 3) vertices of a person with a neutral face, before alignment."""
        import torch

        model: Any = self.anny
        values = model._parse_parameter_kwargs(
            person.phenotypes, model.phenotype_labels, 0.5, "phenotypes"
        )
        local = model._parse_parameter_kwargs(person.shape, model.local_change_labels, 0.0, "shape")
        face = model._parse_parameter_kwargs({}, model.facial_action_labels, 0.0, "actions")
        with torch.no_grad():
            c = model._get_phenotype_blendshape_coefficients(values, local, face)
        c = c[0].numpy().astype(np.float32)
        used = np.flatnonzero(np.abs(c) > 1e-6)
        return self.template + (c[used] @ self.shapes[used]).reshape(-1, 3)

    def displacement(self, actions: dict[str, float]) -> Array:
        """Return (V, 3) displacements by facial `actions` (0..1), before alignment."""
        total = np.zeros_like(self.template)
        for name, value in actions.items():
            total += value * self.shapes[self.action_rows[name]].reshape(-1, 3)
        return total

    def alignment(self, points: Array) -> tuple[float, Array, Array]:
        """Return the scale, rotation and shift that align the skull with the template's."""
        a, b = points[self.skull], self.template[self.skull]
        ca, cb = a.mean(0), b.mean(0)
        u, s, vt = np.linalg.svd((b - cb).T @ (a - ca))
        sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
        rotation = u @ sign @ vt
        scale = float((s * np.diag(sign)).sum() / ((a - ca) ** 2).sum())
        return scale, rotation, cb - scale * rotation @ ca


@functools.lru_cache(maxsize=1)
def load_head_model() -> HeadModel:
    """Load the head model, once for each process.

    The first load on a machine reads the shape files of `anny` and takes a minute or two. The
    package caches the result in ~/.cache/anny (or ANNY_CACHE_DIR), and later loads take seconds.

    Raises:
        FusionError: If `anny` is not installed.
    """
    require("anny")
    with contextlib.redirect_stdout(io.StringIO()):  # warp, which anny uses, prints cache folders
        import anny
        from anny.face_segmentation import get_face_segmentation_mask

        model = anny.Anny(
            local_changes="all",
            facial_actions="all",
            phenotypes="all",
            phenotype_blendshapes="original",
        )
    all_vertices = model.template_vertices.numpy()
    all_faces = model.faces.numpy()
    parts = {
        name: get_face_segmentation_mask(model, labels).numpy() for name, labels in _PARTS.items()
    }
    # The body reaches down to the waist and the elbows, since pictures of several people show them.
    low = all_vertices[np.unique(all_faces[parts["head"]])][:, 2].min() - 0.38
    near = (all_vertices[:, 2] > low) & (np.abs(all_vertices[:, 0]) < 0.46)
    parts["body"] = parts["body"] & near[all_faces].all(1)
    kept = np.unique(all_faces[np.any(list(parts.values()), axis=0)])
    new = np.full(len(all_vertices), -1)
    new[kept] = np.arange(len(kept))
    faces = {name: new[all_faces[mask]] for name, mask in parts.items()}

    template = all_vertices[kept]
    shapes = model.blendshapes[:, kept].numpy().astype(np.float32).reshape(-1, len(kept) * 3)
    model.blendshapes = model.blendshapes[:1, :1].clone()  # the copy above replaces it

    corners = model.face_texture_coordinate_indices.numpy()
    coordinates = model.texture_coordinates.numpy()
    # The neck lies on another texture island, so it is drawn in plain skin with the body.
    island = coordinates[corners][:, :, 0].min(1) > 0.62
    faces["neck"] = faces["head"][~island[parts["head"]]]
    head = parts["head"] & island
    faces["head"] = new[all_faces[head]]
    pairs = np.stack([corners[head].ravel(), faces["head"].ravel()], 1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)

    # The coefficients are ordered: phenotypes, facial actions, local changes.
    first = len(shapes) - len(model.facial_action_labels) - 2 * len(model.local_change_labels)
    landmarks = _landmarks(template, faces)
    head_vertices = np.unique(faces["head"])
    high = template[head_vertices, 2] > landmarks.mouth[2]
    no_ear = np.abs(template[head_vertices, 0]) < 0.07
    return HeadModel(
        template=template,
        shapes=shapes,
        faces=faces,
        uv=coordinates[unique[:, 0]],
        uv_vertex=unique[:, 1],
        uv_faces=inverse.reshape(-1, 3),
        skull=head_vertices[high & no_ear],
        landmarks=landmarks,
        lid_edge=_ring(faces["head"], np.intersect1d(faces["head"], faces["socket"]), 3),
        action_rows={name: first + i for i, name in enumerate(model.facial_action_labels)},
        anny=model,
    )


def _ring(faces: Array, start: Array, steps: int) -> Array:
    """Return the vertices that are `steps` edges away from the start."""
    near = start
    for _ in range(steps):
        inner = near
        near = np.unique(faces[np.isin(faces, inner).any(1)])
    return np.setdiff1d(near, inner)


def _landmarks(template: Array, faces: dict[str, Array]) -> Landmarks:
    def centre(part: str) -> Array:
        return template[np.unique(faces[part])].mean(0)

    head = template[np.unique(faces["head"])]
    rim = template[np.intersect1d(faces["head"], faces["mouth"])]
    middle = head[np.abs(head[:, 0]) < 0.004]
    below = middle[(middle[:, 2] < rim[:, 2].mean() - 0.02) & (middle[:, 1] < rim[:, 1].mean())]
    chin = below[np.argmin(below[:, 1])] if len(below) else rim.mean(0) - [0, 0, 0.04]
    return Landmarks(
        eye_left=centre("eye.L"),
        eye_right=centre("eye.R"),
        mouth=rim.mean(0),
        nose=head[np.argmin(head[:, 1])],
        chin=chin,
        ear_left=head[np.argmax(head[:, 0])],
    )


def expression_actions(
    expression: str, intensity: float = 1.0, play: int | None = None
) -> dict[str, float]:
    """Return the facial actions of an expression, 0..1, or up to 2 where real faces go further.

    Args:
        expression: One of `EXPRESSION_ACTIONS`.
        intensity: Factor on all actions, 0..1.
        play: Seed of the variation between two pictures of one expression: the strengths of its
            parts, the two sides, additional actions. None means no variation.

    Raises:
        FusionError: If the expression is unknown.
    """
    if expression not in EXPRESSION_ACTIONS:
        raise FusionError(
            f"Unknown expression '{expression}': choose one of {', '.join(EXPRESSION_ACTIONS)}."
        )
    actions = dict(EXPRESSION_ACTIONS[expression])
    if play is not None:
        rng = stream("play", play)
        for probability, more in _SOMETIMES[expression]:
            amount = rng.uniform(0.6, 1.0) * (rng.random() < probability)
            for name, value in more.items():
                actions[name] = actions.get(name, 0.0) + amount * value
        left = 1 + float(np.clip(rng.normal(0.0, 0.09), -0.2, 0.2))
        for name in actions:
            side = left if name.endswith("Left") else 2 - left if name.endswith("Right") else 1.0
            part = name.removesuffix("Left").removesuffix("Right")
            strength = stream("strength", play, part).uniform(0.85, 1.15)
            actions[name] *= side * strength
    return {k: float(np.clip(v * intensity, 0.0, 2.0)) for k, v in actions.items()}
