"""The book's table of contents, and a book without some of its notebooks."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

_NOTEBOOKS = "notebooks/"

_PARTS = ("parts", "chapters", "sections")
"""Keys under which a table of contents nests pages."""

_LINK = re.compile(
    r"\{doc\}`(?:(?P<words>[^`<]*?)\s*<)?(?P<doc>[^`<>]+)>?`|"
    r"\[(?P<text>[^]]+)\]\((?P<file>[^)\s]+)\.ipynb\)"
)
"""A link to another page: a role of MyST, with or without its own words, or Markdown's link."""


def toc_pages(root: Path) -> list[str]:
    """Pages of ``_toc.yml`` in reading order, as it names them: without their file extension."""
    from sphinx_external_toc.parsing import parse_toc_yaml

    return list(parse_toc_yaml(root / "_toc.yml"))


def toc_notebooks(root: Path) -> list[str]:
    """Names of the notebooks in ``_toc.yml``, in reading order."""
    return [p.removeprefix(_NOTEBOOKS) for p in toc_pages(root) if p.startswith(_NOTEBOOKS)]


def prune_toc(root: Path, names: Collection[str]) -> dict[str, Any]:
    """The table of contents without some notebooks, their sections, and parts left empty.

    Args:
        root: Folder of ``_toc.yml``.
        names: Names of the notebooks.

    Returns:
        Content of a new ``_toc.yml``.
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
    """Turn links to notebooks that are left out of the book into their titles.

    Args:
        text: Text of a page in MyST Markdown.
        page: The page, as the table of contents names it.
        titles: Titles of the notebooks, by name.

    Returns:
        The text with *Title (not in this book)* in place of each such link, or with the link's own
        words.
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
