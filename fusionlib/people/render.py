"""From a person and a view to a picture and its face mask, off-screen with `pyvista`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.people.hair import glasses_mesh, hair_mesh
from fusionlib.people.head import (
    expression_actions,
    load_head_model,
    vertex_normals,
)
from fusionlib.people.headwear import SHINY, headwear_mesh
from fusionlib.people.identity import Person
from fusionlib.people.mesh import Mesh
from fusionlib.people.sampling import stream
from fusionlib.people.scenery import apply_style, draw_background
from fusionlib.people.skin import (
    TEXELS,
    U0,
    U1,
    V0,
    V1,
    beard_weight,
    paint_expression,
    paint_face,
    texture_map,
)
from fusionlib.people.view import View

Array = np.ndarray

FIELD_OF_VIEW = 14.0  # degrees: a portrait lens, little perspective
PICTURE_HEIGHT = 0.285  # metres of the head's plane that the picture shows
IRIS_ANGLE, PUPIL_ANGLE = 25.0, 10.5  # degrees from the gaze axis


@dataclass(frozen=True)
class Picture:
    """A finished picture: (size, size, 3) uint8 image and (size, size) uint8 face mask (0, 255)."""

    image: Array
    mask: Array


@dataclass(frozen=True)
class _Part:
    mesh: Mesh
    material: dict[str, float]
    normals: Array | None = None


SKIN = {"ambient": 0.22, "diffuse": 0.85, "specular": 0.10, "specular_power": 12.0}
MATTE = {"ambient": 0.22, "diffuse": 0.85, "specular": 0.0, "specular_power": 1.0}
HAIR = {"ambient": 0.28, "diffuse": 0.85, "specular": 0.16, "specular_power": 10.0}
WET = {"ambient": 0.30, "diffuse": 0.75, "specular": 0.55, "specular_power": 45.0}


def _require_pyvista() -> Any:
    try:
        import pyvista
    except ImportError as error:
        raise FusionError(
            "Rendering people needs the package 'pyvista', which is not installed: "
            "install the extra with pip install 'fusionlib[people]'."
        ) from error
    return pyvista


@functools.lru_cache(maxsize=2)
def _plotter(pixels: int) -> Any:
    pyvista = _require_pyvista()
    from vtkmodules.vtkCommonCore import vtkLogger

    # Without a display VTK warns, then draws off-screen as it should.
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
    plotter = pyvista.Plotter(off_screen=True, window_size=(pixels, pixels), lighting="none")
    plotter.set_background("black")
    plotter.ren_win.SetMultiSamples(0)  # drawn at twice the size, so reduced with four samples
    plotter.show(auto_close=False)
    return plotter


@functools.lru_cache(maxsize=1)
def _eyeball() -> tuple[Array, Array, Array]:
    """Unit sphere round the gaze axis -y, with rings dense about the iris; polar angle of each."""
    rings = np.concatenate([np.linspace(0.5, 40, 34), np.linspace(46, 150, 14)])
    theta, phi = np.radians(rings)[:, None], np.linspace(0, 2 * np.pi, 40, endpoint=False)[None]
    points = np.stack(
        [np.sin(theta) * np.cos(phi), -np.cos(theta) + 0 * phi, np.sin(theta) * np.sin(phi)], -1
    )
    r, c = np.meshgrid(np.arange(len(rings) - 1), np.arange(40), indexing="ij")
    a, b = r * 40 + c, r * 40 + (c + 1) % 40
    faces = np.concatenate(
        [
            np.stack([a, b, b + 40], -1).reshape(-1, 3),
            np.stack([a, b + 40, a + 40], -1).reshape(-1, 3),
        ]
    )
    return points.reshape(-1, 3), faces, np.repeat(rings, 40)


def _eye_mesh(centre: Array, radius: float, person: Person, gaze: tuple[float, float]) -> Mesh:
    points, faces, polar = _eyeball()
    yaw, pitch = np.radians(gaze)
    turn = np.array(
        [[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
    ) @ np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    white, iris = np.array([0.93, 0.91, 0.89]), np.asarray(person.eye)
    shade = np.interp(polar, [PUPIL_ANGLE, IRIS_ANGLE - 5, IRIS_ANGLE], [1.25, 1.0, 0.45])
    colors = np.where((polar < IRIS_ANGLE)[:, None], iris * shade[:, None], white)
    colors = np.where((polar < PUPIL_ANGLE)[:, None], [0.02, 0.02, 0.02], colors)
    return Mesh(centre + radius * points @ turn.T, faces, np.clip(colors, 0, 1))


def _teeth_mesh(neutral: Array, rim: Array) -> Mesh:
    """A row of upper teeth behind the neutral upper lip; seen only when the mouth opens."""
    middle = neutral[rim].mean(0)
    front = neutral[rim][:, 1].min()
    angle = np.linspace(-1.15, 1.15, 41)
    x, y = 0.023 * np.sin(angle), front + 0.0065 + 0.026 * (1 - np.cos(angle))
    notch = 0.0006 * np.abs(np.sin(angle * 9))
    rows = []
    for z, back in ((0.012, 0.003), (0.004, 0.0), (-0.0045, 0.0), (-0.0065, 0.002)):
        rows.append(np.stack([x, y + back, middle[2] + z + notch * (z < 0)], 1))
    points = np.concatenate(rows)
    n = len(angle)
    r, c = np.meshgrid(np.arange(len(rows) - 1), np.arange(n - 1), indexing="ij")
    a = r * n + c
    faces = np.concatenate(
        [
            np.stack([a, a + 1, a + n + 1], -1).reshape(-1, 3),
            np.stack([a, a + n + 1, a + n], -1).reshape(-1, 3),
        ]
    )
    gap = np.clip(np.abs(np.sin(angle * 6.5 + np.pi / 2)) * 6, 0.78, 1)
    colors = np.tile(np.array([0.93, 0.90, 0.84]) * gap[:, None], (len(rows), 1))
    return Mesh(points, faces, colors)


@dataclass(frozen=True)
class _Figure:
    """A posed head ready to draw: the textured face and the plainly coloured parts."""

    face_points: Array
    face_normals: Array
    texture: Array
    parts: dict[str, _Part]


@dataclass(frozen=True)
class _Sitter:
    """What all pictures of a person share: aligned neutral vertices, hair, texture.

    `turn`: (3, 3), right-multiplied, takes the model's displacements to aligned coordinates.
    """

    person: Person
    neutral: Array
    turn: Array
    hair: Mesh | None
    texture: Array


def _sitter(person: Person) -> _Sitter:
    model = load_head_model()
    raw = model.neutral(person)
    scale, rotation, shift = model.alignment(raw)
    turn = scale * rotation.T
    neutral = raw @ turn + shift
    return _Sitter(person, neutral, turn, hair_mesh(person, neutral), paint_face(person))


def _pose(sitter: _Sitter, view: View) -> _Figure:
    """Shape the person for a view: expression, hair, eyes, glasses, clothes."""
    model, person, neutral = load_head_model(), sitter.person, sitter.neutral
    actions = expression_actions(view.expression, view.intensity)
    points = neutral + model.displacement(actions) @ sitter.turn

    skin_faces = np.concatenate([model.faces["head"], model.faces["neck"], model.faces["body"]])
    normals = vertex_normals(points, skin_faces)
    if person.beard == "full":
        t = model.template
        weight = beard_weight(person, t[:, 0], t[:, 1], t[:, 2])
        on_head = np.zeros(len(t))
        on_head[np.unique(model.faces["head"])] = 1
        lips = np.zeros(len(t))
        np.maximum.at(lips, model.uv_vertex, _lip_weight())
        grow = (
            0.007
            * weight
            * on_head
            * (1 - lips)
            * np.where(t[:, 2] < model.landmarks.mouth[2], 1, 0.35)
        )
        points = points + grow[:, None] * normals
        normals = vertex_normals(points, skin_faces)
    skin = np.tile(np.asarray(person.skin), (len(points), 1))
    parts: dict[str, _Part] = {}
    neck = np.concatenate([model.faces["neck"], model.faces["body"]])
    parts["neck"] = _Part(Mesh(points, neck, skin), SKIN, normals)
    parts["socket"] = _Part(Mesh(points, model.faces["socket"], skin * [0.75, 0.55, 0.55]), MATTE)
    mouth = np.tile([0.26, 0.07, 0.07], (len(points), 1))
    parts["mouth"] = _Part(Mesh(points, model.faces["mouth"], mouth), MATTE)
    tongue = np.tile([0.62, 0.27, 0.27], (len(points), 1))
    parts["tongue"] = _Part(Mesh(points, model.faces["tongue"], tongue), MATTE)
    if view.expression in ("laughing", "crying"):
        rim = np.intersect1d(model.faces["head"], model.faces["mouth"])
        parts["teeth"] = _Part(_teeth_mesh(neutral, rim), WET)

    centres = []
    for side in ("eye.L", "eye.R"):
        eye = neutral[np.unique(model.faces[side])]
        low, high = eye.min(0), eye.max(0)
        centre = (low + high) / 2
        radius = float((high - low)[[0, 2]].mean() / 2)
        gaze = (
            float(np.clip(-0.8 * view.yaw + view.gaze[0], -16, 16)),
            float(np.clip(-0.8 * view.pitch + view.gaze[1], -8, 8)),
        )
        parts[side] = _Part(_eye_mesh(centre, radius, person, gaze), WET)
        centres.append(centre)

    hair = sitter.hair
    if view.headwear != "none":
        hair = hair_mesh(person, neutral, view.headwear)
        hat = headwear_mesh(view.headwear, view.headwear_color, neutral)
        if hat is not None:
            parts["headwear"] = _Part(hat, WET if view.headwear in SHINY else MATTE, hat.normals)
    if hair is not None:
        parts["hair"] = _Part(hair, HAIR, hair.normals)
    marks = model.landmarks
    bridge = model.uv_vertex[
        (np.abs(model.template[model.uv_vertex, 0]) < 0.012)
        & (np.abs(model.template[model.uv_vertex, 2] - marks.eyes[2]) < 0.012)
    ]
    glasses = glasses_mesh(
        person, (centres[0], centres[1]), float(neutral[bridge, 1].min()) - 0.004
    )
    if glasses is not None:
        parts["glasses"] = _Part(glasses, WET)

    # The garment is the body itself, a little wider, going below the skin at the collar.
    below = marks.chin[2] - 0.060 + 0.35 * np.clip(model.template[:, 1] + 0.07, -0.2, 0.2)
    offset = np.clip(0.8 * (below - model.template[:, 2]), -0.006, 0.007)[:, None] * normals
    cloth = np.tile(np.asarray(view.garment), (len(points), 1))
    parts["garment"] = _Part(Mesh(points + offset, model.faces["body"], cloth), MATTE)
    texture = paint_expression(sitter.texture, view.expression)
    return _Figure(points[model.uv_vertex], normals[model.uv_vertex], texture, parts)


@functools.lru_cache(maxsize=1)
def _face_texture() -> Array:
    face = (texture_map().face * 255).astype(np.uint8)
    return np.stack([face, np.full_like(face, 255), np.zeros_like(face)], -1)


@functools.lru_cache(maxsize=1)
def _lip_weight() -> Array:
    """(U,) how much each texture corner of the head is lip, 0..1."""
    model, m = load_head_model(), texture_map()
    column = np.clip(((model.uv[:, 0] - U0) * TEXELS).astype(int), 0, m.lips.shape[1] - 1)
    row = np.clip(((V1 - model.uv[:, 1]) * TEXELS).astype(int), 0, m.lips.shape[0] - 1)
    return m.lips[row, column]


def _poly(points: Array, faces: Array) -> Any:
    pyvista = _require_pyvista()
    cells = np.empty((len(faces), 4), np.int64)
    cells[:, 0], cells[:, 1:] = 3, faces
    return pyvista.PolyData(points.astype(np.float32), cells)


def _camera(plotter: Any, view: View) -> tuple[Array, Array]:
    marks = load_head_model().landmarks
    focus = marks.eyes + np.array([0.0, 0.045, -0.022])
    yaw, pitch = np.radians([view.yaw, view.pitch])
    # Turning the head by yaw is moving the camera round it the other way.
    toward = np.array([np.sin(yaw) * np.cos(pitch), -np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    height = PICTURE_HEIGHT * view.jitter[2]
    distance = height / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    up = np.cross(right, -toward)
    focus = focus + height * (view.jitter[0] * right + view.jitter[1] * up)
    camera = plotter.camera
    camera.position = tuple(focus + distance * toward)
    camera.focal_point = tuple(focus)
    camera.up = tuple(up)
    camera.view_angle = FIELD_OF_VIEW
    camera.roll = camera.roll + view.roll
    camera.clipping_range = (distance - 0.5, distance + 0.6)
    return toward, right


def _lights(plotter: Any, view: View, toward: Array, right: Array) -> None:
    pyvista = _require_pyvista()
    plotter.remove_all_lights()
    azimuth, elevation = np.radians([view.light_azimuth, view.light_elevation])
    up = np.cross(right, -toward)
    direction = (
        np.cos(elevation) * (np.cos(azimuth) * toward + np.sin(azimuth) * right)
        + np.sin(elevation) * up
    )
    w = view.light_warmth
    warm = (1.0, 1.0 - 0.35 * max(w, 0) - 0.1 * max(-w, 0), 1.0 - max(w, 0))
    cool = (1.0 - 0.8 * max(-w, 0), warm[1], warm[2])
    centre = np.asarray(load_head_model().landmarks.eyes)
    for vector, strength, color in (
        (direction, view.light_strength, cool),
        (toward, 1.0 - 0.75 * view.light_strength, (1.0, 1.0, 1.0)),
        (up, 0.12, (1.0, 1.0, 1.0)),
    ):
        light = pyvista.Light(
            position=tuple(centre + 2 * vector),
            focal_point=tuple(centre),
            color=color,
            intensity=float(strength),
            light_type="scene light",
        )
        light.positional = False
        plotter.add_light(light)


_FACE_PARTS = {"face", "eye.L", "eye.R", "socket", "mouth", "tongue", "teeth", "glasses"}


def _actor(poly: Any, material: dict[str, float]) -> Any:
    from vtkmodules.vtkRenderingCore import vtkActor, vtkPolyDataMapper

    mapper = vtkPolyDataMapper()
    mapper.SetInputData(poly)
    actor = vtkActor()
    actor.SetMapper(mapper)
    look = actor.GetProperty()
    look.SetInterpolationToPhong()
    look.SetAmbient(material["ambient"])
    look.SetDiffuse(material["diffuse"])
    look.SetSpecular(material["specular"])
    look.SetSpecularPower(material["specular_power"])
    return actor


def _texture(image: Array) -> Any:
    texture = _require_pyvista().Texture(np.ascontiguousarray(image))
    texture.interpolate = True
    return texture


def _stage(plotter: Any, figure: _Figure) -> dict[str, Any]:
    """Put the figure's parts on the stage; returns the actors by part name."""
    from vtkmodules.util.numpy_support import numpy_to_vtk

    model = load_head_model()
    plotter.renderer.RemoveAllViewProps()
    face = _poly(figure.face_points, model.uv_faces)
    uv = np.stack([(model.uv[:, 0] - U0) / (U1 - U0), (model.uv[:, 1] - V0) / (V1 - V0)], 1)
    face.GetPointData().SetTCoords(numpy_to_vtk(uv.astype(np.float32), deep=True))
    face.GetPointData().SetNormals(numpy_to_vtk(figure.face_normals.astype(np.float32), deep=True))
    actors = {"face": _actor(face, SKIN)}
    actors["face"].SetTexture(_texture(figure.texture))
    for name, part in figure.parts.items():
        mesh = part.mesh
        poly = _poly(mesh.points, mesh.faces)
        normals = vertex_normals(mesh.points, mesh.faces) if part.normals is None else part.normals
        data = poly.GetPointData()
        data.SetNormals(numpy_to_vtk(normals.astype(np.float32), deep=True))
        colors = (np.clip(mesh.colors, 0, 1) * 255).astype(np.uint8)
        data.SetScalars(numpy_to_vtk(colors, deep=True))
        actors[name] = _actor(poly, part.material)
    for actor in actors.values():
        plotter.renderer.AddActor(actor)
    return actors


