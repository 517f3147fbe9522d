"""Files and folders that are replaced as a whole or stay as they were, and only our own."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusionlib.errors import FusionError
from fusionlib.support.files import (
    NEW,
    Made,
    check_apart,
    check_folder,
    check_writable,
    locked,
    replacing,
    write_bytes,
    write_text,
)
from tests.helpers.trees import tree, write_tree

MADE = Made(r"config\.json|part", {"config.json": '"ours"'})
OURS: dict[str, str | bytes] = {"config.json": '{"ours": 1}', "part": b"old"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_is_replaced_after_the_block_or_not_at_all(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result"

    def write(place: Path, content: bytes) -> None:
        write_bytes(place / "part" if kind == "folder" else place, content)

    def read() -> bytes:
        return (path / "part" if kind == "folder" else path).read_bytes()

    with replacing(path) as new:
        write(new, b"first")
        assert not path.exists()
    assert read() == b"first"
    with pytest.raises(KeyboardInterrupt), replacing(path) as new:
        write(new, b"half")
        raise KeyboardInterrupt
    assert read() == b"first"
    with replacing(path) as again:
        assert again == new and not again.exists(), "what was left is removed"
        write(again, b"second")
    assert read() == b"second" and list(tmp_path.iterdir()) == [path]


def test_a_folder_of_our_own_is_replaced_and_no_other(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "out", OURS | {".DS_Store": b"litter"})
    with replacing(folder, MADE) as new:
        write_tree(new, {"config.json": '{"ours": 2}'})
    assert tree(folder) == {"config.json": b'{"ours": 2}'}
    assert list(tmp_path.iterdir()) == [folder]


FOREIGN: dict[str, dict[str, str | bytes]] = {
    "notes beside ours": OURS | {"notes.txt": "a"},
    "a subfolder": OURS | {"photos/a.jpg": b"a"},
    "a hidden file": OURS | {".git/config": "a"},
    "only others'": {"a.jpg": b"a"},
    "our name, their content": {"config.json": '{"theirs": 1}'},
    "our names without the mark": {"part": b"a"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_folder_that_holds_anything_else_is_refused(
    tmp_path: Path, files: dict[str, str | bytes]
) -> None:
    folder = write_tree(tmp_path / "out", files)
    before = tree(tmp_path)
    for attempt in (
        lambda: check_folder(folder, MADE),
        lambda: replacing(folder, MADE).__enter__(),
    ):
        with pytest.raises(FusionError, match=r"did not make .* give a new folder"):
            attempt()
    assert tree(tmp_path) == before


def test_a_link_in_a_folder_is_somebody_elses(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "out", OURS)
    (folder / "data").symlink_to(write_tree(tmp_path / "data", {"a": "a"}))
    with pytest.raises(FusionError, match="holds data"):
        check_folder(folder, MADE)


def test_a_file_that_comes_while_we_work_is_kept(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "out", OURS)
    with replacing(folder, MADE) as new:
        write_tree(folder, {"sub/notes.txt": "mine", "config.json": "theirs"})
        write_tree(new, {"config.json": '{"ours": 2}'})
    assert tree(folder) == {
        "config.json": b'{"ours": 2}', "config.json.former": b"theirs", "part": b"old",
        "sub": None, "sub/notes.txt": b"mine",
    }  # fmt: skip


def test_a_folder_between_two_moves_is_found_again(tmp_path: Path) -> None:
    """A kill may come after the old folder was moved aside and before the new one is in place."""
    write_tree(tmp_path / ".out.former", OURS)
    write_tree(tmp_path / ".out.partial", {"part": b"half"})
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "out", MADE):
        raise ZeroDivisionError
    assert tree(tmp_path / "out") == {name: tree(tmp_path)[f"out/{name}"] for name in OURS}
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    folder, file = write_tree(tmp_path / "disk" / "out", OURS), tmp_path / "disk" / "file"
    file.write_text("old")
    for name, to in (("link", folder), ("file-link", file), ("new-link", tmp_path / "disk/new")):
        (tmp_path / name).symlink_to(to)
    with replacing(tmp_path / "link", MADE) as new:
        write_tree(new, {"config.json": '{"ours": 2}'})
    write_text(tmp_path / "file-link", "new")
    write_text(tmp_path / "new-link", "newer")
    assert tree(folder) == {"config.json": b'{"ours": 2}'}
    assert file.read_text() == "new" and (tmp_path / "disk" / "new").read_text() == "newer"
    assert all((tmp_path / name).is_symlink() for name in ("link", "file-link", "new-link"))


def _outputs(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    yield Path(), "the folder that you are in"
    yield tmp_path, "the folder that you are in, or one around it"
    yield write_tree(tmp_path, {"file": "a"}) / "file", "is a file"
    yield tmp_path / "file" / "below", "cannot be written"
    yield Path("/proc/nowhere"), "cannot be written"
    yield Path("/proc"), "."


def test_what_cannot_be_a_folder_of_ours_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for output, says in _outputs(tmp_path):
        before = tree(tmp_path)
        with pytest.raises(FusionError, match=says):
            check_folder(output, MADE if output != Path("/proc") else None)
        assert tree(tmp_path) == before
    assert check_folder("../new", NEW) == tmp_path / "new"


def test_a_file_of_somebody_elses_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    assert check_writable(file, "ours") == file
    for content, known in (("", True), ("head,ours\n", True), ("their head\n", False)):
        file.write_text(content)
        if known:
            check_writable(file, "ours")
        else:
            with pytest.raises(FusionError, match="was not made by this command: give another"):
                check_writable(file, "ours")
    check_writable(file)


def test_source_and_target_are_never_the_same(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "raw", {"a/b": "b"})
    (tmp_path / "link").symlink_to(source)
    for output in (source, tmp_path / "link", source / "a" / "..", tmp_path / "link" / "a" / "new"):
        with pytest.raises(FusionError, match="is or lies in"):
            check_apart(output, source)
    with pytest.raises(FusionError, match="holds"):
        check_apart(tmp_path, tmp_path / "link")
    check_apart(source / "new", source, inside=False)
    check_apart(tmp_path / "other", source)


def test_two_processes_are_kept_apart(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fusionlib.support.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "out"
    other = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdin and other.stdout.readline() == "held\n"
    with pytest.raises(FusionError, match="Another process is writing"), replacing(path):
        pass
    other.kill()  # the lock ends with the process
    other.wait()
    with locked(path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_user_gives_new_ones(
    tmp_path: Path, umask: int, mode: int
) -> None:
    former = os.umask(umask)
    try:
        write_text(tmp_path / "folder" / "file", "a")
        with replacing(tmp_path / "new", NEW) as new:
            new.mkdir()
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    import torch
    from safetensors import SafetensorError

    file = tmp_path / "model"
    file.write_text("old")

    def rust() -> None:  # a real one would replace the device
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    for save in (
        rust,
        lambda: torch.save({"a": torch.zeros(9999)}, open("/dev/full", "wb")),  # noqa: SIM115
        lambda: open("/dev/full", "w").write("a" * 99999),  # noqa: SIM115
    ):
        with pytest.raises(OSError, match="No space left") as caught, replacing(file) as new:
            new.write_text("half")
            save()
        assert caught.value.errno == errno.ENOSPC and caught.value.filename
        assert tree(tmp_path) == {"model": b"old"}
