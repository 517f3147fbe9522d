"""Files and folders that are written whole or not at all, and never over what others made."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fusionlib.errors import FusionError
from fusionlib.support.signals import deferred

LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that file managers leave in every folder and make again."""

FULL = "No space left on device"
"""What C's, Rust's and Python's errors say of a full disk."""

LOOKED_AT = 1 << 20
"""Number of bytes at the beginning and the end of a file in which a mark is looked for."""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def short(path: Path) -> str:
    """The path relative to the current folder, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


@dataclass(frozen=True)
class Made:
    """What a command makes, by which it knows its own work again, of earlier versions, too.

    Attributes:
        names: Regular expression of the paths that its files have in the folder.
        marks: Text that a file's content has, by path. A folder without any of these files was not
            made by the command.
    """

    names: str
    marks: Mapping[str, str] = field(default_factory=dict)

    def foreign(self, folder: Path) -> Path | None:
        """A file in a folder that the command did not make; None where all are its own."""
        marked, first = not self.marks, None
        for place, folders, files in os.walk(folder):
            links = [name for name in folders if os.path.islink(os.path.join(place, name))]
            for name in sorted(files) + links:
                path = Path(place, name)
                inside = path.relative_to(folder).as_posix()
                if name in LITTER or name.endswith((".lock", ".partial")) and name[0] == ".":
                    continue
                mark = self.marks.get(inside)
                if not re.fullmatch(self.names, inside) or (mark and not holds(path, mark)):
                    return path
                marked, first = marked or mark is not None, first or path
        return None if marked else first


NEW = Made("(?!)")
"""What a folder holds that must be new: nothing matches."""


def holds(path: Path, *marks: str) -> bool:
    """Whether a file has one of these texts near its beginning or its end."""
    try:
        with path.open("rb") as file:
            content = file.read(LOOKED_AT)
            file.seek(max(LOOKED_AT, path.stat().st_size - LOOKED_AT))
            content += file.read()
    except OSError:
        return False
    return any(mark.encode() in content for mark in marks)


def check_writable(path: str | Path, *marks: str) -> Path:
    """Make sure that a file can be written to a path, before hours of work are spent on it.

    Args:
        path: File to write.
        marks: Texts by which the command knows a file of its own, which alone it replaces. Without
            any, every file may be replaced.

    Raises:
        FusionError: The path is a folder, cannot be written, or holds a file of somebody else's.
    """
    path = Path(path)
    if path.is_dir():
        raise FusionError(f"The output {path} is a folder: give the name of a file.")
    try:
        folder = path.resolve().parent
    except (OSError, RuntimeError) as error:
        raise FusionError(f"The output {path} links to itself: give another name.") from error
    if path.exists() and not path.is_file():
        raise FusionError(f"The output {path} is no ordinary file: give another name.")
    _check_folder(folder, path)
    if path.exists():
        if marks and path.stat().st_size and not holds(path, *marks):
            raise FusionError(
                f"The output {path} exists and was not made by this command: give another name, or "
                "move the file away first."
            )
        if not os.access(path, os.W_OK):
            raise FusionError(f"The output {path} is read-only: choose another name.")
    return path


def check_folder(path: str | Path, made: Made | None, *, whole: bool = True) -> Path:
    """Make sure that a folder can be written, before hours of work are spent on it.

    Args:
        path: Folder to write; a symbolic link stands for the folder that it leads to.
        made: What the command makes there, and nothing else may be in the folder; with None
            anything may.
        whole: Whether the folder will be replaced as a whole, rather than written into.

    Returns:
        The folder itself, with links followed.

    Raises:
        FusionError: It cannot be written or replaced, or holds a file of somebody else's.
    """
    folder = Path(path).resolve()
    if folder.exists() and not folder.is_dir():
        raise FusionError(f"The output {path} is a file: give the name of a folder.")
    own = folder / "fusionlib"
    if whole and folder in (Path.cwd(), *Path.cwd().parents):
        raise FusionError(
            f"The output {path} is the folder that you are in, or one around it, and would be "
            f"replaced as a whole: give a folder of its own, {short(own)} for example."
        )
    if made and (other := made.foreign(folder)):
        raise FusionError(
            f"The output {path} holds {other.relative_to(folder)}, which this command did not make "
            f"and would lose: give a new folder, {short(own)} for example, or move the file away."
        )
    if whole and os.path.ismount(folder):
        raise FusionError(
            f"The output {path} is where a file system is mounted, and cannot be replaced as a "
            f"whole: give a folder in it, {short(own)} for example."
        )
    for place in (folder, folder.parent) if whole else (folder,):
        _check_folder(place, path)
    return folder


def _check_folder(folder: Path, output: str | Path) -> None:
    """See whether a file can be written into a folder, or a folder made where there is none."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FusionError(
            f"The output {output} cannot be written ({error.strerror}): choose another folder."
        ) from error