def _flatten(actors: dict[str, Any]) -> None:
    """Make ready for the mask pass: no light, the face yellow and everything else green.

    Then red is the face mask and green is what the figure covers of the background.
    """
    for name, actor in actors.items():
        actor.GetMapper().ScalarVisibilityOff()
        actor.GetProperty().LightingOff()
        actor.GetProperty().SetColor(1.0 if name in _FACE_PARTS else 0.0, 1.0, 0.0)
    actors["face"].GetProperty().SetColor(1.0, 1.0, 1.0)
    actors["face"].SetTexture(_texture(_face_texture()))


def _shot(plotter: Any) -> Array:
    plotter.ren_win.Render()
    return np.asarray(plotter.image)


def _reduce(image: Array, size: int) -> Array:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def render_views(person: Person, views: list[View], size: int = 128) -> list[Picture]:
    """Render pictures of one person at `size` pixels (drawn at twice that, then reduced).

    Raises:
        FusionError: If `anny` or `pyvista` is missing, or `size` is too small.
    """
    if size < 16:
        raise FusionError(f"The picture size must be at least 16 pixels, not {size}.")
    sitter = _sitter(person)
    return [_render(sitter, view, size) for view in views]


def _largest_blob(mask: Array) -> Array:
    from scipy.ndimage import label

    labels, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _render(sitter: _Sitter, view: View, size: int) -> Picture:
    pixels = 2 * size
    plotter = _plotter(pixels)
    figure = _pose(sitter, view)
    actors = _stage(plotter, figure)
    toward, right = _camera(plotter, view)
    _lights(plotter, view, toward, right)
    shot = _shot(plotter).astype(np.float32)
    _flatten(actors)
    cover = _shot(plotter)

    rng = stream("scene", sitter.person.seed, sitter.person.index, view.index)
    background = draw_background(view.background, pixels, rng).astype(np.float32)
    # The stage is black, so the shot is already weighted by how much the figure covers.
    image = shot + (1 - cover[..., 1:2].astype(np.float32) / 255) * background
    styled = apply_style(np.clip(image, 0, 255).astype(np.uint8), view.style, rng)
    mask = _largest_blob(_reduce(cover[..., 0], size) > 127)
    return Picture(_reduce(styled, size), mask.astype(np.uint8) * 255)
