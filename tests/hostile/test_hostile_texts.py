"""Hostile text files: profiles, studies, tables of people, prompts and pictures, claims."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from companion.claims.claims import read_claims
from companion.person import load_people
from companion.studies.declaration import load_declaration
from companion.studies.picture_folder import read_folder
from companion.studies.prompts import read_pairs
from fusionlib.profiles import load_profile
from fusionlib.support.texts import same_name
from tests.helpers.hostile import Case, Place, refused, table, used
from tests.helpers.trees import linked, pipe, written

Content = bytes | str
Given = Callable[[], Any]


def text(content: Content, name: str = "a.yaml") -> Given:
    return lambda: written(name, content)


def deep(opening: str, levels: int = 600) -> str:
    return "name: " + opening * levels


BOMB = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)
"""A billion laughs: eleven levels of nine references each."""

NO_YAML = [
    ("nothing in it", ""),
    ("only a comment", "# nothing\n"),
    ("only null", "null\n"),
    ("a number", "5\n"),
    ("a word", "embedded\n"),
    ("a list", "- a\n- b\n"),
    ("an open bracket", "a: [b\n"),
    ("a tab for an indent", "name: x\ntraining:\n\tsteps: 1\n"),
    ("two colons", "a: b: c\n"),
    ("zeros", bytes(100)),
    ("a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    ("Latin-1", "name: café\n".encode("latin-1")),
    ("an alias of nothing", "name: *who\n"),
    ("an alias of itself", "&a [*a]\n"),
    ("Python in YAML", "!!python/object/apply:os.system ['touch owned']\n"),
    ("a tag of nobody", "name: !who x\n"),
    ("two documents", "name: a\n---\nname: b\n"),
    ("a billion laughs", BOMB),
    ("brackets without end", deep("[")),
    ("braces without end", deep("{a: ")),
    ("a control character", "name: a\x07b\n"),
    ("HTML", "<!DOCTYPE html>\n<html><body>404</body></html>\n"),
    ("a merge conflict", "<<<<<<< HEAD\nname: a\n=======\nname: b\n>>>>>>> main\n"),
]
"""Files that are no settings, whatever is read from them."""

NO_FILE = [
    ("a missing file", lambda: "none.yaml", "none.yaml"),
    ("a folder", lambda: written("a.yaml/b").parent, "a.yaml"),
    ("a dead link", lambda: linked("a.yaml", "gone"), "a.yaml"),
    ("a link to itself", lambda: linked("a.yaml", "a.yaml"), "a.yaml"),
    ("a file for a folder", lambda: (written("a.yaml"), "a.yaml/b.yaml")[1], "b.yaml"),
    ("a name too long", lambda: "n" * 300 + ".yaml", "nnn"),
    ("a zero byte in the name", lambda: "a\0b.yaml", "b.yaml"),
    ("no name", lambda: "", "path is empty"),
]


def profile(**changes: Any) -> Given:
    return text(yaml.safe_dump({"extends": "embedded", **changes}, allow_unicode=True))


def nested(place: str, value: Any) -> dict[str, Any]:
    """Settings in which only the value at a place such as ``training.adapter.steps`` is given."""
    for key in reversed(place.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def extended(content: Content) -> Given:
    return text(content if isinstance(content, bytes) else "extends: embedded\n" + content)


inf, nan = float("inf"), float("nan")

PROFILES = table(
    *[refused(name, text(content), "profile", "a.yaml") for name, content in NO_YAML],
    *[refused(name, given, named) for name, given, named in NO_FILE],
    refused("a pipe", lambda: pipe("a.yaml"), "profile", "a.yaml"),
    # Settings of the wrong kind, each named by its place in the file.
    *[
        refused(f"{place} {value!r}", profile(**nested(place, value)), "a.yaml", place)
        for place, values in {
            "num_inference_steps": (0, -1, True, "many", 2.5, nan, None, [4], 10**30),
            "guidance_scale": (nan, inf, -inf, "strong", True, None),
            "resolution": (0, -64, 64.5, "large", True, 10**30),
            "seed": (1.5, "x", True, None),
            "recognisers": ([], "Dlib", [1], [None], {"a": 1}),
            "traits": ("gender", [1], [[]]),
            "name": (5, None, True, ["a"], "", "../up", "a/b", "."),
            "base_model": (None, 5, []),
            "notebooks": (5, [], {"a": 5}),
            "training.adapter.steps": (0, -1, True, 1.5, nan),
            "training.adapter.learning_rate": (0, -1, nan, "1e"),
            "training.adapter.ema_decay": (1, 2, -0.1, nan),
            "training.adapter.mixed_precision": ("fp8", 16, None),
            "training.text_dropout": (7, -0.1, nan, "half"),
            "training.people_share": (0, 1.5, nan),
            "training.sample_prompts": ([], "a face", [1]),
            "training.layers": (["top"], "up", [1.5]),
            "training.nothing": (1,),
            "trainings": (1,),
        }.items()
        for value in values
    ],
    refused("twice the same key", extended("seed: 1\nseed: 2\n"), "a.yaml", "seed", "twice"),
    refused("extends itself", text("extends: a.yaml\n"), "a.yaml", "extends itself"),
    refused("a circle of two", lambda: (written("b.yaml", "extends: a.yaml\n"), written("a.yaml", "extends: b.yaml\n"))[1], "b.yaml", "extends itself"),
    refused("extends nothing", text("extends:\n"), "profile"),
    refused("extends what is not there", text("extends: none.yaml\n"), "none.yaml"),
    refused("extends a list", text("extends: [a, b]\n"), "profile"),
    used("CRLF", text("extends: embedded\r\nseed: 7\r\n")),
    used("a byte-order mark", text(b"\xef\xbb\xbfextends: embedded\nseed: 7\n")),
    used("UTF-16", text("extends: embedded\nseed: 7\n".encode("utf-16"))),
    used("no newline at the end", text("extends: embedded\nseed: 7")),
    used("anchors", text("extends: embedded\nseed: &s 7\nguidance_scale: *s\n")),
    used("a merge key", text("extends: embedded\nnotebooks: {a: &a {n: 1}, b: {<<: *a}}\nseed: 7\n")),
    used("JSON", text('{"extends": "embedded", "seed": 7}')),
    used("the largest seed", profile(seed=7)),
    used("another name for a file", text("extends: embedded\nseed: 7\n", "a b\n😀.yml")),
    refused("a name that is not UTF-8", text("extends: embedded\nseed: 7\n", os.fsdecode(b"caf\xe9.yaml")), "yaml is not UTF-8", "rename"),
    used("a link", lambda: linked("a.yaml", str(written("b.yml", "extends: embedded\nseed: 7\n")))),
)  # fmt: skip


@PROFILES
def test_a_profile_is_read_or_refused(place: Place, case: Case) -> None:
    settings = place.read(case, load_profile)
    assert settings is None or settings.seed == 7


STUDY = {
    "name": "first",
    "methods": ["text-only"],
    "people": {"names": ["ada"]},
    "prompts": ["a face"],
}


def study(**changes: Any) -> Given:
    return text(yaml.safe_dump(STUDY | changes, allow_unicode=True))


STUDIES = table(
    *[refused(name, text(content), "study", "a.yaml") for name, content in NO_YAML],
    *[refused(name, given, named) for name, given, named in NO_FILE],
    *[
        refused(f"{place} {value!r}", study(**{place: value}), "a.yaml", place)
        for place, values in {
            "name": (None, 5, [], True),
            "methods": ([], None, {}, [5], [[]], [{"name": "x"}], [{"method": 5}]),
            "people": (5, [], "ada", {"count": 0}, {"count": -1}, {"count": True}, {"names": "ada"}, {"names": [5]}, {"nobody": 1}, {"references": -1}, {"only": ["a"]}),
            "prompts": ([], None, 5, "", [5], [None], [True]),
            "seeds": (None, "many", 1.5, [1.5], ["x"], True, [True], [None], 0, -1, [], 10**12),
            "threads": (0, -1, "all", True, 1.5),
            "sampling": ({"num_inference_steps": 0}, {"guidance_scale": nan}, {"guidance_scale": "x"}, [], 5),
            "dtype": (16, None),
            "profile": (None, 5),
            "seed": (1,),
        }.items()
        for value in values
    ],
    refused("twice the same key", text(yaml.safe_dump(STUDY) + "seeds: 1\nseeds: 2\n"), "a.yaml", "seeds", "twice"),
    used("CRLF", text(yaml.safe_dump(STUDY).replace("\n", "\r\n"))),
    used("a byte-order mark", text(b"\xef\xbb\xbf" + yaml.safe_dump(STUDY).encode())),
    used("UTF-16", text(yaml.safe_dump(STUDY).encode("utf-16"))),
    used("anchors", text("name: &n first\nmethods: [text-only]\npeople: {names: [*n]}\nprompts: [*n]\n")),
    used("names of every kind", study(people={"names": ["Ade\u0301le", "李", "O'Neil", "NA", "null", "1e3", "😀"]})),
    used("prompts of every kind", study(prompts=["%s {} [bold] $HOME ~ \\n", "\u202ea", "a" * 5000, "line\nbreak"])),
)  # fmt: skip


@STUDIES
def test_a_studys_file_is_read_or_refused(place: Place, case: Case) -> None:
    declared = place.read(case, load_declaration)
    assert declared is None or declared.name == "first"


HEAD = "person,view,file,style\n"
ROWS = "ada,0,a0.png,photo\nada,1,a1.png,photo\nben,0,b0.png,photo\nben,1,b1.png,photo\n"
FILES = ("a0.png", "a1.png", "b0.png", "b1.png")


def red() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(buffer, "PNG")
    return buffer.getvalue()


def people(content: Content, encoding: str = "utf-8") -> Given:
    """A folder of people whose index is the given text."""

    def lay_out() -> Path:
        for name in FILES:
            written(f"people/{name}", red())
        raw = content if isinstance(content, bytes) else content.encode(encoding)
        return written("people/index.csv", raw).parent

    return lay_out


PEOPLE = table(
    refused("no folder", lambda: "none", "none", "index.csv"),
    refused("a file for the folder", lambda: written("people"), "people", "index.csv"),
    refused("no index", lambda: written("people/a.png").parent, "people", "index.csv"),
    refused("a folder for the index", lambda: written("people/index.csv/a").parent.parent, "index.csv"),
    refused("a dead link", lambda: linked("people/index.csv", "gone").parent, "index.csv"),
    refused("nothing in it", people(""), "index.csv", "columns", "person"),
    refused("no heading", people(ROWS), "index.csv", "person"),
    refused("another heading", people("name,number,path\nada,0,a0.png\n"), "index.csv", "person"),
    refused("semicolons", people((HEAD + ROWS).replace(",", ";")), "index.csv", "person"),
    refused("tabs", people((HEAD + ROWS).replace(",", "\t")), "index.csv", "person"),
    refused("no file's name", people(HEAD + "ada,0\nada,1\n"), "index.csv", "file"),
    refused("an empty file's name", people(HEAD + "ada,0,,photo\nada,1,a1.png,photo\n"), "index.csv", "file"),
    refused("an empty person", people(HEAD + ",0,a0.png,photo\n,1,a1.png,photo\n"), "index.csv", "person"),
    refused("a view in words", people(HEAD + "ada,front,a0.png,photo\n"), "index.csv", "view", "front"),
    refused("half a view", people(HEAD + "ada,0.5,a0.png,photo\n"), "index.csv", "view", "0.5"),
    refused("a view below zero", people(HEAD + "ada,-1,a0.png,photo\nada,0,a1.png,photo\n"), "index.csv", "line 2", "view"),
    refused("a view twice", people(HEAD + "ada,0,a0.png,photo\nada,0,a1.png,photo\n"), "index.csv", "view", "twice"),
    refused("a very long field", people(HEAD + "ada,0," + "x" * 200_000 + ",photo\n"), "index.csv"),
    refused("a picture that is not there", people(HEAD + "ada,0,gone.png,photo\nada,1,a1.png,photo\n"), "index.csv", "gone.png"),
    refused("a picture above the folder", people(HEAD + "ada,0,../x.png,photo\nada,1,a1.png,photo\n"), "index.csv", "../x.png"),
    refused("a zero byte", people(HEAD + "ada,0,a\0.png,photo\nada,1,a1.png,photo\n"), "index.csv"),
    refused("zeros", people(bytes(500)), "index.csv"),
    refused("a picture", people(b"\x89PNG\r\n\x1a\n\0\xff\xfe"), "index.csv"),
    refused("nobody", people(HEAD), "people", "fewer"),
    used("a byte-order mark", people("\ufeff" + HEAD + ROWS)),
    used("UTF-16", people(HEAD + ROWS, "utf-16")),
    used("CRLF", people((HEAD + ROWS).replace("\n", "\r\n"))),
    used("quotes", people('"person","view","file","style"\n' + "".join(f'"{w}","{v}","{f}","photo"\n' for w, v, f in (("ada", 0, "a0.png"), ("ada", 1, "a1.png"), ("ben", 0, "b0.png"), ("ben", 1, "b1.png"))))),
    used("further columns", people("caption," + HEAD + "".join(f'"a, b",{row}\n' for row in ROWS.splitlines()))),
    used("empty lines", people(HEAD + "\n" + ROWS.replace("\n", "\n\n"))),
    used("rows in disorder", people(HEAD + "".join(f"{row}\n" for row in reversed(ROWS.splitlines())))),
    used("spaces about a view", people((HEAD + ROWS).replace(",0,", ", 0 ,"))),
)  # fmt: skip


@PEOPLE
def test_people_are_read_or_refused(place: Place, case: Case) -> None:
    found = place.read(case, lambda folder: load_people(folder, 2))
    assert found is None or [(p.name, [x.name for x in (*p.references, *p.others)]) for p in found] == [
        ("ada", ["a0.png", "a1.png"]), ("ben", ["b0.png", "b1.png"]),
    ]  # fmt: skip


NAMES = [
    "NA", "None", "null", "nan", "true", "007", "1e3", "-1", "O'Neil", 'Ann "Bo" Li', "Li, Wei", "a;b",
    "line\nbreak", "Ade\u0301le", "Adéle", "李雷", "😀", "[x]", "*", "%s", "$HOME", "~", "=1+1", "#1", "con", "a\\b",
    "references", "index", "Ω" * 100,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_persons_name_comes_through_as_it_is(place: Place, name: str) -> None:
    """Through the tables of held-out people, of prompts and of pictures to judge."""
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows(
        [
            ("person", "view", "file", "style"),
            (name, 0, "a0.png", "photo"),
            (name, 1, "a1.png", "photo"),
        ]
    )
    (found,) = load_people(people(rows.getvalue())())
    written_name, name = name, same_name(name)  # an accent has two spellings, which look the same
    assert found.name == name
    pairs = io.StringIO(newline="")
    csv.writer(pairs).writerows([("person", "prompt"), (written_name, written_name)])
    assert read_pairs(written("pairs.csv", pairs.getvalue())) == {name: [written_name]}
    written(f"judged/references/{written_name}.png", red())
    written("judged/ours/a.png", red())
    index = io.StringIO(newline="")
    csv.writer(index).writerows(
        [
            ("image", "person", "method", "prompt"),
            ("ours/a.png", written_name, written_name, written_name),
        ]
    )
    written("judged/index.csv", index.getvalue())
    judged = read_folder("judged")
    assert judged.index[["person", "method", "prompt"]].values.tolist() == [
        [name, name, written_name]
    ]
    assert [person.name for person in judged.people] == [name]


PAIRS = table(
    refused("a missing file", lambda: "none.csv", "none.csv", "check the path"),
    refused("a folder", lambda: written("a.csv/b").parent, "a.csv"),
    refused("nothing in it", text("", "a.csv"), "a.csv"),
    refused("no heading", text("ada,a face\n", "a.csv"), "a.csv", "fewer"),
    refused("no prompts", text("person\nada\n", "a.csv"), "a.csv", "prompt"),
    refused("a row without a prompt", text("person,prompt\nada\n", "a.csv"), "a.csv", "prompt"),
    refused("an empty prompt", text("person,prompt\nada,\n", "a.csv"), "a.csv", "prompt"),
    refused("an empty person", text("person,prompt\n,a face\n", "a.csv"), "a.csv", "person"),
    refused("semicolons", text("person;prompt\nada;a face\n", "a.csv"), "a.csv", "person"),
    refused("a very long field", text("person,prompt\nada," + "x" * 200_000 + "\n", "a.csv"), "a.csv"),
    refused("zeros", text(bytes(500), "a.csv"), "a.csv"),
    refused("Latin-1", text("person,prompt\nada,caf\xe9\n".encode("latin-1"), "a.csv"), "a.csv", "UTF-8"),
    used("a byte-order mark", text("\ufeffperson,prompt\nada,a face\n", "a.csv")),
    used("UTF-16", text("person,prompt\nada,a face\n".encode("utf-16"), "a.csv")),
    used("CRLF", text("person,prompt\r\nada,a face\r\n", "a.csv")),
    used("a comma in quotes", text('prompt,person\n"a face",ada\n', "a.csv")),
)  # fmt: skip


@PAIRS
def test_a_list_of_prompts_is_read_or_refused(place: Place, case: Case) -> None:
    assert place.read(case, read_pairs) in (None, {"ada": ["a face"]})


def judged(
    content: Content | None = None, *lay_out: Callable[[], Any], encoding: str = "utf-8"
) -> Given:
    """A folder to judge: one person, two pictures of a method, and perhaps a table."""

    def make() -> str:
        for name in ("references/ada.png", "ours/ada/0.png", "ours/ada/1.png"):
            written(f"judged/{name}", red())
        if content is not None:
            written(
                "judged/index.csv",
                content if isinstance(content, bytes) else content.encode(encoding),
            )
        for more in lay_out:
            more()
        return "judged"

    return make


TABLE = "image,person,method,prompt,seed\nours/ada/0.png,ada,ours,a face,0\nours/ada/1.png,ada,ours,a face,1\n"


def line(*values: str) -> str:
    return "image,person,method,prompt,seed\n" + ",".join(values) + "\n"


FOLDERS = table(
    refused("no folder", lambda: "none", "none", "folder"),
    refused("a file", lambda: written("judged"), "judged", "folder"),
    refused("a dead link", lambda: linked("judged", "gone"), "judged", "folder"),
    refused("an empty folder", lambda: written("judged/.keep").parent, "judged", "references"),
    refused("a name too long", lambda: "n" * 300, "nnn", "longer than"),
    refused("a zero byte in the name", lambda: "a\0b", "zero byte"),
    refused("a file for references", lambda: written("judged/references").parent, "references"),
    refused("no references", lambda: written("judged/references/a.txt").parent.parent, "references", "picture"),
    refused("nothing judged", lambda: written("judged/references/ada.png", red()).parent.parent, "judged", "METHOD"),
    refused("somebody without a reference", judged(None, lambda: written("judged/ours/ben.png", red())), "ben", "reference", "add"),
    refused("pictures too deep", judged(None, lambda: written("judged/ours/ada/x/0.png", red())), "too deep", "ours"),
    refused("nothing in the table", judged(""), "index.csv", "comma"),
    refused("only a heading", judged("image,person\n"), "index.csv", "no picture"),
    refused("no person's column", judged("image\nours/ada/0.png\n"), "index.csv", "'person'"),
    refused("no picture's column", judged("person\nada\n"), "index.csv", "'image'"),
    refused("ragged rows", judged(TABLE + "a,b,c,d,e,f,g,h\n"), "index.csv"),
    refused("an open quote", judged(TABLE + 'ours/ada/0.png,"ada\n'), "index.csv"),
    refused("no person in a row", judged(line("ours/ada/0.png", "", "ours", "", "0")), "index.csv", "person", "line 2"),
    refused("no picture in a row", judged(line("", "ada", "ours", "", "0")), "index.csv", "image", "line 2"),
    refused("a picture that is not there", judged(line("gone.png", "ada", "ours", "", "0")), "index.csv", "gone.png"),
    refused("a folder for a picture", judged(line("ours", "ada", "ours", "", "0")), "index.csv", "ours"),
    refused("a zero byte", judged(line("ours/a\0.png", "ada", "ours", "", "0")), "index.csv"),
    *[
        refused(f"seed {seed}", judged(line("ours/ada/0.png", "ada", "ours", "", seed)), "index.csv", "seed", "line 2")
        for seed in ("x", "1.5", "nan", "inf", "-inf", "1e300", "0x1f", "true", "--1")
    ],
    refused("one cell twice", judged(TABLE + "ours/ada/1.png,ada,ours,a face,1\n"), "index.csv", "two pictures", "seeds"),
    refused("a column twice", judged("image,person,person\nours/ada/0.png,ada,ben\n"), "index.csv", "person", "twice"),
    refused("zeros", judged(bytes(500)), "index.csv"),
    refused("a picture for a table", judged(red()), "index.csv"),
    refused("Latin-1", judged(line("ours/ada/0.png", "ada", "caf\xe9", "", "0"), encoding="latin-1"), "index.csv", "UTF-8"),
    used("by its shape", judged()),
    used("by its table", judged(TABLE)),
    used("a byte-order mark", judged("\ufeff" + TABLE)),
    used("UTF-16", judged(TABLE, encoding="utf-16")),
    used("CRLF", judged(TABLE.replace("\n", "\r\n"))),
    used("semicolons", judged(TABLE.replace(",", ";"))),
    used("columns in disorder", judged("seed,prompt,method,person,image\n0,a face,ours,ada,ours/ada/0.png\n1,a face,ours,ada,ours/ada/1.png\n")),
    used("further columns", judged("image,person,method,seed,note\nours/ada/0.png,ada,ours,0,\"a, b\"\nours/ada/1.png,ada,ours,1,\n")),
    used("what systems leave", judged(None, *(lambda n=n: written(f"judged/{n}") for n in (".DS_Store", "Thumbs.db", "ours/desktop.ini", "ours/._0.png", "ours/ada/.hidden.png", "@eaDir/ada.png", ".thumbnails/x.png", "__MACOSX/ours/._a.png")))),
    used("notes beside pictures", judged(None, *(lambda n=n: written(f"judged/{n}", "x") for n in ("notes.pdf", "ours/notes.txt", "README.md")))),
    used("linked folders", judged(None, lambda: (Path("judged/ours").rename("elsewhere"), linked("judged/ours", "../elsewhere")))),
)  # fmt: skip


@FOLDERS
def test_a_folder_to_judge_is_read_or_refused(place: Place, case: Case) -> None:
    found = place.read(case, read_folder)
    if found is not None:
        assert found.index[["method", "person", "seed"]].values.tolist() == [
            ["ours", "ada", 0],
            ["ours", "ada", 1],
        ]


@table(
    *[refused(name, text(content), "a.yaml") for name, content in NO_YAML],
    *[refused(name, given, named) for name, given, named in NO_FILE],
    refused("an entry of nothing", text("claims:\n- \n"), "a.yaml", "1"),
    refused("an entry that does not fit", text("claims:\n- {id: x}\n"), "a.yaml", "Claim 1 (x)"),
    refused("a list without its name", text("- {id: x}\n"), "a.yaml", "`claims:`"),
)
def test_a_list_of_claims_is_refused(place: Place, case: Case) -> None:
    place.read(case, read_claims)
