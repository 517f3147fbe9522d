"""The command line: what it writes, and that mistakes end in one sentence."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fusionlib.cli import app
from fusionlib.inputs.images import load_image, read_metadata
from fusionlib.inputs.photos import prepare_photo
from fusionlib.pipeline import FusionPipeline
from fusionlib.profiles import ROOT
from fusionlib.reference_cache import ReferenceCache
from fusionlib.support.provenance import sha256_file

HELDOUT = ROOT / "data" / "heldout"

runner = CliRunner()


@pytest.fixture
def face(tmp_path: Path) -> Path:
    return Path(shutil.copy(HELDOUT / "0000_0.jpg", tmp_path / "face.jpg"))


@pytest.fixture
def couple(tmp_path: Path) -> Path:
    """Two people in one picture, the right one larger."""
    picture = Image.new("RGB", (600, 400), (96, 128, 96))
    for person, (side, place) in enumerate([(200, (20, 100)), (320, (260, 40))]):
        with Image.open(HELDOUT / f"{person:04d}_0.jpg") as portrait:
            picture.paste(portrait.resize((side, side), Image.Resampling.BICUBIC), place)
    picture.save(tmp_path / "couple.png")
    return tmp_path / "couple.png"


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
    cut = {"crop": "face", "face": None}
    assert record["references"] == [{"file": "face.jpg", "sha256": sha256_file(face), **cut}] * 2
    assert record["strengths"] == [0.5, 0.5]
    assert record["num_inference_steps"] == 3
    assert record["scheduler"]["class"] == "DDIMScheduler"
    assert {len(digest) for digest in record["weights"].values()} == {64}
    assert record["weights"].keys() == {"base_model", "adapter"}
    assert {"torch", "dlib-bin"} <= record["versions"].keys()


def test_another_checkpoint_brings_its_own_steps(
    tiny_profile: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """They count before the profile's, which suit the profile's model; an option counts most."""
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    common = ("--profile", tiny_profile, "--base-model", other, "--prompt", "a face", "--out")
    generate(*common, tmp_path / "without.png")
    index = json.loads((other / "model_index.json").read_text())
    own = {"sampling_defaults": {"num_inference_steps": 2, "guidance_scale": 1.5}}
    (other / "model_index.json").write_text(json.dumps(index | own))
    generate(*common, tmp_path / "own.png")
    generate(*common, tmp_path / "asked.png", "--steps", 1)
    read = [read_metadata(tmp_path / f"{name}.png") for name in ("without", "own", "asked")]
    assert [record["num_inference_steps"] for record in read] == [3, 2, 1]
    assert [record["guidance_scale"] for record in read[1:]] == [1.5, 1.5]


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


def test_several_pictures_of_a_chosen_size_are_those_of_their_seeds(
    tiny_profile: Path, face: Path, tmp_path: Path
) -> None:
    common = ("--profile", tiny_profile, "--prompt", "a face", "--reference", face)
    size = ("--height", 64, "--width", 48)
    generate(*common, *size, "--seed", 3, "--count", 2, "--out", tmp_path / "many.png")
    assert {path.name for path in tmp_path.glob("*.png")} == {"many-3.png", "many-4.png"}
    for seed in (3, 4):
        many, one = tmp_path / f"many-{seed}.png", tmp_path / "one.png"
        generate(*common, *size, "--seed", seed, "--out", one)
        assert many.read_bytes() == one.read_bytes()
        assert load_image(one).size == (48, 64)
        record = read_metadata(many)
        assert (record["seed"], record["height"], record["width"]) == (seed, 64, 48)
    generate(*common, "--width", 64, "--out", tmp_path / "wide.png")
    assert load_image(tmp_path / "wide.png").size == (64, 32), "one side leaves the other's own"


def test_masks_are_scaled_to_the_chosen_size(
    tiny_profile: Path, couple: Path, tmp_path: Path
) -> None:
    for name, place in (("left", 0), ("right", 32)):
        mask = Image.new("L", (64, 32))
        mask.paste(255, (place, 0, place + 32, 32))
        mask.save(tmp_path / f"{name}.png")
    common = ["--profile", tiny_profile, "--prompt", "two faces", "--height", 64, "--width", 128]
    for face, name in enumerate(("left", "right")):
        common += ["--reference", couple, "--face", face, "--mask", tmp_path / f"{name}.png"]
    generate(*common, "--out", tmp_path / "both.png")
    swapped = [{"0": "1", "1": "0"}.get(str(each), each) for each in common]
    generate(*swapped, "--out", tmp_path / "swapped.png")
    both, other = (
        np.asarray(Image.open(tmp_path / f"{n}.png")).astype(int) for n in ("both", "swapped")
    )
    assert both.shape == (64, 128, 3)
    assert np.abs(both - other).max() > 5


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


def prepared_as(
    monkeypatch: pytest.MonkeyPatch, profile: Path, folder: Path, *options: object
) -> tuple[list[Image.Image], dict]:
    """The pictures that the pipeline is shown under these options, and the PNG's record."""
    seen: list[Image.Image] = []
    encode = FusionPipeline.encode_references

    def spy(
        self: FusionPipeline, references: list[Image.Image], *size: int, prompt: str = ""
    ) -> ReferenceCache:
        seen.extend(references)
        return encode(self, references, *size, prompt=prompt)

    with monkeypatch.context() as patched:
        patched.setattr(FusionPipeline, "encode_references", spy)
        common = ("--profile", profile, "--prompt", "a face", "--out", folder / "seen.png")
        generate(*common, *options)
    return seen, read_metadata(folder / "seen.png")


