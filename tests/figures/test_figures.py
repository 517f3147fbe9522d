"""Figures are sharp, tables say where their numbers come from."""

import inspect
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from companion.claims.quoted import read_quoted
from companion.evaluation.comparison import IdentityScores
from companion.evaluation.measure import Measurements
from companion.evaluation.scale import REFERENCE, RESTORED, baseline_of
from companion.evaluation.separation import Separation
from companion.evaluation.statistics import Interval
from companion.figures.grids import WIDEST, pairs_grid, picture_grid, prompt_grid, study_grid
from companion.figures.plots import identity_plot, paired_plot, psnr_plot, trade_off, trade_off_plot
from companion.figures.tables import (
    alignment_table,
    classification_table,
    faces_table,
    measured_table,
    prompts_table,
    quoted_table,
    recognition_table,
    reference_table,
    side_by_side,
    summary_table,
    table_files,
    traits_table,
)
from companion.methods import Method
from companion.methods.anchors import build_reference, build_restored
from companion.person import Person
from companion.studies.costs import cost_table
from companion.studies.study import Study, run_label, run_study
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, load_profile

PAPER = ROOT / "data" / "paper"
RED, GREEN, BLUE, GREY = "#ff0000", "#00ff00", "#0000ff", "#808080"


def plain(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 48), colour)


def where(sheet: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """Left, top, width and height of the patch of a colour."""
    mask = (np.asarray(sheet) == np.asarray(plain(colour))[0, 0]).all(-1)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], len(columns), len(rows)


def test_pictures_keep_their_pixels_times_a_whole_factor() -> None:
    grid = picture_grid([[plain(RED), plain(GREEN)], [None, plain(BLUE)]], upscale=3)
    for colour in (RED, GREEN, BLUE):
        assert where(grid, colour)[2:] == (192, 144)
    red, green, blue = (where(grid, colour) for colour in (RED, GREEN, BLUE))
    assert red[1] == green[1] < blue[1] and red[0] < green[0] == blue[0]


def test_references_and_groups_stand_apart() -> None:
    row = [plain(RED), plain(GREEN), plain(BLUE), plain(GREY)]
    gaps = []
    for arguments in ({}, {"references": 1}, {"references": 1, "groups": [("a", 2), ("b", 1)]}):
        grid = picture_grid([row], **arguments)
        lefts = [where(grid, colour)[0] for colour in (RED, GREEN, BLUE, GREY)]
        gaps.append(np.diff(lefts))
    close = gaps[0][0]
    assert gaps[0].tolist() == [close] * 3
    assert gaps[1][0] > close and gaps[1][1:].tolist() == [close] * 2
    assert gaps[2][1] == close and gaps[2][2] > close


def test_a_grid_of_uneven_rows_is_refused() -> None:
    with pytest.raises(FusionError, match="rows of one length"):
        picture_grid([[plain(RED)], [plain(RED), plain(GREEN)]])
    with pytest.raises(FusionError, match="pictures of one size"):
        picture_grid([[plain(RED), Image.new("RGB", (8, 8))]])


def test_quoted_numbers_are_the_papers_and_marked() -> None:
    html = quoted_table(PAPER / "table1.csv").to_html()
    assert "Quoted from the paper: Table 1 (Section 4.4)" in html
    assert "Measured" not in html
    table = quoted_table(PAPER / "table1.csv").data
    assert table.loc["Ours v2", "ArcFace ↓"] == "0.28"
    assert table.loc["IPA-FaceID", "VGG-faces ↓"] == "0.60"
    assert table.shape == (5, 3) and quoted_table(PAPER / "table2.csv").data.shape == (5, 3)
    assert quoted_table(PAPER / "table2.csv").data.loc["InstantID", "CLIP Score ↑"] == "–"


