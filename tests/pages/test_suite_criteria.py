"""What the cards print: criteria, copies and distributions, each against something independent."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageColor
from safetensors.numpy import save_file

from companion.evaluation.measure import Measurements
from companion.evaluation.separation import Separation, frechet_distance
from companion.evaluation.statistics import Interval
from companion.pages import copies
from companion.pages import suite_criteria as criteria
from companion.pages.data_and_model_cards import (
    captions_and_pictures,
    criteria_table,
    evenly_spread,
    heldout_counts,
    histograms,
    sampled_attributes,
)
from companion.pages.suite_criteria import Criterion
from companion.pages.training_records import loss_curves, trained_methods, training_table
from companion.people.appearance import sample_person
from companion.people.view import View, sample_view
from companion.person import load_people
from companion.studies.declaration import load_declaration
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from tests.helpers.training_data import write_tar

ROOT = ROOT
HELDOUT = ROOT / "data/heldout"


def test_a_criterion_is_met_by_its_estimate_and_not_by_nothing() -> None:
    def met(value: float | Interval) -> bool:
        return Criterion("a", "b", 0.8, value, "c").met

    assert met(0.8) and met(Interval(0.81, 0.7, 0.9))
    assert not met(0.79) and not met(Interval(0.79, 0.7, 0.9)) and not met(float("nan"))


def test_people_are_judged_by_what_was_found() -> None:
    auc, faces = criteria.criteria_of_people(Separation(0.981, 0.05, 0.11, 197, 200))
    assert (auc.value, auc.met) == (0.981, True)
    assert (faces.value, faces.met) == (0.985, False)


def test_the_base_model_is_judged_by_shares_of_its_own_pictures() -> None:
    images = pd.DataFrame(
        {
            "method": ["text-only"] * 4 + ["fused"] * 2,
            "person": ["a", "a", "b", "b", "a", "b"],
            "face": [True, True, True, False, False, False],
            "expression_correct": [1, 1, 0, np.nan, 0, 0],
            "style_correct": [1, 1, 1, 1, 0, 0],
        }
    )
    found = {
        c.what: c for c in criteria.criteria_of_base(Measurements(images, {}, "dlib", "reference"))
    }
    assert found["expression as prompted"].value == pytest.approx((1 + 0) / 2), "people count once"
    assert found["expression as prompted"].looked_at == "3 pictures"
    assert found["style as prompted"].met and not found["faces found, over all styles"].met
    assert "scene as prompted" not in found

    one = images[images["person"] == "a"]
    alone = {
        c.what: c for c in criteria.criteria_of_base(Measurements(one, {}, "dlib", "reference"))
    }
    assert alone["style as prompted"].value == 1.0, "a share, though no interval"


def test_faces_are_looked_for_in_renders_of_the_same_styles(tmp_path: Path) -> None:
    """Photographs with a face, and pictures called noir that are blank."""
    folder = tmp_path / "renders"
    folder.mkdir()
    lines = ["person,file"]
    for number, person in enumerate(load_people(HELDOUT, 2, only={"style": "photo"})):
        for style, image in (
            ("photo", Image.open(person.references[0])),
            ("noir", Image.new("RGB", (128, 128))),
        ):
            name = f"{number}_{style}"
            image.save(folder / f"{name}.png")
            (folder / f"{name}.json").write_text(json.dumps({"style": style}))
            lines.append(f"{number},{name}.png")
    (folder / "index.csv").write_text("\n".join(lines))
    styles = {"a photo": "photo", "a dark one": "noir", "a neon one": "neon"}
    painted = pd.DataFrame(
        {"prompt": ["a photo"] * 4 + ["a dark one", "else"], "face": [1, 1, 0, 1, 0, 1]}
    ).astype({"face": bool})
    table = criteria.faces_by_style(painted, styles, folder)
    assert table.to_dict("index") == {
        "photo": {"painted": 0.75, "of painted": 4, "renders": 1.0, "of renders": 2},
        "noir": {"painted": 0.0, "of painted": 1, "renders": 0.0, "of renders": 2},
    }
    (found,) = criteria.criteria_of_renders(table)
    assert (found.value, found.met, found.looked_at) == (0.5, None, "4 renders")
    assert len(criteria.faces_by_style(painted, styles, folder, people=1)) == 2


def test_the_declared_suite_is_the_list_of_prompts() -> None:
    listed = pd.read_csv(ROOT / "data/prompts/suite.csv")
    assert load_declaration(ROOT / "data/studies/suite.yaml").prompts == list(listed["prompt"])


def test_adapters_are_judged_by_their_own_pictures() -> None:
    images = pd.DataFrame(
        {
            "method": ["fused"] * 4 + ["fused-v1"] * 2 + ["text-only"],
            "person": ["a", "a", "b", "b", "a", "b", "c"],
            "expression_correct": [1, 1, 1, 0, 0, 1, 0],
        }
    )
    measured = Measurements(images, {}, "dlib", "reference")
    (second,) = criteria.criteria_of_adapter(measured, {})
    (first,) = criteria.criteria_of_adapter(measured, {}, "fused-v1", least=None)
    assert (second.value, second.met, second.looked_at) == (0.75, False, "2 people, 4 pictures")
    assert (first.value, first.met, first.looked_at) == (0.5, None, "2 people, 2 pictures")
    assert criteria.criteria_of_adapter(measured, {}, "decoupled") == []


def test_the_table_says_which_bound_was_missed() -> None:
    table = criteria_table(
        [
            Criterion("a", "x", 0.5, 0.6, "1"),
            Criterion("a", "y", 0.5, Interval(0.4, 0.3, 0.5), "2"),
            Criterion("a", "z", None, 0.1, "3"),
        ],
        "A run.",
    ).data
    assert list(table["met"]) == ["yes", "no", "–"]
    assert list(table["at least"]) == ["0.5", "0.5", "–"]
    assert table.loc["a: y", "measured"] == "0.400 [0.300, 0.500]"


def test_pictures_to_look_at_are_spread_over_all_of_them() -> None:
    assert evenly_spread(range(36), 6) == [0, 7, 14, 21, 28, 35]
    assert evenly_spread("abcd", 6) == list("abcd")
    assert evenly_spread("abcde", 3) == ["a", "c", "e"]
    assert evenly_spread([], 6) == [] and evenly_spread("ab", 1) == ["a"]


def test_trainings_of_the_compared_systems_are_shown_as_those_of_the_suite(tmp_path: Path) -> None:
    import json

    folder = tmp_path / "training"
    folder.mkdir()
    names = [f"system {number}" for number in range(6)]
    for number, name in enumerate(names):
        run = {"samples": 640, "steps": 20, "seconds": 60.0 * number, "machine": "A CPU"}
        (folder / f"{name}.json").write_text(json.dumps(run))
        log = pd.DataFrame({"samples": range(32, 672, 32), "loss": np.linspace(1, 0.5, 20)})
        log.to_csv(folder / f"{name}.csv")
        (tmp_path / name / "part").mkdir(parents=True)
        weights = {"w": np.zeros((1000, 500), np.float16)}
        save_file(weights, tmp_path / name / "part" / "w.safetensors")
    methods = trained_methods(tmp_path)
    assert list(methods) == names
    table = training_table(tmp_path, methods).data
    assert list(table.index) == names and list(table["minutes"]) == [f"{n}.0" for n in range(6)]
    assert set(table["parameters, M"]) == {"0.50"}, "wherever in its folder a system keeps weights"
    drawn = loss_curves(tmp_path, methods)
    assert drawn.height > drawn.width / 3, "two lines of panels"
    assert all(f"{name} from" in drawn.info["alt"] for name in names)
    assert trained_methods(tmp_path / "nowhere") == {}
    with pytest.raises(FusionError, match="no record of a training"):
        loss_curves(tmp_path / "nowhere", {})


class FakeClip:
    """Embeds a picture as its mean colour; an instrument as the real one."""

    name, needs_face, dimension, fingerprint = "clip", False, 3, "mean colour"

    def __init__(self, checkpoint: str = "") -> None:
        pass

    def read(self, image: Image.Image, face: object) -> np.ndarray:
        return np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) / 255

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.array([ImageColor.getrgb(text) for text in texts], np.float32) / 255


def test_a_training_set_is_known_by_its_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import json

    def one(person: int, view: int, colour: tuple[int, int, int]) -> dict[str, dict[str, bytes]]:
        stream = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(stream, "PNG")
        record = {"person": person, "view": view, "seed": 3, "key": f"{person}{view}"}
        files = {"png": stream.getvalue(), "txt": b"a", "json": json.dumps(record).encode()}
        return {f"{person:04d}{view:02d}": files}

    files = one(0, 0, (250, 10, 10)) | one(7, 3, (0, 0, 0))  # of which the second is damaged
    files["000703"]["png"] = files["000703"]["png"][:60]
    files |= one(0, 1, (10, 250, 10)) | one(1, 0, (10, 10, 250))
    write_tar(tmp_path / "00000.tar", files)
    monkeypatch.setattr(copies, "ClipScorer", FakeClip)
    out = tmp_path / "seen.safetensors"
    assert copies.embed_training_set(tmp_path, "none", out) == 3
    assert not list(tmp_path.glob(".*partial"))
    seen = copies.load_training_embeddings(out)
    assert (seen.seed, seen.clip) == (3, "mean colour")
    np.testing.assert_allclose(np.linalg.norm(seen.embeddings, axis=1), 1, rtol=1e-6)

    rendered = []

    def render(seed: int, person: int, view: int, size: int) -> Image.Image:
        rendered.append((seed, person, view, size))
        return Image.new("RGB", (size, size))

    monkeypatch.setattr(copies, "_render", render)
    Image.new("RGB", (40, 40), (5, 120, 6)).save(tmp_path / "green.png")
    rows = copies.nearest_in_training([tmp_path / "green.png"], seen, FakeClip(), count=2, size=32)
    assert len(rows) == 1 and len(rows[0]) == 3
    assert (3, 0, 1, 32) in rendered and len(rendered) == 2
    places = list(zip(seen.person.tolist(), seen.view.tolist(), strict=True))
    assert places == [(0, 0), (0, 1), (1, 0)], "what cannot be read moves nobody's place"
    near = copies.similarity_to_training({"one": [tmp_path / "green.png"]}, seen, FakeClip())
    unit = np.array([5, 120, 6]) / np.linalg.norm([5, 120, 6])
    other = np.array([10, 250, 10]) / np.linalg.norm([10, 250, 10])
    assert near.loc["one", "largest"] == pytest.approx(float(unit @ other), abs=1e-3)

    marks = {(0, 0): "red", (0, 1): "lime", (1, 0): "blue"}
    monkeypatch.setattr(
        copies, "_render", lambda seed, p, v, size: Image.new("RGB", (8, 8), marks[p, v])
    )
    asked = np.array([[1.0, 5.0, 2.0], [3.0, 0.0, 9.0]], np.float32)
    lines = copies.render_nearest(asked, seen, 3, size=8)
    shown = [[picture.getpixel((0, 0)) for picture in line] for line in lines]
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert shown == [[green, blue, red], [blue, red, green]], "the nearest first"

    paths = [tmp_path / f"{number}.png" for number in range(11)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 40), (10, 250, 10 + 2 * number**2)).save(path)
    told = copies.similarity_to_training({"all": paths}, seen, FakeClip()).loc["all"]
    best = []
    for path in paths:
        colour = np.asarray(Image.open(path), float)[0, 0]
        best.append(max(seen.embeddings @ (colour / np.linalg.norm(colour))))
    wanted = [11, np.median(best), np.quantile(best, 0.95), max(best)]
    assert list(told) == pytest.approx(wanted, abs=1e-6)
    assert wanted[1] - np.mean(best) > 0.01 and wanted[2] - np.quantile(best, 0.9) > 1e-5

    monkeypatch.setattr(FakeClip, "fingerprint", "another")
    with pytest.raises(FusionError, match="another CLIP model"):
        copies.similarity_to_training({"one": [tmp_path / "green.png"]}, seen, FakeClip())
    with pytest.raises(FusionError, match="another CLIP model"):
        copies.nearest_in_training([tmp_path / "green.png"], seen, FakeClip())
    mixed = one(0, 0, (1, 2, 3)) | one(1, 0, (3, 2, 1))
    mixed["000100"]["json"] = mixed["000100"]["json"].replace(b'"seed": 3', b'"seed": 4')
    write_tar(tmp_path / "mixed" / "00000.tar", mixed)
    with pytest.raises(FusionError, match="one rendered data set.* found 2 seeds"):
        copies.embed_training_set(tmp_path / "mixed", "none", out)
    with pytest.raises(FusionError, match="fusionlib data"):
        copies.load_training_embeddings(tmp_path / "nothing.safetensors")


def test_a_training_picture_is_rendered_again_as_training_saw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other splits show combinations that training leaves out; nothing is rendered here."""
    plans = []

    def record(person: object, plan: list[View], size: int, **_: object) -> list[object]:
        plans.append((person, plan))
        picture = SimpleNamespace(image=np.zeros((size, size, 3), np.uint8))
        return [picture for _ in plan]

    number, view = next(
        (number, view)
        for number in range(50)
        for view in range(7)
        if sample_view(3, number, view) != sample_view(3, number, view, split="heldout")
    )
    monkeypatch.setattr("companion.people.render.render_views", record)
    copies._render(3, number, view, 16)
    ((person, (shown,)),) = plans
    assert person == sample_person(3, number)
    assert shown == sample_view(3, number, view, split="train")


