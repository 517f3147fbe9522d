"""The book's table of contents, and a book that goes without some of its notebooks."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_NOTEBOOKS = "notebooks/"

_PARTS = ("parts", "chapters", "sections")
"""What a table of contents nests pages in."""

_LINK = re.compile(
    r"\{doc\}`(?:(?P<words>[^`<]*?)\s*<)?(?P<doc>[^`<>]+)>?`|"
    r"\[(?P<text>[^]]+)\]\((?P<file>[^)\s]+)\.ipynb\)"
)
"""A link to another page: MyST's role, with words of its own or without, or Markdown's."""


def toc_pages(root: Path) -> list[str]:
    """Pages of ``_toc.yml`` in reading order, as it names them: without their file extension."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            if "root" in node or "file" in node:
                yield node.get("root") or node["file"]
            for key in _PARTS:
                yield from walk(node.get(key, []))

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def toc_notebooks(root: Path) -> list[str]:
    """The names of the notebooks among them."""
    return [p.removeprefix(_NOTEBOOKS) for p in toc_pages(root) if p.startswith(_NOTEBOOKS)]


def prune_toc(root: Path, names: Collection[str]) -> dict[str, Any]:
    """The table of contents without some notebooks, their sections, and parts that held no more.

    Args:
        root: holds ``_toc.yml``.
        names: of the notebooks.

    Returns:
        The content of another ``_toc.yml``.
    """
    gone = {_NOTEBOOKS + name for name in names}

    def prune(node: dict[str, Any]) -> dict[str, Any]:
        kept = dict(node)
        for key in node.keys() & set(_PARTS):
            pages = [prune(page) for page in node[key] if page.get("file") not in gone]
            kept[key] = [page for page in pages if "file" in page or page.keys() & set(_PARTS)]
            if not kept[key]:
                del kept[key]
        return kept

    return prune(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))


def unlink(text: str, page: str, titles: Mapping[str, str]) -> str:
    """Turn links to notebooks that the book goes without into their titles.

    Args:
        text: in MyST Markdown.
        page: whose text it is, as the table of contents names it.
        titles: of the notebooks, by name.

    Returns:
        The text with *Title (not in this book)* in the place of each such link, or with the words
        that the link had.
    """

    def plain(found: re.Match[str]) -> str:
        target = posixpath.normpath(
            posixpath.join(posixpath.dirname(page), found["doc"] or found["file"])
        )
        name = target.removeprefix(_NOTEBOOKS)
        if name == target or name not in titles:
            return found[0]
        return found["words"] or found["text"] or f"*{titles[name]} (not in this book)*"

    return _LINK.sub(plain, text)
