"""The audit of Table 2's PSNR: lines of code by hand, the order that is kept, true values."""

import cv2
import numpy as np
import pandas as pd
import pytest
from skimage.metrics import peak_signal_noise_ratio

from companion.claims.quoted import read_quoted
from companion.evaluation.measure import measure
from companion.evaluation.quality import psnr, ssim
from companion.pages.paired_faces import paired_regions
from companion.pages.psnr_audit import (
    ANOTHER,
    SAME,
    order_facts,
    picture_pairs,
    same_person_auc,
)
from companion.pages.psnr_inversion import (
    gaussian_psnrs,
    inversion_plot,
    inversion_table,
    local_contrast,
    lowest_wrapped,
    needed_contrast,
    other_reading_facts,
    true_psnr,
)
from companion.pages.psnr_snippets import SNIPPETS, snippet_table, snippet_values
from companion.person import load_people
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT

A = np.array([[10, 200], [0, 255]], dtype=np.uint8)
B = np.array([[20, 10], [3, 0]], dtype=np.uint8)
ERRORS = {  # of the differences -10, 190, -3 and 255, by hand
    "converted first": (100 + 36_100 + 9 + 65_025) / 4,
    "scikit-image": (100 + 36_100 + 9 + 65_025) / 4,
    "OpenCV": (100 + 36_100 + 9 + 65_025) / 4,
    "difference and square wrap around": (100 + 4 + 9 + 1) / 4,
    "true difference, its square wraps around": (100 + 4 + 9 + 1) / 4,
    "the difference wraps around": (246**2 + 190**2 + 253**2 + 255**2) / 4,
    "true difference, its square stops at 255": (100 + 255 + 9 + 255) / 4,
    "the difference stops at 0": (0 + 36_100 + 0 + 65_025) / 4,
    "the difference stops at 0, its square wraps around": (0 + 4 + 0 + 1) / 4,
}


@pytest.fixture(scope="module")
def quoted() -> pd.DataFrame:
    return read_quoted(ROOT / "data/paper/table2.csv")


def test_every_way_gives_what_it_gives_by_hand() -> None:
    assert [snippet.what for snippet in SNIPPETS] == list(ERRORS)
    for snippet in SNIPPETS:
        expected = 10 * np.log10(255**2 / ERRORS[snippet.what])
        assert snippet.psnr(A, B) == pytest.approx(expected), snippet.what
        if snippet.what != "OpenCV":  # which adds a tiny number to the error
            assert snippet.psnr(A, A) == np.inf


def test_the_line_that_is_shown_is_the_line_that_runs() -> None:
    names = {"np": np, "cv2": cv2, "peak_signal_noise_ratio": peak_signal_noise_ratio}
    lines = {snippet.code for snippet in SNIPPETS}
    assert "np.mean((a - b) ** 2)" in lines and len(lines) == len(SNIPPETS)
    for snippet in SNIPPETS:
        assert eval(snippet.code, {**names, "a": A, "b": B}) == snippet.compute(A, B)


def test_the_auc_is_the_share_of_pairs_of_pairs_in_the_right_order() -> None:
    same, another = [3.0, 1.0, 2.0, np.nan, 2.0], [1.0, 0.0, 2.0]
    pairs = pd.DataFrame(
        {
            "method": [SAME] * 5 + [ANOTHER] * 3,
            "value": [*same, *another],
            "half": [np.nan] * 5 + another,
        }
    )
    wins = sum((a > b) + 0.5 * (a == b) for a in same if a == a for b in another)
    assert same_person_auc(pairs, "value") == pytest.approx(wins / (4 * 3))
    with pytest.raises(FusionError, match="No pair of same person was measured"):
        same_person_auc(pairs, "half")


@pytest.fixture(scope="module")
def audited() -> tuple[pd.DataFrame, list[tuple[np.ndarray, np.ndarray] | None]]:
    people = load_people(ROOT / "data/heldout", 3, others=5)
    index = picture_pairs(people)
    pairs = measure(index, people, recognisers=[], progress=False).images
    return pairs, list(paired_regions(pairs, people))


def test_ways_are_run_on_the_faces_that_were_measured(
    audited: tuple[pd.DataFrame, list[tuple[np.ndarray, np.ndarray] | None]], quoted: pd.DataFrame
) -> None:
    pairs, faces = audited
    values = snippet_values(faces)
    np.testing.assert_allclose(values["scikit-image"], pairs["psnr"])
    np.testing.assert_allclose(values["OpenCV"], pairs["psnr"], rtol=1e-6)
    wrapped = values["difference and square wrap around"]
    np.testing.assert_allclose(wrapped, pairs["psnr_8bit_overflow"])
    table = snippet_table(pairs, faces, quoted, "run").data
    mean = pairs.loc[pairs["method"] == SAME, "psnr_8bit_overflow"].mean()
    assert table.loc["difference and square wrap around", f"{SAME}, dB"] == f"{mean:.2f}"
    with pytest.raises(FusionError, match="the faces of 1"):
        snippet_table(pairs, faces[:1], quoted, "run")
    facts = other_reading_facts(faces, quoted)
    assert list(facts.values())[:2] == ["9.7 to 10.2 grey levels", "7.0 to 7.9 grey levels"]


