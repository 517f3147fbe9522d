"""A folder's whole content, to compare before and after."""

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
