"""The command line: what it writes, and that mistakes end in one sentence."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fusionlib.cli import app
from fusionlib.images import load_image, read_metadata
from fusionlib.manifest import sha256_file
from fusionlib.methods import Method
from fusionlib.profiles import load_profile
from fusionlib.study import Study, load_people, run_study

HELDOUT = Path(__file__).resolve().parent.parent / "data" / "heldout"

runner = CliRunner()


@pytest.fixture(scope="module")
def tiny_profile(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded profile with the tiny checkpoint and three steps."""
    settings = load_profile("embedded").model_dump(mode="json")
    settings.update(
        base_model=str(tiny_checkpoint),
        adapter=str(tiny_checkpoint / "adapter"),
        num_inference_steps=3,
    )
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def face(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def generate(*arguments: object) -> None:
    done = runner.invoke(app, ["generate", *map(str, arguments)])
    assert done.exit_code == 0, done.output


def test_the_png_says_how_it_was_made(tiny_profile: Path, face: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "image.png"
    common = ("--profile", tiny_profile, "--prompt", "a laughing face", "--seed", 7)
    generate(*common, "--reference", face, "--reference", face, "--strength", 0.5, "--out", out)
    assert load_image(out).size == (32, 32)
    record = read_metadata(out)
    assert record["prompt"] == "a laughing face"
    assert record["seed"] == 7
    assert record["references"] == [{"file": "face.png", "sha256": sha256_file(face)}] * 2
    assert record["strengths"] == [0.5, 0.5]
    assert record["num_inference_steps"] == 3
    assert record["scheduler"]["class"] == "DDIMScheduler"
    assert {len(digest) for digest in record["weights"].values()} == {64}
    assert record["weights"].keys() == {"base_model", "adapter"}
    assert "torch" in record["versions"]


def test_same_command_same_bytes_and_other_seed_other_picture(
    tiny_profile: Path, face: Path, tmp_path: Path
) -> None:
    common = ("--profile", tiny_profile, "--prompt", "a face", "--reference", face)
    generate(*common, "--out", tmp_path / "a.png")
    generate(*common, "--out", tmp_path / "b.png")
    generate(*common, "--out", tmp_path / "c.png", "--seed", 1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    a, c = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "c.png"))
    assert np.abs(a - c).max() > 5


def test_strength_zero_is_the_base_model_bit_by_bit(
    tiny_profile: Path, face: Path, tmp_path: Path
) -> None:
    common = ("--profile", tiny_profile, "--prompt", "a face")
    generate(*common, "--out", tmp_path / "base.png")
    generate(*common, "--out", tmp_path / "zero.png", "--reference", face, "--strength", 0)
    generate(*common, "--out", tmp_path / "one.png", "--reference", face)
    base, zero, one = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("base", "zero", "one")
    )
    assert np.array_equal(base, zero)
    assert not np.array_equal(base, one)


