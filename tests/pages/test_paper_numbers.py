"""What the paper's own numbers say: against values typed by hand from its tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from companion.claims.quoted import read_quoted
from companion.pages.paper_numbers import (
    against_thresholds,
    observation_table,
    open_face_keys,
    open_keys_table,
    read_observations,
    trade_off_line,
)
from companion.pages.paper_plots import threshold_plot, trade_off_line_plot
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT

SYSTEMS = ["IPA-FaceID", "IPA-FaceID-Plus", "InstantID", "Ours v1", "Ours v2"]
PRINTED = {
    "VGG-faces": [0.60, 0.36, 0.42, 0.33, 0.25],
    "Facenet512": [0.27, 0.25, 0.27, 0.22, 0.18],
    "ArcFace": [0.55, 0.39, 0.38, 0.34, 0.28],
}
CLIP = [25.23, 23.76, 23.28, 22.51]  # of all but InstantID


@pytest.fixture(scope="module")
def table1() -> pd.DataFrame:
    return read_quoted(ROOT / "data/paper/table1.csv")


@pytest.fixture(scope="module")
def table2() -> pd.DataFrame:
    return read_quoted(ROOT / "data/paper/table2.csv")


def test_distances_stand_beside_the_thresholds_of_deepface(table1: pd.DataFrame) -> None:
    found = against_thresholds(table1).set_index(["recogniser", "system"])
    assert len(found) == 15 and found["below"].all()
    for recogniser, threshold in (("VGG-faces", 0.68), ("Facenet512", 0.30), ("ArcFace", 0.68)):
        rows = found.loc[recogniser]
        assert rows.loc[SYSTEMS, "distance"].tolist() == PRINTED[recogniser]
        assert (rows["threshold"] == threshold).all(), "as of deepface 0.0.93 to 0.0.103"
    vgg = found.loc["VGG-faces"].loc[SYSTEMS]
    assert (vgg["former"] == 0.40).all()
    assert vgg["below_former"].tolist() == [False, True, False, True, True]
    others = found[found.index.get_level_values("recogniser") != "VGG-faces"]
    assert others["former"].isna().all() and others["below_former"].all()


def test_a_distance_above_the_threshold_is_not_below_it(table1: pd.DataFrame) -> None:
    higher = table1.assign(value=table1["value"] + 0.09)  # the two 0.27 of Facenet512, and 0.60
    found = against_thresholds(higher)
    above = found[~found["below"]]
    assert sorted(zip(above["recogniser"], above["system"], strict=True)) == [
        ("Facenet512", "IPA-FaceID"),
        ("Facenet512", "IPA-FaceID-Plus"),
        ("Facenet512", "InstantID"),
        ("Facenet512", "Ours v1"),
        ("VGG-faces", "IPA-FaceID"),
    ]
    with pytest.raises(FusionError, match="'AdaFace' of Table 1 is not known"):
        against_thresholds(table1.replace("ArcFace", "AdaFace"))


def test_clip_score_and_distance_are_one_line(table1: pd.DataFrame, table2: pd.DataFrame) -> None:
    found = trade_off_line(table1, table2)
    off = {"VGG-faces": (-0.30, -0.58), "Facenet512": (1.725, 3.895), "ArcFace": (-0.02, -0.24)}
    for recogniser, (first, second) in off.items():
        row = found.loc[recogniser]
        distances = [PRINTED[recogniser][at] for at in (0, 1, 3, 4)]
        assert row["spearman"] == scipy.stats.spearmanr(distances, CLIP).statistic == 1
        assert row["pearson"] == pytest.approx(np.corrcoef(distances, CLIP)[0, 1])
        assert row["systems"] == 4
        assert (row["Ours v1"], row["Ours v2"]) == pytest.approx((first, second), abs=0.005)
        for at in (0, 1):  # the line leads through both baselines
            assert row["start"] + row["slope"] * distances[at] == pytest.approx(CLIP[at])
    assert found["pearson"].round(3).tolist() == [0.987, 0.937, 0.997]

    # Two systems that change places: 1 - 6 * (1 + 1) / (4 * 15).
    swapped = table1.replace({"value": {0.33: 0.25, 0.25: 0.33}})
    assert trade_off_line(swapped, table2).loc["VGG-faces", "spearman"] == pytest.approx(0.8)


def test_eq_7_closes_the_places_of_others_and_nothing_else() -> None:
    expected = [  # the text, and the faces of three people
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 0, 1],
        [1, 0, 0, 0],  # in two masks: for each of the two the other one's, for the third both
        [1, 1, 1, 1],  # outside
    ]
    np.testing.assert_array_equal(open_face_keys().to_numpy(), np.array(expected, dtype=bool))
    words = open_keys_table().data
    assert words.loc["outside all masks"].tolist() == ["open"] * 4
    assert words.loc["in the mask of person 2"].tolist() == ["open", "closed", "open", "closed"]


def test_every_observation_comes_with_its_numbers_and_its_limits(
    table1: pd.DataFrame, table2: pd.DataFrame
) -> None:
    table = observation_table(table1, table2).data
    assert list(table.index) == [one.title for one in read_observations()] and len(table) == 9
    assert not table.map(lambda text: "{" in text or "nan" in text).any(axis=None)
    said = {
        "All systems are below DeepFace's thresholds": ["15 of 15", "(0.40), 3 of 5 are below"],
        "One line of CLIP score against distance": ["is 1.00 (VGG-Face)", "-0.30 and -0.58"],
        "The abstract and the CLIP scores": ["22.51", "0.77 below v1", "2.72 below IPA-FaceID"],
        "Two sentences and the tables": ["v2 (0.47)", "0.41, is below", "0.44"],
        "No number of pictures, no spread": ["29 means"],
        "Trained weights": ["24.78 million", "22.32 million", "1.11 times"],
    }
    for title, numbers in said.items():
        for number in numbers:
            assert number in table.loc[title].iloc[0], title
    assert "once in 24 times" in table.loc["One line of CLIP score against distance"].iloc[1]


def test_an_observation_names_only_what_is_computed(
    table1: pd.DataFrame, table2: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "observations.yaml"
    path.write_text("- {title: One, where: here, numbers: 'is {SSIM[Ours v3]:.2f}', limits: all}")
    with pytest.raises(FusionError, match="'One' names the value 'Ours v3', which is not computed"):
        observation_table(table1, table2, path)
    path.write_text("- {title: One, where: here, numbers: 'is {SSIM[Ours v1]:.2f}'}")
    with pytest.raises(FusionError, match="limits"):
        observation_table(table1, table2, path)


def test_pictures_name_what_they_draw(table1: pd.DataFrame, table2: pd.DataFrame) -> None:
    alt = threshold_plot(table1).info["alt"]
    assert "VGG-faces: accepted up to 0.68; IPA-FaceID 0.60, IPA-FaceID-Plus 0.36" in alt
    assert "as a dotted line, accepted until January 2024: 0.40." in alt
    assert "Facenet512: accepted up to 0.30;" in alt and alt.count("0.40") == 1
    picture = trade_off_line_plot(table1, table2)
    assert (
        "rank correlation with CLIP score 1.00; off the line Ours v1 −0.30" in picture.info["alt"]
    )
    purple = np.abs(np.asarray(picture).astype(int) - [0x7A, 0x51, 0x95]).sum(axis=-1) < 12
    assert purple.sum() > 1000
