"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fusionlib.errors import FusionError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; its folder is made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def short(path: Path) -> str:
    """The path relative to the current folder, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def check_writable(path: str | Path) -> Path:
    """Make sure that a file can be written to a path, before hours of work are spent on it.

    Creates missing parent folders.

    Raises:
        FusionError: The path is a folder, or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise FusionError(f"The output {path} is a folder: give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise FusionError(
            f"The output {path} cannot be written ({error.strerror}): choose another folder."
        ) from error
    return path


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, whatever other processes or a kill do.

    Args:
        path: File to write or to replace; its folder must exist.
        write: Function that writes the content to an open binary file. The file lies beside `path`
            and is moved there when the function returns; if it raises, `path` is left as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        # mkstemp makes files that only their owner may read; results are for everyone.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; its folder is made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path for a new file or folder, which takes the place of `path` after the block.

    It lies beside `path`. If the block fails, `path` stays as it was. The name is always the same,
    so that an attempt after a kill overwrites what was left; two processes at once would collide.
    """
    partial = path.with_name(f"{path.name}.partial")
    _remove(partial)
    yield partial
    if path.is_dir():
        _remove(path)
    os.replace(partial, path)


def _remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