@pytest.fixture
def scores() -> IdentityScores:
    rng = np.random.default_rng(0)
    names = [f"p{number}" for number in range(12)]
    rows = [
        (method, name, "a face", 0, mean + rng.normal(0, 0.01))
        for method, mean in (("text-only", 0.10), ("fused", 0.06))
        for name in names
    ]
    rows[0] = (*rows[0][:4], np.nan)
    return IdentityScores(
        recogniser="Dlib",
        detector="dlib",
        against="reference",
        images=pd.DataFrame(rows, columns=["method", "person", "prompt", "seed", "distance"]),
        scale=pd.DataFrame({"genuine": 0.03, "impostor": rng.normal(0.11, 0.01, 12)}, names),
    )


def study(people: int = 12) -> Measurements:
    """Two systems and the anchors; three quarters of the faces of one come out, four a person.

    On the scale from 0.5 to 0.1, R is 0.1 for the text alone, 0.6 for a face of `fused`.
    """
    distance = {"text-only": 0.46, "fused": 0.26, RESTORED: 0.14, REFERENCE: 0.1}
    rows = [
        {"method": method, "person": f"p{person}", "prompt": "a face", "seed": seed, "image": "x",
         "face": method != "fused" or seed != person % 4, "unseen": away}
        for method, away in distance.items() for person in range(people) for seed in range(4)
    ]  # fmt: skip
    images = pd.DataFrame(rows)
    away = images.pop("unseen").where(images["face"])
    copied = images["method"].eq(REFERENCE)
    for name in ("Dlib", "identity"):
        images[f"unseen {name}"] = away
        images[f"distance {name}"] = away.mask(copied, 0.0)
        images[f"swapped {name}"] = (away * 0 + 0.46).where(images["face"])
        images[f"rank {name}"] = images["method"].map({"text-only": 3.0}).fillna(1.0)
        images.loc[~images["face"], f"rank {name}"] = np.nan
    images = images.assign(clip_score=20.0, style_correct=1.0, gender_kept=1.0)
    scale = pd.DataFrame(
        {"genuine": 0.1, "impostor": 0.5, "unseen_genuine": 0.1, "unseen_impostor": 0.5},
        index=[f"p{person}" for person in range(people)],
    )
    return Measurements(images, {"Dlib": scale, "identity": scale}, "dlib", "reference")


def numbered(measured: Measurements) -> Measurements:
    """The two systems as one at two strengths."""
    names = {"text-only": "fused 0", "fused": "fused 1"}
    return replace(
        measured, images=measured.images.assign(method=measured.images["method"].replace(names))
    )


def test_measured_numbers_are_marked_and_lost_faces_count_in_them() -> None:
    """Twelve people: one in four of the faces of the system is lost, and none of the others."""
    styler = measured_table(study(), "Profile tiny.", names={"fused": "with the reference"})
    html, table = styler.to_html(), styler.data
    assert "Measured here" in html and "Profile tiny." in html and "Quoted" not in html
    assert "by Dlib and identity" in html and "pictures of the person that no system" in html
    assert list(table.index.get_level_values(0).unique()) == ["Dlib", "identity"]
    assert list(table.loc["Dlib"].index) == [
        "another person", "text-only", "with the reference", RESTORED, REFERENCE
    ]  # fmt: skip
    composite, complete = table.loc["Dlib"].loc["with the reference"].iloc[1:]
    # R is 0.6 where there is a face, and lost faces are strangers: 3/4 of it.
    assert composite.startswith("0.450 [") and complete == "0.600 [0.600, 0.600]"
    assert list(table.loc["Dlib"].loc[RESTORED])[1] == "0.900 [0.900, 0.900]"
    assert list(table.loc["Dlib"].iloc[0])[1] == "0 (by definition)"
    assert list(table.loc["Dlib"].loc[REFERENCE])[2] == "1 (by definition)"
    files = table_files(table, "A caption.")
    assert "Dlib,text-only" in files["text/csv"] and "toprule" in files["text/latex"]


