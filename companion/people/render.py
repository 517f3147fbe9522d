"""Renders a picture, its face mask and its depth off-screen with `pyvista`.

A sitter (what all pictures of a person share) is posed for a view, which gives a figure. Figures
are put on a stage and photographed: the rasteriser draws them, and `shade` lights them. One figure
makes a portrait (`render_views`); several at places of their own make a group (see `groups`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from companion.people import shade
from companion.people.appearance import Appearance
from companion.people.beard import beard_mesh
from companion.people.colors import stream
from companion.people.eyes import eye_mesh, lash_mesh
from companion.people.glasses import glasses_mesh
from companion.people.hair import hair_mesh
from companion.people.head import expression_actions, load_head_model
from companion.people.headwear import SHINY, headwear_mesh
from companion.people.mesh import Mesh, unit, vertex_normals
from companion.people.mouth import teeth_mesh
from companion.people.requirements import require
from companion.people.scenery import draw_background, surround
from companion.people.shade import Camera, Light, Maps, ShadowMap
from companion.people.skin import (
    U0,
    U1,
    V0,
    V1,
    Complexion,
    paint_expression,
    paint_face,
    texture_map,
)
from companion.people.styles import LENS_STYLES, apply_style
from companion.people.view import View
from companion.people.wardrobe import dress
from fusionlib.errors import FusionError

Array = np.ndarray

PICTURE_HEIGHT = 0.270  # height in metres of what a picture shows at the head's depth
BARE = 46  # material of skin without a texture; the number is its gloss
MAX_FIGURES = 12


@dataclass(frozen=True)
class Picture:
    """A finished picture of one person.

    Attributes:
        image: (size, size, 3) uint8 picture.
        mask: (size, size) uint8 mask, 255 on the face.
        depth: (size, size) float32 distances in metres along the camera's axis, infinite in the
            background.
    """

    image: Array
    mask: Array
    depth: Array


@dataclass(frozen=True)
class Part:
    """A mesh and the code of its material (see `shade`)."""

    mesh: Mesh
    material: int


@dataclass(frozen=True)
class Figure:
    """A posed person, ready to draw.

    Attributes:
        face_points: (U, 3) vertices of the textured face in metres.
        face_normals: (U, 3) unit normals of the face.
        surface: Colour and gloss of the face.
        parts: All other parts by name.
    """

    face_points: Array
    face_normals: Array
    surface: Complexion
    parts: dict[str, Part]


@dataclass(frozen=True)
class Sitter:
    """What all pictures of a person share.

    Attributes:
        person: Appearance of the person.
        neutral: (V, 3) aligned vertices with a neutral face in metres.
        turn: (3, 3) matrix that takes row vectors from the model's to aligned coordinates.
        hair: Hair without headwear, if any.
        surface: Colour and gloss of the face with a neutral expression.
    """

    person: Appearance
    neutral: Array
    turn: Array
    hair: Part | None
    surface: Complexion


@dataclass(frozen=True)
class Shot:
    """A photograph before its style, at the stage's P pixels.

    Attributes:
        image: (P, P, 3) float32 picture in 0..255.
        figure: (P, P) uint8 numbers of the figures from 1; 0 is the background.
        face: (P, P) bool, True where a figure shows its face.
        depth: (P, P) distances in metres, infinite in the background.
    """

    image: Array
    figure: Array
    face: Array
    depth: Array


@functools.lru_cache(maxsize=2)
def _plotter(pixels: int) -> Any:
    require("pyvista")
    import pyvista
    from vtkmodules.vtkCommonCore import vtkLogger

    # Without a display VTK prints warnings, although it draws off-screen.
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
    plotter = pyvista.Plotter(  # off-screen in notebooks, too
        off_screen=True, notebook=False, window_size=(pixels, pixels), lighting="none"
    )
    plotter.set_background("black")
    plotter.ren_win.SetMultiSamples(0)  # pictures are scaled down from twice their size
    plotter.show(auto_close=False)
    return plotter


def sit(person: Appearance) -> Sitter:
    """Prepare a person for their pictures; this takes about a tenth of a second."""
    model = load_head_model()
    raw = model.neutral(person)
    scale, rotation, shift = model.alignment(raw)
    turn = scale * rotation.T
    neutral = raw @ turn + shift
    return Sitter(person, neutral, turn, _hair(person, neutral), paint_face(person))


def _hair(person: Appearance, neutral: Array, under: str = "none") -> Part | None:
    """Return a person's hair, if any, under this headwear."""
    mesh = hair_mesh(person, neutral, under)
    return None if mesh is None else Part(mesh, shade.HAIR)


