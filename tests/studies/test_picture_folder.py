"""Anybody's pictures: folders of every shape are measured, counted or refused in one sentence."""

import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from companion.methods import Method
from companion.person import load_people
from companion.studies.picture_folder import export_study, read_folder
from companion.studies.records import read_record
from companion.studies.study import Study, read_study, run_study
from fusionlib.cli import app
from fusionlib.errors import FusionError, NoFaceError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import ROOT

HELDOUT = ROOT / "data" / "heldout"

runner = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def deepface_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFACE_HOME", str(tmp_path_factory.mktemp("deepface")))
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was read off pictures, for all tests here: the same few pictures come again."""
    return tmp_path_factory.mktemp("observations")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people with a reference and another picture each, judged by one method."""
    folder = tmp_path_factory.mktemp("template")
    for person in load_people(HELDOUT, 2, others=2, only={"style": "photo"}):
        for place, path in (
            (f"references/{person.name}.jpg", person.references[0]),
            (f"others/{person.name}/a.jpg", person.others[0]),
            (f"ours/{person.name}/0.jpg", person.others[1]),
        ):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / place)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "folder"))


def evaluate(folder: Path, observations: Path, *more: object):  # type: ignore[no-untyped-def]
    arguments = ["evaluate", str(folder), "--cache", str(observations), "--clip", "none"]
    return runner.invoke(app, [*arguments, *map(str, more)])


def test_a_folder_is_read_by_its_shape(folder: Path) -> None:
    found = read_folder(folder)
    assert found.index[["method", "person", "seed"]].values.tolist() == [
        ["ours", "0", 0], ["ours", "1", 0]
    ]  # fmt: skip
    assert [len(person.others) for person in found.people] == [1, 1] and found.ignored == 0
    shutil.move(folder / "ours" / "0" / "0.jpg", folder / "ours" / "0.jpg")
    (folder / "ours" / ".DS_Store").write_text("x")
    (folder / "theirs").mkdir()
    shutil.copy(folder / "ours" / "0.jpg", folder / "theirs" / "0.jpg")
    found = read_folder(folder)
    assert found.index["method"].tolist() == ["ours", "ours", "theirs"] and found.ignored == 0
    (folder / "references" / "1").mkdir()
    shutil.move(folder / "references" / "1.jpg", folder / "references" / "1" / "b.jpg")
    for place in ("references/1", "ours/1"):
        for name in ("c", "a"):
            shutil.copy(folder / "ours" / "0.jpg", folder / place / f"{name}.jpg")
    found = read_folder(folder)
    names = [path.name for path in found.people[1].references]
    assert names == ["a.jpg", "b.jpg", "c.jpg"], "the first by name is measured against"
    ones = found.index[found.index["person"] == "1"]
    assert [Path(path).name for path in ones["image"]] == ["0.jpg", "a.jpg", "c.jpg"]
    assert ones["seed"].tolist() == [0, 1, 2]