def test_a_record_without_unseen_pictures_falls_back_and_says_so() -> None:
    whole = study()
    further = ("unseen", "rank", "swapped")
    images = whole.images[[c for c in whole.images if not c.startswith(further)]]
    old = replace(whole, images=images)
    styler = measured_table(old, "Profile tiny.")
    assert "cosine distance to the reference" in styler.caption
    assert "no system was shown are not on record" in styler.caption
    rows = list(styler.data.loc["Dlib"].index)
    assert rows[-3:] == ["another picture of the same person", RESTORED, REFERENCE]
    assert not [name for name in faces_table(old, "").data if name.startswith("recognised")]
    assert "in distances to the reference" in identity_plot(old).info["alt"]
    assert "R for somebody alike" not in reference_table(old, "").data


def test_faces_are_compared_in_pairs_and_lost_ones_are_not_recognised() -> None:
    styler = faces_table(study(), "Profile tiny.")
    table = styler.data
    assert list(table.columns) == [
        "faces found ↑", "more than text-only", "recognised (Dlib) ↑", "recognised (identity) ↑"
    ]  # fmt: skip
    assert table.loc["fused", "faces found ↑"].startswith("0.750 [")
    assert table.loc["fused", "more than text-only"].startswith("-0.250 [-0.")
    assert table.loc["text-only", "more than text-only"] == "–"
    assert table.loc["fused", "recognised (Dlib) ↑"].startswith("0.750 [")
    assert table.loc["text-only", "recognised (Dlib) ↑"] == "0.000 [0.000, 0.000]"
    assert table.loc[REFERENCE, "recognised (Dlib) ↑"] == "1.000 [1.000, 1.000]"
    assert "of 12 people's references" in styler.caption
    assert "more than fused" in faces_table(study(), "", baseline="fused").data


def test_the_reference_and_somebody_alike_come_second() -> None:
    table = reference_table(study(), "Profile tiny.").data.loc["Dlib"]
    # 0.1 of 0.1 to 0.5 is where a copy stands: more than another picture of the person.
    assert table.loc[REFERENCE, "R of faces found ↑"] == "1.250 [1.250, 1.250]"
    assert table.loc["fused", "R for somebody alike"] == "0.100 [0.100, 0.100]"
    with pytest.raises(FusionError, match="other pictures, not against the reference"):
        reference_table(replace(study(), against="others"), "")


def test_of_four_people_there_is_no_r_and_no_interval() -> None:
    """One statistic of too few people is as wrong in a table as in a figure or a claim."""
    few = study(people=4)
    cells = measured_table(few, "").data.loc[("Dlib", "fused")]
    assert cells.iloc[0].count("[") == 0 and list(cells.iloc[1:]) == ["–", "–"]
    alike = reference_table(few, "").data.loc[("Dlib", "fused")]
    assert list(alike.iloc[1:]) == ["–", "–", "–"]
    for cell in faces_table(few, "").data.to_numpy().ravel():
        assert "[" not in cell
    alt = identity_plot(few).info["alt"]
    assert "fused – (–" in alt and "[" not in alt
    curve = trade_off_plot(trade_off(numbered(few), "Dlib"), "strength").info["alt"]
    assert "R of too few people" in curve
    five = measured_table(study(people=5), "").data.loc[("Dlib", "fused")]
    assert all("[" in cell for cell in five)


def test_anchors_are_no_systems() -> None:
    whole = study()
    assert list(alignment_table(whole.images, "").data.index) == ["text-only", "fused"]
    assert list(traits_table(whole.images, "").data.index) == ["text-only", "fused"]
    scores = whole.unseen("Dlib")
    assert scores is not None
    alt = paired_plot([scores], "text-only").info["alt"]
    assert "fused" in alt and RESTORED not in alt


def test_prompts_are_compared_one_by_one(scores: IdentityScores) -> None:
    images = pd.concat([scores.images, scores.images.assign(prompt="another", distance=0.1)])
    styler = prompts_table({"nearer": (images, "distance")}, "fused", "text-only", "Profile tiny.")
    gains = scores.of("text-only") - scores.of("fused")
    shown = styler.data["nearer"]
    assert shown["a face"].startswith(f"{gains.mean():.3f} [")
    assert shown["a face"].endswith("(11 of 12 pairs)")
    assert shown["another"] == "0.000 [0.000, 0.000] (12 of 12 pairs)"