def test_the_order_is_told_beside_the_error_of_a_mean(
    audited: tuple[pd.DataFrame, list[tuple[np.ndarray, np.ndarray] | None]], quoted: pd.DataFrame
) -> None:
    pairs, faces = audited
    table1 = read_quoted(ROOT / "data/paper/table1.csv")
    facts = order_facts(pairs, faces, table1, quoted)
    spread = np.std(pairs.loc[pairs["method"] == SAME, "psnr_8bit_overflow"].dropna(), ddof=1)
    key = "left in 8 bits: standard error of a mean of 100 pairs of one person"
    assert facts[key] == f"{spread / 10:.3f} dB"
    assert facts["steps between the printed values, in their order"] == "0.01, 0.10, 0.21, 0.15 dB"
    lead = 0.47 / (spread / 10 * 2**0.5)
    assert float(str(facts[next(k for k in facts if k.startswith("largest"))])) == round(lead)
    ranks = {key.rpartition("printed ")[2]: v for key, v in facts.items() if "with printed" in key}
    assert ranks["SSIM"] == "0.90" and ranks["distance by Facenet512"] == "-0.97"
    assert ranks["distance by VGG-faces"] == "-0.90"


@pytest.mark.parametrize(
    ("spread", "wrapped", "true"),
    [
        (100, 27.93, 8.2),
        (60, 27.91, 12.6),
        (40, 28.04, 16.1),
        (30, 28.23, 18.6),
        (20, 28.70, 22.1),
        (10, 30.30, 28.1),
    ],
)
def test_gaussian_differences_give_what_a_simulation_gives(
    spread: float, wrapped: float, true: float
) -> None:
    found = gaussian_psnrs(spread)
    assert found[0] == pytest.approx(true, abs=0.051)  # given with one digit
    assert found[1] == pytest.approx(wrapped, abs=0.015)
    drawn = np.random.default_rng(0).normal(0, spread, 400_000)
    whole = np.clip(np.rint(drawn), -255, 255).astype(int)
    naive = [10 * np.log10(255**2 / np.mean(e)) for e in (whole**2, whole**2 % 256)]
    assert found == pytest.approx(naive, abs=0.03)


def test_the_true_value_is_found_again() -> None:
    for spread in (3.0, 12.0, 25.0, 45.0, 60.0):
        true, wrapped = gaussian_psnrs(spread)
        assert true_psnr(wrapped) == pytest.approx((spread, true), abs=1e-3)
    assert true_psnr(28.40)[1] == pytest.approx(20, abs=0.5)
    assert true_psnr(27.94)[1] == pytest.approx(13.5, abs=0.7)
    assert lowest_wrapped()[1] == pytest.approx(27.90, abs=0.005)
    for impossible in (27.8, 60.0):
        with pytest.raises(FusionError, match="Gaussian differences .* give 27.90 to"):
            true_psnr(impossible)


def test_printed_values_are_inverted_and_looked_up(quoted: pd.DataFrame) -> None:
    pairs = pd.DataFrame(
        {"psnr": [10.0, 11.0, 12.0, 13.0, 14.0, 30.0], "psnr_8bit_overflow": [28.40] * 5 + [28.9]}
    )
    table = inversion_table(pairs, quoted, "run").data
    assert table.loc["Ours v2"].tolist() == ["28.40", "25", "20.1", "12.0 (10.2 to 13.8; 5 pairs)"]
    assert table.loc["InstantID"].iloc[-1] == "0 pairs alone"
    assert "Ours v2 28.40 would be 20.1 dB" in inversion_plot(pairs, quoted).info["alt"]


def naive_contrast(picture: np.ndarray) -> float:
    """In the middle of a picture, by loops over the window."""
    middle, reach = picture.shape[0] // 2, 5
    mean = square = total = 0.0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = np.exp(-(dx**2 + dy**2) / (2 * 1.5**2))
            value = float(picture[middle + dy, middle + dx, 0])
            mean, square, total = mean + weight * value, square + weight * value**2, total + weight
    return float(np.sqrt(square / total - (mean / total) ** 2))


def test_local_contrast_is_that_of_the_window() -> None:
    stripes = np.zeros((41, 41, 3), dtype=np.uint8)
    stripes[:, ::2] = 40  # the window sees the same everywhere, but for the edges
    assert local_contrast(stripes) == pytest.approx(naive_contrast(stripes), rel=0.02)
    assert local_contrast(np.full((20, 20, 3), 77, dtype=np.uint8)) == pytest.approx(0, abs=1e-4)


def test_error_and_ssim_together_tell_the_contrast() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 18, (2, 96, 96, 3))
    shown = np.rint(np.clip(128 + first, 0, 255)).astype(np.uint8)
    other = np.rint(np.clip(128 + 0.7 * first + 0.7 * second, 0, 255)).astype(np.uint8)
    error, contrast = needed_contrast(psnr(other, shown), ssim(other, shown))
    differences = shown.astype(float) - other.astype(float)
    assert error == pytest.approx(np.sqrt(np.mean(differences**2)))
    assert contrast == pytest.approx(local_contrast(shown), rel=0.05)
    assert needed_contrast(60, 0.5)[1] == 0