def test_an_exported_study_is_judged_as_the_study_itself(
    observations: Path, tmp_path: Path
) -> None:
    """A method that paints the person against one that paints a stranger, judged by dlib."""
    people = load_people(HELDOUT, 5, others=2, only={"style": "photo"})
    people = [replace(person, others=person.others[:2]) for person in people]
    strangers = {
        load_image(person.references[0]).tobytes(): people[number - 1].others[0]
        for number, person in enumerate(people)
    }

    def copy(prompt, references, seed):  # type: ignore[no-untyped-def]
        return references[0]

    def stranger(prompt, references, seed):  # type: ignore[no-untyped-def]
        return load_image(strangers[references[0].tobytes()])

    def picky(images):  # type: ignore[no-untyped-def]
        if images[0].tobytes() == load_image(people[3].references[0]).tobytes():
            raise NoFaceError("Reference 1 shows no face.")
        return images

    def refuse(images):  # type: ignore[no-untyped-def]
        raise NoFaceError("Reference 1 shows no face.")

    methods = [
        Method("a stranger", stranger, {"v": 1}),
        Method("copy", copy, {"v": 2}),
        Method("picky", copy, {"v": 3}, prepare=picky),
    ]
    store = tmp_path / "store"
    run_study(Study("mirror", methods, people, ["a face"]), store, progress=False)
    study, numbers = store / "studies" / "mirror", tmp_path / "numbers.csv"
    done = evaluate(study, observations, "--out", numbers)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("│ copy ")]
    faces, unseen, shown = rows[:3]
    assert "5 of 5" in faces and "0.000 [0.000, 0.000]" in faces, "no more faces than a stranger"
    # A copy is the reference itself on the main scale, and nearer than another picture of the
    # person in distances to the reference.
    assert unseen.count(" 1.000 ") == 2, "whoever is drawn again, so that there is no interval"
    assert "0.000 [0.000, 0.000]" in shown and re.search(r" 1\.[1-9]\d\d \[1\.", shown)
    text = " ".join(done.output.split())
    (line,) = re.findall(r"copy against a stranger, distance Dlib .*?supported", text)
    assert line.startswith("copy against a stranger, distance Dlib (above 0 is nearer): 0.")
    assert line.endswith("] (5 of 5 pairs of pictures, 5 people): supported")
    assert "copy against a stranger, unseen Dlib (above 0 is nearer): 0." in text
    assert "│ picky │ – │ – │" in text, "of four people there is no R"
    assert "picky against a stranger, ssim (above 0 is better): " in text
    assert "is better than" not in text, "which is wrong of what is below 0"
    assert "│ copy │ ssim │ 1.000 [1.000, 1.000] │ 5 of 5 │" in text
    assert f"Left out for picky: {people[3].name} (Reference 1 shows no face.)" in text
    assert "│ picky │ ssim │ 1.000 │ 4 of 4 │" in text  # of four people there is no interval
    assert "psnr 8bit overflow" in text and "8bit overflow (5 of" not in text
    assert evaluate(study, observations, "--baseline", "nobody").exit_code == 1
    damaged = Path(read_study(study)[0]["image"][0])
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    (line,) = [row for row in evaluate(study, observations).stderr.splitlines() if "Skip" in row]
    assert str(damaged) in line
    assert line.endswith("Or delete the file, and `fusionlib study run` makes the picture again.")
    damaged.write_bytes(whole)

    left = tmp_path / ".exported.partial" / "copy" / "zoe"  # by an export that was killed
    left.mkdir(parents=True)
    out = export_study(store, "mirror", tmp_path / "exported")
    assert not list(tmp_path.glob(".*")) and not (out / "copy" / "zoe").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        "a_stranger", "copy", "index.csv", "manifest.json", "others", "picky", "references"
    ]  # fmt: skip
    again = tmp_path / "again.csv"
    assert evaluate(out, observations, "--out", again).exit_code == 0
    columns = ["method", "person", "distance Dlib", "ssim", "psnr_8bit_overflow"]
    first, second = (pd.read_csv(path)[columns] for path in (numbers, again))
    pd.testing.assert_frame_equal(first, second)
    with pytest.raises(FusionError, match="exists"):
        export_study(store, "mirror", out)
    for judged in (study, out):
        record = tmp_path / f"{judged.name}.parquet"
        assert evaluate(judged, observations, "--record", record).exit_code == 0
        (gone,) = read_record(record).manifest["left_out"]
        assert (gone["method"], gone["person"]) == ("picky", people[3].name)

    nobody = Study(
        "nobody", [Method("picky", copy, {"v": 4}, prepare=refuse)], people[:1], ["a face"]
    )
    assert run_study(nobody, store, progress=False).empty
    done = evaluate(store / "studies" / "nobody", observations)
    assert done.exit_code == 1 and "every person was left out" in " ".join(done.output.split())
    with pytest.raises(FusionError, match="no study 'other'"):
        export_study(store, "other", tmp_path / "new")