def test_what_prompts_ask_for_stands_in_one_table() -> None:
    images = pd.DataFrame(
        {
            "method": ["a"] * 5 + ["b"] * 5,
            "person": list("vwxyz") * 2,
            "clip_score": [60.0, 62.0, 60.0, 62.0, 61.0, *[50.0] * 5],
            "hair_style_correct": [*[1.0] * 5, *[np.nan] * 4, 0.0],
        }
    )
    styler = alignment_table(images, "Profile tiny.")
    assert list(styler.data.columns) == ["CLIP score ↑", "hair style accuracy ↑"]
    assert styler.data.loc["a", "CLIP score ↑"].startswith("61.000 [")
    assert styler.data.loc["a", "hair style accuracy ↑"] == "1.000 [1.000, 1.000] (5 pictures)"
    assert styler.data.loc["b", "hair style accuracy ↑"].endswith("(1 pictures)")
    assert "Measured here" in styler.to_html()


def test_how_well_judges_judge_is_shown() -> None:
    found = {"Dlib": Separation(0.944, 0.056, 0.116, 594, 600)}
    table = recognition_table(found, "run").data
    assert table.loc["Dlib"].tolist() == ["0.944", "0.056", "0.116", "594 of 600"]
    heads = pd.DataFrame(
        {"classes": 2, "pictures": 9, "accuracy": Interval(0.9, 0.8, 1), "commonest": 0.5},
        index=["hair_style"],
    )
    shown = classification_table(heads, "run").data
    assert shown.loc["hair style"].tolist() == ["2", "9", "0.900 [0.800, 1.000]", "0.500"]


def test_quoted_and_measured_stand_side_by_side_and_apart() -> None:
    measured = pd.DataFrame({"SSIM": [Interval(0.5, 0.4, 0.6), 0.25]}, ["Ours v2", "a copy"])
    styler = side_by_side(read_quoted(PAPER / "table2.csv"), measured, "Profile tiny.")
    table, html = styler.data, styler.to_html()
    assert list(table.columns.get_level_values(0).unique()) == ["quoted", "measured here"]
    assert table.loc["Ours v2", ("quoted", "SSIM ↑")] == "0.47"
    assert table.loc["Ours v2", ("measured here", "SSIM")] == "0.500 [0.400, 0.600]"
    assert table.loc["InstantID", ("quoted", "CLIP Score ↑")] == "–"
    assert list(table.loc["a copy"]) == ["–", "–", "–", "0.25"]
    assert "Quoted from the paper: Table 2 (Section 4.4)" in html and "Profile tiny." in html
    assert "double var(--quoted" in html and "solid var(--measured" in html


