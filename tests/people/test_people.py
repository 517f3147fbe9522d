"""Synthetic people: sampling, captions, scenes, and the layout and resumption of data sets."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companion.people import dataset, shade
from companion.people.appearance import (
    SHAPE_MEAN,
    SHAPE_SPREAD,
    Appearance,
    sample_person,
    skin_color,
)
from companion.people.caption import (
    EXPRESSION_PHRASES,
    MOST_WORDS,
    SCENE_PHRASES,
    STYLE_PHRASES,
    attributes,
    describe,
    role_name,
)
from companion.people.colors import stream
from companion.people.glasses import FRAMES
from companion.people.hairstyle import DYED, HAIR_COLORS, HAIR_STYLES, hair_phrase, hairline_margin
from companion.people.head import expression_actions
from companion.people.outfit import (
    CLOTHES,
    HEADWEAR,
    ROLES,
    Clothes,
    sample_clothes,
    sample_headwear,
)
from companion.people.render import inverse_depth
from companion.people.scenery import SCENES, draw_background, surround
from companion.people.styles import apply_style
from companion.people.view import EXPRESSIONS, STYLES, is_held_out, sample_view
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT

HELDOUT = ROOT / "data" / "heldout"


def test_a_person_depends_on_seed_and_number_alone() -> None:
    assert sample_person(0, 7) == sample_person(0, 7)
    assert sample_person(0, 7) != sample_person(0, 8)
    assert sample_person(0, 7) != sample_person(1, 7)


def test_people_are_spread_widely_and_plausibly() -> None:
    people = [sample_person(0, i) for i in range(200)]
    shapes = np.array([list(p.shape.values()) for p in people])
    assert shapes.shape[1] >= 100
    assert np.abs(shapes).max() <= 1.3
    assert shapes.std(0).min() > 0.1
    tones = np.array([p.skin for p in people]).mean(1)
    assert tones.min() < 0.35 and tones.max() > 0.75
    assert {p.gender for p in people} == {"woman", "man"}
    assert {p.age_word for p in people} == {"young", "middle-aged", "old"}
    assert all(18 <= p.age <= 80 for p in people)
    assert all(p.beard == "none" for p in people if p.gender == "woman")
    assert len({p.hair.style for p in people}) > 16
    assert {p.glasses for p in people} == {"none", *FRAMES}


def test_no_part_of_a_face_is_extreme_in_all_its_measures() -> None:
    for index in range(100):
        person = sample_person(0, index)
        if person.gender == "woman":  # whose mean differs
            continue
        nose = [
            (person.shape[k] - SHAPE_MEAN.get(k, 0.0)) / spread
            for k, spread in SHAPE_SPREAD.items()
            if k.startswith("nose-")
        ]
        assert np.linalg.norm(nose) < 1.2 * np.sqrt(len(nose))
        assert np.abs(nose).max() <= 2.0 + 1e-9


def test_every_hair_style_is_worn_and_many_by_both_genders() -> None:
    people = [sample_person(1, i) for i in range(1500)]
    worn = {g: {p.hair.style for p in people if p.gender == g} for g in ("woman", "man")}
    assert worn["woman"] | worn["man"] == set(HAIR_STYLES) and len(HAIR_STYLES) >= 14
    assert len(worn["woman"] & worn["man"]) >= 12
    assert not worn["woman"] & {"bald", "horseshoe"}
    assert {p.hair.color_name for p in people} == set(HAIR_COLORS)


def test_hair_color_goes_with_skin_and_age() -> None:
    people = [sample_person(2, i) for i in range(800)]

    def share(names: set[str], group: list[Appearance]) -> float:
        return sum(p.hair.color_name in names for p in group) / len(group)

    dark = [p for p in people if sum(p.skin) < 1.2]
    light = [p for p in people if sum(p.skin) > 2.2]
    assert share({"blond", "red", "strawberry blond"}, dark) < 0.02
    assert share({"blond", "red", "strawberry blond"}, light) > 0.15
    young, old = ([p for p in people if low <= p.age < low + 12] for low in (18, 69))
    assert share({"gray", "white"}, young) == 0 and np.mean([p.hair.gray for p in young]) < 0.01
    assert share({"gray", "white"}, old) > 0.35 and np.mean([p.hair.gray for p in old]) > 0.5
    assert share(set(DYED), people) < 0.06


def test_hair_is_said_in_plain_words() -> None:
    hair = sample_person(0, 0).hair
    hair = replace(hair, style="bob", color_name="brown", fringe=1.0, gray=0.0)
    assert hair_phrase(hair) == "a brown bob with a fringe"
    assert hair_phrase(replace(hair, style="plaits")) == "brown hair in two plaits and a fringe"
    assert hair_phrase(replace(hair, style="curly", gray=0.5)) == "curly graying brown hair"
    assert hair_phrase(replace(hair, style="bald")) == ""
    assert (
        replace(hair, color_name="blue", color=(0.1, 0.3, 0.7)).natural == HAIR_COLORS["dark brown"]
    )
    for style in HAIR_STYLES[1:]:
        assert "brown" in hair_phrase(replace(hair, style=style))


def test_the_hairline_is_where_the_style_says() -> None:
    hair = replace(sample_person(0, 0).hair, style="cropped", hairline=0.0)
    crown, brow, nape = (np.array(a) for a in ((0.0, 10.0), (0.0, 80.0), (180.0, 120.0)))
    assert hairline_margin(hair, *crown) > 0 > hairline_margin(hair, *brow)
    assert hairline_margin(hair, *nape) > 0
    assert hairline_margin(replace(hair, hairline=-4.0), *brow) < hairline_margin(hair, *brow)
    tonsure = replace(hair, style="horseshoe")
    assert hairline_margin(tonsure, *crown) < 0 < hairline_margin(tonsure, *nape)
    assert hairline_margin(replace(hair, style="bald"), *nape) < 0


def test_skin_darkens_with_tone() -> None:
    brightness = [sum(skin_color(t)) for t in np.linspace(0, 1, 9)]
    assert brightness == sorted(brightness, reverse=True)


def test_the_two_sides_of_a_face_are_nearly_alike() -> None:
    shape = sample_person(0, 3).shape
    left = {k[2:]: v for k, v in shape.items() if k.startswith("l-")}
    right = {k[2:]: v for k, v in shape.items() if k.startswith("r-")}
    assert left.keys() == right.keys() and left
    assert max(abs(left[k] - right[k]) for k in left) < 0.4


def test_view_zero_is_the_reference_and_no_view_leaves_its_range() -> None:
    for person in range(60):
        for number in range(6):
            view = sample_view(0, person, number)
            assert view == sample_view(0, person, number)
            assert abs(view.yaw) <= 20 and abs(view.pitch) <= 8
            assert view.time in SCENES[view.scene] and view.style in STYLES
            assert view.role in ROLES and view.headwear in HEADWEAR
            if number == 0:
                assert view.expression == "neutral" and view.style == "photo"
                assert view.role == "person" and view.headwear == "none"
                assert abs(view.yaw) < 5 and abs(view.light_azimuth) <= 15


def test_the_views_after_the_reference_show_all_expressions() -> None:
    assert len(EXPRESSIONS) == 6
    for person in range(20):
        for first in (1, 7):
            shown = {sample_view(3, person, v).expression for v in range(first, first + 6)}
            assert shown == set(EXPRESSIONS)


def test_lenses_run_from_long_to_wide_and_the_reference_has_a_portrait_lens() -> None:
    lenses = [sample_view(0, p, v).lens for p in range(60) for v in range(1, 4)]
    assert 10 <= min(lenses) < 11.5 and 25 < max(lenses) <= 28
    assert all(12 <= sample_view(0, p, 0).lens <= 16 for p in range(60))


def test_expressions_vary_but_depend_on_their_seed_alone() -> None:
    for name in EXPRESSIONS:
        assert expression_actions(name, 0.9, 5) == expression_actions(name, 0.9, 5)
        plays = [expression_actions(name, 1.0, seed) for seed in range(30)]
        assert all(0 <= v <= 2 for actions in plays for v in actions.values())
        assert len({tuple(sorted(p.items())) for p in plays}) > 1
    laugh = expression_actions("laughing", 1.0, 3)
    assert laugh["mouthSmileLeft"] != laugh["mouthSmileRight"]
    # Whatever comes along, a laugh is nearer to other laughs than to tears.
    names = sorted({n for e in EXPRESSIONS for n in expression_actions(e)})

    def vector(actions: dict[str, float]) -> np.ndarray:
        return np.array([actions.get(n, 0.0) for n in names])

    centres = {e: vector(expression_actions(e)) for e in EXPRESSIONS}
    for name in EXPRESSIONS:
        for seed in range(20):
            face = vector(expression_actions(name, 1.0, seed))
            nearest = min(centres, key=lambda e: float(np.linalg.norm(face - centres[e])))
            assert nearest == name
    with pytest.raises(FusionError, match="bored.*laughing"):
        expression_actions("bored")


# Light, on maps made by hand.


def test_a_pit_is_darker_than_the_plane_and_a_slope_is_not() -> None:
    row, column = np.mgrid[-80:80, -80:80]
    plane = 1.0 + 0.002 * column
    assert np.allclose(shade.hollows(plane, 0.001)[45:115, 45:115], 1, atol=1e-4)
    pit = 1.0 + 0.01 * np.exp(-((row**2 + column**2) / 60))
    open_ = shade.hollows(pit, 0.001)
    assert open_[80, 80] < 0.8 < open_[20, 20]
    assert shade.hollows(2.0 - pit, 0.001)[80, 80] > 0.99  # a hill


def test_what_stands_before_the_lamp_casts_a_shadow() -> None:
    key = np.array([0.0, -1.0, 0.0])
    right, up = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    # A screen ten centimetres before the wall hides the left half of it.
    depth = np.zeros((64, 64), np.float32)
    depth[:, :32] = -0.1
    seen = shade.ShadowMap(depth, np.zeros(3), key, right, up, 0.2)
    x = np.linspace(-0.15, 0.15, 31, dtype=np.float32)
    wall = np.stack([x, 0 * x, 0 * x], 1)
    lit = shade.shadow(wall, np.tile(key, (31, 1)).astype(np.float32), seen, 0.01)
    assert (lit[x < -0.03] == 0).all() and (lit[x > 0.03] == 1).all()
    assert 0 < lit[15] < 1  # and its edge is soft


def test_light_wanders_under_the_skin_red_further_than_blue() -> None:
    light = np.zeros((32, 64, 3), np.float32)
    light[:, :32] = 1
    spread = shade._scatter(light, np.ones((32, 64), np.float32), 0.001)
    assert spread[16, 32, 0] > 1.5 * spread[16, 32, 2] > 0 and spread[16, 34, 0] > 0
    assert spread[16, 10] == pytest.approx(1, abs=1e-3)


def test_developing_keeps_the_order_of_lights_and_ends_in_white() -> None:
    ramp = np.linspace(0, 3, 300, dtype=np.float32)[:, None].repeat(3, 1)
    out = shade.develop(ramp)[:, 0]
    assert (np.diff(out) >= 0).all() and out[0] == 0 and 250 < out[-1] <= 255
    middle = np.array([[[90, 120, 60]]], np.uint8)
    assert shade.develop(shade.linear(middle)) == pytest.approx(middle, abs=4)


def test_inverse_depth_is_bright_where_it_is_near() -> None:
    depth = np.array([[np.inf, 1.0], [1.2, 1.5]], np.float32)
    assert inverse_depth(depth).tolist()[0] == [0, 255]
    assert inverse_depth(depth)[1, 1] == 64 < inverse_depth(depth)[1, 0] < 255


def test_about_half_of_the_pictures_are_photos() -> None:
    views = [sample_view(0, p, v) for p in range(300) for v in range(1, 4)]
    styles, roles = [v.style for v in views], [v.role for v in views]
    assert 0.45 < styles.count("photo") / len(styles) < 0.6
    assert 0.45 < roles.count("person") / len(roles) < 0.7
    assert set(styles) == set(STYLES) and set(roles) == set(ROLES)
    assert {v.scene for v in views} == set(SCENES)


def test_held_out_combinations_are_about_a_tenth_and_hold_out_no_prompt_of_the_paper() -> None:
    triples = [(s, c, e) for s in STYLES for c in SCENES for e in EXPRESSIONS]
    assert 0.05 < np.mean([is_held_out(*t) for t in triples]) < 0.16
    for names in (STYLES, SCENES, EXPRESSIONS):  # each name alone is seen in training
        for name in names:
            assert not all(is_held_out(*t) for t in triples if name in t)
    assert not any(
        is_held_out("photo", "garden", "laughing", role) for role in ("person", "astronaut")
    )
    assert not is_held_out("photo", "snow", "angry")
    free = next(t for t in triples if not is_held_out(*t))
    roles = [r for r in ROLES[1:] for c in SCENES if is_held_out(free[0], c, free[2], r)]
    assert set(roles) <= set(ROLES[1:]) and roles


def test_training_never_shows_a_held_out_combination_and_other_splits_do() -> None:
    def held(split: str) -> list[bool]:
        views = [sample_view(0, p, v, split=split) for p in range(120) for v in range(5)]
        return [is_held_out(v.style, v.scene, v.expression, v.role) for v in views]

    assert not any(held("train"))
    assert 0.05 < np.mean(held("heldout")) < 0.25
    # The split decides what is shown and nothing else.
    for person in range(20):
        a, b = (sample_view(0, person, 1, split=s) for s in ("train", "heldout"))
        assert (a.yaw, a.expression, a.caption_seed) == (b.yaw, b.expression, b.caption_seed)


def test_light_comes_from_the_scene() -> None:
    for person in range(60):
        view = sample_view(0, person, 1)
        light = SCENES[view.scene][view.time]
        assert light.azimuth[0] <= abs(view.light_azimuth) <= light.azimuth[1]
        assert light.strength[0] <= view.light_strength <= light.strength[1]
        assert view.light_color == light.key and view.fill_color == light.fill


def test_roles_wear_their_clothes_and_the_snow_is_cold() -> None:
    worn = {
        role: {sample_clothes(stream("t", k), role, "studio").kind for k in range(20)}
        for role in ROLES
    }
    assert len(worn["person"]) > 4
    costumes = [next(iter(worn[role])) for role in ROLES[1:]]
    assert all(len(worn[role]) == 1 for role in ROLES[1:]) and len(set(costumes)) == len(costumes)
    assert not worn["person"] & set(costumes)

    def share(scene: str) -> float:
        drawn = [sample_clothes(stream("t", k), "person", scene).kind for k in range(100)]
        return drawn.count("winter jacket") / len(drawn)

    assert share("snow") > 0.3 > 0.1 > share("beach")
    hats = [sample_headwear(stream("t", k), "royal", "studio").kind for k in range(50)]
    assert hats.count("crown") > 35


def test_captions_say_what_the_picture_shows() -> None:
    said = {"style": 0, "expression": 0, "scene": 0}
    total = 0
    for person_index in range(150):
        person = sample_person(0, person_index)
        for number in range(4):
            view = sample_view(0, person_index, number)
            text = describe(person, view)
            assert text == describe(person, view)
            assert len(text.split()) <= MOST_WORDS + 3  # at the worst, what cannot be left out
            other_gender = {"woman": "man", "man": "woman"}[person.gender]
            nouns = (person.gender, "person", role_name(person, view))
            assert any(re.search(rf"\b{noun}\b", text) for noun in nouns)
            assert not re.search(rf"\b{other_gender}\b", text)
            for other in set(ROLES) - {view.role, "person"}:
                assert not re.search(rf"\b{other}\b", text)
            total += 1
            said["style"] += any(p in text for words in STYLE_PHRASES[view.style] for p in words)
            words = [w for both in EXPRESSION_PHRASES[view.expression] for w in both]
            said["expression"] += any(w in text for w in words)
            said["scene"] += any(p in text for p in SCENE_PHRASES[view.scene])
            for other in set(EXPRESSIONS) - {view.expression, "neutral"}:
                assert not re.search(rf"\b{other}\b", text)
            for name in set(STYLES) - {view.style, "photo"}:
                assert not re.search(rf"\b{name}\b", text)
            if person.glasses == "none":
                assert "glasses" not in text
            if person.hair.style != "bald":
                assert "bald" not in text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,|,$", text)
    assert said["style"] > 0.75 * total and said["scene"] > 0.75 * total
    assert said["expression"] > 0.6 * total


def test_a_style_that_is_no_photo_is_always_said() -> None:
    for person_index in range(60):
        person = sample_person(0, person_index)
        for number in range(1, 5):
            view = sample_view(0, person_index, number)
            if view.style != "photo":
                phrases = [p for words in STYLE_PHRASES[view.style] for p in words]
                for wording in range(4):
                    assert any(p in describe(person, view, wording) for p in phrases)


def test_captions_are_worded_in_several_ways() -> None:
    person, view = sample_person(0, 0), sample_view(0, 0, 1)
    texts = {describe(person, view, wording) for wording in range(40)}
    assert len(texts) > 25
    starts = {text.split()[0] for text in texts}
    assert len(starts) > 2


def test_the_prompts_of_the_paper_are_captions() -> None:
    """A prompt that no caption resembles would be outside of what the text model has seen."""
    texts = set()
    for person_index in range(700):
        person = sample_person(1, person_index)
        view = sample_view(1, person_index, 1 + person_index % len(EXPRESSIONS))
        texts |= {describe(person, view, wording) for wording in range(4)}
    assert {"a photo of a person", "a photo of a laughing person"} <= texts
    assert any(re.match("a photo of an (angry|furious) .*in the snow", t) for t in texts)
    assert any(re.match(r"(\w+ )?astronaut .*in a garden", t) for t in texts)
    assert any(t.startswith("line art of") for t in texts)


@pytest.mark.parametrize("name", SCENES)
def test_scenes_are_deterministic_pictures_of_any_size(name: str) -> None:
    time = list(SCENES[name])[-1]
    first, again, large = (
        draw_background(name, size, np.random.default_rng(5), time=time) for size in (64, 64, 128)
    )
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    reduced = np.asarray(Image.fromarray(large).reduce(2), np.float32)
    assert np.abs(reduced - first).mean() < 14  # the same layout
    other = draw_background(name, 64, np.random.default_rng(6), time=time)
    assert np.abs(other.astype(int) - first).mean() > 2


def test_scenes_differ_more_than_their_layouts() -> None:
    def look(name: str, number: int) -> np.ndarray:
        picture = draw_background(name, 64, np.random.default_rng(number))
        return picture.reshape(4, 16, 4, 16, 3).mean((1, 3)).ravel()

    names = [n for n in SCENES if n != "studio"]  # a wall of any colour
    known = {n: np.mean([look(n, k) for k in range(3)], 0) for n in names}
    right = [
        min(names, key=lambda n: float(np.abs(known[n] - look(name, number)).sum())) == name
        for name in names
        for number in (20,)
    ]
    assert np.mean(right) > 0.8


def test_blur_takes_detail_away() -> None:
    sharp, soft = (
        draw_background("library", 128, np.random.default_rng(0), blur=b).astype(float)
        for b in (0.0, 2.0)
    )
    assert np.abs(np.diff(soft, axis=1)).mean() < 0.7 * np.abs(np.diff(sharp, axis=1)).mean()


def test_a_scene_acts_on_the_figure_at_its_edge_alone() -> None:
    cover = np.zeros((96, 96), np.float32)
    cover[20:, 24:72] = 1
    background = np.full((96, 96, 3), 250, np.uint8)
    image = np.where(cover[..., None] > 0, 60, background).astype(np.uint8)
    out = surround(image, cover, background, "studio", np.random.default_rng(0))
    assert np.array_equal(out[cover == 0], image[cover == 0])
    assert np.abs(out[50:80, 40:56].astype(int) - 60).max() <= 3
    assert out[60, 24].mean() > 70
    snowed = surround(image, cover, background, "snow", np.random.default_rng(0))
    assert (snowed[cover > 0].astype(int) - out[cover > 0] > 60).any()


def _portrait() -> tuple[np.ndarray, np.ndarray]:
    """A flat stand-in for a rendered head: picture and cover."""
    v, u = np.mgrid[-1:1:128j, -1:1:128j]
    cover = (np.hypot(u / 0.5, v / 0.7) < 1).astype(np.float32)
    picture = draw_background("garden", 128, np.random.default_rng(1)).copy()
    shade = np.clip(0.75 + 0.3 * u, 0, 1)[..., None] * [214, 160, 130]
    for x in (-0.2, 0.2):
        shade = np.where((np.hypot((u - x) / 0.09, (v + 0.1) / 0.05) < 1)[..., None], 30, shade)
    return np.where(cover[..., None] > 0, shade, picture).astype(np.uint8), cover


@pytest.mark.parametrize("style", STYLES)
def test_styles_change_the_picture_as_they_should(style: str) -> None:
    picture, cover = _portrait()
    out = apply_style(picture, style, np.random.default_rng(0), figure=cover)
    assert np.array_equal(out, apply_style(picture, style, np.random.default_rng(0), figure=cover))
    assert out.shape == picture.shape and out.dtype == np.uint8
    colorless = bool((out[..., 0] == out[..., 1]).all() and (out[..., 1] == out[..., 2]).all())
    assert colorless == (style in ("noir", "line art"))
    assert np.array_equal(out, picture) == (style == "photo")
    # The eyes stay darker than the cheeks: a face remains a face.
    eye, cheek = out[56:60, 49:53].mean(), out[72:76, 49:53].mean()
    assert eye < cheek - 12
    assert apply_style(picture, style, np.random.default_rng(0)).shape == picture.shape


def test_what_makes_each_style() -> None:
    picture, cover = _portrait()

    def styled(style: str) -> np.ndarray:
        return apply_style(picture, style, np.random.default_rng(0), figure=cover).astype(float)

    outside = cover == 0
    drawing = styled("line art")
    assert (drawing > 235).mean() > 0.7 and (drawing < 90).any()  # lines on paper, no grey fills
    neon = styled("neon")
    assert neon[outside].mean() < 0.5 * picture[outside].mean()  # a dark scene
    left, right = neon[:, :48][cover[:, :48] > 0].mean(0), neon[:, 80:][cover[:, 80:] > 0].mean(0)
    assert abs((left - right)[0]) + abs((left - right)[2]) > 30  # lit in two colours
    paper = styled("watercolor")
    assert paper[:4].mean() > 225 and paper[:, :4].mean() > 225  # a margin of bare paper
    faded = styled("faded film")
    assert faded.min() > 15 and np.ptp(faded, axis=-1).mean() < np.ptp(picture, axis=-1).mean()
    comic = styled("comic")
    ring = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 128) / r for r in (0.5, 0.7)]))
    assert comic[np.abs(ring - 1) < 0.02].mean() < 70  # inked outline
    noir = styled("noir")
    corners = [(slice(a, a + 12), slice(b, b + 12)) for a in (0, 116) for b in (0, 116)]
    assert all(noir[c].mean() < 0.75 * picture[c].mean() for c in corners)


def test_unknown_names_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(FusionError, match="moon.*beach"):
        draw_background("moon", 64, rng)
    with pytest.raises(FusionError, match="no library at 'dawn'.*day"):
        draw_background("library", 64, rng, time="dawn")
    with pytest.raises(FusionError, match="cubist.*watercolor"):
        apply_style(np.zeros((8, 8, 3), np.uint8), "cubist", rng)


@pytest.mark.parametrize("kind", CLOTHES)
def test_cloth_is_painted_as_large_as_the_front_of_a_body(kind: str) -> None:
    from companion.people.wardrobe import paint_cloth

    clothes = Clothes(kind, "plain", "red", (0.7, 0.1, 0.1), (0.1, 0.2, 0.7), 3)
    first = paint_cloth(clothes)
    assert first.shape == (400, 920, 3) and first.dtype == np.uint8  # millimetres
    assert np.array_equal(first, paint_cloth(clothes))
    mean = first.reshape(-1, 3).mean(0)
    assert max(mean[0], mean[2]) > mean[1]


def test_patterns_show() -> None:
    from companion.people.wardrobe import paint_cloth

    spread = {
        pattern: paint_cloth(
            Clothes("t-shirt", pattern, "red", (0.7, 0.1, 0.1), (0.9, 0.9, 0.9), 3)
        )[..., 1].std()
        for pattern in ("plain", "striped", "checked", "dotted")
    }
    assert all(spread[p] > spread["plain"] + 20 for p in ("striped", "checked", "dotted"))


# The data set's layout, with a renderer that paints plain squares.


class _Painter:
    """A stand-in for the renderer that records the people it was asked for."""

    def __init__(self) -> None:
        self.people: list[int] = []

    def __call__(
        self, seed: int, person: int, views: int, size: int, split: str
    ) -> Iterator[dataset.Sample]:
        self.people.append(person)
        for number in range(views):
            view = sample_view(seed, person, number, split=split)
            who = sample_person(seed, person)
            key = f"{person * 100 + number:09d}"
            record = {"key": key, "person": person, "view": number, "split": split}
            record |= {"caption": describe(who, view), **attributes(who, view)}
            image = np.full((size, size, 3), (person * 40 + number) % 256, np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            files = {
                "jpg": buffer.getvalue(),
                "txt": record["caption"].encode(),
                "json": json.dumps(record).encode(),
                "mask.png": b"",
            }
            yield dataset.Sample(key, record, files)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> _Painter:
    painter = _Painter()
    monkeypatch.setattr(dataset, "make_samples", painter)
    monkeypatch.setattr(dataset, "SAMPLES_PER_SHARD", 4)
    monkeypatch.setattr(dataset, "require", lambda *packages: None)
    monkeypatch.setattr(dataset, "_load", lambda: None)
    # A patched function does not reach a new process: work in threads of this one.
    from concurrent.futures import ThreadPoolExecutor

    def pool(workers: int, **_: object) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(dataset, "ProcessPoolExecutor", pool)
    return painter


def test_shards_hold_img2dataset_samples(tmp_path: Path, painter: _Painter) -> None:
    manifest = dataset.render_dataset(tmp_path / "set", people=5, views=2, size=16, first_person=3)
    record = json.loads(manifest.read_text())
    assert record["complete"] and record["samples"] == 10 and record["first_person"] == 3
    assert [s["samples"] for s in record["shards"]] == [4, 4, 2]
    assert sorted(painter.people) == [3, 4, 5, 6, 7]
    names: list[str] = []
    for shard in record["shards"]:
        with tarfile.open(manifest.parent / shard["file"]) as archive:
            names += archive.getnames()
    suffixes = ["jpg", "txt", "json", "mask.png"]
    assert names == [
        f"{p * 100 + v:09d}.{s}" for p in range(3, 8) for v in (0, 1) for s in suffixes
    ]
    assert sorted(p.name for p in manifest.parent.iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
        "manifest.json",
    ]


def test_a_finished_shard_is_not_made_again(tmp_path: Path, painter: _Painter) -> None:
    dataset.render_dataset(tmp_path, people=4, views=2, size=16, workers=1)
    before = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").unlink()
    painter.people.clear()
    dataset.render_dataset(tmp_path, people=4, views=2, size=16, workers=3)
    assert sorted(painter.people) == [2, 3]
    assert (tmp_path / "00001.tar").read_bytes() == before


def _made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_set_that_grows_is_the_set_rendered_in_one_go(tmp_path: Path, painter: _Painter) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    dataset.render_dataset(grown, people=3, views=2, size=16)
    painter.people.clear()
    dataset.render_dataset(grown, people=6, views=2, size=16)
    assert sorted(painter.people) == [2, 3, 4, 5], "not the first shard, which has all it should"
    dataset.render_dataset(whole, people=6, views=2, size=16)
    assert _made(grown) == _made(whole)


def test_a_damaged_shard_is_made_again(tmp_path: Path, painter: _Painter) -> None:
    dataset.render_dataset(tmp_path, people=4, views=2, size=16)
    before = _made(tmp_path)
    for name, length in (("00000.tar", 3000), ("00001.tar", 0)):
        (tmp_path / name).write_bytes(before[name][:length])
    dataset.render_dataset(tmp_path, people=4, views=2, size=16)
    assert _made(tmp_path) == before


@pytest.mark.parametrize("people", [1, 2])
def test_a_set_is_not_made_smaller(tmp_path: Path, painter: _Painter, people: int) -> None:
    dataset.render_dataset(tmp_path, people=3, views=2, size=16)
    before = _made(tmp_path)
    with pytest.raises(FusionError, match=r"picture\(s\) more than are asked for"):
        dataset.render_dataset(tmp_path, people=people, views=2, size=16)
    assert _made(tmp_path) == before


def test_a_broken_run_leaves_no_half_shard(
    tmp_path: Path, painter: _Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> Iterator[dataset.Sample]:
        yield from painter(0, 0, 1, 16, "train")
        raise RuntimeError("stopped")

    monkeypatch.setattr(dataset, "make_samples", broken)
    with pytest.raises(RuntimeError, match="stopped"):
        dataset.render_dataset(tmp_path, people=1, views=2, size=16)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
    assert not json.loads((tmp_path / "manifest.json").read_text())["complete"]


def test_a_folder_with_another_set_is_refused(tmp_path: Path, painter: _Painter) -> None:
    dataset.render_dataset(tmp_path, people=1, views=2, size=16)
    with pytest.raises(FusionError, match="seed = 0, not 1"):
        dataset.render_dataset(tmp_path, people=1, views=2, size=16, seed=1)


def test_plain_files_come_with_an_index(tmp_path: Path, painter: _Painter) -> None:
    index = dataset.export_files(tmp_path, people=2, views=3, size=16, first_person=50)
    with index.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["file"] for r in rows] == [f"{p:04d}_{v}.jpg" for p in (0, 1) for v in (0, 1, 2)]
    for row in rows:
        stem = row["file"].removesuffix(".jpg")
        assert (tmp_path / f"{stem}.txt").read_text() == row["caption"]
        assert (tmp_path / f"{stem}.mask.png").exists()
    assert painter.people == [50, 51]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"people": 0}, "number of people"),
        ({"views": 0}, "number of views"),
        ({"views": 101}, "number of views"),
        ({"workers": 0}, "number of workers"),
    ],
)
def test_impossible_numbers_are_refused(
    tmp_path: Path, wrong: dict[str, int], message: str
) -> None:
    numbers = {"people": 1, "views": 1, "workers": 1} | wrong
    with pytest.raises(FusionError, match=message):
        dataset.render_dataset(tmp_path, **numbers)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "anny" else find(name, *a)
    )
    with pytest.raises(FusionError, match="'anny'.*fusionlib\\[people\\]"):
        dataset.render_dataset(tmp_path, people=1, views=1)


def test_sampling_needs_no_renderer() -> None:
    import subprocess

    code = (
        "import sys, companion.people.dataset, companion.people.caption;"
        "sys.exit(bool({'anny', 'pyvista', 'vtk', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_committed_heldout_set_is_whole() -> None:
    with (HELDOUT / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1400
    assert len({r["person"] for r in rows}) == 200
    total = 0
    for row in rows:
        path = HELDOUT / row["file"]
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["caption"] == row["caption"] == path.with_suffix(".txt").read_text()
        assert record["person"] >= 1_000_000 and record["split"] == "heldout"
        mask = np.asarray(Image.open(path.with_suffix("").with_suffix(".mask.png")))
        with Image.open(path) as image:
            assert image.size == (128, 128) == mask.shape[::-1]
        assert set(np.unique(mask)) == {0, 255}
        assert 0.08 < (mask > 0).mean() < 0.6
        if row["view"] == "0":
            assert row["expression"] == "neutral" and row["style"] == "photo"
        # The committed captions are what the code of today says about these people.
        person = sample_person(record["seed"], record["person"])
        view = sample_view(record["seed"], record["person"], record["view"], split=record["split"])
        assert [describe(person, view, w) for w in range(dataset.WORDINGS)] == record["captions"]
        assert record["captions"][0] == row["caption"]
    total = sum(p.stat().st_size for p in HELDOUT.iterdir())
    assert total < 30_000_000


@pytest.mark.slow
def test_hair_and_headwear_fit_every_head() -> None:
    pytest.importorskip("anny")
    from companion.people.hair import hair_mesh
    from companion.people.head import load_head_model
    from companion.people.headwear import headwear_mesh
    from companion.people.scalp import skull

    model = load_head_model()
    marks = model.landmarks

    def over_an_eye(points: np.ndarray) -> int:
        """Return the number of points that hide an eye from a camera in front."""
        from_eye = np.abs(np.abs(points[:, 0]) - marks.eye_left[0])
        level = np.abs(points[:, 2] - marks.eyes[2])
        return int(
            ((from_eye < 0.012) & (level < 0.006) & (points[:, 1] < marks.eyes[1] - 0.008)).sum()
        )

    for index, style in enumerate(HAIR_STYLES):
        person = sample_person(5, index)
        person = replace(person, hair=replace(person.hair, style=style))
        raw = model.neutral(person)
        scale, rotation, shift = model.alignment(raw)
        head = raw @ (scale * rotation.T) + shift
        mesh = hair_mesh(person, head)
        assert (mesh is None) == (style == "bald")
        kind = HEADWEAR[1 + index % (len(HEADWEAR) - 1)]
        hat = headwear_mesh(kind, (0.5, 0.1, 0.1), head)
        assert hat is not None
        for part in (mesh, hat):
            if part is None:
                continue
            assert np.isfinite(part.points).all() and np.isfinite(part.normals).all()
            assert part.faces.min() >= 0 and part.faces.max() < len(part.points)
            assert part.colors.min() >= 0 and part.colors.max() <= 1
            assert over_an_eye(part.points) == 0, (style, kind)
        if mesh is None:
            continue
        assert len(mesh.faces) < 60_000
        again = hair_mesh(person, head)
        assert again is not None and np.array_equal(mesh.points, again.points)
        # Hair lies on the skull, but for a few strands drawn through it by their neighbours.
        _, distance, radius = skull(head).reach(mesh.points.astype(np.float32))
        upper = mesh.points[:, 2] > marks.eyes[2]
        depth = (radius - distance)[upper]
        assert np.percentile(depth, 99) < 0.004 and depth.max() < 0.05
        # A beanie lies over the hair beneath it: nothing sticks out of its top.
        under = hair_mesh(person, head, "beanie")
        assert under is not None
        top = headwear_mesh("beanie", (0.5, 0.1, 0.1), head)
        assert top is not None and under.points[:, 2].max() < top.points[:, 2].max()


@pytest.mark.slow
def test_the_renderer_makes_the_committed_people_again() -> None:
    """Loads `anny` (minutes on a machine that has not loaded it before)."""
    pytest.importorskip("anny")
    pytest.importorskip("pyvista")
    samples = list(dataset.make_samples(0, 1_000_000, 2, 128, "heldout"))
    for number, sample in enumerate(samples):
        made = np.asarray(Image.open(io.BytesIO(sample.files["jpg"])), np.float32)
        kept = np.asarray(Image.open(HELDOUT / f"0000_{number}.jpg"), np.float32)
        # Another processor or driver may round otherwise.
        assert np.abs(made - kept).mean() < 2.0
        mask = np.asarray(Image.open(io.BytesIO(sample.files["mask.png"]))) > 0
        old = np.asarray(Image.open(HELDOUT / f"0000_{number}.mask.png")) > 0
        assert (mask & old).sum() / (mask | old).sum() > 0.98


@pytest.mark.slow
def test_two_figures_on_one_stage_have_masks_and_distances_of_their_own() -> None:
    pytest.importorskip("anny")
    pytest.importorskip("pyvista")
    from companion.people import render

    view = sample_view(0, 1, 0)
    camera = render.portrait_camera(view)
    background = np.full((128, 128, 3), 120, np.uint8)
    figures = [
        render.move(render.pose(render.sit(sample_person(0, i)), view), np.eye(3), np.array(offset))
        for i, offset in ((1, [-0.06, 0.0, 0.0]), (2, [0.06, 0.20, 0.0]))
    ]
    light = render.view_light(view, camera)
    shot = render.photograph(figures, camera, light, background, reach=0.4)
    assert set(np.unique(shot.figure)) == {0, 1, 2}
    assert np.array_equal(np.isfinite(shot.depth), shot.figure > 0)
    assert (shot.image[shot.figure == 0] == 120).all()
    faces = [shot.face & (shot.figure == number) for number in (1, 2)]
    assert min(f.sum() for f in faces) > 300
    near, far = (float(np.median(shot.depth[f])) for f in faces)
    assert far - near == pytest.approx(0.20, abs=0.03)
    # The nearer one stands to the person's right, the picture's left, and hides the other.
    assert np.nonzero(faces[0])[1].mean() < np.nonzero(faces[1])[1].mean()
    assert faces[0].sum() > faces[1].sum()
    with pytest.raises(FusionError, match="not 0"):
        render.photograph([], camera, light, background)


@pytest.mark.slow
def test_a_portrait_is_deterministic_with_a_face_in_its_middle_and_a_depth() -> None:
    pytest.importorskip("anny")
    pytest.importorskip("pyvista")
    from companion.people.render import render_views

    person, view = sample_person(0, 3), sample_view(0, 3, 0)
    first, again = (render_views(person, [view], 64)[0] for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert first.depth.shape == (64, 64) and np.isfinite(first.depth[32, 32])
    assert first.mask[32, 32] == 255 and 0.1 < (first.mask > 0).mean() < 0.6
    assert np.isfinite(first.depth[first.mask > 0]).mean() > 0.98
    face = first.depth[first.mask > 0]
    assert face.min() < first.depth[np.isfinite(first.depth)].mean()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLOTHES)
def test_clothes_fit_every_body(kind: str) -> None:
    """Clothes wrap the neck without entering it, and leave the face free."""
    pytest.importorskip("anny")
    from companion.people.head import load_head_model
    from companion.people.wardrobe import NECK, dress

    model = load_head_model()
    clothes = Clothes(kind, "plain", "red", (0.7, 0.1, 0.1), (0.1, 0.2, 0.7), 3)
    for number in range(4):
        raw = model.neutral(sample_person(4, number))
        scale, rotation, shift = model.alignment(raw)
        points = raw @ (scale * rotation.T) + shift
        mouth = points[np.unique(model.faces["mouth"])][:, 2].mean()
        pieces = dress(clothes, points)
        assert pieces["garment"].texture is not None and pieces["garment"].uv is not None
        for piece in pieces.values():
            cloth = piece.points
            assert piece.normals is not None
            assert np.isfinite(cloth).all() and np.isfinite(piece.normals).all()
            assert piece.faces.max() < len(cloth) == len(piece.normals)
            front = cloth[(np.abs(cloth[:, 0]) < 0.05) & (cloth[:, 1] < NECK[1])]
            assert len(front) == 0 or front[:, 2].max() < mouth - 0.01
            assert np.linalg.norm(cloth - NECK, axis=1).min() > 0.02
