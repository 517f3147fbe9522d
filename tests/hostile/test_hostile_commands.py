"""Hostile command lines: every command with arguments that nobody would think of."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fusionlib.inputs.images import read_metadata
from fusionlib.profiles import ROOT
from tests.helpers.hostile import Case, Place, nothing_lost, refused, table, used
from tests.helpers.training_data import write_set
from tests.helpers.trees import linked, pipe, written

Given = Callable[[], list[Any]]

PROFILE = "THE PROFILE"
"""Stands for the file of the tiny profile, which is known when tests run."""

BAD = os.fsdecode(b"caf\xe9.png")


def png(color: str = "red", side: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def run(place: Place, tiny_profile: Path) -> Callable[[Case], str]:
    """Runs a case, with the tiny profile in its place."""

    def run(case: Case) -> str:
        given = case.lay_out()
        arguments = [str(tiny_profile) if part == PROFILE else part for part in given]
        return place.run(Case(case.name, arguments, case.says, case.writes))

    return run


def line(*arguments: Any, lay_out: Callable[[], Any] | None = None) -> Given:
    """A command line, after files were laid out."""

    def make() -> list[Any]:
        if lay_out is not None:
            lay_out()
        return list(arguments)

    return make


def paint(lay_out: Callable[[], Any] | None = None, **options: Any) -> Given:
    """``generate`` on a red square, with options changed; None leaves one out, a list repeats it."""
    usual = {"profile": PROFILE, "reference": "face.png", "crop": "none", "prompt": "a face", "out": "out.png"}  # fmt: skip

    def make() -> list[Any]:
        written("face.png", png())
        written("mask.png", png("white"))
        if lay_out is not None:
            lay_out()
        arguments = ["generate"]
        for name, value in (usual | options).items():
            for each in value if isinstance(value, list) else [value]:
                arguments += [] if each is None else [f"--{name.replace('_', '-')}", each]
        return arguments

    return make


TOP = table(
    used("help", ["--help"]),
    used("version", ["--version"]),
    *[used(f"help of {' '.join(command)}", [*command, "--help"]) for command in (
        ["generate"], ["evaluate"], ["reproduce"], ["book"], ["notebooks"], ["train"], ["people"], ["people", "render"],
        ["study"], ["study", "run"], ["study", "status"], ["study", "export"], ["study", "costs"],
        ["data"], ["data", "prepare"], ["data", "people"], ["data", "statistics"], ["data", "embed"],
    )],
    refused("no such command", ["paint"], "No such command", "paint"),
    refused("no such option", ["generate", "--promt", "a"], "No such option", "--prompt"),
    refused("no command of a group", ["study", "stop"], "No such command", "stop"),
    refused("no value", ["generate", "--prompt"], "--prompt", "requires an argument"),
    refused("nothing that is needed", ["generate"], "Missing option", "--prompt"),
    refused("one argument too many", ["generate", "me.jpg", "--prompt", "a", "--out", "a.png"], "unexpected", "me.jpg"),
    refused("an empty command", [""], "No such command"),
)  # fmt: skip


@TOP
def test_the_command_line_itself(run: Callable[[Case], str], case: Case) -> None:
    run(case)


PAINT = table(
    # Prompts.
    used("nothing odd", paint(), "out.png"),
    refused("no prompt", paint(prompt=""), "prompt is empty", "--prompt"),
    refused("a prompt of newlines", paint(prompt="\n \t\n"), "prompt is empty"),
    used("a zero byte in the prompt", paint(prompt="a\0b"), "out.png"),
    refused("a prompt that is not UTF-8", paint(prompt=os.fsdecode(b"caf\xe9")), "prompt", "UTF-8"),
    *[
        used(f"prompt {number}", paint(prompt=prompt), "out.png")
        for number, prompt in enumerate((
            "😀 李雷 \u202eright", "a\nb\r\nc", "--out", "%s {} {0} $HOME ~ `ls` \\n", "[bold]a[/bold] <b>&amp;</b>",
            "a " * 3000, "\x1b[31mred\x07", "null", "'\"\"'", "\ufeffa",
        ))
    ],
    used("a negative prompt that is empty", paint(negative_prompt=""), "out.png"),
    used("a negative prompt that is long", paint(negative_prompt="bad " * 3000), "out.png"),
    # Numbers.
    *[
        refused(f"--{name} {value}", paint(**{name: value}), {"dtype": "type", "guidance_scale": "guidance"}.get(name, name))
        for name, values in {
            "seed": ("-1", "1.5", "x", "", "1e5", str(2**63), "9" * 40, "nan"),
            "count": ("0", "-1", "1.5", "x", "1000000000", "9" * 40),
            "steps": ("0", "-1", "1001", "9" * 20, "x", "1.5", "nan"),
            "height": ("0", "-32", "x", "1.5", "33", "9" * 20),
            "width": ("0", "-32", "x", "nan", "33", "1000000000"),
            "guidance_scale": ("nan", "inf", "-inf", "x", "-1"),
            "strength": ("nan", "inf", "-inf", "-1", "1e400", "x", ""),
            "dtype": ("", "int8", "Tensor", "float64", "__class__", "bfloat"),
            "device": ("abacus", "cuda:99", "cpu:x", "meta"),
        }.items()
        for value in values
    ],
    used("the largest seed", paint(seed=2**63 - 1), "out.png"),
    used("strength zero", paint(strength="-0.0"), "out.png"),
    used("a very strong face", paint(strength="1e30"), "out.png"),
    used("no guidance", paint(guidance_scale="0"), "out.png"),
    used("one step", paint(steps="1"), "out.png"),
    used("several at once", paint(count=2), "out-0.png", "out-1.png"),
    # References.
    *[
        refused(f"reference {name}", paint(lay_out, reference=given), *says)
        for name, lay_out, given, says in (
            ("that is missing", None, "none.png", ("none.png", "check the path")),
            ("of no name", None, "", ("folder", "image file")),
            ("that is a folder", None, "home", ("home is a folder",)),
            ("that is HTML", lambda: written("a.jpg", "<html>"), "a.jpg", ("a.jpg is not an image",)),
            ("that is empty", lambda: written("a.jpg", ""), "a.jpg", ("a.jpg is not an image",)),
            ("that is a pipe", lambda: pipe("a.jpg"), "a.jpg", ("a.jpg",)),
            ("that is a device", None, "/dev/zero", ("/dev/zero",)),
            ("that is a dead link", lambda: linked("a.jpg", "gone"), "a.jpg", ("a.jpg", "check the path")),
            ("in a missing folder", None, "no/such/a.png", ("no/such/a.png", "check the path")),
            ("of a name too long", None, "n" * 300, ("nnn",)),
            ("that is a pattern", None, "*.png", ("*.png", "check the path")),
            ("that is an address", None, "https://example.com/a.png", ("example.com/a.png",)),
            ("of Windows", None, "C:\\me.png", ("C:\\me.png", "check the path")),
            ("of another among good ones", lambda: written("a.jpg", "x"), ["face.png", "a.jpg"], ("a.jpg is not an image",)),
        )
    ],
    *[
        used(f"reference {name!r}", paint(lambda name=name: written(name, png("blue")), reference=f"./{name}"), "out.png")
        for name in ("a b.png", "-x.png", "--out", "a\nb.png", "[a].png", "😀.png", "é.png", "%s.png", "a\\b.png", "'a'.png")
    ],
    refused("a reference that is not UTF-8", paint(lambda: written(BAD, png()), reference=BAD), "not UTF-8", "rename"),
    used("a reference at home", paint(lambda: written("home/me.png", png("blue")), reference="~/me.png"), "out.png"),
    used("one reference twice", paint(reference=["face.png", "face.png"]), "out.png"),
    # Crops, faces, masks.
    *[
        refused(f"--crop {crop!r}", paint(crop=crop), "crop", *says)
        for crop, says in (
            ("", ("face, none, or a box",)), ("0,0,9", ("LEFT,TOP,RIGHT,BOTTOM",)), ("0,0,9,9,9", ("LEFT",)), ("0;0;9;9", ("LEFT",)), ("a,b,c,d", ("LEFT",)),
            ("0,0,nan,9", ("LEFT",)), ("0,0,1e400,9", ("LEFT",)), ("0,0,49,48", ("48 x 48",)), ("-1,0,40,40", ("48 x 48",)), ("40,0,0,40", ("left before its right",)),
        )
    ],
    refused("a crop that is too small", paint(crop="0,0,9,9"), "face.png", "at least 32"),
    *[refused(f"--face {face!r}", paint(face=face, crop="face"), "--face") for face in ("", "-1", "1.5", "Ada", "99999", "0x1", "²")],
    refused("a face with no search", paint(face="0"), "--face", "--crop"),
    refused("no face", paint(crop="face"), "No face was found", "face.png", "--crop none"),
    *[
        refused(f"mask {name}", paint(lay_out, mask=given), *says)
        for name, lay_out, given, says in (
            ("that is missing", None, "none.png", ("none.png", "check the path")),
            ("that is dark", lambda: written("dark.png", png("black")), "dark.png", ("dark.png marks no place", "white")),
            ("that is text", lambda: written("a.png", "x"), "a.png", ("a.png is not an image",)),
            ("that is a pixel", lambda: written("a.png", png(side=1)), "a.png", ("a.png is 1x1",)),
            ("that is a folder", None, "home", ("home is a folder",)),
        )
    ],
    refused("a mask of nobody", paint(reference=None, crop=None, mask="mask.png"), "--mask needs a --reference"),
    *[refused(f"identity {value}", paint(mask="mask.png", identity=value), "identity") for value in ("-1", "1", "x", "9" * 30)],
    refused("identities without masks", paint(identity="0"), "--mask"),
    refused("two strengths for one", paint(strength=["1", "1"]), "--strength is given 2 times"),
    used("a mask of the whole", paint(mask="mask.png"), "out.png"),
    # Outputs.
    *[
        refused(f"out {name}", paint(lay_out, out=given), *says)
        for name, lay_out, given, says in (
            ("of no name", None, "", ("must end in .png",)),
            ("that is here", None, ".", ("must end in .png",)),
            ("that is above", None, "..", ("must end in .png",)),
            ("that is a folder", lambda: written("a.png/b"), "a.png", ("a.png is a folder", "name of a file")),
            ("behind a slash", lambda: written("a.png/b"), "a.png/", ("a.png is a folder",)),
            ("under a file", lambda: written("f"), "f/a.png", ("f/a.png cannot be written", "choose another")),
            ("that is no PNG", None, "a.jpg", ("a.jpg must end in .png",)),
            ("without a name", None, ".png", ("must end in .png",)),
            ("of a name too long", None, "n" * 300 + ".png", ("nnn", "longer than")),
            ("of a folder too long", None, "n" * 300 + "/a.png", ("nnn", "longer than")),
            ("in no place for files", None, "/proc/a.png", ("/proc/a.png cannot be written", "choose another")),
            ("that is a pipe", lambda: pipe("a.png"), "a.png", ("a.png",)),
            ("that is a link to a pipe", lambda: linked("a.png", str(pipe("p"))), "a.png", ("a.png", "no ordinary file")),
            ("that is the reference", None, "face.png", ("face.png", "was not made by")),
            ("that is the reference by another path", None, "home/../face.png", ("face.png", "was not made by")),
            ("that is a link to the reference", lambda: linked("a.png", "face.png"), "a.png", ("a.png", "was not made by")),
            ("in a circle of links", lambda: linked("a.png", "a.png"), "a.png", ("a.png",)),
        )
    ],
    refused("out that is the mask", paint(mask="mask.png", out="mask.png"), "mask.png", "was not made by"),
    refused("out that is the reference, by its seed", paint(lambda: written("face-1.png", png()), reference="face-1.png", out="face.png", count="2"), "face-1.png", "was not made by"),
    used("out in capitals", paint(out="OUT.PNG"), "OUT.PNG"),
    used("out in new folders", paint(out="a/b c/😀/out.png"), "a/*"),
    used("out at home", paint(out="~/out.png"), "home/out.png"),
    used("out of a long name", paint(out="n" * 251 + ".png"), "n*.png"),
    *[used(f"out {name!r}", paint(out=f"./{name}"), name.replace("[", "[[]")) for name in ("a b.png", "-x.png", "a\nb.png", "[a].png", "é.png", "e\u0301.png", "%s.png", "a\\b.png", "a.b.png")],
    refused("out that is not UTF-8", paint(out=BAD), "UTF-8"),
    refused("out that somebody else made", paint(lambda: written("out.png", "old")), "out.png", "was not made by"),
    used("out that was empty", paint(lambda: written("out.png", "")), "out.png"),
    used("out in a linked folder", paint(lambda: (Path("real").mkdir(), linked("link", "real")), out="link/out.png"), "real/out.png"),
    used("out by a link", paint(lambda: (written("real.png", ""), linked("out.png", "real.png"))), "real.png"),
    used("out by a dead link", paint(lambda: linked("out.png", "new.png")), "new.png"),
    # Models.
    *[
        refused(f"{option} {name}", paint(lay_out, **{option: given}), *says)
        for option, what in (("base_model", "base model"), ("adapter", "adapter"))
        for name, lay_out, given, says in (
            ("that is missing", None, "none", (f"no {what} folder none", "hub id")),
            ("of no name", None, "", ("model" if what == "base model" else "empty",)),
            ("of spaces", None, "  ", ("empty",)),
            ("that is a file", lambda: written("m.bin"), "m.bin", (f"{what} m.bin is a file", "folder")),
            ("that is empty", None, "home", (f"{what} folder home holds no", "save_pretrained")),
            ("that is a dead link", lambda: linked("m", "gone"), "m", (what,)),
            ("of a name too long", None, "n" * 300, ("nnn",)),
            ("of an odd id", None, "a/b/c", (f"no {what} folder a/b/c",)),
        )
    ],
    *[
        refused(f"profile {name}", paint(lay_out, profile=given), *says)
        for name, lay_out, given, says in (
            ("that is missing", None, "none", ("'none'", "embedded", "YAML")),
            ("of no name", None, "", ("path is empty",)),
            ("that is a folder", None, "home", ("home",)),
            ("that is empty", lambda: written("p.yaml"), "p.yaml", ("p.yaml",)),
            ("that is a picture", None, "face.png", ("face.png",)),
            ("of a name too long", None, "n" * 300, ("nnn",)),
            ("with a path", None, "../embedded", ("../embedded",)),
        )
    ],
)  # fmt: skip


@PAINT
def test_generate(run: Callable[[Case], str], case: Case) -> None:
    run(case)
    for pattern in case.writes if not case.says else ():
        for path in Path().glob(pattern):
            assert path.is_dir() or read_metadata(path)["prompt"]


STUDY = {
    "name": "first",
    "methods": ["text-only"],
    "people": {"names": ["ada"]},
    "prompts": ["a face"],
}
STORED = ("store/*",)


def declared(**changes: Any) -> Callable[[], Any]:
    """The file of a small study, whose profile is filled in when tests run."""
    return lambda: written(
        "study.yaml", yaml.safe_dump(STUDY | {"profile": "tiny.yaml"} | changes, allow_unicode=True)
    )


def study(*arguments: Any, also: Callable[[], Any] | None = None, **changes: Any) -> Given:
    def make() -> list[Any]:
        declared(**changes)()
        if also is not None:
            also()
        return ["study", "run", "study.yaml", "--store", "store", *arguments]

    return make


STUDIES = table(
    used("a study", study(), *STORED),
    *[used(f"a person called {name!r}", study(people={"names": [name]}), *STORED) for name in ("NA", "a/b", "..", "line\nbreak", "😀", "e\u0301", "=1+1", "[bold]")],
    *[used(f"a study called {name!r}", study(name=name), *STORED) for name in ("a b", "é", "1.5", "a+b")],
    *[
        refused(f"a study called {name!r}", study(name=name), "name", "letters")
        for name in ("", ".", "..", "../up", "a/b", "/root", "a\nb", "a\0b", ".hidden", "-x", "~", "*")
    ],
    *[
        refused(f"{name}", study(**changes), *says, writes=STORED if "sampling" in changes or name == "no such option" else ())
        for name, changes, says in (
            ("two of one person", {"people": {"names": ["ada", "ada"]}}, ("person", "'ada'", "twice")),
            ("two of one prompt", {"prompts": ["a", "a"]}, ("prompt", "'a'", "twice")),
            ("two of one seed", {"seeds": [1, 1]}, ("seed", "twice")),
            ("two of one method", {"methods": ["text-only", "text-only"]}, ("method", "twice")),
            ("an empty prompt", {"prompts": [" "]}, ("prompt", "empty")),
            ("an empty person", {"people": {"names": [""]}}, ("people.names", "empty")),
            ("no such method", {"methods": ["magic"]}, ("'magic'",)),
            ("no such option", {"people": {"count": 1}, "methods": [{"method": "fused", "strenths": [1]}]}, ("strenths",)),
            ("strengths of NaN", {"people": {"count": 1}, "methods": [{"method": "fused", "strengths": [float("nan")]}]}, ("strength",)),
            ("strengths below zero", {"people": {"count": 1}, "methods": [{"method": "fused", "strengths": [-1]}]}, ("strength",)),
            ("strengths in words", {"people": {"count": 1}, "methods": [{"method": "fused", "strengths": "strong"}]}, ("strength",)),
            ("no such profile", {"profile": "none"}, ("profile", "none")),
            ("no such type", {"dtype": "int8"}, ("int8", "float32")),
            ("no such sampling", {"sampling": {"steps": 5}}, ("steps",)),
            ("no such list of prompts", {"prompts": "none.csv"}, ("none.csv", "check the path")),
            ("no such people", {"people": {"folder": "none"}}, ("none", "index.csv")),
            ("more people than there are", {"people": {"count": 10**6}}, ("fewer", "1000000")),
            ("no such style", {"people": {"only": {"style": "cubism"}, "count": 1}}, ("fewer", "1")),
            ("no such column", {"people": {"only": {"mood": "good"}, "count": 1}}, ("mood",)),
            ("no references", {"people": {"names": ["ada"]}, "methods": ["fused"]}, ("reference", "'ada'")),
        )
    ],
    *[refused(f"--workers {n}", study("--workers", n), "workers") for n in ("0", "-1", "x", "1.5")],
    *[refused(f"--share {share!r}", study("--share", share), "share", "1/3") for share in ("", "1", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/2/3", "1/²")],
    refused("workers and a share", study("--workers", "2", "--share", "1/2"), "--workers", "--share"),
    refused("a file for the store", study(also=lambda: written("store", "mine")), "store"),
    refused("a store under a file", study("--store", "f/store", also=lambda: written("f", "mine")), "f/store"),
    refused("a store of a name too long", study("--store", "n" * 300), "nnn"),
    refused("a spoilt index", study(also=lambda: written("store/index/a.parquet", "x")), "a.parquet", "delete", writes=STORED),
    refused("a device that is not there", study("--device", "abacus"), "abacus"),
    used("other files in the store", study(also=lambda: written("store/notes.txt", "mine")), *(f"store/{n}/*" for n in ("images", "index", "left_out", "studies"))),
    refused("no store", ["study", "status", "none"], "none", "store"),
    refused("a file for a store", line("study", "status", "f", lay_out=lambda: written("f")), "f", "store"),
    refused("status of nobody", line("study", "status", "store", "x", lay_out=lambda: written("store/studies/a/cells.parquet", "x")), "'x'", "a"),
    refused("status of a spoilt study", line("study", "status", "store", lay_out=lambda: written("store/studies/a/cells.parquet", "x")), "'a'"),
    refused("export of nobody", ["study", "export", "none", "a", "out"], "'a'", "none"),
    refused("export onto a folder", line("study", "export", "none", "a", "home"), "home exists", "new folder"),
    refused("export onto a file", line("study", "export", "none", "a", "f", lay_out=lambda: written("f", "mine")), "f exists", "new folder"),
    refused("export onto a dead link", line("study", "export", "none", "a", "l", lay_out=lambda: linked("l", "gone")), "l"),
    refused("costs of nothing", ["study", "costs", "none.yaml"], "none.yaml"),
    refused("costs onto the study", line("study", "costs", "study.yaml", "--record", "study.yaml", lay_out=declared(profile="embedded")), "study.yaml"),
    refused("costs into a file", line("study", "costs", "study.yaml", "--record", "f/a.csv", lay_out=lambda: (declared(profile="embedded")(), written("f"))), "f/a.csv"),
)  # fmt: skip


@STUDIES
def test_study(run: Callable[[Case], str], tiny_profile: Path, case: Case) -> None:
    written("tiny.yaml", tiny_profile.read_bytes())
    run(case)


def shards(*arguments: Any, also: Callable[[], Any] | None = None) -> Given:
    """A command about a small training set in the folder ``set``."""

    def make() -> list[Any]:
        write_set(Path("set"), 4, each=2)
        if also is not None:
            also()
        return list(arguments)

    return make


def photographs(*arguments: Any, also: Callable[[], Any] | None = None) -> Given:
    def make() -> list[Any]:
        written("mine/ada/1.png", png())
        if also is not None:
            also()
        return list(arguments)

    return make


PREPARE = ("data", "prepare", "set", "out", "--workers", "1")

OTHERS = table(
    # data prepare
    used("prepare", shards(*PREPARE), "out/*"),
    used("prepare twice", shards(*PREPARE, also=lambda: None), "out/*"),
    *[
        refused(f"prepare with {option} {value}", shards(*PREPARE, option, value), option)
        for option, values in {
            "--pairs": ("0", "-1", "x", "1.5"), "--max-faces": ("0", "-1", "x"), "--min-face": ("-1", "x"), "--min-side": ("-1", "nan"),
            "--min-score": ("nan", "x", "inf"), "--workers": ("0", "-1", "x"),
        }.items()
        for value in values
    ],
    refused("prepare nothing", ["data", "prepare", "none", "out"], "none"),
    refused("prepare an empty folder", ["data", "prepare", "home", "out"], "home"),
    refused("prepare onto itself", shards("data", "prepare", "set", "set"), "set"),
    refused("prepare onto itself by another path", shards("data", "prepare", "set", "home/../set"), "set"),
    refused("prepare onto itself by a link", shards("data", "prepare", "set", "l", also=lambda: linked("l", "set")), "set"),
    refused("prepare a pattern onto its folder", shards("data", "prepare", "set/{00000..00001}.tar", "set"), "set"),
    refused("prepare into a folder in it", shards("data", "prepare", "set", "set/out"), "set"),
    refused("prepare into a file", shards("data", "prepare", "set", "f", also=lambda: written("f", "mine")), "f"),
    refused("prepare under a file", shards("data", "prepare", "set", "f/out", also=lambda: written("f", "mine")), "f"),
    refused("prepare into others' archives", shards(*PREPARE, also=lambda: written("out/thesis.tar", "mine")), "out"),
    refused("prepare into others' files", shards(*PREPARE, also=lambda: written("out/thesis.docx", "mine")), "out"),
    refused("prepare into a broken record", shards(*PREPARE, also=lambda: written("out/selection.json", b"\xff")), "out"),
    refused("prepare a name too long", shards("data", "prepare", "set", "n" * 300), "nnn"),
    # data people
    *[refused(f"people of {size} pixels", photographs("data", "people", "mine", "out", "--size", size), "size") for size in ("0", "-1", "63", "x", "1.5", "1000000")],
    refused("people of nothing", ["data", "people", "none", "out"], "none"),
    refused("people of an empty folder", ["data", "people", "home", "out"], "home", "folders of pictures"),
    refused("people of a file", line("data", "people", "f", "out", lay_out=lambda: written("f")), "f"),
    refused("people without a face", photographs("data", "people", "mine", "out"), "1.png"),
    refused("people onto themselves", photographs("data", "people", "mine", "mine"), "mine"),
    refused("people into themselves", photographs("data", "people", "mine", "mine/out"), "mine"),
    refused("people onto a folder", photographs("data", "people", "mine", "home"), "home exists"),
    refused("people onto a file", photographs("data", "people", "mine", "f", also=lambda: written("f", "mine")), "f exists"),
    refused("people onto a dead link", photographs("data", "people", "mine", "l", also=lambda: linked("l", "gone")), "l"),
    refused("people under a file", photographs("data", "people", "mine", "f/out", also=lambda: written("f", "mine")), "f/out"),
    # data statistics, embed
    used("statistics", shards("data", "statistics", "set")),
    refused("statistics of nothing", ["data", "statistics", "none"], "none"),
    refused("statistics of no name", ["data", "statistics", ""], "there"),
    refused("statistics of a file", line("data", "statistics", "f", lay_out=lambda: written("f")), "f"),
    refused("embed nothing", ["data", "embed", "none", "out.safetensors", "--profile", PROFILE], "none"),
    refused("embed discs", shards("data", "embed", "set", "out.safetensors", "--profile", PROFILE), "set"),
    refused("embed onto a folder", shards("data", "embed", "set", "home", "--profile", PROFILE), "home"),
    refused("embed onto a shard", shards("data", "embed", "set", "set/00000.tar", "--profile", PROFILE), "00000.tar"),
    refused("embed under a file", shards("data", "embed", "set", "f/a.safetensors", "--profile", PROFILE, also=lambda: written("f")), "f/a.safetensors"),
    # people render
    *[
        refused(f"render {option} {value}", ["people", "render", "out", option, value], option.strip("-").replace("-", " ").split()[-1])
        for option, values in {
            "--people": ("0", "-1", "x"), "--views": ("0", "101", "x"), "--workers": ("0", "-1"), "--groups": ("-1", "x"),
            "--size": ("0", "-1", "x", "1000000"), "--seed": ("-1", "x", "1.5"), "--first-person": ("-1", "x"),
        }.items()
        for value in values
    ],
    refused("render onto a file", line("people", "render", "f", "--people", "1", lay_out=lambda: written("f", "mine")), "f"),
    refused("render under a file", line("people", "render", "f/out", "--people", "1", lay_out=lambda: written("f", "mine")), "f/out"),
    refused("render a name too long", ["people", "render", "n" * 300, "--people", "1"], "nnn"),
    *[
        refused(f"render onto {name}", line("people", "render", "out", "--people", "1", *more, lay_out=lambda file=file: written(f"out/{file}", "mine")), "out")
        for name, file, more in (
            ("others' files", "thesis.docx", ()), ("others' archives", "00000.tar", ()), ("others' pictures", "0000_0.jpg", ("--files",)),
            ("others' table", "index.csv", ("--files",)), ("others' record", "manifest.json", ()), ("others' record, as files", "manifest.json", ("--files",)),
        )
    ],
    # train
    *[
        refused(f"train {name}", line("train", *arguments, "--profile", PROFILE), *says)
        for name, arguments, says in (
            ("nothing", ("nobody",), ("nobody", "adapter")),
            ("for no time", ("adapter", "--minutes", "0"), ("minutes",)), ("backwards", ("adapter", "--minutes", "-1"), ("minutes",)),
            ("for NaN minutes", ("adapter", "--minutes", "nan"), ("minutes",)), ("no steps", ("adapter", "--steps", "0"), ("steps",)),
            ("half a step", ("adapter", "--steps", "1.5"), ("steps",)), ("an adapter by name", ("adapter", "ip-adapter"), ("method",)),
            ("no such method", ("method", "magic"), ("magic",)), ("an encoder alone", ("vae", "--encoder"), ("--start-from",)),
            ("from nothing", ("adapter", "--start-from", "none", "--out", "out"), ("none",)),
        )
    ],
    # reproduce, book, notebooks
    *[
        refused(f"reproduce {' '.join(arguments)}", ["reproduce", *arguments], *says)
        for arguments, says in (
            (("--only", "nothing"), ("nothing",)), (("--jobs", "0", "--only", "fig4_groups"), ("jobs",)), (("--jobs", "-1", "--only", "fig4_groups"), ("jobs",)),
            (("-p", "a"), ("KEY=VALUE",)), (("-p", "=1"), ("KEY=VALUE",)), (("-p", "a-b=1"), ("KEY=VALUE",)), (("-p", "a=[1"), ("YAML",)),
            (("--profile", "none"), ("profile", "none")),
        )
    ],
    refused("reproduce into a file", line("reproduce", "--only", "fig4_groups", "--out", "f", lay_out=lambda: written("f", "mine")), "f"),
    refused("a book of nothing", ["book", "--out", "home"], "not executed", writes=("home/book-source*", "home/stamps*")),
    refused("a book in a file", line("book", "--out", "f", lay_out=lambda: written("f", "mine")), "f"),
    refused("a book of no profile", ["book", "--profile", "none", "--out", "out"], "profile", "none"),
    refused("notebooks of no name", ["notebooks", "nothing", "--out", "out"], "nothing"),
)  # fmt: skip


@OTHERS
def test_other_commands(run: Callable[[Case], str], case: Case) -> None:
    run(case)


def judged(*arguments: Any, also: Callable[[], Any] | None = None) -> Given:
    """``evaluate`` of a folder of two people, one of them by two pictures."""

    def make() -> list[Any]:
        for person in (0, 1):
            for place, view in (("references/{}.jpg", 0), ("ours/{}.jpg", 1)):
                written(
                    "judged/" + place.format(f"p{person}"),
                    (HELDOUT / f"{person:04d}_{view}.jpg").read_bytes(),
                )
        written(
            "judged/index.csv", "image,person,method\nours/p0.jpg,p0,ours\nours/p1.jpg,p1,ours\n"
        )
        if also is not None:
            also()
        return [
            "evaluate",
            "judged",
            "--profile",
            PROFILE,
            "--clip",
            "none",
            "--classifier",
            "none",
            *arguments,
        ]

    return make


HELDOUT = ROOT / "data" / "heldout"
KEPT = ("build/observations/*",)

JUDGED = table(
    refused("nothing", ["evaluate", "none"], "none", "references"),
    refused("no name", ["evaluate", ""], "references"),
    refused("a file", line("evaluate", "f", lay_out=lambda: written("f")), "f"),
    refused("no such profile", judged("--profile", "none"), "profile", "none"),
    refused("no such baseline", judged("--baseline", "theirs"), "'theirs'", "ours"),
    refused("no such recogniser", judged("--recogniser", "Nobody"), "Nobody"),
    refused("no such detector", judged("--detector", "nobody"), "nobody"),
    used("a CLIP that no prompt needs", judged("--clip", "none/such"), *KEPT),
    refused("no such classifier", judged("--classifier", "nowhere"), "nowhere", writes=KEPT),
    refused("a classifier of nothing", judged("--classifier", "=x"), "'=x'", "FOLDER"),
    refused("against nobody", judged("--against", "nobody"), "nobody", "reference"),
    refused("out onto what is read", judged("--out", "judged/index.csv"), "judged/index.csv"),
    refused("out onto a picture", judged("--out", "judged/ours/p0.jpg"), "p0.jpg"),
    refused("out onto a folder", judged("--out", "home"), "home is a folder"),
    refused("out under a file", judged("--out", "f/a.csv", also=lambda: written("f")), "f/a.csv cannot be written"),
    refused("a record of no study", judged("--record", "a.parquet"), "judged", writes=KEPT),
    refused("a record onto a picture", judged("--record", "judged/ours/p0.jpg"), "p0.jpg"),
    refused("a file for the cache", judged("--cache", "f", also=lambda: written("f", "mine")), "f"),
    used("as it should be", judged("--out", "new/a.csv"), "new/a.csv", *KEPT),
    used("other files in the cache", judged(also=lambda: written("build/observations/notes.txt", "mine")), "build/observations/*/*"),
    used("a picture that is cut", judged(also=lambda: written("judged/ours/p1.jpg", (HELDOUT / "0001_1.jpg").read_bytes()[:900])), *KEPT),
    refused("all pictures cut", judged(also=lambda: [written(f"judged/ours/p{n}.jpg", "x") for n in (0, 1)]), "None of the 2", writes=KEPT),
)  # fmt: skip


@JUDGED
def test_evaluate(run: Callable[[Case], str], case: Case) -> None:
    said = run(case)
    if case.name == "a picture that is cut":
        assert "Skipped: judged/ours/p1.jpg" in said
    if case.name == "all pictures cut":
        assert "p0.jpg" in said


def test_a_study_is_exported_and_nothing_in_the_store_changes(
    run: Callable[[Case], str], place: Place, tiny_profile: Path
) -> None:
    """Names of people that no file system takes lie in folders of other names, and in the table as they are."""
    written("tiny.yaml", tiny_profile.read_bytes())
    run(used("run", study(people={"names": ["a/b", "..", "NA"]}), *STORED))
    run(used("export", ["study", "export", "store", "first", "new/out"], "new/*"))
    table = Path("new/out/index.csv").read_text(encoding="utf-8")
    with nothing_lost(place.root):
        assert len(table.splitlines()) == 4
    assert len(list(Path("new/out/text-only").iterdir())) == 3


def test_pictures_of_equal_seeds_are_equal_whatever_the_name(
    run: Callable[[Case], str], place: Place
) -> None:
    for name in ("plain.png", "a b/😀 [x].png"):
        run(used(name, paint(out=name), "*.png"))
    one, other = (np.asarray(Image.open(name)) for name in ("plain.png", "a b/😀 [x].png"))
    assert np.array_equal(one, other)