def test_quoted_numbers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="cannot be read"):
        read_quoted(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("row,column,value\n")
    with pytest.raises(FusionError, match="lacks paper, section, table"):
        read_quoted(tmp_path / "a.csv")


def test_the_audit_is_drawn_with_the_quoted_numbers() -> None:
    pairs = pd.DataFrame({"ssim": [0.2, 0.4], "psnr": [9.0, 15.0], "psnr_8bit_overflow": 27.9})
    picture = psnr_plot(pairs, read_quoted(PAPER / "table2.csv"))
    purple = np.abs(np.asarray(picture).astype(int) - [0x7A, 0x51, 0x95]).sum(axis=-1) < 12
    assert picture.width >= 1000 and purple.sum() > 100


def test_the_plot_shows_every_method_between_the_anchors() -> None:
    whole = study()
    picture = identity_plot(whole, names={"fused": "the fused one"})
    alt = picture.info["alt"]
    assert picture.width >= 900 and "the fused one 0.450 [" in alt and "75% faces found" in alt
    assert (
        "another person at 0.00; text alone at 0.10; restored at 0.90; the reference at 1.00"
        in (alt)
    )
    one = replace(whole, images=whole.images[whole.images["method"] != "text-only"])
    assert "text alone" not in identity_plot(one).info["alt"]
    assert identity_plot(replace(whole, scales={"Dlib": whole.scales["Dlib"]})).height < (
        picture.height
    )


def test_the_plot_says_who_was_shown_what_a_recogniser_sees() -> None:
    whole = study()
    renamed = whole.images["method"].replace({"fused": "faceid-plus"})
    alt = identity_plot(replace(whole, images=whole.images.assign(method=renamed))).info["alt"]
    assert "By Dlib, whose vector of the face faceid-plus was shown:" in alt
    assert "By identity, of which no system was shown anything:" in alt
    assert "shown:" not in identity_plot(whole).info["alt"]


def test_the_curve_shows_lost_faces_and_the_anchors() -> None:
    """R falls with the faces that are lost, although those that are left are as near."""
    whole = numbered(study())
    table = trade_off(whole, "Dlib").set_index("system")
    assert table.loc["fused", "number"].tolist() == [0, 1]
    assert [x.estimate for x in table.loc["fused", "identity"]] == pytest.approx([0.1, 0.45])
    assert [x.estimate for x in table.loc["fused", "of_faces"]] == pytest.approx([0.1, 0.6])
    assert [x.estimate for x in table.loc["fused", "found"]] == pytest.approx([1, 0.75])
    assert np.isnan(table.loc[RESTORED, "number"])
    alt = trade_off_plot(table.reset_index(), "strength").info["alt"]
    assert "to R 0.45, 75% of prompts and 75% of faces at 1" in alt
    assert "restored at 0.90" in alt and "the reference at 1.00" in alt


def test_the_paired_plot_shows_what_the_intervals_decide() -> None:
    """Eight people: one method is nearer by a quarter of the way, one farther, one alike."""
    people = [f"p{number}" for number in range(8)]
    shifts = {"base": 0.0, "nearer": -0.1, "farther": 0.1, "alike": 0.0}
    wiggle = np.linspace(-0.01, 0.01, 8)
    rows = [
        {"method": method, "person": person, "prompt": "a face", "seed": 0, "image": "x",
         "distance": 0.5 + shift + (wiggle[n] if method == "alike" else 0.1 * wiggle[n] * shift)}
        for method, shift in shifts.items()
        for n, person in enumerate(people)
    ]  # fmt: skip
    scale = pd.DataFrame({"genuine": 0.2, "impostor": 0.6}, index=pd.Index(people, name="person"))
    score = IdentityScores("Dlib", "dlib", "reference", pd.DataFrame(rows), scale)

    def coloured(picture: Image.Image, colour: list[int]) -> int:
        return int(
            (np.abs(np.asarray(picture.convert("RGB")).astype(int) - colour).max(-1) < 9).sum()
        )

    picture = paired_plot([score, replace(score, recogniser="other")], "base")
    assert "by Dlib: nearer 0.250 [0.2" in picture.info["alt"]
    assert "farther -0.250 [-0.2" in picture.info["alt"] and "8 of 8 pairs" in picture.info["alt"]
    assert "by other: nearer 0.250" in picture.info["alt"]
    teal, red = [0x00, 0x79, 0x6B], [0xD1, 0x49, 0x5B]
    assert coloured(picture, teal) > 100 and coloured(picture, red) > 100
    few = replace(score, images=score.images[score.images["person"].isin(people[:3])])
    undecided = paired_plot([few], "base")
    assert coloured(undecided, teal) == coloured(undecided, red) == 0
    assert "by Dlib: nothing" in paired_plot([score], "not trained").info["alt"]


def test_a_study_is_shown_person_by_person(tmp_path: Path) -> None:
    for name, colour in (("ada", RED), ("ben", GREEN)):
        plain(colour).save(tmp_path / f"{name}.png")
    people = [Person(name, (tmp_path / f"{name}.png",)) for name in ("ada", "ben")]

    def paint(prompt, references, seed):  # type: ignore[no-untyped-def]
        return plain(BLUE if prompt == "sad" else GREY)

    settings = {"weights": {"base_model": "0123456789"}}
    study = Study("s", [Method("m", paint, settings)], people, ["sad", "glad"])
    index = run_study(study, tmp_path / "store", progress=False)
    grid = study_grid(index, people, prompts=["sad", "glad"])
    red, blue, grey = (where(grid, colour) for colour in (RED, BLUE, GREY))
    assert red[0] < blue[0] < grey[0]
    assert where(grid, GREEN)[1] > red[1]
    assert where(prompt_grid(index), GREY)[1] > where(prompt_grid(index), BLUE)[1]
    label = run_label("tiny", study)
    assert label == "Profile tiny: 2 people, 2 prompts, 1 seed; weights: base model 01234567."
    assert "tiny: 2 pairs, 2 prompts," in run_label("tiny", study, over="pairs")
    nobody = replace(study, people=(Person("anyone"),))
    assert "tiny: 2 prompts, 1 seed;" in run_label("tiny", nobody)


def test_pairs_stand_beside_their_references_and_prompts(tmp_path: Path) -> None:
    people, rows = [], []
    for number, name in enumerate(("ada", "ben")):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (64, 64), (40 + 90 * number,) * 3).save(path)
        people.append(Person(name, (path,)))
        for method, colour in (("one", (200, 0, 0)), ("two", (0, 0, 200))):
            made = tmp_path / f"{name}-{method}.png"
            Image.new("RGB", (32, 32), colour).save(made)
            rows.append([method, name, f"a prompt of {name}", 0, str(made)])
    index = pd.DataFrame(rows, columns=["method", "person", "prompt", "seed", "image"])
    picture = pairs_grid(index, people)
    pixels = np.asarray(picture).reshape(-1, 3)
    for colour in ((200, 0, 0), (0, 0, 200)):
        assert (pixels == colour).all(axis=1).sum() == 2 * 64 * 64  # twice the size, two people
    assert (pixels == 130).all(axis=1).sum() >= 60 * 60
    assert "“a prompt of ben”" in picture.info["alt"]