def png(size: tuple[int, int], share: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    return buffer.getvalue()[: int(len(buffer.getvalue()) * share)]


def put(name: str, content: bytes | str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def drop(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def hide(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("nowhere")

    return change


def index(*lines: str) -> Callable[[Path], None]:
    return put("index.csv", "\n".join(lines) + "\n")


REFUSED = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "There is no folder"),
    "a file": (both(shutil.rmtree, lambda d: d.write_text("x")), "There is no folder"),
    "an empty folder": (both(shutil.rmtree, lambda d: d.mkdir()), "has no folder references/"),
    "no references": (drop("references"), "has no folder references/"),
    "references is a file": (both(drop("references"), put("references", "")), "no folder ref"),
    "empty references": (
        both(drop("references"), lambda d: (d / "references").mkdir()),
        "holds no picture",
    ),
    "a person without reference": (put("ours/zoe.png", png((64, 64))), "shows 'zoe'"),
    "no methods": (drop("ours"), "holds no pictures to judge"),
    "an empty method": (both(drop("ours"), lambda d: (d / "m").mkdir()), "no pictures to judge"),
    "pictures beside the folders": (
        both(drop("ours"), put("0.png", png((64, 64)))),
        "holds no pictures to judge",
    ),
    "too deep": (put("ours/0/deep/er/a.png", png((64, 64))), "lies too deep"),
    "reference cut short": (put("references/0.jpg", png((64, 64), 0.5)), "0.jpg is damaged"),
    "reference is text": (put("references/0.jpg", "hello"), "0.jpg is not an image"),
    "reference of one pixel": (put("references/0.jpg", png((1, 1))), "is 1x1 pixels"),
    "other picture cut short": (put("others/0/a.jpg", png((64, 64), 0.5)), "a.jpg is damaged"),
    "every picture cut short": (
        both(put("ours/0/0.jpg", png((64, 64), 0.5)), put("ours/1/0.jpg", b"")),
        "None of the 2 pictures",
    ),
    "index without images": (index("person", "0"), "lacks the column 'image'"),
    "index without people": (index("image", "ours/0/0.jpg"), "lacks the column 'person'"),
    "index of nothing": (index("image,person"), "lists no picture"),
    "empty index": (put("index.csv", ""), "is not a table"),
    "binary index": (put("index.csv", bytes(range(256)) * 4), "is not a table"),
    "index with a gap": (index("image,person", "ours/0/0.jpg,"), "no person in line 2"),
    "index of a missing file": (index("image,person", "gone.png,0"), "lists gone.png"),
    "index of a stranger": (index("image,person", "ours/0/0.jpg,zoe"), "shows 'zoe'"),
    "index with a pair twice": (
        index("image,person,seed", "ours/0/0.jpg,0,1", "ours/1/0.jpg,0,1"),
        "lists two pictures of one method, person, prompt and seed",
    ),
    "an unfinished study": (put("cells.parquet", b"x"), "holds no study|no study"),
}

MEASURED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a picture cut short": (put("ours/0/0.jpg", png((64, 64), 0.5)), "Skipped: .*is damaged"),
    "an empty file": (put("ours/0/0.jpg", b""), "Skipped: .*is not an image"),
    "a picture of one pixel": (put("ours/0/0.jpg", png((1, 1))), "Skipped: .*is 1x1 pixels"),
    "text named as a picture": (put("ours/0/0.jpg", "hello"), "Skipped: .*is not an image"),
    "no face": (put("ours/0/0.jpg", png((64, 64))), "1 of 2"),
    "no face at all": (
        both(put("ours/0/0.jpg", png((64, 64))), put("ours/1/0.jpg", png((96, 64)))),
        "0 of 2",
    ),
    "a reference without a face": (put("references/0.jpg", png((64, 64))), "1 of 2"),
    "mixed sizes": (
        lambda d: load_image(d / "ours/0/0.jpg").resize((300, 260)).save(d / "ours/0/0.jpg"),
        "2 of 2",
    ),
    "grey and transparent": (
        both(
            lambda d: load_image(d / "ours/0/0.jpg").convert("L").save(d / "ours/0/0.jpg"),
            lambda d: load_image(d / "ours/1/0.jpg").convert("RGBA").save(d / "ours/1/1.png"),
        ),
        "3 of 3",
    ),
    "files that are no pictures": (
        both(put("ours/notes.txt", "x"), put("readme.md", "x"), put("references/a.csv", "x")),
        "Ignored: 3 file",
    ),
    "a person whom nobody painted": (put("references/zoe.png", png((64, 64))), "2 people"),
    "no other pictures": (drop("others"), "–"),
    "one person": (both(drop("ours/1"), drop("references/1.jpg")), "1 person"),
    "a dead link": (hide("ours/0/0.jpg"), "Skipped: .*cannot be read"),
    "a word too many in the index": (
        index("image,person,mood", "ours/0/0.jpg,0,glad", "ours/1/0.jpg,1,"),
        "2 of 2",
    ),
}


@pytest.mark.parametrize("change, says", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_judged_is_refused_in_one_sentence(
    folder: Path, observations: Path, change: Callable[[Path], None], says: str
) -> None:
    change(folder)
    done = evaluate(folder, observations)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ") and any(part in line for part in says.split("|"))
    assert done.stderr.count("Error: ") == 1


@pytest.mark.parametrize("change, says", MEASURED.values(), ids=MEASURED.keys())
def test_the_rest_is_measured_and_what_is_left_out_is_counted(
    folder: Path, observations: Path, change: Callable[[Path], None], says: str
) -> None:
    change(folder)
    assert (done := evaluate(folder, observations)).exit_code == 0, done.output
    assert pd.Series([" ".join(done.output.split())]).str.contains(says, regex=True).all()


def test_what_cannot_be_written_is_said_before_anything_is_measured(
    folder: Path, observations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> None:
        pytest.fail("all was measured first")

    monkeypatch.setattr("companion.evaluation.measure.measure", measured)
    inside_a_file = folder / "references" / "0.jpg" / "a"
    for option, file, says in (
        ("--out", f"{inside_a_file}.csv", "cannot be written"),
        ("--out", folder, "is a folder"),
        ("--record", f"{inside_a_file}.parquet", "cannot be written"),
    ):
        done = evaluate(folder, observations, option, file)
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
        assert done.stderr.startswith(f"Error: The output {file} {says}")


def test_options_of_evaluate_are_checked(folder: Path, observations: Path) -> None:
    for options, says in (
        (["--recogniser", "Nobody"], "no recogniser 'Nobody'"),
        (["--detector", "nothing"], "no detector 'nothing': use one of DeepFace's (opencv, "),
        (["--classifier", "expression="], "must be like FOLDER or expression=FOLDER"),
        (["--classifier", f"expression={folder}"], "holds no config.json"),
        (["--classifier", str(folder)], "holds no config.json"),
        (["--profile", "none"], "no profile 'none'"),
        (["--out", str(folder / "references" / "0.jpg" / "a.csv")], "cannot be written"),
    ):
        done = evaluate(folder, observations, *options)
        assert done.exit_code == 1 and says in done.stderr, done.output
