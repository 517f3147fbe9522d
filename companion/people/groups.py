"""Pictures of two or three people: their sampling, rendering and captions.

`sample_group(seed, index, members)` fixes a picture. Its members are people who also have pictures
of their own, so each of them has references. They stand side by side at slightly different depths
and heights, turn a little towards each other, share scene, light and style, and have their own
expressions and clothes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from companion.people.appearance import Appearance, sample_person
from companion.people.caption import (
    EXPRESSION_PHRASES,
    MOST_WORDS,
    STYLE_PHRASES,
    article,
    attributes,
    count_words,
    listed,
    one_of,
    place_phrase,
    role_name,
)
from companion.people.colors import stream
from companion.people.hairstyle import hair_phrase
from companion.people.head import load_head_model
from companion.people.outfit import sample_clothes, sample_headwear
from companion.people.render import (
    Figure,
    check_size,
    nearest_depth,
    pose,
    quarters,
    sit,
    take_picture,
    transform,
)
from companion.people.scalp import smoothstep
from companion.people.shade import Camera
from companion.people.view import EXPRESSIONS, View, is_held_out, sample_view
from fusionlib.errors import FusionError

Array = np.ndarray

SIZES = (2, 3)
FIRST_VIEW = 100  # lower numbers are views of single people
# Fields of a view that all members of a group share.
_SCENE = (
    "light_azimuth",
    "light_elevation",
    "light_strength",
    "light_color",
    "fill_color",
    "rim_strength",
    "softness",
    "scene",
    "time",
    "style",
)
_WIDE = ("straw hat", "brimmed hat", "helmet")  # wide enough to reach the neighbour's head
FIELD_OF_VIEW = 14.0  # degrees; a portrait lens with little perspective
EYE_LINE = 0.42  # height of the eyes from the top, as a fraction of the picture


@dataclass(frozen=True)
class Member:
    """One person of a group.

    Attributes:
        person: Number of the person.
        place: Offset from the middle in metres: right in the picture, away from the camera, up.
        view: View with the person's pose, expression and clothes and with the group's scene.
    """

    person: int
    place: tuple[float, float, float]
    view: View


@dataclass(frozen=True)
class Group:
    """One picture of several people.

    Attributes:
        index: Number of the group.
        seed: Seed of the data set.
        members: Members from left to right.
        width: Width in metres of what the picture shows at the depth of the middle.
    """

    index: int
    seed: int
    members: tuple[Member, ...]
    width: float

    @property
    def scene(self) -> View:
        """Return a view with the scene, light and style that the members share."""
        return self.members[0].view


@dataclass(frozen=True)
class GroupPicture:
    """A finished picture of a group.

    Attributes:
        image: (size, size, 3) uint8 picture.
        masks: (n, size, size) bool masks of the visible part of each member's face; disjoint.
        depth: (size, size) float32 distances in metres along the camera's axis, infinite in the
            background.
    """

    image: Array
    masks: Array
    depth: Array


def choose_members(seed: int, index: int, people: range) -> tuple[int, ...]:
    """Choose the two or three people in group number `index`, by number.

    Raises:
        FusionError: If there are fewer than three people to choose from.
    """
    if len(people) < max(SIZES):
        raise FusionError(
            f"Groups need at least {max(SIZES)} people to choose from, not {len(people)}: "
            "raise the number of people."
        )
    rng = stream("members", seed, index)
    count = SIZES[int(rng.integers(len(SIZES)))]
    return tuple(people[int(n)] for n in rng.choice(len(people), count, replace=False))


def sample_group(seed: int, index: int, members: Sequence[int], *, split: str = "train") -> Group:
    """Sample picture number `index` of several people.

    Args:
        seed: Seed of the data set.
        index: Number of the group.
        members: Numbers of two or three different people from left to right.
        split: Split of the data set; in `train`, no held-out combination is shown (`is_held_out`).

    Raises:
        FusionError: If there are fewer or more people, or one of them twice.
    """
    if len(members) not in SIZES or len(set(members)) < len(members):
        raise FusionError(f"members must be two or three different people, not {list(members)}.")
    rng = stream("group", seed, index)
    count = len(members)
    # Heads with hair are about 0.2 m wide, so with these gaps shoulders overlap but heads do not.
    gaps = rng.uniform(0.195, 0.225, 1) if count == 2 else rng.uniform(0.180, 0.198, 2)
    across = np.concatenate([[0.0], gaps.cumsum()])
    across -= across[-1] / 2
    if count == 2:
        away = rng.permutation([0.0, rng.uniform(0.03, 0.09)])
    else:  # the middle one stands behind or in front of the others
        middle = rng.uniform(0.10, 0.15) * (1 if rng.random() < 0.75 else -1)
        away = np.array([rng.normal(0, 0.015), middle, rng.normal(0, 0.015)])
    away -= away.mean()
    up = np.clip(rng.normal(0, 0.014, count), -0.025, 0.025) + 0.22 * away
    scene = sample_view(seed, members[0], FIRST_VIEW + index, split=split)
    train = split == "train"
    placed = []
    moods = _moods(rng, scene, count, train)
    for person, mood, x, y, z in zip(members, moods, across, away, up, strict=True):
        own = sample_view(seed, person, FIRST_VIEW + index, split=split)
        apart = train and is_held_out(scene.style, scene.scene, mood, own.role)
        role = "person" if apart else own.role
        hat = sample_headwear(rng, role, scene.scene)
        view = replace(
            own,
            expression=mood,
            yaw=float(np.clip(rng.normal(75 * x, 6.0), -22, 22)),
            pitch=float(rng.uniform(-5, 5)),
            roll=float(np.clip(rng.normal(12 * x, 2.5), -6, 6)),
            role=role,
            clothes=sample_clothes(rng, role, scene.scene),
            headwear="none" if hat.kind in _WIDE else hat.kind,
            headwear_color=hat.color,
            **{name: getattr(scene, name) for name in _SCENE},
        )
        placed.append(Member(person, (float(x), float(y), float(z)), view))
    width = rng.uniform(0.42, 0.47) if count == 2 else rng.uniform(0.55, 0.59)
    return Group(index, seed, tuple(placed), float(width))


def _moods(rng: np.random.Generator, scene: View, count: int, train: bool) -> list[str]:
    """Sample the members' expressions: mostly different ones, sometimes one for all.

    Different expressions let a caption tell the members apart. In training, none is held out from
    this style and scene.
    """
    names = [
        str(name)
        for name in rng.permutation(EXPRESSIONS)
        if not (train and is_held_out(scene.style, scene.scene, str(name)))
    ]
    return names[:1] * count if rng.random() < 0.25 else (names * count)[:count]


def render_group(group: Group, size: int = 128) -> GroupPicture:
    """Render a group at `size` pixels; it is drawn at twice that size and scaled down.

    Raises:
        FusionError: If `anny` or `pyvista` is missing, or `size` is too small.
    """
    check_size(size)
    figures = [
        _placed(pose(sit(sample_person(group.seed, member.person)), member.view), member)
        for member in group.members
    ]
    rng, camera = stream("group scene", group.seed, group.index), _camera(group)
    image, shot = take_picture(figures, camera, group.scene, rng, size, reach=0.7 * group.width)
    # At most one person has more than half of a pixel, so the masks are disjoint.
    masks = [
        quarters(shot.face & (shot.figure == number)).mean(-1) > 0.5
        for number in range(1, len(figures) + 1)
    ]
    return GroupPicture(image, np.stack(masks), nearest_depth(shot))


def _camera(group: Group) -> Camera:
    """Return a camera in front of the group, so far away that the picture has its width."""
    distance = group.width / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    focus = load_head_model().landmarks.eyes + np.array([0, 0, (EYE_LINE - 0.5) * group.width])
    toward = np.array([0.0, -1.0, 0.0])
    return Camera(
        position=focus + distance * toward,
        toward=toward,
        right=np.array([1.0, 0.0, 0.0]),
        up=np.array([0.0, 0.0, 1.0]),
        angle=FIELD_OF_VIEW,
        near=float(distance) - 0.7,
        far=float(distance) + 0.7,
    )


def _placed(figure: Figure, member: Member) -> Figure:
    """Let the figure's arms hang, turn it and move it to its place."""
    neck = figure.parts["neck"]
    skin = neck.mesh
    # Sleeves that follow the arms down must not let the shoulders show through.
    assert skin.normals is not None
    under = smoothstep(np.abs(skin.points[:, 0]), 0.085, 0.13)[:, None]
    skin = replace(skin, points=skin.points - 0.014 * under * skin.normals)
    figure = replace(figure, parts={**figure.parts, "neck": replace(neck, mesh=skin)})
    return transform(figure, lambda points, normals: _turned(points, normals, member))