def test_a_summary_shows_its_rows_as_they_are() -> None:
    table = summary_table({"a": {"x": Interval(0.5, 0.4, 0.6), "n": "3 of 4"}}, "A run.")
    assert table.data.loc["a"].tolist() == ["0.500 [0.400, 0.600]", "3 of 4"]


def test_a_study_too_wide_to_look_at_has_a_row_for_each_method(tmp_path: Path) -> None:
    prompts = [f"prompt {n}" for n in range(5)]
    rows = []
    for method in ("one", "two"):
        for number, prompt in enumerate(prompts):
            path = tmp_path / f"{method} {number}.png"
            Image.new("RGB", (32, 32), (number * 40, 255 * (method == "two"), 0)).save(path)
            rows.append([method, "ada", prompt, 0, str(path)])
    index = pd.DataFrame(rows, columns=["method", "person", "prompt", "seed", "image"])
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "ada.png")
    ada = Person("ada", (tmp_path / "ada.png",))
    narrow = study_grid(index, [ada], prompts=prompts[:4])  # eight pictures side by side
    tall = study_grid(index, [ada], prompts=prompts, called=["given"])
    assert narrow.width > tall.width and tall.height > 64 * 2
    colours = np.asarray(tall).reshape(-1, 3)
    for wanted in [(number * 40, green, 0) for number in range(5) for green in (0, 255)]:
        assert (colours == wanted).all(1).sum() == 64 * 64, "each picture once, twice as large"
    assert (colours == (0, 0, 255)).all(1).sum() <= 64 * 64, "the reference once, not in each row"


