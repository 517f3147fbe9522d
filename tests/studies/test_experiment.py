"""An experiment: from a declaration to scores and claims, with and without a study's file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from companion.evaluation.measure import Measurements
from companion.methods import Method, Models
from companion.person import Person
from companion.studies import experiment as module
from companion.studies.experiment import experiment
from companion.studies.records import Record
from companion.studies.study import run_label
from fusionlib.errors import FusionError

PEOPLE = [str(number) for number in range(6)]


def paint(prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (seed % 256, len(prompt), 0))


def named(name: str) -> Method:
    return Method(name, paint, {"weights": {"paint": "a" * 64}, "name": name})


def build_paint(models: Models, name: str = "paint") -> Method:
    """As a study's file names it: ``test_experiment:build_paint``."""
    return named(name)


def build_missing(models: Models) -> Method:
    raise FusionError("The weights of this method are not here.")


@pytest.fixture
def people(tmp_path: Path) -> list[Person]:
    rows = ["person,view,file,style"]
    for name in PEOPLE:
        Image.new("RGB", (32, 32), (40, int(name), 0)).save(tmp_path / f"{name}.png")
        rows.append(f"{name},0,{name}.png,photo")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    return [Person(name, (tmp_path / f"{name}.png",)) for name in PEOPLE]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `measure` was asked for; it finds the method ``near`` nearer than all others."""
    calls: list[dict[str, Any]] = []

    def fake(index: pd.DataFrame, people: list[Person], **arguments: Any) -> Measurements:
        calls.append(arguments)
        distance = np.where(index["method"] == "near", 0.2, 0.5)
        scale = pd.DataFrame({"genuine": 0.1, "impostor": 0.6}, index=[one.name for one in people])
        images = index.assign(**{"distance Dlib": distance, "style_correct": 1.0})
        images = images.assign(clip_score=20.0, face=True)
        return Measurements(images, {"Dlib": scale}, "dlib", "reference")

    monkeypatch.setattr(module, "measure", fake)
    return calls


def near_and_far(people: list[Person], out: Path, name: str = "own", **more: Any) -> Any:
    methods = [named("near"), named("far")]
    return experiment(
        name, "embedded", out, methods=methods, people=people, prompts=["a", "b"], **more
    )


def test_a_declared_study_becomes_scores(
    people: list[Person], tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    found = near_and_far(people, tmp_path / "out", seeds=2, clip=True, quality=True)
    assert len(found.index) == 2 * 6 * 2 * 2 and found.prompts == ["a", "b"] and not asked
    assert found.people == people and found.left_out == {"left out": "none"}
    assert [score.recogniser for score in found.scores] == found.recognisers == ["Dlib"]
    assert found.recovery("near").estimate == pytest.approx(0.8)
    assert found.images["clip_score"].eq(20).all() and found.measured is found.measured
    assert found.run == found.label == run_label("embedded", found.study)
    (told,) = asked  # once, however much was looked at
    assert told["quality"] and told["clip"] == found.profile.clip_model and not told["traits"]
    assert told["classifiers"] == {"classifier": found.profile.classifier}
    assert told["recognisers"] == found.profile.recognisers
    assert told["cache"] == tmp_path / "out" / "observations"
    asked_of_prompts = {"face found", "nearer (Dlib)", "CLIP score", "face and prompt"}
    assert set(found.by_prompt) == asked_of_prompts
    (main,) = found.main_scores
    assert main.of("near").eq(0.2).all(), "to the reference, as nothing else was measured"


def test_pictures_are_chosen_by_prompt_and_by_method(people: list[Person], tmp_path: Path) -> None:
    found = near_and_far(people, tmp_path, asked={"role": ["king", "queen"]}, over="pairs")
    assert found.index_of(["b"])["prompt"].unique() == ["b"]
    assert found.index_without("near")["method"].unique() == ["far"]
    assert dict(zip(found.index["prompt"], found.index["role"], strict=True)) == {
        "a": "king",
        "b": "queen",
    }
    assert "6 pairs" in found.label


def test_a_study_of_a_file_is_run_as_far_as_weights_are_here(
    people: list[Person],
    tmp_path: Path,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = {
        "name": "declared",
        "methods": [
            "test_experiment:build_missing",
            {"method": "test_experiment:build_paint", "name": "near"},
        ],
        "people": {"folder": str(tmp_path), "others": 0},
        "prompts": ["a face"],
        "seeds": 3,
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    found = experiment(tmp_path / "study.yaml", "embedded", tmp_path / "out", people=2, seeds=1)
    assert len(found.index) == len(found.people) == 2
    assert list(found.left_out) == ["test_experiment:build_missing"]
    assert found.run.startswith("Profile embedded: 2 people, 1 prompt, 1 seed;")

    def kept(study: Any, measured: Measurements, folder: Path) -> Record:
        assert folder == tmp_path / "records" / "embedded"
        manifest = {"people": PEOPLE, "prompts": ["a face"], "seeds": [0], "methods": []}
        return Record(measured, manifest | {"declaration": {"profile": "embedded"}})

    monkeypatch.setattr(module, "recorded", kept)
    again = experiment(tmp_path / "study.yaml", "embedded", tmp_path / "out", people=2, seeds=1)
    assert again.run.startswith("Profile embedded: 6 people") and "2 people" in again.label


def test_an_experiment_records_claims(
    people: list[Person], tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    methods = [named(name) for name in ("fused", "decoupled")]
    told: dict[str, Any] = {"people": people, "prompts": ["a", "b"]}
    name = "concatenated-or-decoupled"
    found = experiment(name, "embedded", tmp_path, methods=methods, **told)
    made = found.record_claims("concatenation", "consistency", "no-conflict", "v2-over-v1")
    assert [one.claim.id for one in made] == ["concatenation", "consistency"]
    assert {one.study for one in made} == {name}
    assert found.record_claims("concatenation", page="table1_identity") == []
    record = json.loads((tmp_path / "claims" / "concatenation.json").read_text())
    assert record["run"] == found.run and record["parts"][0]["found"]["pairs"] == 12
    table = found.images.assign(distance=[0.1] * 12 + [0.3] * 12)
    (other,) = found.record_claims("concatenation", measured=table)
    assert other.found.interval.estimate == pytest.approx(0.2)
    assert found.record_claim("order-matters", [0.0] * 5).verdict == "not supported"