def _lid_actions(gaze: tuple[float, float]) -> dict[str, float]:
    """Return actions by which the upper lids follow the gaze up and down."""
    down = gaze[1] / 30
    name = "eyeLookDown" if down > 0 else "eyeLookUp"
    return {f"{name}{side}": min(abs(down), 0.4) for side in ("Left", "Right")}


def pose(sitter: Sitter, view: View) -> Figure:
    """Pose a person for a view, with expression, eyes, hair, headwear, glasses and clothes."""
    model, person, neutral = load_head_model(), sitter.person, sitter.neutral
    gaze = (
        float(np.clip(-0.85 * view.yaw + view.gaze[0], -20, 20)),
        float(np.clip(-0.85 * view.pitch + view.gaze[1], -10, 10)),
    )
    actions = expression_actions(view.expression, view.intensity, view.play)
    for name, value in _lid_actions(gaze).items():
        actions[name] = actions.get(name, 0.0) + value
    points = neutral + model.displacement(actions) @ sitter.turn

    skin_faces = np.concatenate([model.faces["head"], model.faces["neck"], model.faces["body"]])
    normals = vertex_normals(points, skin_faces)
    skin = np.tile(np.asarray(person.skin), (len(points), 1))
    parts: dict[str, Part] = {}
    neck = np.concatenate([model.faces["neck"], model.faces["body"]])
    parts["neck"] = Part(Mesh(points, neck, skin * [1.0, 0.96, 0.95], normals), BARE)
    socket = Mesh(points, model.faces["socket"], skin * [0.75, 0.50, 0.48])
    parts["socket"] = Part(socket, BARE)
    mouth = np.tile([0.30, 0.09, 0.09], (len(points), 1))
    parts["mouth"] = Part(Mesh(points, model.faces["mouth"], mouth), BARE)
    tongue = np.tile([0.72, 0.36, 0.36], (len(points), 1))
    parts["tongue"] = Part(Mesh(points, model.faces["tongue"], tongue), 70)
    if any(name in actions for name in ("jawOpen", "mouthUpperUpLeft", "mouthLowerDownLeft")):
        parts["teeth"] = Part(teeth_mesh(person, points, neutral), shade.WET)

    centres = []
    for side in ("eye.L", "eye.R"):
        eye = neutral[np.unique(model.faces[side])]
        low, high = eye.min(0), eye.max(0)
        centre = (low + high) / 2
        radius = float((high - low)[[0, 2]].mean() / 2)
        parts[side] = Part(eye_mesh(person, centre, radius, gaze), shade.EYE)
        centres.append(centre)
    parts["lashes"] = Part(lash_mesh(person, points, neutral), shade.CLOTH)

    hair = sitter.hair
    if view.headwear != "none":
        hair = _hair(person, neutral, view.headwear)
        hat = headwear_mesh(view.headwear, view.headwear_color, neutral)
        if hat is not None:
            shiny = view.headwear in SHINY
            parts["headwear"] = Part(hat, shade.FRAME if shiny else shade.CLOTH)
    if hair is not None:
        parts["hair"] = hair
    beard = beard_mesh(person, points, normals)
    if beard is not None:
        parts["beard"] = Part(beard, shade.HAIR)
    marks = model.landmarks
    bridge = model.uv_vertex[
        (np.abs(model.template[model.uv_vertex, 0]) < 0.012)
        & (np.abs(model.template[model.uv_vertex, 2] - marks.eyes[2]) < 0.010)
    ]
    glasses = glasses_mesh(
        person, (centres[0], centres[1]), float(neutral[bridge, 1].min()) - 0.003
    )
    if glasses is not None:
        parts["glasses"] = Part(glasses, shade.FRAME)

    for name, cloth in dress(view.clothes, points).items():
        parts[name] = Part(cloth, shade.CLOTH)
    surface = paint_expression(sitter.surface, view.expression, view.intensity)
    return Figure(points[model.uv_vertex], normals[model.uv_vertex], surface, parts)