@pytest.mark.parametrize(
    ("references", "methods", "prompts", "bands", "shown"),
    [
        (1, 8, 1, 1, 1),
        (1, 9, 1, 2, 2),  # the reference beside each band
        (1, 17, 1, 3, 3),
        (5, 14, 1, 3, 1),  # several references in the first band alone
        (5, 3, 2, 2, 2),  # a band for each prompt
    ],
)
def test_a_wide_study_stands_in_bands(
    tmp_path: Path, references: int, methods: int, prompts: int, bands: int, shown: int
) -> None:
    given = []
    for number in range(references):
        given.append(tmp_path / f"given {number}.png")
        Image.new("RGB", (32, 32), (255, 255, number)).save(given[-1])
    rows = []
    for number in range(methods):
        for prompt in range(prompts):
            path = tmp_path / f"{number} {prompt}.png"
            Image.new("RGB", (32, 32), (number, prompt, 255)).save(path)
            rows.append([f"m{number}", "ada", f"prompt {prompt}", 0, str(path)])
    index = pd.DataFrame(rows, columns=["method", "person", "prompt", "seed", "image"])
    said = [f"prompt {prompt}" for prompt in range(prompts)]
    grid = study_grid(index, [Person("ada", tuple(given))], prompts=said, references=references)
    pixels, side = np.asarray(grid), 32 if bands > 1 else 64
    for number, prompt in product(range(methods), range(prompts)):
        assert (pixels == (number, prompt, 255)).all(-1).sum() == side**2
    inner = (side - 4) ** 2  # a reference has a frame
    for number in range(references):
        assert (pixels == (255, 255, number)).all(-1).sum() // inner == shown
    tops = {int(np.argwhere((pixels == (n, 0, 255)).all(-1))[0, 0]) for n in range(methods)}
    tops |= {int(np.argwhere((pixels == (0, p, 255)).all(-1))[0, 0]) for p in range(prompts)}
    assert len(tops) == bands and grid.info["alt"].count("Pictures in") == bands
    assert grid.width < (WIDEST + 1) * (side + 6), "no band is wider than can be looked at"


def test_an_interval_stays_in_one_line_and_long_texts_are_read_from_the_left() -> None:
    rows = {"a": {"x": Interval(0.5, 0.4, 0.6), "n": "3, 4", "why": "because " * 10}}
    html = summary_table(rows, "A run.").to_html()
    assert "0.500 [0.400,\u00a00.600]" in html and ">3, 4<" in html
    assert re.search(r"row0_col2 \{\s*text-align: left !important;", html)
    assert re.search(r"th.col_heading.col2 \{\s*text-align: left;", html)
    assert "row0_col1 {" not in html


def test_headings_do_not_run_into_each_other() -> None:
    grid = picture_grid([[Image.new("RGB", (128, 128), "red")] * 10], columns=["reference"] * 10)
    ink = (np.asarray(grid.convert("L"))[: grid.height - 256] < 200).any(axis=0)
    pitch = (grid.width + 8) // 10  # a picture and the gap of 8 pixels
    between = np.concatenate([np.arange(pitch * n - 8, pitch * n) for n in range(1, 10)])
    assert ink.any() and not ink[between].any()


def test_anchors_are_left_out_of_grids_and_costs_and_have_the_names_that_studies_give(
    tmp_path: Path,
) -> None:
    for build, name in ((build_restored, RESTORED), (build_reference, REFERENCE)):
        assert inspect.signature(build).parameters["name"].default == name
    plain(RED).save(tmp_path / "ada.png")
    ada = Person("ada", (tmp_path / "ada.png",))

    def paint(prompt, references, seed):  # type: ignore[no-untyped-def]
        return plain(GREEN)

    def copy(prompt, references, seed):  # type: ignore[no-untyped-def]
        return plain(BLUE)

    methods = [Method("fused", paint, {"v": 1}), Method(REFERENCE, copy, {"v": 2})]
    index = run_study(Study("few", methods, [ada], ["a face"]), tmp_path / "store", progress=False)
    for grid in (study_grid(index, [ada], prompts=["a face"]), pairs_grid(index, [ada])):
        assert "fused" in grid.info["alt"] and REFERENCE not in grid.info["alt"]
        assert where(grid, GREEN)[2] and not (np.asarray(grid) == [0, 0, 255]).all(-1).any()
    costs = cost_table(load_profile("embedded"), methods, [plain(RED)], repeats=1)
    assert list(costs.index) == ["fused"]


def test_a_baseline_that_a_study_lacks_gives_way() -> None:
    images = study().images
    assert baseline_of(images) == baseline_of(images, "not trained") == "text-only"
    assert baseline_of(images, "fused") == "fused"
    some = images[images["method"] != "text-only"]
    assert baseline_of(some) == "fused"
    assert baseline_of(images[images["method"] == REFERENCE]) == REFERENCE