def test_the_distance_to_renders_needs_equal_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sets = []
    for shift in (0, 0, 60):
        paths = []
        for number in range(30):
            colour = rng.integers(80, 140, 3) + shift
            path = tmp_path / f"{shift}-{number}-{len(sets)}.png"
            Image.new("RGB", (32, 32), tuple(int(c) for c in colour)).save(path)
            paths.append(path)
        sets.append(paths)
    first, second, shifted = sets
    found = criteria.distance_to_renders(shifted, first, second, {"colour": FakeClip()})
    assert found.loc["colour", "generated"] > 5 * found.loc["colour", "renders"]
    assert found.loc["colour", "generated"] == pytest.approx(3 * (60 / 255) ** 2, rel=0.3)
    with pytest.raises(FusionError, match="equal numbers"):
        criteria.distance_to_renders(shifted[:5], first, second, {"colour": FakeClip()})

    class Blind(FakeClip):
        def read(self, image: Image.Image, face: object) -> np.ndarray | None:
            colour = super().read(image, face)
            return None if colour[0] < 0.4 else colour

    def features(paths: list[Path]) -> np.ndarray:
        colours = np.array([Image.open(path).getpixel((0, 0)) for path in paths]) / 255
        return colours[np.float32(colours[:, 0]) >= np.float32(0.4)]

    seen = [features(paths) for paths in (shifted, first, second)]
    least = min(map(len, seen))
    assert len({len(each) for each in seen}) > 1 and least > 5
    found = criteria.distance_to_renders(shifted, first, second, {"some": Blind()}).loc["some"]
    a, b, c = (each[:least] for each in seen)
    assert found["pictures"] == least
    assert found["generated"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert found["renders"] == pytest.approx(frechet_distance(c, b), rel=1e-3)


def test_what_is_sampled_is_what_is_rendered_and_drawn() -> None:
    table = sampled_attributes(30, views=3)
    assert len(table) == 90 and set(table["view"]) == {0, 1, 2}
    assert table.loc[table["view"] == 0, "expression"].eq("neutral").all()
    assert table["skin tone"].between(0, 1).all() and table["skin tone"].std() > 0.1
    assert table.groupby("person")["hair_style"].nunique().max() == 1
    drawn = histograms(table, ["age", "style", "beard"], columns=2)
    assert np.asarray(drawn).std() > 10


def test_histograms_tell_what_they_show() -> None:
    table = pd.DataFrame(
        {"age": [20, 30, 40, 50, 60], "hair_style": ["bob", "bob", "bun", "bob", "afro"]}
    )
    assert histograms(table, ["age", "hair_style"]).info["alt"] == (
        "Histograms: age from 20 to 60, half of it from 30 to 50; "
        "hair style: 3, from bob (60%) to afro (20%)."
    )


def test_captions_and_pictures_belong_together() -> None:
    captions, drawn, further = captions_and_pictures(ROOT / "data" / "heldout", 12)
    assert len(set(captions)) == len(drawn) == len(further) == 12
    assert not set(drawn) & set(further)
    for caption, path in zip(captions, drawn, strict=True):
        assert path.with_suffix(".txt").read_text() == caption
    with pytest.raises(FusionError, match="fewer than"):
        captions_and_pictures(ROOT / "data" / "heldout", 100_000)


def test_the_autoencoder_is_judged_on_what_it_gives_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from companion.person import Person

    people, rng = [], np.random.default_rng(0)
    for name in ("a", "b"):
        paths = []
        base = rng.integers(40, 200, 3)
        for number in range(2):
            path = tmp_path / f"{name}{number}.png"
            colour = tuple(int(c) for c in base + rng.integers(-4, 5, 3))
            Image.new("RGB", (128, 128), colour).save(path)
            paths.append(path)
        people.append(Person(name, (paths[0],), (paths[1],)))

    def darker(pipeline: object, images: list[Image.Image]) -> list[Image.Image]:
        return [image.point(lambda value: value - 10) for image in images]

    monkeypatch.setattr(criteria, "reconstruct", darker)

    class Pipeline:
        vae = torch.nn.Linear(1, 1)

    quality, auc = criteria.criteria_of_autoencoder(
        Pipeline(), people, FakeClip(), out=tmp_path, cache=tmp_path / "cache"
    )
    # A difference of 10 in every pixel.
    assert quality.value == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    assert auc.value == 1.0 and auc.looked_at == "4 photographs"
    assert len(list(tmp_path.glob("reconstructions-*/*.png"))) == 4

    class Another:  # trained further: what the first one gave back says nothing of it
        vae = torch.nn.Linear(1, 1)

    monkeypatch.setattr(criteria, "reconstruct", lambda pipeline, images: images)
    assert (
        criteria.criteria_of_autoencoder(Pipeline(), people, FakeClip(), out=tmp_path)[0] == quality
    )
    assert (
        criteria.criteria_of_autoencoder(Another(), people, FakeClip(), out=tmp_path)[0].value
        == np.inf
    )

    monkeypatch.setattr(criteria, "reconstruct", darker)
    alike = []  # files of one name in folders of their own
    for person in people:
        (tmp_path / person.name).mkdir()
        for number, path in enumerate((*person.references, *person.others)):
            Image.open(path).save(tmp_path / person.name / f"{number}.png")
        paths = [tmp_path / person.name / f"{number}.png" for number in range(2)]
        alike.append(Person(person.name, (paths[0],), (paths[1],)))
    again, _ = criteria.criteria_of_autoencoder(Pipeline(), alike, FakeClip(), out=tmp_path / "new")
    assert again.value == pytest.approx(quality.value)


def test_clip_is_judged_by_captions_of_what_was_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions are colours. Two pictures show the same; one that was not held out misleads."""
    monkeypatch.setattr(criteria, "ClipScorer", FakeClip)
    rows = [
        ("red", "red", "sad", True),
        ("lime", "lime", "glad", True),
        ("lime", "lime", "glad", True),
        ("#0000c0", "blue", "angry", True),
        ("#ff00ff", "red", "calm", False),
        ("#00ffff", "yellow", "calm", True),
    ]
    lines = ["person,file"]
    for number, (colour, caption, expression, held_out) in enumerate(rows):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{number}.png")
        record = {"caption": caption, "expression": expression, "held_out": held_out}
        (tmp_path / f"{number}.json").write_text(json.dumps(record))
        lines.append(f"{number},{number}.png")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    (found,) = criteria.criteria_of_clip("none", tmp_path, candidates=4)
    assert (found.value, found.least, found.looked_at) == (0.8, 0.85, "5 pictures")
    assert not found.met
    (tmp_path / "index.csv").write_text("\n".join(lines[:2]))
    with pytest.raises(FusionError, match="no pictures whose records say held_out"):
        criteria.criteria_of_clip("none", tmp_path)


def test_the_classifier_is_held_to_more_than_the_base_model() -> None:
    accuracy = [Interval(0.94, 0.9, 0.97), Interval(0.96, 0.92, 0.99)]
    found = pd.DataFrame(
        {"accuracy": [*accuracy, Interval(1, 1, 1)], "pictures": [40, 41, 42]},
        index=["expression", "style", "gender"],
    )
    expression, style = criteria.criteria_of_classifier(found)
    assert (expression.least, expression.met, style.met) == (0.95, False, True)
    assert (style.what, style.looked_at) == ("style of renders", "41 renders")


def test_what_is_held_out_is_counted_as_it_lies_on_the_disk() -> None:
    folder, groups = ROOT / "data" / "heldout", ROOT / "data" / "heldout_groups"
    counts = heldout_counts(folder, groups)
    files = [path.stem for path in folder.glob("*.jpg")]
    assert counts["pictures of one person"] == len(files)
    assert counts["people"] == len({name.split("_")[0] for name in files})
    styles = counts["of these, photographs"], counts["of these, other styles"]
    assert sum(styles) == len(files) and min(styles) > 0
    several = counts["pictures of 2 people"] + counts["pictures of 3 people"]
    assert several == len(list(groups.glob("*.depth.png")))