def bad(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def png(size: tuple[int, int], share: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    return buffer.getvalue()[: int(len(buffer.getvalue()) * share)]


MISTAKES = {
    "not an image": ({"--reference": bad("notes.txt", b"hello")}, "is not an image"),
    "truncated file": ({"--reference": bad("cut.png", png((64, 64), 0.5))}, "cut short"),
    "empty file": ({"--reference": bad("empty.jpg", b"")}, "is not an image"),
    "1x1 image": ({"--reference": bad("dot.png", png((1, 1)))}, "1x1 pixels"),
    "missing file": ({"--reference": lambda d: d / "none.png"}, "no image file"),
    "folder as image": ({"--reference": lambda d: d}, "is a folder"),
    "empty prompt": ({"--prompt": "  "}, "prompt is empty"),
    "unknown model folder": ({"--base-model": lambda d: d / "none"}, "no base model folder"),
    "folder without model": ({"--base-model": lambda d: d}, "holds no model_index.json"),
    "file as model": ({"--base-model": bad("model.bin", b"")}, "is a file"),
    "unknown adapter": ({"--adapter": lambda d: d / "none"}, "no adapter folder"),
    "unknown hub id": ({"--base-model": "nobody/no-such-model"}, "could|cannot be loaded"),
    "unknown profile": ({"--profile": "no-such-profile"}, "no profile"),
    "output under a file": ({"--out": lambda d: bad("f", b"")(d) / "a.png"}, "cannot be written"),
    "output is a folder": ({"--out": lambda d: d}, "must end in .png"),
    "output is no png": ({"--out": lambda d: d / "a.jpg"}, "must end in .png"),
    "strength NaN": ({"--strength": "nan"}, "strength nan"),
    "strength infinite": ({"--strength": "inf"}, "strength inf"),
    "strength negative": ({"--strength": "-0.5"}, "strength -0.5"),
    "strength of nobody": ({"--reference": None, "--strength": "1"}, "needs a --reference"),
    "guidance NaN": ({"--guidance-scale": "nan"}, "guidance scale nan"),
    "no steps": ({"--steps": "0"}, "from 1 to 1000"),
    "negative seed": ({"--seed": "-1"}, "seed -1"),
    "unknown type": ({"--dtype": "int8"}, "none of float32"),
    "unknown device": ({"--device": "abacus"}, "'abacus' is not there"),
}


@pytest.mark.parametrize("changes, says", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_end_in_one_sentence(
    tiny_profile: Path, face: Path, tmp_path: Path, changes: dict, says: str
) -> None:
    arguments: dict[str, object] = {
        "--profile": tiny_profile,
        "--reference": face,
        "--prompt": "a face",
        "--out": tmp_path / "image.png",
    }
    for option, value in changes.items():
        arguments[option] = value(tmp_path) if callable(value) else value
    given = [str(part) for pair in arguments.items() if pair[1] is not None for part in pair]
    done = runner.invoke(app, ["generate", *given])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert any(part in line for part in says.split("|"))
    assert done.stdout == ""
    assert not (tmp_path / "image.png").exists()


def test_numbers_of_strengths_and_references_must_agree(
    tiny_profile: Path, face: Path, tmp_path: Path
) -> None:
    arguments = ["generate", "--profile", tiny_profile, "--prompt", "a face"]
    arguments += ["--out", tmp_path / "a.png", *["--reference", face] * 3]
    done = runner.invoke(app, [*map(str, arguments), "--strength", "1", "--strength", "0.5"])
    assert done.exit_code == 1
    assert "2 strengths for 3 references" in done.stderr


def test_a_real_process_prints_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    command = [sys.executable, "-m", "fusionlib.cli", "generate", "--prompt", "a face"]
    command += ["--reference", str(tmp_path / "notes.txt"), "--out", str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: {tmp_path / 'notes.txt'} is not an image")
    assert done.stderr.count("\n") == 1


def test_help_and_complaints_load_no_model_library() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from fusionlib.cli import app\n"
        "for arguments in (['--help'], ['generate', '--help'], ['train', '--help'],\n"
        "                  ['people', 'render', '--help'], ['--version'],\n"
        "                  ['generate', '--prompt', '', '--out', 'a.png']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "print([m for m in ('torch', 'diffusers', 'pandas', 'deepface') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_says_what_the_embedded_model_does_not_know() -> None:
    text = " ".join(runner.invoke(app, ["generate", "--help"]).output.split())
    assert "synthetic" in text and "--base-model" in text and "--adapter" in text


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["train", "vae", "--minutes", "0"], "more than 0 minutes"),
        (["train", "vae", "--minutes", "nan"], "more than 0 minutes"),
        (["train", "base", "--steps", "0"], "1 or more"),
        (["people", "render", "f", "--people", "0"], "people"),
        (["people", "render", "f", "--views", "0"], "views"),
        (["evaluate", "nowhere"], "no finished study"),
    ],
)
def test_other_commands_complain_likewise(arguments: list[str], says: str) -> None:
    done = runner.invoke(app, arguments)
    assert done.exit_code == 1
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_evaluate_prints_the_table_of_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that paints the person against one that paints a stranger, judged by dlib."""
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    people = load_people(HELDOUT, 4, others=2, only={"style": "photo"})
    people = [replace(person, others=person.others[:2]) for person in people]
    strangers = {
        load_image(person.references[0]).tobytes(): people[number - 1].others[0]
        for number, person in enumerate(people)
    }

    def copy(references, prompts, seeds):  # type: ignore[no-untyped-def]
        return [own[0] for own in references]

    def stranger(references, prompts, seeds):  # type: ignore[no-untyped-def]
        return [load_image(strangers[own[0].tobytes()]) for own in references]

    methods = [Method("stranger", stranger, {"v": 1}), Method("copy", copy, {"v": 2})]
    run_study(Study("mirror", methods, people, ["a face"]), tmp_path / "store", progress=False)
    done = runner.invoke(app, ["evaluate", str(tmp_path / "store" / "studies" / "mirror")])
    assert done.exit_code == 0, done.output
    (row,) = [line for line in done.output.splitlines() if line.startswith("│ copy ")]
    assert "0.000 [0.000, 0.000]" in row and "4 of 4" in row
    text = " ".join(done.output.split())
    assert "copy is nearer than stranger by 0." in text
    assert "(4 of 4 pairs of pictures, 4 people): supported" in text
    done = runner.invoke(
        app, ["evaluate", str(tmp_path / "store" / "studies" / "mirror"), "--baseline", "nobody"]
    )
    assert done.exit_code == 1 and "no method 'nobody'" in done.stderr