def _turned(points: Array, normals: Array | None, member: Member) -> tuple[Array, Array | None]:
    """Return (V, 3) points and normals of a person at their place in a group.

    The arms, which the model spreads, are lowered at the shoulders. The head turns on the neck, and
    the shoulders follow by a third of the angle.
    """
    from scipy.spatial.transform import Rotation

    view, place = member.view, np.asarray(member.place)
    marks = load_head_model().landmarks
    side = np.sign(points[:, 0])
    below = marks.chin[2] - points[:, 2]
    arm = smoothstep(np.abs(points[:, 0]), 0.13, 0.22) * smoothstep(below, -0.02, 0.04)
    shoulder = np.stack([0.165 * side, 0 * side, 0 * side + marks.chin[2] - 0.075], 1)
    down = Rotation.from_rotvec(np.radians(36.0) * (arm * side)[:, None] * np.array([0, 1, 0]))
    points = shoulder + down.apply(points - shoulder)

    head = smoothstep(points[:, 2] - marks.chin[2], -0.09, 0.0)[:, None]
    yaw = -np.radians(view.yaw) * (0.35 + 0.65 * head)
    nod = head * np.radians([view.pitch, view.roll])
    neck = np.array([0.0, -0.03, marks.chin[2] - 0.01])
    turn = Rotation.from_rotvec(np.concatenate([nod, yaw], 1))
    points = neck + turn.apply(points - neck) + place
    if normals is not None:
        normals = turn.apply(down.apply(normals))
    return points, normals


