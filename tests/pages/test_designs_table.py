"""The table of five trainings of each design: from its record, or a sentence that it waits."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import companion
from companion.evaluation.designs import Training, design_difference
from companion.evaluation.measure import Measurements
from companion.pages.designs import WAITS, designs_table
from companion.studies.records import write_record
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT

BASE, SEEDS, LENGTHS = "a" * 64, (1, 2, 3), (600, 1200)
DESIGNS = {"fused": 0.4, "decoupled": 0.45, "ip-adapter": 0.5}


def shown(base: str = BASE) -> Any:
    """What the table reads of an experiment."""
    method = SimpleNamespace(name="text-only", settings={"weights": {"base_model": base}})
    return SimpleNamespace(
        profile=SimpleNamespace(name="embedded"), study=SimpleNamespace(methods=[method])
    )


@pytest.fixture
def images(tmp_path: Path) -> pd.DataFrame:
    """Pictures of trainings, with a record of them below ``tmp_path``."""
    rng = np.random.default_rng(0)
    trainings = [Training(d, steps, s) for d in DESIGNS for steps in LENGTHS for s in SEEDS]
    rows = [
        {"method": each.name, "person": person, "prompt": prompt, "seed": 4, "key": "k"}
        for each in trainings for person in "abcdef" for prompt in ("a photo", "anything")
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    mean = table["method"].map(lambda name: DESIGNS[name.split(",")[0]])
    table = table.assign(
        image="x.png",
        unreadable=None,
        face=True,
        expression_correct=np.where(
            table["prompt"] == "a photo", rng.integers(0, 2, len(rows)), np.nan
        ),
    )
    table["distance Dlib"] = mean + rng.normal(0, 0.01, len(rows))
    table.loc[0, ["distance Dlib", "face"]] = [np.nan, False]
    people = pd.Index(list("abcdef"), name="person")
    scale = pd.DataFrame({"genuine": 0.1, "impostor": 0.7}, index=people)
    manifest: dict[str, Any] = {
        "methods": [
            {
                "name": each.name,
                "settings": {
                    "weights": {"pipeline": each.folder}
                    if each.design == "ip-adapter"
                    else {"base_model": BASE, "adapter": each.folder}
                },
            }
            for each in trainings
        ],
        "people": [{"name": name, "references": [], "others": []} for name in "abcdef"],
        "prompts": ["a photo", "anything"],
        "seeds": [4],
    }
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    measured = Measurements(table, {"Dlib": scale}, "dlib", "reference")
    write_record(measured, folder, tmp_path / "records" / "embedded" / "trainings.parquet")
    return table


def test_without_a_record_one_sentence_says_that_it_waits(tmp_path: Path) -> None:
    table = designs_table(shown(), records=tmp_path)
    assert WAITS in table.to_html() and "Not measured yet." in table.to_html()
    assert "Measured here" not in table.to_html()
    assert companion.designs_table is designs_table
    assert (ROOT / "docs" / "gpu-queue.md").is_file(), "which the sentence names"


def test_the_record_is_shown_pair_by_pair(images: pd.DataFrame, tmp_path: Path) -> None:
    table: Any = designs_table(shown(), records=tmp_path / "records")
    frame = table.data
    assert len(frame) == 2 * 2 * 3, "pairs, lengths, and three metrics"
    row = frame.loc["fused over decoupled, nearer by Dlib, 600 steps"]
    filled = images.assign(distance=images["distance Dlib"].fillna(0.7))
    wanted = design_difference(filled, "fused", "decoupled", 600)
    assert row["difference"] == str(wanted.interval)
    assert row["trainings × people"] == "3 × 6" and row["the lengths"] == "agree"
    assert "prompt followed" in " ".join(frame.index) and "a stranger" in table.to_html()
    assert table.to_html().count("aaaaaaaa") == 1, "the caption names the base model, once"


def test_a_record_over_another_base_model_is_an_error(images: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="another base model"):
        designs_table(shown("b" * 64), records=tmp_path / "records")
