"""Figures are sharp, tables say where their numbers come from."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from companion.claims.quoted import read_quoted
from companion.evaluation.comparison import IdentityScores, identity_table
from companion.evaluation.separation import Separation
from companion.evaluation.statistics import Interval
from companion.figures.grids import WIDEST, pairs_grid, picture_grid, prompt_grid, study_grid
from companion.figures.plots import distance_plot, paired_plot, psnr_plot
from companion.figures.tables import (
    alignment_table,
    classification_table,
    measured_table,
    prompts_table,
    quoted_table,
    recognition_table,
    side_by_side,
    summary_table,
)
from companion.methods import Method
from companion.person import Person
from companion.studies.study import Study, run_label, run_study
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT

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


def test_measured_numbers_are_marked_and_faces_counted(scores: IdentityScores) -> None:
    styler = measured_table(scores, "Profile tiny.", names={"fused": "with the reference"})
    html = styler.to_html()
    assert "Measured here" in html and "Profile tiny." in html and "Quoted" not in html
    assert styler.data.loc["text-only", "faces found"] == "11 of 12"
    assert styler.data.loc["with the reference", "faces found"] == "12 of 12"
    assert styler.data.iloc[0, 1] == "0 (by definition)"


def test_several_recognisers_stand_in_one_table(scores: IdentityScores) -> None:
    other = replace(scores, recogniser="ArcFace")
    styler = measured_table([scores, other], "Profile tiny.")
    assert list(styler.data.columns) == [
        "cosine distance (Dlib) ↓", "identity recovery R (Dlib) ↑", "faces found",
        "cosine distance (ArcFace) ↓", "identity recovery R (ArcFace) ↑",
    ]  # fmt: skip
    assert "by Dlib and ArcFace" in styler.to_html()


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


def test_the_plot_shows_every_method(scores: IdentityScores) -> None:
    picture = distance_plot(scores, names={"fused": "the fused one"})
    assert picture.width >= 1000
    distance = identity_table(scores).loc["fused", "distance"]
    assert f"the fused one {distance}" in picture.info["alt"]
    fewer = replace(scores, images=scores.images[scores.images["method"] == "fused"])
    assert distance_plot(fewer).height < picture.height
    distance_plot(replace(scores, recogniser="a network of one's own"))  # has no threshold


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
