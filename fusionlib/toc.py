"""The book's table of contents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_NOTEBOOKS = "notebooks/"


def toc_pages(root: Path) -> list[str]:
    """Pages of ``_toc.yml`` in reading order, as it names them: without their file extension."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            if "root" in node or "file" in node:
                yield node.get("root") or node["file"]
            for key in ("parts", "chapters", "sections"):
                yield from walk(node.get(key, []))

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def toc_notebooks(root: Path) -> list[str]:
    """The names of the notebooks among them."""
    return [p.removeprefix(_NOTEBOOKS) for p in toc_pages(root) if p.startswith(_NOTEBOOKS)]