def test_a_reference_is_cut_out_as_the_options_say(
    monkeypatch: pytest.MonkeyPatch, tiny_profile: Path, face: Path, couple: Path, tmp_path: Path
) -> None:
    def prepared(*options: object) -> list[Image.Image]:
        seen, record = prepared_as(monkeypatch, tiny_profile, tmp_path, *options)
        records.extend((entry["crop"], entry["face"]) for entry in record["references"])
        return seen

    records: list[tuple] = []
    assert prepared("--reference", face) == [prepare_photo(face)]
    assert prepared("--reference", face, "--crop", "none") == [load_image(face)]
    right = prepare_photo(couple, face=1)
    assert prepared("--reference", couple, "--face", 1) == [right]
    assert prepared("--reference", couple, "--face", "largest") == [right]
    box = couple, "--crop", "20,100,220,300"
    assert prepared("--reference", *box) == [prepare_photo(couple, box=(20, 100, 220, 300))]
    three = ("--reference", couple, "--reference", face, "--reference", couple)
    crops = ("--crop", "face", "--crop", "none", "--crop", "0,0,0.5,1")
    assert prepared(*three, *crops, "--face", 0) == [
        prepare_photo(couple, face=0),
        load_image(face),
        prepare_photo(couple, box=(0, 0, 0.5, 1)),
    ]
    assert records == [
        ("face", None),
        ("none", None),
        ("face", 1),
        ("face", "largest"),
        ([20, 100, 220, 300], None),
        ("face", 0),
        ("none", None),
        ([0, 0, 0.5, 1], None),
    ]


@pytest.mark.parametrize(
    "options, says",
    [
        (
            [],
            "2 faces were found in .*couple.png, from left to right at .*: choose one with "
            "--face 0 to --face 1 or --face largest, or give your own box with --crop LEFT,",
        ),
        (
            ["--face", "2"],
            "2 faces were found in .*couple.png, .* none is number 2, counted from 0: choose one "
            "with --face 0 to --face 1 or --face largest",
        ),
        (["--face", "0", "--face", "1"], "--face is given 2 times for 1 references"),
    ],
)
def test_a_picture_of_two_asks_for_a_choice(
    options: list[str], says: str, tiny_profile: Path, couple: Path, tmp_path: Path
) -> None:
    given = ["--profile", tiny_profile, "--prompt", "a", "--reference", couple, *options]
    done = runner.invoke(app, ["generate", *map(str, given), "--out", str(tmp_path / "a.png")])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert re.fullmatch(rf"Error: {says}.*\n", done.stderr)


