"""What the tables of hostile inputs share: a case, a place to try it in, and the comparison.

A case is used, or refused with a sentence; never a traceback, never a lost file. `Place` runs one
and compares the whole tree before and after (`nothing_lost`).
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusionlib.cli import app
from fusionlib.errors import FusionError


@dataclass(frozen=True)
class Entry:
    """One name in a tree, by all that a user would miss.

    Attributes:
        kind: Kind of the entry, as in ``stat.S_IFMT``.
        mode: Permission bits.
        content: Hash of a file's bytes, target of a link, and empty for anything else.
    """

    kind: int
    mode: int
    content: str


def tree(root: Path) -> dict[str, Entry]:
    """Every name under a folder; links are not followed, and pipes and devices are not opened."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind, content = stat.S_IFMT(status.st_mode), ""
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            place = os.path.relpath(path, root)
            found[place] = Entry(kind, stat.S_IMODE(status.st_mode), content)
    return found


@contextmanager
def nothing_lost(root: Path, *written: str) -> Iterator[None]:
    """Assert that the block changes nothing under a folder but what it is documented to write.

    Args:
        root: Folder that holds everything within the command's reach.
        written: Patterns of the paths that may be new or changed, relative to the folder; a star
            stands for subfolders, too. The folders above such a path may be new.
    """
    before = tree(root)
    yield
    after = tree(root)
    lost = sorted(before.keys() - after.keys())
    assert not lost, f"lost: {lost}"

    def may(path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in written)

    new = {path for path in after if before.get(path) != after[path]}
    holders = {str(up) for path in new if may(path) for up in Path(path).parents}
    odd = [
        path
        for path in sorted(new)
        if not may(path) and not (path in holders and path not in before)
    ]
    assert not odd, f"new or changed: {odd}"


@dataclass(frozen=True)
class Case:
    """A hostile input, and what becomes of it.

    Attributes:
        name: A few words, the test's id.
        given: Lays files out in the current folder and returns what is given to the reader or, for
            a command, its arguments; or these themselves.
        says: Parts of the refusal, which name what was wrong and say what to do; empty where the
            input is used.
        writes: Patterns of the paths that may be new or changed.
    """

    name: str
    given: Any
    says: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def lay_out(self) -> Any:
        return self.given() if callable(self.given) else self.given


def used(name: str, given: Any, *writes: str) -> Case:
    """A case that is used."""
    return Case(name, given, (), writes)


def refused(name: str, given: Any, *says: str, writes: Sequence[str] = ()) -> Case:
    """A case that is refused."""
    assert says, "a refusal says something"
    return Case(name, given, says, tuple(writes))


def table(*cases: Case) -> Any:
    """Parametrise a test by cases, whose names are all different."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return pytest.mark.parametrize("case", cases, ids=names)


def assert_says(text: str, says: Sequence[str]) -> None:
    """A message is one sentence or two for a user, and holds certain parts."""
    flat = " ".join(text.split())
    missing = [part for part in says if part not in flat]
    assert not missing, f"{flat!r} lacks {missing}"
    assert "Traceback" not in text and len(flat) < 2500, text


class Place:
    """The folder in which a case is tried."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, case: Case, reader: Callable[[Any], Any]) -> Any:
        """Give a case to a reader; a `FusionError` with the expected parts, or its result."""
        given = case.lay_out()
        with nothing_lost(self.root, *case.writes):
            if not case.says:
                return reader(given)
            with pytest.raises(FusionError) as caught:
                reader(given)
        assert_says(str(caught.value), case.says)
        return None

    def run(self, case: Case, *more: object) -> str:
        """Give a case to the command line; one line and an exit code, or what it prints."""
        arguments = [str(part) for part in (*case.lay_out(), *more)]
        with nothing_lost(self.root, *case.writes):
            done = CliRunner().invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError(f"a traceback: {done.exception!r}") from done.exception
        if not case.says:
            assert done.exit_code == 0, done.output
            return done.output
        assert done.exit_code in (1, 2), done.output
        if done.exit_code == 1:
            last = done.stderr.strip().splitlines()[-1]
            assert last.startswith("Error: "), done.stderr
            assert_says(last, case.says)
        else:  # typer draws a box around what it says
            assert_says(done.stderr.replace("│", " "), case.says)
        return done.output
