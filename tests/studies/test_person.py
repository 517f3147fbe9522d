"""Photographs of people, a folder for each, become held-out people."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from companion.person import frame_people, load_people
from companion.studies.prompts import read_pairs
from fusionlib.cli import app
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for name, people in (("ada", (0, 0)), ("bob", (1,))):
        (folder / name).mkdir(parents=True)
        for number, person in enumerate(people):
            wide = Image.new("RGB", (500, 300), "gray")
            portrait = Image.open(ROOT / f"data/heldout/{person:04d}_0.jpg").resize((256, 256))
            wide.paste(portrait, (20 + 100 * number, 22))
            wide.save(folder / name / f"{number}.jpg")
    Image.new("RGB", (300, 300), "gray").save(folder / "bob" / "nobody.png")
    (folder / "bob" / "notes.txt").write_text("no picture")
    return folder


def test_faces_are_cut_out_and_what_shows_none_is_named(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "people"
    counts, problems = frame_people(photographs, out, 96)
    assert counts == {2: 1, 1: 1}
    (problem,) = problems
    assert "No face was found" in problem and "nobody.png" in problem
    ada, bob = load_people(out, others=0, only={"style": "photo"})
    assert (ada.name, bob.name, len(ada.others), len(bob.others)) == ("ada", "bob", 1, 0)
    for path in (*ada.references, *ada.others, *bob.references):
        assert Image.open(path).size == (96, 96)
    with pytest.raises(FusionError, match="people exists"):
        frame_people(photographs, out, 96)


def test_the_command_says_how_many_there_are(photographs: Path, tmp_path: Path) -> None:
    line = ["data", "people", str(photographs), str(tmp_path / "out"), "--size", "64"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0 and "1  people with 2 photographs" in done.output
    done = CliRunner().invoke(app, ["data", "people", str(tmp_path / "no"), str(tmp_path / "x")])
    assert done.exit_code == 1 and "no folders of pictures" in done.output


def test_prompts_of_others_go_to_the_people_there_are(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("person,prompt\n0,p\n1,q\n0,r\n2,s\n")
    assert read_pairs(path) == {"0": ["p", "r"], "1": ["q"], "2": ["s"]}
    assert read_pairs(path, names=["2", "1", "0", "9"]) == read_pairs(path)
    assert read_pairs(path, names=["ada", "bob"]) == {"ada": ["p", "r", "s"], "bob": ["q"]}
    assert read_pairs(path, 2, names=["ada", "bob"]) == {"ada": ["p"], "bob": ["q"]}