def test_masks_say_where_each_person_shall_be(
    tiny_profile: Path, face: Path, couple: Path, tmp_path: Path
) -> None:
    left, right = tmp_path / "left.png", tmp_path / "right.png"
    columns = np.mgrid[:64, :64][1]
    for path, inside in ((left, columns < 32), (right, columns >= 32)):
        Image.fromarray(np.uint8(255 * inside)).save(path)
    common = ("--profile", tiny_profile, "--prompt", "a face", "--reference", face)
    common += ("--reference", couple, "--face", "largest")
    masks = ("--mask", left, "--mask", right)
    for name, options in {
        "plain": (),
        "apart": masks,
        "same": (*masks, "--identity", 0, "--identity", 1),
        "other": (*masks, "--identity", 1, "--identity", 0),
    }.items():
        generate(*common, *options, "--out", tmp_path / f"{name}.png")
    plain, apart, same, other = (
        np.asarray(Image.open(tmp_path / f"{name}.png"))
        for name in ("plain", "apart", "same", "other")
    )
    assert np.array_equal(apart, same)
    assert not np.array_equal(apart, plain) and not np.array_equal(apart, other)
    record = read_metadata(tmp_path / "other.png")
    assert record["identity_masks"] == [
        {"file": path.name, "sha256": sha256_file(path)} for path in (left, right)
    ]
    assert record["reference_identity"] == [1, 0]