def transform(
    figure: Figure, change: Callable[[Array, Array | None], tuple[Array, Array | None]]
) -> Figure:
    """Apply a function of points and normals to the face and all parts of a figure."""
    parts = {}
    for name, part in figure.parts.items():
        points, normals = change(part.mesh.points, part.mesh.normals)
        parts[name] = replace(part, mesh=replace(part.mesh, points=points, normals=normals))
    points, normals = change(figure.face_points, figure.face_normals)
    assert normals is not None
    return replace(figure, face_points=points, face_normals=normals, parts=parts)


def move(figure: Figure, rotation: Array, offset: Array) -> Figure:
    """Rotate and move a figure.

    Args:
        figure: Figure to move.
        rotation: (3, 3) rotation about the point between the template's eyes.
        offset: (3,) offset in metres, applied after the rotation.
    """
    pivot = load_head_model().landmarks.eyes

    def moved(points: Array, normals: Array | None) -> tuple[Array, Array | None]:
        turned = None if normals is None else normals @ rotation.T
        return (points - pivot) @ rotation.T + pivot + offset, turned

    return transform(figure, moved)


def portrait_camera(view: View) -> Camera:
    """Return the camera of a view, turned around the head and as far away as its lens requires."""
    marks = load_head_model().landmarks
    focus = marks.eyes + np.array([0.0, 0.045, -0.021])
    yaw, pitch = np.radians([view.yaw, view.pitch])
    # The camera moves around the head, opposite to the head's turn.
    toward = np.array([np.sin(yaw) * np.cos(pitch), -np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    height = PICTURE_HEIGHT * view.jitter[2]
    distance = height / 2 / np.tan(np.radians(view.lens / 2))
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    up = np.cross(right, -toward)
    focus = focus + height * (view.jitter[0] * right + view.jitter[1] * up)
    roll = np.radians(view.roll)
    right, up = (np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right)
    return Camera(
        position=focus + distance * toward,
        toward=toward,
        right=right,
        up=up,
        angle=view.lens,
        near=max(distance - 0.5, 0.1),
        far=distance + 0.6,
    )


def view_light(view: View, camera: Camera) -> Light:
    """Return the lamps of a view: a key light, a fill light opposite it, a rim light behind."""
    azimuth, elevation = np.radians([view.light_azimuth, view.light_elevation])
    side = np.sign(view.light_azimuth) or 1.0

    def direction(around: float, above: float) -> Array:
        level = np.cos(around) * camera.toward + np.sin(around) * camera.right
        return np.cos(above) * level + np.sin(above) * camera.up

    key = np.asarray(view.light_color)
    strength = view.light_strength
    fill = np.asarray(view.fill_color)
    return Light(
        key=direction(azimuth, elevation),
        key_color=(0.55 + 1.0 * strength) * key**2.2,
        fill=direction(-0.6 * side, 0.15),
        fill_color=0.50 * (1.0 - 0.75 * strength) * fill**2.2,
        rim=direction(-2.35 * side, 0.55),
        rim_color=0.9 * view.rim_strength * (0.5 * key + 0.5 * fill) ** 2.2,
        ambient=0.27,
        softness=view.softness,
    )


def _poly(points: Array, faces: Array) -> Any:
    import pyvista

    cells = np.empty((len(faces), 4), np.int64)
    cells[:, 0], cells[:, 1:] = 3, faces
    return pyvista.PolyData(points.astype(np.float32), cells)


_FACE_PARTS = {
    *("face", "eye.L", "eye.R", "lashes", "socket", "mouth", "tongue", "teeth", "beard"),
    "glasses",
}


@dataclass(frozen=True)
class _Prop:
    """An actor on the stage, and its textures by the name of the pass that shows them."""

    actor: Any
    textures: dict[str, Any]

    def show(self, name: str) -> None:
        """Show the texture of this pass, or else the vertices' colours."""
        texture = self.textures.get(name)
        self.actor.SetTexture(texture)
        mapper = self.actor.GetMapper()
        mapper.SetScalarVisibility(texture is None)
        if texture is None:
            mapper.SelectColorArray(name)


def _texture(image: Array) -> Any:
    import pyvista

    texture = pyvista.Texture(np.ascontiguousarray(image))
    texture.interpolate = True
    return texture


def _bytes(values: Array) -> Array:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _prop(points: Array, faces: Array, normals: Array, colors: dict[str, Array]) -> Any:
    """Return an unlit actor whose vertices carry several colourings, each (V, 3) in 0..1."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkRenderingCore import vtkActor, vtkPolyDataMapper

    poly = _poly(points, faces)
    for name, values in {"normal": normals * 0.5 + 0.5, **colors}.items():
        array = numpy_to_vtk(_bytes(values), deep=True)
        array.SetName(name)
        poly.GetPointData().AddArray(array)
    mapper = vtkPolyDataMapper()
    mapper.SetInputData(poly)
    mapper.SetScalarModeToUsePointFieldData()
    actor = vtkActor()
    actor.SetMapper(mapper)
    actor.GetProperty().LightingOff()
    actor.GetProperty().SetColor(1.0, 1.0, 1.0)
    return actor


def _code(number: int) -> int:
    """Return the green value that encodes a figure's number, counted from 0."""
    return 255 - 16 * number


def _plain_parts(figure: Figure, green: int) -> Any:
    """Return all parts in plain colours as one actor, since fewer actors are drawn faster."""
    points, faces, normals, colors, codes, start = [], [], [], [], [], 0
    for name, part in figure.parts.items():
        mesh = part.mesh
        if mesh.texture is not None:
            continue
        shading = mesh.normals
        if shading is None:
            shading = vertex_normals(mesh.points, mesh.faces)
        used = np.zeros(len(mesh.points), bool)
        used[mesh.faces] = True
        number = np.cumsum(used) - 1
        points.append(mesh.points[used])
        normals.append(shading[used])
        colors.append(mesh.colors[used])
        faces.append(number[mesh.faces] + start)
        code = np.array([255 if name in _FACE_PARTS else 0, green, part.material]) / 255
        codes.append(np.broadcast_to(code, (len(points[-1]), 3)))
        start += len(points[-1])
    return _prop(
        np.concatenate(points),
        np.concatenate(faces),
        np.concatenate(normals),
        {"color": np.concatenate(colors), "code": np.concatenate(codes)},
    )


def _painted_part(part: Part, green: int) -> _Prop:
    """Return a part that has a texture, a garment."""
    mesh = part.mesh
    assert mesh.texture is not None and mesh.uv is not None and mesh.normals is not None
    code = np.array([0, green, part.material]) / 255
    actor = _prop(
        mesh.points, mesh.faces, mesh.normals, {"code": np.broadcast_to(code, mesh.points.shape)}
    )
    _wrap(actor, mesh.uv)
    return _Prop(actor, {"color": _texture(mesh.texture)})


def _wrap(actor: Any, uv: Array) -> None:
    """Give an actor its (V, 2) texture coordinates."""
    from vtkmodules.util.numpy_support import numpy_to_vtk

    coordinates = numpy_to_vtk(uv.astype(np.float32), deep=True)
    actor.GetMapper().GetInput().GetPointData().SetTCoords(coordinates)


def _stage(plotter: Any, figures: list[Figure]) -> list[_Prop]:
    """Put the figures on the stage."""
    model = load_head_model()
    plotter.renderer.RemoveAllViewProps()
    uv = np.stack([(model.uv[:, 0] - U0) / (U1 - U0), (model.uv[:, 1] - V0) / (V1 - V0)], 1)
    props = []
    for number, figure in enumerate(figures):
        green = _code(number)
        gloss = figure.surface.gloss * (shade.SKIN_MAX / 255)
        codes = np.stack([texture_map().face, np.full_like(gloss, green / 255), gloss], -1)
        face = _prop(figure.face_points, model.uv_faces, figure.face_normals, {})
        _wrap(face, uv)
        textures = {"color": _bytes(figure.surface.color), "code": _bytes(codes)}
        props.append(_Prop(face, {name: _texture(image) for name, image in textures.items()}))
        props.append(_Prop(_plain_parts(figure, green), {}))
        painted = [part for part in figure.parts.values() if part.mesh.texture is not None]
        props += [_painted_part(part, green) for part in painted]
    for prop in props:
        plotter.renderer.AddActor(prop.actor)
    return props


def _shot(plotter: Any) -> Array:
    plotter.ren_win.Render()
    return np.asarray(plotter.image)


def _distance(plotter: Any, pixels: int) -> Array:
    """Return the (P, P) z-buffer, 0 near to 1 far, of the last drawing; row 0 is at the top."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonCore import vtkFloatArray

    values = vtkFloatArray()
    plotter.ren_win.GetZbufferData(0, 0, pixels - 1, pixels - 1, values)
    return vtk_to_numpy(values).reshape(pixels, pixels)[::-1].astype(np.float64)


def _aim(plotter: Any, position: Array, toward: Array, up: Array, near: float, far: float) -> Any:
    from vtkmodules.vtkRenderingCore import vtkCamera

    camera = vtkCamera()
    camera.SetPosition(*position)
    camera.SetFocalPoint(*(position - toward))
    camera.SetViewUp(*up)
    camera.SetClippingRange(near, far)
    plotter.renderer.SetActiveCamera(camera)
    return camera


def _survey(plotter: Any, props: list[_Prop], camera: Camera, pixels: int) -> tuple[Maps, Array]:
    """Return what the camera sees, and the (P, P, 3) code pass of face, figure and material."""
    aim = _aim(plotter, camera.position, camera.toward, camera.up, camera.near, camera.far)
    aim.SetViewAngle(camera.angle)
    shots = {}
    for name in ("color", "normal", "code"):
        for prop in props:
            prop.show(name)
        shots[name] = _shot(plotter)
    z = _distance(plotter, pixels)
    color, normal, code = shots["color"], shots["normal"], shots["code"]
    near, far = camera.near, camera.far
    depth = np.where(z < 1, near * far / (far - z * (far - near)), np.inf).astype(np.float32)
    cover = code[..., 1] > 0
    maps = Maps(
        color=color,
        normal=unit(normal.astype(np.float32) / 127.5 - 1),
        material=code[..., 2],
        depth=np.where(cover, depth, np.inf).astype(np.float32),
        cover=cover,
    )
    return maps, code


def _shadows(plotter: Any, light: Light, centre: Array, reach: float, pixels: int) -> ShadowMap:
    """Return the key light's shadow map within `reach` metres of the centre."""
    up = np.array([0.0, 0.0, 1.0]) if abs(light.key[2]) < 0.95 else np.array([0.0, 1.0, 0.0])
    right = unit(np.cross(up, light.key))
    up = np.cross(light.key, right)
    near, far = 1.0, 1.0 + 4 * reach
    back = near + 2 * reach
    aim = _aim(plotter, centre + back * light.key, light.key, up, near, far)
    aim.ParallelProjectionOn()
    aim.SetParallelScale(reach)
    plotter.ren_win.Render()
    depth = near + _distance(plotter, pixels) * (far - near) - back
    return ShadowMap(depth.astype(np.float32), centre, light.key, right, up, reach)


def photograph(
    figures: list[Figure],
    camera: Camera,
    light: Light,
    background: Array,
    centre: Array | None = None,
    reach: float = 0.24,
) -> Shot:
    """Photograph one or several figures.

    Args:
        figures: At most 12 figures, each at its place (see `move`).
        camera: Camera of the photograph.
        light: Lamps.
        background: (P, P, 3) uint8 picture behind them; the photograph has its size.
        centre: (3,) middle in metres of what casts shadows; by default the head's usual place.
        reach: Distance in metres from it within which shadows are computed.

    Raises:
        FusionError: If there are no figures or too many, or `pyvista` is missing.
    """
    if not 1 <= len(figures) <= MAX_FIGURES:
        raise FusionError(
            f"A photograph shows 1 to {MAX_FIGURES} figures, not {len(figures)}: change the list."
        )
    pixels = len(background)
    plotter = _plotter(pixels)
    props = _stage(plotter, figures)
    maps, code = _survey(plotter, props, camera, pixels)
    if centre is None:
        centre = load_head_model().landmarks.eyes + np.array([0.0, 0.06, -0.03])
    shadows = _shadows(plotter, light, centre, reach, pixels)
    lit = shade.develop(shade.shade(maps, camera, light, shadows, background))
    image = np.where(maps.cover[..., None], lit, background.astype(np.float32))
    figure = np.where(maps.cover, (255 - code[..., 1].astype(int) + 8) // 16 + 1, 0)
    return Shot(image, figure.astype(np.uint8), (code[..., 0] > 127) & maps.cover, maps.depth)


def inverse_depth(depth: Array) -> Array:
    """Convert (H, W) metres to the uint8 depth maps that ControlNets take: near is bright.

    The nearest point is 255, the farthest of a figure 64 (linear in 1 / metres), the background 0.
    """
    seen = np.isfinite(depth)
    out = np.zeros(depth.shape, np.uint8)
    if seen.any():
        inverse = 1 / depth[seen].astype(np.float64)
        span = max(float(np.ptp(inverse)), 1e-9)
        out[seen] = np.round(64 + 191 * (inverse - inverse.min()) / span)
    return out


def check_size(size: int) -> None:
    """Refuse a picture size that is too small.

    Raises:
        FusionError: If `size` is below 16 pixels.
    """
    if size < 16:
        raise FusionError(f"The picture size must be at least 16 pixels, not {size}.")


def take_picture(
    figures: list[Figure],
    camera: Camera,
    view: View,
    rng: np.random.Generator,
    size: int,
    reach: float = 0.24,
) -> tuple[Array, Shot]:
    """Photograph figures in a view's scene, light and style.

    Args:
        figures: Figures, each at its place.
        camera: Position and field of the camera.
        view: View whose scene, time, light and style the picture has.
        rng: Source of the scene's layout and of the style's grain.
        size: Height and width of the picture in pixels.
        reach: Distance in metres within which shadows are computed.

    Returns:
        The (size, size, 3) uint8 picture, and the shot at twice that size.
    """
    blur = 1.0 if view.style in LENS_STYLES else 0.35
    background = draw_background(view.scene, 2 * size, rng, time=view.time, blur=blur)
    shot = photograph(figures, camera, view_light(view, camera), background, reach=reach)
    cover = (shot.figure > 0).astype(np.float32)
    image = np.clip(shot.image, 0, 255).astype(np.uint8)
    image = surround(image, cover, background, view.scene, rng)
    return reduced(apply_style(image, view.style, rng, figure=cover), size), shot


def reduced(image: Array, size: int) -> Array:
    """Return a picture scaled down to `size` pixels."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def quarters(array: Array) -> Array:
    """Group the pixels of (2 S, 2 S) into those of each pixel of the picture, (S, S, 4)."""
    size = len(array) // 2
    return array.reshape(size, 2, size, 2).swapaxes(1, 2).reshape(size, size, 4)


def nearest_depth(shot: Shot) -> Array:
    """Return (S, S) distances at the picture's size, from a shot at twice that.

    A pixel has the nearest of its four: their mean would be infinite at the background's edge.
    """
    return quarters(shot.depth).min(-1)


def render_views(person: Appearance, views: list[View], size: int = 128) -> list[Picture]:
    """Render pictures of one person at `size` pixels, scaled down from twice that size.

    Raises:
        FusionError: If `anny` or `pyvista` is missing, or `size` is too small.
    """
    check_size(size)
    sitter = sit(person)
    return [_render(sitter, view, size) for view in views]


def _largest_blob(mask: Array) -> Array:
    from scipy.ndimage import label

    labels, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _render(sitter: Sitter, view: View, size: int) -> Picture:
    rng = stream("scene", sitter.person.seed, sitter.person.index, view.index)
    image, shot = take_picture([pose(sitter, view)], portrait_camera(view), view, rng, size)
    face = reduced(shot.face.astype(np.uint8) * 255, size) > 127
    mask = _largest_blob(face).astype(np.uint8) * 255
    return Picture(image, mask, nearest_depth(shot))
