"""Paths that users give, and what lies in their folders: each file is used, or has a reason."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from fusionlib.errors import FusionError
from fusionlib.support.texts import find_name

SYSTEM = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "@tmp", "#recycle", "#snapshot"}
    | {"__macosx", "__pycache__", "$recycle.bin", "system volume information", "lost+found"}
)
"""Lower-case names of files and folders that systems leave among a user's; others begin with a
dot."""

HIDDEN = "it is hidden, or a system's own"


def user_path(path: str | Path) -> Path:
    """A path as a user means it: ``~`` is the home folder, and ``$NAME`` an environment variable.

    A path that is there as it is written is meant so.

    Raises:
        FusionError: A variable is not set, there is no such home folder, or the path is empty, too
            long, or not UTF-8.
    """
    text = str(path)
    if not text:
        raise FusionError("The path is empty: there is nothing to find.")
    if "\0" in text:
        raise FusionError(f"The path {text!r} holds a zero byte: check it.")
    if not is_text(text):
        shown = text.encode("utf-8", "backslashreplace").decode()
        raise FusionError(f"The name {shown} is not UTF-8: rename the file.")
    if any(len(part.encode()) > 255 for part in PurePath(text).parts):
        raise FusionError(f"There is no {text}, whose name is longer than file systems allow.")
    if os.path.lexists(text):
        return Path(path)
    opened = os.path.expandvars(os.path.expanduser(text))
    if unset := re.search(r"\$\{\w+\}|\$[A-Za-z_]\w*", opened):
        raise FusionError(f"The path {text} names the variable {unset.group()}, which is not set.")
    if text.startswith("~") and opened.startswith("~") and "/" in text:
        raise FusionError(f"The path {text} names a user who has no home folder here.")
    return Path(opened)


@dataclass
class Scan:
    """What lies in a folder and in the folders below it.

    Attributes:
        files: Files in order, links to nothing among them.
        passed_over: Reason for each file or folder that cannot be used, by path.
        hidden: Hidden files and folders, and those that systems leave.
    """

    files: list[Path] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)


def is_hidden(name: str) -> bool:
    """Whether a part of a relative path is hidden, or left by a system."""
    return any(
        (part.startswith(".") and part != "..") or part.casefold() in SYSTEM
        for part in PurePath(name).parts
    )


def scan_folder(folder: Path) -> Scan:
    """Find the files of a folder, through links to folders, too.

    Raises:
        FusionError: The folder is not there, or may not be read.
    """
    found = Scan()
    _scan(folder, (), found)
    if str(folder) in found.passed_over:
        raise FusionError(f"The folder {folder} cannot be used: {found.passed_over[str(folder)]}.")
    found.files.sort()
    return found


def _scan(folder: Path, above: tuple[tuple[int, int], ...], found: Scan) -> None:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        found.passed_over[str(folder)] = f"it cannot be read ({error.strerror})"
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        found.passed_over[str(folder)] = "it links back to a folder that holds it"
        return
    for entry in entries:
        path = Path(entry.path)
        if is_hidden(entry.name):
            found.hidden.append(entry.path)
        elif path.is_dir():
            _scan(path, (*above, here), found)
        elif path.is_file() or path.is_symlink():
            found.files.append(path)
        else:
            found.passed_over[entry.path] = "it is no ordinary file"


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, as tables and pages need it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def summary(passed_over: Mapping[str, str]) -> str:
    """The reasons, each with its first file and the number of others, in one line."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for path, reason in passed_over.items():
        by_reason[reason].append(PurePath(path).name)
    return ", ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} ({reason})"
        for reason, names in by_reason.items()
    )


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a folder that a list names, in whatever spelling of Unicode and case; or None."""
    path = folder / name
    if path.is_file():
        return path
    place = folder
    for part in PurePath(name.replace("\\", "/")).parts:
        if not place.is_dir():
            return None
        known = find_name(part, os.listdir(place)) if part != ".." else part
        if known is None:
            return None
        place /= known
    return place if place.is_file() else None
