"""Records of studies: they give back what was measured, and belong to the weights they came of."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from companion.evaluation.comparison import estimate_change, paired_difference
from companion.evaluation.measure import Measurements
from companion.methods import Method
from companion.person import Person
from companion.studies.records import read_record, recorded, write_record
from companion.studies.store import Store
from companion.studies.study import Study
from fusionlib.errors import FusionError

WEIGHTS = {"fused": {"base_model": "a" * 64, "adapter": "b" * 64}, "text": {"base_model": "a" * 64}}


@pytest.fixture()
def measured() -> Measurements:
    rng = np.random.default_rng(0)
    rows = [
        {"method": method, "person": person, "prompt": "a photo", "seed": seed, "key": "k"}
        for method in ("fused", "text")
        for person in ("3", "7", "11")
        for seed in (0, 1)
    ]
    images = pd.DataFrame(rows).assign(
        image="/somewhere/x.png",
        unreadable=None,
        face=True,
        expression_correct=rng.integers(0, 2, len(rows)).astype(float),
    )
    images["distance Dlib"] = rng.random(len(rows))
    images.loc[2, "distance Dlib"] = np.nan
    scale = pd.DataFrame(
        {"genuine": [0.05, 0.06, np.nan], "impostor": [0.2, 0.3, 0.25]},
        index=pd.Index(["3", "7", "11"], name="person"),
    )
    return Measurements(images, {"Dlib": scale}, "dlib", "reference")


@pytest.fixture()
def study_folder(tmp_path: Path) -> Path:
    kept: dict[str, Any] = {
        "declaration": {"profile": "embedded"},
        "methods": [
            {"name": name, "settings": {"weights": weights}} for name, weights in WEIGHTS.items()
        ],
        "people": [
            {"name": name, "references": [f"/home/me/{name}.jpg"], "others": []} for name in "371"
        ],
        "prompts": ["a photo"],
        "seeds": [0, 1],
    }
    shelf = Store(tmp_path / "store")
    cell = {"prompt": "a photo", "seed": 0, "noise_seed": 0}
    cells = [cell | {"method": m, "person": p, "key": m + p} for m in WEIGHTS for p in "371"]
    shelf.declare("small", cells, kept)
    return shelf.root / "studies" / "small"


def test_a_record_gives_back_what_was_measured(
    measured: Measurements, study_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "kept" / "small.parquet"
    write_record(measured, study_folder, file)
    record = read_record(file)
    there, back = measured.identity("Dlib"), record.measured.identity("Dlib")
    pd.testing.assert_frame_equal(
        back.images.drop(columns="unreadable"), there.images.drop(columns=["image", "unreadable"])
    )
    pd.testing.assert_frame_equal(back.scale, there.scale)
    gains = [paired_difference(each, "fused", "text").interval for each in (back, there)]
    assert gains[0] == gains[1]
    assert record.run == (
        "Profile embedded: 3 people, 1 prompt, 2 seeds; weights: base model aaaaaaaa, "
        "adapter bbbbbbbb."
    )
    assert b"/home/me" not in file.read_bytes(), "paths of the machine say nothing to others"


def test_a_record_names_how_many_were_left_out(
    measured: Measurements, study_folder: Path, tmp_path: Path
) -> None:
    shelf = Store(study_folder.parent.parent)
    with shelf.writing():
        shelf.leave_out("fused3", "Reference 1 shows no face.")
        shelf.leave_out("fused7", "Reference 1 shows no face.")
        shelf.leave_out("another study's", "Reference 1 shows no face.")
    write_record(measured, study_folder, tmp_path / "r.parquet")
    record = read_record(tmp_path / "r.parquet")
    assert record.run.endswith("in whose reference no face was found: 2 for fused.")
    assert [row["person"] for row in record.manifest["left_out"]] == ["3", "7"]


def test_other_weights_than_the_records_are_an_error(
    measured: Measurements, study_folder: Path, tmp_path: Path
) -> None:
    write_record(measured, study_folder, tmp_path / "r.parquet")

    def with_adapter(digits: str) -> Any:
        settings = {"weights": {"base_model": "a" * 64, "adapter": digits}}
        method = SimpleNamespace(name="fused", settings=settings)
        return SimpleNamespace(methods=[method, SimpleNamespace(name="new", settings={})])

    assert read_record(tmp_path / "r.parquet", with_adapter("b" * 64)).measured.detector == "dlib"
    with pytest.raises(FusionError, match="other weights of 'fused'"):
        read_record(tmp_path / "r.parquet", with_adapter("c" * 64))


@pytest.mark.parametrize(
    ("setting", "other", "said"),
    [("guidance_scale", 3.0, "guidance scale"), ("strengths", (0.5,), "strengths")],
)
def test_other_settings_than_the_records_are_an_error(
    measured: Measurements, study_folder: Path, tmp_path: Path, setting: str, other: Any, said: str
) -> None:
    file = study_folder / "manifest.json"
    kept = json.loads(file.read_text())
    kept["methods"][0]["settings"] |= {"guidance_scale": 2.0, "strengths": [1.0]}
    file.write_text(json.dumps(kept))
    write_record(measured, study_folder, tmp_path / "r.parquet")
    settings = {"weights": WEIGHTS["fused"], "guidance_scale": 2.0, "strengths": (1.0,)}
    same = SimpleNamespace(methods=[SimpleNamespace(name="fused", settings=settings)])
    assert read_record(tmp_path / "r.parquet", same).weights == WEIGHTS
    changed = SimpleNamespace(name="fused", settings=settings | {setting: other})
    with pytest.raises(FusionError, match=f"other {said} of 'fused'"):
        read_record(tmp_path / "r.parquet", SimpleNamespace(methods=[changed]))


def test_a_failing_write_leaves_the_former_record(
    measured: Measurements, study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept" / "small.parquet"
    write_record(measured, study_folder, file)

    def half(table: object, where: Any, **_: object) -> None:
        with where if hasattr(where, "write") else open(where, "wb") as opened:
            opened.write(b"PAR1")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(FusionError, match="cannot be written: no space left"):
        write_record(measured, study_folder, file)
    assert read_record(file).measured.detector == "dlib"
    assert list(file.parent.iterdir()) == [file]


def test_a_study_without_a_record_is_what_was_measured_now(
    measured: Measurements, study_folder: Path, tmp_path: Path
) -> None:
    methods = [
        Method(name, lambda *_: Image.new("RGB", (8, 8)), {"weights": weights})
        for name, weights in WEIGHTS.items()
    ]
    study = Study("small", methods, [Person("3")], ["a photo"])
    now = recorded(study, measured, tmp_path / "nothing here")
    assert now.measured is measured
    assert now.run.startswith("Profile unknown: 1 person, 1 prompt, 1 seed; weights: base model aa")
    assert "left out" not in now.run
    without = replace(measured, images=measured.images[measured.images["method"] == "text"])
    assert recorded(study, without, tmp_path).run.endswith("no face was found: 1 for fused.")
    write_record(measured, study_folder, tmp_path / "kept" / "small.parquet")
    assert "3 people" in recorded(study, measured, tmp_path / "kept").run
    for change, said in (
        ({"scales": {"ArcFace": measured.scales["Dlib"]}}, "other recognisers"),
        ({"detector": "retinaface"}, "another detector"),
        ({"against": "others"}, "distances to other pictures"),
    ):
        with pytest.raises(FusionError, match=said):
            recorded(study, replace(measured, **change), tmp_path / "kept")


def test_what_is_no_record(measured: Measurements, study_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="There is no record"):
        read_record(tmp_path / "none.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    for name in ("other", "text"):
        with pytest.raises(FusionError, match="no record of a study"):
            read_record(tmp_path / f"{name}.parquet")
    with pytest.raises(FusionError, match="has no manifest"):
        write_record(measured, tmp_path, tmp_path / "r.parquet")


def test_a_change_is_counted_beyond_what_changes_anyway() -> None:
    values = {"a": [5.0, 7.0, 1.0], "b": [2.0, 3.0, 1.0], "c": [2.0, 2.0, 9.0], "d": [1.0, 1.0, 9]}
    images = pd.DataFrame(
        [
            {"method": method, "person": str(person), "prompt": "p", "seed": 0, "distance": value}
            for method, column in values.items()
            for person, value in enumerate(column)
        ]
    )
    found = estimate_change(images, ("a", "b"), ("c", "d"))
    assert found.interval.estimate == pytest.approx(np.mean([2.0, 3.0, 0.0]))
    assert (found.people, found.cells) == (3, 3)
    images.loc[0, "distance"] = np.nan
    fewer = estimate_change(images, ("a", "b"), ("c", "d"))
    assert fewer.interval.estimate == pytest.approx(1.5) and (fewer.people, fewer.cells) == (2, 3)
    with pytest.raises(FusionError, match="no method 'e'"):
        estimate_change(images, ("a", "e"), ("c", "d"))
    twice = pd.concat([images, images[images["person"] == "2"].assign(prompt="q")])
    again = estimate_change(twice, ("a", "b"), ("c", "d"))
    assert again.interval.estimate == pytest.approx(1.5), "people count once, of all their prompts"
    assert (again.people, again.pairs, again.cells) == (2, 3, 4)
