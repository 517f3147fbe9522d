"""Files and folders that tests make, and a folder's whole content to compare."""

import os
from pathlib import Path


def tree(root: Path) -> dict[str, bytes | str | None]:
    """Every path below a folder with its content; a link with its target, a folder with None."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def write_tree(root: Path, files: dict[str, str | bytes]) -> Path:
    """Write text files and binary files by name."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    root.mkdir(parents=True, exist_ok=True)
    return root


def pipe(name: str) -> Path:
    """A named pipe that nobody writes to."""
    os.mkfifo(name)
    return Path(name)


def written(name: str, content: bytes | str = b"") -> Path:
    """A file in the current folder, its folders made as needed; text is written as UTF-8."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def linked(name: str, target: str) -> Path:
    """A symbolic link in the current folder."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path