def describe_group(group: Group, wording: int = 0) -> str:
    """Describe the style, people and place of a picture, in one of many wordings.

    Captions range from "two people in a garden, photo" to "a photo of a laughing woman with long
    red hair and an angry man" and have at most `MOST_WORDS` words.
    """
    scene = group.scene
    rng = stream("group caption", group.seed, group.index, wording)
    people = [sample_person(group.seed, member.person) for member in group.members]
    phrases = [_member_phrases(rng, p, m.view) for p, m in zip(people, group.members, strict=True)]
    number = {2: "two", 3: "three"}[len(people)]
    together = f"{number} {_together(people) if rng.random() < 0.5 else 'people'}"
    place = place_phrase(rng, scene, 0.85)
    place = place and f" {place}"
    begin, follow = STYLE_PHRASES[scene.style]
    start, end = f"{one_of(rng, begin)} ", ""
    if rng.random() < 0.3:
        start, end = "", f", {one_of(rng, follow)}"
    form = rng.random()
    text = ""
    # Where there are too many words, the least important ones go first.
    for shorter in range(len(phrases[0]) if form > 0.25 else 1):
        each = listed([phrase[shorter] for phrase in phrases])
        subject = together if form < 0.25 else each if form < 0.65 else f"{together}, {each},"
        text = f"{start}{subject}{place}{end}".replace(",,", ",").removesuffix(",")
        if count_words(text) <= MOST_WORDS:
            break
    return text


def _together(people: list[Appearance]) -> str:
    """Return `women`, `men` or, for both, `people`."""
    genders = {person.gender for person in people}
    return {"woman": "women", "man": "men"}[genders.pop()] if len(genders) == 1 else "people"


def _member_phrases(rng: np.random.Generator, person: Appearance, view: View) -> list[str]:
    """Describe one member, each time more briefly: `a laughing old man with glasses` to `a man`."""
    before, _ = EXPRESSION_PHRASES[view.expression]
    shown = view.expression != "neutral" and rng.random() < 0.85
    mood = [one_of(rng, before)] if shown else []
    more = [person.age_word] if rng.random() < 0.3 else []
    if person.hair.style == "bald" and view.headwear == "none" and rng.random() < 0.5:
        more.append("bald")
    if view.role != "person" and rng.random() < 0.8:
        noun = role_name(person, view)
    else:
        noun = person.gender if rng.random() < 0.85 else "person"
    traits = (
        [hair_phrase(person.hair)] if person.hair.style != "bald" and rng.random() < 0.35 else []
    )
    if person.glasses != "none" and rng.random() < 0.5:
        traits.append("glasses")
    full = article(" ".join([*mood, *more, noun]))
    with_traits = f"{full} with {listed(traits)}" if traits else full
    return [with_traits, full, article(" ".join([*mood, noun])), article(noun)]


def group_attributes(group: Group) -> dict[str, Any]:
    """Return the labels of a picture, which its JSON holds besides the caption."""
    return {
        "people": [member.person for member in group.members],
        "style": group.scene.style,
        "scene": group.scene.scene,
        "time": group.scene.time,
        "members": [
            attributes(sample_person(group.seed, member.person), member.view)
            for member in group.members
        ],
    }