def check_apart(
    output: str | Path, source: str | Path, *, inside: bool = True, around: bool = True
) -> None:
    """Make sure that an output is not a source, by whatever links or spelling.

    Args:
        output: File or folder that will be written.
        source: File or folder that is read.
        inside: Whether the output may not lie in the source either.
        around: Whether the source may not lie in the output either.

    Raises:
        FusionError: It is the source, lies in it, or holds it.
    """
    ours, theirs = Path(output).resolve(), Path(source).resolve()
    for path, places, how in (
        (theirs, (ours, *ours.parents) if inside else (ours,), "is or lies in"),
        (ours, theirs.parents if around else (), "holds"),
    ):
        if path.exists() and any(p.exists() and path.samefile(p) for p in places):
            raise FusionError(
                f"The output {output} {how} {source}, which is read: choose another place."
            )


@contextmanager
def locked(path: Path, *, inside: bool = False) -> Iterator[None]:
    """Hold a file or folder for this process while it is written, by a lock file.

    The lock ends with the process, even when it is killed. A file system may know no locks.

    Args:
        path: File or folder.
        inside: Whether the lock file lies in the folder, which is not replaced, or else beside it.

    Raises:
        FusionError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    place = path if inside else path.parent
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / f".{path.name}.lock", timeout=0.2)
    try:
        lock.acquire()
    except Timeout:
        raise FusionError(
            f"Another process is writing {short(path)} at this moment: wait until it has ended, "
            "or choose another place."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows deletes no open file
                os.unlink(lock.lock_file)
            lock.release()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, whatever other processes or a kill do.

    Args:
        path: File to write or to replace; its folder is made as needed. A symbolic link stands for
            the file that it leads to.
        write: Function that writes the content to an open binary file. The file lies beside `path`
            and is moved there when the function returns; if it raises, `path` is left as it was.

    Raises:
        OSError: The disk is full, for example, whatever error the function raised.
    """
    path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):  # a file would take its place
        raise OSError(errno.EEXIST, "a device or a pipe is there", str(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:  # with the rights that the user's umask leaves
                write(file)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


@contextmanager
def replacing(path: Path, made: Made | None = None) -> Iterator[Path]:
    """Yield a path for a new file or folder, which takes the place of `path` after the block.

    It lies beside `path`. If the block fails, `path` stays as it was. The name is always the same,
    so that an attempt after a kill overwrites what was left, and a lock keeps processes apart.

    Args:
        path: File or folder to write or to replace; a symbolic link is followed.
        made: What the command makes in a folder, see `check_folder`. A file that others have put
            there meanwhile is taken along.

    Raises:
        FusionError: The folder holds a file of somebody else's, or another process is writing it.
        OSError: The disk is full, for example, whatever error the block raised.
    """
    path = check_folder(path, made) if made else path.resolve()
    partial, former = (path.with_name(f".{path.name}.{end}") for end in ("partial", "former"))
    with locked(path), _told(path):
        if former.exists() and not path.exists():  # by a kill between two moves
            os.replace(former, path)
        try:
            _remove(partial)
            yield partial
            with deferred():
                if path.is_dir():
                    _remove(former)
                    os.replace(path, former)
                os.replace(partial, path)
            while made and (other := made.foreign(former)):
                target = path / other.relative_to(former)
                if target.exists():
                    target = target.with_name(f"{target.name}.former")
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(other, target)
        finally:
            _remove(partial)
        _remove(former)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Let an error of the disk name the path, and the many that libraries raise be an `OSError`."""
    try:
        yield
    except OSError as error:
        if error.errno and (not error.filename or str(error.filename).endswith(".partial")):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, OSError) and FULL not in str(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None or isinstance(error, FusionError):
            raise
        code = cause.errno if isinstance(cause, OSError) and cause.errno else errno.ENOSPC
        raise OSError(code, os.strerror(code), str(path)) from error


def _remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
