"""Folders, tables and names as people bring them to `evaluate` and to studies."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from companion.cli.options import one_line
from companion.csv_tables import read_table
from companion.evaluation.measure import Measurements
from companion.person import load_people
from companion.studies.declaration import load_declaration
from companion.studies.picture_folder import read_folder
from companion.studies.prompts import read_pairs
from fusionlib.cli import app
from fusionlib.errors import FusionError
from fusionlib.profiles import load_profile

NAMES = ["007", "NA", "null", "1e5", "José", "ada|*b*<i>", "笑 🙂", "שלום", "n" * 200]
"""Names that formats, tables and terminals like to change."""


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ada", "ben"):
        picture(tmp_path / "judged" / "references" / f"{name}.png")
        picture(tmp_path / "judged" / "ours" / name / "0.png")
    return tmp_path / "judged"


def test_what_systems_leave_is_no_person_and_links_are_followed(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("@eaDir", ".thumbnails", "__MACOSX"):
        picture(folder / "ours" / name / "0.png")
        picture(folder / name / "ada" / "0.png")
    (folder / "ours" / "ada" / "notes.pdf").write_text("x")
    (folder / "references" / "notes.pdf").write_text("x")
    picture(tmp_path / "elsewhere" / "0.JFIF.png")
    (folder / "ours" / "zoe").symlink_to(tmp_path / "elsewhere")
    picture(folder / "references" / "zoe.png")
    found = read_folder(folder)
    assert [person.name for person in found.people] == ["ada", "ben", "zoe"]
    assert found.index["person"].tolist() == ["ada", "ben", "zoe"]
    assert set(found.passed_over.values()) == {"it is no picture"} and found.ignored == 2
    assert found.hidden == 6


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_names_in_a_table_stay_as_they_are(tmp_path: Path, encoding: str, sign: str) -> None:
    names = [name for name in NAMES if sign not in name]
    rows = [f"{n}.png{sign}{name}{sign}{name}{sign}" for n, name in enumerate(names)]
    text = "\n".join([sign.join(("image", "person", "method", "prompt")), *rows])
    (tmp_path / "index.csv").write_bytes(text.encode(encoding))
    table = read_table(tmp_path / "index.csv", ["person"])
    assert table["person"].tolist() == table["method"].tolist() == names
    assert table["prompt"].isna().all()


def test_names_in_an_index_are_compared_as_people_do(folder: Path) -> None:
    apart = unicodedata.normalize("NFD", "José")
    picture(folder / "references" / f"{apart}.png")
    picture(folder / "x" / f"{apart}.png")
    lines = ["image,person,prompt", "x/José.png,José,a face", "ours/ada/0.png,ADA,"]
    (folder / "index.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    found = read_folder(folder)
    assert found.index["person"].tolist() == ["José", "ADA"]
    assert sorted(person.name for person in found.people) == ["ADA", "José"]
    assert found.index["prompt"].tolist() == ["a face", ""]


def test_lists_of_people_and_prompts_take_any_encoding(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    text = "person,view,file,style\nJosé,0,a.png,photo\n"
    (tmp_path / "index.csv").write_text(unicodedata.normalize("NFD", text), encoding="utf-8-sig")
    (person,) = load_people(tmp_path, others=0)
    assert (person.name, person.references) == ("José", (tmp_path / "a.png",))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(unicodedata.normalize("NFD", "person,prompt\nJosé,a face\n"), "utf-16")
    assert list(read_pairs(pairs, names=["José", "ada"])) == ["José"], "and nobody in his place"
    pairs.write_bytes("person,prompt\nJosé,a face\n".encode("latin-1"))
    with pytest.raises(FusionError, match="perhaps Latin-1"):
        read_pairs(pairs)
    pairs.write_text("person,prompt\nada,\n")
    with pytest.raises(FusionError, match="lacks a person or a prompt in its pair 1"):
        read_pairs(pairs)


def evaluated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[dict[str, Any], str]:
    """The arguments of what `evaluate` would measure, and what it says."""
    seen: dict[str, Any] = {}

    def measure(index: Any, people: Any, **more: Any) -> Measurements:
        seen.update(more)
        images = index.assign(unreadable=None, face=True, clip_score=np.nan)
        return Measurements(images, {}, "dlib", "reference")

    monkeypatch.setattr("companion.evaluation.measure.measure", measure)
    monkeypatch.setattr("companion.cli.study._print_measurements", lambda *_: None)
    line = ["evaluate", str(folder), "--cache", str(folder.parent / "cache"), *options]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    return seen, done.stderr


def test_traits_go_with_the_classifier_of_their_profile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traits = load_profile("embedded").traits
    seen, _ = evaluated(folder, monkeypatch)
    assert seen["traits"] == traits
    seen, said = evaluated(folder, monkeypatch, "--classifier", "none")
    assert not seen["traits"] and not seen["classifiers"] and "Not measured" not in said
    seen, said = evaluated(folder, monkeypatch, "--classifier", "mood=$HOME")
    assert not seen["traits"] and seen["further_traits"] == traits
    assert seen["classifiers"] == {"mood": str(Path.home())}
    assert f"Not measured: {', '.join(traits)}, which no classifier tells." in said


def test_a_row_without_a_prompt_has_no_clip_score(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["image,person,prompt", "ours/ada/0.png,ada,a face", "ours/ben/0.png,ben,"]
    (folder / "index.csv").write_text("\n".join(lines))
    (folder / "references" / "notes.pdf").write_text("x")
    (folder / "references" / ".DS_Store").write_text("x")
    seen, said = evaluated(folder, monkeypatch)
    assert seen["clip"] == load_profile("embedded").clip_model
    assert "No CLIP score: 1 picture(s) without a prompt." in said
    assert "Ignored: 1 file(s): notes.pdf (it is no picture)." in said
    assert "Passed over: 1 hidden or system files" in said


def test_a_profile_that_replaces_the_classifier_loses_its_traits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACES", str(tmp_path))
    changes: dict[str, Any] = {"classifier": "$FACES/own", "training": {"shards": "~/x"}}
    file = tmp_path / "own.yaml"
    text = yaml.safe_dump({"extends": "embedded", "name": "own", **changes})
    file.write_text(text, encoding="utf-16")
    profile = load_profile(file)
    assert profile.traits == [] and profile.classifier == str(tmp_path / "own")
    assert profile.training.shards == str(Path.home() / "x")
    file.write_text(yaml.safe_dump({"extends": "embedded", "name": "own"}), encoding="utf-8-sig")
    assert load_profile(file).traits == load_profile("embedded").traits


SIZES = {
    "all methods": {"sampling": {"height": 136}},
    "one method": {"methods": [{"method": "text-only", "width": 120}]},
}


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES)
def test_a_study_refuses_sizes_that_would_be_rounded(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    file = tmp_path / "study.yaml"
    declared = {"name": "x", "methods": ["text-only"], "prompts": ["a face"], **changes}
    file.write_text(yaml.safe_dump(declared), encoding="utf-8")
    with pytest.raises(FusionError, match=r"divisible by 16, such as (128 or 144|112 or 128)"):
        load_declaration(file).study("cpu")


def test_generate_refuses_sizes_before_models_are_loaded(tmp_path: Path) -> None:
    line = ["generate", "--prompt", "x", "--out", str(tmp_path / "a.png"), "--height", "136"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 1
    assert "136" in done.stderr and "divisible by 16, such as 128 or 144" in done.stderr


def test_messages_keep_names_as_they_are() -> None:
    for name in NAMES:
        assert one_line(f"no\n {name}") == f"no {name}"
    assert one_line("a\x1b[31m b  c") == "a\\x1b[31m b  c"


def test_a_number_is_no_name_of_a_method(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: x\nmethods: [{method: text-only, name: 007}]\nprompts: [a]\n", encoding="utf-8"
    )
    with pytest.raises(FusionError, match="put it in quotes"):
        load_declaration(file)