def test_masks_that_overlap_are_warned_of_in_one_line(
    tiny_profile: Path, face: Path, couple: Path, tmp_path: Path
) -> None:
    Image.new("L", (64, 64), "white").save(tmp_path / "all.png")
    given = ["--profile", tiny_profile, "--prompt", "a face", "--reference", face]
    given += ["--reference", face, "--mask", tmp_path / "all.png", "--mask", tmp_path / "all.png"]
    done = runner.invoke(app, ["generate", *map(str, given), "--out", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        "Warning: The masks of identity 0 and identity 1 overlap in 1024 pixels: there neither "
        "face is seen, only the text (Eq. 7)."
    ]


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


def grey_png(color: str = "grey") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, format="PNG")
    return buffer.getvalue()


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
    "profile with a typo": (
        {"--profile": bad("p.yaml", b"extends: embedded\ntraning: {}\n")},
        "p.yaml does not fit at traning: there is no such entry",
    ),
    "profile with a wrong value": (
        {"--profile": bad("p.yaml", b"extends: embedded\ntraining: {adapter: {steps: 0}}\n")},
        "does not fit at training.adapter.steps: Input should be greater than 0 (",
    ),
    "profile of something else": (
        {"--profile": bad("p.yaml", b"foo: 1\n")},
        "base_model: Field required; adapter: Field required; and 8 more",
    ),
    "profile that extends a list": ({"--profile": bad("p.yaml", b"extends: [a]\n")}, "no profile"),
    "profile that is no YAML": ({"--profile": bad("p.yaml", b"a: [b")}, "p.yaml is not YAML"),
    "profile that is a picture": ({"--profile": bad("p.yaml", grey_png())}, "p.yaml is not YAML"),
    "output under a file": ({"--out": lambda d: bad("f", b"")(d) / "a.png"}, "cannot be written"),
    "output is a folder": ({"--out": lambda d: d}, "must end in .png"),
    "output is no png": ({"--out": lambda d: d / "a.jpg"}, "must end in .png"),
    "strength NaN": ({"--strength": "nan"}, "strength nan"),
    "strength infinite": ({"--strength": "inf"}, "strength inf"),
    "strength negative": ({"--strength": "-0.5"}, "strength -0.5"),
    "strength of nobody": ({"--reference": None, "--strength": "1"}, "needs a --reference"),
    "no face": ({"--reference": bad("grey.png", grey_png())}, "No face was found in"),
    "crop of nobody": ({"--reference": None, "--crop": "none"}, "--crop needs a --reference"),
    "crop of three": ({"--crop": "0,0,9"}, "--crop '0,0,9' must be face, none, or a box"),
    "crop with words": ({"--crop": "all of it"}, "--crop 'all of it' must be face, none"),
    "crop with a unit": ({"--crop": "0,0,9,9px"}, "must be face, none, or a box"),
    "crop NaN": ({"--crop": "0,0,nan,9"}, "must be face, none, or a box"),
    "crop inside out": (
        {"--crop": "90,0,10,90"},
        "jpg: (90.0, 0.0, 10.0, 90.0) must have its left",
    ),
    "crop outside": ({"--crop": "0,0,300,90"}, "lie in the picture of 128 x 128 pixels"),
    "crop negative": ({"--crop": "-5,0,50,50"}, "lie in the picture of 128 x 128 pixels"),
    "crop too small": ({"--crop": "0,0,20,20"}, "box is 20 x 20 pixels"),
    "crop of no image": ({"--reference": bad("a.png", b"x"), "--crop": "0,0,1,1"}, "not an image"),
    "face of nobody": ({"--reference": None, "--face": "0"}, "--face needs a --reference"),
    "face by name": ({"--face": "Anna"}, "--face 'Anna' must be largest, or a number"),
    "face negative": ({"--face": "-1"}, "--face '-1' must be largest"),
    "face not there": (
        {"--face": "1"},
        "none is number 1, counted from 0: choose one with --face 0",
    ),
    "face not looked for": ({"--face": "0", "--crop": "none"}, "--face chooses among the faces"),
    "mask of nobody": ({"--reference": None, "--mask": "m.png"}, "--mask needs a --reference"),
    "mask missing": ({"--mask": lambda d: d / "m.png"}, "no image file"),
    "mask dark": ({"--mask": bad("dark.png", grey_png("black"))}, "dark.png marks no place"),
    "identity without masks": ({"--identity": "0"}, "give a --mask for each person"),
    "identity unknown": ({"--mask": "m.png", "--identity": "1"}, "from 0 to 0, not [1]"),
    "guidance NaN": ({"--guidance-scale": "nan"}, "guidance scale nan"),
    "no steps": ({"--steps": "0"}, "from 1 to 1000"),
    "negative seed": ({"--seed": "-1"}, "seed -1"),
    "seeds that end too late": (
        {"--seed": str(2**63 - 1), "--count": "2"},
        f"seed {2**63} is not a number",
    ),
    "no pictures": ({"--count": "0"}, "--count must be 1 or more, not 0"),
    "several pictures in a folder": ({"--out": Path("."), "--count": "2"}, "must end in .png"),
    "negative height": ({"--height": "-8"}, "--height must be a number of pixels, not -8"),
    "a width between latents": ({"--width": "33"}, "width=33 cannot be made: this model's"),
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
    assert "--strength is given 2 times for 3 references" in done.stderr


def test_a_real_process_prints_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    command = [sys.executable, "-m", "fusionlib", "generate", "--prompt", "a face"]
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
        (["evaluate", "nowhere"], "no folder nowhere"),
        (["study", "status", "nowhere"], "holds no studies"),
        (["study", "run", "nowhere.yaml"], "no study file nowhere.yaml"),
        (["study", "export", "nowhere", "a", "b"], "no study 'a'"),
    ],
)
def test_other_commands_complain_likewise(arguments: list[str], says: str) -> None:
    done = runner.invoke(app, arguments)
    assert done.exit_code == 1
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_a_book_needs_executed_notebooks(tmp_path: Path) -> None:
    done = runner.invoke(app, ["book", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "was not executed yet" in done.stderr and done.stderr.count("\n") == 1
