"""Paths, texts and names as users give them."""

import ast
import unicodedata
from pathlib import Path

import pytest

from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from fusionlib.support.paths import find_file, scan_folder, summary, user_path
from fusionlib.support.texts import decode_text, file_name, find_name, same_name

DECODED = {
    "UTF-8": ("é".encode(), "é"),
    "a byte-order mark": ("é".encode("utf-8-sig"), "é"),
    "UTF-16": ("é".encode("utf-16"), "é"),
    "UTF-16, big-endian": (b"\xfe\xff" + "é".encode("utf-16-be"), "é"),
    "UTF-32": ("é".encode("utf-32"), "é"),
    "nothing": (b"", ""),
}


@pytest.mark.parametrize("content, text", DECODED.values(), ids=DECODED)
def test_texts_are_decoded(content: bytes, text: str) -> None:
    assert decode_text(content, "a.txt") == text


@pytest.mark.parametrize(
    "content, says",
    [
        ("é".encode("latin-1"), "a.txt is not UTF-8 text .at byte 0., but perhaps Latin-1"),
        ("a face".encode("utf-16-le"), "a.txt holds zero bytes, as UTF-16 without"),
        (b"\xff\xfea\x00b", "a.txt is not UTF-16 text"),
    ],
)
def test_other_encodings_are_named(content: bytes, says: str) -> None:
    with pytest.raises(FusionError, match=says):
        decode_text(content, "a.txt")


def test_paths_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FACES", "faces")
    monkeypatch.chdir(tmp_path)
    assert user_path("~/a.png") == tmp_path / "a.png"
    assert user_path(Path("$HOME/${FACES}")) == tmp_path / "faces"
    assert user_path("price$5.png") == Path("price$5.png")
    (tmp_path / "$FACES").mkdir()
    assert user_path("$FACES") == Path("$FACES"), "what is there as it is written is meant so"
    for path, says in (
        ("$NO_SUCH_THING/a", "names the variable .NO_SUCH_THING, which is not set"),
        ("a\0b", "zero byte"),
        ("", "path is empty"),
        ("n" * 300, "longer than file systems allow"),
        ("caf\udce9.jpg", r"caf\\udce9.jpg is not UTF-8"),
    ):
        with pytest.raises(FusionError, match=says):
            user_path(path)


def test_a_scan_finds_every_file_or_says_why_not(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for name in ("a.jpg", "sub/b.jpg", "@eaDir/a.jpg", ".thumbnails/a.jpg", "._a.jpg", "Thumbs.db"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in (".DS_Store", "desktop.ini"):
        (folder / name).write_text("x")
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        (folder / name).mkdir()
    elsewhere.mkdir()
    (elsewhere / "c.jpg").write_text("x")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub" / "round").symlink_to(folder)
    (folder / "dead.jpg").symlink_to("nowhere")
    found = scan_folder(folder)
    names = [path.relative_to(folder).as_posix() for path in found.files]
    assert names == ["a.jpg", "dead.jpg", "linked/c.jpg", "sub/b.jpg"]
    assert len(found.hidden) == 8
    (path,) = found.passed_over
    assert path.endswith("sub/round") and "links back" in found.passed_over[path]
    assert summary(found.passed_over) == "round (it links back to a folder that holds it)"
    with pytest.raises(FusionError, match="nowhere cannot be used"):
        scan_folder(tmp_path / "nowhere")


def test_names_are_compared_as_people_do(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    assert same_name(apart) == composed != apart
    assert find_name(apart, ["ada", composed]) == composed
    assert find_name("ADA", ["ada", "Ben"]) == "ada"
    assert find_name("ADA", ["ada", "Ada"]) is None and find_name("Ada", ["ada", "Ada"]) == "Ada"
    (tmp_path / composed).mkdir()
    (tmp_path / composed / "A.PNG").write_text("x")
    assert find_file(tmp_path, f"{apart}/a.png") == tmp_path / composed / "A.PNG"
    assert find_file(tmp_path, "zoe/a.png") is None
    assert file_name("a/b: 笑") == "a_b_笑" and file_name("..") == "_"
    assert len(file_name("é" * 300).encode()) == 100


def test_every_text_file_is_opened_with_an_encoding() -> None:
    """Otherwise a cache is written in one encoding and read in the locale's."""
    missing = []
    for folder in ("fusionlib", "companion", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and _needs_encoding(call):
                    missing.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not missing


def _needs_encoding(call: ast.Call) -> bool:
    if any(word.arg in ("encoding", None) for word in call.keywords):
        return False
    if isinstance(call.func, ast.Attribute):
        if call.func.attr == "read_text":
            return not call.args
        if call.func.attr == "write_text":
            return len(call.args) < 2
        return False
    if not (isinstance(call.func, ast.Name) and call.func.id == "open"):
        return False
    modes = [arg.value for arg in call.args[1:2] if isinstance(arg, ast.Constant)]
    return not (modes and "b" in str(modes[0]))
