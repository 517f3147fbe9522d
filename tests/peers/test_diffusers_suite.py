"""The comparison with diffusers' own tests counts and reports what it should."""

from pathlib import Path
from typing import Any

import pytest

import fusionlib
from tests.peers.diffusers_suite import FAMILIES, differences, digest, main, table


def entry(outcome: str = "passed", **changes: Any) -> dict[str, Any]:
    return {"outcome": outcome, "reason": "", "places": [], "pictures": ["a"], "lost": 0} | changes


RESULTS = {
    ("sd", "stock"): {
        "f.py::T::one": entry(),
        "f.py::T::two": entry(),
        "f.py::T::x": entry("failed"),
    },
    ("sd", "reference"): {
        "f.py::T::one": entry(pictures=["b"], lost=2),
        "f.py::T::two": entry("failed", reason="FusionError: No.", places=["a/f.py:1", "b/g.py:2"]),
    },
}


def test_table_counts_what_passes_in_the_stock_class() -> None:
    rows = list(table(RESULTS, ["sd", "img2img"], ["stock", "none", "reference"]))
    assert rows[2:5] == [
        "| stock | 2 | - | 2 | 2 of 2 |",
        "| none | - | - | 0 | 0 of 0 |",
        "| reference | 1 | - | 1 | 0 of 1 |",
    ]


def test_differences_are_grouped_by_their_error() -> None:
    lines = list(differences(RESULTS, ["sd"], ["stock", "reference"]))
    assert lines[:3] == [
        "## reference: passes in the stock class only: 1",
        "\n1 x failed FusionError: No. (g.py:2)",
        "    sd: T::two",
    ]
    assert lines[3] == "No adapter at 2 calls: sd: T::one"


def test_every_fusion_class_is_compared() -> None:
    pipelines = {name for name in dir(fusionlib) if name.endswith("Pipeline")}
    assert {family.fusion for family in FAMILIES.values()} == pipelines


def test_digest_sees_pixels() -> None:
    np = pytest.importorskip("numpy")
    black, white = np.zeros((1, 2, 2)), np.ones((1, 2, 2))
    assert digest({"images": black}) == digest((black,)) != digest({"images": white})


def test_a_folder_without_the_tests_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["diffusers_suite.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "no checkout of diffusers" in capsys.readouterr().err
